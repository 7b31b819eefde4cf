"""The Rust core as Python sees it. Private: the public API is in the modules beside it.

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
    """An immutable snapshot of one array, the rows of all its parts in a row."""

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
        """Read the rows that an index means, among those from `start` to `stop`, into `out` ``[n, dim]``.

        False when one is out of range; then nothing is read.
        """

    def read(
        self,
        rows: tuple[int, int] | NDArray[np.int64],
        layers: Sequence[int] | None,
        out: NDArray[Any],
        threads: int = ...,
    ) -> None:
        """Rows (a half-open range or row numbers, any order) of the layer positions into `out`.

        `out` is ``[n_rows, n_layers, dim]`` for a 3-D array and ``[n_rows]`` for a 1-D one. A float
        array converts to the float dtype of `out` (bfloat16, float16, float32, float64); any
        other must be of the array's own dtype.
        """

def positions(key: NDArray[np.int64], n: int) -> tuple[int, int] | NDArray[np.int64] | None:
    """Positions among `n` that an index means: a half-open range if they are one, else a new array.

    Negative ones count from the end. None when one is out of range.
    """

def concat(arrays: Sequence[Array]) -> Array: ...

@final
class Reader:
    """One store directory at one commit (or a foreign Zarr group as it stands)."""

    def __new__(cls, path: str, verify: str = "first") -> Self: ...
    @property
    def path(self) -> str: ...
    @property
    def record(self) -> int | None:
        """The number of the record this view is of; None for a foreign group."""
    @property
    def attributes(self) -> str:
        """The root group's attributes at this commit, as JSON."""
    @property
    def state(self) -> str:
        """What the writer gave `commit`, as JSON."""
    @property
    def groups(self) -> dict[str, str]:
        """The attributes of every group but the root, as JSON, by path."""
    @property
    def arrays(self) -> list[str]:
        """Paths of all arrays, sorted: ``resid``, ``tokens/offset``, ``examples/id/bytes``."""
    def array(self, name: str) -> Array: ...
    def refresh(self) -> Reader:
        """A reader of the newest record (this one keeps its view)."""
    def usage(self) -> str:
        """JSON: ``{array: {"rows", "logical_bytes", "stored_bytes", "hole_bytes", "shards"}}``."""
    def verify(
        self,
        strict: bool = False,
        threads: int = ...,
        progress: Callable[[int, int], object] | None = None,
    ) -> str:
        """JSON: ``{"chunks", "bytes", "damaged": [...], "leftovers": [path]}``.

        Each of the damaged: ``{"array", "shard", "chunk": [row, layer, dim] | null, "kind", "message"}``.
        `progress` is called with (bytes done, bytes in all).
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
        """Make a store and publish its first, empty record.

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
        """name -> (shape with the rows appended so far, dtype)."""
    def add_arrays(self, arrays: str) -> None:
        """Add arrays (same JSON as `create`) with no rows; they are on disk after the next commit."""
    def add_groups(self, groups: str) -> None:
        """Add groups (a JSON object: attributes by path); they are on disk after the next commit.

        Raises StorageError (kind ``exists``) when a path is in use. Missing parent groups are created.
        """
    def append(self, rows: Mapping[str, NDArray[Any]]) -> bool:
        """Append rows to several arrays, all or none; True when an automatic commit is due."""
    def read(self, name: str, start: int, stop: int, out: NDArray[Any]) -> None:
        """Rows appended or committed so far (1-D arrays only)."""
    def commit(self, state: str, threads: int = ...) -> int:
        """Publish everything appended, durable on return; the record's number."""
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
    """Scores ``[nq, k]``, rows, layers, and how many scores were computed twice.

    `array` may lie in memory: C-contiguous ``[n, L, D]`` of floats. `queries` are ``[nq, 1 or L, D]`` for L
    selected layers. `scoring` has ``metric``, ``combine``, ``weights`` (float64 ``[L]`` or None),
    ``distances`` (whether scores are distances, negated), ``min_score``, ``skip_nan``, ``numbers`` (row i of
    `array` is called ``numbers[i]``, or None) and ``map`` (None, or a map of the rows: means ``[L, D]``,
    weights ``[L, R, D]`` and norms ``[n, L]`` of the selected rows, all float64). Missing: -inf, -1, -1. The
    layers are positions among those selected of the winner with ``combine="max"``, else 0.
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
    """As `search`, of examples: ``offset [E + 1]`` says which of `rows` are whose, ``bounds [nq + 1]`` which
    vectors are of which query; ``numbers`` in `scoring` are what the examples are called.
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
    """The norm of each row taken through the maps of its layers, ``[n, L]``."""

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

    Each side is an array, rows, layers, and what layers and rows of the array are called; the rows of the
    first are in the order of its array. `kind` is ``"float64"`` or ``"float32"``.
    """

def scan(
    array: Array | NDArray[Any],
    rows: tuple[int, int] | NDArray[np.int64],
    layers: Sequence[int] | None,
    reducers: Sequence[tuple[str, dict[str, Any]]],
    threads: int = ...,
    progress: Callable[[int, int], object] | None = None,
) -> list[Any]:
    """One pass for several reducers, each by its kind and what it takes; what each gives.

    ``("summary", {})`` and ``("histogram", {})`` give dicts of arrays. ``("pool", {"kind", "offset",
    "out"})`` fills ``out [E, L, D]`` for rows that stand example by example, and gives None.
    ``("moments", {"kind", "labels", "groups", "layers", "numbers"})`` gives ``n [G]``, ``mean [L, G, D]`` and
    ``second``, the sums of products of deviations, flat; `kind` is ``"diagonal"``, ``"float64"`` or
    ``"float32"``, ``labels`` uint32 ``[n]`` below ``groups`` or None, the others what layers and rows are
    called.
    ``("python", {"new", "update", "merge"})`` gives a state: ``update(state, layer_position, positions,
    values)`` with positions in `rows`.
    """

def merge_states(kind: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Two states of ``summary`` or ``histogram`` as one."""

def machine_limits(threads: int = ...) -> dict[str, float]:
    """``read_bytes_per_second`` and ``f32_flops_per_second``, measured now."""

def compact(path: str, threads: int = ..., progress: Callable[[int, int], object] | None = None) -> str:
    """JSON: ``{"bytes_before", "bytes_after", "record"}``."""

def repair(path: str) -> list[str]:
    """Write the root's zarr.json anew where it is missing; the files that were written."""

def place(path: str) -> Literal["free", "zarr", "interrupted", "rootless", "other"]:
    """What there is where a store could be."""

def check_replaceable(path: str) -> None:
    """StorageError unless the store may be replaced: nobody writes to it, nothing else is in its folder."""

def put_in_place(new: str, path: str) -> None:
    """Put a finished store in the place of another, which is removed."""

def exchange(new: str, path: str) -> None:
    """Exchange two folders, at once where the file system can."""

def build_info() -> dict[str, str]: ...
def error_kinds() -> dict[str, str]:
    """kind -> name of its class in :mod:`actstore.errors`."""
