"""One pass over a view for several reducers at once, ours and those written in Python."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import InvalidInputError
from .selection import Rows, compact_rows, native_rows, take
from .view import Progress, View


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of one layer, decoded.

    Attributes
    ----------
    layer : int
        The layer's label.
    rows : array
        int64 ``[n]``: the rows as they count in the whole store; of pooled sites, example numbers.
    positions : array
        int64 ``[n]``: where they stand in the view that is scanned.
    values : array
        float32 ``[n, D]``.
    """

    layer: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    values: NDArray[np.float32]


class Reducer(Protocol):
    """An analysis that takes rows block by block, in any number of states that merge.

    `Summary`, `Histogram`, `Moments` and `Pool` are reducers; any object with these four methods is one.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> class Largest:
    ...     def new(self):
    ...         return {}
    ...     def update(self, state, block):
    ...         state[block.layer] = max(state.get(block.layer, 0.0), float(np.abs(block.values).max()))
    ...     def merge(self, a, b):
    ...         return {layer: max(a.get(layer, 0.0), b.get(layer, 0.0)) for layer in a | b}
    ...     def finish(self, state):
    ...         return state
    >>> actstore.scan(np.array([[1.0, -3.0], [2.0, 0.0]]), [Largest()])
    [{0: 3.0}]
    """

    def new(self) -> Any:
        """A state that has seen nothing."""

    def update(self, state: Any, block: Block) -> Any:
        """Take in a block; the new state, or None when `state` was changed in place."""

    def merge(self, a: Any, b: Any) -> Any:
        """Two states as one; the rows of `b` come after those of `a`."""

    def finish(self, state: Any) -> Any:
        """The result."""


class Job(Protocol):
    """What a reducer of ours asks of one native pass."""

    specs: list[tuple[str, dict[str, Any]]]
    """Native reducers, by kind and what they take."""

    def taken(self, outputs: list[Any]) -> Any:
        """From what they gave: the result, or, of a partial pass, the state."""


@dataclass(frozen=True)
class Pass:
    """A view about to be scanned; where a reducer asks for it, its rows stand example by example."""

    view: View
    rows: Rows
    order: NDArray[np.int64] | None
    """Where in the view the rows stand, if not as they are."""
    offset: NDArray[np.int64] | None
    """Where among `rows` each example of the view begins, int64 ``[n_examples + 1]``."""
    partial: bool
    """Whether states are wanted, not results."""


class NativeReducer(ABC):
    """A reducer of ours, for which the native core does the work."""

    by_example: ClassVar[bool] = False
    """Whether it wants rows to stand example by example."""

    @abstractmethod
    def job(self, over: Pass) -> Job:
        """The work over these rows; refuses what cannot be done."""

    @abstractmethod
    def merge(self, a: Any, b: Any) -> Any:
        """Two states as one; the rows of `b` come after those of `a`."""

    @abstractmethod
    def finish(self, state: Any) -> Any:
        """The result."""


