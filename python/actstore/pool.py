"""From the rows of each example to one row: the engine of `Site.pool` and of the reducer `Pool`.

``mean``, ``max``, ``first`` and ``last`` are what they say; ``weighted`` is the position-weighted mean of
SGPT, sum_i i x_i / sum_i i over the rows i = 1, 2, ... of an example (Muennighoff, "SGPT: GPT Sentence
Embeddings for Semantic Search", 2022, arXiv:2202.08904).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import new_array
from .errors import InvalidInputError
from .layout import EXAMPLES, RECIPE_VERSION
from .memory import Known, MemoryOrigin
from .origin import Made
from .selection import Rows, compact_rows, native_rows, rows_array, take
from .view import BLOCK_BYTES, Progress, View, layer_weights, one_of, shifted

KINDS = ("mean", "max", "first", "last", "weighted")
MIXES = ("mean", "sum", "concat")
ON_EMPTY = ("raise", "zero")


@dataclass(frozen=True)
class Recipe:
    """How rows become one, checked; `mix` is a name, a weight for each layer, or None."""

    kind: str
    mix: str | tuple[float, ...] | None
    special: bool
    on_empty: str

    def json(self) -> dict[str, Any]:
        """As the attributes of a derived site hold it."""
        mix = list(self.mix) if isinstance(self.mix, tuple) else self.mix
        return {"kind": self.kind, "mix": mix, "special": self.special, "on_empty": self.on_empty}

    def labels(self, layers: Sequence[int]) -> list[int]:
        """The labels of what it leaves of these layers."""
        if self.mix is None or len(layers) == 1:
            return list(layers)
        return [0]

    def dim(self, n_layers: int, dim: int) -> int:
        """The dim of what it leaves."""
        return n_layers * dim if self.mix == "concat" else dim


def recipe(kind: str, mix: Any, n_layers: int, special: bool = True, on_empty: str = "raise") -> Recipe:
    """A recipe for so many layers.

    Raises
    ------
    InvalidInputError, ShapeError
        Naming what cannot be.
    """
    one_of(kind, KINDS, "pool: kind")
    one_of(on_empty, ON_EMPTY, "pool: on_empty")
    if not isinstance(special, bool):
        raise InvalidInputError(f"pool: special is {special!r}, not True or False")
    if isinstance(mix, str):
        one_of(mix, MIXES, "pool: mix")
    elif mix is not None:
        mix = tuple(layer_weights(mix, n_layers, "pool: mix").tolist())
    return Recipe(kind, mix, special, on_empty)


class Plan:
    """How to pool the examples of a view, any run of them at a time.

    Raises
    ------
    InvalidInputError
        When there is nothing to pool, or an example without rows.
    NotFoundError
        When special tokens are to be left out and no column says which they are.
    """

    def __init__(self, view: View, how: Recipe, threads: int) -> None:
        check_poolable(view)
        self._view, self._how, self._threads = view, how, threads
        order, offset = view._view.grouped()
        rows = view._view.rows
        if order is not None:
            rows = take(rows, compact_rows(order))
        if not how.special:
            rows, offset = _without_special(view, rows, offset)
        self._rows, self._offset = rows, offset
        if how.on_empty == "raise":
            refuse_empty(view, np.diff(offset), "" if how.special else " besides special tokens")

    @property
    def n_examples(self) -> int:
        """Examples there are."""
        return len(self._offset) - 1

    @property
    def made_of(self) -> Made:
        """The rows that are pooled."""
        return Made(self._view._origin, self._rows, self._offset)

    def compute(self, start: int, stop: int, progress: Progress | None = None) -> NDArray[np.float32]:
        """Examples `start` to `stop`, float32 ``[stop - start, L', D']``; zeros for those without rows."""
        n_examples, (_, n_layers, dim), mix = stop - start, self._view.shape, self._how.mix
        if mix is None or mix == "concat":
            # Layers lie side by side already.
            pooled = self._pooled(start, stop, progress)
            return pooled if mix is None else pooled.reshape(n_examples, 1, n_layers * dim)
        weights = np.ones(n_layers) if isinstance(mix, str) else np.array(mix)
        out = new_array((n_examples, 1, dim), np.dtype(np.float32), "pool")
        n_run = max(1, BLOCK_BYTES // (4 * n_layers * dim))
        first = int(self._offset[start])
        total = (int(self._offset[stop]) - first) * n_layers
        for at in range(start, stop, n_run):
            end = min(at + n_run, stop)
            done = (int(self._offset[at]) - first) * n_layers
            pooled = self._pooled(at, end, shifted(progress, done, total))
            mixed = np.zeros((end - at, dim))
            with np.errstate(over="ignore", invalid="ignore"):
                for i, weight in enumerate(weights.tolist()):
                    mixed += weight * pooled[:, i].astype(np.float64)
                out[at - start : end - start, 0] = mixed / n_layers if mix == "mean" else mixed
        return out

    def _pooled(self, start: int, stop: int, progress: Progress | None) -> NDArray[np.float32]:
        """float32 ``[stop - start, L, D]``, layers as they are."""
        view, ends = self._view, self._offset[start : stop + 1]
        out = new_array((stop - start, *view.shape[1:]), np.dtype(np.float32), "pool")
        rows = self._rows[int(ends[0]) : int(ends[-1])]
        if not len(rows):
            out[...] = 0
            return out
        view._origin.check_open()
        spec = {"kind": self._how.kind, "offset": ends - ends[0], "out": out}
        layers = view._native_layers()
        _native.scan(
            view._origin.native, native_rows(rows), layers, [("pool", spec)], self._threads, progress
        )
        return out


def pool_view(view: View, how: Recipe, threads: int, progress: Progress | None) -> MemoryOrigin:
    """All examples of a view, in memory."""
    plan = Plan(view, how, threads)
    values = plan.compute(0, plan.n_examples, progress)
    examples = view._view.examples
    names = view._origin.ids(rows_array(examples))
    origin = pooled_origin(values, how, view.layers, examples, names, called(view, how.kind))
    origin.made_of = plan.made_of
    return origin


def pooled_origin(
    values: NDArray[np.float32],
    how: Recipe,
    layers: Sequence[int],
    examples: Rows,
    names: Sequence[str],
    called_so: tuple[str, str, str],
) -> MemoryOrigin:
    """Pooled rows ``[E, L', D']`` of these layers, and the numbers and ids of their examples, ``[E]``."""
    told = {
        "operation": "pool",
        "version": RECIPE_VERSION,
        "source": called_so[0],
        "layers": list(layers),
        **how.json(),
    }
    known = Known(examples, names)
    return MemoryOrigin(values, how.labels(layers), known, examples, recipe=told, called=called_so)


def called(view: View, kind: str) -> tuple[str, str, str]:
    """Name, and names in messages and on show, of what is pooled of a view."""
    origin = view._origin
    return view.name, f"{origin.what} ({kind})", f"{origin.title}, {kind}"


def check_poolable(view: View) -> None:
    """Raise InvalidInputError for a view of pooled rows, or of no layers."""
    if view.axis == EXAMPLES:
        raise InvalidInputError(
            f"pool: {view._what} is pooled already: it has one row for each example",
            hint="pool the site it was made of",
        )
    if not view.layers:
        raise InvalidInputError(f"{view._what}: there are no layers to pool")


def refuse_empty(view: View, lengths: NDArray[np.int64], besides: str = "") -> None:
    """Raise InvalidInputError when an example of the view has no rows."""
    empty = np.flatnonzero(lengths == 0)
    if empty.size:
        first = rows_array(view._view.examples[int(empty[0]) : int(empty[0]) + 1])
        [name] = view._origin.ids(first)
        raise InvalidInputError(
            f"pool: {len(empty)} of {len(lengths)} examples of {view._what} have no rows{besides}, "
            f"the first is {name!r}",
            hint="on_empty='zero' gives zeros for them",
        )


def _without_special(view: View, rows: Rows, offset: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
    # Asked for first: without the column, no rows are no excuse.
    marks = view._origin.column("special", rows)
    kept = np.flatnonzero(marks == 0)
    return take(rows, compact_rows(kept)), np.searchsorted(kept, offset).astype(np.int64)
