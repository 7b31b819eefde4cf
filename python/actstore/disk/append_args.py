"""Checking and normalizing the arguments of `append`: rows, lengths, ids, columns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import COLUMN_DTYPES, SITE_DTYPES, as_numpy, cast_float, integers
from ..base.checks import check_column
from ..errors import InvalidInputError, ShapeError
from .layout import EXAMPLES, Layout


@dataclass
class NumberColumn:
    """The values ``[n]`` of a numeric column."""

    path: str
    values: NDArray[Any]
    guessed: bool
    """Whether they came as a Python list, so that numpy chose their dtype and they may be recast."""

    def in_dtype(self, dtype_name: str) -> NDArray[Any]:
        """The values in the column's dtype.

        Raises
        ------
        InvalidInputError
            When they have another dtype, or are a list that the column's dtype cannot hold exactly.
        """
        if self.values.dtype.name != dtype_name:
            dtype = COLUMN_DTYPES.get(dtype_name)
            if self.guessed and dtype is not None and (self.values.dtype.kind == "b") == (dtype.kind == "b"):
                with np.errstate(all="ignore"):
                    recast = self.values.astype(dtype)
                    if np.array_equal(recast.astype(self.values.dtype), self.values, equal_nan=True):
                        return recast
            raise InvalidInputError(f"column {self.path!r} is {dtype_name}, got {self.values.dtype.name}")
        return self.values


def site_rows(
    acts: Any,
    layout: Layout,
    arrays: Mapping[str, tuple[tuple[int, ...], str]],
    ahead: Mapping[str, int],
    cast: bool,
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Each site's array, checked, and the number of rows given on each axis.

    Parameters
    ----------
    acts : mapping of str to array ``[rows, n_layers, dim]``
    layout : Layout
    arrays : mapping
        The native writer's arrays: shape and dtype by name.
    ahead : mapping of str to int
        Rows of the first of these examples that were appended earlier, by site.
    cast : bool
        Whether other float dtypes are rounded to the site's.

    Raises
    ------
    InvalidInputError, ShapeError
        The message names the site, the expected value and the given one.
    """
    sites = list(layout.sites)
    if not isinstance(acts, Mapping):
        raise InvalidInputError(
            f"acts: expected a mapping of site to array, got {type(acts).__name__}",
            hint=f"{{{sites[0]!r}: acts}}",
        )
    if set(acts) != set(sites):
        raise InvalidInputError(f"acts: the sites are {sites}, got {[*map(str, acts)]}")
    out: dict[str, NDArray[Any]] = {}
    n_rows: dict[str, int] = {}
    first: dict[str, str] = {}
    for name, site in layout.sites.items():
        (_, n_layers, dim), dtype_name = arrays[name]
        dtype = SITE_DTYPES[dtype_name]
        array = as_numpy(acts[name], f"site {name!r}")
        if array.ndim != 3 or array.shape[1:] != (n_layers, dim):
            raise ShapeError(f"site {name!r}: expected [rows, {n_layers}, {dim}], got {list(array.shape)}")
        if array.dtype != dtype:
            array = _cast(name, array, dtype, cast)
        out[name] = np.ascontiguousarray(array)
        rows = array.shape[0] + ahead.get(name, 0)
        if n_rows.setdefault(site.axis, rows) != rows:
            raise ShapeError(
                f"site {name!r} has {rows} rows, site {first[site.axis]!r} on the same axis "
                f"{site.axis!r} has {n_rows[site.axis]}"
            )
        first.setdefault(site.axis, name)
    return out, n_rows


def _cast(name: str, array: NDArray[Any], dtype: np.dtype[Any], cast: bool) -> NDArray[Any]:
    if array.dtype == np.uint16 and dtype.name == "bfloat16":
        raise InvalidInputError(
            f"site {name!r} is bfloat16, got uint16, which is ambiguous",
            hint="if these are bfloat16's bits: array.view(ml_dtypes.bfloat16)",
        )
    if not cast:
        raise InvalidInputError(
            f"site {name!r} is {dtype.name}, got {array.dtype.name}", hint="cast=True rounds to it"
        )
    return cast_float(array, dtype, f"site {name!r}")


