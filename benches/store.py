"""What the figures of the store share, and the two that need no peer: opening and memory.

Here and in :mod:`benches.writing` and :mod:`benches.reading`, each function measures one figure,
checks that what was read is equal to what was written (outside the timing), and hands the times
to the report with the targets that go with them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import actstore  # first, as it registers bfloat16 with zarr-python
import numpy as np
from numpy.typing import NDArray

from . import memory
from .data import DataSet
from .layout import shard_files
from .measure import OURS, Case, Line, Report, interleave
from .peers import Memmap, TensorStore, ZarrPython
from .threads import THREADS

SITE = "resid"
APPEND_ROWS = 8192  # about what a capture hands over at once
MEMORY_LIMIT = 300  # MB

TENSORSTORE, ZARR, MEMMAP = "tensorstore", "zarr-python", "np.memmap"


@dataclass
class Rounds:
    """How often each kind of figure is repeated."""

    read: int
    scan: int
    write: int
    disk: int
    slow: int


@dataclass
class Bench:
    """One data set, the folders to work in, and the stores that reading needs, made when asked for."""

    data: DataSet
    tmpfs: Path
    disk: Path | None
    rounds: Rounds
    report: Report

    @cached_property
    def blosc(self) -> Path:
        return write_ours(self.tmpfs / "blosc.act", self.data, "blosc")

    @cached_property
    def raw(self) -> Path:
        return write_ours(self.tmpfs / "raw.act", self.data, "raw")

    @cached_property
    def npy(self) -> Path:
        path = self.tmpfs / "acts.npy"
        Memmap.write(path, self.data.acts)
        return path

    @property
    def layer(self) -> int:
        """The layer that is read: the one in the middle."""
        return int(self.data.acts.shape[1]) // 2

    @cached_property
    def expected(self) -> NDArray[np.float32]:
        """The layer that is read, ``[n_tokens, dim]``."""
        return self.data.acts[:, self.layer].astype(np.float32)


def write_ours(path: Path, data: DataSet, codec: Literal["blosc", "raw"]) -> Path:
    """Append the data set as a capture does, commit, close."""
    _, layers, dim = data.acts.shape
    spec = actstore.SiteSpec(n_layers=layers, dim=dim, dtype=data.dtype)
    with actstore.create(path, sites={SITE: spec}, codec=codec, overwrite=True, threads=THREADS) as writer:
        for acts, lengths in data.batches(APPEND_ROWS):
            writer.append({SITE: acts}, lengths)
        writer.commit()
    return path


def opening(tmpfs: Path, rounds: int, report: Report, shards: int = 1000) -> None:
    """Open a store of many shards. The peers read the metadata alone, with nothing to check."""
    rows = 8
    path = tmpfs / "shards.act"
    acts = np.random.default_rng(0).standard_normal((shards * rows, 2, 64)).astype(np.float16)
    spec = actstore.SiteSpec(n_layers=2, dim=64, dtype="float16", chunk_rows=rows, shard_rows=rows)
    with actstore.create(path, sites={SITE: spec}, overwrite=True) as writer:
        writer.append({SITE: acts}, [rows] * shards)
    found = len(shard_files(path / SITE))
    if found != shards:
        raise AssertionError(f"{path.name} has {found} shards, not {shards}")

    def ours() -> Any:
        store = actstore.open(path)
        return store, store[SITE].shape

    check_equal("the store of many shards", actstore.open(path)[SITE][:], acts)
    folder = path / SITE
    cases = {
        OURS: Case(ours),
        TENSORSTORE: Case(lambda: TensorStore(folder)),
        ZARR: Case(lambda: ZarrPython(folder)),
    }
    samples = interleave(cases, rounds)
    lines = [
        Line("open 1,000 shards", "", name, float(np.median(taken)), "s", samples=taken)
        for name, taken in samples.items()
    ]
    lines[0].target, lines[0].verdict = "<= 20 ms", "pass" if lines[0].value <= 0.020 else "short"
    report.values("open 1,000 shards", "", lines)


def anonymous_memory(bench: Bench, repeats: int) -> None:
    """Anonymous memory while writing, then reading and scanning, a store many times larger than the limit."""
    path = bench.tmpfs / "large.act"
    size = repeats * bench.data.acts.nbytes / 1e6
    label = f"{bench.data.label}, {size:,.0f} MB"
    tasks = {
        "write": ("write", str(path), str(bench.npy), bench.data.dtype, str(repeats), str(APPEND_ROWS)),
        "read all in slices": ("read_slices", str(path)),
        "read one layer at once": ("read_layer", str(path)),
        "scan, Summary": ("scan", str(path)),
        "pool, mean, less the result": ("pool", str(path)),
        "top-10, all layers, 1 query": ("search", str(path), "1"),
        "top-10, all layers, 1,024 queries": ("search", str(path), "1024"),
        "shuffled batches of 1,024 rows": ("batches", str(path)),
        "moments, float64, less the result": ("moments", str(path), "float64"),
        "moments, float32, less the result": ("moments", str(path), "float32"),
        "MaxSim, all layers, 4 queries of 32": ("maxsim", str(path)),
        "neighbors of 8,192 rows, all layers": ("neighbors", str(path)),
        "whitened top-10, all layers, 32 queries": ("whitened", str(path)),
    }
    n, layers, dim = bench.data.acts.shape
    lines = []
    for name, (task, *arguments) in tasks.items():
        used = memory.high_water(task, *arguments)
        if task == "pool":
            used -= actstore.open(path).n_examples * layers * dim * 4 / 1e6
        if task == "moments":
            used -= layers * dim * dim * 8 / 1e6
        line = Line("anonymous memory", label, name, used, "MB")
        line.target, line.verdict = f"<= {MEMORY_LIMIT} MB", "pass" if line.value <= MEMORY_LIMIT else "short"
        lines.append(line)
    n_tokens = actstore.open(path).n_tokens
    if n_tokens != repeats * n:
        raise AssertionError(f"{path.name} has {n_tokens} rows, not {repeats} times {n}")
    shutil.rmtree(path)
    bench.report.values("anonymous memory", label, lines)


def check(cases: dict[str, Case], out: NDArray[Any], expected: NDArray[Any]) -> None:
    """Run each case once and compare what it left in `out`."""
    for name, case in cases.items():
        out.fill(0)
        case.run()
        check_equal(name, out, expected)


def check_equal(name: str, read: NDArray[Any], expected: NDArray[Any]) -> None:
    """Fail unless shape, dtype and every bit agree: so NaN is equal to itself, and -0 is not 0."""
    same = read.shape == expected.shape and read.dtype == expected.dtype
    if not same or not np.array_equal(_bits(read), _bits(expected)):
        raise AssertionError(f"{name} read other numbers than were written")


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
