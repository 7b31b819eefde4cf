"""Writing a store as safetensors files; see `export_layout` for the files."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..artifacts import whiteners
from ..base.checks import as_path
from ..base.progress import Progress
from ..disk.append_args import pack_strings
from ..disk.columns import Columns
from ..disk.layout import EXAMPLES
from ..disk.parts import STRINGS
from ..errors import InvalidInputError, StorageError
from ..store import Store
from ..store import open as open_store
from .export_layout import COLUMNS, EXPORT_FORMAT, MANIFEST, WHITENERS, layer_name
from .files import new_directory, storage_errors, sync_tree
from .safetensors import TensorsWriter
from .stored_whiteners import site_norms, stored_whiteners

BLOCK_BYTES = 32 << 20
"""Bytes to copy at once."""


def export(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    sites: Sequence[str] | None = None,
    overwrite: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write a store as a directory of safetensors files, which `import_` converts back to a store.

    Memory use is small whatever the store's size, except that whiteners are held one at a time. The directory
    appears at `path` only when it is complete. Whiteners that this version cannot read are left out, with a
    warning.

    Parameters
    ----------
    store : Store or path
        The store to export.
    path : path
        The directory to create.
    sites : sequence of str, optional
        The sites to export; by default all.
    overwrite : bool
        Replace an earlier export at `path`.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Raises
    ------
    NotFoundError
        When there is no such store or site.
    InvalidInputError
        When there are no sites to export.
    StorageError
        When `path` exists (kind ``exists``), or the disk fails or is full.

    Examples
    --------
    >>> import actstore, numpy as np, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with actstore.create(folder + "/x.act", {"resid": actstore.SiteSpec(2, 4, "float32")}) as w:
    ...     w.append({"resid": np.ones((3, 2, 4), np.float32)}, lengths=[1, 2])
    >>> actstore.export(folder + "/x.act", folder + "/x")
    >>> sorted(os.listdir(folder + "/x"))
    ['actstore.json', 'columns.safetensors', 'resid.0.safetensors', 'resid.1.safetensors']
    """
    if isinstance(store, Store):
        _export(store, path, sites, overwrite, threads, progress)
    else:
        with open_store(store) as opened:
            _export(opened, path, sites, overwrite, threads, progress)


def _export(
    store: Store,
    path: str | os.PathLike[str],
    sites: Sequence[str] | None,
    overwrite: bool,
    threads: int,
    progress: Progress | None,
) -> None:
    names = store.sites if sites is None else list(sites)
    for name in names:
        store[name]  # Raises NotFoundError for a missing site.
    if not names:
        raise InvalidInputError("export: no sites")
    with new_directory(as_path(path, "export"), overwrite, _check_replaceable, _exchange) as folder:
        with storage_errors(folder):
            os.mkdir(folder)
        _write_layers(store, names, folder, threads, progress)
        _write_columns(store, folder)
        whitener_metadata = _write_whiteners(store, names, folder)
        manifest = {
            "format": EXPORT_FORMAT,
            "identity": store.identity,
            "n_examples": store.n_examples,
            "sites": {
                name: {
                    "axis": store[name].axis,
                    "labels": store[name].layers,
                    "dtype": store[name].dtype.name,
                    "dim": store[name].shape[2],
                    **_derived(store, name),
                }
                for name in names
            },
            "axes": {axis: columns.dtypes for axis, columns in store.axes.items()},
            "examples": store.examples.dtypes,
            "whiteners": whitener_metadata,
        }
        with storage_errors(folder):
            with open(os.path.join(folder, MANIFEST), "x", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1)
            sync_tree(folder)


def _derived(store: Store, name: str) -> dict[str, Any]:
    recipe = store.snapshot.recipe(name)
    return {} if recipe is None else {"derived": recipe}


