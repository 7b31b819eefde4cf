"""Pooling: one row per example.

``mean`` and ``max`` are taken per dim over the rows of an example; ``first`` and ``last`` are single rows;
``weighted`` is the position-weighted mean of SGPT, sum_i i x_i / sum_i i over the rows i = 1, 2, ... of an
example (Muennighoff, "SGPT: GPT Sentence Embeddings for Semantic Search", 2022, arXiv:2202.08904).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..artifacts.pooled import write_pooled
from ..artifacts.protocol import ArtifactKind, register
from ..base.arrays import new_array
from ..base.checks import at_least, layer_weights, one_of
from ..base.progress import Progress, shifted
from ..base.selection import Rows, compact_rows, rows_array, take
from ..disk.layout import EXAMPLES
from ..disk.recipe import RECIPE_VERSION
from ..disk.snapshot import Snapshot
from ..errors import InvalidInputError
from ..rows.backend import PoolSource
from ..rows.memory import KnownIds, MemoryBackend
from ..rows.stored import stored_backend
from ..rows.view import BLOCK_BYTES, View

KINDS = ("mean", "max", "first", "last", "weighted")
KIND_ALIASES = {
    "cls": "first",
    "lasttoken": "last",
    "last_token": "last",
    "weightedmean": "weighted",
    "weighted_mean": "weighted",
}
"""The names that sentence-transformers gives to the kinds."""
MIXES = ("mean", "sum", "concat")
ON_EMPTY = ("raise", "zero")


@dataclass(frozen=True)
class PoolRecipe:
    """The checked arguments of pooling; `mix` is a name, a weight per layer, or None."""

    kind: str
    mix: str | tuple[float, ...] | None
    special: bool
    on_empty: str
    skip_first: int = 0

    def json(self) -> dict[str, Any]:
        """The recipe's entries in the attributes of a derived site."""
        mix = list(self.mix) if isinstance(self.mix, tuple) else self.mix
        return {
            "kind": self.kind,
            "mix": mix,
            "special": self.special,
            "skip_first": self.skip_first,
            "on_empty": self.on_empty,
        }

    def labels(self, layers: Sequence[int]) -> list[int]:
        """The labels of the result, given those of the source."""
        if self.mix is None or len(layers) == 1:
            return list(layers)
        return [0]

    def dim(self, n_layers: int, dim: int) -> int:
        """The dim of the result."""
        return n_layers * dim if self.mix == "concat" else dim


def kind_name(kind: object, what: str = "pool: kind") -> str:
    """The name of a kind of pooling, given by name or alias; InvalidInputError for any other value."""
    name = KIND_ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    one_of(name, KINDS, what)
    assert isinstance(name, str)
    return name


def recipe(
    kind: str,
    mix: Any,
    n_layers: int,
    special: bool = True,
    on_empty: str = "raise",
    skip_first: int = 0,
) -> PoolRecipe:
    """Check the arguments of pooling `n_layers` layers.

    Raises
    ------
    InvalidInputError, ShapeError
        When an argument is invalid; the message names it.
    """
    kind = kind_name(kind)
    one_of(on_empty, ON_EMPTY, "pool: on_empty")
    if not isinstance(special, bool):
        raise InvalidInputError(f"pool: special is {special!r}, not True or False")
    if isinstance(mix, str):
        one_of(mix, MIXES, "pool: mix")
    elif mix is not None:
        mix = tuple(layer_weights(mix, n_layers, "pool: mix").tolist())
    return PoolRecipe(kind, mix, special, on_empty, at_least(0, skip_first, "pool: skip_first"))


