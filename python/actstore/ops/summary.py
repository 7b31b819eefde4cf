"""A summary of activations: counts, extremes, and the moments of each dim."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scan import ArraysReducer, merged


@dataclass(frozen=True, eq=False, repr=False)
class SummaryResult:
    """The result of `Summary`; ``a + b`` merges the summaries of disjoint rows.

    NaN and infinities are counted and left out of the moments.

    Attributes
    ----------
    layers : list of int
        The layers' labels, ``[L]``.
    n : array
        int64 ``[L]``: the number of rows.
    min, max : array
        float64 ``[L]``: the smallest and the largest value, infinities included; NaN without any value.
    n_nan, n_inf, n_zero : array
        uint64 ``[L]``: the number of values that are NaN, infinite or zero.
    missing : array
        uint64 ``[L, D]``: the number of values that are not finite.
    mean : array
        float64 ``[L, D]``, of the finite values.
    m2 : array
        float64 ``[L, D]``: the sum of squared deviations from the mean.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> [s] = actstore.scan(np.array([[3.0, 0.0], [4.0, np.nan]]), [actstore.Summary()])
    >>> s.mean, s.std, s.norm
    (array([[3.5, 0. ]]), array([[0.5, 0. ]]), array([[5., 0.]]))
    >>> (s + s).n, s.n_nan, s.missing
    (array([4]), array([1], dtype=uint64), array([[0, 1]], dtype=uint64))
    """

    layers: list[int]
    n: NDArray[np.int64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]
    n_nan: NDArray[np.uint64]
    n_inf: NDArray[np.uint64]
    n_zero: NDArray[np.uint64]
    missing: NDArray[np.uint64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @property
    def count(self) -> NDArray[np.int64]:
        """The number of finite values, int64 ``[L, D]``."""
        return self.n[:, None] - self.missing.astype(np.int64)

    @property
    def var(self) -> NDArray[np.float64]:
        """The variance, ddof 0, float64 ``[L, D]``; NaN where there are no values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            variance: NDArray[np.float64] = self.m2 / self.count
        return variance

    @property
    def std(self) -> NDArray[np.float64]:
        """The square root of `var`, float64 ``[L, D]``."""
        std: NDArray[np.float64] = np.sqrt(self.var)
        return std

    @property
    def norm(self) -> NDArray[np.float64]:
        """``sqrt(sum x^2)`` over the rows, float64 ``[L, D]``."""
        count = self.count
        # Without values the mean may be NaN, and the norm is 0.
        norm: NDArray[np.float64] = np.sqrt(self.m2 + count * np.where(count > 0, self.mean, 0.0) ** 2)
        return norm

    def __add__(self, other: "SummaryResult") -> "SummaryResult":
        if not isinstance(other, SummaryResult):
            return NotImplemented
        return SummaryResult(**merged("summary", _state(self), _state(other)))

    def __repr__(self) -> str:
        n = int(self.n[0]) if len(self.n) else 0
        odd = f", {int(self.n_nan.sum())} NaN, {int(self.n_inf.sum())} infinite"
        return f"SummaryResult({n} rows, layers {self.layers}, dim {self.mean.shape[1]}{odd})"


class Summary(ArraysReducer[SummaryResult]):
    """A reducer: counts, extremes, mean and variance of each layer and dim, in float64.

    States merge by the formula of Chan, Golub and LeVeque, "Algorithms for computing the sample variance"
    (1983). The result has the same bits for any number of threads, and is the same up to rounding however the
    rows are split into states.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    >>> [summary] = actstore.scan(rows, [actstore.Summary()])
    >>> summary
    SummaryResult(3 rows, layers [0, 1], dim 2, 0 NaN, 0 infinite)
    >>> summary.mean.tolist(), summary.max.tolist()
    ([[4.0, 5.0], [6.0, 7.0]], [9.0, 11.0])
    """

    kind = "summary"
    result = SummaryResult


def _state(result: SummaryResult) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(result)}