def lengths_by_axis(
    lengths: Any, axes: Sequence[str], n_rows: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Each axis' lengths ``[n_examples]``, which add up to its rows, and the number of examples.

    Raises
    ------
    InvalidInputError, ShapeError
        The message names the axis, the expected value and the given one.
    """
    if not axes:
        if lengths is not None:
            raise InvalidInputError(
                "lengths: every site of this store has one row per example, so leave it out"
            )
        return {}, n_rows[EXAMPLES]
    if lengths is None:
        raise InvalidInputError("lengths: missing", hint="lengths=[n] if all n rows belong to one example")
    if not isinstance(lengths, Mapping):
        if len(axes) > 1:
            raise InvalidInputError(
                f"lengths: the axes are {list(axes)}", hint=f"lengths={{{axes[0]!r}: ..., {axes[1]!r}: ...}}"
            )
        lengths = {axes[0]: lengths}
    if set(lengths) != set(axes):
        raise InvalidInputError(f"lengths: the axes are {list(axes)}, got {[*map(str, lengths)]}")
    out = {axis: integers(lengths[axis], f"lengths of axis {axis!r}") for axis in axes}
    n = len(out[axes[0]])
    for axis, sizes in out.items():
        if len(sizes) != n:
            raise ShapeError(f"lengths: {n} examples on axis {axes[0]!r}, {len(sizes)} on {axis!r}")
        if (sizes < 0).any():
            raise InvalidInputError(f"lengths of axis {axis!r}: {int(sizes.min())} is negative")
        total = sum(sizes.tolist())  # Python integers do not overflow.
        if total != n_rows[axis]:
            raise ShapeError(
                f"lengths of axis {axis!r} add up to {total}, its sites have {n_rows[axis]} rows"
            )
    if n_rows.get(EXAMPLES, n) != n:
        raise ShapeError(f"{n} lengths, but the sites on axis 'examples' have {n_rows[EXAMPLES]} rows")
    return out, n


def example_ids(ids: Any, n_new: int, n_before: int) -> list[str]:
    """The ids of new examples, by default their positions in the store.

    Raises
    ------
    InvalidInputError, ShapeError
        When they are not one string per example.
    """
    if ids is None:
        return [str(i) for i in range(n_before, n_before + n_new)]
    names = _list_of_str(ids, "ids")
    if names is None:
        raise InvalidInputError("ids: expected strings", hint="[str(i) for i in ids]")
    if len(names) != n_new:
        raise ShapeError(f"ids: expected {n_new}, one per example, got {len(names)}")
    return names


def columns_by_axis(
    token_columns: Any, axes: Sequence[str], n_rows: Mapping[str, int]
) -> Iterator[NumberColumn]:
    """The numeric columns over the rows of each axis of tokens.

    Parameters
    ----------
    token_columns : mapping or array
        ``{axis: {column: values}}``; with one axis also ``{column: values}``, or the values of column `id`.

    Raises
    ------
    InvalidInputError, ShapeError
        For an unknown axis, an invalid column name, or values of another length.
    """
    if token_columns is None:
        return
    if not isinstance(token_columns, Mapping):
        token_columns = {"id": token_columns}
    by_axis = len(axes) > 1 or (
        bool(token_columns) and all(isinstance(value, Mapping) for value in token_columns.values())
    )
    if not axes:
        raise InvalidInputError(
            "token_columns: every site of this store has one row per example", hint="use columns="
        )
    for axis, columns in (token_columns if by_axis else {axes[0]: token_columns}).items():
        if axis not in axes:
            raise InvalidInputError(f"token_columns: the axes are {list(axes)}, got {axis!r}")
        for name, values in (columns if isinstance(columns, Mapping) else {"id": columns}).items():
            check_column(name, f"axis {axis!r}: column")
            yield _numbers(f"{axis}/{name}", values, n_rows[axis])


def example_columns(columns: Any, n_new: int) -> tuple[list[NumberColumn], dict[str, list[str]]]:
    """The columns over examples: the numeric ones, and the string columns by path.

    Raises
    ------
    InvalidInputError, ShapeError
        For an invalid column name or dtype, or values of another length.
    """
    numbers: list[NumberColumn] = []
    strings: dict[str, list[str]] = {}
    if columns is None:
        columns = {}
    if not isinstance(columns, Mapping):
        raise InvalidInputError(
            f"columns: expected a mapping of name to values, got {type(columns).__name__}"
        )
    for name, values in columns.items():
        path = f"{EXAMPLES}/{check_column(name, 'column')}"
        if name == "id":
            raise InvalidInputError("columns: give the column 'id' as ids=")
        texts = _list_of_str(values, f"column {path!r}")
        if texts is None:
            numbers.append(_numbers(path, values, n_new))
        elif len(texts) != n_new:
            raise ShapeError(f"column {path!r}: expected {n_new} values, one per example, got {len(texts)}")
        else:
            strings[path] = texts
    return numbers, strings


def pack_strings(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 bytes of all strings, concatenated, and the byte at which each string ends."""
    raw = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))
    return np.frombuffer(b"".join(raw), np.uint8), ends


def _numbers(path: str, values: Any, n: int) -> NumberColumn:
    array = as_numpy(values, f"column {path!r}")
    if array.ndim != 1 or array.shape[0] != n:
        raise ShapeError(f"column {path!r}: expected [{n}], got {list(array.shape)}")
    if array.dtype.name not in COLUMN_DTYPES:
        raise InvalidInputError(f"column {path!r}: {array.dtype} is neither numbers nor strings")
    return NumberColumn(path, np.ascontiguousarray(array), isinstance(values, list | tuple))


def _list_of_str(values: Any, what: str) -> list[str] | None:
    """`values` as a list of strings; None when they are not strings.

    Raises
    ------
    InvalidInputError
        When only some of them are strings, or one is not valid unicode.
    """
    if isinstance(values, str | bytes):
        raise InvalidInputError(f"{what}: expected a list, got {type(values).__name__} {values!r}")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "OUT":
            return None
        if values.ndim != 1:
            raise ShapeError(f"{what}: expected one axis, got shape {list(values.shape)}")
    elif not isinstance(values, Sequence):
        # A column of a data frame, for example. A tensor cannot hold strings.
        return _list_of_str(np.asarray(values), what) if hasattr(values, "__array_ufunc__") else None
    texts = list(values)
    kinds = {isinstance(text, str) for text in texts}
    if not texts:
        return []
    if kinds != {True}:
        if True in kinds:
            other = next(text for text in texts if not isinstance(text, str))
            raise InvalidInputError(f"{what}: strings mixed with {other!r}, {type(other).__name__}")
        return None
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{what}: {text!r} is not valid unicode") from error
    return [str(text) for text in texts]