class PoolPlan:
    """Pools runs of consecutive examples of a view.

    Raises
    ------
    InvalidInputError
        When the view is pooled already or has no layers; with ``on_empty="raise"``, when an example has no
        rows.
    NotFoundError
        When special tokens are left out and there is no column `special`.
    """

    def __init__(self, view: View, how: PoolRecipe, threads: int) -> None:
        check_poolable(view)
        self._view, self._how, self._threads = view, how, threads
        order, offset = view.rowset.grouped()
        rows = view.rowset.rows
        if order is not None:
            rows = take(rows, compact_rows(order))
        if not how.special:
            rows, offset = _without_special(view, rows, offset)
        if how.skip_first:
            rows, offset = _without_first(rows, offset, how.skip_first)
        self._rows, self._offsets = rows, offset
        if how.on_empty == "raise":
            left_out = "" if how.special else " besides special tokens"
            left_out += f" after the first {how.skip_first}" if how.skip_first else ""
            refuse_empty(view, np.diff(offset), left_out)

    @property
    def n_examples(self) -> int:
        """The number of examples."""
        return len(self._offsets) - 1

    @property
    def pool_source(self) -> PoolSource:
        """The rows that are pooled into each example."""
        return PoolSource(self._view.backend, self._rows, self._offsets)

    def compute(self, start: int, stop: int, progress: Progress | None = None) -> NDArray[np.float32]:
        """Examples `start` to `stop`, float32 ``[stop - start, L', D']``; zeros for those without rows."""
        n_examples, (_, n_layers, dim), mix = stop - start, self._view.shape, self._how.mix
        if mix is None or mix == "concat":
            # The layers of an example are contiguous, so concatenating them is a reshape.
            pooled = self._pooled(start, stop, progress)
            return pooled if mix is None else pooled.reshape(n_examples, 1, n_layers * dim)
        weights = np.ones(n_layers) if isinstance(mix, str) else np.array(mix)
        out = new_array((n_examples, 1, dim), np.dtype(np.float32), "pool")
        n_run = max(1, BLOCK_BYTES // (4 * n_layers * dim))
        first = int(self._offsets[start])
        total = (int(self._offsets[stop]) - first) * n_layers
        for at in range(start, stop, n_run):
            end = min(at + n_run, stop)
            done = (int(self._offsets[at]) - first) * n_layers
            pooled = self._pooled(at, end, shifted(progress, done, total))
            mixed = np.zeros((end - at, dim))
            with np.errstate(over="ignore", invalid="ignore"):
                for i, weight in enumerate(weights.tolist()):
                    mixed += weight * pooled[:, i].astype(np.float64)
                out[at - start : end - start, 0] = mixed / n_layers if mix == "mean" else mixed
        return out

    def _pooled(self, start: int, stop: int, progress: Progress | None) -> NDArray[np.float32]:
        """Each layer pooled separately, float32 ``[stop - start, L, D]``."""
        view, ends = self._view, self._offsets[start : stop + 1]
        out = new_array((stop - start, *view.shape[1:]), np.dtype(np.float32), "pool")
        rows = self._rows[int(ends[0]) : int(ends[-1])]
        if not len(rows):
            out[...] = 0
            return out
        spec = {"kind": self._how.kind, "offset": ends - ends[0], "out": out}
        _native.scan(*view.source_of(rows), [("pool", spec)], self._threads, progress)
        return out


def pool_in_memory(view: View, how: PoolRecipe, threads: int, progress: Progress | None) -> MemoryBackend:
    """Pool all examples of a view in memory."""
    plan = PoolPlan(view, how, threads)
    values = plan.compute(0, plan.n_examples, progress)
    examples = view.rowset.examples
    names = view.backend.ids(rows_array(examples))
    backend = pooled_backend(values, how, view.layers, examples, names, titles(view, how.kind))
    backend.pool_source = plan.pool_source
    return backend


def pooled_backend(
    values: NDArray[np.float32],
    how: PoolRecipe,
    layers: Sequence[int],
    examples: Rows,
    names: Sequence[str],
    titled: tuple[str, str, str],
) -> MemoryBackend:
    """A backend of pooled rows ``[E, L', D']``; `examples`, `names`: their numbers and ids, ``[E]``."""
    full_recipe = {
        "operation": "pool",
        "version": RECIPE_VERSION,
        "source": titled[0],
        "layers": list(layers),
        **how.json(),
    }
    ids = KnownIds(examples, names)
    return MemoryBackend(values, how.labels(layers), ids, examples, recipe=full_recipe, titles=titled)


def titles(view: View, kind: str) -> tuple[str, str, str]:
    """The `name`, `what` and `title` of the backend of a pooled view."""
    origin = view.backend
    return view.name, f"{origin.what} ({kind})", f"{origin.title}, {kind}"


def check_poolable(view: View) -> None:
    """Raise InvalidInputError for a view of pooled rows, or of no layers."""
    if view.axis == EXAMPLES:
        raise InvalidInputError(
            f"pool: {view.full_name} is pooled already, or was given without offsets: each row is an example",
            hint="pool its source, or pass the array's offsets",
        )
    if not view.layers:
        raise InvalidInputError(f"{view.full_name}: there are no layers to pool")


def refuse_empty(view: View, lengths: NDArray[np.int64], besides: str = "") -> None:
    """Raise InvalidInputError when an example of the view has no rows."""
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        first = rows_array(view.rowset.examples[int(empty[0]) : int(empty[0]) + 1])
        [name] = view.backend.ids(first)
        raise InvalidInputError(
            f"pool: {len(empty)} of {len(lengths)} examples of {view.full_name} have no rows{besides}, "
            f"the first is {name!r}",
            hint="on_empty='zero' gives zeros for them",
        )


def _without_special(view: View, rows: Rows, offset: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
    # Look the column up even for an empty view, so that a missing column always raises.
    marks = view.backend.column("special", rows)
    kept = np.flatnonzero(marks == 0)
    return take(rows, compact_rows(kept)), np.searchsorted(kept, offset).astype(np.int64)


def _without_first(rows: Rows, offsets: NDArray[np.int64], n: int) -> tuple[Rows, NDArray[np.int64]]:
    lengths = np.diff(offsets)
    position = np.arange(len(rows)) - np.repeat(offsets[:-1], lengths)
    kept = np.flatnonzero(position >= n)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.maximum(lengths - n, 0))])
    return take(rows, compact_rows(kept)), ends


