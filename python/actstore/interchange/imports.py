"""Importing files and directories of other formats into a store."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..artifacts.pooled import write_copy
from ..base.arrays import SITE_DTYPES, dtype_named, integers
from ..base.checks import as_path, check_name
from ..base.progress import Progress
from ..disk.create import create
from ..disk.layout import EXAMPLES
from ..disk.writer import StoreWriter
from ..errors import InvalidInputError, ShapeError
from ..ops.stored_whiteners import copy_whitener
from .files import new_directory
from .importers.detect import open_source
from .importers.npy import load_npy
from .importers.source import ImportSource

_BLOCK_BYTES = 32 << 20
"""Bytes to copy at once."""
_BLOCK_EXAMPLES = 1 << 15
"""Examples to copy at once, at most."""


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
    """Create a store from a file or directory in another format.

    Memory use is small whatever the size, except that whiteners are held one at a time. The store appears at
    `path` only when it is complete. A derived site remains derived if the site it was computed from is
    imported too and neither is cast. Whiteners are imported unless `labels` relabel the layers or this
    version cannot read them; if values are cast, the norms of the whitened rows are recomputed.

    Parameters
    ----------
    source : path
        One of:

        - a directory made by `export`;
        - a ``.safetensors`` file, in which each tensor ``[rows, dim]`` or ``[rows, layers, dim]`` is a site;
        - an ``.npy`` file ``[rows, dim]`` or ``[rows, layers, dim]``;
        - a Zarr v3 group, whose 3-D float arrays are the sites, or one such array; or a store.
    path : path
        The store to create.
    offsets : array of int ``[n_examples + 1]`` or path of an .npy file, optional
        Where each example begins, if `source` does not contain it. By default, all rows are one example.
    lengths : array of int ``[n_examples]`` or path of an .npy file, optional
        Rows of each example, instead of `offsets`.
    ids : sequence of str, optional
        The examples' ids; by default those in `source`, else their positions.
    site : str
        Name of the site from an .npy file.
    sites : sequence of str, optional
        The sites to import; by default all.
    labels : sequence of int, optional
        The layers' labels; by default those in `source`, else 0, 1, 2, ...
    dtype : str or dtype, optional
        Cast to bfloat16, float16 or float32, rounding each value once.
    codec : {"blosc", "raw"}
        See `create`.
    overwrite : bool
        Replace an existing store at `path`.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called as ``progress(done, total)`` in bytes.

    Raises
    ------
    NotFoundError
        When `source` does not exist, or has no such site.
    InvalidInputError
        When `source` cannot be imported, or an argument is invalid.
    ShapeError
        When offsets, lengths or ids do not fit the rows.
    FormatError
        When `source` is damaged.
    StorageError
        When `path` exists (kind ``exists``), or the disk fails or is full.

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
    with open_source(source, check_name(site, "site"), sites, labels, to) as content:
        _set_offsets(content, offsets, lengths, source)
        if ids is not None:
            content.ids = list(ids)
        n_examples = _check_counts(content)
        with new_directory(path, overwrite, _native.check_replaceable, _native.put_in_place) as partial:
            writer = create(partial, content.specs, codec=codec, identity=content.identity, threads=threads)
            norm_bytes = {name: _bytes_to_recompute(content, name) for name in content.whiteners}
            with writer:
                done = _copy_examples(content, writer, n_examples, sum(norm_bytes.values()), progress)
            total = done + sum(norm_bytes.values())
            for name, (derived, read) in content.derived.items():
                write_copy(partial, name, replace(derived, codec=codec), read, threads)
            for name, whitener in content.whiteners.items():
                step = _scaled(progress, done, norm_bytes[name], total)
                site_name = whitener.metadata["site"]
                copy_whitener(partial, name, whitener.load(), site_name, whitener.norms, threads, step)
                done += norm_bytes[name]


def _set_offsets(content: ImportSource, offsets: Any, lengths: Any, source: str) -> None:
    """Set the offsets from the arguments, unless the source has its own."""
    axes = sorted({spec.axis for spec in content.specs.values()} - {EXAMPLES})
    if offsets is None and lengths is None:
        if content.offsets is None:
            content.offsets = {axis: np.array([0, content.rows[axis]]) for axis in axes}
        return
    if offsets is not None and lengths is not None:
        raise InvalidInputError("import: give either offsets or lengths, not both")
    # A source with a single example may be cut into several; other boundaries are kept.
    if len(axes) != 1 or (content.offsets is not None and len(content.offsets[axes[0]]) > 2):
        raise InvalidInputError(f"import: {source} has its own example boundaries")
    what = "lengths" if offsets is None else "offsets"
    given = lengths if offsets is None else offsets
    numbers = integers(load_npy(os.fspath(given)) if isinstance(given, str | os.PathLike) else given, what)
    if offsets is None:
        numbers = np.concatenate([np.zeros(1, np.int64), np.cumsum(numbers)])
    n_rows = content.rows[axes[0]]
    if not len(numbers) or not _rises(numbers, n_rows):
        expected = f"be non-negative and sum to {n_rows}" if offsets is None else f"rise from 0 to {n_rows}"
        raise ShapeError(f"{what} must {expected}, the number of rows of {source}")
    content.offsets, content.ids = {axes[0]: numbers}, None
    content.drop_derived()


