"""Whiteners as they lie in a store, with norms of whitened rows (docs/format.md, "Whiteners")."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import new_array
from .errors import FormatError, InvalidInputError, NotFoundError, ShapeError, StorageError
from .layout import check_name
from .origin import Origin, StoredOrigin, stored_origin
from .parts import Part, find_parts, read_part
from .snapshot import Handle, Snapshot
from .view import Progress, View, shifted

FOLDER = "whiteners"
"""The group that they are in."""
VERSION = 1
KINDS = ("pca", "zca")
ARRAYS = ("mean", "components", "variance")
_RUN_ROWS = 1 << 18


@dataclass(frozen=True)
class Saved:
    """What a store says of a whitener: its attributes, and ``mean``, ``components`` and ``variance``."""

    told: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]]


NormsOf = Callable[[View, range, int, Progress | None], NDArray[np.float64]]
"""Of a view, these of its rows, threads and progress: their norms, ``[n, L]``."""


def names(parts: Sequence[Part]) -> list[str]:
    """The whiteners of a store, those that all of its parts have."""
    found = [_names(part.reader) for part in parts]
    return [name for name in found[0] if all(name in others for others in found[1:])] if found else []


_SHOWN = ("layers", "dim", "kind", "rank", "n", "source", "site")


def describe(parts: Sequence[Part], keys: Sequence[str] | None = _SHOWN) -> dict[str, Mapping[str, Any]]:
    """What the whiteners of a store say of themselves, by name: some of it, or all.

    Of one that cannot be read, ``error`` says why: it is no reason to say nothing of the others.
    """
    told: dict[str, Mapping[str, Any]] = {}
    for name in names(parts):
        try:
            found = _told(parts[0].reader, name)
        except FormatError as error:
            told[name] = {"error": str(error)}
            continue
        told[name] = found if keys is None else {key: found.get(key) for key in keys}
    return told


def _names(reader: _native.Reader) -> list[str]:
    paths = [name.split("/") for name in reader.arrays]
    return [path[1] for path in paths if len(path) == 3 and path[0] == FOLDER and path[2] == "mean"]


def _readable(part: Part) -> dict[str, Mapping[str, Any]]:
    """What those whiteners of a part say of themselves that can be read; the others are in nobody's way."""
    told = {}
    for name in _names(part.reader):
        with contextlib.suppress(FormatError):
            told[name] = _told(part.reader, name)
    return told


def _told(reader: _native.Reader, name: str) -> Mapping[str, Any]:
    root = json.loads(reader.array(f"{FOLDER}/{name}/mean").attributes)
    own = root.get("actstore") if isinstance(root, dict) else None
    return checked(own.get("whitener") if isinstance(own, dict) else None, name, reader.path)


def checked(told: Any, name: str, where: str) -> Mapping[str, Any]:
    """What a whitener says of itself.

    Raises
    ------
    FormatError
        When that is malformed, or of a version that is not known.
    """
    if not isinstance(told, dict) or not isinstance(told.get("version"), int):
        raise FormatError(f"{where}: whitener {name!r} does not say what it is", kind="metadata")
    if told["version"] > VERSION:
        raise FormatError(
            f"{where}: whitener {name!r} is of version {told['version']}, which this actstore does not know",
            kind="version",
            hint="pip install -U actstore",
        )
    layers, rank = _list(told.get("layers")), _list(told.get("rank"))
    ints = [*layers, *rank, told.get("dim"), told.get("n")]
    good = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**63 for i in ints)
    same = len(set(layers)) == len(layers) == len(rank) > 0 if good else False
    site = told.get("site")
    named = isinstance(told.get("digest"), str) and (site is None or isinstance(site, str))
    if not (good and same and named and told.get("kind") in KINDS):
        raise FormatError(f"{where}: whitener {name!r} is malformed", kind="metadata")
    return {**told, "site": site}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def read(part: Part, name: str) -> Saved:
    """A whitener of a part.

    Raises
    ------
    FormatError
        When what lies there is none.
    """
    told = _told(part.reader, name)
    arrays = {}
    for array in ARRAYS:
        stored = part.reader.array(f"{FOLDER}/{name}/{array}")
        if len(stored.shape) != 1 or stored.dtype != "float64":
            raise FormatError(
                f"{part.path}: {array} of whitener {name!r} is {stored.dtype} {list(stored.shape)}",
                kind="metadata",
            )
        out = new_array(stored.shape, np.dtype(np.float64), f"whitener {name!r}")
        if out.size:
            stored.read((0, out.size), None, out)
        arrays[array] = out
    return Saved(told, arrays)


