"""Compaction: reclaiming the space of superseded chunks."""

import json
import os
from dataclasses import dataclass

from .. import _native
from ..base.checks import as_path
from ..base.progress import Progress


@dataclass(frozen=True)
class Compaction:
    """The result of `compact`: the store's size before and after, and the number of its newest record."""

    bytes_before: int
    bytes_after: int
    record: int


def compact(
    path: str | os.PathLike[str], *, threads: int = 0, progress: Progress | None = None
) -> Compaction:
    """Rewrite the files of a store that have holes. Small commits leave holes.

    Values do not change. An open reader works until it accesses a rewritten file. It then raises
    FormatError (kind ``compacted``), and `Store.refresh` makes it work again.

    Parameters
    ----------
    path : path
        One store, or one part of a folder of parts.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the bytes done and the total.

    Raises
    ------
    NotFoundError
        When there is no store at `path`.
    StorageError
        kind ``locked`` while another process writes it.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     for _ in range(3):
    ...         w.append({"resid": np.ones((2, 1, 4), np.float32)}, lengths=[2])
    ...         w.commit()
    >>> done = actstore.compact(path)
    >>> done.bytes_after <= done.bytes_before
    True
    """
    result = json.loads(_native.compact(as_path(path), threads, progress))
    return Compaction(result["bytes_before"], result["bytes_after"], result["record"])
