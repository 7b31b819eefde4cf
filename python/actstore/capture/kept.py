"""Which rows of an example are stored: all, those of no special token, the last, a share, or by a mask.

A share is drawn row by row from a hash of the seed, the example's position and the row (splitmix64:
Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), so that it does
not depend on batches, processes or where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..errors import InvalidInputError, ShapeError
from ..selection import is_int
from .example import Example, Piece

NAMES = ("all", "no-special", "last")

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Kept:
    """A policy, checked.

    Parameters
    ----------
    tokens
        ``"all"``, ``"no-special"``, ``"last"``; a share in (0, 1); a function of an `Example` with all its
        rows, which gives bool ``[n_rows]``; or a sequence of such arrays, one for each input. Where there
        are several axes, a mask is a mapping of axis to array.
    seed : int
        For a share.

    Raises
    ------
    InvalidInputError
        When it is none of these.
    """

    def __init__(self, tokens: Any, seed: int) -> None:
        if not is_int(seed):
            raise InvalidInputError(f"seed: {seed!r} is no int")
        self.by_choice = False
        """Whether rows are chosen example by example, so that only the rows say what was chosen."""
        self._how: Callable[[Example, int, str, int], NDArray[np.bool_]] | None
        if isinstance(tokens, str):
            if tokens not in NAMES:
                raise InvalidInputError(f"tokens: {tokens!r} is none of {', '.join(NAMES)}")
            self._how = {"all": None, "no-special": _no_special, "last": _last}[tokens]
        elif isinstance(tokens, bool) or tokens is None:
            raise InvalidInputError(
                f"tokens: {tokens!r} says nothing of rows", hint=f"one of {', '.join(NAMES)}"
            )
        elif isinstance(tokens, int | float | np.integer | np.floating):
            if not 0 < tokens < 1:
                raise InvalidInputError(
                    f"tokens: {tokens!r} is no share between 0 and 1", hint='"all" keeps all'
                )
            self._how = _share(float(tokens), seed)
        elif callable(tokens):
            self.by_choice = True
            self._how = _asked(tokens)
        elif (
            hasattr(tokens, "__getitem__") and hasattr(tokens, "__len__") and not isinstance(tokens, Mapping)
        ):
            self.by_choice = True
            self._how = _masks(tokens)
        else:
            raise InvalidInputError(
                f"tokens: got a {type(tokens).__name__}",
                hint=f"{', '.join(NAMES)}, a share, a function or a sequence of masks",
            )

    @property
    def all(self) -> bool:
        """Whether every row is kept."""
        return self._how is None

    def of(self, example: Example, position: int) -> Example:
        """An example with the rows that are kept, of one with all; `position` is the input's.

        Raises
        ------
        InvalidInputError, ShapeError
            For a mask that does not fit, naming the example.
        """
        if self._how is None:
            return example
        masks = {
            axis: self._how(example, position, axis, number) for number, axis in enumerate(example.tokens)
        }
        pieces, start = [], dict.fromkeys(masks, 0)
        for piece in example.pieces:
            assert piece.rows is not None
            rows = {}
            for axis, there in piece.rows.items():
                rows[axis] = there[masks[axis][start[axis] : start[axis] + len(there)]]
                start[axis] += len(there)
            pieces.append(Piece(piece.inputs, rows))
        tokens = {
            axis: {name: values[masks[axis]] for name, values in columns.items()}
            for axis, columns in example.tokens.items()
        }
        return replace(example, pieces=pieces, tokens=tokens)


def _no_special(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
    return ~example.tokens[axis]["special"]


def _last(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
    mask = np.zeros(len(example.tokens[axis]["id"]), bool)
    mask[-1:] = True
    return mask


def _share(share: float, seed: int) -> Callable[[Example, int, str, int], NDArray[np.bool_]]:
    def drawn(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        key = 0
        for word in (seed, position, number):
            key = _mixed((key + _GOLDEN ^ word) & _WORD)
        n_rows = len(example.tokens[axis]["id"])
        bits = _mixed(np.uint64(key) + np.arange(1, n_rows + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
        mask: NDArray[np.bool_] = (bits >> 11).astype(np.float64) < share * 2.0**53
        return mask

    return drawn


def _mixed(state: Any) -> Any:
    """The finalizer of splitmix64, of an int or of an array of uint64."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
    return state ^ state >> 31


def _asked(function: Callable[[Example], Any]) -> Callable[[Example, int, str, int], NDArray[np.bool_]]:
    def asked(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        return _mask(function(example), example, axis)

    return asked


def _masks(masks: Any) -> Callable[[Example, int, str, int], NDArray[np.bool_]]:
    def given(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        if position >= len(masks):
            raise ShapeError(
                f"tokens: {len(masks)} masks, and none for example {example.id!r}, which is input {position}"
            )
        return _mask(masks[position], example, axis)

    return given


def _mask(mask: Any, example: Example, axis: str) -> NDArray[np.bool_]:
    what = f"tokens: the mask of example {example.id!r}"
    if isinstance(mask, Mapping):
        if set(mask) != set(example.tokens):
            raise InvalidInputError(
                f"{what} is of {sorted(map(str, mask))}, its axes are {sorted(example.tokens)}"
            )
        mask = mask[axis]
    elif len(example.tokens) > 1:
        first, second, *_ = example.tokens
        raise InvalidInputError(f"{what} is of no axis", hint=f"{{{first!r}: mask, {second!r}: mask}}")
    array = as_numpy(mask, what)
    n_rows = len(example.tokens[axis]["id"])
    if array.ndim == 1 and array.size == 0 == n_rows:
        return np.zeros(0, bool)  # ``[]`` is of floats.
    if array.dtype != bool:
        raise InvalidInputError(f"{what} is {array.dtype}, not bool")
    if array.shape != (n_rows,):
        raise ShapeError(f"{what} has shape {list(array.shape)}, its rows on axis {axis!r} are [{n_rows}]")
    return array
