"""Fitting a long token sequence into the model: truncation, or overlapping windows.

An encoding is ``head + content + tail``, where the tokenizer adds head and tail, as in ``[CLS] ... [SEP]``.
Each window has both, and as much content as fits. A token in several windows is stored from the first of
them, where it has the most left context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StrideWindow:
    """A window of a longer sequence.

    Attributes
    ----------
    tokens : int64 ``[T]``
        Positions in the whole sequence of the window's tokens.
    rows : int64 ``[R]``
        Ascending positions in the window whose rows are stored.
    """

    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]


def truncated(n_tokens: int, head: int, tail: int, max_length: int, side: str) -> StrideWindow:
    """The tokens that remain when the tokenizer truncates at `side`, ``left`` or ``right``.

    Examples
    --------
    >>> truncated(7, 1, 1, 5, "right").tokens
    array([0, 1, 2, 3, 6])
    """
    room = max_length - head - tail
    first = head if side == "right" else n_tokens - tail - room
    tokens = _with_ends(first, first + room, n_tokens, head, tail)
    return StrideWindow(tokens, np.arange(len(tokens)))


def strided(n_tokens: int, head: int, tail: int, max_length: int, stride: int) -> list[StrideWindow]:
    """Windows that start `stride` content tokens apart and together store each token once.

    Examples
    --------
    >>> [w.tokens.tolist() for w in strided(8, 1, 1, 5, 2)], [w.rows.tolist() for w in strided(8, 1, 1, 5, 2)]
    ([[0, 1, 2, 3, 7], [0, 3, 4, 5, 7], [0, 5, 6, 7]], [[0, 1, 2, 3], [2, 3], [2, 3]])
    """
    room, end = max_length - head - tail, n_tokens - tail
    starts = list(range(head, max(head + 1, end - room + stride), stride))
    windows, done = [], head
    for i, start in enumerate(starts):
        stop = min(start + room, end)
        first = 0 if i == 0 else head + done - start
        last = head + stop - start + (tail if i == len(starts) - 1 else 0)
        windows.append(StrideWindow(_with_ends(start, stop, n_tokens, head, tail), np.arange(first, last)))
        done = stop
    return windows


def _with_ends(start: int, stop: int, n_tokens: int, head: int, tail: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(head), np.arange(start, stop), np.arange(n_tokens - tail, n_tokens)])
