"""Whiteners in a store, with the norms of whitened rows (docs/format.md, "Artifacts")."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import new_array
from ..base.checks import check_name
from ..base.progress import Progress
from ..disk.layout import ARTIFACTS, EXAMPLES
from ..disk.parts import Part
from ..disk.snapshot import Handle, Snapshot
from ..errors import FormatError, InvalidInputError, NotFoundError, ShapeError, StorageError
from ..rows.backend import Backend
from ..rows.stored import StoredBackend, stored_backend
from ..rows.view import View
from .listing import artifacts
from .protocol import Artifact, ArtifactRows

KIND = "whitener"
VERSION = 1
KINDS = ("pca", "zca")
ARRAYS = ("mean", "components", "variance")
_RUN_ROWS = 1 << 18


@dataclass(frozen=True)
class WhitenerState:
    """The stored form of a whitener: attributes, and the arrays ``mean``, ``components`` and ``variance``."""

    attributes: Mapping[str, Any]
    arrays: Mapping[str, NDArray[np.float64]]


NormsOf = Callable[[View, range, int, Progress | None], NDArray[np.float64]]
"""``norms_of(view, rows, threads, progress)``: the norms of these rows of a view, ``[n, L]``."""


def names(parts: Sequence[Part]) -> list[str]:
    """The names of the whiteners that all parts of a store have."""
    by_part = [_names(part.reader) for part in parts]
    return [name for name in by_part[0] if all(name in others for others in by_part)] if by_part else []


_SHOWN = ("layers", "dim", "transform", "rank", "n", "source", "site")


def describe(parts: Sequence[Part], keys: Sequence[str] | None = _SHOWN) -> dict[str, Mapping[str, Any]]:
    """The descriptions of a store's whiteners by name, with these keys or, for None, all keys.

    The description of a whitener that cannot be read is ``{"error": message}``.
    """
    described: dict[str, Mapping[str, Any]] = {}
    for name in names(parts):
        try:
            own = _attributes(parts[0].reader, name)
        except FormatError as error:
            described[name] = {"error": str(error)}
            continue
        described[name] = own if keys is None else {key: own.get(key) for key in keys}
    return described


def _names(reader: _native.Reader) -> list[str]:
    return [name for name, own in artifacts(reader).items() if own.get("kind") == KIND]


def _readable(part: Part) -> dict[str, Mapping[str, Any]]:
    """The descriptions of a part's whiteners, except for those that cannot be read."""
    readable = {}
    for name in _names(part.reader):
        with contextlib.suppress(FormatError):
            readable[name] = _attributes(part.reader, name)
    return readable


def _attributes(reader: _native.Reader, name: str) -> Mapping[str, Any]:
    return checked(artifacts(reader).get(name), name, reader.path)


def checked(own: Any, name: str, where: str) -> Mapping[str, Any]:
    """The description of a whitener; raises unless it is well-formed.

    Raises
    ------
    FormatError
        kind ``version`` for a later version, ``metadata`` for anything malformed.
    """
    if not isinstance(own, dict) or not isinstance(own.get("version"), int):
        raise FormatError(f"{where}: whitener {name!r} has no description", kind="metadata")
    if own["version"] > VERSION:
        raise FormatError(
            f"{where}: whitener {name!r} has version {own['version']}, which this actstore does not know",
            kind="version",
            hint="pip install -U actstore",
        )
    layers, rank = _list(own.get("layers")), _list(own.get("rank"))
    ints = [*layers, *rank, own.get("dim"), own.get("n")]
    good = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**63 for i in ints)
    same = len(set(layers)) == len(layers) == len(rank) > 0 if good else False
    site = own.get("site")
    named = isinstance(own.get("digest"), str) and (site is None or isinstance(site, str))
    if not (good and same and named and own.get("transform") in KINDS):
        raise FormatError(f"{where}: whitener {name!r} is malformed", kind="metadata")
    return {**own, "site": site}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def read(part: Part, name: str) -> WhitenerState:
    """A whitener of a part.

    Raises
    ------
    FormatError
        When its arrays or its description are malformed.
    """
    own = _attributes(part.reader, name)
    arrays = {}
    for array in ARRAYS:
        stored = part.reader.array(f"{ARTIFACTS}/{name}/{array}")
        if len(stored.shape) != 1 or stored.dtype != "float64":
            raise FormatError(
                f"{part.path}: {array} of whitener {name!r} is {stored.dtype} {list(stored.shape)}",
                kind="metadata",
            )
        out = new_array(stored.shape, np.dtype(np.float64), f"whitener {name!r}")
        if out.size:
            stored.read((0, out.size), None, out)
        arrays[array] = out
    return WhitenerState(own, arrays)


def stored_norms(origin: Backend, digest: str, n_layers: int) -> NDArray[np.float64] | None:
    """The norms of all whitened rows of a site, ``[n_rows, n_layers]``; None when any are missing."""
    read = norms_reader(origin, digest, n_layers)
    return None if read is None else read(0, origin.array.shape[0])


def norms_reader(
    origin: Backend, digest: str, n_layers: int
) -> Callable[[int, int], NDArray[np.float64]] | None:
    """A function that reads these norms for the rows from `start` to `stop`; None when any are missing."""
    if not isinstance(origin, StoredBackend):
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
    """An array of a part with at least this many norms of a site's rows, if there is one."""
    for name, own in _readable(part).items():
        path = f"{ARTIFACTS}/{name}/norm"
        if own["digest"] == digest and own["site"] == site and path in part.reader.arrays:
            array = part.reader.array(path)
            if array.dtype == "float64" and array.shape[0] >= least:
                return array
    return None


