"""One pass over a view for several reducers, native ones and ones written in Python."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.progress import Progress
from ..base.selection import Rows, compact_rows, take
from ..errors import InvalidInputError
from ..rows.view import View

State = TypeVar("State")
Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
Name = TypeVar("Name")


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Decoded rows of one layer.

    Attributes
    ----------
    layer : int
        The label of the layer.
    rows : array
        int64 ``[n]``: row ids, which count in the whole store; for pooled sites, example numbers.
    positions : array
        int64 ``[n]``: positions in the view that is scanned.
    values : array
        float32 ``[n, D]``.
    """

    layer: int
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    values: NDArray[np.float32]


class Reducer(Protocol[State, Result_co]):
    """An analysis that takes rows block by block, in states that merge.

    `Summary`, `Histogram`, `Moments` and `Pool` are reducers; so is any object with these four methods.

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
    >>> actstore.scan(np.array([[1.0, -3.0], [2.0, 0.0]]), Largest())
    {0: 3.0}
    """

    def new(self) -> State:
        """A state before any rows."""

    def update(self, state: State, block: Block) -> State | None:
        """Add a block; return the new state, or None when `state` was changed in place."""

    def merge(self, a: State, b: State) -> State:
        """Two states as one; the rows of `b` come after those of `a`."""

    def finish(self, state: State) -> Result_co:
        """The result."""


class Job(Protocol):
    """The work of one reducer in a native pass."""

    specs: list[tuple[str, dict[str, Any]]]
    """The native reducers to run, by kind and arguments."""

    def collect(self, outputs: list[Any]) -> Any:
        """The result, or the state in a partial pass, from the outputs of the native reducers."""


@dataclass(frozen=True)
class Pass:
    """A view about to be scanned; its rows are grouped by example if a reducer needs that."""

    view: View
    rows: Rows
    order: NDArray[np.int64] | None
    """Positions of `rows` in the view; None when they are in the order of the view."""
    offsets: NDArray[np.int64] | None
    """Where each example of the view starts in `rows`, int64 ``[n_examples + 1]``."""
    partial: bool
    """Whether the pass returns states instead of results."""


class NativeReducer(ABC, Generic[State, Result]):
    """A reducer that runs in the native core."""

    by_example: ClassVar[bool] = False
    """Whether it needs rows grouped by example."""

    @abstractmethod
    def job(self, over: Pass) -> Job:
        """Its work in a pass over these rows; raises if it cannot reduce them."""

    @abstractmethod
    def merge(self, a: State, b: State) -> State:
        """Two states as one; the rows of `b` come after those of `a`."""

    @abstractmethod
    def finish(self, state: State) -> Result:
        """The result."""


