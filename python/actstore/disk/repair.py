"""Repair: restoring a file that a store lost and that its records describe."""

import os

from .. import _native
from ..base.checks import as_path


def repair(path: str | os.PathLike[str]) -> list[str]:
    """Restore the root's ``zarr.json`` of a store that lost it.

    It is built from the newest commit record and the metadata of the other nodes, and must have the checksum
    that the record pins. Nothing else changes. The rows are safe without it, but Zarr readers cannot find
    them.

    Parameters
    ----------
    path : path
        One store, or one part of a folder of parts.

    Returns
    -------
    list of str
        The files that were written; empty when none was missing.

    Raises
    ------
    NotFoundError
        When there is no store at `path`.
    FormatError
        When the store is damaged in another way; `Store.verify` says where.
    StorageError
        kind ``locked`` while another process writes it.

    Examples
    --------
    >>> import actstore, numpy as np, os, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     w.append({"resid": np.ones((3, 1, 4), np.float32)}, lengths=[3])
    >>> os.remove(path + "/zarr.json")
    >>> actstore.repair(path)
    ['zarr.json']
    >>> actstore.open(path).n_tokens
    3
    """
    return _native.repair(as_path(path))
