"""A store as safetensors files, one for each layer of each site.

    actstore.json                what follows, and the store's identity
    resid.6.safetensors          tensor "resid.6" [rows, dim]
    columns.safetensors          "tokens/offset", "tokens/id", "examples/id/bytes", ...
    whiteners.safetensors        "white/mean", "white/components", "white/variance", "white/norm", ...

No site's file can be called so: a site's name is followed by a label.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native, whiteners
from ..columns import Columns
from ..errors import ActstoreWarning, InvalidInputError, NotFoundError, StorageError
from ..incoming import pack_strings
from ..layout import EXAMPLES
from ..parts import STRINGS
from ..store import Progress, Store
from ..store import open as open_store
from .files import as_path, new_directory, storage_errors, sync_tree
from .safetensors import TensorsWriter

MANIFEST = "actstore.json"
COLUMNS = "columns.safetensors"
WHITENERS = "whiteners.safetensors"
EXPORT_FORMAT = 1
BLOCK_BYTES = 32 << 20


def export(
    store: Store | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    sites: Sequence[str] | None = None,
    overwrite: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write a store as a directory of safetensors files, which `import_` makes a store of again.

    Memory stays small whatever the store's size, but for one whitener at a time; `path` appears when it is
    complete. Whiteners that this version cannot read are left out, with a warning.

    Parameters
    ----------
    store : Store or path
        What to export.
    path : path
        The directory to make.
    sites : sequence of str, optional
        Only these; by default all.
    overwrite : bool
        Replace an earlier export.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Raises
    ------
    NotFoundError
        When there is no such store or site.
    StorageError
        When `path` exists (kind ``exists``) or the disk fails.

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
    if not isinstance(store, Store):
        with open_store(store) as opened:
            export(opened, path, sites=sites, overwrite=overwrite, threads=threads, progress=progress)
        return
    chosen = store.sites if sites is None else list(sites)
    for name in chosen:
        store[name]  # raises for one that is not there
    if not chosen:
        raise InvalidInputError("export: no sites")
    with new_directory(as_path(path, "export"), overwrite, _check_replaceable, _put_in_place) as folder:
        with storage_errors(folder):
            os.mkdir(folder)
        _write_layers(store, chosen, folder, threads, progress)
        _write_columns(store, folder)
        whitened = _write_whiteners(store, chosen, folder)
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
                for name in chosen
            },
            "axes": {axis: columns.dtypes for axis, columns in store.axes.items()},
            "examples": store.examples.dtypes,
            "whiteners": whitened,
        }
        with storage_errors(folder):
            with open(os.path.join(folder, MANIFEST), "x", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1)
            sync_tree(folder)


def _derived(store: Store, name: str) -> dict[str, Any]:
    recipe = store._snapshot.recipe(name)
    return {} if recipe is None else {"derived": recipe}


def _check_replaceable(path: str) -> None:
    """An export, and nothing else in its folder."""
    try:
        with open(os.path.join(path, MANIFEST), encoding="utf-8") as file:
            sites = json.load(file)["sites"]
        layers = {
            f"{layer_name(name, label)}.safetensors" for name in sites for label in sites[name]["labels"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        raise StorageError(
            f"{path} exists and is no export", kind="exists", hint="remove it yourself"
        ) from None
    strange = sorted(set(os.listdir(path)) - layers - {MANIFEST, COLUMNS, WHITENERS})
    if strange:
        raise StorageError(
            f"{path} holds {strange[0]!r}, which is no part of the export", kind="exists", hint="move it away"
        )


def _put_in_place(new: str, path: str) -> None:
    _check_replaceable(path)
    _native.exchange(new, path)


def layer_name(site: str, label: int) -> str:
    """The tensor of a layer; its file adds ``.safetensors``."""
    return f"{site}.{label}"


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
                    view = site.select(layers=label, tokens=slice(start, start + n_block))
                    block = view.read(threads=threads)
                    file.write(tensor, block[:, 0])
                    done += block.nbytes
                    if progress is not None:
                        progress(done, total)


def _write_columns(store: Store, folder: str) -> None:
    """Columns of numbers go block by block; offsets and strings, one per example, at once."""
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    small: dict[str, NDArray[Any]] = {}
    large: dict[str, tuple[Columns, str]] = {}
    for axis, columns in {**store.axes, EXAMPLES: store.examples}.items():
        if axis != EXAMPLES:
            small[f"{axis}/offset"] = columns.offset
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
    """Whiteners one by one; the norms of a site that is exported, where all are there, by blocks."""
    found = stored_whiteners(store)
    if not found:
        return {}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    norms: dict[str, Any] = {}
    for name, told in found.items():
        n_layers, dim, most = len(told["layers"]), told["dim"], max(told["rank"])
        shapes = {"mean": (n_layers, dim), "components": (n_layers, most, dim), "variance": (n_layers, most)}
        tensors |= {f"{name}/{array}": ("float64", shape) for array, shape in shapes.items()}
        read = norms_of_site(store, told) if told["site"] in sites else None
        if read is not None:
            norms[name] = read
            tensors[f"{name}/norm"] = "float64", (store[told["site"]].shape[0], n_layers)
    with TensorsWriter(os.path.join(folder, WHITENERS), tensors) as file:
        for name in found:
            for array, values in whiteners.read(store._snapshot.parts[0], name).arrays.items():
                file.write(f"{name}/{array}", values)
        for name, read in norms.items():
            n_rows, n_layers = tensors[f"{name}/norm"][1]
            n_block = max(1, BLOCK_BYTES // (8 * n_layers))
            for start in range(0, n_rows, n_block):
                file.write(f"{name}/norm", read(start, min(start + n_block, n_rows)))
    return found


def stored_whiteners(store: Store) -> dict[str, Mapping[str, Any]]:
    """What the whiteners of a store say of themselves, by name; warns of those that cannot be read."""
    found = {}
    for name, told in whiteners.describe(store._snapshot.parts, keys=None).items():
        if "error" in told:
            warnings.warn(f"left out: {told['error']}", ActstoreWarning, stacklevel=4)
        else:
            found[name] = told
    return found


def norms_of_site(store: Store, told: Mapping[str, Any]) -> Callable[[int, int], NDArray[np.float64]] | None:
    """Reads the norms of the rows of a whitener's site; None where a store lacks any."""
    origin = store[told["site"]]._origin
    return whiteners.norms_reader(origin, told["digest"], len(told["layers"]))


def missing_export(path: str) -> NotFoundError:
    """For a directory that has neither a Zarr group nor an export in it."""
    return NotFoundError(f"{path} has neither zarr.json nor {MANIFEST}", hint="name a file or a Zarr group")