def stored_norms(origin: Origin, digest: str, n_layers: int) -> NDArray[np.float64] | None:
    """The norms of all rows of a site, whitened, ``[n_rows, n_layers]``; None where a store lacks any."""
    read = norms_reader(origin, digest, n_layers)
    return None if read is None else read(0, origin.array.shape[0])


def norms_reader(
    origin: Origin, digest: str, n_layers: int
) -> Callable[[int, int], NDArray[np.float64]] | None:
    """The same, to be read from row to row."""
    if not isinstance(origin, StoredOrigin):
        return None
    pieces: list[tuple[int, int, Any]] = []
    end = 0
    for part in origin.snapshot.parts:
        start, end = end, end + part.rows.get(origin.axis, 0)
        if start < end:
            array = _norms_array(part, origin.name, digest, (end - start) * n_layers)
            if array is None:
                return None
            pieces.append((start, end, array))

    def read(start: int, stop: int) -> NDArray[np.float64]:
        out: NDArray[np.float64] = new_array(((stop - start) * n_layers,), np.dtype(np.float64), "norms")
        for first, end, array in pieces:
            a, b = max(start, first), min(stop, end)
            if a < b:
                here = out[(a - start) * n_layers : (b - start) * n_layers]
                array.read(((a - first) * n_layers, (b - first) * n_layers), None, here)
        return out.reshape(stop - start, n_layers)

    return read


def _norms_array(part: Part, site: str, digest: str, least: int) -> Any:
    """Where a part keeps the norms of a site's rows, so many."""
    for name, told in _readable(part).items():
        path = f"{FOLDER}/{name}/norm"
        if told["digest"] == digest and told["site"] == site and path in part.reader.arrays:
            array = part.reader.array(path)
            if array.dtype == "float64" and array.shape[0] >= least:
                return array
    return None


def unfinished(parts: Sequence[Part]) -> dict[str, str]:
    """The whiteners that lack norms of rows in a part, and whose rows; none of a foreign Zarr group."""
    if not parts or any(part.foreign for part in parts):
        return {}
    told = {name: own for name, own in _readable(parts[0]).items() if own["site"] is not None}
    return {
        name: told[name]["site"]
        for name in names(parts)
        if name in told and any(_is_short(part, name, told[name]) for part in parts)
    }


def _is_short(part: Part, name: str, told: Mapping[str, Any]) -> bool:
    path = f"{FOLDER}/{name}/norm"
    n_norms = part.reader.array(path).shape[0] if path in part.reader.arrays else 0
    return n_norms < part.rows.get(_axis(part, told["site"]), 0) * len(told["layers"])


