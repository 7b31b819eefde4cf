"""Pooling by the mean, beside the bare scan and np.add.reduceat over a memory map.

The peers that a target stands beside hand a whole array, or a whole layer, to ``np.add.reduceat``, as one
does who has a memory map and offsets. The last two are for information: the same sums over blocks of
examples that fit the cache, shared out to two threads by hand, from a map that is not compressed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import torch
from numpy.typing import NDArray

from .data import DataSet
from .measure import OURS, Case, interleave
from .scanning import BARE_SCAN, bare_scan
from .store import SITE, Bench
from .threads import THREADS, spread

BLOCK_ROWS = 256


class Reduceat:
    """Means of examples from memory maps.

    Parameters
    ----------
    data
        What was written to the files.
    own
        Its ``.npy`` file, in its own dtype.
    wide
        Another in float32.
    """

    def __init__(self, data: DataSet, own: Path, wide: Path) -> None:
        dtype = torch.float16 if data.dtype == "float16" else torch.bfloat16
        self.own = torch.from_numpy(np.load(own, mmap_mode="c").view(np.int16)).view(dtype)
        # np.memmap is a subclass whose views cost more to make.
        self.wide = np.load(wide, mmap_mode="r").view(np.ndarray)
        self.starts = np.cumsum(data.lengths) - data.lengths
        self.ends = self.starts + data.lengths
        self.counts = data.lengths.astype(np.float32)[:, None, None]
        self.shape = (len(data.lengths), *data.acts.shape[1:])

    def whole(self) -> NDArray[np.float32]:
        """float32, one call."""
        means: NDArray[np.float32] = np.add.reduceat(self.wide, self.starts, axis=0)
        means /= self.counts
        return means

    def layers(self) -> NDArray[np.float32]:
        """float32, a call for each layer, two threads."""
        return self._by_layer(lambda layer: self.wide[:, layer])

    def own_whole(self) -> NDArray[np.float32]:
        """The stored dtype, converted at once, one call."""
        means: NDArray[np.float32] = np.add.reduceat(self.own.float().numpy(), self.starts, axis=0)
        means /= self.counts
        return means

    def own_layers(self) -> NDArray[np.float32]:
        """The stored dtype, converted a layer at a time, two threads."""
        return self._by_layer(lambda layer: self.own[:, layer].float().numpy())

    def blocks(self) -> NDArray[np.float32]:
        """float32, blocks of examples, two threads; sums by example, which are faster than reduceat's."""

        def pool(examples: range, out: NDArray[np.float32]) -> None:
            for example in examples:
                rows = self.wide[self.starts[example] : self.ends[example]]
                rows.reshape(len(rows), -1).sum(axis=0, out=out[example].reshape(-1))

        return self._by_block(pool)

    def own_blocks(self) -> NDArray[np.float32]:
        """The same from the stored dtype, converted a block at a time."""

        def pool(examples: range, out: NDArray[np.float32]) -> None:
            first = self.starts[examples[0]]
            values = self.own[first : self.ends[examples[-1]]].float().numpy()
            for example in examples:
                rows = values[self.starts[example] - first : self.ends[example] - first]
                rows.reshape(len(rows), -1).sum(axis=0, out=out[example].reshape(-1))

        return self._by_block(pool)

    def _by_layer(self, read: Callable[[int], NDArray[np.float32]]) -> NDArray[np.float32]:
        out = np.empty(self.shape, np.float32)

        def pool(layer: int) -> None:
            np.add.reduceat(read(layer), self.starts, axis=0, out=out[:, layer])
            out[:, layer] /= self.counts[:, 0]

        spread(pool, range(self.shape[1]))
        return out

    def _by_block(self, pool: Callable[[range, NDArray[np.float32]], None]) -> NDArray[np.float32]:
        out = np.empty(self.shape, np.float32)

        def run(examples: range) -> None:
            pool(examples, out)
            part = slice(examples.start, examples.stop)
            out[part] /= self.counts[part]

        spread(run, self._example_blocks)
        return out

    @cached_property
    def _example_blocks(self) -> list[range]:
        cuts = [0]
        while cuts[-1] < len(self.ends):
            row = self.starts[cuts[-1]] + BLOCK_ROWS
            cuts.append(max(cuts[-1] + 1, int(np.searchsorted(self.ends, row, side="right"))))
        return [range(start, stop) for start, stop in itertools.pairwise(cuts)]


def pool(bench: Bench) -> None:
    """Means of all examples on all layers, in memory."""
    site = actstore.open(bench.blosc)[SITE]
    wide = bench.tmpfs / "wide.npy"
    write_wide(wide, bench.data)
    maps = Reduceat(bench.data, bench.npy, wide)
    judged: dict[str, Callable[[], NDArray[np.float32]]] = {
        "reduceat, float32 memmap": maps.whole,
        "reduceat, float32 memmap, by layer": maps.layers,
        "reduceat, own dtype": maps.own_whole,
        "reduceat, own dtype, by layer": maps.own_layers,
    }
    by_hand = {"sums by hand, float32 memmap": maps.blocks, "sums by hand, own dtype": maps.own_blocks}

    check_means(OURS, site.pool("mean", threads=THREADS).read(dtype="float32"), bench.data, 1e-6)
    for name, means in (judged | by_hand).items():
        check_means(name, means(), bench.data, 1e-5)

    # Each takes seconds: all are timed once, and only the fastest of them in the rounds.
    once = interleave({name: Case(means) for name, means in judged.items()}, 1, warm=False)
    fastest = min(once, key=lambda name: once[name][0])
    cases = {OURS: Case(lambda: site.pool("mean", threads=THREADS)), BARE_SCAN: bare_scan(site)}
    cases[fastest] = Case(judged[fastest])
    cases |= {name: Case(means) for name, means in by_hand.items()}
    samples = interleave(cases, bench.rounds.scan)
    samples |= {f"{name}, once": taken for name, taken in once.items() if name != fastest}
    targets = {BARE_SCAN: 0.80, fastest: 5.0}
    bench.report.timed("pool, mean", bench.data.label, samples, bench.data.acts.nbytes, targets)
    del maps, judged, by_hand, cases
    wide.unlink()


def write_wide(path: Path, data: DataSet) -> None:
    """The data set as a float32 ``.npy`` file."""
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=data.acts.shape)
    step = 4096

    def fill(start: int) -> None:
        out[start : start + step] = data.acts[start : start + step]

    spread(fill, range(0, len(out), step))


def check_means(name: str, means: NDArray[Any], data: DataSet, tolerance: float) -> None:
    """Fail unless means ``[n_examples, n_layers, dim]`` are those of float64, relative to mean |x|."""
    ends = np.cumsum(data.lengths)
    for example in range(0, len(ends), max(1, len(ends) // 64)):
        rows = data.acts[ends[example] - data.lengths[example] : ends[example]].astype(np.float64)
        apart = np.abs(means[example] - rows.mean(axis=0))
        if means.dtype != np.float32 or (apart > tolerance * np.abs(rows).mean(axis=0) + 1e-30).any():
            raise AssertionError(f"{name}: the means of example {example} are wrong")
