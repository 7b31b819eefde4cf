"""What the machine itself can do, measured in the same rounds as everything else.

Copying memory, reading it, multiplying and adding, writing and fsyncing bytes that are ready, and
decoding the zstd frames of the byte planes that a read touches. None of them checks, scatters,
unshuffles or converts anything, and their input lies in memory. One bound that no machine changes:
the order-0 entropy of the byte planes, the least that a Huffman code of each plane can need.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from actstore._native import machine_limits
from numpy.typing import NDArray

from .layout import chunks, planes, shard_files
from .measure import Case, interleave
from .threads import THREADS, blocks, spread

WRITE_PIECE = 8 << 20
F32_PEAK = "limit: f32 peak"
ROOFLINE = "limit: roofline"


def memcpy(source: NDArray[Any], out: NDArray[Any]) -> None:
    """Copy one contiguous array onto another of its size, two threads."""
    a, b = source.reshape(-1).view(np.uint8), out.reshape(-1).view(np.uint8)
    spread(lambda part: np.copyto(b[part], a[part]), blocks(a.size, 1, 4 << 20))


def memcpy_fresh(source: NDArray[Any]) -> NDArray[Any]:
    """The same into memory that was just allocated: what an output that isn't reused costs."""
    out = np.empty_like(source)
    memcpy(source, out)
    return out


def bare_read(array: NDArray[Any]) -> Callable[[], None]:
    """A call that reads every byte of a contiguous array once, two threads, the fastest way there is.

    What it computes is of no use. Both ways ask so little of the CPU that memory holds them back;
    which of them is faster differs between machines, so both are tried here.
    """
    words = array.reshape(-1).view(np.uint64)
    ways: dict[str, Callable[[NDArray[Any]], object]] = {
        "or": np.bitwise_or.reduce,
        "max": lambda part: part.view(np.float32).max(),
    }
    parts = blocks(words.size, 8, 1 << 20)

    def read(way: Callable[[NDArray[Any]], object]) -> None:
        spread(lambda part: way(words[part]), parts)

    once = interleave({name: Case(partial(read, way)) for name, way in ways.items()}, 3)
    return partial(read, ways[min(once, key=lambda name: min(once[name]))])


class Machine:
    """The two rates of the roofline, measured anew at each call of `run`.

    Attributes
    ----------
    read
        Bytes a second that two threads read from memory, one for each call.
    flops
        Operations a second in float32, a multiplication and an addition counted as two, likewise.
    """

    def __init__(self) -> None:
        self.read: list[float] = []
        self.flops: list[float] = []

    def run(self) -> None:
        rates = machine_limits(threads=THREADS)
        self.read.append(rates["read_bytes_per_second"])
        self.flops.append(rates["f32_flops_per_second"])

    def seconds(self, rounds: int, nbytes: float, flops: float) -> dict[str, list[float]]:
        """What the work would take at these rates in each of the last rounds: the peak, the roofline."""
        peak = [flops / rate for rate in self.flops[-rounds:]]
        memory = [nbytes / rate for rate in self.read[-rounds:]]
        return {F32_PEAK: peak, ROOFLINE: [max(pair) for pair in zip(peak, memory, strict=True)]}


