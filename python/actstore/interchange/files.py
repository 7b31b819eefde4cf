"""Making a directory appear all at once, or not at all; nothing but what it replaces is removed."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

from ..errors import ActstoreError, InvalidInputError, StorageError


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """The operating system's errors as StorageError."""
    try:
        yield
    except ActstoreError:
        raise
    except OSError as error:
        kind = "disk_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io"
        raise StorageError(f"{what}: {error.strerror or error}", kind=kind) from error


@contextlib.contextmanager
def new_directory(
    path: str, overwrite: bool, check: Callable[[str], None], put_in_place: Callable[[str, str], None]
) -> Iterator[str]:
    """A temporary path beside `path`, which takes its place on a clean exit and is removed otherwise.

    Parameters
    ----------
    path : str
        Where the directory is to be in the end.
    overwrite : bool
        Replace what is there.
    check : callable
        Called with `path` when something is to be replaced; raises when it must not be.
    put_in_place : callable
        Called with the new directory and `path` in the end when something is there: checks once more,
        exchanges the two. What then has the name of the new one is removed.

    Raises
    ------
    StorageError
        kind ``exists`` when something is there and not to be replaced.
    """
    import shutil
    import tempfile

    # What a link leads to is replaced, beside it and on its disk; a link that leads nowhere is in the way.
    path = os.path.realpath(path) if os.path.exists(path) else os.path.abspath(path)
    parent, name = os.path.split(path)
    if os.path.lexists(path):
        if not overwrite:
            raise StorageError(
                f"{path} exists",
                kind="exists",
                hint="overwrite=True, on the command line --overwrite, replaces it",
            )
        check(path)
    if not os.path.isdir(parent):
        raise StorageError(f"{parent} is no directory", kind="io", hint=f"mkdir -p {parent}")
    with storage_errors(path):
        own = tempfile.mkdtemp(prefix=f".{name}.partial-", dir=parent)
    try:
        partial = os.path.join(own, name)
        yield partial
        with storage_errors(path):
            if not os.path.lexists(path):
                os.rename(partial, path)
                _sync(parent)
            elif overwrite:
                put_in_place(partial, path)
            else:
                raise StorageError(f"{path} appeared meanwhile", kind="exists")
    finally:
        shutil.rmtree(own, ignore_errors=True)


def sync_tree(path: str) -> None:
    """Bring a directory of files to the disk."""
    for name in os.listdir(path):
        _sync(os.path.join(path, name))
    _sync(path)


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_path(value: object, what: str) -> str:
    """A str or path-like as str.

    Raises
    ------
    InvalidInputError
        When it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise InvalidInputError(f"{what}: expected a path, got {type(value).__name__}")
    return str(os.fspath(value))