def incomplete(parts: Sequence[Part]) -> dict[str, str]:
    """The whiteners that lack norms in some part, each with its site; none in a foreign Zarr group."""
    if not parts or any(part.foreign for part in parts):
        return {}
    with_norms = {name: own for name, own in _readable(parts[0]).items() if own["site"] is not None}
    return {
        name: with_norms[name]["site"]
        for name in names(parts)
        if name in with_norms and any(_lacks_norms(part, name, with_norms[name]) for part in parts)
    }


def _lacks_norms(part: Part, name: str, own: Mapping[str, Any]) -> bool:
    return _n_norms(part, name) < part.rows.get(_axis(part, own["site"]), 0) * len(own["layers"])


def _n_norms(part: Part, name: str) -> int:
    path = f"{ARTIFACTS}/{name}/norm"
    return part.reader.array(path).shape[0] if path in part.reader.arrays else 0


class WhitenerArtifact(Artifact):
    """A whitener in every part, with the norms of the part's own rows of a site.

    Parameters
    ----------
    name : str
        The name of the whitener in the store.
    state : WhitenerState
        The stored form. Its attribute ``site`` names the site whose norms to store, if any.
    norms_of : callable
        Computes norms, see `NormsOf`.
    """

    def __init__(self, name: str, state: WhitenerState, norms_of: NormsOf) -> None:
        check_name(name, "whitener")
        own = {"kind": KIND, "version": VERSION, **state.attributes}
        own = json.loads(json.dumps(own, allow_nan=False))
        if len(set(own["layers"])) < len(own["layers"]):
            raise InvalidInputError(f"whitener {name!r} has a layer twice: {own['layers']}")
        self.name, self._state, self._norms_of = name, replace(state, attributes=own), norms_of

    def is_incomplete(self, part: Part) -> bool:
        own, site = self._state.attributes, self._state.attributes["site"]
        if site is not None:
            _check_site(part, site, own)
        existing = artifacts(part.reader).get(self.name)
        if existing is None:
            return True
        if existing.get("kind") != KIND:
            raise StorageError(
                f"{part.path} has an artifact {self.name!r} of kind {existing.get('kind')!r}",
                kind="exists",
                hint="choose another name",
            )
        theirs = _attributes(part.reader, self.name)
        differ = [key for key in own if theirs.get(key) != own[key]]
        if differ:
            raise StorageError(
                f"{part.path} has another whitener {self.name!r}: they differ in {', '.join(differ)}",
                kind="exists",
                hint="choose another name",
            )
        return _lacks_norms(part, self.name, own)

    def work(self, part: Part) -> int:
        own = self._state.attributes
        n_rows = part.rows.get(_axis(part, own["site"]), 0) * len(own["layers"])
        return n_rows - _n_norms(part, self.name)

    def groups(self, part: Part) -> dict[str, Any]:
        if self.name in _names(part.reader):
            return {}
        return {f"{ARTIFACTS}/{self.name}": {"actstore": {"artifact": self._state.attributes}}}

    def arrays(self, part: Part) -> list[dict[str, Any]]:
        if self.name in _names(part.reader):
            return []
        return [_column(f"{ARTIFACTS}/{self.name}/{array}") for array in (*ARRAYS, "norm")]

    def missing(self, part: Part, threads: int, progress: Progress | None) -> Iterator[ArtifactRows]:
        prefix = f"{ARTIFACTS}/{self.name}"
        if self.name not in _names(part.reader):
            yield ArtifactRows(
                {f"{prefix}/{array}": self._state.arrays[array].ravel() for array in ARRAYS}, 0
            )
        site, labels = self._state.attributes["site"], self._state.attributes["layers"]
        if site is None:
            return
        backend = stored_backend(Snapshot(part.path, [part], "first", Handle()), site)
        view = View(backend, [backend.labels.index(label) for label in labels])
        for start in range(_n_norms(part, self.name) // len(labels), len(view), _RUN_ROWS):
            rows = range(start, min(start + _RUN_ROWS, len(view)))
            norms = self._norms_of(view, rows, threads, progress)
            yield ArtifactRows({f"{prefix}/norm": norms.ravel()}, len(rows) * len(labels))


def _check_site(part: Part, site: str, own: Mapping[str, Any]) -> None:
    """Check that a part has this site, with the whitener's layers and dim."""
    if site in part.layout.sites:
        labels, dim = part.layout.sites[site].labels, part.reader.array(site).shape[2]
    elif site in part.derived:
        labels, dim = part.derived[site].labels, part.derived[site].dim
    else:
        raise InvalidInputError(f"{part.path} has no site {site!r}, whose norms the whitener should store")
    for label in own["layers"]:
        if label not in labels:
            raise NotFoundError(
                f"{part.path}: {site!r} has no layer {label}, it has: {', '.join(map(str, labels))}",
                hint="select the whitener's layers, or save it without a site",
            )
    if dim != own["dim"]:
        raise ShapeError(f"{part.path}: {site!r} has dim {dim}, the whitener has dim {own['dim']}")


def _axis(part: Part, site: str | None) -> str:
    if site is None:
        return ""
    return part.layout.sites[site].axis if site in part.layout.sites else EXAMPLES


def _column(path: str) -> dict[str, Any]:
    return {
        "name": path,
        "shape": [],
        "dtype": "float64",
        "codec": "blosc",
        "chunk_rows": None,
        "shard_rows": None,
        "dimension_names": [path.rpartition("/")[2]],
        "attributes": {},
    }
