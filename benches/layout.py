"""The layout of one array on disk: what the peers are told to write, and how its bytes are parsed.

Everything is read from the array's own ``zarr.json``, so that peers and limits follow whatever
chunk and shard sizes actstore chose. The parsing knows just enough of the format for the bare
decode of :mod:`benches.limits`: the index of a shard, and the blosc frame of an inner chunk:
16 bytes of header, the offset of each block, then in each block one stream per byte plane,
preceded by its length; a stream as long as its plane is stored as it is, else it is a zstd frame.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOSC_BLOCK = 1 << 20
MISSING = 2**64 - 1
SPLIT_UP_TO = 16  # blosc never splits types wider than this


@dataclass(frozen=True)
class Layout:
    """Shape, dtype and grid of an array ``[token, layer, dim]``."""

    shape: tuple[int, int, int]
    dtype: str
    chunk_rows: int
    shard_rows: int

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """The layout of the array in `folder`, from its ``zarr.json``."""
        meta = json.loads((folder / "zarr.json").read_text())
        n, layers, dim = meta["shape"]
        inner = meta["codecs"][0]["configuration"]["chunk_shape"]
        outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
        if inner[1:] != [1, dim] or outer[1:] != [layers, dim]:
            raise ValueError(f"{folder}: shards {outer}, chunks {inner}: not of whole rows and single layers")
        return cls((n, layers, dim), meta["data_type"], inner[0], outer[0])

    def metadata(self) -> dict[str, Any]:
        """The ``zarr.json`` that makes a peer write the same format."""
        n, layers, dim = self.shape
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        blosc = {"cname": "zstd", "clevel": 1, "shuffle": "shuffle", "typesize": 2, "blocksize": BLOSC_BLOCK}
        sharding = {
            "chunk_shape": [self.chunk_rows, 1, dim],
            "codecs": [little, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [n, layers, dim],
            "data_type": self.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [self.shard_rows, layers, dim]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {},
            "dimension_names": ["token", "layer", "dim"],
        }

    def shards(self) -> Iterator[slice]:
        """The rows of each shard, the last one cut at the end of the array."""
        for start in range(0, self.shape[0], self.shard_rows):
            yield slice(start, min(start + self.shard_rows, self.shape[0]))


@dataclass(frozen=True)
class Chunk:
    """One inner chunk: its rows in the array, its layer, its bytes less the checksum."""

    rows: slice
    layer: int
    data: memoryview


def shard_files(folder: Path) -> list[Path]:
    """The shards of the array in `folder`, in order."""
    return sorted((folder / "c").glob("*/0/0"), key=lambda path: int(path.parts[-3]))


def chunks(folder: Path) -> Iterator[Chunk]:
    """Every inner chunk of the array in `folder`, read into memory a shard at a time."""
    layout = Layout.read(folder)
    n, layers, _ = layout.shape
    per_shard = layout.shard_rows // layout.chunk_rows
    for path in shard_files(folder):
        shard = memoryview(path.read_bytes())
        size = per_shard * layers * 16
        index = np.frombuffer(shard[len(shard) - 4 - size : len(shard) - 4], "<u8").reshape(
            per_shard, layers, 2
        )
        first = int(path.parts[-3]) * layout.shard_rows
        for (block, layer), (offset, length) in zip(
            np.ndindex(per_shard, layers), index.reshape(-1, 2), strict=True
        ):
            start = first + block * layout.chunk_rows
            if int(offset) == MISSING or start >= n:
                continue
            yield Chunk(
                slice(start, min(start + layout.chunk_rows, n)),
                layer,
                shard[int(offset) : int(offset) + int(length) - 4],
            )


def planes(data: memoryview) -> Iterator[tuple[bool, memoryview, int]]:
    """The streams of a blosc frame: is it a zstd frame, its bytes, its length once decoded."""
    flags, typesize = data[2], data[3]
    total, block_size = (int.from_bytes(data[at : at + 4], "little") for at in (4, 8))
    if flags & 0x2:
        yield False, data[16 : 16 + total], total
        return
    for block in range(-(-total // block_size)):
        size = min(block_size, total - block * block_size)
        split = not flags & 0x10 and typesize <= SPLIT_UP_TO and size == block_size
        streams = typesize if split else 1
        at = int.from_bytes(data[16 + 4 * block : 20 + 4 * block], "little")
        for _ in range(streams):
            length = int.from_bytes(data[at : at + 4], "little")
            yield length != size // streams, data[at + 4 : at + 4 + length], size // streams
            at += 4 + length
