"""The ranking contract in plain numpy: slow, obvious, written without a look at how search does it.

A score is computed in float64 in one order: eight sums by index modulo 8, multiplied and then added,
the eight added up pairwise; layers are added in their order; one rounding to float32 at the end. Hits
are ranked by score descending, then by row ascending. `check` compares bits, not numbers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from actstore import _native, errors
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Found = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]
"""Scores, rows and layers, ``[nq, k]``."""


@dataclass(frozen=True)
class Ask:
    """The arguments of one search."""

    queries: NDArray[np.float32]
    """``[nq, 1 or layers, D]``."""
    k: int = 10
    metric: Any = "dot"
    combine: Any = "sum"
    weights: Sequence[float] | None = None
    min_score: float | None = None
    rows: tuple[int, int] | NDArray[np.int64] | None = None
    layers: Sequence[int] | None = None
    numbers: NDArray[np.int64] | None = None

    def __repr__(self) -> str:
        rows = self.rows if self.rows is None or isinstance(self.rows, tuple) else f"list of {len(self.rows)}"
        return (
            f"Ask(queries {self.queries.shape}, k={self.k}, {self.metric}, {self.combine}, "
            f"weights={self.weights}, min_score={self.min_score!r}, rows={rows}, layers={self.layers}, "
            f"numbers={'no' if self.numbers is None else 'yes'})"
        )


# ---- Scores ----


def added(terms: Floats) -> Floats:
    """The sums of ``[n, D]`` terms over D."""
    sums = np.zeros((len(terms), 8))
    for start in range(0, terms.shape[1], 8):
        eight = terms[:, start : start + 8]
        sums[:, : eight.shape[1]] += eight
    s = sums.T
    total: Floats = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
    return total


def similarity(query: Floats, rows: Floats, metric: str) -> Floats:
    """Scores of rows ``[n, D]`` within one layer."""
    if metric == "dot":
        return added(query * rows)
    if metric == "l2":
        apart = query - rows
        return -added(apart * apart)
    qq, xx = added((query * query)[None])[0], added(rows * rows)
    cosine = added(query * rows) / (np.sqrt(qq) * np.sqrt(xx))
    return np.where((qq == 0) | (xx == 0), 0.0, cosine)


def score(
    query: NDArray[Any], rows: NDArray[Any], metric: str, combine: str, weights: Sequence[float] | None
) -> tuple[Floats, NDArray[np.int64]]:
    """Of rows ``[n, L, D]`` with a query ``[1 or L, D]``: scores, and the first layer of the greatest."""
    with np.errstate(all="ignore"):
        wide, query = rows.astype(np.float64), query.astype(np.float64)
        of_layer = [
            similarity(query[i if len(query) > 1 else 0], wide[:, i], metric) for i in range(wide.shape[1])
        ]
        if weights is not None:
            of_layer = [w * s for w, s in zip(weights, of_layer, strict=True)]
        total, winner = of_layer[0], np.zeros(len(rows), np.int64)
        for i, s in enumerate(of_layer[1:], 1):
            if combine == "sum":
                total = total + s
            else:
                # A NaN wins, and stays.
                beats = (s > total) | np.isnan(s)
                total, winner = np.where(beats, s, total), np.where(beats, i, winner)
        return total, winner


# ---- Hits ----


def selected(values: NDArray[Any], ask: Ask) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows and layers that are asked for, as float32, and what those rows are called."""
    numbers = np.arange(len(values)) if ask.numbers is None else ask.numbers
    if ask.rows is not None:
        rows = slice(*ask.rows) if isinstance(ask.rows, tuple) else ask.rows
        values, numbers = values[rows], numbers[rows]
    if ask.layers is not None:
        values = values[:, list(ask.layers)]
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32), numbers


