"""Means and covariances: of rows, by group, and of two sites row by row."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import as_numpy, new_array
from .errors import InvalidInputError, NotFoundError, ShapeError
from .layout import EXAMPLES
from .memory import array_origin
from .scan import Job, NativeReducer, Pass, scan_view
from .selection import Rows, compact_rows, is_int, layer_positions, native_rows, rows_array, take
from .view import Progress, View, one_of

PRECISIONS = ("float64", "float32")


@dataclass(frozen=True, eq=False, repr=False)
class MomentsResult:
    """What `Site.moments` gives; ``a + b`` is that of the rows of both.

    With groups there is one axis more, in front: ``n [G]``, ``mean [G, L, D]``, ``var [G, L, D]``,
    ``cov [G, L, D, D]``.

    Attributes
    ----------
    layers : list of int
        The layers' labels, ``[L]``.
    n : int, or array int64 ``[G]``
        Rows.
    mean : array
        float64 ``[L, D]``; NaN where there are no rows.
    var : array
        float64 ``[L, D]``: the variance, ddof 0.
    cov : array or None
        float64 ``[L, D, D]``: the covariance, ddof 0; None when it was not asked for.
    groups : array or None
        What the groups are called, ``[G]``, ascending.
    dtype : str
        What the rows were stored as.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> [m] = actstore.scan(np.array([[1.0, 2.0], [3.0, 6.0]]), [actstore.Moments()])
    >>> m.n, m.mean, m.cov
    (2, array([[2., 4.]]), array([[[1., 2.],
            [2., 4.]]]))
    >>> (m + m).n, (m + m).var
    (4, array([[1., 4.]]))
    """

    layers: list[int]
    n: Any
    mean: NDArray[np.float64]
    var: NDArray[np.float64]
    cov: NDArray[np.float64] | None
    groups: NDArray[Any] | None
    dtype: str

    def __add__(self, other: "MomentsResult") -> "MomentsResult":
        if not isinstance(other, MomentsResult):
            return NotImplemented
        return _merged(self, other)

    def select(self, layers: Any) -> "MomentsResult":
        """Those of some layers, named as in `Site.select`."""
        at = layer_positions(layers, self.layers, "moments")

        def of(array: NDArray[np.float64] | None) -> Any:
            return None if array is None else (array[at] if self.groups is None else array[:, at])

        labels = [self.layers[i] for i in at]
        cov = of(self.cov)
        return MomentsResult(labels, self.n, of(self.mean), of(self.var), cov, self.groups, self.dtype)

    def __repr__(self) -> str:
        n = int(np.sum(self.n))
        groups = "" if self.groups is None else f", {len(self.groups)} groups"
        what = "means and variances" if self.cov is None else "means and covariances"
        return f"MomentsResult({what} of {n} rows{groups}, layers {self.layers}, dim {self.mean.shape[-1]})"


def _merged(a: MomentsResult, b: MomentsResult) -> MomentsResult:
    """Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983)."""
    if a.layers != b.layers:
        raise InvalidInputError(f"moments of layers {a.layers} do not merge with those of layers {b.layers}")
    if a.mean.shape[-1] != b.mean.shape[-1]:
        raise ShapeError(
            f"moments of dim {a.mean.shape[-1]} do not merge with those of dim {b.mean.shape[-1]}"
        )
    if (a.cov is None) != (b.cov is None):
        raise InvalidInputError("moments with covariances do not merge with those without")
    if (a.groups is None) != (b.groups is None):
        raise InvalidInputError("moments by group do not merge with those of all rows")
    # The coarser of the two says how far values can be trusted.
    dtype = max(a.dtype, b.dtype, key=lambda name: UNIT_ROUNDOFF[name])
    if a.groups is None or b.groups is None:
        one = np.zeros(1, int)
        n, mean, var, cov = _joined([a.n], [b.n], a, b, one, one, 1)
        return MomentsResult(
            a.layers, int(n[0]), mean[0], var[0], None if cov is None else cov[0], None, dtype
        )
    if a.groups.dtype.kind != b.groups.dtype.kind:
        raise InvalidInputError(f"groups of {a.groups.dtype} do not merge with groups of {b.groups.dtype}")
    groups = np.unique(np.concatenate([a.groups, b.groups]))
    to_a, to_b = np.searchsorted(groups, a.groups), np.searchsorted(groups, b.groups)
    n, mean, var, cov = _joined(a.n, b.n, a, b, to_a, to_b, len(groups))
    return MomentsResult(a.layers, n, mean, var, cov, groups, dtype)


def _joined(
    n_a: Any,
    n_b: Any,
    a: MomentsResult,
    b: MomentsResult,
    to_a: NDArray[np.int64],
    to_b: NDArray[np.int64],
    n_groups: int,
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """``n [G]``, ``mean``, ``var`` and ``cov`` of two, whose groups go to these places."""
    grouped = a.groups is not None
    parts = []
    for n, to, of in ((n_a, to_a, a), (n_b, to_b, b)):
        count = np.zeros(n_groups, np.int64)
        count[to] = n
        parts.append((count, to, of))
    total = parts[0][0] + parts[1][0]
    shape = a.mean.shape[1:] if grouped else a.mean.shape
    mean, var = np.full((2, n_groups, *shape), np.nan)
    cov = None
    if a.cov is not None:
        cov = new_array((n_groups, *shape, shape[-1]), np.dtype(np.float64), "moments: cov")
        cov[...] = np.nan
    place = [dict(zip(to.tolist(), range(len(to)), strict=True)) for _, to, _ in parts]
    for g in range(n_groups):
        here = [
            (int(count[g]), of, place[side][g])
            for side, (count, _, of) in enumerate(parts)
            if count[g] and g in place[side]
        ]
        if not here:
            continue
        n, of, at = here[0]
        mean[g] = of.mean[at] if grouped else of.mean
        var[g] = of.var[at] if grouped else of.var
        if cov is not None and of.cov is not None:
            cov[g] = of.cov[at] if grouped else of.cov
        for more, of, at in here[1:]:
            share = more / (n + more)
            away = (of.mean[at] if grouped else of.mean) - mean[g]
            mean[g] += share * away
            var[g] += share * ((of.var[at] if grouped else of.var) - var[g]) + share * (1 - share) * away**2
            if cov is not None and of.cov is not None:
                theirs = of.cov[at] if grouped else of.cov
                for layer in range(shape[0]):  # A layer at a time: there may be many, and large.
                    between = np.outer(away[layer], away[layer])
                    between *= share * (1 - share)
                    cov[g, layer] *= 1 - share
                    cov[g, layer] += share * theirs[layer]
                    cov[g, layer] += between
    if cov is not None:
        var = np.diagonal(cov, axis1=-2, axis2=-1).copy()
    return total, mean, var, cov


UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""How far a value may be from what it was rounded from, relative to it."""