def _check_replaceable(path: str) -> None:
    """Raise StorageError unless `path` is an export with no other files in its folder."""
    try:
        with open(os.path.join(path, MANIFEST), encoding="utf-8") as file:
            sites = json.load(file)["sites"]
        layers = {
            f"{layer_name(name, label)}.safetensors" for name in sites for label in sites[name]["labels"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise StorageError(
            f"{path} exists and is not an export", kind="exists", hint="remove it yourself"
        ) from None
    others = sorted(set(os.listdir(path)) - layers - {MANIFEST, COLUMNS, WHITENERS})
    if others:
        raise StorageError(
            f"{path} contains {others[0]!r}, which is not part of the export",
            kind="exists",
            hint="move it away",
        )


def _exchange(new: str, path: str) -> None:
    _check_replaceable(path)
    _native.exchange(new, path)


def _write_layers(
    store: Store, sites: Sequence[str], folder: str, threads: int, progress: Progress | None
) -> None:
    total = sum(int(np.prod(store[name].shape, dtype=object)) * store[name].dtype.itemsize for name in sites)
    done = 0
    for name in sites:
        site = store[name]
        n_rows, _, dim = site.shape
        n_block = max(1, BLOCK_BYTES // (dim * site.dtype.itemsize))
        for label in site.layers:
            tensor = layer_name(name, label)
            path = os.path.join(folder, f"{tensor}.safetensors")
            with TensorsWriter(path, {tensor: (site.dtype.name, (n_rows, dim))}) as file:
                for start in range(0, n_rows, n_block):
                    view = site.select(layers=label, rows=slice(start, start + n_block))
                    block = view.read(threads=threads)
                    file.write(tensor, block[:, 0])
                    done += block.nbytes
                    if progress is not None:
                        progress(done, total)


def _write_columns(store: Store, folder: str) -> None:
    """Write numeric columns in blocks; write offsets and strings, which are small, at once."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    small: dict[str, NDArray[Any]] = {}
    large: dict[str, tuple[Columns, str]] = {}
    for axis, columns in {**store.axes, EXAMPLES: store.examples}.items():
        if axis != EXAMPLES:
            small[f"{axis}/offset"] = columns.offsets
        for name, dtype in columns.dtypes.items():
            if dtype == STRINGS:
                blob, ends = pack_strings(columns[name].tolist())
                small[f"{axis}/{name}/bytes"] = blob
                small[f"{axis}/{name}/offset"] = np.concatenate([np.zeros(1, np.int64), ends])
            else:
                large[f"{axis}/{name}"] = columns, name
                tensors[f"{axis}/{name}"] = dtype, (columns.n_rows,)
    tensors |= {name: (array.dtype.name, array.shape) for name, array in small.items()}
    with TensorsWriter(os.path.join(folder, COLUMNS), tensors) as file:
        for path, array in small.items():
            file.write(path, array)
        for path, (columns, name) in large.items():
            for start in range(0, columns.n_rows, BLOCK_BYTES // 8):
                file.write(path, columns.read(name, start, min(start + BLOCK_BYTES // 8, columns.n_rows)))


def _write_whiteners(store: Store, sites: Sequence[str], folder: str) -> dict[str, Mapping[str, Any]]:
    """Write the whiteners one at a time, and the norms of exported sites in blocks; return the metadata."""
    all_metadata = stored_whiteners(store, stacklevel=5)
    if not all_metadata:
        return {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    norms: dict[str, Any] = {}
    for name, metadata in all_metadata.items():
        n_layers, dim, max_rank = len(metadata["layers"]), metadata["dim"], max(metadata["rank"])
        shapes = {
            "mean": (n_layers, dim),
            "components": (n_layers, max_rank, dim),
            "variance": (n_layers, max_rank),
        }
        tensors |= {f"{name}/{array}": ("float64", shape) for array, shape in shapes.items()}
        read = site_norms(store, metadata) if metadata["site"] in sites else None
        if read is not None:
            norms[name] = read
            tensors[f"{name}/norm"] = "float64", (store[metadata["site"]].shape[0], n_layers)
    with TensorsWriter(os.path.join(folder, WHITENERS), tensors) as file:
        for name in all_metadata:
            for array, values in whiteners.read(store.snapshot.parts[0], name).arrays.items():
                file.write(f"{name}/{array}", values)
        for name, read in norms.items():
            n_rows, n_layers = tensors[f"{name}/norm"][1]
            n_block = max(1, BLOCK_BYTES // (8 * n_layers))
            for start in range(0, n_rows, n_block):
                file.write(f"{name}/norm", read(start, min(start + n_block, n_rows)))
    return all_metadata
