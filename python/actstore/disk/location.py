"""Finding the parts of a store: a path, a list of paths, or a folder of parts."""

import os
import re
from collections.abc import Iterable, Mapping

from .. import _native
from ..base.checks import as_path
from ..errors import InvalidInputError, NotFoundError


def find_parts(source: object) -> list[str]:
    """The directories of all parts.

    Parameters
    ----------
    source : path or iterable of paths
        A store, a folder of stores, or a list of stores.

    Raises
    ------
    NotFoundError
        When a path does not exist or holds no store.
    InvalidInputError
        When `source` is not a path or a list of paths, is an empty list, or names a part twice.
    """
    if isinstance(source, str | os.PathLike):
        path = as_path(source)
        if not os.path.exists(path):
            raise NotFoundError(
                f"{path} does not exist",
                hint=near(path) or "actstore.create creates a store",
            )
        if not os.path.isdir(path):
            raise NotFoundError(f"{path} is a file, a store is a directory", hint=f"actstore import {path}")
        if os.path.exists(os.path.join(path, "zarr.json")):
            return [path]
        if os.path.isdir(os.path.join(path, "commits")):
            return [path]  # Opening it raises an error that says what is wrong.
        return _distinct(_folder(path))
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        raise InvalidInputError(
            f"expected a path or a list of paths, got {type(source).__name__}",
            hint="pass the path of the open store: store.path" if isinstance(source, Mapping) else None,
        )
    paths = [as_path(item) for item in source]
    if not paths:
        raise InvalidInputError("expected at least one part, got an empty list")
    for path in paths:
        if not _is_part(path):
            raise NotFoundError(f"{path} is not a store: it has no zarr.json")
    return _distinct(paths)


def _distinct(paths: list[str]) -> list[str]:
    """The paths, after a check that no two of them, links included, are the same directory."""
    seen: set[str] = set()
    for path in paths:
        resolved = os.path.realpath(path)
        if resolved in seen:
            raise InvalidInputError(f"{path} is given twice")
        seen.add(resolved)
    return paths


def _folder(path: str) -> list[str]:
    names = [
        name for name in os.listdir(path) if not name.startswith(".") and _is_part(os.path.join(path, name))
    ]
    if not names:
        version_2 = any(os.path.exists(os.path.join(path, name)) for name in (".zgroup", ".zarray"))
        raise NotFoundError(
            f"{path} is not a store: neither it nor a folder in it has a zarr.json",
            hint="it has Zarr version 2, actstore reads version 3" if version_2 else None,
        )
    return [os.path.join(path, name) for name in sorted(names, key=_natural)]


def _is_part(path: str) -> bool:
    """Whether `path` is a store. One that lost its root counts, so that opening it raises an error."""
    if os.path.exists(os.path.join(path, "zarr.json")):
        return True
    return os.path.isdir(os.path.join(path, "commits")) and _native.place(path) == "rootless"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts part-9 before part-10."""
    pieces = re.split(r"([0-9]+)", name)
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces if piece]


def near(path: str) -> str | None:
    """A hint with the name in the same folder that is most similar to a missing path's; None without one."""
    import difflib

    folder, name = os.path.split(os.path.abspath(path))
    try:
        matches = difflib.get_close_matches(name, os.listdir(folder), 1)
    except OSError:
        return None
    return f"there is {os.path.join(os.path.dirname(path), matches[0])}" if matches else None
