"""The token filter (`keep=`): which rows of an example are stored.

A fraction is drawn row by row from a hash of the seed, the example's position and the row (splitmix64:
Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). So it does not depend
on batches, on the number of processes or on where a run was resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.arrays import as_numpy
from ...base.selection import is_int
from ...errors import InvalidInputError, ShapeError
from .example import Example, Piece

NAMES = ("all", "no-special", "last")

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

MaskFunction = Callable[[Example, int, str, int], NDArray[np.bool_]]
"""Maps an example, its position in the input, an axis and the axis's number to a mask ``[n_rows]``."""


class TokenFilter:
    """Selects the rows of each example to store.

    Parameters
    ----------
    keep
        ``"all"``, ``"no-special"`` or ``"last"``; a fraction in (0, 1); a function of an `Example` with all
        its rows that returns bool ``[n_rows]``; or a sequence of such masks, one per input. With several
        axes, a mask is a mapping from axis to array.
    seed : int
        For a fraction.

    Attributes
    ----------
    is_mask : bool
        Whether a function or masks choose the rows of each example, so that the identity cannot
        record the choice.

    Raises
    ------
    InvalidInputError
        If `keep` is none of these.
    """

    def __init__(self, keep: Any, seed: int) -> None:
        if not is_int(seed):
            raise InvalidInputError(f"seed: {seed!r} is not an int")
        self.is_mask = False
        self._mask: MaskFunction | None
        if isinstance(keep, str):
            if keep not in NAMES:
                raise InvalidInputError(f"keep: {keep!r} is none of {', '.join(NAMES)}")
            self._mask = {"all": None, "no-special": _no_special, "last": _last}[keep]
        elif isinstance(keep, bool) or keep is None:
            raise InvalidInputError(f"keep: {keep!r} selects no rows", hint=f"one of {', '.join(NAMES)}")
        elif isinstance(keep, int | float | np.integer | np.floating):
            if not 0 < keep < 1:
                raise InvalidInputError(
                    f"keep: {keep!r} is not a fraction between 0 and 1", hint='"all" keeps all rows'
                )
            self._mask = _fraction(float(keep), seed)
        elif callable(keep):
            self.is_mask = True
            self._mask = _by_function(keep)
        elif hasattr(keep, "__getitem__") and hasattr(keep, "__len__") and not isinstance(keep, Mapping):
            self.is_mask = True
            self._mask = _by_masks(keep)
        else:
            raise InvalidInputError(
                f"keep: got {type(keep).__name__}",
                hint=f"{', '.join(NAMES)}, a fraction, a function or a sequence of masks",
            )

    @property
    def keeps_all(self) -> bool:
        """Whether every row is stored."""
        return self._mask is None

    def apply(self, example: Example, position: int) -> Example:
        """An example restricted to the rows to store.

        Parameters
        ----------
        example : Example
            With all rows.
        position : int
            Its position in the whole input.

        Raises
        ------
        InvalidInputError, ShapeError
            For a mask that does not fit, with the example's id.
        """
        if self._mask is None:
            return example
        masks = {
            axis: self._mask(example, position, axis, number) for number, axis in enumerate(example.tokens)
        }
        pieces, start = [], dict.fromkeys(masks, 0)
        for piece in example.pieces:
            assert piece.rows is not None
            rows = {}
            for axis, positions in piece.rows.items():
                rows[axis] = positions[masks[axis][start[axis] : start[axis] + len(positions)]]
                start[axis] += len(positions)
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


def _fraction(fraction: float, seed: int) -> MaskFunction:
    def draw(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        key = 0
        for word in (seed, position, number):
            key = _splitmix64((key + _GOLDEN ^ word) & _WORD)
        n_rows = len(example.tokens[axis]["id"])
        bits = _splitmix64(np.uint64(key) + np.arange(1, n_rows + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
        mask: NDArray[np.bool_] = (bits >> 11).astype(np.float64) < fraction * 2.0**53
        return mask

    return draw


def _splitmix64(state: Any) -> Any:
    """The finalizer of splitmix64, for an int or an array of uint64."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    state = (state ^ state >> 27) * 0x94D049BB133111EB & _WORD
    return state ^ state >> 31


def _by_function(function: Callable[[Example], Any]) -> MaskFunction:
    def call(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        return _checked_mask(function(example), example, axis)

    return call


def _by_masks(masks: Any) -> MaskFunction:
    def look_up(example: Example, position: int, axis: str, number: int) -> NDArray[np.bool_]:
        if position >= len(masks):
            raise ShapeError(
                f"keep: {len(masks)} masks, but none for example {example.id!r}, which is input {position}"
            )
        return _checked_mask(masks[position], example, axis)

    return look_up


def _checked_mask(mask: Any, example: Example, axis: str) -> NDArray[np.bool_]:
    what = f"keep: the mask of example {example.id!r}"
    if isinstance(mask, Mapping):
        if set(mask) != set(example.tokens):
            raise InvalidInputError(
                f"{what} has the axes {sorted(map(str, mask))}, the example has {sorted(example.tokens)}"
            )
        mask = mask[axis]
    elif len(example.tokens) > 1:
        first, second, *_ = example.tokens
        raise InvalidInputError(f"{what} names no axis", hint=f"{{{first!r}: mask, {second!r}: mask}}")
    array = as_numpy(mask, what)
    n_rows = len(example.tokens[axis]["id"])
    if array.ndim == 1 and array.size == 0 == n_rows:
        return np.zeros(0, bool)  # ``[]`` becomes an array of floats.
    if array.dtype != bool:
        raise InvalidInputError(f"{what} is {array.dtype}, not bool")
    if array.shape != (n_rows,):
        raise ShapeError(f"{what} has shape {list(array.shape)}, axis {axis!r} has rows [{n_rows}]")
    return array