class Moments(NativeReducer):
    """A reducer: the mean and the covariance of each layer, in one pass and to the last digits of float64.

    Parameters
    ----------
    cov : bool
        Whether to have covariances ``[L, D, D]``, or variances alone.
    by : str or array, optional
        Have moments for each group of rows: ``"position"`` (of a row in its example), ``"example"``, the
        name of a column of the rows' axis or of their examples, or an array ``[n_rows]`` of integers or
        strings.
    precision : {"float64", "float32"}
        Of products: of all, or float32 within some 256 rows, whose sums are added in float64; about twice as
        fast, to some six digits.

    Raises
    ------
    InvalidInputError
        When there is no such precision; in a scan, when rows have NaN or infinities.

    Notes
    -----
    The mean of a few rows is taken away before they are multiplied, and pieces merge as in Chan, Golub and
    LeVeque, "Algorithms for computing the sample variance" (1983), so nothing cancels, however far from
    zero the values are. The matrix is there once, whatever the number of threads.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0]], np.float32)
    >>> [m] = actstore.scan(rows, [actstore.Moments(cov=False, by=np.array([7, 7, 9]))])
    >>> m.groups, m.n, m.mean[:, 0]
    (array([7, 9]), array([2, 1]), array([[2., 0.],
           [5., 1.]]))
    """

    def __init__(self, cov: bool = True, by: Any = None, precision: str = "float64") -> None:
        if not isinstance(cov, bool):
            raise InvalidInputError(f"moments: cov is {cov!r}, not True or False")
        one_of(precision, PRECISIONS, "moments: precision")
        self._cov, self._by, self._precision = cov, by, precision

    def job(self, over: Pass) -> Job:
        """One native reducer."""
        return _MomentsJob(over, self._cov, self._by, self._precision)

    def merge(self, a: MomentsResult, b: MomentsResult) -> MomentsResult:
        """Two states as one; they are results themselves."""
        return a + b

    def finish(self, state: MomentsResult) -> MomentsResult:
        """The state itself."""
        return state

    def __repr__(self) -> str:
        by = "" if self._by is None else f", by={self._by!r:.40}"
        return f"Moments(cov={self._cov}{by}, precision={self._precision!r})"


