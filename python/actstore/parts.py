"""The parts a store is made of: finding their directories, reading their layouts, comparing them.

A part is a store written by one process. Opened together, parts are one store whose rows and
examples are theirs in a row, so they must have the same sites, axes and columns.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import COLUMN_DTYPES, FLOAT_DTYPES, new_array
from .errors import FormatError, InvalidInputError, NotFoundError
from .layout import (
    EXAMPLES,
    IDS,
    TOKENS,
    Derived,
    Layout,
    SiteLayout,
    is_derived,
    name_problem,
    parse_derived,
    parse_layout,
)

STRINGS = "str"
"""The dtype by which a column of strings goes in listings."""


@dataclass(frozen=True)
class Part:
    """One directory at one commit, its layout checked against its arrays."""

    path: str
    reader: _native.Reader
    layout: Layout
    foreign: bool
    """Without commits: whoever wrote it need not have written offsets and ids."""
    n_examples: int
    rows: dict[str, int]
    """Rows by axis; `examples` among them."""
    columns: dict[str, dict[str, str]]
    """By axis, each column's dtype, `str` for strings."""
    derived: dict[str, Derived]
    """Sites that were computed from others; they may be short of examples."""
    unknown: dict[str, FormatError]
    """Derived ones that a later actstore made, and what to say of them."""


def find_parts(source: object) -> list[str]:
    """The directories meant by a path, a list of paths, or a folder of stores.

    Raises
    ------
    NotFoundError
        When a path does not exist or holds no store.
    InvalidInputError
        When `source` is no path, or names no part or one twice.
    """
    if isinstance(source, str | os.PathLike):
        path = as_path(source)
        if not os.path.exists(path):
            raise NotFoundError(
                f"{path} does not exist",
                hint=near(path) or "actstore.create makes one",
            )
        if not os.path.isdir(path):
            raise NotFoundError(f"{path} is a file, a store is a directory", hint=f"actstore import {path}")
        if os.path.exists(os.path.join(path, "zarr.json")):
            return [path]
        if os.path.isdir(os.path.join(path, "commits")):
            return [path]  # Opening it tells what is wrong.
        return _once(_folder(path))
    if not isinstance(source, Iterable):
        raise InvalidInputError(f"expected a path or a list of paths, got {type(source).__name__}")
    paths = [as_path(item) for item in source]
    if not paths:
        raise InvalidInputError("a list of no parts")
    for path in paths:
        if not _is_part(path):
            raise NotFoundError(f"{path} is no store: it has no zarr.json")
    return _once(paths)


def _once(paths: list[str]) -> list[str]:
    """The paths, none of which may be another's, be it through a link."""
    seen: set[str] = set()
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise InvalidInputError(f"{path} is given twice")
        seen.add(real)
    return paths


def as_path(item: object) -> str:
    """A path as text; InvalidInputError when it is none."""
    if not isinstance(item, str | os.PathLike):
        raise InvalidInputError(f"expected a path, got {type(item).__name__}")
    path = os.fspath(item)
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInputError(f"{path!r} is no path")
    return path


def _folder(path: str) -> list[str]:
    names = [
        name for name in os.listdir(path) if not name.startswith(".") and _is_part(os.path.join(path, name))
    ]
    if not names:
        version_2 = any(os.path.exists(os.path.join(path, name)) for name in (".zgroup", ".zarray"))
        raise NotFoundError(
            f"{path} is no store: neither it nor a folder in it has a zarr.json",
            hint="it is of Zarr version 2, version 3 is read" if version_2 else None,
        )
    return [os.path.join(path, name) for name in sorted(names, key=_natural)]


def _is_part(path: str) -> bool:
    """Whether there is a store, or one that has lost its root: it is not passed over, opening it says so."""
    if os.path.exists(os.path.join(path, "zarr.json")):
        return True
    return os.path.isdir(os.path.join(path, "commits")) and _native.place(path) == "rootless"


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """The key that sorts part-9 before part-10."""
    pieces = re.split(r"([0-9]+)", name)
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces if piece]


def near(path: str) -> str | None:
    """A hint that names the file or folder of the most similar name beside one that is not there."""
    import difflib

    folder, name = os.path.split(os.path.abspath(path))
    try:
        found = difflib.get_close_matches(name, os.listdir(folder), 1)
    except OSError:
        return None
    return f"there is {os.path.join(os.path.dirname(path), found[0])}" if found else None


def in_order(parts: list[Part]) -> list[Part]:
    """By part index if every part has one, else as they are.

    Raises
    ------
    InvalidInputError
        When two parts have the same index.
    """
    by_index: dict[int, Part] = {}
    for part in parts:
        if part.layout.part is None:
            return parts
        other = by_index.setdefault(part.layout.part[0], part)
        if other is not part:
            raise InvalidInputError(
                f"{other.path} and {part.path} are both part {part.layout.part[0]}",
                hint="open a list of the ones you mean",
            )
    return [by_index[index] for index in sorted(by_index)]


