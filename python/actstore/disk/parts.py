"""The parts of a store: reading the layout of one, and comparing several.

A part is a store that one process wrote. Parts opened together are one store with their rows and examples
concatenated, so they must have the same sites, axes and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import COLUMN_DTYPES, FLOAT_DTYPES, new_array
from ..errors import FormatError, InvalidInputError
from .added import AddedColumn, parse_added
from .layout import EXAMPLES, IDS, TOKENS, Layout, SiteLayout, parse_layout, unknown_encoding
from .recipe import Derived, find_derived, is_derived

STRINGS = "str"
"""The dtype of string columns in listings."""


@dataclass(frozen=True)
class Part:
    """One directory at one commit, its layout checked against its arrays."""

    path: str
    reader: _native.Reader
    layout: Layout
    foreign: bool
    """Whether it has no commits. Then another program may have written it, without offsets and ids."""
    n_examples: int
    rows: dict[str, int]
    """The number of rows of each axis, `examples` included."""
    columns: dict[str, dict[str, str]]
    """By axis, the dtype of each complete column; `str` for strings."""
    added: dict[str, dict[str, AddedColumn]]
    """By axis, the columns that were added later; those that are short are not in `columns`."""
    derived: dict[str, Derived]
    """Sites that were computed from others; they may be short."""
    unknown: dict[str, FormatError]
    """Sites and derived arrays that only a later actstore can read, with the error that says so."""


def in_order(parts: list[Part]) -> list[Part]:
    """The parts sorted by part index if each has one, else in the given order.

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
                hint="open a list of the parts you want",
            )
    return [by_index[index] for index in sorted(by_index)]


