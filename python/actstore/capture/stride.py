"""Which tokens of a long sequence go into the model: cut to fit, or in windows that overlap.

An encoding is ``head + content + tail``, where the tokenizer added head and tail: ``[CLS] ... [SEP]``.
Each sequence for the model has both, and as much content as there is room for. A token in several
windows is stored from the earliest, in which it has most context to its left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """One sequence out of a longer one.

    Attributes
    ----------
    tokens : int64 ``[T]``
        Which tokens of the whole it is made of.
    rows : int64 ``[R]``
        Positions in the window whose rows are stored, ascending.
    """

    tokens: NDArray[np.int64]
    rows: NDArray[np.int64]


def cut(n_tokens: int, head: int, tail: int, max_length: int, side: str) -> Window:
    """The tokens that stay, as a tokenizer that truncates at this side (``left``, ``right``) keeps them.

    Examples
    --------
    >>> cut(7, 1, 1, 5, "right").tokens
    array([0, 1, 2, 3, 6])
    """
    room = max_length - head - tail
    first = head if side == "right" else n_tokens - tail - room
    tokens = _with_ends(first, first + room, n_tokens, head, tail)
    return Window(tokens, np.arange(len(tokens)))


def strided(n_tokens: int, head: int, tail: int, max_length: int, stride: int) -> list[Window]:
    """Windows that begin `stride` content tokens apart, and together store each token once.

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
        windows.append(Window(_with_ends(start, stop, n_tokens, head, tail), np.arange(first, last)))
        done = stop
    return windows


def _with_ends(start: int, stop: int, n_tokens: int, head: int, tail: int) -> NDArray[np.int64]:
    return np.concatenate([np.arange(head), np.arange(start, stop), np.arange(n_tokens - tail, n_tokens)])
