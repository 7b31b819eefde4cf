"""How much anonymous memory reading, writing and the parallel pass take: ``RssAnon`` at its highest.

The work runs in a process of its own that does nothing else; this one watches its
``/proc/<pid>/status`` from outside, so that a call that holds the GIL can't hide. The baseline is
taken when the libraries are imported and the output is allocated and touched, so what is reported
is what actstore itself adds, results that it allocates included. Files that are mapped don't count:
the kernel may drop them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .data import DTYPES, SYNTHETIC_LENGTH
from .threads import THREADS, pin

POLL_SECONDS = 0.001
SLICE_ROWS = 4096
BATCH_ROWS = 1024
MOMENTS_ROWS = 20_000  # 1.3 GB in float32; more would take minutes and no more memory
NEIGHBORS_ROWS = 8192  # 537 MB likewise
WHITENED_DIMS = 256
ROOT = Path(__file__).resolve().parents[1]


def high_water(task: str, *arguments: str) -> float:
    """MB of anonymous memory that `task` (a name in `TASKS`) adds at its highest."""
    command = [sys.executable, "-m", "benches.memory", task, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{' '.join(command)} did not start")
        highest = base = _anonymous(child.pid)
        child.stdin.write("go\n")
        child.stdin.close()
        while child.poll() is None:
            highest = max(highest, _anonymous(child.pid))
            time.sleep(POLL_SECONDS)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return (highest - base) * 1024 / 1e6


def _anonymous(pid: int) -> int:
    """RssAnon of a process in KiB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:")), 0)


def _go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _touched(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An output whose pages are all there; those of `np.zeros` appear only when written to."""
    return np.full(shape, 1, np.float32)


def read_slices(path: str) -> None:
    """The whole store, all layers, a few thousand rows at a time into one reused float32 output."""
    import actstore

    site = actstore.open(path)["resid"]
    n, layers, dim = site.shape
    out = _touched((SLICE_ROWS, layers, dim))
    _go()
    for start in range(0, n, SLICE_ROWS):
        rows = slice(start, min(start + SLICE_ROWS, n))
        site.select(rows=rows).read(dtype="float32", out=out[: rows.stop - rows.start], threads=THREADS)


def read_layer(path: str) -> None:
    """One layer of the whole store in one call, into a float32 output."""
    import actstore

    site = actstore.open(path)["resid"]
    n, _, dim = site.shape
    out = _touched((n, 1, dim))
    _go()
    site.select(layers=[0]).read(dtype="float32", out=out, threads=THREADS)


def write(path: str, source: str, dtype: str, repeats: str, append_rows: str) -> None:
    """A ``.npy`` file that is mapped, appended `repeats` times, `append_rows` rows at a time."""
    import actstore

    acts = np.load(source, mmap_mode="r").view(DTYPES[dtype])
    n, layers, dim = acts.shape
    step = int(append_rows)
    _go()
    spec = actstore.SiteSpec(n_layers=layers, dim=dim, dtype=dtype)
    with actstore.create(path, sites={"resid": spec}, overwrite=True) as writer:
        for _ in range(int(repeats)):
            for start in range(0, n, step):
                part = acts[start : start + step]
                lengths = [
                    min(SYNTHETIC_LENGTH, len(part) - at) for at in range(0, len(part), SYNTHETIC_LENGTH)
                ]
                writer.append({"resid": part}, lengths)


def scan(path: str) -> None:
    """One pass with the summary reducer."""
    import actstore

    site = actstore.open(path)["resid"]
    _go()
    site.scan([actstore.Summary()], threads=THREADS)


def pool(path: str) -> None:
    """The mean of each example, in memory."""
    import actstore

    site = actstore.open(path)["resid"]
    _go()
    site.pool("mean", threads=THREADS)


def search(path: str, n_queries: str) -> None:
    """Exact top-10, the scores of all layers added up."""
    import actstore

    site = actstore.open(path)["resid"]
    _, layers, dim = site.shape
    queries = np.random.default_rng(0).standard_normal((int(n_queries), layers, dim), dtype=np.float32)
    _go()
    site.search(queries, k=10, threads=THREADS, metric="dot", combine="sum")


def batches(path: str) -> None:
    """An epoch of shuffled batches of all layers, each dropped when the next one comes."""
    import actstore

    site = actstore.open(path)["resid"]
    _go()
    for _ in site.batches(BATCH_ROWS, shuffle=True, seed=0):
        pass


def moments(path: str, precision: Literal["float64", "float32"]) -> None:
    """The covariances of all layers, of some rows."""
    import actstore

    site = actstore.open(path)["resid"].select(rows=slice(0, MOMENTS_ROWS))
    _go()
    site.moments(precision=precision, threads=THREADS)


def maxsim(path: str) -> None:
    """The best examples for four queries of 32 vectors, the scores of all layers added up."""
    import actstore

    site = actstore.open(path)["resid"]
    _, layers, dim = site.shape
    queries = np.random.default_rng(0).standard_normal((4, 32, layers, dim), dtype=np.float32)
    _go()
    site.maxsim(list(queries), k=10, threads=THREADS, metric="dot", combine="sum")


def neighbors(path: str) -> None:
    """The nearest others of each of some rows, all layers side by side."""
    import actstore

    site = actstore.open(path)["resid"].select(rows=slice(0, NEIGHBORS_ROWS))
    _go()
    site.neighbors(k=10, threads=THREADS)


def whitened(path: str) -> None:
    """Exact top-10 by cosine in a whitened space, the norms of all rows computed first."""
    import actstore

    site = actstore.open(path)["resid"]
    _, layers, dim = site.shape
    rng = np.random.default_rng(0)
    # Random directions: fitting takes minutes at this width, and its memory is not measured here.
    components = [np.linalg.qr(rng.standard_normal((dim, WHITENED_DIMS)))[0].T for _ in range(layers)]
    whitener = actstore.Whitener()
    whitener.set_fitted(
        site.layers,
        np.zeros((layers, dim)),
        components,
        [np.ones(WHITENED_DIMS)] * layers,
        len(site),
        [0.0] * layers,
        None,
    )
    queries = rng.standard_normal((32, layers, dim), dtype=np.float32)
    _go()
    site.search(queries, k=10, metric="cos", transform=whitener, threads=THREADS, combine="sum")


TASKS: dict[str, Callable[..., None]] = {
    task.__name__: task
    for task in (
        *(read_slices, read_layer, write, scan, pool, search, batches),
        *(moments, maxsim, neighbors, whitened),
    )
}

if __name__ == "__main__":
    pin()
    TASKS[sys.argv[1]](*sys.argv[2:])
