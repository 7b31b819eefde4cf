"""Views of rows and layers of a backend, on which every operation works: selecting and reading."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .. import _native
from ..base.arrays import BFLOAT16, FLOAT_DTYPES, dtype_named, new_array, tensor_view
from ..base.selection import (
    Rows,
    index_positions,
    int_position,
    is_int,
    layer_positions,
    native_rows,
    rows_array,
    take,
)
from ..base.source import Source
from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError, NotFoundError, ShapeError
from .backend import Backend
from .indexing import example_positions, row_positions, split_key
from .rowset import RowSet

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 64 << 20
"""Temporary memory for results that are computed block by block."""

_INT64: np.dtype[np.int64] = np.dtype(np.int64)
_GATHER_ROWS = 1 << 16
"""The most rows that `View._gather` reads; they need no check that they fit in memory."""


class View:
    """Rows and layers of a backend. `Site` adds the operations.

    Parameters
    ----------
    backend : Backend
        Where the rows are.
    layers : sequence of int, optional
        Positions of layers; by default all.
    rowset : RowSet, optional
        The rows; by default all.
    """

    __slots__ = ("backend", "layer_positions", "layers", "name", "rowset")

    def __init__(
        self, backend: Backend, layers: Sequence[int] | None = None, rowset: RowSet | None = None
    ) -> None:
        self.backend = backend
        self.layer_positions = list(range(len(backend.labels))) if layers is None else list(layers)
        self.rowset = backend.whole() if rowset is None else rowset
        self.name = backend.name
        self.layers = [backend.labels[i] for i in self.layer_positions]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers, dim."""
        return len(self.rowset.rows), len(self.layer_positions), self.backend.array.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype; bfloat16 is ``ml_dtypes.bfloat16``."""
        return self.backend.dtype

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def nbytes(self) -> int:
        """Bytes of the view in memory, in the stored dtype; `Store.info` has the size on disk."""
        n, n_layers, dim = self.shape
        return n * n_layers * dim * self.dtype.itemsize

    @property
    def axis(self) -> str:
        """What the rows are: `tokens`, another axis, or `examples`."""
        return self.backend.axis

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row ids, int64 ``[n]``: row numbers in the whole store; for a pooled site, example numbers."""
        return self.backend.numbers_of(self.rowset.rows)

    @property
    def n_examples(self) -> int:
        """Number of examples in this view, empty ones included."""
        return len(self.rowset.examples)

    @property
    def ids(self) -> list[str]:
        """The ids of this view's examples, ``[n_examples]``."""
        return self.backend.ids(rows_array(self.rowset.examples))

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each example starts in this view, int64 ``[n_examples + 1]``.

        Raises
        ------
        InvalidInputError
            When rows were picked so that those of an example are not contiguous.
        """
        order, offsets = self.rowset.grouped()
        if order is not None:
            raise InvalidInputError(
                f"{self.full_name}: the rows of each example are not contiguous in this view",
                hint="select rows in ascending order",
            )
        return offsets

    def column(self, name: str) -> NDArray[Any]:
        """A column with one value per row of this view, ``[n]``.

        Parameters
        ----------
        name : str
            A column of the rows' axis, such as ``"id"``; else a column of the examples, whose value is
            repeated for each of their rows.

        Raises
        ------
        NotFoundError
            When neither has such a column.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> site = actstore.from_array(np.ones((3, 4)), [0, 2, 3], columns={"label": ["a", "b"]})
        >>> site.column("label").tolist()
        ['a', 'a', 'b']
        """
        backend = self.backend
        if backend.axis != EXAMPLES:
            try:
                return backend.column(name, self.rowset.rows)
            except NotFoundError as error:
                try:
                    values = backend.example_column(name)
                except NotFoundError:
                    raise error from None
        else:
            values = backend.example_column(name)
        return values[backend.places(self.rows)[0]]

    @property
    def recipe(self) -> dict[str, Any] | None:
        """How a derived site was computed: kind, source, layers, ...; None for any other site."""
        return self.backend.recipe

    @property
    def about(self) -> dict[str, Any]:
        """Metadata of the site and its layers; a capture records where in the model they are."""
        return copy.deepcopy(dict(self.backend.about))

    @property
    def full_name(self) -> str:
        """The site in messages: ``site 'resid' of run.act``."""
        return self.backend.what

    # ---- For the operations; not part of the public interface. ----

    @property
    def source(self) -> Source:
        """This view as arguments of native functions: array, rows, layers.

        Raises
        ------
        StorageError
            kind ``closed`` when the store is closed.
        """
        return self.source_of(self.rowset.rows)

    def source_of(self, rows: Rows, layers: Sequence[int] | None = None) -> Source:
        """As `source`, for other rows of the backend and other positions of layers."""
        backend = self.backend
        backend.check_open()
        chosen = self.layer_positions if layers is None else list(layers)
        all_layers = chosen == list(range(backend.array.shape[1]))
        return Source(backend.native, native_rows(rows), None if all_layers else chosen)

    def with_rows(self, rowset: RowSet) -> Self:
        """A view of other rows of the same backend and layers."""
        return type(self)(self.backend, self.layer_positions, rowset)

    def take(self, positions: Rows) -> Self:
        """The rows at these positions of this view."""
        return self.with_rows(self.rowset.take_rows(positions))

    def read_rows(
        self, rows: Rows, layers: list[int], dtype: np.dtype[Any], threads: int = 0
    ) -> NDArray[Any]:
        """Read rows of the backend at positions of layers, ``[len(rows), len(layers), dim]``."""
        out = new_array((len(rows), len(layers), self.shape[2]), dtype, self.full_name)
        self.read_rows_into(rows, layers, out, threads)
        return out

    def read_rows_into(self, rows: Rows, layers: list[int], out: NDArray[Any], threads: int = 0) -> None:
        """As `read_rows`, into a C-contiguous array."""
        _, native, chosen = self.source_of(rows, layers)
        if out.size:
            self.backend.array.read(native, chosen, out, threads)

    # ---- Selecting ----

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Rows, layers and dims as a numpy array of the stored dtype.

        Parameters
        ----------
        key : tuple of up to three
            Rows: int, slice, mask, list or array. Layers: a label, a list of labels or a half-open slice of
            labels. Dims: any numpy index. ``...`` stands for omitted axes. Only an int drops an axis.

        Raises
        ------
        NotFoundError
            For a label that does not exist.
        InvalidInputError
            For an index that is out of range or not an index.
        """
        if type(key) is tuple and len(key) == 2:
            quick = self._gather(*key)
            if quick is not None:
                return quick
        row, layer, dim = split_key(key, self.full_name)
        if is_int(row):
            at = int_position(row, len(self), f"{self.full_name}: row")
            positions: Rows = range(at, at + 1)
        else:
            positions = index_positions(row, len(self), f"{self.full_name}: rows")
        layers = layer_positions(layer, self.layers, self.full_name)
        all_dims = isinstance(dim, slice) and dim == slice(None)
        if not all_dims:
            self._check_dims(dim)
        out = self.read_rows(
            take(self.rowset.rows, positions), [self.layer_positions[i] for i in layers], self.dtype, 0
        )
        drop = (0 if is_int(row) else slice(None), 0 if is_int(layer) else slice(None))
        kept = out[drop]
        return kept if all_dims else kept[..., dim]

    def _gather(self, rows: Any, layer: Any) -> NDArray[Any] | None:
        """A fast path for training loops, which read arrays of rows of one layer: three times as fast.

        None for any other key, for which `__getitem__` takes the general path.
        """
        own_rows, array = self.rowset.rows, self.backend.array
        if (
            type(rows) is not np.ndarray
            or rows.dtype is not _INT64
            or rows.ndim != 1
            or not 0 < len(rows) <= _GATHER_ROWS
            or type(layer) is not int
            or layer not in self.layers
            or type(own_rows) is not range
            or type(array) is not _native.Array
        ):
            return None
        self.backend.check_open()
        out = np.empty((len(rows), array.shape[2]), self.backend.dtype)
        position = self.layer_positions[self.layers.index(layer)]
        return out if array.gather(rows, own_rows.start, own_rows.stop, position, out) else None

    def _check_dims(self, dim: Any) -> None:
        try:
            picked = np.empty(self.shape[2], bool)[dim]
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(f"{self.full_name}: dims: {error}") from error
        if np.ndim(picked) > 1:
            raise ShapeError(f"{self.full_name}: dims: expected an index of one axis")

    def select(self, layers: Any = None, examples: Any = None, rows: Any = None, row_ids: Any = None) -> Self:
        """A view of some layers, examples and rows; reads only the offsets that it needs.

        Parameters
        ----------
        layers : int, list of int or slice of labels, optional
            Labels, as in brackets.
        examples : int, str, list of these, slice or mask ``[n_examples]``, optional
            An int is the position in this view, a str the id.
        rows : slice, mask ``[n]`` or positions, optional
            Positions in this view, after `examples` was applied. All selected examples stay, perhaps without
            rows.
        row_ids : sequence of int, optional
            Row ids as results give them (``hits.rows``, ``view.rows``): row numbers in the whole store,
            whatever the view; for pooled sites example numbers. Their order is kept. Excludes `rows`.

        Returns
        -------
        Site
            With three axes, whatever was selected.

        Raises
        ------
        NotFoundError
            For a layer, an id or a row id that is not in this view.
        InvalidInputError
            For an index that is out of range or not an index, or when both `rows` and `row_ids` are given.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> site = actstore.from_array(np.arange(6.0).reshape(6, 1), [0, 3, 6], ids=["a", "b"])
        >>> second = site.select(examples="b")
        >>> second.select(rows=[0]).rows, second.select(row_ids=[5, 3]).rows
        (array([3]), array([5, 3]))
        """
        rowset, chosen = self.rowset, self.layer_positions
        if layers is not None:
            chosen = [chosen[i] for i in layer_positions(layers, self.layers, self.full_name)]
        if examples is not None:
            rowset = rowset.take_examples(example_positions(self.backend, rowset, examples, self.full_name))
        if rows is not None and row_ids is not None:
            raise InvalidInputError("select: rows= are positions, row_ids= are row ids: give one of them")
        positions: Rows | None = None
        if row_ids is not None:
            positions = row_positions(self.backend, rowset, row_ids, self.full_name)
        elif rows is not None:
            what = f"{self.full_name}: rows"
            positions = index_positions([rows] if is_int(rows) else rows, len(rowset.rows), what)
        if positions is not None:
            rowset = rowset.take_rows(positions)
        return type(self)(self.backend, chosen, rowset)

    def example(self, example: int | str) -> NDArray[Any]:
        """The rows of one example, ``[rows, n_layers, dim]``, by position or id.

        Parameters
        ----------
        example : int or str
            The position in this view, or the id.

        Raises
        ------
        NotFoundError
            When there is no such id.
        InvalidInputError
            When the position is out of range.
        """
        if not (is_int(example) or isinstance(example, str)):
            raise InvalidInputError(f"{self.full_name}: an example is an int or a str, got {example!r}")
        rows: NDArray[Any] = self.select(examples=example).read()
        return rows

    # ---- Reading ----

    def __len__(self) -> int:
        return len(self.rowset.rows)

    # Iterating row by row would decode a chunk for each row: read slices instead.
    __iter__ = None

    def __repr__(self) -> str:
        layers = self.layers if len(self.layers) <= 8 else f"{self.layers[:3]}...{self.layers[-1]}"
        shape = f"{list(self.shape)} {self.dtype.name}"
        return f"{type(self).__name__}({self.backend.title}, {shape}, layers {layers})"

    def read(self, dtype: DTypeLike | str | None = None, out: Any = None, threads: int = 0) -> Any:
        """The whole view as an array, ``[n, L, D]``.

        Parameters
        ----------
        dtype : str or dtype, optional
            A float dtype to convert to while reading; by default that of `out`, else the site's.
        out : array or torch.Tensor ``[n, L, D]``, optional
            The destination: a numpy array or a CPU tensor. A C-contiguous one is filled in place, any other
            through a buffer.
        threads : int
            0 means all cores.

        Returns
        -------
        array ``[n, L, D]``
            `out` if it was given.

        Raises
        ------
        ShapeError
            When `out` has another shape.
        InvalidInputError
            When the result would not fit in memory, or `out` and `dtype` differ.
        FormatError
            When a stored chunk is damaged.
        """
        if dtype is not None:
            dtype = dtype_named(dtype, FLOAT_DTYPES, self.full_name)
        if out is None:
            return self.read_rows(self.rowset.rows, self.layer_positions, dtype or self.dtype, threads)
        target = out if isinstance(out, np.ndarray) else tensor_view(out, f"{self.full_name}: out")
        if target.shape != self.shape:
            raise ShapeError(f"{self.full_name}: out: expected {list(self.shape)}, got {list(target.shape)}")
        if target.dtype not in FLOAT_DTYPES.values() or (dtype is not None and target.dtype != dtype):
            raise InvalidInputError(
                f"{self.full_name}: out is {target.dtype}, expected {dtype or 'a float dtype'}"
            )
        if not target.flags.writeable:
            raise InvalidInputError(f"{self.full_name}: out is read-only")
        if target.flags.c_contiguous:
            self.read_rows_into(self.rowset.rows, self.layer_positions, target, threads)
            return out
        n_block = max(1, BLOCK_BYTES // max(1, target.shape[1] * target.shape[2] * target.itemsize))
        for start in range(0, len(self), n_block):
            rows = take(self.rowset.rows, range(start, min(start + n_block, len(self))))
            target[start : start + n_block] = self.read_rows(
                rows, self.layer_positions, target.dtype, threads
            )
        return out

    def to_torch(self, dtype: Any = None, device: Any = None, threads: int = 0) -> "torch.Tensor":
        """The whole view as a tensor, ``[n, L, D]``; bfloat16 stays bfloat16.

        Parameters
        ----------
        dtype : torch.dtype, str or dtype, optional
            A float dtype to convert to while reading; by default the site's.
        device : torch.device or str, optional
            The tensor's device; by default the CPU.
        threads : int
            0 means all cores.

        Raises
        ------
        InvalidInputError
            When torch is not installed, or the tensor would not fit in memory.
        FormatError
            When a stored chunk is damaged.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> actstore.from_array(np.ones((2, 3), np.float32)).to_torch("bfloat16").dtype
        torch.bfloat16
        """
        try:
            import torch
        except ImportError as error:
            raise InvalidInputError("to_torch needs torch", hint="pip install torch") from error
        array = self.read(dtype, threads=threads)
        if array.dtype == BFLOAT16:
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        return tensor if device is None else tensor.to(device)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a site is on disk: reading it makes a copy")
        array: NDArray[Any] = self.read()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        view = self.rowset
        make, arguments, narrowed = self.backend.pickled(view, self.layer_positions)
        order = None if view.owner is not None else view.grouped()[1]
        rows = range(len(view.rows)) if narrowed else view.rows
        layers = None if narrowed else self.layer_positions
        return _rebuilt, (type(self), make, arguments, layers, (rows, view.examples, order, view.owner))


def _rebuilt(
    kind: type[View],
    make: Callable[..., Backend],
    arguments: tuple[Any, ...],
    layers: list[int] | None,
    state: tuple[Any, ...],
) -> View:
    """A view, rebuilt from its pickle."""
    rows, examples, offsets, owner = state
    return kind(make(*arguments), layers, RowSet(rows, examples, lambda: offsets, owner))
