"""Covariances between the dims of two sites, row by row."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import new_array
from ..base.checks import one_of
from ..base.progress import Progress
from ..base.selection import Rows, compact_rows, is_int, rows_array, take
from ..errors import InvalidInputError, ShapeError
from ..rows.memory import array_backend
from ..rows.view import View
from .moments import PRECISIONS


@dataclass(frozen=True, eq=False, repr=False)
class CrossMoments:
    """Covariances between two sets of dims; ``a + b`` merges those of disjoint sets of pairs.

    Attributes
    ----------
    layers, other_layers : list of int
        The layers' labels, ``[L]`` and ``[M]``.
    n : int
        Number of pairs of rows.
    mean, other_mean : array
        float64 ``[L, D]`` and ``[M, E]``.
    cov : array
        float64 ``[L, M, D, E]``: sum_i (x_i - mean x) (y_i - mean y)^T / n, ddof 0.

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
        shift, other_shift = other.mean - self.mean, other.other_mean - self.other_mean
        cov = (1 - share) * self.cov
        for i in range(len(self.layers)):
            for j in range(len(self.other_layers)):
                cov[i, j] += share * other.cov[i, j]
                cov[i, j] += share * (1 - share) * np.outer(shift[i], other_shift[j])
        mean, other_mean = self.mean + share * shift, self.other_mean + share * other_shift
        return CrossMoments(self.layers, self.other_layers, n, mean, other_mean, cov)

    def __repr__(self) -> str:
        shape = f"{self.mean.shape[1]} x {self.other_mean.shape[1]}"
        return f"CrossMoments({self.n} pairs, layers {self.layers} and {self.other_layers}, dims {shape})"


def cross_moments(
    self: View,
    other: Any,
    *,
    lag: int = 0,
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    progress: Progress | None = None,
) -> CrossMoments:
    """Covariances between the dims of this view and those of another, over pairs of rows.

    Parameters
    ----------
    other : Site or array ``[n, E]`` or ``[n, M, E]``
        One row for each row of this view, of the same token or example. A different site must have equally
        many rows in each example. For an array or a view of the same site, only the number of rows is
        checked.
    lag : int
        Pair each row of this view with the row of `other` that is `lag` places later in the same example;
        rows without such a partner are left out. A negative `lag` pairs it with an earlier row.
    precision, threads, progress
        See `Site.moments`.

    Returns
    -------
    CrossMoments
        ``n``, ``mean`` ``[L, D]``, ``other_mean`` ``[M, E]`` and ``cov`` float64 ``[L, M, D, E]``, ddof 0.

    Raises
    ------
    ShapeError
        When the two sides have different numbers of rows or of examples.
    InvalidInputError
        When the rows of an example differ in number, rows have NaN or infinities, `lag` or `precision` is
        invalid, or the result would not fit in memory.

    Notes
    -----
    Linear maps between layers are fitted to these moments: "Jump to Conclusions" (Din et al. 2023,
    arXiv:2303.09435) and, with `lag`, "Future Lens" (Pal et al. 2023, arXiv:2311.04897).

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[[1], [2]], [[3], [4]], [[5], [9]]], np.float32)
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 1, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[3])
    >>> site = actstore.open(path)["resid"]
    >>> site.select(layers=0).cross_moments(site.select(layers=1)).cov.round(3).tolist()
    [[[[4.667]]]]
    >>> site.cross_moments(site, lag=1).n
    2
    """
    one_of(precision, PRECISIONS, "cross_moments: precision")
    if not is_int(lag) or abs(int(lag)) >= 1 << 62:
        raise InvalidInputError(f"cross_moments: lag is {lag!r}, not an int")
    if not isinstance(other, View):
        other = View(array_backend(other))
    elif other.backend is not self.backend:
        _check_same_rows(self, other)
    if len(other) != len(self):
        raise ShapeError(
            f"cross_moments: {self.full_name} has {len(self)} rows, {other.full_name} has {len(other)}: "
            "rows are paired one to one"
        )
    for side in (self, other):
        if not side.layers:
            raise InvalidInputError(f"{side.full_name}: there are no layers to multiply")
        side.backend.check_open()
    rows, other_rows = self.rowset.rows, other.rowset.rows
    if lag:
        left, right = _lagged(self, lag)
        rows, other_rows = take(rows, left), take(other_rows, right)
    if not isinstance(rows, range) and not (np.diff(rows) >= 0).all():
        # The order of pairs does not matter: sort them so that this side is read in order.
        order = compact_rows(np.argsort(rows, kind="stable"))
        rows, other_rows = take(rows, order), take(rows_array(other_rows), order)
    n = len(rows)
    size = (len(self.layers), len(other.layers), self.shape[2], other.shape[2])
    new_array(size, np.dtype(np.float64), "cross_moments: cov")
    mean, other_mean, cov = _native.cross_moments(
        _native_side(self, rows),
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
    return CrossMoments(self.layers, other.layers, n, mean, other_mean, cov)


def _native_side(view: View, rows: Rows) -> Any:
    """The native arguments for rows of a view; error messages name its labels and row ids."""
    return *view.source_of(rows), list(view.layers), view.backend.numbers


def _check_same_rows(view: View, other: View) -> None:
    """Raise unless two sites have equal numbers of examples, and of rows in each example."""
    if view.n_examples != other.n_examples or len(view) != len(other):
        raise ShapeError(
            f"cross_moments: {view.full_name} has {len(view)} rows in {view.n_examples} examples, "
            f"{other.full_name} has {len(other)} rows in {other.n_examples}: rows are paired one to one"
        )
    lengths, others = (np.diff(side.rowset.grouped()[1]) for side in (view, other))
    different = np.flatnonzero(lengths != others)
    if different.size:
        first = int(different[0])
        [name] = view.backend.ids(rows_array(view.rowset.examples[first : first + 1]))
        raise InvalidInputError(
            f"cross_moments: example {name!r} has {lengths[first]} rows in {view.full_name} and "
            f"{others[first]} in {other.full_name}: their rows belong to different tokens"
        )


def _lagged(view: View, lag: int) -> tuple[Any, Any]:
    """Positions of rows, and of their partners `lag` places later in the same example."""
    order, ends = view.rowset.grouped()
    lengths = np.diff(ends)
    n = len(view)
    place = np.arange(n) - np.repeat(ends[:-1], lengths)
    length = np.repeat(lengths, lengths)
    left = np.flatnonzero((place + lag >= 0) & (place + lag < length))
    right = left + lag
    if order is not None:
        left, right = order[left], order[right]
    return compact_rows(left), compact_rows(right)
