"""Reading a raw layer into another float dtype, beside a copy of as many bytes.

The arrays are several times larger than the caches, so that memory is the limit: what is timed moves the
bytes of the stored dtype in and those of the other out. The limit is our own read of the same layer in the
dtype it is stored in, which is a copy, scaled by the bytes that are moved; a memcpy stands beside it. The
peers convert the same values from an array in memory into one that is reused, in blocks: NumPy, to which
ml_dtypes gives its bfloat16, and torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import actstore  # first, as it registers bfloat16
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from .measure import OURS, Case, Report, interleave
from .store import SITE, check
from .threads import THREADS, blocks, spread

SHAPE = (1 << 15, 4096)
QUICK_SHAPE = (1 << 11, 4096)
APPEND_ROWS = 4096
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
}
STORED = ("float32", "float16", "bfloat16")
NUMPY, TORCH, MEMCPY = "numpy", "torch", "limit: memcpy, as many bytes"
COPY = "limit: read in its own dtype, as many bytes"
GOAL = 0.85


def conversions(report: Report, tmpfs: Path, rounds: int, quick: bool) -> None:
    """From each dtype that is stored to each other, on one thread and on two."""
    shape = QUICK_SHAPE if quick else SHAPE
    floats = np.empty(shape, np.float32)

    def draw(rows: slice) -> None:
        rng = np.random.default_rng(rows.start)
        floats[rows] = rng.standard_normal(floats[rows].shape, np.float32)

    spread(draw, blocks(len(floats), floats[0].nbytes))
    for stored in STORED:
        source = floats.astype(DTYPES[stored])
        path = tmpfs / "conversions.act"
        spec = actstore.SiteSpec(n_layers=1, dim=shape[1], dtype=stored)
        with actstore.create(path, {SITE: spec}, codec="raw", overwrite=True, threads=THREADS) as writer:
            for start in range(0, len(source), APPEND_ROWS):
                rows = source[start : start + APPEND_ROWS, None]
                writer.append({SITE: rows}, [len(rows)])
        with actstore.open(path) as store:
            for to in DTYPES:
                if to != stored:
                    _convert(report, store[SITE], source, to, rounds)


def _convert(report: Report, site: actstore.Site, source: NDArray[Any], to: str, rounds: int) -> None:
    view = site.select(layers=[0])
    own, out = np.zeros_like(source), np.zeros(source.shape, DTYPES[to])
    expected = source.astype(out.dtype)
    moved = source.nbytes + out.nbytes
    label = f"{source.dtype} to {to}, {source.nbytes >> 20} MiB"
    for threads in (1, THREADS):
        cases = {
            OURS: Case(partial(view.read, dtype=to, out=out[:, None], threads=threads)),
            NUMPY: Case(_by_blocks(_cast, source, out, threads)),
            TORCH: Case(_by_blocks(_torch_copy, source, out, threads)),
        }
        check(cases, out, expected)
        copies = {
            COPY: Case(partial(view.read, out=own[:, None], threads=threads)),
            MEMCPY: Case(_by_blocks(_cast, source, own, threads)),
        }
        check(copies, own, source)
        samples = interleave(cases | copies, rounds)
        for name in copies:
            samples[name] = [seconds * moved / (2 * source.nbytes) for seconds in samples[name]]
        figure = f"converted while read, threads: {threads}"
        report.timed(figure, label, samples, moved, {COPY: GOAL})


def _by_blocks(
    convert: Callable[[NDArray[Any], NDArray[Any]], object],
    source: NDArray[Any],
    out: NDArray[Any],
    threads: int,
) -> Callable[[], None]:
    parts = blocks(len(source), source[0].nbytes)
    return lambda: spread(lambda rows: convert(source[rows], out[rows]), parts, threads)


def _cast(source: NDArray[Any], out: NDArray[Any]) -> None:
    np.copyto(out, source, casting="unsafe")


def _torch_copy(source: NDArray[Any], out: NDArray[Any]) -> None:
    _tensor(out).copy_(_tensor(source))


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    """Of NumPy's bfloat16 torch knows the bits alone."""
    if array.dtype != DTYPES["bfloat16"]:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
