"""Appending examples to a store.

Everything is checked before the native writer is touched, so that a refused append changes nothing.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import SITE_DTYPES, as_numpy, cast_float
from .errors import FormatError, InvalidInputError, ShapeError, StorageError
from .ids import IdSet
from .incoming import NumberColumn, example_columns, example_ids, lengths_by_axis, pack_strings, token_columns
from .layout import EXAMPLES, IDS, TOKENS, column_array, parse_layout, plain_json

_EMPTY_DIGEST = bytes(16)
EMPTY_STATE = json.dumps({"n_examples": 0, "axes": {}, "digest": _EMPTY_DIGEST.hex()})


@dataclass(frozen=True)
class Taken:
    """What a writer has been given so far, committed or not."""

    n_examples: int
    rows: dict[str, int]
    """By axis."""
    digest: bytes
    """Of the ids and lengths of all examples."""
    ends: dict[str, int]
    """The last offset of each column of strings, where it is known already."""
    note: dict[str, Any]
    """For whoever goes on."""


class StoreWriter:
    """The one writer of a store, from `create` or `append`.

    Nothing is visible to readers before a commit: `commit` makes one, the writer makes one
    whenever enough has gathered, and so does a clean exit of the ``with`` block. An exception
    leaving the block discards what is not committed. Either way the lock is freed.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as w:
    ...     rows = np.arange(12, dtype=np.float32).reshape(3, 1, 4)
    ...     w.append({"resid": rows}, [2, 1], tokens={"id": [5, 6, 7]}, columns={"label": ["x", "y"]})
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
            self._layout = layout
            self._dirty = False
            self._seed_offsets()
            state = json.loads(native.state)
            self._taken = Taken(
                n_examples=native.arrays[f"{IDS}/offset"][0][0] - 1,
                rows={axis: self._last(axis) for axis in layout.axes},
                digest=bytes.fromhex(state.get("digest") or _EMPTY_DIGEST.hex()),
                ends={},
                note=dict(state.get("note") or {}),
            )
            self._next: tuple[Taken, NDArray[np.int64]] | None = None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            native.close()
            raise FormatError(
                f"{native.path}: cannot go on from its state: {error}", kind="metadata"
            ) from error
        except BaseException:
            native.close()
            raise
        self._ids = IdSet(native, f"{IDS}/bytes", f"{IDS}/offset")
        self._ahead: dict[str, int] = {}
        self._commit_due = False

    def _seed_offsets(self) -> None:
        """Offsets have one entry more than what they delimit: the first is 0."""
        empty = [
            name
            for name, (shape, _) in self._native.arrays.items()
            if name.endswith("/offset") and shape[0] == 0
        ]
        if empty:
            self._native.append({name: np.zeros(1, np.int64) for name in empty})
            self._dirty = True

    def _last(self, group: str) -> int:
        """The last offset of an axis or a column of strings."""
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
        """Examples so far, committed or not."""
        self._adopt()
        return self._taken.n_examples

    @property
    def n_tokens(self) -> int:
        """Rows so far of axis `tokens`, or of the first axis there is."""
        self._adopt()
        return self._taken.rows.get(TOKENS, next(iter(self._taken.rows.values()), 0))

    @property
    def sites(self) -> list[str]:
        """What each append must give."""
        return list(self._layout.sites)

    @property
    def identity(self) -> dict[str, Any]:
        """What the activations are of, as the store says."""
        return dict(self._layout.identity)

    @property
    def note(self) -> dict[str, Any]:
        """What the last append said, in this process or before the last commit of another."""
        self._adopt()
        return dict(self._taken.note)

    def append(
        self,
        acts: Mapping[str, Any],
        lengths: Any = None,
        ids: Sequence[str] | None = None,
        tokens: Mapping[str, Any] | Any = None,
        columns: Mapping[str, Any] | None = None,
        cast: bool = False,
        note: Mapping[str, Any] | None = None,
    ) -> None:
        """Append examples, all of it or, on any error, nothing.

        Parameters
        ----------
        acts : mapping of str to array
            Each site's rows ``[sum(lengths), n_layers, dim]``, or ``[n_examples, n_layers, dim]``
            for a site on the axis `examples`; numpy, ml_dtypes or torch, of the site's dtype.
        lengths : array of int ``[n_examples]``, or mapping of axis to such
            Rows of each example; 0 is fine. Several axes need the mapping. Left out only where all
            sites are on the axis `examples`.
        ids : sequence of str, optional
            Names of the examples, never used twice in a store; by default their positions.
        tokens : mapping of str to array ``[sum(lengths)]``, optional
            Numbers for each row, by column; a bare array is the column `id`. Several axes:
            ``{axis: {column: array}}``.
        columns : mapping of str to array ``[n_examples]``, optional
            Numbers or strings for each example, by column.
        cast : bool
            Take other float dtypes and round them once.
        note : mapping, optional
            Where the source of these examples stands after them, as JSON can hold it. It is committed with
            them, and `note` gives it to whoever goes on with the store.

        Raises
        ------
        ShapeError
            With the expected shape and the one got.
        InvalidInputError
            For sites, columns, ids or dtypes other than the store's.
        StorageError
            When the disk fails, or the writer is closed (kind ``closed``).
        """
        self._check_open()
        self._adopt()
        if self._commit_due:
            self.commit()
        before = self._taken
        rows, n_rows = self._site_rows(acts, cast)
        by_axis, n_new = lengths_by_axis(lengths, self._layout.axes, n_rows)
        names = example_ids(ids, n_new, before.n_examples)
        hashes = self._ids.check_new(names)
        kept = before.note if note is None else plain_json(note, "note")
        numbers = list(token_columns(tokens, self._layout.axes, n_rows))
        more, strings = example_columns(columns, n_new)
        if n_new == 0:
            return
        rows |= self._settle_columns(numbers + more, strings)
        strings[IDS] = names
        ends: dict[str, int] = {}
        for path, texts in strings.items():
            blob, offset = pack_strings(texts)
            offset += before.ends[path] if path in before.ends else self._last(path)
            rows[f"{path}/bytes"], rows[f"{path}/offset"] = blob, offset
            ends[path] = int(offset[-1])
        for axis, sizes in by_axis.items():
            rows[f"{axis}/offset"] = np.cumsum(sizes) + before.rows[axis]
        after = Taken(
            n_examples=before.n_examples + n_new,
            rows={axis: count + int(by_axis[axis].sum()) for axis, count in before.rows.items()},
            digest=_chain(before.digest, names, [by_axis[axis] for axis in sorted(by_axis)]),
            ends=before.ends | ends,
            note=kept,
        )
        self._next = after, hashes
        due = self._native.append(rows)
        self._adopt()
        self._commit_due = due
        if due:
            # These rows are taken, so this call must not fail; the commit is tried again before
            # the next ones are, and by commit() and close(), which then say what is wrong.
            with contextlib.suppress(StorageError):
                self.commit()

    def _adopt(self) -> None:
        """What the native writer has taken counts, also if Ctrl-C came before it could say so."""
        if self._next is None:
            return
        after, hashes = self._next
        if self._native.arrays[f"{IDS}/offset"][0][0] == after.n_examples + 1:
            self._ids.add(hashes)
            self._ahead = {}
            self._dirty = True
            self._taken = after
        self._next = None

    def _append_ahead(self, acts: Mapping[str, Any], cast: bool = False) -> None:
        """Rows of an example too long for memory, before the append that completes it.

        That append gives the lengths of all of it. Nothing can be committed in between.
        """
        self._check_open()
        rows, _ = self._site_rows(acts, cast, ahead=False)
        self._native.append(rows)
        for name in rows:
            self._ahead[name] = self._ahead.get(name, 0) + rows[name].shape[0]

    def _site_rows(
        self, acts: Mapping[str, Any], cast: bool, ahead: bool = True
    ) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """Each site's array, checked, and the rows given on each axis."""
        if not isinstance(acts, Mapping):
            raise InvalidInputError(
                f"acts: expected a mapping of site to array, got {type(acts).__name__}",
                hint=f"{{{self.sites[0]!r}: acts}}",
            )
        if set(acts) != set(self.sites):
            raise InvalidInputError(f"acts: the sites are {self.sites}, got {[*map(str, acts)]}")
        arrays = self._native.arrays
        out: dict[str, NDArray[Any]] = {}
        n_rows: dict[str, int] = {}
        first: dict[str, str] = {}
        for name, site in self._layout.sites.items():
            (_, n_layers, dim), dtype_name = arrays[name]
            dtype = SITE_DTYPES[dtype_name]
            array = as_numpy(acts[name], f"site {name!r}")
            if array.ndim != 3 or array.shape[1:] != (n_layers, dim):
                raise ShapeError(
                    f"site {name!r}: expected [rows, {n_layers}, {dim}], got {list(array.shape)}"
                )
            if array.dtype != dtype:
                array = self._cast(name, array, dtype, cast)
            out[name] = np.ascontiguousarray(array)
            rows = array.shape[0] + (self._ahead.get(name, 0) if ahead else 0)
            if n_rows.setdefault(site.axis, rows) != rows:
                raise ShapeError(
                    f"site {name!r} has {rows} rows, site {first[site.axis]!r} on the same axis "
                    f"{site.axis!r} has {n_rows[site.axis]}"
                )
            first.setdefault(site.axis, name)
        return out, n_rows

    def _cast(self, name: str, array: NDArray[Any], dtype: np.dtype[Any], cast: bool) -> NDArray[Any]:
        if array.dtype == np.uint16 and dtype.name == "bfloat16":
            raise InvalidInputError(
                f"site {name!r} is bfloat16, got uint16, which could be anything",
                hint="if these are bfloat16's bits: array.view(ml_dtypes.bfloat16)",
            )
        if not cast:
            raise InvalidInputError(
                f"site {name!r} is {dtype.name}, got {array.dtype.name}", hint="cast=True rounds to it"
            )
        return cast_float(array, dtype, f"site {name!r}")

    def _settle_columns(
        self, numbers: Sequence[NumberColumn], strings: Iterable[str]
    ) -> dict[str, NDArray[Any]]:
        """The first append says which columns there are; later ones must give the same."""
        there: dict[str, str] = {}
        for name, (_, dtype) in self._native.arrays.items():
            path, _, leaf = name.rpartition("/")
            # Not sites, derived ones, ids, nor what lies in groups of its own.
            if path == IDS or path.partition("/")[0] not in (*self._layout.axes, EXAMPLES):
                continue
            if leaf == "bytes":
                there[path] = "str"
            elif leaf != "offset":
                there[name] = dtype
        given = {column.path: column.values.dtype.name for column in numbers} | dict.fromkeys(strings, "str")
        if not (self._taken.n_examples or there):
            if given:
                self._add_columns(given)
            there = given
        if set(given) != set(there):
            raise InvalidInputError(
                f"columns: {self.path} has {sorted(there) or 'none'}, got {sorted(given) or 'none'}",
                hint="the first append decides which columns there are",
            )
        for path in strings:
            if there[path] != "str":
                raise InvalidInputError(f"column {path!r} is {there[path]}, got strings")
        return {column.path: column.settle(there[column.path]) for column in numbers}

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
        """Publish everything appended; durable when it returns.

        Raises
        ------
        StorageError
            When the disk fails or is full: the last commit stands, and this may be tried again.
        """
        self._check_open()
        self._adopt()
        if self._ahead:
            raise InvalidInputError("commit in the middle of an example")
        taken = self._taken
        state: dict[str, Any] = {
            "n_examples": taken.n_examples,
            "axes": taken.rows,
            "digest": taken.digest.hex(),
        }
        if taken.note:
            state["note"] = taken.note
        self._native.commit(json.dumps(state), self._threads)
        self._dirty = False
        self._commit_due = False

    def close(self) -> None:
        """Commit and unlock. Does nothing when closed already; when the commit fails, stays open."""
        if self._closed:
            return
        self._adopt()
        if self._dirty or self._commit_due:
            self.commit()
        self.abort()

    def abort(self) -> None:
        """Unlock without a commit: rows since the last one are discarded."""
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
            f"StoreWriter({self.path!r}, {self._taken.n_examples} examples, {self.n_tokens} tokens, {state})"
        )


def _chain(digest: bytes, names: Iterable[str], lengths: Sequence[NDArray[np.int64]]) -> bytes:
    """The digest after more examples; it is the same however the appends were cut."""
    table = np.stack([size.astype("<i8") for size in lengths], axis=1) if lengths else None
    for i, name in enumerate(names):
        text = name.encode()
        row = b"" if table is None else table[i].tobytes()
        digest = hashlib.blake2b(
            digest + len(text).to_bytes(8, "little") + text + row, digest_size=16
        ).digest()
    return digest