class _MomentsJob:
    def __init__(self, over: Pass, cov: bool, by: Any, precision: str) -> None:
        self._over = over
        view = over.view
        labels: NDArray[np.uint32] | None = None
        self._groups: NDArray[Any] | None = None
        if by is not None:
            values = group_values(view, by)
            if over.order is not None:
                values = values[over.order]
            self._groups, inverse = np.unique(values, return_inverse=True)
            labels = inverse.astype(np.uint32)
        _, n_layers, dim = view.shape
        n_groups = 1 if self._groups is None else len(self._groups)
        if cov:
            size = (n_groups, n_layers, dim, dim)
            new_array(
                size, np.dtype(np.float64), "moments: cov"
            )  # Refused before the pass, if it is too large.
        kind = precision if cov else "diagonal"
        self.specs: list[tuple[str, dict[str, Any]]] = [
            (
                "moments",
                {
                    "kind": kind,
                    "labels": labels,
                    "groups": n_groups,
                    "layers": list(view.layers),
                    "numbers": view._origin.numbers,
                },
            )
        ]
        self._cov, self._precision = cov, precision

    def taken(self, outputs: list[Any]) -> MomentsResult:
        """From the sums."""
        [found] = outputs
        n, mean, second = found["n"], found["mean"], found["second"]
        n_layers, n_groups, dim = mean.shape
        if not dim and self._groups is None:
            n[...] = len(self._over.view)
        shape = (n_layers, n_groups, dim, dim) if self._cov else (n_layers, n_groups, dim)
        second = second.reshape(shape)
        empty = n == 0
        mean[:, empty] = np.nan
        for layer in range(n_layers):
            for group in range(n_groups):
                if empty[group]:
                    second[layer, group] = np.nan
                else:
                    second[layer, group] /= n[group]
        cov = second if self._cov else None
        if self._precision == "float32" and self._cov:
            # Values above 1e19 have no square in float32.
            wide = np.diagonal(second, axis1=2, axis2=3)
            if not np.isfinite(wide[:, ~empty]).all():
                raise InvalidInputError(
                    "moments: squares overflow float32", hint="precision='float64' has room for them"
                )
        var = np.diagonal(second, axis1=2, axis2=3).copy() if self._cov else second
        view = self._over.view
        if self._groups is None:
            mean, var, cov = mean[:, 0], var[:, 0], None if cov is None else cov[:, 0]
            count: Any = int(n[0])
        else:
            mean, var = (np.ascontiguousarray(x.swapaxes(0, 1)) for x in (mean, var))
            cov, count = None if cov is None else cov.swapaxes(0, 1), n
        return MomentsResult(view.layers, count, mean, var, cov, self._groups, view.dtype.name)


def group_values(view: View, by: Any) -> NDArray[Any]:
    """What group each row of a view is of, ``[n]``.

    Raises
    ------
    NotFoundError
        When there is no such column.
    ShapeError, InvalidInputError
        When there is not one integer or string for each row.
    """
    n, origin = len(view), view._origin
    if isinstance(by, str):
        examples, positions = origin.places(view.rows)
        if by in ("position", "example"):
            return positions if by == "position" else examples
        if origin.axis == EXAMPLES:
            values = origin.example_column(by)[examples]
        else:
            try:
                values = origin.column(by, view._view.rows)
            except NotFoundError:
                values = origin.example_column(by)[examples]
    else:
        values = as_numpy(by, "moments: by")
        if values.shape != (n,):
            raise ShapeError(f"moments: by: expected [{n}], one for each row, got {list(values.shape)}")
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.tolist()):
        values = values.astype(np.str_)
    if values.dtype.kind not in "iubU":
        raise InvalidInputError(f"moments: by: groups are integers or strings, got {values.dtype}")
    return values


def moments_view(
    view: View, cov: bool, by: Any, precision: str, threads: int, progress: Progress | None
) -> MomentsResult:
    """`Site.moments` of any view."""
    found: MomentsResult
    [found] = scan_view(view, [Moments(cov, by, precision)], threads, progress, False)
    return found


@dataclass(frozen=True, eq=False, repr=False)
class CrossMoments:
    """What `Site.cross_moments` gives; ``a + b`` is that of the rows of both.

    Attributes
    ----------
    layers, other_layers : list of int
        The layers' labels, ``[L]`` and ``[M]``.
    n : int
        Pairs of rows.
    mean, other_mean : array
        float64 ``[L, D]`` and ``[M, E]``.
    cov : array
        float64 ``[L, M, D, E]``: the mean product of deviations, ddof 0.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> x, y = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    >>> c = actstore.cross_moments(x, y)
    >>> c.n, c.mean, c.other_mean, c.cov.round(3)
    (3, array([[2.]]), array([[2., 1.]]), array([[[[1.333, 0.   ]]]]))
    """

    layers: list[int]
    other_layers: list[int]
    n: int
    mean: NDArray[np.float64]
    other_mean: NDArray[np.float64]
    cov: NDArray[np.float64]

    def __add__(self, other: "CrossMoments") -> "CrossMoments":
        if not isinstance(other, CrossMoments):
            return NotImplemented
        for what, mine, theirs in (
            ("layers", self.layers, other.layers),
            ("layers", self.other_layers, other.other_layers),
            ("shapes", self.cov.shape, other.cov.shape),
        ):
            if mine != theirs:
                raise InvalidInputError(f"cross-moments of {what} {mine} do not merge with those of {theirs}")
        if not self.n or not other.n:
            return self if self.n else other
        n = self.n + other.n
        share = other.n / n
        away, other_away = other.mean - self.mean, other.other_mean - self.other_mean
        cov = (1 - share) * self.cov
        for i in range(len(self.layers)):
            for j in range(len(self.other_layers)):
                cov[i, j] += share * other.cov[i, j]
                cov[i, j] += share * (1 - share) * np.outer(away[i], other_away[j])
        mean, other_mean = self.mean + share * away, self.other_mean + share * other_away
        return CrossMoments(self.layers, self.other_layers, n, mean, other_mean, cov)

    def __repr__(self) -> str:
        shape = f"{self.mean.shape[1]} x {self.other_mean.shape[1]}"
        return f"CrossMoments({self.n} pairs, layers {self.layers} and {self.other_layers}, dims {shape})"


