"""Reading directories that `actstore.export` made."""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...artifacts import whiteners
from ...artifacts.whiteners import WhitenerState
from ...base.arrays import COLUMN_DTYPES
from ...base.checks import name_problem
from ...disk.layout import EXAMPLES
from ...disk.parts import STRINGS
from ...disk.recipe import Derived, parse_derived
from ...disk.spec import SiteSpec
from ...errors import FormatError, InvalidInputError
from ..export_layout import COLUMNS, EXPORT_FORMAT, MANIFEST, WHITENERS, layer_name
from ..safetensors import TensorsReader
from .source import ImportedWhitener, ImportSource, ReadRows, choose_sites

_ABSENT: tuple[str, tuple[int, ...]] = ("nothing", ())
"""The dtype and shape in error messages for a tensor that a file lacks."""


def from_export(folder: str, sites: Sequence[str] | None, to: str | None) -> ImportSource:
    """The content of a directory that `export` made.

    Raises
    ------
    NotFoundError
        When there is no such site, or a file is missing.
    FormatError
        When the export has a newer format, or its files contradict the manifest.
    """
    path = os.path.join(folder, MANIFEST)
    try:
        with open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest["format"] > EXPORT_FORMAT:
            raise FormatError(
                f"{path} has format {manifest['format']}, this actstore reads up to {EXPORT_FORMAT}",
                kind="version",
            )
        return _from_manifest(folder, manifest, sites, to)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise FormatError(f"{path} is malformed: {error!r}", kind="metadata") from error


def _from_manifest(folder: str, manifest: Any, sites: Sequence[str] | None, to: str | None) -> ImportSource:
    specs: dict[str, SiteSpec] = {}
    read: dict[str, ReadRows] = {}
    rows: dict[str, int] = {EXAMPLES: manifest["n_examples"]}
    derived: dict[str, tuple[Derived, ReadRows]] = {}
    names = choose_sites(list(manifest["sites"]), sites, folder)
    for name in names:
        entry = manifest["sites"][name]
        axis, labels, dim = entry["axis"], entry["labels"], entry["dim"]
        spec = SiteSpec(len(labels), dim, to or entry["dtype"], labels, axis)
        layers = [_open_layer(folder, name, label, entry, rows) for label in spec.labels or ()]
        recipe = entry.get("derived")
        if recipe is not None and to is None and recipe["source"] in names:
            attributes = json.dumps({"actstore": {"derived": recipe, "axis": axis, "labels": labels}})
            shape = (rows[axis], len(layers), dim)
            where, axes = f"{folder}: {name}", tuple(manifest["axes"])
            site = parse_derived(attributes, shape, entry["dtype"], "blosc", where, axes)
            derived[name] = site, _layers_reader(layers)
        else:
            specs[name], read[name] = spec, _layers_reader(layers)
    source = ImportSource(specs, read, rows, identity=manifest["identity"], derived=derived)
    _add_columns(source, folder, manifest)
    source.whiteners = _whiteners(folder, manifest, source, to)
    return source


def _open_layer(
    folder: str, site: str, label: int, entry: Any, rows: dict[str, int]
) -> tuple[TensorsReader, str]:
    """Open the file of a layer and check its tensor; record the axis's rows if this is its first tensor."""
    tensor = layer_name(site, label)
    # basename: a manifest must not lead out of the folder.
    file = TensorsReader(os.path.join(folder, f"{os.path.basename(tensor)}.safetensors"))
    dtype, shape = file.tensors.get(tensor, _ABSENT)
    n_rows = rows.setdefault(entry["axis"], shape[0] if shape else 0)
    if dtype != entry["dtype"] or shape != (n_rows, entry["dim"]):
        raise FormatError(
            f"{file.path} holds {dtype} {list(shape)} as {tensor!r}, expected "
            f"{entry['dtype']} [{n_rows}, {entry['dim']}]",
            kind="metadata",
        )
    return file, tensor


def _layers_reader(layers: Sequence[tuple[TensorsReader, str]]) -> ReadRows:
    return lambda start, stop: np.stack([file.read(tensor, start, stop) for file, tensor in layers], axis=1)


