"""Reading stores and foreign Zarr groups."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from ...artifacts import whiteners
from ...disk.columns import Columns
from ...disk.layout import EXAMPLES
from ...disk.parts import STRINGS
from ...disk.recipe import Derived
from ...disk.spec import SiteSpec
from ...errors import InvalidInputError
from ...store import Store
from ..stored_whiteners import site_norms, stored_whiteners
from .source import ImportedWhitener, ImportSource, ReadRows, choose_sites, site_spec

_STACK_LEVEL = 7
"""From `stored_whiteners` up to the caller of `import_`; entering `open_source` takes two frames."""


def from_store(
    store: Store, where: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> ImportSource:
    """The sites, columns and whiteners of an open store or foreign Zarr group.

    Raises
    ------
    NotFoundError
        When there is no such site.
    InvalidInputError
        When there are no sites, or one cannot be imported.
    """
    names = choose_sites(store.sites, sites, where)
    if not names:
        raise InvalidInputError(f"{where} has no 3-D array of floats")
    specs: dict[str, SiteSpec] = {}
    read: dict[str, ReadRows] = {}
    rows: dict[str, int] = {}
    derived: dict[str, tuple[Derived, ReadRows]] = {}
    for name in names:
        site = store[name]
        coverage = store.snapshot.derived.get(name)
        unchanged = to is None and labels is None
        if coverage is not None and unchanged and coverage.site.recipe["source"] in names:
            derived[name] = replace(coverage.site, rows=coverage.covers), _site_reader(store, name)
            continue
        spec = site_spec(f"{where}: {name!r}", site.shape, site.dtype.name, labels or site.layers, to)
        specs[name] = SiteSpec(spec.n_layers, spec.dim, spec.dtype, spec.labels, site.axis)
        read[name] = _site_reader(store, name)
        rows[site.axis] = site.shape[0]
    used = {spec.axis for spec in specs.values()} - {EXAMPLES}
    axes = {axis: columns for axis, columns in store.axes.items() if axis in used}
    columns = store.examples
    return ImportSource(
        specs,
        read,
        rows,
        {axis: table.offsets for axis, table in axes.items()},
        store.identity,
        columns["id"].tolist(),
        {axis: {name: _column_reader(table, name) for name in table} for axis, table in axes.items()},
        {
            name: columns[name].tolist() if dtype == STRINGS else columns[name]
            for name, dtype in columns.dtypes.items()
            if name != "id"
        },
        derived,
        _whiteners(store, names, labels, to),
    )


def _whiteners(
    store: Store, sites: Sequence[str], labels: Sequence[int] | None, to: str | None
) -> dict[str, ImportedWhitener]:
    """The whiteners to import; none if the layers are relabeled, since a whitener names its layers."""
    if labels is not None and any(list(labels) != store[name].layers for name in sites):
        return {}
    imported: dict[str, ImportedWhitener] = {}
    for name, metadata in stored_whiteners(store, _STACK_LEVEL).items():
        site = metadata["site"]
        # A cast changes the rows, and with them the norms.
        norms_stay = site in sites and to in (None, store[site].dtype.name)
        load = partial(whiteners.read, store.snapshot.parts[0], name)
        norms = site_norms(store, metadata) if norms_stay else None
        imported[name] = ImportedWhitener(metadata, load, norms).restricted_to(sites)
    return imported


def _site_reader(store: Store, name: str) -> ReadRows:
    return lambda start, stop: store[name][start:stop]


def _column_reader(columns: Columns, name: str) -> ReadRows:
    return lambda start, stop: columns.read(name, start, stop)


def is_zarr_array(path: str) -> bool:
    """Whether a directory is a Zarr v3 array rather than a group."""
    try:
        with open(os.path.join(path, "zarr.json"), encoding="utf-8") as file:
            metadata = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(metadata, dict) and metadata.get("node_type") == "array"


@contextlib.contextmanager
def group_around(array: str) -> Iterator[str]:
    """A temporary Zarr group that links to one array, since only groups can be opened as stores."""
    import tempfile

    name = os.path.basename(os.path.abspath(array))
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "zarr.json"), "w", encoding="utf-8") as file:
            json.dump({"zarr_format": 3, "node_type": "group", "attributes": {}}, file)
        os.symlink(os.path.abspath(array), os.path.join(folder, name))
        yield folder
