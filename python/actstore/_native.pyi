"""The Python interface of the Rust core. Private: the public API is in the modules beside it.

Every function raises only the classes of :mod:`actstore.errors`, ``KeyboardInterrupt``
or ``TypeError``. ``threads=0`` means all cores. Arrays cross C-contiguous.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array",
    "Reader",
    "Writer",
    "build_info",
    "check_replaceable",
    "compact",
    "concat",
    "cross_moments",
    "error_kinds",
    "exchange",
    "machine_limits",
    "mapped_norms",
    "maxsim",
    "merge_states",
    "place",
    "positions",
    "put_in_place",
    "repair",
    "scan",
    "search",
]

@final
class Array:
    """An immutable snapshot of one array; the rows of all its parts are concatenated."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...
    @property
    def codec(self) -> str: ...
    @property
    def chunk_rows(self) -> int: ...
    @property
    def attributes(self) -> str: ...
    def gather(self, key: NDArray[np.int64], start: int, stop: int, layer: int, out: NDArray[Any]) -> bool:
        """Read the rows at `key` of the range from `start` to `stop`, in one layer, into `out` ``[n, dim]``.

        Negative entries of `key` count from `stop`. Returns False without reading when one is out of range.
        """

    def read(
        self,
        rows: tuple[int, int] | NDArray[np.int64],
        layers: Sequence[int] | None,
        out: NDArray[Any],
        threads: int = ...,
    ) -> None:
        """Read rows (a half-open range, or row numbers in any order) at positions of layers into `out`.

        `out` is ``[n_rows, n_layers, dim]`` for a 3-D array and ``[n_rows]`` for a 1-D one. A float
        array converts to the float dtype of `out` (bfloat16, float16, float32, float64). For any
        other array, `out` must have the array's own dtype.
        """

def positions(key: NDArray[np.int64], n: int) -> tuple[int, int] | NDArray[np.int64] | None:
    """The positions among `n` rows that an index array selects: a half-open range if possible, else an array.

    Negative entries count from the end. None when an entry is out of range.
    """

def concat(arrays: Sequence[Array]) -> Array: ...

@final
class Reader:
    """One store directory at one commit, or a foreign Zarr group in its present state."""

    def __new__(cls, path: str, verify: str = "first") -> Self: ...
    @property
    def path(self) -> str: ...
    @property
    def record(self) -> int | None:
        """The number of this commit's record; None for a foreign group."""
    @property
    def attributes(self) -> str:
        """The root group's attributes at this commit, as JSON."""
    @property
    def state(self) -> str:
        """The state that the writer passed to `commit`, as JSON."""
    @property
    def groups(self) -> dict[str, str]:
        """The attributes of every group but the root, as JSON, by path."""
    @property
    def arrays(self) -> list[str]:
        """Paths of all arrays, sorted: ``resid``, ``tokens/offset``, ``examples/id/bytes``."""
    def array(self, name: str) -> Array: ...
    def refresh(self) -> Reader:
        """A new reader of the newest record; this one does not change."""
    def usage(self) -> str:
        """JSON: ``{array: {"rows", "logical_bytes", "stored_bytes", "hole_bytes", "shards"}}``."""
    def verify(
        self,
        strict: bool = False,
        threads: int = ...,
        progress: Callable[[int, int], object] | None = None,
    ) -> str:
        """JSON: ``{"chunks", "bytes", "damaged": [...], "leftovers": [path]}``.

        An entry of ``damaged``: ``{"array", "shard", "chunk": [row, layer, dim] | null, "kind", "message"}``.
        `progress` is called with the bytes done and the total.
        """
    def close(self) -> None: ...

