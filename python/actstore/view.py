"""Some rows and layers of an array: what every verb works on, and how they are read."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arrays import FLOAT_DTYPES, as_numpy, dtype_named, new_array
from .errors import InvalidInputError, ShapeError
from .origin import Origin
from .selection import Rows, RowView, native_rows

Progress = Callable[[int, int], object]
"""Called with the rows times layers done, and in all."""

BLOCK_BYTES = 64 << 20
"""How much is held beside a result that is made piece by piece."""


class View:
    """Rows and layers of an origin; `Site` is this with everything that can be done to it.

    Parameters
    ----------
    origin : Origin
        What they are of.
    layers : sequence of int, optional
        Positions of layers; by default all.
    view : RowView, optional
        The rows; by default all.
    """

    __slots__ = ("_layers", "_origin", "_view", "layers", "name")

    def __init__(
        self, origin: Origin, layers: Sequence[int] | None = None, view: RowView | None = None
    ) -> None:
        self._origin = origin
        self._layers = list(range(len(origin.labels))) if layers is None else list(layers)
        self._view = origin.whole() if view is None else view
        self.name = origin.name
        self.layers = [origin.labels[i] for i in self._layers]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers, dim."""
        return len(self._view.rows), len(self._layers), self._array.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored; bfloat16 is ml_dtypes'."""
        return self._origin.dtype

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def axis(self) -> str:
        """What the rows are: `tokens`, another axis, or `examples`."""
        return self._origin.axis

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of this view, int64 ``[n]``, as they count in the whole store.

        Those of a pooled site are the numbers of its examples.
        """
        return self._origin.numbers_of(self._view.rows)

    @property
    def n_examples(self) -> int:
        """Examples of this view, those without rows included."""
        return len(self._view.examples)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """How a pooled site was made: kind, source, layers, ...; None for one that was written as it is."""
        return self._origin.recipe

    @property
    def about(self) -> dict[str, Any]:
        """What its writer said of the site and its layers; of a capture, where in the model they are."""
        return copy.deepcopy(dict(self._origin.about))

    def __len__(self) -> int:
        return len(self._view.rows)

    # Row by row would decode a chunk for each: read slices instead.
    __iter__ = None

    def __repr__(self) -> str:
        layers = self.layers if len(self.layers) <= 8 else f"{self.layers[:3]}...{self.layers[-1]}"
        shape = f"{list(self.shape)} {self.dtype.name}"
        return f"{type(self).__name__}({self._origin.title}, {shape}, layers {layers})"

    def read(
        self, dtype: DTypeLike | str | None = None, out: NDArray[Any] | None = None, threads: int = 0
    ) -> NDArray[Any]:
        """All of the view, ``[rows, n_layers, dim]``.

        Parameters
        ----------
        dtype : str or dtype, optional
            A float dtype to convert to while reading; by default that of `out`, or the site's.
        out : array ``[rows, n_layers, dim]``, optional
            Where to put it; best C-contiguous, else it goes through a buffer.
        threads : int
            0 means all cores.

        Returns
        -------
        array ``[rows, n_layers, dim]``
            `out`, if it was given.

        Raises
        ------
        ShapeError
            When `out` is of another shape.
        InvalidInputError
            When it would not fit in memory, or `out` and `dtype` differ.
        FormatError
            When what is on disk is damaged.
        """
        if dtype is not None:
            dtype = dtype_named(dtype, FLOAT_DTYPES, self._what)
        if out is None:
            return self._read(self._view.rows, self._layers, dtype or self.dtype, threads)
        if not isinstance(out, np.ndarray):
            raise InvalidInputError(f"{self._what}: out is a {type(out).__name__}, not a numpy array")
        if out.shape != self.shape:
            raise ShapeError(f"{self._what}: out: expected {list(self.shape)}, got {list(out.shape)}")
        if out.dtype not in FLOAT_DTYPES.values() or (dtype is not None and out.dtype != dtype):
            raise InvalidInputError(f"{self._what}: out is {out.dtype}, expected {dtype or 'a float dtype'}")
        if not out.flags.writeable:
            raise InvalidInputError(f"{self._what}: out is read-only")
        if out.flags.c_contiguous:
            self._read_into(self._view.rows, self._layers, out, threads)
            return out
        n_block = max(1, BLOCK_BYTES // max(1, out.shape[1] * out.shape[2] * out.itemsize))
        for start in range(0, len(self), n_block):
            rows = self._view.rows[start : start + n_block]
            out[start : start + n_block] = self._read(rows, self._layers, out.dtype, threads)
        return out

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a site is on disk: reading it makes a copy")
        array = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    @property
    def _what(self) -> str:
        return self._origin.what

    @property
    def _array(self) -> Any:
        return self._origin.array

    def _read(self, rows: Rows, layers: list[int], dtype: np.dtype[Any], threads: int) -> NDArray[Any]:
        out = new_array((len(rows), len(layers), self.shape[2]), dtype, self._what)
        self._read_into(rows, layers, out, threads)
        return out

    def _read_into(self, rows: Rows, layers: list[int], out: NDArray[Any], threads: int) -> None:
        self._origin.check_open()
        if out.size:
            self._array.read(native_rows(rows), self._native_layers(layers), out, threads)

    def _native_layers(self, layers: list[int] | None = None) -> list[int] | None:
        """Layer positions for the native core, which takes None for all in their order."""
        layers = self._layers if layers is None else layers
        return None if layers == list(range(self._array.shape[1])) else layers


def shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """The progress of one run as that of all, of which so much was done before."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)


def layer_weights(weights: Any, n_layers: int, what: str) -> NDArray[np.float64]:
    """A weight for each layer, float64 ``[n_layers]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When they are not as many finite numbers.
    """
    array = as_numpy(weights, what)
    if array.shape != (n_layers,):
        raise ShapeError(f"{what}: expected [{n_layers}], one for each layer, got {list(array.shape)}")
    if array.dtype.kind not in "iuf" and array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what}: expected numbers, got {array.dtype}")
    out = array.astype(np.float64)
    if not np.isfinite(out).all():
        raise InvalidInputError(f"{what}: {out[~np.isfinite(out)][0]} is not finite")
    return out


def one_of(value: object, among: Sequence[str], what: str) -> None:
    """Raise InvalidInputError unless `value` is one of these names."""
    if not isinstance(value, str) or value not in among:
        raise InvalidInputError(f"{what} is {value!r}, not one of {', '.join(among)}")
