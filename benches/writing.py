"""Writing: write + commit on tmpfs and on disk, and the ratio of what was written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import limits
from .layout import Layout, shard_files
from .measure import OURS, Case, Line, interleave
from .peers import TensorStore, ZarrPython
from .store import SITE, TENSORSTORE, ZARR, Bench, check_equal, write_ours
from .threads import THREADS

BARE_WRITE = "limit: bare write + fsync"


def write(bench: Bench) -> None:
    """Write + commit on tmpfs, the same format."""
    layout = Layout.read(bench.blosc / SITE)
    cases = _writers(bench, bench.tmpfs / "write", layout)
    cases[ZARR] = _writer(bench.tmpfs / "write", lambda path: ZarrPython.write(path, bench.data.acts, layout))
    copy = np.empty_like(bench.data.acts)
    cases["limit: memcpy of the input"] = Case(lambda: limits.memcpy(bench.data.acts, copy))
    samples = interleave(cases, bench.rounds.write)
    targets = {TENSORSTORE: 3.0, ZARR: 3.0}
    bench.report.timed("write + commit, tmpfs", bench.data.label, samples, bench.data.acts.nbytes, targets)
    for peer, write_peer in ((TENSORSTORE, TensorStore.write), (ZARR, ZarrPython.write)):
        folder = bench.tmpfs / "check"
        write_peer(folder, bench.data.acts, layout)
        check_equal(peer, _read_all(folder), bench.data.acts)
        shutil.rmtree(folder)
    shutil.rmtree(bench.tmpfs / "write", ignore_errors=True)


def write_disk(bench: Bench) -> None:
    """Write + commit on a real disk. zarr-python never fsyncs, so it has no place here."""
    if bench.disk is None:
        return
    layout = Layout.read(bench.blosc / SITE)
    cases = _writers(bench, bench.disk / "write", layout, settle=os.sync)
    on_tmpfs = f"{OURS}, tmpfs"
    cases[on_tmpfs] = _writer(bench.tmpfs / "write", lambda path: write_ours(path, bench.data, "blosc"))
    samples = interleave(cases, bench.rounds.disk, warm=False)
    # The disk is the limit where the bare write takes longer than everything else together.
    disk_limits = np.median(samples[BARE_WRITE]) >= np.median(samples[on_tmpfs])
    targets = {BARE_WRITE: 0.85} if disk_limits else {}
    bench.report.timed("write + commit, disk", bench.data.label, samples, bench.data.acts.nbytes, targets)
    if not disk_limits:
        print("  (the disk is not the limit here, the encoding is: no target)")
    shutil.rmtree(bench.disk / "write", ignore_errors=True)
    shutil.rmtree(bench.tmpfs / "write", ignore_errors=True)


def ratio(bench: Bench) -> None:
    """The size on disk, beside the order-0 entropy of the byte planes."""
    layout = Layout.read(bench.blosc / SITE)
    bound = limits.entropy_ratio(bench.data.acts, layout.chunk_rows)
    stored = sum(path.stat().st_size for path in shard_files(bench.blosc / SITE))
    whole = sum(path.stat().st_size for path in bench.blosc.rglob("*") if path.is_file())
    TensorStore.write(bench.tmpfs / "check", bench.data.acts, layout)
    peer = sum(path.stat().st_size for path in shard_files(bench.tmpfs / "check"))
    shutil.rmtree(bench.tmpfs / "check")
    size = bench.data.acts.nbytes
    least = Line(
        "compression ratio", bench.data.label, "limit: order-0 entropy", bound, "x", size / stored / bound
    )
    if bench.data.dtype == "bfloat16":
        least.target, least.verdict = ">= 0.96x", "pass" if size / stored / bound >= 0.96 else "short"
    # Here the ratio column is ours over theirs, as more is better.
    lines = [
        Line("compression ratio", bench.data.label, OURS, size / stored, "x"),
        Line("compression ratio", bench.data.label, f"{OURS}, all files", size / whole, "x"),
        Line("compression ratio", bench.data.label, TENSORSTORE, size / peer, "x", peer / stored),
        least,
    ]
    bench.report.values("compression ratio", bench.data.label, lines)


def _writer(path: Path, run: Callable[[Path], object], settle: Callable[[], object] | None = None) -> Case:
    def clear() -> None:
        shutil.rmtree(path, ignore_errors=True)
        if settle is not None:
            settle()  # no earlier case's bytes are still on their way

    return Case(lambda: run(path), clear)


def _writers(
    bench: Bench, path: Path, layout: Layout, settle: Callable[[], object] | None = None
) -> dict[str, Case]:
    """Ours, tensorstore, and the bare write with as many threads as serve it best."""
    pieces = limits.write_pieces(bench.blosc / SITE, THREADS)
    bare = {
        threads: _writer(path, partial(limits.bare_write, files=pieces, threads=threads), settle)
        for threads in (1, THREADS)
    }
    once = interleave({str(threads): case for threads, case in bare.items()}, 1, warm=False)
    best = min(once, key=lambda threads: once[threads][0])
    return {
        OURS: _writer(path, lambda path: write_ours(path, bench.data, "blosc"), settle),
        TENSORSTORE: _writer(path, lambda path: TensorStore.write(path, bench.data.acts, layout), settle),
        BARE_WRITE: bare[int(best)],
    }


def _read_all(folder: Path) -> NDArray[Any]:
    read: NDArray[Any] = TensorStore(folder).array.read().result()
    return read
