"""The columns that go into batches, read whole and held in memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.selection import Rows
from ..disk.layout import EXAMPLES
from ..errors import NotFoundError
from ..rows.view import View


class ColumnCache:
    """Columns of a site's rows and of their examples. Each is read on first use; a pickle holds no values."""

    def __init__(self, site: View) -> None:
        self._site = site
        self._columns: dict[str, tuple[NDArray[Any], bool]] = {}

    def check(self, name: str) -> None:
        """Check that the column exists.

        Raises
        ------
        NotFoundError
            When neither the rows' axis nor the examples have it; the message lists the columns of both.
        """
        self._read(name, range(0))

    def values(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The values ``[b]`` of a column for rows ``[b]`` of the backend's array.

        A column of the rows' axis takes precedence over a column of the examples. Strings have dtype object.
        """
        backend = self._site.backend
        if name not in self._columns:
            self._columns[name] = self._read(name, range(backend.array.shape[0]))
        column, per_example = self._columns[name]
        return column[backend.places(backend.numbers_of(rows))[0] if per_example else rows]

    def _read(self, name: str, rows: Rows) -> tuple[NDArray[Any], bool]:
        """A column, and whether it has one value per example instead of one per row."""
        backend = self._site.backend
        if backend.axis == EXAMPLES:
            return backend.example_column(name), True
        try:
            return backend.column(name, rows), False
        except NotFoundError as error:
            axis_error = error
        try:
            return backend.example_column(name), True
        except NotFoundError as error:
            raise NotFoundError(f"{axis_error}; {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_columns": {}}