def missing(parts: Sequence[Part]) -> tuple[list[int], int]:
    """Which parts are not among these, and of how many; none where they do not say how many there are."""
    numbered = [part.layout.part for part in parts]
    counts = {of[1] if of is not None else 0 for of in numbered}
    if len(counts) != 1 or not (count := counts.pop()):
        return [], 0
    return sorted(set(range(count)) - {of[0] for of in numbered if of is not None}), count


def agree(parts: Sequence[Part]) -> None:
    """Check that parts can be one store. A part without examples has no columns yet and may lack any.

    Raises
    ------
    InvalidInputError
        Naming the first difference.
    """
    first = parts[0]
    for part in parts[1:]:
        _same(first, part, "sites", sorted(first.layout.sites), sorted(part.layout.sites))
        for name, site in first.layout.sites.items():
            other = part.layout.sites[name]
            _same(first, part, f"axis of site {name!r}", site.axis, other.axis)
            _same(first, part, f"layers of site {name!r}", list(site.labels), list(other.labels))
            ours, theirs = first.reader.array(name), part.reader.array(name)
            _same(first, part, f"dim of site {name!r}", ours.shape[2], theirs.shape[2])
            _same(first, part, f"dtype of site {name!r}", ours.dtype, theirs.dtype)
    full = [part for part in parts if part.n_examples]
    for part in full[1:]:
        for axis, columns in full[0].columns.items():
            _same(full[0], part, f"columns of {axis!r}", columns, part.columns.get(axis, {}))


