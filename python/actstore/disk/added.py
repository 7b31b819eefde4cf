"""Columns that were added to existing rows.

An added column may be short: it has fewer rows than its axis, in one part or in several. It becomes
available when every part has it in full.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .layout import malformed, own_attributes, parse_mapping


@dataclass(frozen=True)
class AddedColumn:
    """A column of one part whose attributes mark it as added."""

    dtype: str
    rows: int
    fill: Any
    """The value for rows of an append that omits the column; None if every append must give it."""


@dataclass(frozen=True)
class Coverage:
    """How much of its axis a column or a derived site covers, over all parts."""

    covers: int
    n_rows: int
    """The rows of the axis."""
    conflict: str | None
    """The difference between the parts; None if they agree."""

    @property
    def usable(self) -> bool:
        """Whether it has every row of its axis, and all parts agree on it."""
        return self.conflict is None and self.covers == self.n_rows


@dataclass(frozen=True)
class ColumnCoverage(Coverage):
    """An added column over all parts."""

    dtype: str
    fill: Any


def parse_added(attributes: str, where: str) -> tuple[bool, Any]:
    """Whether a column's attributes mark it as added, and its fill value.

    Raises
    ------
    FormatError
        kind ``metadata`` when the mark is malformed.
    """
    own = own_attributes(attributes)
    if not isinstance(own, dict) or "column" not in own:
        return False, None
    column = parse_mapping(own["column"], where, "column")
    fill = column.get("fill")
    if column.get("added") is not True or isinstance(fill, dict | list):
        raise malformed(where, "column", column)
    return True, fill


def column_coverage(
    parts: list[tuple[str, int, Mapping[str, str], Mapping[str, AddedColumn]]],
) -> dict[str, ColumnCoverage]:
    """The columns of one axis that are added columns in at least one part.

    Parameters
    ----------
    parts : list of tuple
        For each part: its path, its rows on the axis, its complete columns and its added columns.
    """
    out = {}
    for name in dict.fromkeys(name for *_, added in parts for name in added):
        dtypes: dict[str, str] = {}
        fill, covers = None, 0
        for path, n_rows, columns, added in parts:
            if name in added:
                dtypes.setdefault(added[name].dtype, path)
                covers += added[name].rows
                fill = added[name].fill if fill is None else fill
            elif name in columns:
                dtypes.setdefault(columns[name], path)
                covers += n_rows
        conflict = None
        if len(dtypes) > 1:
            conflict = " and ".join(f"{dtype} in {path}" for dtype, path in dtypes.items())
        total = sum(n_rows for _, n_rows, *_ in parts)
        out[name] = ColumnCoverage(covers, total, conflict, next(iter(dtypes)), fill)
    return out