def cross_view(
    view: View, other: Any, offset: int, precision: str, threads: int, progress: Progress | None
) -> CrossMoments:
    """`Site.cross_moments` of any view."""
    one_of(precision, PRECISIONS, "cross_moments: precision")
    if not is_int(offset) or abs(int(offset)) >= 1 << 62:
        raise InvalidInputError(f"cross_moments: offset is {offset!r}, not an int")
    if not isinstance(other, View):
        other = View(array_origin(other))
    elif other._origin is not view._origin:
        _check_same_rows(view, other)
    if len(other) != len(view):
        raise ShapeError(
            f"cross_moments: {view._what} has {len(view)} rows, {other._what} has {len(other)}: "
            "each row needs one beside it"
        )
    for side in (view, other):
        if not side.layers:
            raise InvalidInputError(f"{side._what}: there are no layers to multiply")
        side._origin.check_open()
    rows, other_rows = view._view.rows, other._view.rows
    if offset:
        left, right = _shifted(view, offset)
        rows, other_rows = take(rows, left), take(other_rows, right)
    if not isinstance(rows, range) and not (np.diff(rows) >= 0).all():
        # The order of pairs does not matter; that of the first is to be that of its array.
        order = compact_rows(np.argsort(rows, kind="stable"))
        rows, other_rows = take(rows, order), take(rows_array(other_rows), order)
    n = len(rows)
    size = (len(view.layers), len(other.layers), view.shape[2], other.shape[2])
    new_array(size, np.dtype(np.float64), "cross_moments: cov")
    mean, other_mean, cov = _native.cross_moments(
        _native_side(view, rows),
        _native_side(other, other_rows),
        precision,
        threads=threads,
        progress=progress,
    )
    if n:
        for i in range(size[0]):
            cov[i] /= n
    else:
        mean[...], other_mean[...], cov[...] = np.nan, np.nan, np.nan
    return CrossMoments(view.layers, other.layers, n, mean, other_mean, cov)


def _native_side(view: View, rows: Rows) -> Any:
    """Rows of a view as the core takes them, with what layers and rows are called."""
    origin = view._origin
    return origin.native, native_rows(rows), view._native_layers(), list(view.layers), origin.numbers


def _check_same_rows(view: View, other: View) -> None:
    """Raise when the rows of two sites cannot be of the same tokens, or examples."""
    if view.n_examples != other.n_examples or len(view) != len(other):
        raise ShapeError(
            f"cross_moments: {view._what} has {len(view)} rows of {view.n_examples} examples, "
            f"{other._what} has {len(other)} of {other.n_examples}: each row needs one beside it"
        )
    lengths, others = (np.diff(side._view.grouped()[1]) for side in (view, other))
    apart = np.flatnonzero(lengths != others)
    if apart.size:
        first = int(apart[0])
        [name] = view._origin.ids(rows_array(view._view.examples[first : first + 1]))
        raise InvalidInputError(
            f"cross_moments: example {name!r} has {lengths[first]} rows in {view._what} and "
            f"{others[first]} in {other._what}: their rows are not of the same tokens"
        )


def _shifted(view: View, offset: int) -> tuple[Any, Any]:
    """Positions of rows, and of those that stand `offset` after them in the same example."""
    order, ends = view._view.grouped()
    lengths = np.diff(ends)
    n = len(view)
    place = np.arange(n) - np.repeat(ends[:-1], lengths)
    room = np.repeat(lengths, lengths)
    there = np.flatnonzero((place + offset >= 0) & (place + offset < room))
    left, right = there, there + offset
    if order is not None:
        left, right = order[left], order[right]
    return compact_rows(left), compact_rows(right)