def expected(values: NDArray[Any], ask: Ask) -> tuple[Found, NDArray[np.bool_]]:
    """What a search of `values` ``[n, L, D]`` must find, and which of the rows asked for have no score."""
    rows, numbers = selected(values, ask)
    nq = len(ask.queries)
    scores = np.full((nq, ask.k), -np.inf, np.float32)
    found, layers = np.full((nq, ask.k), -1, np.int64), np.full((nq, ask.k), -1, np.int64)
    with_nan: NDArray[np.bool_] = np.asarray(np.isnan(rows).any(axis=(1, 2)))
    undefined = with_nan.copy()
    for j, query in enumerate(ask.queries):
        exact, winner = score(query, rows, ask.metric, ask.combine, ask.weights)
        with np.errstate(all="ignore"):
            rounded = exact.astype(np.float32) + np.float32(0)  # There is one zero.
        undefined |= np.isnan(rounded)
        fit = ~with_nan & ~np.isnan(rounded)
        if ask.min_score is not None:
            fit &= rounded >= np.float32(ask.min_score)
        there = np.flatnonzero(fit)
        best = there[np.lexsort((numbers[there], -rounded[there]))][: ask.k]
        scores[j, : len(best)] = rounded[best]
        found[j, : len(best)] = numbers[best]
        layers[j, : len(best)] = winner[best]
    return (scores, found, layers), undefined


def search(source: Any, ask: Ask, threads: int = 1, skip_nan: bool = True) -> tuple[Found, int]:
    """What the core finds, and how many scores it computed exactly."""
    weights = None if ask.weights is None else np.array(ask.weights, np.float64)
    rows = (0, source.shape[0]) if ask.rows is None else ask.rows
    scores, found, winners, n_rescored = _native.search(
        source,
        rows,
        ask.layers,
        np.ascontiguousarray(ask.queries),
        ask.k,
        {
            "metric": ask.metric,
            "combine": ask.combine,
            "weights": weights,
            "distances": False,
            "min_score": ask.min_score,
            "skip_nan": skip_nan,
            "numbers": ask.numbers,
            "map": None,
        },
        threads=threads,
    )
    return (scores, found, winners), n_rescored


def same(found: Found, wanted: Found, what: object) -> None:
    """Asserts that all is equal, to the bit; else says where the first difference is."""
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(found, wanted, strict=True))
    assert [f.shape for f, _ in pairs] == [w.shape for _, w in pairs], what
    bits = [(f.view(np.uint32), w.view(np.uint32)) for f, w in pairs[:1]] + pairs[1:]
    if all(np.array_equal(f, w) for f, w in bits):
        return
    differs = np.any([f != w for f, w in bits], axis=0)
    q, i = np.argwhere(differs)[0]
    near = slice(max(0, i - 1), i + 2)
    shown = [
        f"{name}: found {f[q, near].tolist()}, expected {w[q, near].tolist()}"
        for name, (f, w) in zip(("scores", "rows", "layers"), pairs, strict=True)
    ]
    raise AssertionError(
        f"{what}: query {q}, rank {i} ({differs.sum()} of {differs.size} differ)\n" + "\n".join(shown)
    )


def check(
    source: Any, values: NDArray[Any], ask: Ask, threads: Iterable[int] = (1,), what: object = ""
) -> Found:
    """Asserts that a search of `source`, which holds `values`, finds what it must with any threads."""
    wanted, undefined = expected(values, ask)
    n = len(undefined)
    for count in threads:
        found, n_rescored = search(source, ask, count)
        same(found, wanted, f"{what} {ask} threads={count}")
        assert (found[1] >= 0).sum() <= n_rescored <= len(ask.queries) * n
    if undefined.any():
        refused(source, ask, selected(values, ask)[1][undefined])
    return wanted


def refused(source: Any, ask: Ask, numbers: NDArray[np.int64]) -> None:
    """Asserts that rows of these numbers are refused, and told."""
    said = rf"^{len(numbers)} rows? .*first is row {numbers.min()}\b"
    with pytest.raises(errors.InvalidInputError, match=said) as caught:
        search(source, ask, skip_nan=False)
    assert re.search(r"on_nan='skip'", f"{caught.value} {caught.value.hint or ''}")
