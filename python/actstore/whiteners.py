"""Whiteners as they lie in a store, with norms of whitened rows (docs/format.md, "Whiteners")."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import new_array
from .errors import FormatError, InvalidInputError, StorageError
from .layout import check_name
from .origin import Origin, StoredOrigin, stored_origin
from .parts import Part, find_parts, read_part
from .snapshot import Handle, Snapshot
from .view import Progress, View, shifted

FOLDER = "whiteners"
"""The group that they are in."""
VERSION = 1
KINDS = ("pca", "zca")
_ARRAYS = ("mean", "components", "variance")
_RUN_ROWS = 1 << 18


@dataclass(frozen=True)
class Saved:
    """What a store says of a whitener."""

    told: Mapping[str, Any]
    arrays: dict[str, NDArray[np.float64]]


def names(parts: Sequence[Part]) -> list[str]:
    """The whiteners of a store, those that all of its parts have."""
    found = [_names(part.reader) for part in parts]
    return [name for name in found[0] if all(name in others for others in found[1:])] if found else []


def describe(parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """The whiteners of a store by name, ready for JSON: what each says of itself."""
    shown = ("layers", "dim", "kind", "rank", "n", "source", "site")
    told: dict[str, dict[str, Any]] = {}
    for name in names(parts):
        try:
            found = _told(parts[0].reader, name)
        except FormatError as error:  # It is no reason to say nothing of the others.
            told[name] = {"error": str(error)}
            continue
        told[name] = {key: found.get(key) for key in shown}
    return told


def _names(reader: _native.Reader) -> list[str]:
    paths = [name.split("/") for name in reader.arrays]
    return [path[1] for path in paths if len(path) == 3 and path[0] == FOLDER and path[2] == "mean"]


def _told(reader: _native.Reader, name: str) -> Mapping[str, Any]:
    root = json.loads(reader.array(f"{FOLDER}/{name}/mean").attributes)
    own = root.get("actstore") if isinstance(root, dict) else None
    told = own.get("whitener") if isinstance(own, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("version"), int):
        raise FormatError(f"{reader.path}: whitener {name!r} does not say what it is", kind="metadata")
    if told["version"] > VERSION:
        raise FormatError(
            f"{reader.path}: whitener {name!r} is of version {told['version']}, which this actstore "
            "does not know",
            kind="version",
            hint="pip install -U actstore",
        )
    ints = [*_list(told.get("layers")), *_list(told.get("rank")), told.get("dim"), told.get("n")]
    good = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ints)
    same = len(_list(told.get("layers"))) == len(_list(told.get("rank"))) > 0
    site = told.get("site")
    if not (good and same and told.get("kind") in KINDS and (site is None or isinstance(site, str))):
        raise FormatError(f"{reader.path}: whitener {name!r} is malformed", kind="metadata")
    return told


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
    for array in _ARRAYS:
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
    if not isinstance(origin, StoredOrigin):
        return None
    pieces = []
    for part in origin.snapshot.parts:
        rows = part.rows.get(origin.axis, 0)
        for name in _names(part.reader):
            told = _told(part.reader, name)
            path = f"{FOLDER}/{name}/norm"
            if (
                told.get("digest") == digest
                and told.get("site") == origin.name
                and path in part.reader.arrays
            ):
                array = part.reader.array(path)
                if array.dtype == "float64" and array.shape[0] >= rows * n_layers:
                    out = new_array((rows * n_layers,), np.dtype(np.float64), "norms")
                    if out.size:
                        array.read((0, out.size), None, out)
                    pieces.append(out.reshape(rows, n_layers))
                    break
        else:
            if rows:
                return None
    return np.concatenate(pieces) if pieces else None


def write(
    source: Any,
    name: str,
    told: Mapping[str, Any],
    arrays: Mapping[str, NDArray[np.float64]],
    site: str | None,
    layers: Sequence[int],
    norms_of: Any,
    threads: int,
    progress: Progress | None,
) -> None:
    """Write a whitener into every part of a store, and the norms of a site's rows that are not there yet.

    Parameters
    ----------
    source : path or list of paths
        As `actstore.open` takes it.
    name : str
        What to call it.
    told, arrays : mapping
        Its attributes, and ``mean``, ``components`` and ``variance``.
    site : str or None
        Whose norms to keep beside it.
    layers : sequence of int
        The labels that norms are of, in their order.
    norms_of : callable
        ``norms_of(view, threads, progress)``: norms ``[n, L]``.
    threads, progress
        As everywhere.
    """
    check_name(name, "whitener")
    told = json.loads(json.dumps({**told, "version": VERSION, "site": site}, allow_nan=False))
    parts = [read_part(_native.Reader(path)) for path in find_parts(source)]
    for part in parts:
        if part.foreign:
            raise FormatError(
                f"{part.path} is a Zarr group without commits: a whitener cannot be written into it",
                kind="unsupported",
                hint="import it into a store",
            )
        if site is not None and site not in part.layout.sites and site not in part.derived:
            raise InvalidInputError(f"{part.path} has no site {site!r} to keep the norms of")
        if FOLDER in part.layout.sites or FOLDER in part.layout.axes or FOLDER in part.derived:
            raise InvalidInputError(
                f"{part.path} has a site or axis called {FOLDER!r}: no room for whiteners"
            )
        if name in _names(part.reader):
            theirs = _told(part.reader, name)
            if theirs != told:
                differ = ", ".join(key for key in told if theirs.get(key) != told[key]) or "something"
                raise StorageError(
                    f"{part.path} has another whitener {name!r}: they differ in {differ}",
                    kind="exists",
                    hint="choose another name",
                )
    done = 0
    total = sum(part.rows.get(_axis(part, site), 0) for part in parts) * len(layers)
    for part in parts:
        with contextlib.closing(_native.Writer.append_to(part.path, threads)) as writer:
            done = _complete(
                writer, name, told, arrays, site, layers, norms_of, threads, progress, done, total
            )


def _axis(part: Part, site: str | None) -> str:
    if site is None:
        return ""
    return part.layout.sites[site].axis if site in part.layout.sites else "examples"


def _complete(
    writer: _native.Writer,
    name: str,
    told: Mapping[str, Any],
    arrays: Mapping[str, NDArray[np.float64]],
    site: str | None,
    layers: Sequence[int],
    norms_of: Any,
    threads: int,
    progress: Progress | None,
    done: int,
    total: int,
) -> int:
    """One part, under its lock; the work that is done then."""
    part = read_part(_native.Reader(writer.path))
    if name not in _names(part.reader):
        attributes = {"actstore": {"whitener": told}}
        specs = [_column(f"{FOLDER}/{name}/{array}", {}) for array in (*_ARRAYS[1:], "norm")]
        writer.add_arrays(json.dumps([_column(f"{FOLDER}/{name}/mean", attributes), *specs]))
        writer.append({f"{FOLDER}/{name}/{array}": values.ravel() for array, values in arrays.items()})
    if site is not None:
        snapshot = Snapshot(part.path, [part], "first", Handle())
        view = View(stored_origin(snapshot, site))
        view = View(view._origin, [view.layers.index(label) for label in layers])
        path = f"{FOLDER}/{name}/norm"
        first = writer.arrays[path][0][0] // len(layers)
        done += first * len(layers)
        for start in range(first, len(view), _RUN_ROWS):
            stop = min(start + _RUN_ROWS, len(view))
            run = View(view._origin, view._layers, view._view.take_rows(range(start, stop)))
            norms = norms_of(run, threads, shifted(progress, done, total))
            if writer.append({path: np.ascontiguousarray(norms).ravel()}):
                writer.commit(writer.state, threads)
            done += len(run) * len(layers)
    writer.commit(writer.state, threads)
    return done


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
