"""Pooling as a reducer, which shares a pass with other reducers and has states that merge."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import new_array
from ..base.selection import compact_rows, rows_array
from ..errors import InvalidInputError
from ..rows.backend import PoolSource
from ..rows.view import View
from .pool import PoolRecipe, check_poolable, pooled_backend, recipe, refuse_empty, titles
from .scan import Job, NativeReducer, Pass

_PARTIAL_SUMS = {"mean": ("sum",), "weighted": ("sum", "weighted_sum")}
"""The float64 sums in the states of kinds whose results do not merge. Results of other kinds merge."""


@dataclass(frozen=True, eq=False)
class PoolState:
    """The partially pooled rows of examples.

    Attributes
    ----------
    kind : str
        The kind of pooling.
    layers : list of int
        The layers' labels, ``[L]``.
    titles : tuple of str
        The `name`, `what` and `title` of the result's backend.
    site_class : type
        The class of the result.
    examples : array
        int64 ``[E]``: example numbers.
    names : list of str
        Their ids, ``[E]``.
    n_rows : array
        int64 ``[E]``: the number of rows pooled so far.
    values : dict of str to array
        ``[n, L, D]`` by the kind of pooling or the name of a partial sum, for the n examples that have rows.
    """

    kind: str
    layers: list[int]
    titles: tuple[str, str, str]
    site_class: type[View]
    examples: NDArray[np.int64]
    names: list[str]
    n_rows: NDArray[np.int64]
    values: dict[str, NDArray[Any]]


class Pool(NativeReducer[PoolState, Any]):
    """A reducer: pool the rows of each example into one, as `Site.pool` does without `mix`.

    The result is a `Site` over the examples of the view. States of different examples, and of pieces of the
    same examples (``select(rows=...)``), merge; the rows of the first come before those of the second.

    Parameters
    ----------
    kind : {"mean", "max", "first", "last", "weighted"}
        See `Site.pool`.
    on_empty : {"raise", "zero"}
        Whether an example without rows raises an error or becomes zeros.

    Raises
    ------
    InvalidInputError
        For an unknown `kind` or `on_empty`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    >>> pooled, summary = actstore.scan(rows, [actstore.Pool("mean"), actstore.Summary()], offsets=[0, 2, 3])
    >>> pooled.read().tolist()
    [[[2.0, 3.0], [4.0, 5.0]], [[8.0, 9.0], [10.0, 11.0]]]
    """

    by_example = True

    def __init__(self, kind: str, on_empty: str = "raise") -> None:
        self._how = recipe(kind, None, 0, on_empty=on_empty)

    def job(self, over: Pass) -> Job:
        """One native reducer for the result, or one or two for a state."""
        check_poolable(over.view)
        return _PartialJob(self._how, over) if over.partial else _WholeJob(self._how, over)

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """Two states as one; the rows of `b` come after those of `a`.

        Raises
        ------
        InvalidInputError
            When the states differ in site, layers, kind or dim, or one has an example twice.
        """
        for what, mine, theirs in (
            ("kind", a.kind, b.kind),
            ("layers", a.layers, b.layers),
            ("site", a.titles[0], b.titles[0]),
        ):
            if mine != theirs:
                raise InvalidInputError(f"pool: states of {what} {mine!r} and {theirs!r} do not merge")
        for state in (a, b):
            if len(np.unique(state.examples)) != len(state.examples):
                raise InvalidInputError("pool: a state that has an example twice does not merge")
        number_of = dict(zip(a.examples.tolist(), range(len(a.examples)), strict=True))
        new = np.array([e not in number_of for e in b.examples.tolist()], bool)
        n, n_new = len(a.examples), int(new.sum())
        to = np.empty(len(b.examples), np.int64)
        to[new] = np.arange(n, n + n_new)
        to[~new] = [number_of[e] for e in b.examples[~new].tolist()]
        before = np.concatenate([a.n_rows, np.zeros(n_new, np.int64)])
        n_rows = before.copy()
        n_rows[to] += b.n_rows
        names = a.names + [name for name, is_new in zip(b.names, new.tolist(), strict=True) if is_new]
        merged = replace(
            a, examples=np.concatenate([a.examples, b.examples[new]]), names=names, n_rows=n_rows
        )
        # The positions of each state's values among the merged ones, which exist for examples with rows.
        place = np.cumsum(n_rows > 0) - 1
        to_a, to_b = place[np.flatnonzero(a.n_rows)], place[to[b.n_rows > 0]]
        ahead = before[to[b.n_rows > 0]]
        with np.errstate(over="ignore", invalid="ignore"):  # Infinities cancel to NaN, as they should.
            values = _merge_values(a, b, int((n_rows > 0).sum()), to_a, to_b, ahead)
        return replace(merged, values=values)

    def finish(self, state: PoolState) -> Any:
        """The pooled site.

        Raises
        ------
        InvalidInputError
            When an example has no rows and `on_empty` is "raise".
        """
        empty = np.flatnonzero(state.n_rows == 0)
        if empty.size and self._how.on_empty == "raise":
            raise InvalidInputError(
                f"pool: {len(empty)} of {len(state.n_rows)} examples have no rows, "
                f"the first is {state.names[empty[0]]!r}",
                hint="on_empty='zero' gives zeros for them",
            )
        n = state.n_rows[state.n_rows > 0].astype(np.float64)[:, None, None]
        values = state.values
        with np.errstate(over="ignore", invalid="ignore"):
            if state.kind == "mean":
                rows = values["sum"] / n
            elif state.kind == "weighted":
                rows = values["weighted_sum"] / (n * (n + 1) / 2)
            else:
                rows = values[state.kind]
            out = np.zeros((len(state.n_rows), *rows.shape[1:]), np.float32)
            out[state.n_rows > 0] = rows
        how, examples = replace(self._how, kind=state.kind), compact_rows(state.examples)
        return state.site_class(pooled_backend(out, how, state.layers, examples, state.names, state.titles))

    def __repr__(self) -> str:
        return f"Pool({self._how.kind!r}, on_empty={self._how.on_empty!r})"


def _merge_values(
    a: PoolState,
    b: PoolState,
    n: int,
    to_a: NDArray[np.int64],
    to_b: NDArray[np.int64],
    ahead: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """The values of both states for `n` examples; `ahead` counts the rows of `a` before those of `b`."""
    out = {}
    for what, mine in a.values.items():
        theirs = b.values[what]
        if mine.shape[1:] != theirs.shape[1:]:
            raise InvalidInputError(f"pool: dim {mine.shape[2]} and {theirs.shape[2]} do not merge")
        if what == "weighted_sum":  # sum_i (ahead + i) x_i = ahead sum_i x_i + sum_i i x_i
            theirs = theirs + ahead[:, None, None] * b.values["sum"]
        values = np.zeros((n, *mine.shape[1:]), mine.dtype)
        values[to_a] = mine
        new = ahead == 0
        values[to_b[new]] = theirs[new]
        both, theirs = to_b[~new], theirs[~new]
        if what in ("sum", "weighted_sum"):
            values[both] += theirs
        elif what == "max":
            values[both] = np.maximum(values[both], theirs)
        elif what == "last":
            values[both] = theirs
        out[what] = values
    return out


class _WholeJob:
    """Pools all rows in one native reducer, whose output is the result."""

    def __init__(self, how: PoolRecipe, over: Pass) -> None:
        assert over.offsets is not None
        if how.on_empty == "raise":
            refuse_empty(over.view, np.diff(over.offsets))
        self._how, self._over = how, over
        shape = (len(over.offsets) - 1, *over.view.shape[1:])
        self._out = new_array(shape, np.dtype(np.float32), "pool")
        self.specs: list[tuple[str, dict[str, Any]]] = [
            ("pool", {"kind": how.kind, "offset": over.offsets, "out": self._out})
        ]

    def collect(self, outputs: list[Any]) -> Any:
        view = self._over.view
        examples = view.rowset.examples
        names = view.backend.ids(rows_array(examples))
        titled = titles(view, self._how.kind)
        backend = pooled_backend(self._out, self._how, view.layers, examples, names, titled)
        assert self._over.offsets is not None
        backend.pool_source = PoolSource(view.backend, self._over.rows, self._over.offsets)
        return type(view)(backend)


class _PartialJob:
    """Computes a state that merges, for the examples that have rows."""

    def __init__(self, how: PoolRecipe, over: Pass) -> None:
        assert over.offsets is not None
        self._how, self._over = how, over
        self._n_rows = np.diff(over.offsets)
        # Examples without rows have neither offsets nor values in the native reducers.
        offset = np.concatenate([over.offsets[:1], over.offsets[1:][self._n_rows > 0]])
        shape = (len(offset) - 1, *over.view.shape[1:])
        self._values = {
            kind: new_array(
                shape, np.dtype(np.float64 if kind in ("sum", "weighted_sum") else np.float32), "pool"
            )
            for kind in _PARTIAL_SUMS.get(how.kind, (how.kind,))
        }
        self.specs: list[tuple[str, dict[str, Any]]] = [
            ("pool", {"kind": kind, "offset": offset, "out": out}) for kind, out in self._values.items()
        ]

    def collect(self, outputs: list[Any]) -> PoolState:
        view, how = self._over.view, self._how
        examples = rows_array(view.rowset.examples)
        names = view.backend.ids(examples)
        titled = titles(view, how.kind)
        return PoolState(
            how.kind, list(view.layers), titled, type(view), examples, names, self._n_rows, self._values
        )
