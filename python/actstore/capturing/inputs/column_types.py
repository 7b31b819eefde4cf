"""Checking that all inputs have the same columns, of the same types."""

from dataclasses import replace
from typing import Any

from ...errors import InvalidInputError
from .forms import missing_column
from .ready import ReadyBatch


class ColumnTypes:
    """Checks that all inputs have the same columns, and that each column has one type."""

    def __init__(self) -> None:
        self._types: dict[str, type] | None = None

    def unify(self, columns: dict[str, Any], position: int) -> dict[str, Any]:
        """The columns of an input, with ints converted to float in a column of floats."""
        if self._types is None:
            self._types = {name: type(value) for name, value in columns.items()}
            return columns
        for name in self._types.keys() ^ columns.keys():
            if name in self._types:
                raise missing_column(name, position, columns)
            raise InvalidInputError(
                f"input {position} has a column {name!r}, which earlier inputs lack",
                hint="columns=[...] selects the keys to keep",
            )
        out = dict(columns)
        for name, value in columns.items():
            expected = self._types[name]
            if expected is float and type(value) is int:
                out[name] = float(value)
            elif type(value) is not expected:
                raise InvalidInputError(
                    f"column {name!r} has type {expected.__name__}, input {position} has {value!r}",
                    hint="convert all to float" if {expected, type(value)} == {int, float} else None,
                )
        return out

    def unify_batch(self, batch: ReadyBatch) -> ReadyBatch:
        """A ready batch with the columns of each example unified."""
        each = [
            self.unify({name: values[i] for name, values in batch.columns.items()}, batch.position + i)
            for i in range(batch.n)
        ]
        columns = {name: [one[name] for one in each] for name in (each[0] if each else ())}
        return replace(batch, columns=columns)
