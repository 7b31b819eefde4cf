"""What can be imported: each kind of file as sites whose rows are read in blocks."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .. import whiteners
from ..arrays import COLUMN_DTYPES, FLOAT_DTYPES, SITE_DTYPES
from ..errors import FormatError, InvalidInputError, NotFoundError
from ..layout import EXAMPLES, TOKENS, Derived, name_problem, parse_derived
from ..parts import STRINGS
from ..site_spec import SiteSpec
from ..store import Store
from ..whiteners import Saved
from .export import (
    COLUMNS,
    EXPORT_FORMAT,
    MANIFEST,
    WHITENERS,
    layer_name,
    norms_of_site,
    stored_whiteners,
)
from .safetensors import TensorsReader

Read = Callable[[int, int], NDArray[Any]]
"""Rows from start to stop."""


@dataclass
class Source:
    """Sites, and what else is known of them.

    Attributes
    ----------
    specs : dict of str to SiteSpec
        What the sites are to be.
    read : dict of str to callable
        Each site's rows, ``[stop - start, n_layers, dim]``.
    rows : dict of str to int
        Rows of each axis.
    offsets : dict of str to array
        int64 ``[n_examples + 1]`` of each axis; None where the file does not say.
    derived : dict of str to (Derived, callable)
        Sites that stay derived, for what they are made of comes along as it is.
    whiteners : dict of str to Whitened
        Whiteners, in their order.
    """

    specs: dict[str, SiteSpec]
    read: dict[str, Read]
    rows: dict[str, int]
    offsets: dict[str, NDArray[np.int64]] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    token_columns: dict[str, dict[str, Read]] = field(default_factory=dict)
    example_columns: dict[str, Sequence[Any] | NDArray[Any]] = field(default_factory=dict)
    derived: dict[str, tuple[Derived, Read]] = field(default_factory=dict)
    whiteners: dict[str, "Whitened"] = field(default_factory=dict)

    def rows_of(self, site: str) -> int:
        """Rows of a site, derived or not."""
        return self.rows[self.specs[site].axis] if site in self.specs else self.derived[site][0].rows

    def drop_derived(self) -> None:
        """Leave derived sites out, and the norms of their rows."""
        self.derived = {}
        for name, whitened in self.whiteners.items():
            self.whiteners[name] = whitened.among(list(self.specs))


@dataclass(frozen=True)
class Whitened:
    """A whitener that comes along."""

    told: Mapping[str, Any]
    load: Callable[[], Saved]
    norms: Read | None = None
    """Those of its site's rows, if they are known and stay."""

    def among(self, sites: Sequence[str]) -> "Whitened":
        """The same where there are these sites only: it keeps no norms of another's rows."""
        return self if self.told["site"] in sites else Whitened({**self.told, "site": None}, self.load)


def site_spec(
    what: str, shape: Sequence[int], dtype: str, labels: Sequence[int] | None, to: str | None
) -> SiteSpec:
    """The spec of a 2-D array (one layer) or a 3-D one.

    Raises
    ------
    InvalidInputError
        When it is neither, or its dtype needs to be named.
    """
    if len(shape) not in (2, 3):
        raise InvalidInputError(
            f"{what} has shape {list(shape)}, a site is [rows, dim] or [rows, layers, dim]",
            hint="sites= chooses among several",
        )
    if dtype not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what} is {dtype}, a site is one of {', '.join(SITE_DTYPES)}")
    if to is None and dtype not in SITE_DTYPES:
        raise InvalidInputError(
            f"{what} is {dtype}, a site is one of {', '.join(SITE_DTYPES)}", hint="dtype='float32'"
        )
    return SiteSpec(1 if len(shape) == 2 else shape[1], shape[-1], to or dtype, labels)


