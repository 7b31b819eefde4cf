"""Appending examples to a store.

An append is checked in full before the native writer receives any data, so a refused append changes nothing.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.checks import plain_json
from ..base.id_index import IdSet
from ..errors import FormatError, InvalidInputError, StorageError
from .added import parse_added
from .append_args import (
    NumberColumn,
    columns_by_axis,
    example_columns,
    example_ids,
    lengths_by_axis,
    pack_strings,
    site_rows,
)
from .append_state import AppendState
from .layout import EXAMPLES, IDS, TOKENS, column_array, parse_layout, unknown_encoding


class StoreWriter:
    """The one writer of a store, returned by `create` and `append`.

    Readers see nothing before a commit. `commit` makes one, the writer makes one whenever enough rows have
    been appended, and so does a clean exit of the ``with`` block. An exception that leaves the block discards
    everything uncommitted. Either way the lock is released.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     rows = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    ...     w.append({"resid": rows}, [2, 1], token_columns={"id": [5, 6, 7]}, columns={"label": ["x", "y"]})
    ...     w.append({"resid": rows}, [3, 1])
    Traceback (most recent call last):
    actstore.errors.ShapeError: lengths of axis 'tokens' add up to 4, its sites have 3 rows
    """

    def __init__(self, native: _native.Writer, threads: int = 0) -> None:
        self._native = native
        self._threads = threads
        self._closed = False
        try:
            layout = parse_layout(native.attributes, native.path)
            if layout is None:
                raise FormatError(f"{native.path} has no attributes of actstore", kind="metadata")
            for name, site in layout.encoded.items():
                if site.encoding is not None:
                    raise unknown_encoding(native.path, name, site.encoding)
            self._layout = layout
            self._dirty = False
            self._seed_offsets()
            self._state = AppendState.of(
                json.loads(native.state),
                n_examples=native.arrays[f"{IDS}/offset"][0][0] - 1,
                rows={axis: self._last(axis) for axis in layout.axes},
            )
            self._next: tuple[AppendState, NDArray[np.int64]] | None = None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            native.close()
            raise FormatError(
                f"{native.path}: the state of its last commit is malformed: {error}", kind="metadata"
            ) from error
        except BaseException:
            native.close()
            raise
        self._added: set[str] | None = None
        """The columns that were added later, once they are known."""
        self._ids = IdSet(native, f"{IDS}/bytes", f"{IDS}/offset")
        self._ahead: dict[str, int] = {}
        """By site, the rows of an incomplete example."""
        self._commit_due = False

    def _seed_offsets(self) -> None:
        """Write the 0 with which offsets begin; they have one entry more than examples or strings."""
        empty = [
            name
            for name, (shape, _) in self._native.arrays.items()
            if name.endswith("/offset") and shape[0] == 0
        ]
        if empty:
            self._native.append({name: np.zeros(1, np.int64) for name in empty})
            self._dirty = True

    def _last(self, group: str) -> int:
        """The last offset of an axis or a string column."""
        name = f"{group}/offset"
        rows = self._native.arrays[name][0][0]
        out = np.empty(1, np.int64)
        self._native.read(name, rows - 1, rows, out)
        return int(out[0])

    @property
    def path(self) -> str:
        """The store's directory."""
        return self._native.path

    @property
    def n_examples(self) -> int:
        """The number of examples so far, committed or not."""
        self._adopt()
        return self._state.n_examples

    @property
    def n_tokens(self) -> int:
        """The number of rows so far on axis `tokens`, or on the first axis if there is no `tokens`."""
        self._adopt()
        return self._state.rows.get(TOKENS, next(iter(self._state.rows.values()), 0))

    @property
    def sites(self) -> list[str]:
        """The sites that each append must give."""
        return list(self._layout.sites)

    @property
    def identity(self) -> dict[str, Any]:
        """The origin of the activations (weights, tokenizer, ...), as stored."""
        return dict(self._layout.identity)

    @property
    def note(self) -> dict[str, Any]:
        """The note of the last append, or of the last commit when nothing was appended since."""
        self._adopt()
        return dict(self._state.note)

    def append(
        self,
        acts: Mapping[str, Any],
        lengths: Any = None,
        ids: Sequence[str] | None = None,
        token_columns: Mapping[str, Any] | Any = None,
        columns: Mapping[str, Any] | None = None,
        cast: bool = False,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Append examples: all of them or, on any error, none.

        Parameters
        ----------
        acts : mapping of str to array
            Each site's rows ``[sum(lengths), n_layers, dim]``, or ``[n_examples, n_layers, dim]``
            for a site on the axis `examples`; numpy, ml_dtypes or torch, of the site's dtype.
        lengths : array of int ``[n_examples]``, or mapping of axis to such arrays
            The number of rows of each example; 0 is allowed. A store with several axes needs the mapping; one
            whose sites are all on the axis `examples` needs no lengths.
        ids : sequence of str, optional
            The examples' names, each unique in the store; by default their positions.
        token_columns : mapping of str to array ``[sum(lengths)]``, optional
            Numbers for each row, by column; an array alone is the column `id`. With several axes:
            ``{axis: {column: array}}``.
        columns : mapping of str to array ``[n_examples]``, optional
            Numbers or strings for each example, by column.
        cast : bool
            Accept other float dtypes, and round them once.
        note : mapping, optional
            The position in the source of the examples after these ones, as JSON can hold it. It is
            committed with them, and `note` returns it to the process that resumes.

        Raises
        ------
        ShapeError
            With the expected shape and the given one.
        InvalidInputError
            When sites, columns, ids or dtypes do not match those of the store.
        StorageError
            When the disk fails, or the writer is closed (kind ``closed``).
        """
        self._check_open()
        self._adopt()
        if self._commit_due:
            self.commit()
        before = self._state
        rows, n_rows = site_rows(acts, self._layout, self._native.arrays, self._ahead, cast)
        by_axis, n_new = lengths_by_axis(lengths, self._layout.axes, n_rows)
        names = example_ids(ids, n_new, before.n_examples)
        hashes = self._ids.check_new(names)
        kept = before.note if note is None else plain_json(note, "note")
        numbers = list(columns_by_axis(token_columns, self._layout.axes, n_rows))
        more, strings = example_columns(columns, n_new)
        if n_new == 0:
            return
        rows |= self._check_columns(numbers + more, strings)
        strings[IDS] = names
        ends: dict[str, int] = {}
        for path, texts in strings.items():
            blob, offset = pack_strings(texts)
            offset += before.ends[path] if path in before.ends else self._last(path)
            rows[f"{path}/bytes"], rows[f"{path}/offset"] = blob, offset
            ends[path] = int(offset[-1])
        for axis, sizes in by_axis.items():
            rows[f"{axis}/offset"] = np.cumsum(sizes) + before.rows[axis]
        self._next = before.after(names, by_axis, ends, kept), hashes
        commit_due = self._native.append(rows)
        self._adopt()
        self._commit_due = commit_due
        if commit_due:
            # The rows were accepted, so this call must not fail. The next append, commit() or close() tries
            # the commit again, and raises its error.
            with contextlib.suppress(StorageError):
                self.commit()

    def _adopt(self) -> None:
        """Count rows that the native writer accepted, even if Ctrl-C interrupted `append` right afterward."""
        if self._next is None:
            return
        after, hashes = self._next
        if self._native.arrays[f"{IDS}/offset"][0][0] == after.n_examples + 1:
            self._ids.add(hashes)
            self._ahead = {}
            self._dirty = True
            self._state = after
        self._next = None

    def append_partial(self, acts: Mapping[str, Any], cast: bool = False) -> None:
        """Append the first rows of an example that is too long for memory; for internal use.

        The next `append` adds the example's last rows and gives its full lengths. Nothing can be committed in
        between.

        Parameters
        ----------
        acts : mapping of str to array ``[rows, n_layers, dim]``
        cast : bool
            Cast other float dtypes.

        Raises
        ------
        ShapeError, InvalidInputError, StorageError
            As in `append`.
        """
        self._check_open()
        rows, _ = site_rows(acts, self._layout, self._native.arrays, {}, cast)
        self._native.append(rows)
        for name in rows:
            self._ahead[name] = self._ahead.get(name, 0) + rows[name].shape[0]

    def _check_columns(
        self, numbers: Sequence[NumberColumn], strings: Iterable[str]
    ) -> dict[str, NDArray[Any]]:
        """The numeric columns in their dtypes. The first append decides which columns the store has."""
        existing = self._columns()
        given = {column.path: column.values.dtype.name for column in numbers} | dict.fromkeys(strings, "str")
        if not (self._state.n_examples or existing):
            if given:
                self._add_columns(given)
            existing = given
        if set(given) != set(existing):
            raise InvalidInputError(
                f"columns: {self.path} has {sorted(existing) or 'none'}, got {sorted(given) or 'none'}",
                hint="the first append decides which columns there are",
            )
        for path in strings:
            if existing[path] != "str":
                raise InvalidInputError(f"column {path!r} is {existing[path]}, got strings")
        return {column.path: column.in_dtype(existing[column.path]) for column in numbers}

    def _columns(self) -> dict[str, str]:
        """The dtype of each column that an append must give: all but ids and added columns."""
        existing: dict[str, str] = {}
        for name, (_, dtype) in self._native.arrays.items():
            path, _, leaf = name.rpartition("/")
            # Sites, derived sites and artifacts are in other groups.
            if path == IDS or path.partition("/")[0] not in (*self._layout.axes, EXAMPLES):
                continue
            if leaf == "bytes":
                existing[path] = "str"
            elif leaf != "offset":
                existing[name] = dtype
        if self._added is None:
            self._added = _added_columns(self._native.path) if existing else set()
        return {name: dtype for name, dtype in existing.items() if name not in self._added}

    def _add_columns(self, dtypes: Mapping[str, str]) -> None:
        arrays = []
        for path, dtype in dtypes.items():
            if dtype == "str":
                arrays += [column_array(f"{path}/bytes", "uint8"), column_array(f"{path}/offset", "int64")]
            else:
                arrays.append(column_array(path, dtype))
        self._native.add_arrays(json.dumps(arrays))
        self._seed_offsets()

    def commit(self) -> None:
        """Publish everything that was appended. It is durable when this returns.

        Raises
        ------
        StorageError
            When the disk fails or is full. The last commit stands, and this call can be repeated.
        """
        self._check_open()
        self._adopt()
        if self._ahead:
            raise InvalidInputError("commit: the last example is incomplete")
        self._native.commit(self._state.to_json(), self._threads)
        self._dirty = False
        self._commit_due = False

    def close(self) -> None:
        """Commit, and release the lock. When the commit fails, the writer stays open."""
        if self._closed:
            return
        self._adopt()
        if self._dirty or self._commit_due:
            self.commit()
        self.abort()

    def abort(self) -> None:
        """Release the lock without a commit; rows since the last commit are discarded."""
        if not self._closed:
            self._closed = True
            self._native.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"the writer of {self.path} is closed", kind="closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return (
            f"StoreWriter({self.path!r}, {self._state.n_examples} examples, {self.n_tokens} tokens, {state})"
        )


def _added_columns(path: str) -> set[str]:
    """The columns of a store that were added later. An append leaves them short."""
    reader = _native.Reader(path)
    nodes = {name: reader.array(name).attributes for name in reader.arrays if "/" in name} | reader.groups
    return {
        name
        for name, attributes in nodes.items()
        if name.count("/") == 1 and parse_added(attributes, f"{path}: {name}")[0]
    }
