"""The peers, each used as someone who knows it well would, on two threads and the same format.

``TensorStore``
    A cache of no bytes (nothing is read twice, and a cache costs a copy), two threads of work,
    memory-mapped file reads, whole shards in flight at once and written from the source array
    itself. Reads go straight into the caller's array, converted on the way.
``ZarrPython``
    Whole shards, two worker threads, blosc with one thread in each of them (a chunk is one block,
    so blosc has nothing to share out). Random rows: as they touch every chunk, the layer is read
    and the rows are taken from it, which is several times faster than ``oindex``.
``Memmap``
    ``np.save`` and ``np.memmap``; rows are copied in blocks by two threads. Conversions to
    float32 are torch's, which are vectorized; NumPy's of float16 are not.

Their bytes are the reader's own file: TensorStore and zarr-python read what actstore wrote.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorstore as ts
import torch
import zarr
from numcodecs import blosc
from numpy.typing import NDArray

from .data import DTYPES
from .layout import Layout
from .threads import THREADS, blocks, spread

zarr.config.set({"threading.max_workers": THREADS})
blosc.set_nthreads(1)
torch.set_num_threads(1)  # the blocks are spread over two threads here

CONTEXT = {
    "cache_pool": {"total_bytes_limit": 0},
    "data_copy_concurrency": {"limit": THREADS},
    "file_io_concurrency": {"limit": 4},
}


class Reader(Protocol):
    """An open array ``[n_tokens, n_layers, dim]``."""

    def layer_f32(self, layer: int, out: NDArray[np.float32]) -> None:
        """One layer, converted, into ``[n_tokens, dim]``."""

    def gather(self, rows: NDArray[np.int64], layer: int) -> NDArray[Any]:
        """Rows of one layer in their own dtype: ``[n_rows, dim]``."""


class TensorStore:
    """An array opened by tensorstore."""

    def __init__(self, folder: Path) -> None:
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder)},
            "context": {**CONTEXT, "file_io_mode": {"mode": "memmap"}},
        }
        self.array = ts.open(spec, read=True).result()

    def layer_f32(self, layer: int, out: NDArray[np.float32]) -> None:
        ts.array(out).write(ts.cast(self.array, ts.float32)[:, layer]).result()

    def layer_f32_fresh(self, layer: int) -> NDArray[np.float32]:
        """One layer into an array of tensorstore's own making: ``[n_tokens, dim]``."""
        read: NDArray[np.float32] = ts.cast(self.array, ts.float32)[:, layer].read().result()
        return read

    def gather(self, rows: NDArray[np.int64], layer: int) -> NDArray[Any]:
        read: NDArray[Any] = self.array[rows, layer].read().result()
        return read

    @staticmethod
    def write(folder: Path, acts: NDArray[Any], layout: Layout) -> None:
        """Write `acts` ``[n_tokens, n_layers, dim]``; durable on return, as is tensorstore's default."""
        metadata = {key: value for key, value in layout.metadata().items() if key != "node_type"}
        spec = {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder)},
            "metadata": metadata,
            "context": CONTEXT,
        }
        store = ts.open(spec, create=True, delete_existing=True).result()
        writes = [
            store[rows].write(acts[rows], can_reference_source_data_indefinitely=True)
            for rows in layout.shards()
        ]
        for write in writes:
            write.result()


class ZarrPython:
    """An array opened by zarr-python."""

    def __init__(self, folder: Path) -> None:
        array = zarr.open_array(folder, mode="r")
        self.array: Any = array

    def layer_f32(self, layer: int, out: NDArray[np.float32]) -> None:
        to_float32(self.array[:, layer], out)

    def gather(self, rows: NDArray[np.int64], layer: int) -> NDArray[Any]:
        read: NDArray[Any] = self.array[:, layer][rows]
        return read

    @staticmethod
    def write(folder: Path, acts: NDArray[Any], layout: Layout) -> None:
        """Write `acts` ``[n_tokens, n_layers, dim]``; never fsynced, zarr-python has no way to."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps(layout.metadata()))
        store: Any = zarr.open_array(folder, mode="r+")
        store[:] = acts


class Memmap:
    """A ``.npy`` file, mapped."""

    def __init__(self, path: Path, dtype: str) -> None:
        # A private mapping, as torch refuses arrays that can't be written to.
        self.array = np.load(path, mmap_mode="c").view(DTYPES[dtype])

    def layer_f32(self, layer: int, out: NDArray[np.float32]) -> None:
        to_float32(self.array[:, layer], out)

    def layer(self, layer: int, out: NDArray[Any]) -> None:
        """One layer in its own dtype, into ``[n_tokens, dim]``."""
        source = self.array[:, layer].view(np.uint16)
        target = out.view(np.uint16)
        spread(
            lambda rows: np.copyto(target[rows], source[rows]),
            blocks(len(out), out[0].nbytes),
        )

    def gather(self, rows: NDArray[np.int64], layer: int) -> NDArray[Any]:
        read: NDArray[Any] = np.asarray(self.array[rows, layer])
        return read

    @staticmethod
    def write(path: Path, acts: NDArray[Any]) -> None:
        """Save `acts` ``[n_tokens, n_layers, dim]``; as uint16, since ``.npy`` knows no bfloat16."""
        np.save(path, acts.view(np.uint16))


def to_float32(source: NDArray[Any], out: NDArray[np.float32]) -> None:
    """bfloat16 or float16 ``[n, dim]`` to float32, two threads."""
    dtype = torch.float16 if source.dtype == np.float16 else torch.bfloat16
    bits = source.view(np.int16)

    def convert(rows: slice) -> None:
        torch.from_numpy(out[rows]).copy_(torch.from_numpy(bits[rows]).view(dtype))

    spread(convert, blocks(len(out), out[0].nbytes))