def _rises(offsets: NDArray[np.int64], n_rows: int) -> bool:
    """Whether offsets rise from 0 to the number of rows."""
    return bool(offsets[0] == 0 and (np.diff(offsets) >= 0).all() and offsets[-1] == n_rows)


def _check_counts(content: ImportSource) -> int:
    """Check that all parts of the source have the same number of examples; return it."""
    offsets = content.offsets or {}
    counts = {axis: len(offset) - 1 for axis, offset in offsets.items()}
    for axis, offset in offsets.items():
        if not _rises(offset, content.rows[axis]):
            raise ShapeError(f"offsets of axis {axis!r} do not rise from 0 to its {content.rows[axis]} rows")
    if any(spec.axis == EXAMPLES for spec in content.specs.values()):
        counts["sites on axis 'examples'"] = content.rows[EXAMPLES]
    if content.ids is not None:
        counts["ids"] = len(content.ids)
        if len(set(content.ids)) != len(content.ids):
            repeated = next(name for name, n in Counter(content.ids).items() if n > 1)
            raise InvalidInputError(f"two examples have the id {repeated!r}")
    counts |= {f"derived site {name!r}": derived.rows for name, (derived, _) in content.derived.items()}
    counts |= {f"column {name!r}": len(values) for name, values in content.example_columns.items()}
    if len(set(counts.values())) > 1:
        raise ShapeError(
            "the number of examples differs: " + ", ".join(f"{what}: {n}" for what, n in counts.items())
        )
    return next(iter(counts.values()))


def _copy_examples(
    content: ImportSource, writer: StoreWriter, n_examples: int, remaining: int, progress: Progress | None
) -> int:
    """Copy all examples; return the number of bytes copied.

    Examples are copied in groups of bounded size. An example larger than a group is copied in blocks of rows.

    Parameters
    ----------
    content : ImportSource
    writer : StoreWriter
    n_examples : int
    remaining : int
        Bytes of work after the copy, for the total of `progress`.
    progress : callable, optional
    """
    offsets = content.offsets or {}
    row_bytes = _row_bytes(content)
    # Bytes before each example, over all axes.
    before = np.arange(n_examples + 1, dtype=np.int64) * row_bytes.get(EXAMPLES, 0)
    for axis, offset in offsets.items():
        before = before + offset * row_bytes[axis]
    total = int(before[-1]) + remaining
    start = 0
    while start < n_examples:
        stop = int(np.searchsorted(before, before[start] + _BLOCK_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), start + _BLOCK_EXAMPLES, n_examples)
        rows = {axis: (int(offset[start]), int(offset[stop])) for axis, offset in offsets.items()}
        rows[EXAMPLES] = start, stop
        n_blocks = -(-int(before[stop] - before[start]) // _BLOCK_BYTES)
        last_rows = rows
        if stop == start + 1 and n_blocks > 1:
            for i in range(n_blocks - 1):
                block = {axis: _piece(span, i, n_blocks) for axis, span in rows.items()}
                block[EXAMPLES] = start, start  # The last block adds the example's own row.
                writer.append_partial(_read_sites(content, block), cast=True)
                if progress is not None:
                    progress(int(before[start]) + (i + 1) * _BLOCK_BYTES, total)
            last_rows = {axis: _piece(span, n_blocks - 1, n_blocks) for axis, span in rows.items()}
            last_rows[EXAMPLES] = start, stop
        writer.append(
            _read_sites(content, last_rows),
            {axis: np.diff(offset[start : stop + 1]) for axis, offset in offsets.items()} or None,
            ids=None if content.ids is None else content.ids[start:stop],
            token_columns={
                axis: {name: read(*rows[axis]) for name, read in columns.items()}
                for axis, columns in content.token_columns.items()
                if columns
            }
            or None,
            columns={name: values[start:stop] for name, values in content.example_columns.items()},
            cast=True,
        )
        start = stop
        if progress is not None:
            progress(int(before[stop]), total)
    return int(before[-1])


def _bytes_to_recompute(content: ImportSource, name: str) -> int:
    """Bytes of the float32 values from which a whitener's norms must be recomputed; 0 if they need not be."""
    whitener = content.whiteners[name]
    metadata = whitener.metadata
    if whitener.norms is not None or metadata["site"] is None:
        return 0
    return content.rows_of(metadata["site"]) * len(metadata["layers"]) * int(metadata["dim"]) * 4


def _scaled(progress: Progress | None, before: int, size: int, total: int) -> Progress | None:
    """Report the progress of one step as that of the whole job, of which the step is `size` units."""
    if progress is None or size == 0:
        return None
    return lambda done, step_total: progress(before + size * done // max(step_total, 1), total)


def _row_bytes(content: ImportSource) -> dict[str, int]:
    """Bytes per row of each axis, over its sites."""
    sizes: dict[str, int] = {}
    for spec in content.specs.values():
        n_bytes = spec.n_layers * spec.dim * SITE_DTYPES[spec.dtype].itemsize
        sizes[spec.axis] = sizes.get(spec.axis, 0) + n_bytes
    return sizes


def _piece(span: tuple[int, int], i: int, n: int) -> tuple[int, int]:
    """The i-th of n pieces of a half-open range."""
    length = span[1] - span[0]
    return span[0] + length * i // n, span[0] + length * (i + 1) // n


def _read_sites(content: ImportSource, rows: dict[str, tuple[int, int]]) -> dict[str, NDArray[Any]]:
    return {name: read(*rows[content.specs[name].axis]) for name, read in content.read.items()}
