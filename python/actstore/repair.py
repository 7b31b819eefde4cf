"""Writing anew what a store lost and its records still know."""

import os

from . import _native
from .parts import as_path


def repair(path: str | os.PathLike[str]) -> list[str]:
    """Write the root's ``zarr.json`` of a store anew, where it is missing.

    It is made from the newest commit record and the metadata of the other nodes, and must have the checksum
    that the record pins. Nothing else is changed. Rows are safe without it, but no Zarr reader finds them.

    Parameters
    ----------
    path : path
        One store; of a folder of parts, one part.

    Returns
    -------
    list of str
        The files that were written, none when none is missing.

    Raises
    ------
    NotFoundError
        When there is no store.
    FormatError
        When it is damaged in another way, which `Store.verify` tells of.
    StorageError
        kind ``locked`` while it is written to.

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
