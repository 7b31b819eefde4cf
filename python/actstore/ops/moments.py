"""Means, variances and covariances of rows, of all of them or by group."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import as_numpy, new_array
from ..base.checks import one_of
from ..base.progress import Progress
from ..base.selection import layer_positions
from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError, NotFoundError, ShapeError
from ..rows.view import View
from .scan import Job, NativeReducer, Pass, scan

PRECISIONS = ("float64", "float32")


@dataclass(frozen=True, eq=False, repr=False)
class MomentsResult:
    """Means and covariances of rows; ``a + b`` merges the moments of disjoint rows.

    Groups add an axis in front: ``n [G]``, ``mean [G, L, D]``, ``var [G, L, D]``,
    ``cov [G, L, D, D]``.

    Attributes
    ----------
    layers : list of int
        The layers' labels, ``[L]``.
    n : int, or array int64 ``[G]``
        Number of rows.
    mean : array
        float64 ``[L, D]``; NaN where there are no rows.
    var : array
        float64 ``[L, D]``: the variance, ddof 0.
    cov : array or None
        float64 ``[L, D, D]``: the covariance, ddof 0; None with ``cov=False``.
    groups : array or None
        The groups, ``[G]``, ascending.
    dtype : str
        The stored dtype of the rows.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> m = actstore.scan(np.array([[1.0, 2.0], [3.0, 6.0]]), actstore.Moments())
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
        """The moments of some layers, named as in `Site.select`."""
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
    """Merge by Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983)."""
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
    # The coarser dtype limits the accuracy of the values.
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
    """``n [G]``, ``mean``, ``var`` and ``cov`` of both; `to_a`, `to_b`: where the groups of each go."""
    grouped = a.groups is not None
    parts = []
    for n, to, result in ((n_a, to_a, a), (n_b, to_b, b)):
        count = np.zeros(n_groups, np.int64)
        count[to] = n
        parts.append((count, to, result))
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
            (int(count[g]), result, place[side][g])
            for side, (count, _, result) in enumerate(parts)
            if count[g] and g in place[side]
        ]
        if not here:
            continue
        n, one, at = here[0]
        mean[g] = one.mean[at] if grouped else one.mean
        var[g] = one.var[at] if grouped else one.var
        if cov is not None and one.cov is not None:
            cov[g] = one.cov[at] if grouped else one.cov
        for n_other, other, at in here[1:]:
            share = n_other / (n + n_other)
            shift = (other.mean[at] if grouped else other.mean) - mean[g]
            mean[g] += share * shift
            other_var = other.var[at] if grouped else other.var
            var[g] += share * (other_var - var[g]) + share * (1 - share) * shift**2
            if cov is not None and other.cov is not None:
                other_cov = other.cov[at] if grouped else other.cov
                for layer in range(shape[0]):  # One layer at a time bounds the temporary memory.
                    between = np.outer(shift[layer], shift[layer])
                    between *= share * (1 - share)
                    cov[g, layer] *= 1 - share
                    cov[g, layer] += share * other_cov[layer]
                    cov[g, layer] += between
    if cov is not None:
        var = np.diagonal(cov, axis1=-2, axis2=-1).copy()
    return total, mean, var, cov


UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""The unit roundoff of each dtype: the largest relative error of rounding to it."""


class Moments(NativeReducer[MomentsResult, MomentsResult]):
    """A reducer: the mean and the covariance of each layer, accurate to the last digits of float64.

    Parameters
    ----------
    cov : bool
        Whether to compute covariances ``[L, D, D]``, or only variances.
    by : str or array, optional
        Compute the moments of each group of rows: ``"position"`` (of a row in its example), ``"example"``, a
        column of the rows' axis or of their examples, or an array ``[n_rows]`` of integers or strings.
    precision : {"float64", "float32"}
        The arithmetic of products: float64 throughout, or float32 within blocks of 256 rows whose sums are
        added in float64, which is about twice as fast and accurate to about six digits.

    Raises
    ------
    InvalidInputError
        For an unknown precision; in a scan, when rows have NaN or infinities.

    Notes
    -----
    Each block of rows is centered at its own mean before products are taken, and blocks merge by the formula
    of Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983), so nothing cancels
    however far from zero the values are. The covariance matrix exists once, whatever the number of threads.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 1.0]], np.float32)
    >>> m = actstore.scan(rows, actstore.Moments(cov=False, by=np.array([7, 7, 9])))
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
        """Two states as one; a state is a result."""
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
            # Raises before the pass if the covariances do not fit in memory.
            new_array(size, np.dtype(np.float64), "moments: cov")
        kind = precision if cov else "diagonal"
        self.specs: list[tuple[str, dict[str, Any]]] = [
            (
                "moments",
                {
                    "kind": kind,
                    "labels": labels,
                    "groups": n_groups,
                    "layers": list(view.layers),
                    "numbers": view.backend.numbers,
                },
            )
        ]
        self._cov, self._precision = cov, precision

    def collect(self, outputs: list[Any]) -> MomentsResult:
        """The moments from the sums of the native reducer."""
        [sums] = outputs
        n, mean, second = sums["n"], sums["mean"], sums["second"]
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
            # The squares of values above 1e19 overflow float32.
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
    """The group of each row of a view, ``[n]``.

    Raises
    ------
    NotFoundError
        When there is no such column.
    ShapeError, InvalidInputError
        When there is not one integer or string for each row.
    """
    n, origin = len(view), view.backend
    if isinstance(by, str):
        examples, positions = origin.places(view.rows)
        if by in ("position", "example"):
            return positions if by == "position" else examples
        if origin.axis == EXAMPLES:
            values = origin.example_column(by)[examples]
        else:
            try:
                values = origin.column(by, view.rowset.rows)
            except NotFoundError as error:
                try:
                    values = origin.example_column(by)[examples]
                except NotFoundError as other:
                    raise NotFoundError(f"moments: by: {error}; {other}") from None
    else:
        values = as_numpy(by, "moments: by")
        if values.shape != (n,):
            raise ShapeError(f"moments: by: expected [{n}], one for each row, got {list(values.shape)}")
    if values.dtype.kind == "O" and all(isinstance(value, str) for value in values.tolist()):
        values = values.astype(np.str_)
    if values.dtype.kind not in "iubU":
        raise InvalidInputError(f"moments: by: groups are integers or strings, got {values.dtype}")
    return values


def moments(
    self: View,
    cov: bool = True,
    *,
    by: Any = None,
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    progress: Progress | None = None,
) -> MomentsResult:
    """The mean and the covariance of the rows of each layer, in one pass; ``+`` merges two.

    Parameters
    ----------
    cov : bool
        Whether to compute covariances ``[L, D, D]``, or only variances.
    by : str or array, optional
        Compute the moments of each group of rows: ``"position"`` (of a row in its example), ``"example"``, a
        column of the rows' axis or of their examples, or an array ``[n_rows]`` of integers or strings.
    precision : {"float64", "float32"}
        The arithmetic of products: float64 throughout, or float32 within blocks of 256 rows whose sums are
        added in float64, which is about twice as fast and accurate to about six digits.
    threads : int
        0 means all cores. Results do not depend on it.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    MomentsResult
        ``n``, ``mean`` float64 ``[L, D]``, ``var`` ``[L, D]`` and ``cov`` ``[L, D, D]``, ddof 0; groups add
        an axis in front.

    Raises
    ------
    InvalidInputError
        When rows have NaN or infinities (the message says how many and names the first), or when the result
        would not fit in memory.
    NotFoundError, ShapeError
        When there is no such column, or not one group per row.

    Notes
    -----
    Each block of rows is centered at its own mean before products are taken, and blocks merge by the formula
    of Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983): accurate to the last
    digits of float64 however far from zero the values are. The covariance matrix exists once, whatever the
    number of threads.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[[1, 0]], [[3, 0]], [[5, 3]]], np.float32)
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 2, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[1, 2])
    >>> site = actstore.open(path)["resid"]
    >>> m = site.moments()
    >>> m.n, m.mean.tolist(), m.cov.round(3).tolist()
    (3, [[3.0, 1.0]], [[[2.667, 2.0], [2.0, 2.0]]])
    >>> site.moments(cov=False, by="position").mean[:, 0].tolist()
    [[2.0, 0.0], [5.0, 3.0]]
    """
    return scan(self, Moments(cov, by, precision), threads=threads, progress=progress)