def from_store(
    store: Store, where: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> Source:
    """An open store, of ours or a foreign Zarr group."""
    names = _chosen(store.sites, sites, where)
    if not names:
        raise InvalidInputError(f"{where} has no 3-D array of floats")
    specs, read, rows, derived = {}, {}, {}, {}
    for name in names:
        site = store[name]
        made = store._snapshot.derived.get(name)
        if made is not None and to is None and labels is None and made.site.recipe["source"] in names:
            derived[name] = replace(made.site, rows=made.covers), _site_reader(store, name)
            continue
        spec = site_spec(f"{where}: {name!r}", site.shape, site.dtype.name, labels or site.layers, to)
        specs[name] = SiteSpec(spec.n_layers, spec.dim, spec.dtype, spec.labels, site.axis)
        read[name] = _site_reader(store, name)
        rows[site.axis] = site.shape[0]
    kept = {spec.axis for spec in specs.values()} - {EXAMPLES}
    axes = {axis: columns for axis, columns in store.axes.items() if axis in kept}
    columns = store.examples
    whitened: dict[str, Whitened] = {}
    renamed = labels is not None and any(list(labels) != store[name].layers for name in names)
    for name, told in ({} if renamed else stored_whiteners(store)).items():
        site = told["site"]
        stays = site in names and to in (None, store[site].dtype.name)
        load = partial(whiteners.read, store._snapshot.parts[0], name)
        whitened[name] = Whitened(told, load, norms_of_site(store, told) if stays else None).among(names)
    return Source(
        specs,
        read,
        rows,
        {axis: table.offset for axis, table in axes.items()},
        store.identity,
        columns["id"].tolist(),
        {axis: {name: _column_reader(table, name) for name in table} for axis, table in axes.items()},
        {
            name: columns[name].tolist() if dtype == STRINGS else columns[name]
            for name, dtype in columns.dtypes.items()
            if name != "id"
        },
        derived,
        whitened,
    )


def _site_reader(store: Store, name: str) -> Read:
    return lambda start, stop: store[name][start:stop]


def _column_reader(table: Any, name: str) -> Read:
    return lambda start, stop: table.read(name, start, stop)


def from_numpy(path: str, site: str, labels: Sequence[int] | None, to: str | None) -> Source:
    """An .npy file, mapped."""
    array = load_npy(path)
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and to == "bfloat16":
        array = array.view(ml_dtypes.bfloat16)  # numpy forgets the name when it saves
    elif array.dtype.kind == "V" and array.dtype.itemsize == 2:
        raise InvalidInputError(
            f"{path} holds 2-byte values of no dtype numpy knows",
            hint="dtype='bfloat16' if that is what they are",
        )
    spec = site_spec(path, array.shape, array.dtype.name, labels, to)
    cube = array[:, None, :] if array.ndim == 2 else array
    return Source({site: spec}, {site: lambda start, stop: cube[start:stop]}, {TOKENS: array.shape[0]})


def load_npy(path: str) -> NDArray[Any]:
    """An .npy file, mapped; never unpickled.

    Raises
    ------
    NotFoundError, FormatError
        When there is none, or something else.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except (ValueError, EOFError, OSError) as error:
        # numpy's own message advises to unpickle it.
        raise FormatError(f"{path} is no .npy file of numbers", kind="metadata") from error
    if not isinstance(array, np.ndarray):
        raise FormatError(f"{path} is an archive, not an .npy file", kind="metadata")
    return array


def from_tensors(
    path: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> Source:
    """A safetensors file: each tensor is a site."""
    file = TensorsReader(path)
    specs: dict[str, SiteSpec] = {}
    read: dict[str, Read] = {}
    n_rows: int | None = None
    for name in _chosen(sorted(file.tensors), sites, path):
        dtype, shape = file.tensors[name]
        specs[name] = site_spec(f"{path}: tensor {name!r}", shape, dtype, labels, to)
        read[name] = _tensor_reader(file, name, len(shape) == 2)
        if n_rows not in (None, shape[0]):
            raise InvalidInputError(
                f"{path}: tensor {name!r} has {shape[0]} rows, others have {n_rows}",
                hint="sites= chooses among them",
            )
        n_rows = shape[0]
    if n_rows is None:
        raise InvalidInputError(f"{path} holds no tensors")
    return Source(specs, read, {TOKENS: n_rows})


def _tensor_reader(file: TensorsReader, name: str, flat: bool) -> Read:
    if flat:
        return lambda start, stop: file.read(name, start, stop)[:, None, :]
    return lambda start, stop: file.read(name, start, stop)


def from_export(folder: str, sites: Sequence[str] | None, to: str | None) -> Source:
    """A directory that `export` made.

    Raises
    ------
    FormatError
        When it is of a newer version, or its files contradict the manifest.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] > EXPORT_FORMAT:
            raise FormatError(
                f"{path} is of format {manifest['format']}, this reads {EXPORT_FORMAT}", kind="version"
            )
        return _from_manifest(folder, manifest, sites, to)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise FormatError(f"{path} is malformed: {error!r}", kind="metadata") from error


