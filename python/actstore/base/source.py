"""The input of the native functions."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _native


class Source(NamedTuple):
    """Rows and layers of an array as arguments of the native core: ``_native.search(*source, ...)``.

    Attributes
    ----------
    array : _native.Array or array ``[n, L, D]``
        The array, on disk or in memory.
    rows : tuple of int, or array int64 ``[n]``
        A half-open range ``(start, stop)``, or row numbers.
    layers : list of int or None
        Positions of layers; None for all layers in stored order.
    """

    array: _native.Array | NDArray[Any]
    rows: tuple[int, int] | NDArray[np.int64]
    layers: list[int] | None
