"""Pooling as a reducer: beside others in one pass, or in parts that are merged later."""

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

_NEEDS = {"mean": ("sum",), "weighted": ("sum", "weighted_sum")}
"""What merges where the result does not: float64 sums. Other kinds merge as they are."""


@dataclass(frozen=True, eq=False)
class PoolState:
    """What is known of each example's rows so far.

    Attributes
    ----------
    kind, layers, titles : str, list of int, tuple of str
        Of what the state is.
    examples : array
        int64 ``[E]``: example numbers.
    names : list of str
        Their ids, ``[E]``.
    n_rows : array
        int64 ``[E]``.
    values : dict of str to array
        ``[n, L, D]`` by what they are, for the examples that have rows.
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
    """A reducer: one row for each example, as `Site.pool` without a mix.

    The result is a `Site` over the examples of the view. States of different examples, and of pieces of the
    same examples (``select(rows=...)``), merge; the rows of the first come before those of the second.

    Parameters
    ----------
    kind : {"mean", "max", "first", "last", "weighted"}
        As `Site.pool` has them.
    on_empty : {"raise", "zero"}
        What to do with examples that have no rows.

    Raises
    ------
    InvalidInputError
        When there is no such kind.

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
        """One native reducer for the result, one or two for what merges."""
        check_poolable(over.view)
        return _PartialJob(self._how, over) if over.partial else _WholeJob(self._how, over)

    def merge(self, a: PoolState, b: PoolState) -> PoolState:
        """Two states as one; the rows of `b` come after those of `a`.

        Raises
        ------
        InvalidInputError
            When they are of other sites, layers or kinds, or have an example twice.
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
        # Where values of each state go among those of the examples that have rows now.
        place = np.cumsum(n_rows > 0) - 1
        from_a, from_b = place[np.flatnonzero(a.n_rows)], place[to[b.n_rows > 0]]
        ahead = before[to[b.n_rows > 0]]
        with np.errstate(over="ignore", invalid="ignore"):  # Infinities cancel to NaN, as they should.
            values = _values(a, b, int((n_rows > 0).sum()), from_a, from_b, ahead)
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


def _values(
    a: PoolState,
    b: PoolState,
    n: int,
    from_a: NDArray[np.int64],
    from_b: NDArray[np.int64],
    ahead: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """The values of both states, for `n` examples; `ahead` of b's there are so many rows of a's."""
    out = {}
    for what, mine in a.values.items():
        theirs = b.values[what]
        if mine.shape[1:] != theirs.shape[1:]:
            raise InvalidInputError(f"pool: dim {mine.shape[2]} and {theirs.shape[2]} do not merge")
        if what == "weighted_sum":  # These rows are not the first of their example.
            theirs = theirs + ahead[:, None, None] * b.values["sum"]
        values = np.zeros((n, *mine.shape[1:]), mine.dtype)
        values[from_a] = mine
        new = ahead == 0
        values[from_b[new]] = theirs[new]
        both, theirs = from_b[~new], theirs[~new]
        if what in ("sum", "weighted_sum"):
            values[both] += theirs
        elif what == "max":
            values[both] = np.maximum(values[both], theirs)
        elif what == "last":
            values[both] = theirs
        out[what] = values
    return out


class _WholeJob:
    """The result straight from the native core."""

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
        so = titles(view, self._how.kind)
        backend = pooled_backend(self._out, self._how, view.layers, examples, names, so)
        assert self._over.offsets is not None
        backend.pool_source = PoolSource(view.backend, self._over.rows, self._over.offsets)
        return type(view)(backend)


class _PartialJob:
    """What merges, of the examples that have rows."""

    def __init__(self, how: PoolRecipe, over: Pass) -> None:
        assert over.offsets is not None
        self._how, self._over = how, over
        self._n_rows = np.diff(over.offsets)
        # Those without rows add nothing to the offsets, nor to what is computed.
        offset = np.concatenate([over.offsets[:1], over.offsets[1:][self._n_rows > 0]])
        shape = (len(offset) - 1, *over.view.shape[1:])
        self._values = {
            kind: new_array(
                shape, np.dtype(np.float64 if kind in ("sum", "weighted_sum") else np.float32), "pool"
            )
            for kind in _NEEDS.get(how.kind, (how.kind,))
        }
        self.specs: list[tuple[str, dict[str, Any]]] = [
            ("pool", {"kind": kind, "offset": offset, "out": out}) for kind, out in self._values.items()
        ]

    def collect(self, outputs: list[Any]) -> PoolState:
        view, how = self._over.view, self._how
        examples = rows_array(view.rowset.examples)
        names = view.backend.ids(examples)
        so = titles(view, how.kind)
        return PoolState(
            how.kind, list(view.layers), so, type(view), examples, names, self._n_rows, self._values
        )