def missing(parts: Sequence[Part]) -> tuple[list[int], int]:
    """The indices of missing parts, and the number of all parts; ``[], 0`` when that is unknown."""
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
        The message names the first difference.
    """
    first = parts[0]
    for part in parts[1:]:
        ours, theirs = first.layout, part.layout
        _same(first, part, "sites", sorted(ours.sites), sorted(theirs.sites))
        _same(first, part, "encoded sites", sorted(ours.encoded), sorted(theirs.encoded))
        for name, site in ours.sites.items():
            other = theirs.sites[name]
            _same(first, part, f"axis of site {name!r}", site.axis, other.axis)
            _same(first, part, f"layers of site {name!r}", list(site.labels), list(other.labels))
            a, b = first.reader.array(name), part.reader.array(name)
            _same(first, part, f"dim of site {name!r}", a.shape[2], b.shape[2])
            _same(first, part, f"dtype of site {name!r}", a.dtype, b.dtype)
    full = [part for part in parts if part.n_examples]
    for axis in full[0].columns if full else ():
        added = {name for part in full for name in part.added.get(axis, {})}
        original = [_without(part.columns.get(axis, {}), added) for part in full]
        for part, columns in zip(full[1:], original[1:], strict=True):
            _same(full[0], part, f"columns of {axis!r}", original[0], columns)


def _without(columns: dict[str, str], names: set[str]) -> dict[str, str]:
    return {name: dtype for name, dtype in columns.items() if name not in names}


def _same(first: Part, part: Part, what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise InvalidInputError(
            f"parts differ in the {what}: {first.path} has {ours}, {part.path} has {theirs}"
        )


def read_part(reader: _native.Reader) -> Part:
    """Read a part's layout and check its arrays against it.

    Raises
    ------
    FormatError
        When arrays are missing or their numbers of rows contradict one another.
    """
    path = reader.path
    names = frozenset(reader.arrays)
    layout = parse_layout(reader.attributes, path)
    foreign = reader.record is None
    guessed = layout is None
    if layout is None:
        layout = _guess_layout(reader)
    rows = _site_rows(reader, names, layout)
    n_examples = _count_examples(reader, names, layout, rows, foreign)
    rows[EXAMPLES] = n_examples
    columns: dict[str, dict[str, str]] = {}
    added: dict[str, dict[str, AddedColumn]] = {}
    for axis in (*layout.axes, EXAMPLES):
        if axis in rows:
            columns[axis], added[axis] = _find_columns(reader, names, axis, rows[axis], guessed)
    # Without offsets, the array of a derived site cannot be told apart from other arrays of a foreign group.
    known = not guessed or f"{TOKENS}/offset" in names
    derived, unknown = find_derived(reader, layout, rows) if known else ({}, {})
    for name, site in layout.encoded.items():
        if site.encoding is not None:
            unknown[name] = unknown_encoding(path, name, site.encoding)
    return Part(path, reader, layout, foreign, n_examples, rows, columns, added, derived, unknown)


def _site_rows(reader: _native.Reader, names: frozenset[str], layout: Layout) -> dict[str, int]:
    """The number of rows of each axis that has a site, after a check that all its sites agree."""
    path = reader.path
    rows: dict[str, int] = {}
    for name, site in layout.sites.items():
        if name not in names:
            raise _refusal(reader, name) or FormatError(
                f"{path}: site {name!r} has no array", kind="metadata"
            )
        array = reader.array(name)
        if len(array.shape) != 3 or array.shape[1] != len(site.labels) or array.dtype not in FLOAT_DTYPES:
            raise FormatError(
                f"{path}: the array of site {name!r}, which has {len(site.labels)} layers, is "
                f"{array.dtype} {list(array.shape)}",
                kind="metadata",
            )
        known = rows.setdefault(site.axis, array.shape[0])
        if known != array.shape[0]:
            raise FormatError(
                f"{path}: site {name!r} has {array.shape[0]} rows, others on axis {site.axis!r} have {known}",
                kind="metadata",
            )
    return rows


def _refusal(reader: _native.Reader, name: str) -> FormatError | None:
    """Why an array that exists cannot be read; None when there is no such array."""
    try:
        reader.array(name)
    except FormatError as error:
        return error
    except LookupError:
        pass
    return None


def _guess_layout(reader: _native.Reader) -> Layout:
    """The layout of a group without our attributes: its 2-D and 3-D float arrays are sites."""
    arrays = [reader.array(name) for name in reader.arrays if "/" not in name]
    arrays = [array for array in arrays if len(array.shape) == 3 and array.dtype in FLOAT_DTYPES]
    if f"{TOKENS}/offset" in reader.arrays:
        arrays = [array for array in arrays if not is_derived(array.attributes)]
    if len({array.shape[0] for array in arrays}) <= 1:
        axes = {array.name: TOKENS for array in arrays}
    elif f"{TOKENS}/offset" in reader.arrays:
        rows = ", ".join(f"{array.name}: {array.shape[0]}" for array in arrays)
        raise FormatError(
            f"{reader.path}: the offsets in {TOKENS}/offset cannot fit sites with different rows: {rows}"
        )
    else:  # Arrays of different lengths have nothing in common: each has an axis of its own.
        axes = {array.name: f"{array.name}.rows" for array in arrays}
    sites = {a.name: SiteLayout(axes[a.name], tuple(range(a.shape[1]))) for a in arrays}
    return Layout(sites, tuple(dict.fromkeys(axes.values())))


def _count_examples(
    reader: _native.Reader, names: frozenset[str], layout: Layout, rows: dict[str, int], foreign: bool
) -> int:
    """The number of examples, on which all arrays must agree.

    Completes `rows` for axes without a readable site.
    """
    counts: dict[str, int] = {}
    if EXAMPLES in rows:
        counts["the sites on axis 'examples'"] = rows[EXAMPLES]
    for axis in layout.axes:
        name = f"{axis}/offset"
        if name in names:
            counts[name] = _offset_count(reader, name)
            if axis not in rows:
                rows[axis] = _last_offset(reader, name)
        elif foreign:
            counts[f"axis {axis!r}"] = 1
        else:
            raise FormatError(f"{reader.path}: axis {axis!r} has no array {name}", kind="metadata")
    if not foreign and not {f"{IDS}/bytes", f"{IDS}/offset"} <= names:
        raise FormatError(f"{reader.path} has no {IDS}", kind="metadata")
    if f"{IDS}/offset" in names:
        counts[f"{IDS}/offset"] = _offset_count(reader, f"{IDS}/offset")
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{what}: {count}" for what, count in counts.items())
        raise FormatError(f"{reader.path}: the number of examples differs: {numbers}", kind="metadata")
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


def _last_offset(reader: _native.Reader, name: str) -> int:
    array = reader.array(name)
    n = array.shape[0]
    last = np.zeros(1, COLUMN_DTYPES[array.dtype])
    if n:
        array.read((n - 1, n), None, last)
    if int(last[0]) < 0:
        raise FormatError(f"{reader.path}: {name} ends with {int(last[0])}", kind="metadata")
    return int(last[0])


def _find_columns(
    reader: _native.Reader, names: frozenset[str], axis: str, n_rows: int, guessed: bool
) -> tuple[dict[str, str], dict[str, AddedColumn]]:
    """The complete columns of an axis, and all its added ones.

    In a group whose layout is guessed, arrays that do not fit are ignored; elsewhere they are damage.
    """
    columns: dict[str, str] = {}
    added: dict[str, AddedColumn] = {}
    for name in sorted(names):
        group, _, rest = name.partition("/")
        column, _, leaf = rest.partition("/")
        if group != axis or not column or column == "offset":
            continue
        array = reader.array(name)
        if leaf == "":
            valid = len(array.shape) == 1 and array.dtype in COLUMN_DTYPES
            n, dtype, attributes = array.shape[0], array.dtype, array.attributes
        elif axis == EXAMPLES and leaf == "bytes" and f"{axis}/{column}/offset" in names:
            valid = array.dtype == "uint8"
            dtype = STRINGS if valid else array.dtype
            n = _offset_count(reader, f"{axis}/{column}/offset")
            attributes = reader.groups.get(f"{axis}/{column}", "{}")
        else:
            continue
        is_added, fill = parse_added(attributes, f"{reader.path}: {axis}/{column}")
        if valid and is_added and n <= n_rows:
            added[column] = AddedColumn(dtype, n, fill)
        if valid and n == n_rows:
            columns[column] = dtype
        elif column not in added and not guessed:
            raise FormatError(
                f"{reader.path}: column {name} is {dtype} with {n} rows, axis {axis!r} has {n_rows}",
                kind="metadata",
            )
    return columns, added


def read_offsets(reader: _native.Reader, name: str, n_rows: int) -> NDArray[np.int64]:
    """Offsets, int64 ``[n + 1]``: they begin with 0, never fall, and end with `n_rows`.

    Raises
    ------
    FormatError
        When they do not.
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
            f"{reader.path}: {name} does not rise from 0 to the number of rows, {n_rows}: "
            f"it goes from {int(offset[0])} to {last}",
            kind="metadata",
        )
    return offset