def _from_manifest(folder: str, manifest: Any, sites: Sequence[str] | None, to: str | None) -> Source:
    columns = TensorsReader(os.path.join(folder, COLUMNS))
    specs: dict[str, SiteSpec] = {}
    read: dict[str, Read] = {}
    rows: dict[str, int] = {EXAMPLES: manifest["n_examples"]}
    derived: dict[str, tuple[Derived, Read]] = {}
    names = _chosen(list(manifest["sites"]), sites, folder)
    for name in names:
        entry = manifest["sites"][name]
        axis = entry["axis"]
        specs[name] = SiteSpec(
            len(entry["labels"]), entry["dim"], to or entry["dtype"], entry["labels"], axis
        )
        files = []
        for label in specs[name].labels or ():
            tensor = layer_name(name, label)
            file = TensorsReader(os.path.join(folder, f"{os.path.basename(tensor)}.safetensors"))
            dtype, shape = file.tensors.get(tensor, ("nothing", ()))
            if dtype != entry["dtype"] or shape != (
                rows.setdefault(axis, shape[0] if shape else 0),
                entry["dim"],
            ):
                raise FormatError(
                    f"{file.path} holds {dtype} {list(shape)} as {tensor!r}, expected "
                    f"{entry['dtype']} [{rows.get(axis)}, {entry['dim']}]",
                    kind="metadata",
                )
            files.append((file, tensor))
        read[name] = _layers_reader(files)
        recipe = entry.get("derived")
        if recipe is not None and to is None and recipe["source"] in names:
            own = json.dumps({"actstore": {"derived": recipe, "labels": entry["labels"]}})
            shape = (rows[axis], len(files), entry["dim"])
            found = parse_derived(own, shape, entry["dtype"], "blosc", f"{folder}: {name}")
            derived[name] = found, read.pop(name)
            del specs[name]
    axes = {spec.axis for spec in specs.values()} - {EXAMPLES}
    source = Source(specs, read, rows, identity=manifest["identity"], derived=derived)
    source.offsets = {axis: _whole(columns, f"{axis}/offset") for axis in axes}
    for axis in axes:
        names = manifest["axes"][axis]
        source.token_columns[axis] = {
            name: _rows_reader(columns, f"{axis}/{name}", rows[axis]) for name in names
        }
    for name, dtype in manifest["examples"].items():
        path = f"{EXAMPLES}/{name}"
        if dtype != STRINGS:
            source.example_columns[name] = _whole(columns, path)
            continue
        blob, offset = _whole(columns, f"{path}/bytes").tobytes(), _whole(columns, f"{path}/offset").tolist()
        texts = [blob[a:b].decode() for a, b in pairwise(offset)]
        if name == "id":
            source.ids = texts
        else:
            source.example_columns[name] = texts
    source.whiteners = _exported_whiteners(folder, manifest, source, to)
    return source


