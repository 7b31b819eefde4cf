"""A site of an open store: indexing, views and reading."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arrays import FLOAT_DTYPES, dtype_named, new_array
from .errors import InvalidInputError, NotFoundError, ShapeError
from .layout import EXAMPLES
from .selection import (
    Rows,
    RowView,
    compact_rows,
    index_positions,
    int_position,
    is_int,
    layer_positions,
    rows_array,
    take,
)
from .snapshot import Handle, Snapshot, load

_BLOCK_BYTES = 64 << 20


class Site:
    """An array ``[token, layer, dim]`` on disk, or a view of some of its rows and layers.

    Rows are indexed as numpy does, layers by their labels. Only an int drops an axis. Unlike
    numpy, two lists pick rows and layers independently of each other.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> spec = actstore.SiteSpec(n_layers=2, dim=4, dtype="float32", labels=[6, 12])
    >>> with actstore.create(path, {"resid": spec}) as w:
    ...     acts = np.arange(40, dtype="float32").reshape(5, 2, 4)
    ...     w.append({"resid": acts}, lengths=[3, 2], ids=["a", "b"])
    >>> site = actstore.open(path)["resid"]
    >>> site.shape, site.layers
    ((5, 2, 4), [6, 12])
    >>> site[1:3, 12].shape, site[-1, 6, :2]
    ((2, 4), array([32., 33.], dtype=float32))
    >>> view = site.select(layers=12, examples="b")
    >>> view.rows, view.read("float32").shape
    (array([3, 4]), (2, 1, 4))
    """

    __slots__ = ("_array", "_layers", "_snapshot", "_view", "layers", "name")

    def __init__(
        self, snapshot: Snapshot, name: str, layers: Sequence[int] | None = None, view: RowView | None = None
    ) -> None:
        layout = snapshot.layout.sites[name]
        self._snapshot = snapshot
        self._array = snapshot.array(name)
        self._layers = list(range(len(layout.labels))) if layers is None else list(layers)
        if view is None:
            columns = snapshot.examples if layout.axis == EXAMPLES else snapshot.axes[layout.axis]
            n_examples = snapshot.examples.n_rows
            view = RowView(range(self._array.shape[0]), range(n_examples), lambda: columns.offset)
        self._view = view
        self.name = name
        self.layers = [layout.labels[i] for i in self._layers]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, layers, dim."""
        return len(self._view.rows), len(self._layers), self._array.shape[2]

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored; bfloat16 is ml_dtypes'."""
        return FLOAT_DTYPES[self._array.dtype]

    @property
    def ndim(self) -> int:
        """Always 3."""
        return 3

    @property
    def axis(self) -> str:
        """What the rows are: `tokens`, another axis, or `examples`."""
        return self._snapshot.layout.sites[self.name].axis

    @property
    def rows(self) -> NDArray[np.int64]:
        """The rows of this view, int64 ``[n]``, as they count in the whole store."""
        return rows_array(self._view.rows)

    @property
    def n_examples(self) -> int:
        """Examples of this view, those without rows included."""
        return len(self._view.examples)

    def __len__(self) -> int:
        return len(self._view.rows)

    # Row by row would decode a chunk for each: read slices instead.
    __iter__ = None

    def __repr__(self) -> str:
        layers = self.layers if len(self.layers) <= 8 else f"{self.layers[:3]}...{self.layers[-1]}"
        shape = f"{list(self.shape)} {self.dtype.name}"
        return f"Site({self.name!r} of {self._snapshot.name!r}, {shape}, layers {layers})"

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Rows, layers and dims as a numpy array of the site's dtype.

        Parameters
        ----------
        key : tuple of up to three
            Rows: int, slice, mask, list or array. Layers: a label, a list of labels, a half-open
            slice of labels. Dims: whatever numpy takes. ``...`` stands for those left out.

        Raises
        ------
        NotFoundError
            For a label that is not there.
        InvalidInputError
            For an index that is out of range, or none.
        """
        tok, layer, dim = _three(key, self._what)
        if is_int(tok):
            at = int_position(tok, len(self), f"{self._what}: row")
            positions: Rows = range(at, at + 1)
        else:
            positions = index_positions(tok, len(self), f"{self._what}: rows")
        layers = layer_positions(layer, self.layers, self._what)
        try:
            picked = np.empty(self.shape[2], bool)[dim]
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(f"{self._what}: dims: {error}") from error
        if np.ndim(picked) > 1:
            raise ShapeError(f"{self._what}: dims: expected an index of one axis")
        out = self._read(take(self._view.rows, positions), [self._layers[i] for i in layers], self.dtype, 0)
        drop = (0 if is_int(tok) else slice(None), 0 if is_int(layer) else slice(None))
        kept = out[drop]
        return kept if isinstance(dim, slice) and dim == slice(None) else kept[..., dim]

    def select(self, layers: Any = None, examples: Any = None, tokens: Any = None) -> Self:
        """A view of some layers, examples and rows; reads nothing but the offsets it needs.

        Parameters
        ----------
        layers : int, list of int or slice of labels, optional
            Labels, as in brackets.
        examples : int, str, list of these, slice or mask ``[n_examples]``, optional
            An int is the position in this view, a str the id.
        tokens : slice, mask or row numbers, optional
            Relative to the view, after `examples` has been applied.

        Returns
        -------
        Site
            With three axes; it can be selected from again.

        Raises
        ------
        NotFoundError
            For a layer or an id that is not there.
        InvalidInputError
            For an index that is out of range, or none.
        """
        view, chosen = self._view, self._layers
        if layers is not None:
            chosen = [chosen[i] for i in layer_positions(layers, self.layers, self._what)]
        if examples is not None:
            view = view.take_examples(self._example_positions(examples))
        if tokens is not None:
            if is_int(tokens):
                tokens = [tokens]
            view = view.take_rows(index_positions(tokens, len(view.rows), f"{self._what}: tokens"))
        return type(self)(self._snapshot, self.name, chosen, view)

    def example(self, example: int | str) -> NDArray[Any]:
        """The rows of one example, ``[rows, n_layers, dim]``, by position or id.

        Raises
        ------
        NotFoundError
            When there is no such id.
        InvalidInputError
            When the position is out of range.
        """
        if not (is_int(example) or isinstance(example, str)):
            raise InvalidInputError(f"{self._what}: an example is an int or a str, got {example!r}")
        return self.select(examples=example).read()

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
        n_block = max(1, _BLOCK_BYTES // max(1, out.shape[1] * out.shape[2] * out.itemsize))
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
        return f"site {self.name!r} of {self._snapshot.name}"

    def _read(self, rows: Rows, layers: list[int], dtype: np.dtype[Any], threads: int) -> NDArray[Any]:
        out = new_array((len(rows), len(layers), self.shape[2]), dtype, self._what)
        self._read_into(rows, layers, out, threads)
        return out

    def _read_into(self, rows: Rows, layers: list[int], out: NDArray[Any], threads: int) -> None:
        self._snapshot.check_open()
        if out.size == 0:
            return
        if not isinstance(rows, range):
            rows = compact_rows(rows)
        native_rows = (rows.start, rows.stop) if isinstance(rows, range) else np.ascontiguousarray(rows)
        every = layers == list(range(self._array.shape[1]))
        self._array.read(native_rows, None if every else layers, out, threads)

    def _example_positions(self, key: Any) -> Rows:
        what = f"{self._what}: examples"
        if isinstance(key, str) or is_int(key):
            key = [key]
        if isinstance(key, list | tuple) or (isinstance(key, np.ndarray) and key.dtype.kind in "OUT"):
            if any(isinstance(item, str) for item in key):
                places = self._places()
                key = [self._place(item, places) if isinstance(item, str) else item for item in key]
            mask = all(isinstance(item, bool | np.bool_) for item in key)
            if not (mask or all(is_int(item) for item in key)):
                raise InvalidInputError(f"{what}: an example is an int or a str, got {key!r:.80}")
        return index_positions(key, self.n_examples, what)

    def _places(self) -> dict[int, int] | None:
        """Where in the view each example of the store is; None where no look-up is needed."""
        if isinstance(self._view.examples, range):
            return None
        numbers = self._view.examples.tolist()
        return dict(zip(reversed(numbers), range(len(numbers) - 1, -1, -1), strict=True))

    def _place(self, name: str, places: dict[int, int] | None) -> int:
        number = self._snapshot.example_number(name)
        if places is not None:
            at = places.get(number)
        else:
            examples = self._view.examples
            at = examples.index(number) if isinstance(examples, range) and number in examples else None
        if at is None:
            raise NotFoundError(f"{self._what}: example {name!r} is not in this view")
        return at

    def __reduce__(self) -> tuple[Any, ...]:
        view = self._view
        order = None if view.owner is not None else view.grouped()[1]
        state = (view.rows, view.examples, order, view.owner)
        return _reopen, (self._snapshot.source, self._snapshot.verify, self.name, self._layers, state)


def _reopen(
    source: str | list[str], verify: str, name: str, layers: list[int], state: tuple[Any, ...]
) -> Site:
    """A site in another process. Rows never move, so the view is the same whatever was added."""
    rows, examples, offset, owner = state
    return Site(load(source, verify, Handle()), name, layers, RowView(rows, examples, lambda: offset, owner))


def _three(key: Any, what: str) -> tuple[Any, Any, Any]:
    """A key for each axis, ``...`` spelled out."""
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, item in enumerate(keys) if item is Ellipsis]
    if len(dots) > 1:
        raise InvalidInputError(f"{what}: more than one '...'")
    if len(keys) - len(dots) > 3:
        raise InvalidInputError(f"{what}: {len(keys)} indices, there are 3 axes: token, layer, dim")
    at = dots[0] if dots else len(keys)
    keys[at : at + 1] = [slice(None)] * (3 - len(keys) + len(dots))
    if any(item is None for item in keys):
        raise InvalidInputError(f"{what}: None adds no axis here")
    return keys[0], keys[1], keys[2]