V = TypeVar("V", bound=View)


def pool(
    self: V,
    kind: str,
    *,
    layers: Any = None,
    mix: Literal["mean", "sum", "concat"] | Sequence[float] | None = None,
    special: bool = True,
    skip_first: int = 0,
    on_empty: Literal["raise", "zero"] = "raise",
    out: str | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> V:
    """Pool the rows of each example into one: a site over the examples of this view.

    The row ids of the result are example numbers in the whole store.

    Parameters
    ----------
    kind : {"mean", "max", "first", "last", "weighted"}
        How to pool the rows of an example, in the order of this view. ``"weighted"`` is the
        position-weighted mean of SGPT, sum_i i x_i / sum_i i for rows i = 1, 2, ... (Muennighoff 2022,
        arXiv:2202.08904). "cls", "lasttoken" and "weightedmean" are accepted too.
    layers : int, list of int or slice of labels, optional
        As in `select`; by default those of the view.
    mix : {"mean", "sum", "concat"} or sequence of float ``[L]``, optional
        Combine several layers into one of label 0: their mean, their sum, their concatenation, or their sum
        with these weights. A single layer keeps its label. By default, layers stay separate.
    special : bool
        Whether to include rows whose column `special` is set.
    skip_first : int
        Leave out this many rows at the start of each example, not counting special rows that are left out.
    on_empty : {"raise", "zero"}
        Whether an example without rows raises an error or becomes zeros.
    out : str, optional
        Write the result beside the site under this name, in bounded memory; for a whole site only. If a site
        of this name and recipe exists, only its missing rows are computed. By default the result is in
        memory.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    Site
        float32 ``[n_examples, L', D']``.

    Raises
    ------
    InvalidInputError
        When the site is pooled already, an example has no rows, or an argument is invalid; with `out`, also
        when this is not a whole site of a store, or the name is taken or has another recipe.
    NotFoundError
        When ``special=False`` and there is no column `special`.
    FormatError, StorageError
        When the store cannot be written: it is a foreign Zarr group, or is being written (kind ``locked``).

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    >>> docs = actstore.from_array(rows, [0, 1, 3], ids=["a", "b"]).pool("mean")
    >>> docs.shape, docs.example("b").tolist()
    ((2, 2, 2), [[[6.0, 7.0], [8.0, 9.0]]])
    """
    view = self if layers is None else self.select(layers=layers)
    check_poolable(view)
    how = recipe(kind, mix, len(view.layers), special, on_empty, skip_first)
    if out is None:
        return type(self)(pool_in_memory(view, how, threads, progress))
    labels, dim = how.labels(view.layers), how.dim(*view.shape[1:])
    backend = write_pooled(
        view,
        out,
        how.json(),
        labels,
        dim,
        lambda source: PoolPlan(source, how, threads).compute,
        threads,
        progress,
    )
    return type(self)(backend)


def _derived_names(snapshot: Snapshot) -> Sequence[str]:
    return list(snapshot.derived)


def _incomplete_derived(snapshot: Snapshot) -> Mapping[str, str | None]:
    return {name: None for name, coverage in snapshot.derived.items() if not coverage.usable}


def _complete_derived(snapshot: Snapshot, name: str, threads: int, progress: Progress | None) -> None:
    own = snapshot.derived[name].site.recipe
    pool(
        View(stored_backend(snapshot, own["source"])),
        own["kind"],
        layers=own["layers"],
        mix=own["mix"],
        special=own["special"],
        skip_first=own.get("skip_first", 0),
        on_empty=own["on_empty"],
        out=name,
        threads=threads,
        progress=progress,
    )


register(ArtifactKind("derived site", _derived_names, _incomplete_derived, _complete_derived))
