"""What a site is a view of: an array of a store here, one in memory in :mod:`actstore.memory`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import COLUMN_DTYPES, FLOAT_DTYPES, new_array
from .errors import FormatError, NotFoundError
from .layout import EXAMPLES, IDS
from .lazy import lazy
from .parts import Part
from .selection import Rows, RowView, rows_array
from .snapshot import Handle, Snapshot, load


@dataclass(frozen=True, eq=False)
class Made:
    """What pooled rows were made of: rows of an origin, and where those of each pooled row begin."""

    origin: "Origin"
    rows: Rows
    offset: NDArray[np.int64]


class Origin(ABC):
    """Rows of layers, what they are called and which examples they belong to; never changes.

    Attributes
    ----------
    name : str
        The site's.
    what : str
        How messages name it: ``site 'resid' of run.act``.
    title : str
        How it is shown: ``'resid' of 'run.act'``.
    axis : str
        What the rows are.
    labels : tuple of int
        One for each layer of the array.
    numbers : array, optional
        int64 ``[n_rows]``: what each row of the array is called outside, where that is not its place.
    recipe : dict, optional
        How it was computed, if it was.
    about : dict
        What its writer said of it.
    norms : dict
        Norms of all rows, whitened, ``[n_rows, L]``, by the whitener's digest: those that were needed.
    made_of : Made, optional
        What it was pooled from, where that is at hand.
    """

    name: str
    what: str
    title: str
    axis: str
    labels: tuple[int, ...]
    numbers: NDArray[np.int64] | None = None
    about: Mapping[str, Any] = MappingProxyType({})
    made_of: Made | None = None

    @lazy
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """Empty at first."""
        return {}

    @property
    @abstractmethod
    def array(self) -> Any:
        """Has `shape`, `dtype`, `chunk_rows` and `read` as `_native.Array` has."""

    @property
    @abstractmethod
    def native(self) -> _native.Array | NDArray[Any]:
        """What the native functions take."""

    @property
    @abstractmethod
    def recipe(self) -> dict[str, Any] | None: ...

    @abstractmethod
    def check_open(self) -> None:
        """Raise StorageError (kind ``closed``) when it cannot be read any more."""

    @abstractmethod
    def pieces(self) -> list[tuple[int, int]]:
        """Its parts, in order: the rows of each, and the rows of a chunk."""

    @abstractmethod
    def whole(self) -> RowView:
        """All rows."""

    @abstractmethod
    def offset(self) -> NDArray[np.int64]:
        """Where each example of the whole begins, int64 ``[n_examples + 1]``; not when `axis` is examples."""

    @abstractmethod
    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """The ids of examples, by their numbers."""

    @abstractmethod
    def example_number(self, name: str) -> int:
        """The number of the example of this id; NotFoundError when there is none."""

    @abstractmethod
    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        """A column of numbers of these rows; NotFoundError when there is none."""

    @abstractmethod
    def example_column(self, name: str) -> NDArray[Any]:
        """A column of the examples, one value each; NotFoundError when there is none."""

    @abstractmethod
    def pickled(
        self, view: RowView, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """How to make it elsewhere: a callable, its arguments, and whether it is of this view alone then."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As it lies there."""
        return FLOAT_DTYPES[self.array.dtype]

    def numbers_of(self, rows: Rows) -> NDArray[np.int64]:
        """What rows of the array are called outside, int64 ``[n]``."""
        at = rows_array(rows)
        return at if self.numbers is None else self.numbers[at]

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The example of each row, by its number, and the row's place in that example."""
        if self.axis == EXAMPLES:
            return numbers, np.zeros_like(numbers)
        offset = self.offset()
        # From the right: examples without rows begin where the next one does.
        examples = np.searchsorted(offset, numbers, side="right").astype(np.int64) - 1
        return examples, numbers - offset[examples]


class StoredOrigin(Origin):
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
        self._array = snapshot.array(name)

    @property
    def array(self) -> _native.Array:
        return self._array

    @property
    def native(self) -> _native.Array:
        return self._array

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

    def whole(self) -> RowView:
        return RowView(range(self._array.shape[0]), range(self.snapshot.examples.n_rows), self.offset)

    def offset(self) -> NDArray[np.int64]:
        columns = self.snapshot.examples if self.axis == EXAMPLES else self.snapshot.axes[self.axis]
        return columns.offset

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
        first = int(rows.min(initial=self._array.shape[0]))
        return columns.read(name, first, max(first, int(rows.max(initial=0)) + 1))[rows - first]

    def example_column(self, name: str) -> NDArray[Any]:
        return self.snapshot.examples[name]

    def pickled(
        self, view: RowView, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        # Rows never move, so a view is the same whatever was added.
        return _reopened, (self.snapshot.source, self.snapshot.verify, self.name), False


def _reopened(source: str | list[str], verify: str, name: str) -> StoredOrigin:
    """A site in another process."""
    return stored_origin(load(source, verify, Handle()), name)


def stored_origin(snapshot: Snapshot, name: str) -> StoredOrigin:
    """The site of this name.

    Raises
    ------
    NotFoundError
        When there is none, or none that can be used.
    """
    if name not in snapshot.layout.sites:
        snapshot.explain_absence(name)
        raise NotFoundError(
            f"{snapshot.name} has no site {name!r}, it has: {', '.join(snapshot.layout.sites) or 'none'}"
        )
    return StoredOrigin(snapshot, name)


def _some_ids(parts: Sequence[Part], examples: NDArray[np.int64]) -> list[str]:
    """Ids of few examples, without reading those of all."""
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
    """Some strings of a column: utf-8 bytes, and offsets one more than there are strings."""
    ends, blob = reader.array(f"{path}/offset"), reader.array(f"{path}/bytes")
    raw = np.empty(2 * len(at), COLUMN_DTYPES[ends.dtype])
    ends.read(np.stack([at, at + 1], 1).ravel(), None, raw)
    starts, stops = raw.astype(np.int64).reshape(-1, 2).T
    if (starts < 0).any() or (stops < starts).any() or (stops > blob.shape[0]).any():
        raise FormatError(f"{reader.path}: {path}/offset leaves {path}/bytes", kind="metadata")
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
