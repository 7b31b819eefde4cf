"""Sites computed from another site and written beside it (docs/format.md, "Derived sites").

The recipe determines every row. Rows that are missing because examples were appended or a run was interrupted
are therefore computed later, without the others.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.checks import check_name
from ..base.progress import Progress
from ..disk.layout import EXAMPLES
from ..disk.parts import Part
from ..disk.recipe import RECIPE_VERSION, Derived
from ..disk.snapshot import Snapshot, load
from ..errors import InvalidInputError, ShapeError, StorageError
from ..rows.stored import StoredBackend, stored_backend
from ..rows.view import View
from .protocol import Artifact, ArtifactRows, complete

Compute = Callable[[int, int, Progress | None], NDArray[np.float32]]
"""``compute(start, stop, progress)``: the rows of examples `start` to `stop`, ``[stop - start, L, D]``."""
PoolPlanner = Callable[[View], Compute]
"""Returns the `Compute` for all rows of a site in one part; raises if they cannot be pooled."""

_RUN_BYTES = 256 << 20
_RUN_CHUNKS = 32
_OUT_BYTES = 64 << 20


class PooledArtifact(Artifact):
    """A derived site.

    Parameters
    ----------
    site : View ``[rows, n_layers, d]``
        The source: all rows, and the layers to pool.
    name : str
        The name of the derived site.
    derived : Derived
        Its recipe, labels, dim and dtype.
    plan : callable
        See `PoolPlanner`.
    """

    def __init__(self, site: View, name: str, derived: Derived, plan: PoolPlanner) -> None:
        self.name = name
        self._site, self._derived, self._plan = site, derived, plan

    def is_incomplete(self, part: Part) -> bool:
        name = self.name
        if name in part.unknown:
            raise part.unknown[name]
        existing = part.derived.get(name)
        if existing is None:
            if name in part.layout.sites or name in part.layout.axes or name in part.reader.arrays:
                raise InvalidInputError(f"out: {name!r} is taken in {part.path}", hint="choose another name")
            return True
        difference = existing.difference(self._derived)
        if difference is not None:
            what, theirs, ours = difference
            raise InvalidInputError(
                f"out: {name!r} of {part.path} was made with {what} = {theirs!r}, this call has {ours!r}",
                hint="a derived site keeps its recipe: choose another name",
            )
        return existing.rows < part.n_examples

    def prepare(self, part: Part) -> None:
        self._plan(self._in_part(part))

    def work(self, part: Part) -> int:
        source = self._in_part(part)
        return self._work(source, self._first(part), source.n_examples)

    def arrays(self, part: Part) -> list[dict[str, Any]]:
        return [] if self.name in part.derived else [array_spec(part.path, self.name, self._derived)]

    def missing(self, part: Part, threads: int, progress: Progress | None) -> Iterator[ArtifactRows]:
        source = self._in_part(part)
        compute = self._plan(source)
        for start, stop in self._runs(source, self._first(part)):
            rows = check_rows(compute(start, stop, progress), stop - start, self._derived)
            yield ArtifactRows({self.name: rows}, self._work(source, start, stop))

    def _first(self, part: Part) -> int:
        return part.derived[self.name].rows if self.name in part.derived else 0

    def _in_part(self, part: Part) -> View:
        """All rows of the source in one part."""
        snapshot = snapshot_of(self._site)
        alone = Snapshot(part.path, [part], snapshot.verify, snapshot.handle)
        return View(stored_backend(alone, self._site.name), self._site.layer_positions)

    @staticmethod
    def _work(source: View, start: int, stop: int) -> int:
        offsets = source.offsets
        return int(offsets[stop] - offsets[start]) * len(source.layers)

    def _runs(self, source: View, first: int) -> Iterator[tuple[int, int]]:
        """Runs of examples from `first` on, long enough for all cores and short enough for memory."""
        n = source.n_examples
        _, n_layers, dim = source.shape
        most = max(_RUN_BYTES, _RUN_CHUNKS * n_layers << 20)
        n_out = max(1, _OUT_BYTES // (len(self._derived.labels) * self._derived.dim * 4))
        ends = source.offsets * (n_layers * dim * source.dtype.itemsize)
        while first < n:
            stop = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
            stop = min(max(stop, first + 1), first + n_out, n)
            yield first, stop
            first = stop


def write_pooled(
    site: View,
    name: str,
    recipe: Mapping[str, Any],
    labels: Sequence[int],
    dim: int,
    plan: PoolPlanner,
    threads: int = 0,
    progress: Progress | None = None,
) -> StoredBackend:
    """Write a derived site, or its missing rows, at the newest commit of every part.

    Parameters
    ----------
    site : View ``[rows, n_layers, d]``
        The source: all rows of a site of a store.
    name : str
        The name of the derived site.
    recipe : mapping
        Everything else that determines the rows, as JSON.
    labels, dim : sequence of int, int
        The layers and the dim of the derived site, float32 ``[n_examples, len(labels), dim]``.
    plan : callable
        See `PoolPlanner`. Called for every incomplete part before anything is written, and again under the
        part's lock.
    threads, progress
        See `complete`.

    Returns
    -------
    StoredBackend
        The derived site at the newest commit.

    Raises
    ------
    InvalidInputError
        When `site` is not whole, or `name` is taken or has another recipe.
    FormatError, StorageError
        As `complete`.
    """
    snapshot = snapshot_of(site)
    snapshot.check_open()
    check_name(name, "out", reserved=(EXAMPLES,))
    _check_whole(site, snapshot)
    common = {
        "operation": "pool",
        "version": RECIPE_VERSION,
        "source": site.name,
        "layers": list(site.layers),
    }
    derived = Derived(
        json.loads(json.dumps({**common, **recipe}, allow_nan=False)),
        tuple(labels),
        0,
        dim,
        "float32",
        "raw" if site.backend.array.codec == "raw" else "blosc",
    )
    if len(set(labels)) != len(labels) or len(set(site.layers)) != len(site.layers):
        raise InvalidInputError(f"{site.full_name}: layers {site.layers}: out= needs distinct layers")
    complete(snapshot.source, PooledArtifact(site, name, derived, plan), threads, progress)
    newest = load(snapshot.source, snapshot.verify, snapshot.handle, snapshot)
    return stored_backend(newest, name)


def snapshot_of(site: View) -> Snapshot:
    """The snapshot that a stored site belongs to; InvalidInputError for a site in memory."""
    if not isinstance(site.backend, StoredBackend):
        raise InvalidInputError(f"{site.full_name} is in memory: out= writes into a store")
    return site.backend.snapshot


def write_copy(
    path: str, name: str, derived: Derived, read: Callable[[int, int], NDArray[Any]], threads: int = 0
) -> None:
    """Copy a derived site, rows ``read(start, stop)``, into another store that has the same source."""
    with contextlib.closing(_native.Writer.append_to(path, threads)) as writer:
        writer.add_arrays(json.dumps([array_spec(path, name, derived)]))
        n_block = max(1, _OUT_BYTES // (len(derived.labels) * derived.dim * 4))
        for start in range(0, derived.rows, n_block):
            stop = min(start + n_block, derived.rows)
            if writer.append({name: check_rows(read(start, stop), stop - start, derived)}):
                writer.commit(writer.state, threads)
        writer.commit(writer.state, threads)


def _check_whole(site: View, snapshot: Snapshot) -> None:
    rowset = site.rowset
    n_rows, n_examples = site.backend.array.shape[0], snapshot.examples.n_rows
    all_rows = isinstance(rowset.rows, range) and rowset.rows == range(n_rows) and rowset.owner is None
    if not all_rows or not isinstance(rowset.examples, range) or rowset.examples != range(n_examples):
        raise InvalidInputError(
            f"{site.full_name}: out= needs the whole site, so that appended examples can be added later; "
            f"this view has {len(rowset.rows)} of {n_rows} rows and {len(rowset.examples)} of "
            f"{n_examples} examples",
            hint="write the whole site and select from the result, or omit out=",
        )


def array_spec(path: str, name: str, derived: Derived) -> dict[str, Any]:
    """The array of a derived site, in the native writer's form.

    Raises
    ------
    StorageError
        kind ``exists`` when a folder of this name exists and does not belong to the store.
    """
    folder = os.path.join(path, name)
    # The writer removes the leftovers of interrupted writers, so anything still here is foreign.
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        raise StorageError(
            f"{folder} exists and does not belong to the store", kind="exists", hint="choose another name"
        )
    return {
        "name": name,
        "shape": [len(derived.labels), derived.dim],
        "dtype": derived.dtype,
        "codec": derived.codec,
        "chunk_rows": None,
        "shard_rows": None,
        "dimension_names": ["example" if derived.axis == EXAMPLES else "token", "layer", "dim"],
        "attributes": derived.attributes(),
    }


def check_rows(rows: NDArray[Any], n: int, derived: Derived) -> NDArray[Any]:
    """`n` rows of a derived site; ShapeError when they have another shape or dtype."""
    if rows.dtype.name != derived.dtype or rows.shape != (n, len(derived.labels), derived.dim):
        raise ShapeError(
            f"expected {derived.dtype} [{n}, {len(derived.labels)}, {derived.dim}], "
            f"computed {rows.dtype} {list(rows.shape)}"
        )
    return np.ascontiguousarray(rows)