def _same(first: Part, part: Part, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise InvalidInputError(
            f"parts differ in the {what}: {first.path} has {ours}, {part.path} has {theirs}"
        )


def read_part(reader: _native.Reader) -> Part:
    """A reader's layout, its arrays checked against it.

    Raises
    ------
    FormatError
        When arrays are missing or their row counts contradict one another.
    """
    path = reader.path
    names = frozenset(reader.arrays)
    layout = parse_layout(reader.attributes, path)
    foreign = reader.record is None
    guessed = layout is None
    if layout is None:
        layout = _guess_layout(reader)
    rows: dict[str, int] = {}
    for name, site in layout.sites.items():
        if name not in names:
            raise FormatError(f"{path}: site {name!r} is listed but has no array", kind="metadata")
        array = reader.array(name)
        if len(array.shape) != 3 or array.shape[1] != len(site.labels) or array.dtype not in FLOAT_DTYPES:
            raise FormatError(
                f"{path}: site {name!r} of {len(site.labels)} layers is {array.dtype} {list(array.shape)}",
                kind="metadata",
            )
        known = rows.setdefault(site.axis, array.shape[0])
        if known != array.shape[0]:
            raise FormatError(
                f"{path}: site {name!r} has {array.shape[0]} rows, others on axis {site.axis!r} have {known}",
                kind="metadata",
            )
    n_examples = _count_examples(reader, names, layout, rows, foreign)
    rows[EXAMPLES] = n_examples
    columns = {
        axis: _find_columns(reader, names, axis, rows[axis], lenient=guessed)
        for axis in (*layout.axes, EXAMPLES)
        if axis in rows
    }
    # Where no offsets tell of examples, an array of one row each is an array like others.
    known = not guessed or f"{TOKENS}/offset" in names
    derived, unknown = _find_derived(reader, layout, n_examples) if known else ({}, {})
    return Part(path, reader, layout, foreign, n_examples, rows, columns, derived, unknown)


def _find_derived(
    reader: _native.Reader, layout: Layout, n_examples: int
) -> tuple[dict[str, Derived], dict[str, FormatError]]:
    """Arrays beside the sites that say how they were made from them."""
    derived: dict[str, Derived] = {}
    unknown: dict[str, FormatError] = {}
    for name in reader.arrays:
        if "/" in name or name in layout.sites or name in layout.axes or name == EXAMPLES:
            continue
        array = reader.array(name)
        if not is_derived(array.attributes) or name_problem(name) is not None:
            continue
        where = f"{reader.path}: {name}"
        try:
            found = parse_derived(array.attributes, array.shape, array.dtype, array.codec, where)
        except FormatError as error:
            if error.kind != "version":
                raise
            unknown[name] = error
            continue
        if found.rows > n_examples:
            raise FormatError(f"{where} is of {found.rows} examples, there are {n_examples}", kind="metadata")
        derived[name] = found
    return derived, unknown


def _guess_layout(reader: _native.Reader) -> Layout:
    arrays = [reader.array(name) for name in reader.arrays if "/" not in name]
    arrays = [array for array in arrays if len(array.shape) == 3 and array.dtype in FLOAT_DTYPES]
    if f"{TOKENS}/offset" in reader.arrays:
        arrays = [array for array in arrays if not is_derived(array.attributes)]
    if len({array.shape[0] for array in arrays}) <= 1:
        axes = {array.name: TOKENS for array in arrays}
    elif f"{TOKENS}/offset" in reader.arrays:
        rows = ", ".join(f"{array.name}: {array.shape[0]}" for array in arrays)
        raise FormatError(f"{reader.path}: {TOKENS}/offset cannot be of all sites, rows differ: {rows}")
    else:  # Arrays of different lengths have nothing in common: each is its own axis.
        axes = {array.name: f"{array.name}.rows" for array in arrays}
    sites = {a.name: SiteLayout(axes[a.name], tuple(range(a.shape[1]))) for a in arrays}
    return Layout(sites, tuple(dict.fromkeys(axes.values())))


def _count_examples(
    reader: _native.Reader, names: frozenset[str], layout: Layout, rows: dict[str, int], foreign: bool
) -> int:
    """Examples, as every array that has them must agree."""
    counts: dict[str, int] = {}
    if EXAMPLES in rows:
        counts["the sites on axis 'examples'"] = rows[EXAMPLES]
    for axis in layout.axes:
        name = f"{axis}/offset"
        if name in names:
            counts[name] = _offset_count(reader, name)
            rows.setdefault(axis, 0)
        elif foreign:
            counts[f"axis {axis!r}"] = 1
        else:
            raise FormatError(f"{reader.path}: axis {axis!r} has no array {name}", kind="metadata")
    if not foreign and not {f"{IDS}/bytes", f"{IDS}/offset"} <= names:
        raise FormatError(f"{reader.path} has no {IDS}", kind="metadata")
    if f"{IDS}/offset" in names:
        counts[f"{IDS}/offset"] = _offset_count(reader, f"{IDS}/offset")
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{what}: {count}" for what, count in counts.items())
        raise FormatError(f"{reader.path}: the number of examples differs: {found}", kind="metadata")
    return next(iter(counts.values()), 0)


def _offset_count(reader: _native.Reader, name: str) -> int:
    array = reader.array(name)
    if (
        len(array.shape) != 1
        or array.dtype not in COLUMN_DTYPES
        or COLUMN_DTYPES[array.dtype].kind not in "iu"
    ):
        raise FormatError(
            f"{reader.path}: {name} is {array.dtype} {list(array.shape)}, offsets are int64 [n + 1]",
            kind="metadata",
        )
    return max(array.shape[0] - 1, 0)


def _find_columns(
    reader: _native.Reader, names: frozenset[str], axis: str, n_rows: int, lenient: bool
) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name in sorted(names):
        group, _, rest = name.partition("/")
        column, _, leaf = rest.partition("/")
        if group != axis or not column or column == "offset":
            continue
        if leaf == "" and name in names:
            array = reader.array(name)
            good = len(array.shape) == 1 and array.dtype in COLUMN_DTYPES
            found, dtype = array.shape[0] if array.shape else 0, array.dtype
        elif axis == EXAMPLES and leaf == "bytes" and f"{axis}/{column}/offset" in names:
            dtype = reader.array(name).dtype
            good = dtype == "uint8"
            dtype = STRINGS if good else dtype
            found = _offset_count(reader, f"{axis}/{column}/offset")
        else:
            continue
        if good and found == n_rows:
            columns[column] = dtype
        elif not lenient:
            raise FormatError(
                f"{reader.path}: column {name} is {dtype} with {found} rows, axis {axis!r} has {n_rows}",
                kind="metadata",
            )
    return columns


def read_offsets(reader: _native.Reader, name: str, n_rows: int) -> NDArray[np.int64]:
    """Offsets, int64 ``[n + 1]``: from 0, never falling, to `n_rows`.

    Raises
    ------
    FormatError
        When they are not.
    """
    array = reader.array(name)
    raw = new_array(array.shape, COLUMN_DTYPES[array.dtype], f"{reader.path}: {name}")
    array.read((0, array.shape[0]), None, raw)
    offset = raw.astype(np.int64, copy=False)
    if offset.size == 0:
        offset = np.zeros(1, np.int64)
    last = int(offset[-1])
    if offset[0] != 0 or (offset[1:] < offset[:-1]).any() or last != n_rows:
        raise FormatError(
            f"{reader.path}: {name} does not rise from 0 to the {n_rows} rows there are: "
            f"it goes from {int(offset[0])} to {last}",
            kind="metadata",
        )
    return offset