@final
class Writer:
    """The one writer of a store directory. `append` is all or nothing over its arrays."""

    @staticmethod
    def create(
        path: str,
        attributes: str,
        arrays: str,
        state: str,
        overwrite: Literal["never", "empty", "always"],
        threads: int = ...,
    ) -> Writer:
        """Create a store and publish its first, empty record.

        `attributes`: JSON object, the root group's attributes. `arrays`: JSON list of
        ``{"name", "shape": [n_layers, dim] or [], "dtype", "codec": "blosc" | "raw",
        "chunk_rows": int | null, "shard_rows": int | null, "dimension_names": [...],
        "attributes": {...}}`` (`shape` without the rows). Missing parent groups are created.
        """
    @staticmethod
    def append_to(path: str, threads: int = ...) -> Writer: ...
    @property
    def path(self) -> str: ...
    @property
    def attributes(self) -> str:
        """The root group's attributes as the next commit publishes them, as JSON."""
    def set_attributes(self, attributes: str) -> None:
        """Replace the root group's attributes (a JSON object); the next commit publishes them."""
    @property
    def state(self) -> str: ...
    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """The shape, with the rows appended so far, and the dtype of each array by name."""
    def add_arrays(self, arrays: str) -> None:
        """Add arrays (same JSON as `create`) with no rows; they are on disk after the next commit."""
    def add_groups(self, groups: str) -> None:
        """Add groups (a JSON object: attributes by path); they are on disk after the next commit.

        Raises StorageError (kind ``exists``) when a path is in use. Missing parent groups are created.
        """
    def append(self, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Append rows to several arrays, all or none; True when an automatic commit is due."""
    def read(self, name: str, start: int, stop: int, out: NDArray[Any]) -> None:
        """Read rows of a 1-D array, committed or not, into `out`."""
    def commit(self, state: str, threads: int = ...) -> int:
        """Publish all appended rows, durable on return; returns the number of the record."""
    def close(self) -> None:
        """Unlock. Uncommitted rows are discarded: commit first."""

def search(
    array: Array | NDArray[Any],
    rows: tuple[int, int] | NDArray[np.int64],
    layers: Sequence[int] | None,
    queries: NDArray[np.float32],
    k: int,
    scoring: dict[str, Any],
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], int]:
    """Scores ``[nq, k]``, row ids, layers, and the number of scores that were recomputed in float64.

    `array` is stored, or in memory: C-contiguous floats ``[n, L, D]``. `queries` are ``[nq, 1 or L, D]`` for
    L selected layers. `scoring` has ``metric``, ``combine``, ``weights`` (float64 ``[L]`` or None),
    ``distances`` (whether scores are negated distances), ``min_score``, ``skip_nan``, ``numbers`` (the row
    ids ``[n]`` of `array`, or None) and ``map`` (None, or an affine map of the rows: means ``[L, D]``,
    matrices ``[L, R, D]`` and norms ``[n, L]`` of the selected mapped rows, all float64). A missing hit has
    score -inf, row -1 and layer -1. With ``combine="max"``, a layer is the winner's position among the
    selected layers; else it is 0.
    """

def maxsim(
    array: Array | NDArray[Any],
    rows: tuple[int, int] | NDArray[np.int64],
    layers: Sequence[int] | None,
    offset: NDArray[np.int64],
    vectors: NDArray[np.float32],
    bounds: NDArray[np.int64],
    k: int,
    scoring: dict[str, Any],
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], int]:
    """As `search`, but of examples.

    Example e has the rows from ``offset[e]`` to ``offset[e + 1]`` of `rows`, query q the vectors from
    ``bounds[q]`` to ``bounds[q + 1]`` of `vectors`. ``numbers`` in `scoring` are the numbers of the examples.
    """

def mapped_norms(
    array: Array | NDArray[Any],
    rows: tuple[int, int] | NDArray[np.int64],
    layers: Sequence[int] | None,
    mean: NDArray[np.float64],
    map: NDArray[np.float64],
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> NDArray[np.float64]:
    """The norm of each mapped row, ||map (x - mean)||, ``[n, L]``."""

_Side = tuple[
    Array | NDArray[Any],
    tuple[int, int] | NDArray[np.int64],
    Sequence[int] | None,
    Sequence[int],
    NDArray[np.int64] | None,
]

def cross_moments(
    x: _Side,
    y: _Side,
    kind: str,
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Means ``[L, D]`` and ``[M, E]``, and sums of products of deviations ``[L, M, D, E]``.

    Each side is an array, its rows and layers, and its layer labels and row ids for messages; the rows of `x`
    are in ascending order. `kind` is ``"float64"`` or ``"float32"``.
    """

def scan(
    array: Array | NDArray[Any],
    rows: tuple[int, int] | NDArray[np.int64],
    layers: Sequence[int] | None,
    reducers: Sequence[tuple[str, dict[str, Any]]],
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> list[Any]:
    """Run several reducers, each given by kind and arguments, in one pass; returns the output of each.

    ``("summary", {})`` and ``("histogram", {})`` return dicts of arrays.

    ``("pool", {"kind", "offset", "out"})`` fills ``out [E, L, D]`` from rows grouped by example, and returns
    None.

    ``("moments", {"kind", "labels", "groups", "layers", "numbers"})`` returns ``n [G]``, ``mean [L, G, D]``
    and ``second``, the sums of products of deviations, flat. ``kind`` is ``"diagonal"``, ``"float64"`` or
    ``"float32"``; ``labels`` are None or the group of each row, uint32 ``[n]`` below ``groups``; ``layers``
    and ``numbers`` are the layer labels and row ids for messages.

    ``("python", {"new", "update", "merge"})`` returns a state. It calls ``update(state, layer_position,
    positions, values)`` with positions in `rows`.
    """

def merge_states(kind: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Merge two states of ``summary`` or ``histogram``."""

def machine_limits(threads: int = ...) -> dict[str, float]:
    """``read_bytes_per_second`` and ``f32_flops_per_second``, measured now."""

def compact(path: str, threads: int = ..., progress: Callable[[int, int], object] | None = None) -> str:
    """JSON: ``{"bytes_before", "bytes_after", "record"}``."""

def repair(path: str) -> list[str]:
    """Rewrite the root's zarr.json if it is missing; returns the files written."""

def place(path: str) -> Literal["free", "zarr", "interrupted", "rootless", "other"]:
    """The kind of folder at a path where a store could be."""

def check_replaceable(path: str) -> None:
    """Raise StorageError if the store has a writer or its folder has other files; else it may be replaced."""

def put_in_place(new: str, path: str) -> None:
    """Move a finished store to `path` and remove the store that was there."""

def exchange(new: str, path: str) -> None:
    """Exchange two folders, atomically if the file system supports it."""

def build_info() -> dict[str, str]: ...
def error_kinds() -> dict[str, str]:
    """The name in :mod:`actstore.errors` of each kind's class."""
