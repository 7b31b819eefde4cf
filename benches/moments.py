"""Means and covariances from compressed rows, beside products of rows that lie in memory, converted already.

The peers are given the rows in float64 (or float32), decoded and converted beforehand; ours reads, decodes
and converts them, takes their mean away, and multiplies. NumPy hands ``X.T @ X`` to ``syrk``, which computes
one half of the matrix; operations are counted so for everyone. Its product at once and by blocks of rows are
timed first, and the faster is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import actstore
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import EmpiricalCovariance

from . import limits
from .measure import OURS, Case, fastest, interleave
from .scanning import BARE_SCAN, bare_scan
from .search_peers import two_threads
from .store import SITE, Bench
from .threads import THREADS, settle

Precision = Literal["float64", "float32"]

F64_PEAK = "limit: f64 peak, half that of f32"
BLOCK_ROWS = 8192
NUMPY, NUMPY_BLOCKS, TORCH = "numpy, X.T @ X", "numpy, X.T @ X by blocks", "torch, X.T @ X"
COV, SKLEARN = "np.cov", "sklearn EmpiricalCovariance"
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
SLACK = 1.3


def moments(bench: Bench) -> None:
    """The last layer, compressed, in both precisions."""
    n, layers, dim = bench.data.acts.shape
    site = actstore.open(bench.blosc)[SITE].select(layers=[layers - 1])
    rows = bench.data.acts[:, layers - 1].astype(np.float64)
    mean, cov = rows.mean(axis=0), np.cov(rows, rowvar=False, ddof=0)
    products = n * (cov + np.outer(mean, mean))
    label = f"{bench.data.label}, {n:,} x {dim}"
    for precision in ("float64", "float32"):
        given = rows if precision == "float64" else rows.astype(np.float32)
        peers = _peers(given)
        found = site.moments(precision=precision, threads=THREADS)
        if found.n != n or found.cov is None:
            raise AssertionError(f"moments: of {found.n} rows, not {n}")
        check(f"moments, {precision}", found.cov[0], cov, precision)
        if not (np.abs(found.mean[0] - mean) <= TOLERANCE[precision] * np.sqrt(np.diag(cov))).all():
            raise AssertionError(f"moments, {precision}: the mean is not that of float64")
        for name, run in peers.items():
            wanted = cov if name in (COV, SKLEARN) else products
            check(name, run(), wanted, precision)
        _measure(bench, site, precision, label, peers)


def _peers(rows: NDArray[Any]) -> dict[str, Callable[[], NDArray[Any]]]:
    tensor = torch.from_numpy(rows)

    def by_torch() -> NDArray[Any]:
        with two_threads():
            product: NDArray[Any] = (tensor.T @ tensor).numpy()
        return product

    def by_blocks() -> NDArray[Any]:
        total = np.zeros((rows.shape[1], rows.shape[1]), rows.dtype)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            total += block.T @ block
        return total

    peers: dict[str, Callable[[], NDArray[Any]]] = {
        NUMPY: lambda: rows.T @ rows,
        NUMPY_BLOCKS: by_blocks,
        TORCH: by_torch,
    }
    if rows.dtype == np.float64:
        peers[COV] = partial(np.cov, rows, rowvar=False, ddof=0)
        # Without the inverse, which it computes otherwise.
        peers[SKLEARN] = lambda: EmpiricalCovariance(store_precision=False).fit(rows).covariance_
    return peers


def _measure(
    bench: Bench,
    site: actstore.Site,
    precision: Precision,
    label: str,
    peers: dict[str, Callable[[], NDArray[Any]]],
) -> None:
    n, _, dim = site.shape
    machine = limits.Machine()
    cases = {OURS: Case(lambda: site.moments(precision=precision, threads=THREADS), settle)}
    of_peers = {name: Case(run, settle) for name, run in peers.items()}
    product = fastest({name: of_peers[name] for name in (NUMPY, NUMPY_BLOCKS)})
    cases[product] = of_peers[product]
    cases |= {name: case for name, case in of_peers.items() if name not in (NUMPY, NUMPY_BLOCKS)}
    cases[BARE_SCAN] = Case(bare_scan(site).run, settle)
    cases[limits.F32_PEAK] = Case(machine.run, settle)
    rounds = bench.rounds.scan
    samples = interleave(cases, rounds)
    flops = float(n) * dim * (dim + 1)
    peak = machine.seconds(rounds, 0, flops)[limits.F32_PEAK]
    del samples[limits.F32_PEAK]
    if precision == "float32":
        samples[limits.F32_PEAK] = peak
    else:
        samples[F64_PEAK] = [2 * seconds for seconds in peak]
    bench.report.timed(f"moments, {precision}", label, samples, flops, {product: 1 / SLACK}, "GFLOP/s")


def check(name: str, found: NDArray[Any], expected: NDArray[np.float64], precision: Precision) -> None:
    """Fail unless a matrix ``[dim, dim]`` is near another, relative to the root of the diagonal's entries."""
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    apart, tolerance = np.abs(found - expected), TOLERANCE[precision]
    # Two dims of this layer are about 1e-31: their products are none in float32.
    least = float(np.finfo(precision).tiny) * found.size
    if found.shape != expected.shape or not (apart <= tolerance * scale + least).all():
        raise AssertionError(
            f"{name}: off by {np.nanmax(apart - least):.1e}, not {tolerance:.0e} of the scale"
        )