class ArraysReducer(NativeReducer):
    """A reducer of one native kind, whose state is a dict: the layers and arrays over them."""

    kind: ClassVar[str]
    """What the native core calls it."""
    result: ClassVar[type]
    """Made of a state's entries."""

    def job(self, over: Pass) -> Job:
        """One native reducer."""
        return _ArraysJob(self, over)

    def merge(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        """Two states as one.

        Raises
        ------
        InvalidInputError
            When they are of different layers.
        """
        return merged(self.kind, a, b)

    def finish(self, state: dict[str, Any]) -> Any:
        """The result."""
        return self.result(**state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _ArraysJob:
    def __init__(self, reducer: ArraysReducer, over: Pass) -> None:
        self.specs: list[tuple[str, dict[str, Any]]] = [(reducer.kind, {})]
        self._reducer, self._over = reducer, over

    def taken(self, outputs: list[Any]) -> Any:
        state = {"layers": list(self._over.view.layers), **outputs[0]}
        return state if self._over.partial else self._reducer.finish(state)


def merged(kind: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two states of an `ArraysReducer` as one.

    Raises
    ------
    InvalidInputError
        When they are of different layers.
    """
    if a["layers"] != b["layers"]:
        raise InvalidInputError(f"{kind}: layers {a['layers']} do not merge with layers {b['layers']}")
    parts = [{name: array for name, array in state.items() if name != "layers"} for state in (a, b)]
    return {"layers": a["layers"], **_native.merge_states(kind, *parts)}


class _PythonJob:
    """A reducer written in Python, called with blocks."""

    def __init__(self, reducer: Reducer, over: Pass) -> None:
        view, origin = over.view, over.view._origin
        labels, rows, order = view.layers, over.rows, over.order

        def update(state: Any, layer: int, positions: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
            at = order[positions] if order is not None else positions
            numbers = origin.numbers_of(_picked(rows, positions))
            return reducer.update(state, Block(labels[layer], numbers, at, values))

        self._reducer, self._partial = reducer, over.partial
        self.specs = [("python", {"new": reducer.new, "update": update, "merge": reducer.merge})]

    def taken(self, outputs: list[Any]) -> Any:
        return outputs[0] if self._partial else self._reducer.finish(outputs[0])


def scan_view(
    view: View, reducers: Sequence[Any], threads: int, progress: Progress | None, partial: bool
) -> list[Any]:
    """`Site.scan` of any view."""
    if not isinstance(reducers, list | tuple):
        raise InvalidInputError(
            f"scan: expected a list of reducers, got {type(reducers).__name__}", hint="scan([reducer])"
        )
    for reducer in reducers:
        _check_reducer(reducer)
    if not view.layers:
        raise InvalidInputError(f"{view._what}: there are no layers to scan")
    view._origin.check_open()
    if not reducers:
        return []
    rows, order, offset = view._view.rows, None, None
    if any(isinstance(reducer, NativeReducer) and reducer.by_example for reducer in reducers):
        order, offset = view._view.grouped()
        if order is not None:
            rows = take(rows, compact_rows(order))
    over = Pass(view, rows, order, offset, partial)
    jobs: list[Job] = [r.job(over) if isinstance(r, NativeReducer) else _PythonJob(r, over) for r in reducers]
    outputs = native_scan(over, [spec for job in jobs for spec in job.specs], threads, progress)
    found = []
    for job in jobs:
        mine, outputs = outputs[: len(job.specs)], outputs[len(job.specs) :]
        found.append(job.taken(mine))
    return found


def native_scan(
    over: Pass, specs: list[tuple[str, dict[str, Any]]], threads: int, progress: Progress | None
) -> list[Any]:
    """The native pass over some rows."""
    origin, layers = over.view._origin, over.view._native_layers()
    return _native.scan(origin.native, native_rows(over.rows), layers, specs, threads, progress)


def map_view(view: View, fn: Callable[[Block], Any], threads: int, progress: Progress | None) -> list[Any]:
    """`Site.map_blocks` of any view."""
    if not callable(fn):
        raise InvalidInputError(f"map_blocks: expected a function, got {type(fn).__name__}")
    [found] = scan_view(view, [_Mapped(fn, view)], threads, progress, False)
    return list(found)


class _Mapped:
    """Keeps what a function gives for each block, and where that block stands."""

    def __init__(self, fn: Callable[[Block], Any], view: View) -> None:
        self._fn = fn
        self._places = {label: i for i, label in reversed(list(enumerate(view.layers)))}

    def new(self) -> list[Any]:
        return []

    def update(self, state: list[Any], block: Block) -> None:
        place = int(block.rows.min()), self._places[block.layer]
        state.append((place, self._fn(block)))

    def merge(self, a: list[Any], b: list[Any]) -> list[Any]:
        return a + b

    def finish(self, state: list[Any]) -> list[Any]:
        return [value for _, value in sorted(state, key=lambda item: item[0])]


def _check_reducer(reducer: Any) -> None:
    if isinstance(reducer, type):
        raise InvalidInputError(
            f"scan: {reducer.__name__} is a class, a reducer is an object", hint=f"{reducer.__name__}()"
        )
    methods = ("new", "update", "merge", "finish")
    lacking = [name for name in methods if not callable(getattr(reducer, name, None))]
    if lacking and not isinstance(reducer, NativeReducer):
        raise InvalidInputError(f"scan: {reducer!r:.80} is no reducer, it has no {', '.join(lacking)}")


def _picked(rows: Rows, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return positions + rows.start if isinstance(rows, range) else rows[positions]
