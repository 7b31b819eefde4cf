"""A histogram of activations over powers of two: the exponents of their float32 values."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.selection import layer_positions
from ..errors import NotFoundError
from .scan import ArraysReducer, merged

_BIAS = 127
_SPECIAL = 255


@dataclass(frozen=True, eq=False, repr=False)
class HistogramResult:
    """The result of `Histogram`; ``a + b`` merges the histograms of disjoint rows.

    Attributes
    ----------
    layers : list of int
        The layers' labels, ``[L]``.
    counts : array
        uint64 ``[L, 2, 256]``: the number of values by sign (0 plus, 1 minus) and exponent bits of the
        float32. Exponent e from 1 to 254 counts ``2**(e - 127) <= |x| < 2**(e - 126)``, exponent 0 zeros and
        subnormals (``|x| < 2**-126``), exponent 255 infinities and NaN.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> [h] = actstore.scan(np.array([[-3.0, 0.5], [0.75, 1.0]]), [actstore.Histogram()])
    >>> counts, edges = h.bins(0)
    >>> counts[[0, -2, -1]], edges[[0, 1, -3, -2, -1]]
    (array([1, 2, 1], dtype=uint64), array([-4. , -2. ,  0.5,  1. ,  2. ]))
    """

    layers: list[int]
    counts: NDArray[np.uint64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """The smallest magnitude of each exponent, float64 ``[256]``: 0, 2**-126, 2**-125, ..., infinity."""
        edges = np.ldexp(1.0, np.arange(_SPECIAL + 1) - _BIAS)
        edges[0], edges[_SPECIAL] = 0.0, np.inf
        return edges

    @property
    def n_special(self) -> NDArray[np.uint64]:
        """The number of infinities and NaN in each layer, uint64 ``[L]``."""
        special: NDArray[np.uint64] = self.counts[:, :, _SPECIAL].sum(1)
        return special

    def bins(self, layer: int) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
        """The histogram of a layer's finite values, in the form of `numpy.histogram`.

        Parameters
        ----------
        layer : int
            The label of the layer.

        Returns
        -------
        counts : array
            uint64 ``[n]``, from the lowest nonempty bin to the highest; -0.0 counts in the bin below 0.
        edges : array
            float64 ``[n + 1]``: powers of two, and 0. Each bin excludes its edge of greater magnitude.

        Raises
        ------
        NotFoundError
            When there is no such layer, or no finite value in it.
        """
        [at] = layer_positions(int(layer), self.layers, "histogram")
        plus, minus = self.counts[at, 0, :_SPECIAL].copy(), self.counts[at, 1, :_SPECIAL].copy()
        counts = np.concatenate([minus[::-1], plus])
        powers = np.ldexp(1.0, np.arange(1, _SPECIAL + 1) - _BIAS)
        edges = np.concatenate([-powers[::-1], [0.0], powers])
        filled = np.flatnonzero(counts)
        if not filled.size:
            raise NotFoundError(f"histogram: layer {layer} has no finite values")
        first, last = int(filled[0]), int(filled[-1])
        return counts[first : last + 1], edges[first : last + 2]

    def __add__(self, other: "HistogramResult") -> "HistogramResult":
        if not isinstance(other, HistogramResult):
            return NotImplemented
        mine, theirs = ({"layers": h.layers, "counts": h.counts} for h in (self, other))
        return HistogramResult(**merged("histogram", mine, theirs))

    def __repr__(self) -> str:
        n = int(self.counts.sum())
        return f"HistogramResult({n} values, layers {self.layers}, {int(self.n_special.sum())} not finite)"


class Histogram(ArraysReducer[HistogramResult]):
    """A reducer: counts of each layer's values by sign and binary exponent.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.scan(np.ones((3, 4), np.float32), [actstore.Histogram()])
    [HistogramResult(12 values, layers [0], 0 not finite)]
    """

    kind = "histogram"
    result = HistogramResult
