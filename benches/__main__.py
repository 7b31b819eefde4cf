"""``python -m benches``: every figure, ours beside the peers and the machine's limits."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import data, limits
from .measure import Case, Report, interleave
from .threads import THREADS, pin

STORE_FIGURES = ("write", "disk", "ratio", "layer", "raw", "gather")
PASS_FIGURES = ("scan", "pool", "search", "filter", "feed", "moments", "neighbors", "whiten")
QUICK_ROWS = {"minilm": 16_384, "synthetic": 4_096, "long": 20_000}
OTHER_FIGURES = ("memory", "maxsim", "few-rows", "layers", "conversions", "capture")
FIGURES = ("machine", *STORE_FIGURES, "import", "open", *PASS_FIGURES, *OTHER_FIGURES)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less data and fewer rounds: a few minutes")
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument(
        "--data", action="append", choices=data.NAMES, metavar="NAME", help=", ".join(data.NAMES)
    )
    parser.add_argument("--dtype", action="append", choices=tuple(data.DTYPES), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    parser.add_argument("--disk", type=Path, default=data.cache_folder(), help="a folder on a real disk")
    options = parser.parse_args()
    pin()
    start = time.perf_counter()
    report = Report()
    tmpfs_root = Path("/dev/shm") if _filesystem(Path("/dev/shm")) == "tmpfs" else Path(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix="actstore-bench-", dir=tmpfs_root) as tmpfs,
        tempfile.TemporaryDirectory(prefix="actstore-bench-", dir=options.disk) as disk,
    ):
        machine = describe(Path(tmpfs), Path(disk))
        for key, value in machine.items():
            print(f"{key:<12} {value}")
        run(options, report, Path(tmpfs), Path(disk))
    print(f"\n{report.summary()}\n{time.perf_counter() - start:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "lines": report.as_json()}, indent=1) + "\n")


def run(options: argparse.Namespace, report: Report, tmpfs: Path, disk: Path) -> None:
    """The figures that were asked for, one data set in memory at a time."""
    # Late: torch and the peers take seconds, and --help should not.
    from . import (
        capturing,
        conversions,
        feeding,
        filtering,
        gathering,
        importing,
        late_interaction,
        moments,
        neighbors,
        pooling,
        reading,
        scanning,
        searching,
        store,
        whitening,
        writing,
    )

    wanted = options.only or FIGURES
    rounds = (
        store.Rounds(read=5, scan=3, write=3, disk=1, slow=1)
        if options.quick
        else store.Rounds(read=11, scan=7, write=5, disk=3, slow=3)
    )
    on_disk = disk if _filesystem(disk) not in ("tmpfs", "ramfs") else None
    if "disk" in wanted and on_disk is None:
        print("\n--disk is a folder in memory: no figure on disk", file=sys.stderr)
    if "machine" in wanted:
        machine_limits(report, tmpfs, on_disk, rounds.write)
    if "import" in wanted:
        importing.importing(report, tmpfs, rounds.read)
    if "open" in wanted:
        store.opening(tmpfs, 4 * rounds.read, report)
    figures = {
        "write": writing.write,
        "disk": writing.write_disk,
        "ratio": writing.ratio,
        "layer": reading.layer_blosc,
        "raw": reading.layer_raw,
        "gather": reading.gather,
        "scan": scanning.scan,
        "pool": pooling.pool,
        "search": searching.search,
        "filter": filtering.filtered,
        "feed": feeding.feed,
        "moments": moments.moments,
        "neighbors": neighbors.neighbors,
        "whiten": whitening.whitened,
    }
    for name in options.data or data.NAMES:
        for dtype in options.dtype or data.DTYPES:
            # The pass is measured on bfloat16 unless another is asked for.
            scanned = dtype == "bfloat16" or options.dtype
            fitting = {
                "minilm": STORE_FIGURES,
                "synthetic": (*STORE_FIGURES, "scan") if scanned else STORE_FIGURES,
                "long": PASS_FIGURES if scanned else (),
            }[name]
            chosen = [figure for figure in fitting if figure in wanted]
            last = name == "synthetic" and dtype == "bfloat16" and "memory" in wanted
            if not chosen and not last:
                continue
            loaded = data.load(name, dtype, QUICK_ROWS[name] if options.quick else None)
            with tempfile.TemporaryDirectory(dir=tmpfs) as place:
                bench = store.Bench(loaded, Path(place), on_disk, rounds, report)
                for figure in chosen:
                    figures[figure](bench)
                if last:
                    # 20 times the limit in a full run, 4 in a quick one, counted in float32.
                    store.anonymous_memory(bench, repeats=5)
            del loaded, bench
    if "maxsim" in wanted:
        late_interaction.maxsim(report, tmpfs, rounds.read, options.quick)
    if "few-rows" in wanted:
        gathering.gathering(report, tmpfs, rounds.read, options.quick)
    if "layers" in wanted:
        gathering.layers(report, tmpfs, rounds.read, options.quick)
    if "conversions" in wanted:
        with tempfile.TemporaryDirectory(dir=tmpfs) as place:
            conversions.conversions(report, Path(place), rounds.read, options.quick)
    if "capture" in wanted:
        capturing.capturing(report, tmpfs, options.quick)


def machine_limits(report: Report, tmpfs: Path, disk: Path | None, rounds: int) -> None:
    """Copying and writing 256 MiB of bytes that don't compress."""
    import numpy as np

    source = np.frombuffer(np.random.default_rng(0).bytes(256 << 20), np.uint8)
    out = np.empty_like(source)
    cases = {
        "memcpy, destination reused": Case(lambda: limits.memcpy(source, out)),
        "memcpy, destination fresh": Case(lambda: limits.memcpy_fresh(source)),
    }
    pieces = [source[: 128 << 20].tobytes(), source[128 << 20 :].tobytes()]

    def bare_write(root: Path, threads: int) -> Case:
        folder = root / "bare"
        return Case(
            lambda: limits.bare_write(folder, pieces, threads),
            lambda: shutil.rmtree(folder, ignore_errors=True),
        )

    for threads in (1, THREADS):
        cases[f"write + fsync, tmpfs, threads: {threads}"] = bare_write(tmpfs, threads)
        if disk is not None:
            cases[f"write + fsync, disk, threads: {threads}"] = bare_write(disk, threads)
    samples = interleave(cases, rounds)
    report.timed("the machine", "256 MiB", samples, source.nbytes)


def describe(tmpfs: Path, disk: Path) -> dict[str, str]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    packages = (
        *("actstore", "tensorstore", "zarr", "numcodecs", "numpy", "torch", "zstandard"),
        *("faiss-cpu", "safetensors", "scikit-learn", "maxsim-cpu"),
    )
    return {
        "cpu": f"{cpu}, {THREADS} of {os.cpu_count()} cores used",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "filesystems": f"{_filesystem(tmpfs)} (called tmpfs below), {_filesystem(disk)} (called disk)",
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {_version(name)}" for name in packages),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "(unknown version)"


def _filesystem(path: Path) -> str:
    """The type of the file system that holds `path`, as far as /proc tells."""
    mounts = Path("/proc/mounts")
    if not mounts.exists() or not path.exists():
        return "unknown"
    resolved = path.resolve()
    kinds = {line.split()[1]: line.split()[2] for line in mounts.read_text().splitlines()}
    for parent in (resolved, *resolved.parents):
        if str(parent) in kinds:
            return kinds[str(parent)]
    return "unknown"


if __name__ == "__main__":
    main()
