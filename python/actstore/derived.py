"""Writing what was computed from a site beside it, a row for each example (docs/format.md, "Derived sites").

It goes through the one writer and its commits, part by part. A recipe says what each row is, so rows
that are missing, because examples were appended or a run was interrupted, are computed later and alone.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import ActstoreError, FormatError, InvalidInputError, ShapeError, StorageError
from .layout import EXAMPLES, RECIPE_VERSION, Derived, check_name
from .origin import StoredOrigin, stored_origin
from .parts import Part, read_part
from .snapshot import Snapshot, load
from .view import Progress

if TYPE_CHECKING:
    from .site import Site

Compute = Callable[[int, int, Progress | None], NDArray[np.float32]]
"""``compute(start, stop, progress)``: the rows of examples `start` to `stop`, ``[stop - start, L, D]``."""
Plan = Callable[["Site"], Compute]
"""Gets a whole site of one part; refuses what cannot be computed before anything is written."""

_RUN_BYTES = 256 << 20
_RUN_CHUNKS = 32
_OUT_BYTES = 64 << 20
_COMMIT_SECONDS = 30.0


def write_pooled(
    site: "Site",
    name: str,
    recipe: Mapping[str, Any],
    labels: Sequence[int],
    dim: int,
    plan: Plan,
    threads: int = 0,
    progress: Progress | None = None,
) -> "Site":
    """Write a derived site, or what is missing of it, at the newest commit of every part.

    Parameters
    ----------
    site : Site ``[rows, n_layers, d]``
        What it is made of: all rows of a store, of some of its layers.
    name : str
        What to call it.
    recipe : mapping
        What else decides the rows, as JSON holds it.
    labels, dim : sequence of int, int
        Of the array to write, ``[n_examples, len(labels), dim]`` of float32.
    plan : callable
        Given `site` of one part alone, at its newest commit, says how to compute its rows. It is called
        for every part before anything is written, and again when the part is locked.
    threads : int
        For compressing; 0 means all cores.
    progress : callable, optional
        Called with (done, all), in rows times layers of `site`.

    Returns
    -------
    Site ``[n_examples, len(labels), dim]``
        Of the newest commit.

    Raises
    ------
    InvalidInputError
        When `site` is not whole, or `name` is taken or was made by another recipe.
    FormatError
        kind ``unsupported`` for a group without commits.
    StorageError
        kind ``locked`` while the store is written to. What was computed until an error is committed.
    """
    snapshot = _snapshot(site)
    snapshot.check_open()
    check_name(name, "out", reserved=(EXAMPLES,))
    _check_whole(site)
    whole = {"operation": "pool", "version": RECIPE_VERSION, "source": site.name, "layers": list(site.layers)}
    wanted = Derived(
        json.loads(json.dumps({**whole, **recipe}, allow_nan=False)),
        tuple(labels),
        0,
        dim,
        "float32",
        "raw" if site._array.codec == "raw" else "blosc",
    )
    if len(set(labels)) != len(labels) or len(set(site.layers)) != len(site.layers):
        raise InvalidInputError(f"{site._what}: layers {site.layers} have one twice, out= needs them apart")
    newest = load(snapshot.source, snapshot.verify, snapshot.handle, snapshot)
    missing = [part for part in newest.parts if _is_short(part, name, wanted)]
    for part in missing:
        plan(_of_part(site, part))
    counter = _Counter(site, missing, name, progress)
    for part in missing:
        _complete(site, part, name, wanted, plan, threads, counter)
    if missing:
        newest = load(snapshot.source, snapshot.verify, snapshot.handle, newest)
    # Somebody may have appended to it just now.
    return type(site)(stored_origin(newest, name))


def _snapshot(site: "Site") -> Snapshot:
    origin = site._origin
    if not isinstance(origin, StoredOrigin):
        raise InvalidInputError(f"{site._what} lies in memory: out= writes into a store")
    return origin.snapshot


def write_copy(
    path: str, name: str, derived: Derived, read: Callable[[int, int], NDArray[Any]], threads: int = 0
) -> None:
    """Write a derived site whose rows are there already, ``read(start, stop)``, into another store.

    Its source must be in that store, with the same values.
    """
    with contextlib.closing(_native.Writer.append_to(path, threads)) as writer:
        _add_array(writer, path, name, derived)
        n_block = max(1, _OUT_BYTES // (len(derived.labels) * derived.dim * 4))
        for start in range(0, derived.rows, n_block):
            stop = min(start + n_block, derived.rows)
            if writer.append({name: _checked(read(start, stop), stop - start, derived)}):
                writer.commit(writer.state, threads)
        writer.commit(writer.state, threads)


def _check_whole(site: "Site") -> None:
    view, snapshot = site._view, _snapshot(site)
    n_rows, n_examples = site._array.shape[0], snapshot.examples.n_rows
    rows = isinstance(view.rows, range) and view.rows == range(n_rows) and view.owner is None
    if not rows or not isinstance(view.examples, range) or view.examples != range(n_examples):
        raise InvalidInputError(
            f"{site._what}: out= needs all of it, to go on when examples are appended; this view has "
            f"{len(view.rows)} of {n_rows} rows and {len(view.examples)} of {n_examples} examples",
            hint="write the whole site and select from the result, or leave out= away",
        )


def _is_short(part: Part, name: str, wanted: Derived) -> bool:
    """Whether rows, or all of the array, are missing in a part.

    Raises
    ------
    InvalidInputError, FormatError
        When it cannot be written there.
    """
    if part.foreign:
        raise FormatError(
            f"{part.path} is a Zarr group without commits: {name!r} cannot be written into it",
            kind="unsupported",
            hint="import it into a store, or leave out= away",
        )
    if name in part.unknown:
        raise part.unknown[name]
    there = part.derived.get(name)
    if there is None:
        if name in part.layout.sites or name in part.layout.axes or name in part.reader.arrays:
            raise InvalidInputError(f"out: {name!r} is taken in {part.path}", hint="choose another name")
        return True
    differs = there.difference(wanted)
    if differs is not None:
        what, ours, theirs = differs
        raise InvalidInputError(
            f"out: {name!r} of {part.path} was made with {what} = {ours!r}, asked for is {theirs!r}",
            hint="a recipe is for good: choose another name",
        )
    return there.rows < part.n_examples


def _of_part(site: "Site", part: Part) -> "Site":
    """The same layers of one part alone, all of its rows."""
    snapshot = _snapshot(site)
    alone = Snapshot(part.path, [part], snapshot.verify, snapshot.handle)
    return type(site)(stored_origin(alone, site.name), site._layers)


def _complete(
    site: "Site", part: Part, name: str, wanted: Derived, plan: Plan, threads: int, counter: "_Counter"
) -> None:
    """Compute and write what a part lacks, under its lock."""
    with contextlib.closing(_native.Writer.append_to(part.path, threads)) as writer:
        part = read_part(part.reader.refresh())
        if not _is_short(part, name, wanted):
            return
        source = _of_part(site, part)
        compute = plan(source)
        first = 0
        if name in part.derived:
            first = part.derived[name].rows
        else:
            _add_array(writer, part.path, name, wanted)
        committed, last = first, time.monotonic()
        try:
            for start, stop in _runs(source, first, wanted):
                rows = compute(start, stop, counter.of_run(source, start, stop))
                due = writer.append({name: _checked(rows, stop - start, wanted)})
                counter.advance(source, start, stop)
                if due or time.monotonic() - last > _COMMIT_SECONDS:
                    writer.commit(writer.state, threads)
                    committed, last = stop, time.monotonic()
        except BaseException:
            if writer.arrays[name][0][0] > committed:  # These rows are right, and may have taken long.
                with contextlib.suppress(ActstoreError):
                    writer.commit(writer.state, threads)
            raise
        writer.commit(writer.state, threads)


def _add_array(writer: _native.Writer, path: str, name: str, wanted: Derived) -> None:
    folder = os.path.join(path, name)
    if os.path.lexists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        # What an interrupted writer of ours left is gone by now: this is somebody else's.
        raise StorageError(
            f"{folder} is there and not the store's", kind="exists", hint="choose another name"
        )
    spec = {
        "name": name,
        "shape": [len(wanted.labels), wanted.dim],
        "dtype": wanted.dtype,
        "codec": wanted.codec,
        "chunk_rows": None,
        "shard_rows": None,
        "dimension_names": ["example", "layer", "dim"],
        "attributes": wanted.attributes(),
    }
    writer.add_arrays(json.dumps([spec]))


def _checked(rows: NDArray[Any], n: int, wanted: Derived) -> NDArray[Any]:
    if rows.dtype.name != wanted.dtype or rows.shape != (n, len(wanted.labels), wanted.dim):
        raise ShapeError(
            f"expected {wanted.dtype} [{n}, {len(wanted.labels)}, {wanted.dim}], "
            f"computed were {rows.dtype} {list(rows.shape)}"
        )
    return np.ascontiguousarray(rows)


def _runs(source: "Site", first: int, wanted: Derived) -> list[tuple[int, int]]:
    """Examples from `first` on, in runs long enough to keep all cores busy and short enough to be held."""
    n = source.n_examples
    _, n_layers, dim = source.shape
    size = n_layers * dim * source.dtype.itemsize
    most = max(_RUN_BYTES, _RUN_CHUNKS * n_layers << 20)
    n_out = max(1, _OUT_BYTES // (len(wanted.labels) * wanted.dim * 4))
    before = source._view.grouped()[1] * size
    runs = []
    while first < n:
        stop = int(np.searchsorted(before, before[first] + most, side="right")) - 1
        stop = min(max(stop, first + 1), first + n_out, n)
        runs.append((first, stop))
        first = stop
    return runs


class _Counter:
    """Progress over all parts, in rows times layers."""

    def __init__(self, site: "Site", parts: Sequence[Part], name: str, progress: Progress | None) -> None:
        self._progress = progress
        self._done = self._total = 0
        for part in parts if progress is not None else ():
            source = _of_part(site, part)
            first = part.derived[name].rows if name in part.derived else 0
            self._total += self._work(source, first, part.n_examples)

    @staticmethod
    def _work(source: "Site", start: int, stop: int) -> int:
        offset = source._view.grouped()[1]
        return int(offset[stop] - offset[start]) * len(source.layers)

    def of_run(self, source: "Site", start: int, stop: int) -> Progress | None:
        """To be called with what is done of these examples."""
        progress, done, total = self._progress, self._done, self._total
        if progress is None:
            return None
        return lambda part, _all: progress(min(done + part, total), total)

    def advance(self, source: "Site", start: int, stop: int) -> None:
        """These examples are done."""
        if self._progress is not None:
            self._done += self._work(source, start, stop)
            self._total = max(self._total, self._done)  # More may have come meanwhile.
            self._progress(self._done, self._total)
