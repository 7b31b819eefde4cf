"""The rows of a view and the examples they belong to."""

from collections.abc import Callable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ..base.selection import Rows, compact_rows, rows_array, take


class RowSet:
    """The rows of a view, and the examples they belong to.

    Parameters
    ----------
    rows : range or array
        Row numbers in the whole store.
    examples : range or array
        Example numbers in the whole store, one for each example of the view.
    offset : callable
        Returns int64 ``[n_examples + 1]``: where in the view each example begins. Called when needed.
    owner : array, optional
        int64 ``[n_rows]``: the position in `examples` of each row's example. Given when the rows of an
        example are not contiguous, so that `offset` cannot describe them.
    """

    __slots__ = ("_offset", "examples", "owner", "rows")

    def __init__(
        self,
        rows: Rows,
        examples: Rows,
        offset: Callable[[], NDArray[np.int64]],
        owner: NDArray[np.int64] | None = None,
    ) -> None:
        self.rows = rows
        self.examples = examples
        self._offset = offset
        self.owner = owner

    def renumbered(self, rows: Rows) -> Self:
        """The same examples over other row numbers."""
        return type(self)(rows, self.examples, self._offset, self.owner)

    def grouped(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """The order that groups rows by example (None if they are grouped), and the offsets into it."""
        if self.owner is None:
            return None, self._offset()
        order = np.argsort(self.owner, kind="stable")
        return order, np.searchsorted(self.owner[order], np.arange(len(self.examples) + 1))

    def take_examples(self, positions: Rows) -> Self:
        """The rows of the examples at these positions."""
        order, offset = self.grouped()
        examples = take(self.examples, positions)
        if isinstance(positions, range) and order is None:
            start, stop = int(offset[positions.start]), int(offset[positions.stop])
            ends = offset[positions.start : positions.stop + 1] - start
            return type(self)(self.rows[start:stop], examples, lambda: ends)
        at = rows_array(positions)
        lengths = offset[at + 1] - offset[at]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        picked = np.arange(ends[-1]) + np.repeat(offset[at] - ends[:-1], lengths)
        if order is not None:
            picked = order[picked]
        return type(self)(take(self.rows, compact_rows(picked)), examples, lambda: ends)

    def take_rows(self, positions: Rows) -> Self:
        """The rows at these positions. All examples stay, some with fewer rows or none."""
        rows = take(self.rows, positions)
        if self.owner is not None:
            owner = (
                self.owner[positions.start : positions.stop]
                if isinstance(positions, range)
                else self.owner[positions]
            )
        elif isinstance(positions, range):
            parent, start, stop = self._offset, positions.start, positions.stop
            return type(self)(rows, self.examples, lambda: np.clip(parent(), start, stop) - start)
        else:
            owner = np.searchsorted(self._offset(), positions, side="right") - 1
        if (np.diff(owner) >= 0).all():
            ends = np.searchsorted(owner, np.arange(len(self.examples) + 1))
            return type(self)(rows, self.examples, lambda: ends)
        return type(self)(rows, self.examples, self._offset, owner)