def write(
    source: Any, name: str, saved: Saved, norms_of: NormsOf, threads: int, progress: Progress | None
) -> None:
    """Write a whitener into every part of a store, and the norms of its site's rows that are not there yet.

    Parameters
    ----------
    source : path or list of paths
        As `actstore.open` takes it.
    name : str
        What to call it.
    saved : Saved
        The whitener; ``site`` says whose norms to keep beside it, if any.
    norms_of : callable
        See `NormsOf`.
    threads, progress
        As everywhere.
    """
    check_name(name, "whitener")
    told = json.loads(json.dumps({**saved.told, "version": VERSION}, allow_nan=False))
    if len(set(told["layers"])) < len(told["layers"]):
        raise InvalidInputError(f"whitener {name!r} has a layer twice: {told['layers']}")
    saved, site = replace(saved, told=told), told["site"]
    parts = [read_part(_native.Reader(path)) for path in find_parts(source)]
    for part in parts:
        if part.foreign:
            raise FormatError(
                f"{part.path} is a Zarr group without commits: a whitener cannot be written into it",
                kind="unsupported",
                hint="import it into a store",
            )
        if site is not None:
            _check_site(part, site, told)
        if FOLDER in part.layout.sites or FOLDER in part.layout.axes or FOLDER in part.derived:
            raise InvalidInputError(
                f"{part.path} has a site or axis called {FOLDER!r}: no room for whiteners"
            )
        if name in _names(part.reader):
            theirs = _told(part.reader, name)
            differ = [key for key in told if theirs.get(key) != told[key]]
            if differ:
                raise StorageError(
                    f"{part.path} has another whitener {name!r}: they differ in {', '.join(differ)}",
                    kind="exists",
                    hint="choose another name",
                )
    done = 0
    total = sum(part.rows.get(_axis(part, site), 0) for part in parts) * len(told["layers"])
    for part in parts:
        with contextlib.closing(_native.Writer.append_to(part.path, threads)) as writer:
            done += _complete(writer, name, saved, norms_of, threads, shifted(progress, done, total))


def _check_site(part: Part, site: str, told: Mapping[str, Any]) -> None:
    """That a part has a site whose rows a whitener can take."""
    if site in part.layout.sites:
        labels, dim = part.layout.sites[site].labels, part.reader.array(site).shape[2]
    elif site in part.derived:
        labels, dim = part.derived[site].labels, part.derived[site].dim
    else:
        raise InvalidInputError(f"{part.path} has no site {site!r} to keep the norms of")
    for label in told["layers"]:
        if label not in labels:
            raise NotFoundError(
                f"{part.path}: {site!r} has no layer {label}, it has: {', '.join(map(str, labels))}",
                hint="select the whitener's layers, or save it without a site",
            )
    if dim != told["dim"]:
        raise ShapeError(f"{part.path}: {site!r} has dim {dim}, the whitener {told['dim']}")


def _axis(part: Part, site: str | None) -> str:
    if site is None:
        return ""
    return part.layout.sites[site].axis if site in part.layout.sites else "examples"


def _complete(
    writer: _native.Writer,
    name: str,
    saved: Saved,
    norms_of: NormsOf,
    threads: int,
    progress: Progress | None,
) -> int:
    """One part, under its lock; how many norms it has then."""
    part = read_part(_native.Reader(writer.path))
    if name not in _names(part.reader):
        attributes = {"actstore": {"whitener": saved.told}}
        specs = [_column(f"{FOLDER}/{name}/{array}", {}) for array in (*ARRAYS[1:], "norm")]
        writer.add_arrays(json.dumps([_column(f"{FOLDER}/{name}/mean", attributes), *specs]))
        writer.append({f"{FOLDER}/{name}/{array}": saved.arrays[array].ravel() for array in ARRAYS})
    n_norms = 0
    site, labels = saved.told["site"], saved.told["layers"]
    if site is not None:
        snapshot = Snapshot(part.path, [part], "first", Handle())
        view = View(stored_origin(snapshot, site))
        view = View(view._origin, [view.layers.index(label) for label in labels])
        path = f"{FOLDER}/{name}/norm"
        n_norms = len(view) * len(labels)
        for start in range(writer.arrays[path][0][0] // len(labels), len(view), _RUN_ROWS):
            rows = range(start, min(start + _RUN_ROWS, len(view)))
            norms = norms_of(view, rows, threads, shifted(progress, start * len(labels), n_norms))
            if writer.append({path: np.ascontiguousarray(norms).ravel()}):
                writer.commit(writer.state, threads)
    writer.commit(writer.state, threads)
    if progress is not None:
        progress(n_norms, n_norms)
    return n_norms


def _column(path: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": path,
        "shape": [],
        "dtype": "float64",
        "codec": "blosc",
        "chunk_rows": None,
        "shard_rows": None,
        "dimension_names": [path.rpartition("/")[2]],
        "attributes": attributes,
    }
