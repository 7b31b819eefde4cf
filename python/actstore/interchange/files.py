"""Creating a directory atomically. Nothing is deleted except the directory that it replaces."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from ..errors import ActstoreError, StorageError


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Raise OSErrors of the block as StorageError, with `what` at the start of the message."""
    try:
        yield
    except ActstoreError:
        raise
    except OSError as error:
        kind = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io"
        raise StorageError(f"{what}: {error.strerror or error}", kind=kind) from error


@contextlib.contextmanager
def new_directory(
    path: str, overwrite: bool, check: Callable[[str], None], exchange: Callable[[str, str], None]
) -> Iterator[str]:
    """Yield a temporary path, at which the block must create a directory.

    On a clean exit, the directory is moved to `path`. On an error, it is deleted.

    Parameters
    ----------
    path : str
        The final path.
    overwrite : bool
        Replace an existing directory at `path`.
    check : callable
        Called as ``check(path)`` before an existing directory is replaced. It must raise an error if the
        directory must not be replaced.
    exchange : callable
        Called as ``exchange(new, path)`` at the end if there is an existing directory. It must check `path`
        again and exchange the two directories. The old one is then deleted.

    Raises
    ------
    StorageError
        kind ``exists`` when `path` exists and must not be replaced.
    """
    import shutil
    import tempfile

    # Replace the target of a link, working in the target's parent directory so that the move stays on one
    # file system. A dangling link counts as an existing path.
    path = os.path.realpath(path) if os.path.exists(path) else os.path.abspath(path)
    parent, name = os.path.split(path)
    if os.path.lexists(path):
        if not overwrite:
            raise StorageError(
                f"{path} exists",
                kind="exists",
                hint="overwrite=True (--overwrite on the command line) replaces it",
            )
        check(path)
    if not os.path.isdir(parent):
        raise StorageError(f"{parent} is not a directory", kind="io", hint=f"mkdir -p {parent}")
    with storage_errors(path):
        folder = tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent)
    try:
        partial = os.path.join(folder, name)
        yield partial
        with storage_errors(path):
            if not os.path.lexists(path):
                os.rename(partial, path)
                _sync(parent)
            elif overwrite:
                exchange(partial, path)
            else:
                raise StorageError(f"{path} was created in the meantime", kind="exists")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sync_tree(path: str) -> None:
    """Flush a directory of files to disk."""
    for name in os.listdir(path):
        _sync(os.path.join(path, name))
    _sync(path)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