def bare_write(folder: Path, files: Iterable[bytes], threads: int) -> None:
    """Write each buffer to a new file and fsync it, then the folder."""
    folder.mkdir(parents=True)

    def write(item: tuple[int, bytes]) -> None:
        fd = os.open(folder / str(item[0]), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            left = memoryview(item[1])
            while left:
                left = left[os.write(fd, left[:WRITE_PIECE]) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    spread(write, enumerate(files), threads)
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def write_pieces(folder: Path, pieces: int) -> list[bytes]:
    """The shards of an array as at least `pieces` buffers, so that every thread has one to write."""
    files = [path.read_bytes() for path in shard_files(folder)]
    if len(files) >= pieces:
        return files
    joined = b"".join(files)
    step = -(-len(joined) // pieces)
    return [joined[start : start + step] for start in range(0, len(joined), step)]


@dataclass
class _Touched:
    """One inner chunk of one layer: its planes, as they lie."""

    rows: slice
    planes: list[tuple[bool, memoryview, int]]


class BareDecode:
    """The decode of one layer's byte planes, or of all, and nothing else.

    Parameters
    ----------
    folder
        An array written with blosc.
    layer
        The layer to decode, or None for all.
    """

    def __init__(self, folder: Path, layer: int | None) -> None:
        self.touched = [
            _Touched(chunk.rows, list(planes(chunk.data)))
            for chunk in chunks(folder)
            if layer is None or chunk.layer == layer
        ]
        self.largest = max(size for chunk in self.touched for _, _, size in chunk.planes)
        self.frames = sum(size for chunk in self.touched for zstd, _, size in chunk.planes if zstd)
        self.stored = sum(size for chunk in self.touched for zstd, _, size in chunk.planes if not zstd)
        self.local = threading.local()

    def of_rows(self, rows: NDArray[np.int64]) -> list[int]:
        """Which chunks hold any of the rows ``[n]``."""
        starts = np.array([chunk.rows.start for chunk in self.touched])
        return sorted(set((np.searchsorted(starts, rows, side="right") - 1).tolist()))

    def run(
        self,
        out: NDArray[np.float32] | None = None,
        which: Iterable[int] | None = None,
        copy_stored: bool = True,
    ) -> None:
        """Decode into a buffer that stays in the cache.

        Parameters
        ----------
        out
            ``[n_tokens, dim]``: also write as many bytes as the output has, once, or None.
        which
            The chunks to decode, or all.
        copy_stored
            Also copy the planes that are stored as they are, which is what decodes them.
        """

        def decode(number: int) -> None:
            decoder, scratch = self._state()
            chunk = self.touched[number]
            for is_zstd, stream, size in chunk.planes:
                if is_zstd:
                    # With a whole frame and room for all of it libzstd decodes in one go, straight
                    # into the destination; `decompress` would allocate an output each time.
                    if decoder.stream_reader(stream).readinto(scratch[:size]) != size:
                        raise ValueError("a frame is shorter than its plane")
                elif copy_stored:
                    np.copyto(scratch[:size], np.frombuffer(stream, np.uint8))
            if out is not None:
                out[chunk.rows].view(np.uint8).fill(0)

        spread(decode, range(len(self.touched)) if which is None else which)

    def _state(self) -> tuple[zstandard.ZstdDecompressor, NDArray[np.uint8]]:
        if not hasattr(self.local, "state"):
            self.local.state = zstandard.ZstdDecompressor(), np.zeros(self.largest, np.uint8)
        state: tuple[zstandard.ZstdDecompressor, NDArray[np.uint8]] = self.local.state
        return state


def entropy_ratio(acts: NDArray[Any], chunk_rows: int) -> float:
    """The best ratio that order-0 coding of the byte planes can reach.

    The entropy is taken over each plane of each inner chunk, since each has its own code; taken
    over the whole array it would be a little higher and the bound easier.

    Parameters
    ----------
    acts
        ``[n_tokens, n_layers, dim]``.
    chunk_rows
        Rows of an inner chunk.
    """
    n, layers, _ = acts.shape
    size = acts.dtype.itemsize
    least = np.zeros((layers, -(-n // chunk_rows)))

    def measure(cell: tuple[int, int]) -> None:
        layer, block = cell
        start = block * chunk_rows
        part = np.ascontiguousarray(acts[start : start + chunk_rows, layer]).view(np.uint8).reshape(-1, size)
        for plane in range(size):
            counts = np.bincount(part[:, plane], minlength=256)
            share = counts[counts > 0] / len(part)
            least[cell] -= (share * np.log2(share)).sum() * len(part) / 8

    spread(measure, np.ndindex(least.shape), THREADS)
    return acts.nbytes / float(least.sum())
