"""A site of a store as the backend of views."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import COLUMN_DTYPES, new_array
from ..base.selection import Rows
from ..disk.layout import EXAMPLES, IDS
from ..disk.parts import Part
from ..disk.snapshot import Handle, Snapshot, load
from ..errors import FormatError, NotFoundError
from .backend import Backend
from .rowset import RowSet


class StoredBackend(Backend):
    """A site of a store at one commit."""

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        site = snapshot.layout.sites[name]
        self.snapshot = snapshot
        self.name = name
        self.what = f"site {name!r} of {snapshot.name}"
        self.title = f"{name!r} of {snapshot.name!r}"
        self.axis = site.axis
        self.labels = site.labels
        self.about = site.about
        self._native_array = snapshot.array(name)

    @property
    def array(self) -> _native.Array:
        return self._native_array

    @property
    def native(self) -> _native.Array:
        return self._native_array

    @property
    def recipe(self) -> dict[str, Any] | None:
        return self.snapshot.recipe(self.name)

    def check_open(self) -> None:
        self.snapshot.check_open()

    def pieces(self) -> list[tuple[int, int]]:
        arrays = [part.reader.array(self.name) for part in self.snapshot.parts if self._is_in(part)]
        return [(array.shape[0], array.chunk_rows) for array in arrays]

    def _is_in(self, part: Part) -> bool:
        # A part without examples may lack a derived site.
        return self.name in part.layout.sites or self.name in part.derived

    def whole(self) -> RowSet:
        return RowSet(range(self._native_array.shape[0]), range(self.snapshot.examples.n_rows), self.offsets)

    def offsets(self) -> NDArray[np.int64]:
        columns = self.snapshot.examples if self.axis == EXAMPLES else self.snapshot.axes[self.axis]
        return columns.offsets

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        self.check_open()
        columns = self.snapshot.examples
        if 2 * len(examples) >= columns.n_rows:
            names: list[str] = columns["id"][examples].tolist()
            return names
        return _some_ids(self.snapshot.parts, examples)

    def example_number(self, name: str) -> int:
        return self.snapshot.example_number(name)

    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        columns = self.snapshot.examples if self.axis == EXAMPLES else self.snapshot.axes[self.axis]
        if name not in columns:
            raise NotFoundError(
                f"{self.what}: axis {self.axis!r} has no column {name!r}, "
                f"it has: {', '.join(columns) or 'none'}"
            )
        if isinstance(rows, range):
            return columns.read(name, rows.start, rows.stop)
        first = int(rows.min(initial=self._native_array.shape[0]))
        return columns.read(name, first, max(first, int(rows.max(initial=0)) + 1))[rows - first]

    def example_column(self, name: str) -> NDArray[Any]:
        return self.snapshot.examples[name]

    def rows_pooled_into(self, row: int) -> tuple[Backend, NDArray[np.int64]] | None:
        recipe = self.recipe
        if recipe is None:
            return None
        source = stored_backend(self.snapshot, recipe["source"])
        first, last = (int(end) for end in source.offsets()[row : row + 2])
        rows = np.arange(first, last)
        if not recipe["special"]:
            rows = rows[source.column("special", range(first, last)) == 0]
        return source, rows[recipe.get("skip_first", 0) :]

    def pickled(
        self, view: RowSet, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        # Rows never move, so row numbers stay valid after later commits.
        return _reopened, (self.snapshot.source, self.snapshot.verify, self.name), False


def _reopened(source: str | list[str], verify: str, name: str) -> StoredBackend:
    """The site, opened again in another process."""
    return stored_backend(load(source, verify, Handle()), name)


def stored_backend(snapshot: Snapshot, name: str) -> StoredBackend:
    """The site of this name.

    Raises
    ------
    NotFoundError
        When there is no such site, or it cannot be used.
    """
    if name not in snapshot.layout.sites:
        if isinstance(name, str):
            snapshot.explain_absence(name)
        raise NotFoundError(
            f"{snapshot.name} has no site {name!r}, it has: {', '.join(snapshot.layout.sites) or 'none'}"
        )
    return StoredBackend(snapshot, name)


def _some_ids(parts: Sequence[Part], examples: NDArray[np.int64]) -> list[str]:
    """Ids of a few examples, without reading all ids."""
    out = np.empty(len(examples), object)
    start = 0
    for part in parts:
        mine = np.flatnonzero((examples >= start) & (examples < start + part.n_examples))
        if mine.size:
            known = "id" in part.columns[EXAMPLES]
            at = examples[mine]
            out[mine] = _strings_at(part.reader, IDS, at - start) if known else [str(i) for i in at.tolist()]
        start += part.n_examples
    names: list[str] = out.tolist()
    return names


def _strings_at(reader: _native.Reader, path: str, at: NDArray[np.int64]) -> list[str]:
    """The strings of a column at these positions, from its utf-8 ``bytes`` and ``offset`` ``[n + 1]``."""
    ends, blob = reader.array(f"{path}/offset"), reader.array(f"{path}/bytes")
    raw = np.empty(2 * len(at), COLUMN_DTYPES[ends.dtype])
    ends.read(np.stack([at, at + 1], 1).ravel(), None, raw)
    starts, stops = raw.astype(np.int64).reshape(-1, 2).T
    if (starts < 0).any() or (stops < starts).any() or (stops > blob.shape[0]).any():
        raise FormatError(f"{reader.path}: {path}/offset is outside {path}/bytes", kind="metadata")
    lengths = stops - starts
    cuts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    picked = new_array((int(cuts[-1]),), np.dtype(np.uint8), f"column {path}")
    if picked.size:
        blob.read(np.arange(cuts[-1]) + np.repeat(starts - cuts[:-1], lengths), None, picked)
    text = picked.tobytes()
    try:
        return [text[a:b].decode() for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
    except UnicodeDecodeError as error:
        raise FormatError(f"{reader.path}: column {path} is not utf-8: {error}", kind="metadata") from error