def _exported_whiteners(folder: str, manifest: Any, source: Source, to: str | None) -> dict[str, Whitened]:
    found: dict[str, Whitened] = {}
    if not manifest.get("whiteners"):  # Exports of old do not say.
        return found
    file = TensorsReader(os.path.join(folder, WHITENERS))
    for name, own in manifest["whiteners"].items():
        told = whiteners.checked(own, name, folder)
        site, n_layers = told["site"], len(told["layers"])
        if name_problem(name) is not None:
            raise FormatError(f"{folder}: a whitener's name {name_problem(name)}", kind="metadata")
        for array in whiteners.ARRAYS:
            dtype, shape = file.tensors.get(f"{name}/{array}", ("nothing", ()))
            if dtype != "float64" or not shape:
                raise FormatError(
                    f"{file.path} holds {dtype} {list(shape)} as '{name}/{array}'", kind="metadata"
                )
        norms = None
        if site in source.specs or site in source.derived:
            entry = manifest["sites"][site]
            if not set(told["layers"]) <= set(entry["labels"]) or told["dim"] != entry["dim"]:
                raise FormatError(f"{folder}: whitener {name!r} is none of {site!r}", kind="metadata")
            if to in (None, entry["dtype"]) and f"{name}/norm" in file.tensors:
                norms = _norms_reader(file, f"{name}/norm", (source.rows_of(site), n_layers))
        whitened = Whitened(told, partial(_exported_whitener, file, name, told), norms)
        found[name] = whitened.among([*source.specs, *source.derived])
    return found


def _exported_whitener(file: TensorsReader, name: str, told: Mapping[str, Any]) -> Saved:
    arrays = {}
    for array in whiteners.ARRAYS:
        tensor = f"{name}/{array}"
        arrays[array] = file.read(tensor, 0, file.tensors[tensor][1][0]).ravel()
    return Saved(told, arrays)


def _norms_reader(file: TensorsReader, tensor: str, expected: tuple[int, int]) -> Read:
    dtype, shape = file.tensors[tensor]
    if dtype != "float64" or shape != expected:
        raise FormatError(
            f"{file.path} holds {dtype} {list(shape)} as {tensor!r}, expected {list(expected)}",
            kind="metadata",
        )
    return lambda start, stop: file.read(tensor, start, stop)


def _layers_reader(files: Sequence[tuple[TensorsReader, str]]) -> Read:
    return lambda start, stop: np.stack([file.read(tensor, start, stop) for file, tensor in files], axis=1)


def _rows_reader(file: TensorsReader, tensor: str, n_rows: int) -> Read:
    _expect(file, tensor, n_rows)
    return lambda start, stop: file.read(tensor, start, stop)


def _whole(file: TensorsReader, tensor: str) -> NDArray[Any]:
    return file.read(tensor, 0, _expect(file, tensor))


def _expect(file: TensorsReader, tensor: str, n_rows: int | None = None) -> int:
    """The length of a 1-D tensor of numbers that must be there."""
    dtype, shape = file.tensors.get(tensor, ("nothing", ()))
    if dtype not in COLUMN_DTYPES or len(shape) != 1 or (n_rows is not None and shape[0] != n_rows):
        raise FormatError(f"{file.path} holds {dtype} {list(shape)} as {tensor!r}", kind="metadata")
    return shape[0]


def _chosen(there: Sequence[str], sites: Sequence[str] | None, where: str) -> list[str]:
    if sites is None:
        return list(there)
    for name in sites:
        if name not in there:
            raise NotFoundError(f"{where} has no {name!r}, it has: {', '.join(there) or 'none'}")
    if not sites:
        raise InvalidInputError("sites: none chosen")
    return list(sites)


def token_values(columns: Mapping[str, Read], start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Rows of several columns."""
    return {name: read(start, stop) for name, read in columns.items()}
