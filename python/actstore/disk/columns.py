"""The columns of one axis, read on first access."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import COLUMN_DTYPES, new_array
from ..base.tables import Table
from ..base.text import count
from ..errors import FormatError, NotFoundError
from .added import ColumnCoverage, column_coverage
from .layout import EXAMPLES
from .parts import STRINGS, Part, read_offsets


class Columns(Mapping[str, NDArray[Any]], Table):
    """The columns of one axis by name: numbers as numpy arrays ``[n]``, strings as object arrays.

    The columns of all parts are concatenated. Arrays are read once, kept, and read-only. The property
    `offsets`, int64 ``[n_examples + 1]``, says where each example's rows begin.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     acts = {"resid": np.ones((3, 1, 4), np.float32)}
    ...     w.append(acts, lengths=[2, 0, 1], ids=["a", "b", "c"], token_columns={"id": [5, 6, 7]})
    >>> store = actstore.open(path)
    >>> store.tokens["id"], store.tokens.offsets
    (array([5, 6, 7]), array([0, 2, 2, 3]))
    >>> store.examples["id"]
    array(['a', 'b', 'c'], dtype=object)
    >>> store.examples.to_columns()
    {'id': ['a', 'b', 'c']}
    """

    def __init__(self, parts: Sequence[Part], axis: str) -> None:
        self._parts = tuple(parts)
        self.axis = axis
        coverage = column_coverage(
            [
                (part.path, part.rows.get(axis, 0), part.columns.get(axis, {}), part.added.get(axis, {}))
                for part in self._parts
            ]
        )
        self.short: dict[str, ColumnCoverage] = {
            name: added for name, added in coverage.items() if not added.usable
        }
        """The added columns that are not available yet."""
        self._dtypes: dict[str, str] = {}
        for part in self._parts:
            self._dtypes.update(part.columns.get(axis, {}))
        for name in self.short:
            self._dtypes.pop(name, None)
        if axis == EXAMPLES:  # Arrays of other programs have no ids; positions stand in for them.
            self._dtypes = {"id": STRINGS, **self._dtypes}
        self._cache: dict[str, NDArray[Any]] = {}

    @property
    def n_rows(self) -> int:
        """The number of rows of every column."""
        return sum(part.rows.get(self.axis, 0) for part in self._parts)

    @property
    def dtypes(self) -> dict[str, str]:
        """Each column's dtype by name, `str` for strings. Reads no values."""
        return dict(self._dtypes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each example's rows begin, int64 ``[n_examples + 1]``.

        Raises
        ------
        FormatError
            When the stored offsets are malformed.
        """
        if "offset" not in self._cache:
            starts = [np.zeros(1, np.int64)]
            base = 0
            for part in self._parts:
                starts.append(self._part_offset(part)[1:] + base)
                base += part.rows.get(self.axis, 0)
            self._keep("offset", np.concatenate(starts))
        return self._cache["offset"]

    def _part_offset(self, part: Part) -> NDArray[np.int64]:
        n_rows, name = part.rows.get(self.axis, 0), f"{self.axis}/offset"
        if self.axis == EXAMPLES:
            return np.arange(n_rows + 1)
        if part.foreign and name not in part.reader.arrays:
            return np.array([0, n_rows])
        return read_offsets(part.reader, name, n_rows)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._cache:
            if name not in self._dtypes:
                raise self._absent(name)
            strings = self._dtypes[name] == STRINGS
            self._keep(name, self._strings(name) if strings else self.read(name, 0, self.n_rows))
        return self._cache[name]

    def _absent(self, name: str) -> NotFoundError:
        """The error for a column that is short or does not exist."""
        short = self.short.get(name)
        if short is not None and short.conflict is not None:
            return NotFoundError(f"parts differ in the dtype of column {self.axis}/{name}: {short.conflict}")
        if short is not None:
            return NotFoundError(
                f"column {self.axis}/{name} covers {short.covers} of {short.n_rows} rows: "
                "the others were appended later, or adding it was interrupted"
            )
        for part in self._parts:  # The native reader may have refused to read it.
            with contextlib.suppress(NotFoundError):
                part.reader.array(f"{self.axis}/{name}")
        names = ", ".join(self._dtypes) or "none"
        return NotFoundError(f"axis {self.axis!r} has no column {name!r}, it has: {names}")

    # Mapping's own versions expect KeyError, which NotFoundError is not.
    def __contains__(self, name: object) -> bool:
        return name in self._dtypes

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except NotFoundError:
            return default

    def __iter__(self) -> Iterator[str]:
        return iter(self._dtypes)

    def __len__(self) -> int:
        return len(self._dtypes)

    def __repr__(self) -> str:
        columns = ", ".join(f"{name}: {dtype}" for name, dtype in self._dtypes.items())
        return f"Columns({self.axis!r}, {count(self.n_rows, 'row')}, {{{columns}}})"

    def _keep(self, name: str, array: NDArray[Any]) -> None:
        array.flags.writeable = False  # Every caller gets this array.
        self._cache[name] = array

    def to_columns(self) -> dict[str, Any]:
        """All columns by name, strings as lists; for `to_polars`, `to_pandas` and `to_arrow`."""
        return {name: self[name].tolist() if self[name].dtype.kind == "O" else self[name] for name in self}

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` of a numeric column, without keeping them in memory.

        Raises
        ------
        NotFoundError
            When there is no such numeric column.
        """
        if self._dtypes.get(name, STRINGS) == STRINGS:
            raise NotFoundError(f"axis {self.axis!r} has no numeric column {name!r}")
        path = f"{self.axis}/{name}"
        array = _native.concat(
            [part.reader.array(path) for part in self._parts if name in part.columns.get(self.axis, {})]
        )
        out = new_array((stop - start,), COLUMN_DTYPES[array.dtype], f"column {path}")
        if out.size:
            array.read((start, stop), None, out)
        return out

    def text(self, name: str, row: int) -> str:
        """One string of a string column, without reading the others.

        Raises
        ------
        NotFoundError
            When there is no such string column, or no such row.
        FormatError
            When its offsets point outside the bytes, or the bytes are not UTF-8.
        """
        if self._dtypes.get(name) != STRINGS or not 0 <= row < self.n_rows:
            raise NotFoundError(f"axis {self.axis!r} has no string column {name!r} with a row {row}")
        if name in self._cache:
            return str(self._cache[name][row])
        start = 0
        for part in self._parts:
            if row < start + part.rows[EXAMPLES]:
                break
            start += part.rows[EXAMPLES]
        if name not in part.columns[EXAMPLES]:
            return str(row)
        return read_string(part.reader, f"{EXAMPLES}/{name}", row - start)

    def _strings(self, name: str) -> NDArray[Any]:
        out = new_array((self.n_rows,), np.dtype(object), f"column {self.axis}/{name}")
        start = 0
        for part in self._parts:
            n_rows = part.rows[EXAMPLES]
            if name in part.columns[EXAMPLES]:
                out[start : start + n_rows] = read_strings(part.reader, f"{EXAMPLES}/{name}")
            else:
                out[start : start + n_rows] = [str(i) for i in range(start, start + n_rows)]
            start += n_rows
        return out


def read_strings(reader: _native.Reader, path: str) -> list[str]:
    """All strings of a string column.

    Raises
    ------
    FormatError
        When the offsets point outside the bytes, or the bytes are not UTF-8.
    """
    array = reader.array(f"{path}/bytes")
    offset = read_offsets(reader, f"{path}/offset", array.shape[0]).tolist()
    raw = new_array(array.shape, np.dtype(np.uint8), f"column {path}")
    array.read((0, array.shape[0]), None, raw)
    blob = raw.tobytes()
    try:
        return [blob[start:stop].decode() for start, stop in pairwise(offset)]
    except UnicodeDecodeError as error:
        raise FormatError(f"{reader.path}: column {path} is not UTF-8: {error}", kind="metadata") from error


def read_string(reader: _native.Reader, path: str, row: int) -> str:
    """One string of a string column.

    Raises
    ------
    FormatError
        When its offsets point outside the bytes, or the bytes are not UTF-8.
    """
    ends, blob = reader.array(f"{path}/offset"), reader.array(f"{path}/bytes")
    bounds = np.empty(2, COLUMN_DTYPES[ends.dtype])
    ends.read((row, row + 2), None, bounds)
    start, stop = bounds.tolist()
    if not 0 <= start <= stop <= blob.shape[0]:
        raise FormatError(
            f"{reader.path}: string {row} of {path} goes from byte {start} to {stop} of {blob.shape[0]}",
            kind="metadata",
        )
    raw = new_array((stop - start,), np.dtype(np.uint8), f"column {path}")
    if raw.size:
        blob.read((start, stop), None, raw)
    try:
        return raw.tobytes().decode()
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{reader.path}: string {row} of {path} is not UTF-8: {error}", kind="metadata"
        ) from error