class ArraysReducer(NativeReducer[dict[str, Any], Result]):
    """A reducer of one native kind; its state is a dict of layers and of arrays over the layers."""

    kind: ClassVar[str]
    """Its name in the native core."""
    result: ClassVar[type]
    """Constructed from the entries of a state."""

    def job(self, over: Pass) -> Job:
        """One native reducer."""
        return _ArraysJob(self, over)

    def merge(self, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
        """Two states as one.

        Raises
        ------
        InvalidInputError
            When their layers differ.
        """
        return merged(self.kind, a, b)

    def finish(self, state: dict[str, Any]) -> Result:
        """The result."""
        result: Result = self.result(**state)
        return result

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _ArraysJob:
    def __init__(self, reducer: ArraysReducer[Any], over: Pass) -> None:
        self.specs: list[tuple[str, dict[str, Any]]] = [(reducer.kind, {})]
        self._reducer, self._over = reducer, over

    def collect(self, outputs: list[Any]) -> Any:
        state = {"layers": list(self._over.view.layers), **outputs[0]}
        return state if self._over.partial else self._reducer.finish(state)


def merged(kind: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two states of an `ArraysReducer` as one.

    Raises
    ------
    InvalidInputError
        When their layers differ.
    """
    if a["layers"] != b["layers"]:
        raise InvalidInputError(f"{kind}: layers {a['layers']} do not merge with layers {b['layers']}")
    parts = [{name: array for name, array in state.items() if name != "layers"} for state in (a, b)]
    return {"layers": a["layers"], **_native.merge_states(kind, *parts)}


class _PythonJob:
    """A reducer written in Python, called with blocks."""

    def __init__(self, reducer: Reducer[Any, Any], over: Pass) -> None:
        view, origin = over.view, over.view.backend
        labels, rows, order = view.layers, over.rows, over.order

        def update(state: Any, layer: int, positions: NDArray[np.int64], values: NDArray[np.float32]) -> Any:
            at = order[positions] if order is not None else positions
            numbers = origin.numbers_of(_rows_at(rows, positions))
            return reducer.update(state, Block(labels[layer], numbers, at, values))

        self._reducer, self._partial = reducer, over.partial
        self.specs = [("python", {"new": reducer.new, "update": update, "merge": reducer.merge})]

    def collect(self, outputs: list[Any]) -> Any:
        return outputs[0] if self._partial else self._reducer.finish(outputs[0])


@overload
def scan(
    self: View,
    reducers: NativeReducer[Any, Result],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> Result: ...
@overload
def scan(
    self: View, reducers: Reducer[Any, Result], *, threads: int = 0, progress: Progress | None = None
) -> Result: ...
@overload
def scan(
    self: View,
    reducers: tuple[NativeReducer[Any, A], NativeReducer[Any, B]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> tuple[A, B]: ...
@overload
def scan(
    self: View,
    reducers: tuple[NativeReducer[Any, A], NativeReducer[Any, B], NativeReducer[Any, C]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> tuple[A, B, C]: ...
@overload
def scan(
    self: View,
    reducers: list[NativeReducer[Any, Result]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> list[Result]: ...
@overload
def scan(
    self: View,
    reducers: Mapping[Name, NativeReducer[Any, Result]],
    *,
    threads: int = 0,
    progress: Progress | None = None,
) -> dict[Name, Result]: ...
@overload
def scan(
    self: View,
    reducers: Sequence[Any],
    *,
    threads: int = 0,
    progress: Progress | None = None,
    partial: bool = False,
) -> list[Any]: ...
@overload
def scan(
    self: View,
    reducers: Mapping[Name, Any],
    *,
    threads: int = 0,
    progress: Progress | None = None,
    partial: bool = False,
) -> dict[Name, Any]: ...
@overload
def scan(
    self: View, reducers: Any, *, threads: int = 0, progress: Progress | None = None, partial: bool = False
) -> Any: ...
def scan(
    self: View, reducers: Any, *, threads: int = 0, progress: Progress | None = None, partial: bool = False
) -> Any:
    """Run reducers over this view, all in one pass.

    Parameters
    ----------
    reducers : reducer, or list, tuple or dict of reducers
        `Summary`, `Histogram`, `Moments`, `Pool`, or your own objects with the methods of `Reducer`.
    threads : int
        0 means all cores. Results do not depend on it.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.
    partial : bool
        Return states instead of results. States can be pickled, merged with ``reducer.merge(a, b)``, the rows
        of `a` before those of `b`, and finished with ``reducer.finish(state)``.

    Returns
    -------
    result, or list, tuple or dict of results
        In the form of `reducers`.

    Raises
    ------
    InvalidInputError
        For an object that is not a reducer, a view without layers, or as the reducers raise.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> site = actstore.from_array(np.arange(12, dtype=np.float32).reshape(3, 2, 2), [0, 1, 3])
    >>> summary, means = site.scan([actstore.Summary(), actstore.Pool("mean")])
    >>> summary.mean.tolist(), means.shape
    ([[4.0, 5.0], [6.0, 7.0]], (2, 2, 2))
    >>> site.scan({"all": actstore.Summary()})["all"].n.tolist()
    [3, 3]
    """
    if isinstance(reducers, Mapping):
        results = _scan(self, list(reducers.values()), threads, progress, partial)
        return dict(zip(reducers, results, strict=True))
    if isinstance(reducers, list | tuple):
        results = _scan(self, reducers, threads, progress, partial)
        return tuple(results) if isinstance(reducers, tuple) else results
    return _scan(self, [reducers], threads, progress, partial)[0]


def _scan(
    view: View, reducers: Sequence[Any], threads: int, progress: Progress | None, partial: bool
) -> list[Any]:
    for reducer in reducers:
        _check_reducer(reducer)
    if not view.layers:
        raise InvalidInputError(f"{view.full_name}: there are no layers to scan")
    view.backend.check_open()
    if not reducers:
        return []
    rows, order, offsets = view.rowset.rows, None, None
    if any(isinstance(reducer, NativeReducer) and reducer.by_example for reducer in reducers):
        order, offsets = view.rowset.grouped()
        if order is not None:
            rows = take(rows, compact_rows(order))
    over = Pass(view, rows, order, offsets, partial)
    jobs: list[Job] = [r.job(over) if isinstance(r, NativeReducer) else _PythonJob(r, over) for r in reducers]
    specs = [spec for job in jobs for spec in job.specs]
    outputs = _native.scan(*view.source_of(rows), specs, threads, progress)
    results = []
    for job in jobs:
        own, outputs = outputs[: len(job.specs)], outputs[len(job.specs) :]
        results.append(job.collect(own))
    return results


def map_blocks(
    self: View, fn: Callable[[Block], Result], *, threads: int = 0, progress: Progress | None = None
) -> list[Result]:
    """The results of a function on each block of decoded rows of one layer.

    Blocks are decoded in parallel; `fn` is called by one thread at a time.

    Parameters
    ----------
    fn : callable
        Takes a `Block`: ``layer``, ``rows`` and ``positions`` ``[n]``, ``values`` float32 ``[n, D]``.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    list
        One result per block, sorted by the smallest row id in the block, then by layer.

    Raises
    ------
    InvalidInputError
        When `fn` is not callable, or the view has no layers.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> site = actstore.from_array(np.arange(12, dtype=np.float32).reshape(3, 2, 2))
    >>> site.map_blocks(lambda block: (block.layer, float(block.values.sum())))
    [(0, 27.0), (1, 39.0)]
    """
    if not callable(fn):
        raise InvalidInputError(f"map_blocks: expected a function, got {type(fn).__name__}")
    [results] = _scan(self, [_BlockMap(fn, self)], threads, progress, False)
    return list(results)


class _BlockMap:
    """Collects the results of a function, with the place of each block."""

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
            f"scan: {reducer.__name__} is a class, expected an instance", hint=f"{reducer.__name__}()"
        )
    methods = ("new", "update", "merge", "finish")
    absent = [name for name in methods if not callable(getattr(reducer, name, None))]
    if absent and not isinstance(reducer, NativeReducer):
        raise InvalidInputError(f"scan: {reducer!r:.80} is not a reducer: it has no {', '.join(absent)}")


def _rows_at(rows: Rows, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    return positions + rows.start if isinstance(rows, range) else rows[positions]
