"""A site of an open store: indexing, views, and everything that is computed from it."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _native, analyses, derived, pool
from . import batches as feeding
from .errors import InvalidInputError, NotFoundError, ShapeError
from .hits import Hits
from .scan import Block, map_view, scan_view
from .search import scoring, search_view
from .selection import (
    Rows,
    RowView,
    index_positions,
    int_position,
    is_int,
    layer_positions,
    take,
)
from .shuffle import Shuffle
from .view import Progress, View
from .whiten import Whitener

if TYPE_CHECKING:
    from .torch_dataset import TorchDataset


_INT64: np.dtype[np.int64] = np.dtype(np.int64)
_QUICK_ROWS = 1 << 16
"""Rows of one layer that fit any memory."""


class Site(View):
    """An array ``[token, layer, dim]`` of a store, or a view of some of its rows and layers.

    What pooling gives is one too: ``[example, layer, dim]``, in memory or beside the site.

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

    __slots__ = ()

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
        if type(key) is tuple and len(key) == 2:
            quick = self._quick(*key)
            if quick is not None:
                return quick
        tok, layer, dim = _three(key, self._what)
        if is_int(tok):
            at = int_position(tok, len(self), f"{self._what}: row")
            positions: Rows = range(at, at + 1)
        else:
            positions = index_positions(tok, len(self), f"{self._what}: rows")
        layers = layer_positions(layer, self.layers, self._what)
        all_dims = isinstance(dim, slice) and dim == slice(None)
        if not all_dims:
            self._check_dims(dim)
        out = self._read(take(self._view.rows, positions), [self._layers[i] for i in layers], self.dtype, 0)
        drop = (0 if is_int(tok) else slice(None), 0 if is_int(layer) else slice(None))
        kept = out[drop]
        return kept if all_dims else kept[..., dim]

    def _quick(self, rows: Any, layer: Any) -> NDArray[Any] | None:
        """An array of rows, of one layer: what training loops ask for, in a third of the time.

        None when it is something else, or wrong.
        """
        view, array = self._view.rows, self._array
        if (
            type(rows) is not np.ndarray
            or rows.dtype is not _INT64
            or rows.ndim != 1
            or not 0 < len(rows) <= _QUICK_ROWS
            or type(layer) is not int
            or layer not in self.layers
            or type(view) is not range
            or type(array) is not _native.Array
        ):
            return None
        self._origin.check_open()
        out = np.empty((len(rows), array.shape[2]), self._origin.dtype)
        position = self._layers[self.layers.index(layer)]
        return out if array.gather(rows, view.start, view.stop, position, out) else None

    def _check_dims(self, dim: Any) -> None:
        try:
            picked = np.empty(self.shape[2], bool)[dim]
        except (IndexError, TypeError, ValueError) as error:
            raise InvalidInputError(f"{self._what}: dims: {error}") from error
        if np.ndim(picked) > 1:
            raise ShapeError(f"{self._what}: dims: expected an index of one axis")

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
        return type(self)(self._origin, chosen, view)

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

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        metric: Literal["dot", "cos", "l2"] = "dot",
        combine: Literal["sum", "max"] = "sum",
        weights: Sequence[float] | None = None,
        transform: Whitener | None = None,
        min_score: float | None = None,
        on_nan: Literal["raise", "skip"] = "raise",
        threads: int = 0,
        progress: Progress | None = None,
    ) -> Hits:
        """The `k` rows of this view that score best for each query; exact.

        Scores are computed in float64 in one fixed order and rounded once to float32. Rows come by score
        descending, then by row ascending. Both are the same for any batch of queries, `k`, number of
        threads, codec and machine.

        Parameters
        ----------
        queries : array ``[nq, D]``, ``[nq, L, D]`` or ``[D]``, or Site
            numpy, ml_dtypes or torch; of each query one vector for all layers, or one for each.
            bfloat16, float16 and float32 are used exactly, float64 is rounded to float32. A site's rows are
            queries too, layer by layer.
        k : int
            How many; where there are fewer, the rest is missing.
        metric : {"dot", "cos", "l2"}
            Higher is better: the dot product; that over both norms, 0 for zero vectors; minus the squared
            distance.
        combine : {"sum", "max"}
            Of the scores of several layers: their (weighted) sum, or the greatest.
        weights : sequence of float ``[L]``, optional
            One for each layer, for ``combine="sum"``.
        transform : Whitener, optional
            Score rows and queries as whitened by it. Rows stay as they are: the map is taken to the queries,
            and for cos and l2 each row has a norm, computed once and kept (`Whitener.save`).
        min_score : float, optional
            Leave out what scores less.
        on_nan : {"raise", "skip"}
            What to do with rows that have NaN.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the rows times layers done, and in all.

        Returns
        -------
        Hits
            ``scores``, ``rows`` and ``layers`` ``[nq, k]``, ids and more.

        Raises
        ------
        ShapeError
            When the queries are of another dim or number of layers.
        InvalidInputError
            For another dtype, NaN in queries or rows, or an argument that cannot be.

        Examples
        --------
        >>> import actstore, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/x.act"
        >>> rows = np.array([[1, 0], [0, 1], [1, 1]], np.float32)[:, None]
        >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 2, "float32")}) as w:
        ...     w.append({"resid": rows}, lengths=[1, 2], ids=["a", "b"])
        >>> hits = actstore.open(path)["resid"].search(np.array([0.5, 1.0]), k=2)
        >>> hits.scores.tolist(), hits.rows.tolist(), hits.ids
        ([[1.5, 1.0]], [[2, 1]], [['b', 'b']])
        """
        how = scoring(self, metric, combine, weights, transform, min_score, on_nan)
        return search_view(self, queries, k, how, threads, progress)

    maxsim = analyses.maxsim
    neighbors = analyses.neighbors
    moments = analyses.moments
    cross_moments = analyses.cross_moments

    def scan(
        self,
        reducers: Sequence[Any],
        *,
        threads: int = 0,
        progress: Progress | None = None,
        partial: bool = False,
    ) -> list[Any]:
        """Run reducers over this view, all in one pass.

        Parameters
        ----------
        reducers : list
            `Summary`, `Histogram`, `Moments`, `Pool`, or objects of your own with the methods of `Reducer`.
        threads : int
            0 means all cores. Results do not depend on it.
        progress : callable, optional
            Called with the rows times layers done, and in all.
        partial : bool
            Give states instead of results. They can be pickled, merged with ``reducer.merge(a, b)``, the
            rows of `a` before those of `b`, and finished with ``reducer.finish(state)``.

        Returns
        -------
        list
            For each reducer its result, or state.

        Raises
        ------
        InvalidInputError
            For something that is no reducer.

        Examples
        --------
        >>> import actstore, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/x.act"
        >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 2, "float32")}) as w:
        ...     w.append({"resid": rows}, lengths=[1, 2])
        >>> site = actstore.open(path)["resid"]
        >>> summary, means = site.scan([actstore.Summary(), actstore.Pool("mean")])
        >>> summary.mean.tolist(), means.shape
        ([[4.0, 5.0], [6.0, 7.0]], (2, 2, 2))
        """
        return scan_view(self, reducers, threads, progress, partial)

    def map_blocks(
        self, fn: Callable[[Block], Any], *, threads: int = 0, progress: Progress | None = None
    ) -> list[Any]:
        """What a function gives for each block of decoded rows of one layer.

        Blocks are decoded in parallel; `fn` is called by one thread at a time.

        Parameters
        ----------
        fn : callable
            Takes a `Block`: ``layer``, ``rows`` and ``positions`` ``[n]``, ``values`` float32 ``[n, D]``.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the rows times layers done, and in all.

        Returns
        -------
        list
            In the order of rows, then of layers.

        Examples
        --------
        >>> import actstore, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/x.act"
        >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 2, "float32")}) as w:
        ...     w.append({"resid": rows}, lengths=[3])
        >>> actstore.open(path)["resid"].map_blocks(lambda block: (block.layer, float(block.values.sum())))
        [(0, 27.0), (1, 39.0)]
        """
        return map_view(self, fn, threads, progress)

    def pool(
        self,
        kind: Literal["mean", "max", "first", "last", "weighted"],
        *,
        layers: Any = None,
        mix: Literal["mean", "sum", "concat"] | Sequence[float] | None = None,
        special: bool = True,
        on_empty: Literal["raise", "zero"] = "raise",
        out: str | None = None,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> "Site":
        """One row for each example: a site over the examples of this view.

        Its rows are called by the numbers of the examples in the whole store.

        Parameters
        ----------
        kind : {"mean", "max", "first", "last", "weighted"}
            Of the rows of an example, in the order of this view. ``"weighted"`` is the position-weighted
            mean of SGPT, sum_i i x_i / sum_i i for rows i = 1, 2, ... (Muennighoff 2022, arXiv:2202.08904).
        layers : int, list of int or slice of labels, optional
            As `select` has them; by default those of the view.
        mix : {"mean", "sum", "concat"} or sequence of float ``[L]``, optional
            Of several layers make one: their mean, sum or sum with these weights, or one as wide as all
            of them. It has label 0, or that of the only layer there was. By default layers stay.
        special : bool
            Whether rows count whose column `special` is set.
        on_empty : {"raise", "zero"}
            What to do with examples that have no rows.
        out : str, optional
            Write it beside the site, under this name, in bounded memory, for a whole site only. What is
            there already, by the same recipe, is not computed again. By default it is kept in memory.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the rows times layers done, and in all.

        Returns
        -------
        Site
            float32 ``[n_examples, L', D']``.

        Raises
        ------
        InvalidInputError
            When the site is pooled already, an example has no rows, or an argument cannot be.
        NotFoundError
            When ``special=False`` and there is no column `special`.

        Examples
        --------
        >>> import actstore, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/x.act"
        >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
        >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 2, "float32")}) as w:
        ...     w.append({"resid": rows}, lengths=[1, 2], ids=["a", "b"])
        >>> docs = actstore.open(path)["resid"].pool("mean")
        >>> docs.shape, docs.example("b").tolist()
        ((2, 2, 2), [[[6.0, 7.0], [8.0, 9.0]]])
        """
        view = self if layers is None else self.select(layers=layers)
        pool.check_poolable(view)
        how = pool.recipe(kind, mix, len(view.layers), special, on_empty)
        if out is None:
            return type(self)(pool.pool_view(view, how, threads, progress))
        labels, dim = how.labels(view.layers), how.dim(*view.shape[1:])
        return derived.write_pooled(
            view,
            out,
            how.json(),
            labels,
            dim,
            lambda source: pool.Plan(source, how, threads).compute,
            threads,
            progress,
        )

    batches = feeding.batches

    def torch_dataset(
        self,
        batch_size: int = 4096,
        *,
        shuffle: Shuffle = False,
        seed: int = 0,
        dtype: DTypeLike | str | None = None,
        columns: Sequence[str] | None = None,
        drop_last: bool = False,
        reservoir: int | None = None,
        prefetch: int = 2,
        threads: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> "TorchDataset":
        """This view as a dataset of batches, for ``DataLoader(dataset, batch_size=None)``.

        Parameters
        ----------
        batch_size : int
            Rows of a batch.
        shuffle, seed, dtype, drop_last, reservoir, prefetch, threads
            As those of `batches`.
        columns : list of str, optional
            Columns of the rows' axis or of their examples; a batch is then a dict.
        rank, world_size : int, optional
            Among how many processes the rows are shared out, and which this is; by default those of
            ``torch.distributed``, else the environment's ``RANK`` and ``WORLD_SIZE``.

        Returns
        -------
        TorchDataset
            Each row once an epoch, over all ranks and workers.

        Raises
        ------
        InvalidInputError
            When torch is not installed, or an option cannot be.
        """
        from .torch_dataset import torch_dataset  # imports torch

        return torch_dataset(
            self,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            dtype=dtype,
            columns=columns,
            drop_last=drop_last,
            reservoir=reservoir,
            prefetch=prefetch,
            threads=threads,
            rank=rank,
            world_size=world_size,
        )

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
        number = self._origin.example_number(name)
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
        make, arguments, narrowed = self._origin.pickled(view, self._layers)
        order = None if view.owner is not None else view.grouped()[1]
        rows = range(len(view.rows)) if narrowed else view.rows
        layers = None if narrowed else self._layers
        return _remade, (make, arguments, layers, (rows, view.examples, order, view.owner))


def _remade(
    make: Callable[..., Any], arguments: tuple[Any, ...], layers: list[int] | None, state: tuple[Any, ...]
) -> Site:
    """A site in another process."""
    rows, examples, offset, owner = state
    return Site(make(*arguments), layers, RowView(rows, examples, lambda: offset, owner))


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
