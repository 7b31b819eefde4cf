"""Checks of arguments and names. Each check raises an error that states the expected and the given value."""

import json
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, ShapeError
from .arrays import FLOAT_DTYPES, as_numpy
from .selection import is_int
from .text import type_name

_RESERVED = frozenset({"c", "zarr.json", "commits"})


def one_of(value: object, among: Sequence[str], what: str) -> None:
    """Raise InvalidInputError unless `value` is one of the strings in `among`."""
    if not isinstance(value, str) or value not in among:
        raise InvalidInputError(f"{what} is {value!r}, not one of {', '.join(among)}")


def check_k(k: Any, verb: str) -> int:
    """The number of results `k` as an int; InvalidInputError unless it is a positive int."""
    if not is_int(k) or k < 1:
        raise InvalidInputError(f"{verb}: k is {k!r}, expected a positive int")
    return int(k)


def layer_weights(weights: Any, n_layers: int, what: str) -> NDArray[np.float64]:
    """Layer weights as float64 ``[n_layers]``.

    Raises
    ------
    ShapeError
        When there is not exactly one weight per layer.
    InvalidInputError
        When the weights are not numbers, or one is not finite.
    """
    array = as_numpy(weights, what)
    if array.shape != (n_layers,):
        raise ShapeError(
            f"{what}: expected shape [{n_layers}], one weight per layer, got {list(array.shape)}"
        )
    if array.dtype.kind not in "iuf" and array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what}: expected numbers, got {array.dtype}")
    out = array.astype(np.float64)
    if not np.isfinite(out).all():
        raise InvalidInputError(f"{what}: {out[~np.isfinite(out)][0]} is not finite")
    return out


def as_path(item: object, what: str = "") -> str:
    """A path as a str; InvalidInputError when `item` is not a path."""
    if not isinstance(item, str | os.PathLike):
        raise InvalidInputError(f"{what + ': ' if what else ''}expected a path, got {type(item).__name__}")
    path = os.fspath(item)
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInputError(f"{path!r} is not a path")
    return path


def name_problem(name: object, *, reserved: Iterable[str] = ()) -> str | None:
    """Why `name` is not a valid name of a site, an axis or a column; None when it is valid."""
    if not isinstance(name, str):
        return f"is {type_name(name)}, not a str"
    if not name:
        return "is empty"
    if any(mark in name for mark in "/\\\0"):
        return "contains a slash, a backslash or NUL"
    if name.startswith((".", "__")):
        return "starts with '.' or '__'"
    if name in _RESERVED or name in reserved:
        return "is reserved"
    try:
        too_long = len(name.encode()) > 255
    except UnicodeEncodeError:
        return "is not valid unicode"
    return "is longer than 255 bytes" if too_long else None


def check_name(name: object, what: str, *, reserved: Iterable[str] = ()) -> str:
    """Return `name` if it is a valid name, that is, usable as a path component.

    Raises
    ------
    InvalidInputError
        When it is not; the message gives the reason.
    """
    problem = name_problem(name, reserved=reserved)
    if problem is not None:
        raise InvalidInputError(f"{what} {name!r} {problem}")
    assert isinstance(name, str)
    return name


def check_column(name: object, what: str) -> str:
    """Like `check_name`, for columns; ``offset`` is reserved for the offsets in the same group."""
    return check_name(name, what, reserved=("offset",))


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The mapping after a round trip through JSON.

    Raises
    ------
    InvalidInputError
        When JSON cannot represent it.
    """
    try:
        parsed: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} cannot be represented in JSON: {error}") from error
    return parsed


def check_threads(threads: object) -> int:
    """Return a number of threads as an int; InvalidInputError unless it is an int >= 0 (0: all cores)."""
    if not is_int(threads) or operator.index(threads) < 0:  # type: ignore[arg-type]
        raise InvalidInputError(f"threads={threads!r}: give 0 for all cores, or more")  # As the core says it.
    return operator.index(threads)  # type: ignore[arg-type]


def at_least(minimum: int, value: object, name: str) -> int:
    """Return `value` as an int.

    Raises
    ------
    InvalidInputError
        When it is not an int, or is less than `minimum`.
    """
    if not is_int(value) or operator.index(value) < minimum:  # type: ignore[arg-type]
        raise InvalidInputError(f"{name} is {value!r}, expected an int >= {minimum}")
    return operator.index(value)  # type: ignore[arg-type]
