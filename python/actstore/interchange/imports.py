"""Making a store of what lies in other files."""

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..arrays import SITE_DTYPES, dtype_named, integers
from ..create import create
from ..derived import write_copy
from ..errors import InvalidInputError, NotFoundError, ShapeError
from ..layout import EXAMPLES, check_name
from ..parts import find_parts
from ..store import Progress
from ..store import open as open_store
from ..whiten import restore
from ..writer import StoreWriter
from .export import MANIFEST, missing_export
from .files import as_path, new_directory
from .sources import Source, from_export, from_numpy, from_store, from_tensors, load_npy, token_values

_BLOCK_BYTES = 32 << 20
_BLOCK_EXAMPLES = 1 << 15


def import_(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    offsets: Any = None,
    lengths: Any = None,
    ids: Sequence[str] | None = None,
    site: str = "resid",
    sites: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    dtype: Any = None,
    codec: Literal["blosc", "raw"] = "blosc",
    overwrite: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Make a store of a file or directory in another format.

    Memory stays small whatever the size, but for one whitener at a time; `path` appears when the store is
    complete. Derived sites stay derived when what they are made of is imported too, and not cast. Whiteners
    come along, unless `labels` call layers otherwise or this version cannot read them; where values are cast,
    the norms of whitened rows are computed anew.

    Parameters
    ----------
    source : path
        - a directory made by `export`;
        - a ``.safetensors`` file: each tensor ``[rows, dim]`` or ``[rows, layers, dim]`` is a site;
        - an ``.npy`` file ``[rows, dim]`` or ``[rows, layers, dim]``;
        - a Zarr v3 group, whose 3-D float arrays are sites, or one such array; or a store.
    path : path
        The store to make.
    offsets : array of int ``[n_examples + 1]`` or path of an .npy file, optional
        Where each example begins, if `source` does not say. Without it all rows are one example.
    lengths : array of int ``[n_examples]`` or path of an .npy file, optional
        Rows of each example, instead of `offsets`.
    ids : sequence of str, optional
        Names of the examples, if `source` has none.
    site : str
        What to call the one site of an .npy file.
    sites : sequence of str, optional
        Only these of several sites.
    labels : sequence of int, optional
        What to call the layers, if `source` does not say.
    dtype : str or dtype, optional
        Cast to bfloat16, float16 or float32, each value rounded once.
    codec : {"blosc", "raw"}
        As for `create`.
    overwrite : bool
        Replace a store that is at `path`.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the bytes done and the bytes in all.

    Raises
    ------
    NotFoundError
        When there is no `source`, or no such site in it.
    InvalidInputError
        When it cannot be a store, or offsets do not fit.
    FormatError
        When it is damaged.
    StorageError
        When `path` exists (kind ``exists``) or the disk fails.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> np.save(folder + "/x.npy", np.ones((5, 2, 4), np.float32))
    >>> actstore.import_(folder + "/x.npy", folder + "/x.act", lengths=[2, 3], labels=[6, 12])
    >>> actstore.open(folder + "/x.act")["resid"].example(1).shape
    (3, 2, 4)
    """
    source, path = as_path(source, "import: source"), as_path(path, "import: path")
    to = None if dtype is None else dtype_named(dtype, SITE_DTYPES, "import").name
    with _opened(source, check_name(site, "site"), sites, labels, to) as found:
        _set_offsets(found, offsets, lengths, source)
        if ids is not None:
            found.ids = list(ids)
        n_examples = _count(found)
        with new_directory(path, overwrite, _native.check_replaceable, _native.put_in_place) as partial:
            writer = create(partial, found.specs, codec=codec, identity=found.identity, threads=threads)
            later = {name: _bytes_of_norms(found, name) for name in found.whiteners}
            with writer:
                done = _copy(found, writer, n_examples, sum(later.values()), progress)
            total = done + sum(later.values())
            for name, (derived, read) in found.derived.items():
                write_copy(partial, name, replace(derived, codec=codec), read, threads)
            for name, whitened in found.whiteners.items():
                step = _share_of(progress, done, later[name], total)
                restore(partial, name, whitened.load(), whitened.told["site"], whitened.norms, threads, step)
                done += later[name]


@contextlib.contextmanager
def _opened(
    source: str, site: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> Iterator[Source]:
    if not os.path.exists(source):
        raise NotFoundError(f"{source} does not exist")
    if os.path.isfile(source):
        if source.endswith(".safetensors"):
            yield from_tensors(source, sites, labels, to)
        elif source.endswith(".npy"):
            yield from_numpy(source, site, labels, to)
        else:
            raise InvalidInputError(
                f"{source} is of no kind that can be imported",
                hint=".npy, .safetensors, a Zarr group or an export",
            )
    elif os.path.isfile(os.path.join(source, MANIFEST)):
        if labels is not None:
            raise InvalidInputError(f"{source} says itself what its layers are called")
        yield from_export(source, sites, to)
    else:
        with contextlib.ExitStack() as stack:
            group = source
            if _is_zarr_array(source):
                group = stack.enter_context(_group_around(source))
            elif not os.path.exists(os.path.join(source, "zarr.json")) and not _holds_parts(source):
                raise missing_export(source)
            yield from_store(stack.enter_context(open_store(group)), source, sites, labels, to)


def _is_zarr_array(path: str) -> bool:
    try:
        with open(os.path.join(path, "zarr.json"), encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("node_type") == "array"


@contextlib.contextmanager
def _group_around(array: str) -> Iterator[str]:
    """A passing group with a link to the array in it: the reader reads groups."""
    import tempfile

    name = os.path.basename(os.path.abspath(array))
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "zarr.json"), "w", encoding="utf-8") as file:
            json.dump({"zarr_format": 3, "node_type": "group", "attributes": {}}, file)
        os.symlink(os.path.abspath(array), os.path.join(folder, name))
        yield folder


def _holds_parts(path: str) -> bool:
    try:
        return bool(find_parts(path))
    except NotFoundError:
        return False


def _set_offsets(found: Source, offsets: Any, lengths: Any, source: str) -> None:
    axes = sorted({spec.axis for spec in found.specs.values()} - {EXAMPLES})
    if offsets is None and lengths is None:
        if found.offsets is None:
            found.offsets = {axis: np.array([0, found.rows[axis]]) for axis in axes}
        return
    if offsets is not None and lengths is not None:
        raise InvalidInputError("import: both offsets and lengths are given")
    if len(axes) != 1 or (found.offsets is not None and len(found.offsets[axes[0]]) > 2):
        raise InvalidInputError(f"{source} says itself where its examples begin")
    what = "lengths" if offsets is None else "offsets"
    given = lengths if offsets is None else offsets
    numbers = integers(load_npy(os.fspath(given)) if isinstance(given, str | os.PathLike) else given, what)
    if offsets is None:
        numbers = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers)])
    n_rows = found.rows[axes[0]]
    if not len(numbers) or numbers[0] != 0 or (np.diff(numbers) < 0).any() or numbers[-1] != n_rows:
        raise ShapeError(f"{what} do not rise from 0 to the {n_rows} rows of {source}")
    found.offsets, found.ids = {axes[0]: numbers}, None
    found.drop_derived()


def _count(found: Source) -> int:
    """Examples, as everything in the source must agree."""
    counts = {axis: len(offset) - 1 for axis, offset in (found.offsets or {}).items()}
    for axis, offset in (found.offsets or {}).items():
        if offset[0] != 0 or (np.diff(offset) < 0).any() or offset[-1] != found.rows[axis]:
            raise ShapeError(f"offsets of axis {axis!r} do not rise from 0 to its {found.rows[axis]} rows")
    if any(spec.axis == EXAMPLES for spec in found.specs.values()):
        counts["sites on axis 'examples'"] = found.rows[EXAMPLES]
    if found.ids is not None:
        counts["ids"] = len(found.ids)
        if len(set(found.ids)) != len(found.ids):
            twice = next(name for name, n in Counter(found.ids).items() if n > 1)
            raise InvalidInputError(f"two examples have the id {twice!r}")
    counts |= {f"derived site {name!r}": derived.rows for name, (derived, _) in found.derived.items()}
    counts |= {f"column {name!r}": len(values) for name, values in found.example_columns.items()}
    if len(set(counts.values())) > 1:
        raise ShapeError(
            "the number of examples differs: " + ", ".join(f"{k}: {n}" for k, n in counts.items())
        )
    return next(iter(counts.values()))


def _copy(found: Source, writer: StoreWriter, n_examples: int, later: int, progress: Progress | None) -> int:
    """Examples in groups of bounded size; of one that is larger still, its rows in blocks.

    Bytes that were copied, where `later` are to follow.
    """
    offsets = found.offsets or {}
    sizes = _row_bytes(found)
    # Bytes before each example, over all axes.
    before = np.arange(n_examples + 1, dtype=np.int64) * sizes.get(EXAMPLES, 0)
    for axis, offset in offsets.items():
        before = before + offset * sizes[axis]
    total = int(before[-1]) + later
    start = 0
    while start < n_examples:
        stop = int(np.searchsorted(before, before[start] + _BLOCK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + _BLOCK_EXAMPLES, n_examples)
        rows = {axis: (int(offset[start]), int(offset[stop])) for axis, offset in offsets.items()}
        rows[EXAMPLES] = start, stop
        n_blocks = -(-int(before[stop] - before[start]) // _BLOCK_BYTES)
        acts = rows
        if stop == start + 1 and n_blocks > 1:
            for i in range(n_blocks - 1):
                block = {axis: _share(span, i, n_blocks) for axis, span in rows.items()}
                block[EXAMPLES] = start, start  # its row goes with the last
                writer._append_ahead(_acts(found, block), cast=True)
                if progress is not None:
                    progress(int(before[start]) + (i + 1) * _BLOCK_BYTES, total)
            acts = {axis: _share(span, n_blocks - 1, n_blocks) for axis, span in rows.items()}
            acts[EXAMPLES] = start, stop
        writer.append(
            _acts(found, acts),
            {axis: np.diff(offset[start : stop + 1]) for axis, offset in offsets.items()} or None,
            ids=None if found.ids is None else found.ids[start:stop],
            tokens={
                axis: token_values(columns, *rows[axis])
                for axis, columns in found.token_columns.items()
                if columns
            }
            or None,
            columns={name: values[start:stop] for name, values in found.example_columns.items()},
            cast=True,
        )
        start = stop
        if progress is not None:
            progress(int(before[stop]), total)
    return int(before[-1])


def _bytes_of_norms(found: Source, name: str) -> int:
    """Of the values that a whitener's norms have to be computed from."""
    whitened = found.whiteners[name]
    told = whitened.told
    if whitened.norms is not None or told["site"] is None:
        return 0
    return found.rows_of(told["site"]) * len(told["layers"]) * int(told["dim"]) * 4


def _share_of(progress: Progress | None, before: int, share: int, total: int) -> Progress | None:
    """The progress of a step as that of all, of which it is a share."""
    if progress is None or share == 0:
        return None
    return lambda done, all_: progress(before + share * done // max(all_, 1), total)


def _row_bytes(found: Source) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spec in found.specs.values():
        n_bytes = spec.n_layers * spec.dim * SITE_DTYPES[spec.dtype].itemsize
        sizes[spec.axis] = sizes.get(spec.axis, 0) + n_bytes
    return sizes


def _share(span: tuple[int, int], i: int, n: int) -> tuple[int, int]:
    """The i-th of n pieces of a run of rows."""
    length = span[1] - span[0]
    return span[0] + length * i // n, span[0] + length * (i + 1) // n


def _acts(found: Source, rows: dict[str, tuple[int, int]]) -> dict[str, NDArray[Any]]:
    return {name: read(*rows[found.specs[name].axis]) for name, read in found.read.items()}
