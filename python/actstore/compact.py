"""Giving back the room that superseded chunks take."""

import json
import os
from dataclasses import dataclass

from . import _native
from .parts import as_path
from .store import Progress


@dataclass(frozen=True)
class Compaction:
    """What `compact` did: the store's size before and after, and the record it published."""

    bytes_before: int
    bytes_after: int
    record: int


def compact(
    path: str | os.PathLike[str], *, threads: int = 0, progress: Progress | None = None
) -> Compaction:
    """Rewrite the files of a store that have holes, which every small commit leaves.

    Values stay as they are. Readers that are open go on until they meet a rewritten file, then say
    so (FormatError, kind ``compacted``): `Store.refresh` helps.

    Parameters
    ----------
    path : path
        One store; of a folder of parts, one part.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Raises
    ------
    NotFoundError
        When there is no store.
    StorageError
        kind ``locked`` while it is written to.

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
    found = json.loads(_native.compact(as_path(path), threads, progress))
    return Compaction(found["bytes_before"], found["bytes_after"], found["record"])