def _add_columns(source: ImportSource, folder: str, manifest: Any) -> None:
    """Add offsets, ids and columns."""
    file = TensorsReader(os.path.join(folder, COLUMNS))
    axes = {spec.axis for spec in source.specs.values()} - {EXAMPLES}
    source.offsets = {axis: _read_whole(file, f"{axis}/offset") for axis in axes}
    for axis in axes:
        source.token_columns[axis] = {
            name: _column_reader(file, f"{axis}/{name}", source.rows[axis]) for name in manifest["axes"][axis]
        }
    for name, dtype in manifest["examples"].items():
        path = f"{EXAMPLES}/{name}"
        if dtype != STRINGS:
            source.example_columns[name] = _read_whole(file, path)
            continue
        blob = _read_whole(file, f"{path}/bytes").tobytes()
        offsets = _read_whole(file, f"{path}/offset").tolist()
        strings = [blob[start:stop].decode() for start, stop in pairwise(offsets)]
        if name == "id":
            source.ids = strings
        else:
            source.example_columns[name] = strings


def _column_reader(file: TensorsReader, tensor: str, n_rows: int) -> ReadRows:
    _check_column(file, tensor, n_rows)
    return lambda start, stop: file.read(tensor, start, stop)


def _read_whole(file: TensorsReader, tensor: str) -> NDArray[Any]:
    return file.read(tensor, 0, _check_column(file, tensor))


def _check_column(file: TensorsReader, tensor: str, n_rows: int | None = None) -> int:
    """Check that a file has a 1-D tensor of numbers; return its length."""
    dtype, shape = file.tensors.get(tensor, _ABSENT)
    if dtype not in COLUMN_DTYPES or len(shape) != 1 or (n_rows is not None and shape[0] != n_rows):
        raise FormatError(f"{file.path} holds {dtype} {list(shape)} as {tensor!r}", kind="metadata")
    return shape[0]


def _whiteners(
    folder: str, manifest: Any, source: ImportSource, to: str | None
) -> dict[str, ImportedWhitener]:
    imported: dict[str, ImportedWhitener] = {}
    if not manifest.get("whiteners"):  # Older exports have no such key.
        return imported
    file = TensorsReader(os.path.join(folder, WHITENERS))
    for name, attributes in manifest["whiteners"].items():
        metadata = whiteners.checked(attributes, name, folder)
        if (problem := name_problem(name)) is not None:
            raise FormatError(f"{folder}: a whitener's name {problem}", kind="metadata")
        for array in whiteners.ARRAYS:
            dtype, shape = file.tensors.get(f"{name}/{array}", _ABSENT)
            if dtype != "float64" or not shape:
                raise FormatError(
                    f"{file.path} holds {dtype} {list(shape)} as '{name}/{array}'", kind="metadata"
                )
        norms = None
        site, labels = metadata["site"], metadata["layers"]
        if site in source.specs or site in source.derived:
            entry = manifest["sites"][site]
            if not set(labels) <= set(entry["labels"]) or metadata["dim"] != entry["dim"]:
                raise FormatError(
                    f"{folder}: the layers or the dim of whitener {name!r} are not those of {site!r}",
                    kind="metadata",
                )
            if to in (None, entry["dtype"]) and f"{name}/norm" in file.tensors:
                norms = _norms_reader(file, f"{name}/norm", (source.rows_of(site), len(labels)))
        whitener = ImportedWhitener(metadata, partial(_load_whitener, file, name, metadata), norms)
        imported[name] = whitener.restricted_to([*source.specs, *source.derived])
    return imported


def _load_whitener(file: TensorsReader, name: str, metadata: Mapping[str, Any]) -> WhitenerState:
    arrays = {}
    for array in whiteners.ARRAYS:
        tensor = f"{name}/{array}"
        arrays[array] = file.read(tensor, 0, file.tensors[tensor][1][0]).ravel()
    return WhitenerState(metadata, arrays)


def _norms_reader(file: TensorsReader, tensor: str, expected: tuple[int, int]) -> ReadRows:
    dtype, shape = file.tensors[tensor]
    if dtype != "float64" or shape != expected:
        raise FormatError(
            f"{file.path} holds {dtype} {list(shape)} as {tensor!r}, expected float64 {list(expected)}",
            kind="metadata",
        )
    return lambda start, stop: file.read(tensor, start, stop)
