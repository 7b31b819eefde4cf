"""Exact search is exact: scores, rows and layers are the oracle's to the bit, whatever is asked."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from typing import Any

import actstore
import numpy as np
import pytest
import search_cases as cases
from actstore import errors
from children import fork, join
from numpy.typing import NDArray
from search_cases import COMBINATIONS, DIMS, F32, draw
from search_oracle import Ask, Found, check, expected, same, score, search, selected

METRICS: list[Any] = ["dot", "cos", "l2"]


def array(values: Any) -> NDArray[np.float32]:
    """``[n, 1, D]`` or as it is, float32."""
    found = np.asarray(values, F32)
    return found if found.ndim == 3 else found[:, None]


def normal(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(F32)


# ---- The oracle itself ----


def summed(terms: list[float]) -> float:
    """One term after the other, in Python's own floats."""
    a = [0.0] * 8
    for i, term in enumerate(terms):
        a[i % 8] = a[i % 8] + term
    return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))


@pytest.mark.parametrize("dim", [1, 7, 8, 9, 16, 23, 100])
def test_the_oracle_is_the_contract(dim: int) -> None:
    rng = np.random.default_rng(dim)
    rows, query = (
        cases.any_element(rng, (5, 2, dim)).astype(F32),
        cases.any_element(rng, (1, dim)).astype(F32),
    )
    q = query[0].tolist()
    for metric in METRICS:
        of_layer = []
        for i, x in product(range(5), range(2)):
            x = rows[i, x].tolist()
            if metric == "l2":
                of_layer.append(-summed([(a - b) * (a - b) for a, b in zip(q, x, strict=True)]))
                continue
            one = summed([a * b for a, b in zip(q, x, strict=True)])
            if metric == "cos":
                one /= math.sqrt(summed([a * a for a in q])) * math.sqrt(summed([b * b for b in x]))
            of_layer.append(one)
        wanted = [0.3 * of_layer[i] + -2.0 * of_layer[i + 1] for i in range(0, 10, 2)]
        assert score(query, rows, metric, "sum", [0.3, -2.0])[0].tolist() == wanted
        wanted = [max(of_layer[i], of_layer[i + 1]) for i in range(0, 10, 2)]
        assert score(query, rows, metric, "max", None)[0].tolist() == wanted


# ---- Any search ----

N_GROUPS = 12
EACH = 24


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_any_search(group: int) -> None:
    """Every kind of values by every metric and way of combining layers, at least twice."""
    for seed in range(group * EACH, (group + 1) * EACH):
        case = draw(seed)
        wanted = check(case.values, case.values, case.ask, (1, (2, 3, 7)[seed % 3]), case.what)
        there = wanted[0][wanted[1] >= 0]
        if there.size and seed % 2:
            # A score that some hit has, and the next above it.
            least = there[seed * 7 % there.size]
            for floor in (least, np.nextafter(least, F32(np.inf))):
                ask = replace(case.ask, min_score=float(floor))
                same(search(case.values, ask)[0], expected(case.values, ask)[0], f"{case.what} {ask}")


def test_the_draws_reach_every_kind() -> None:
    assert len(cases.OF_ROWS) * len(COMBINATIONS) * 2 <= N_GROUPS * EACH


@pytest.mark.parametrize("metric", METRICS)
def test_every_dim_and_number_of_queries(metric: str) -> None:
    for i, dim in enumerate(DIMS):
        for nq in (1, 2, 3, 4, 5, 15, 16, 17, 33)[i % 2 :: 2]:
            # All numbers of rows modulo six, which are multiplied at once.
            n, n_layers = 1 + (i + nq) % 13, 1 + i % 2
            rng = np.random.default_rng([dim, nq])
            values = cases.outliers(rng, (n, n_layers, dim)).astype(F32)
            queries = cases.outliers(rng, (nq, n_layers, dim)).astype(F32)
            check(values, values, Ask(queries, 4, metric), what=dim)


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7, 40])
def test_every_k(n: int) -> None:
    values, queries = normal((n, 2, 9)), normal((6, 2, 9), 1)
    values[::3] = values[:1]
    for k in sorted({1, 2, max(1, n - 1), max(1, n), n + 1, 10 * n + 1, 100_000}):
        check(values, values, Ask(queries, k, "l2"), (1, 2))


@pytest.mark.parametrize("metric", METRICS)
def test_queries_by_the_thousand(metric: str) -> None:
    """One group of rows, which threads share by queries."""
    values = cases.duplicates(np.random.default_rng(0), (90, 1, 17)).astype(F32)
    queries = normal((1025, 1, 17), 1)
    queries[::5] = values[0]
    check(values, values, Ask(queries, 7, metric), (1, 2, 3, 7))


def test_queries_in_several_batches() -> None:
    """Hits of all queries at once would take too much memory; the last batches are small."""
    n = 60_000
    values = cases.few_integers(np.random.default_rng(0), (n, 1, 3)).astype(F32)
    values[17_000] = np.nan
    # Their NaN is with queries of two different batches.
    values[5, 0, 0], values[9, 0, 1] = np.inf, np.inf
    queries = normal((21, 1, 3), 1)
    queries[0, 0, 0] = queries[20, 0, 1] = 0.0
    ask = Ask(queries, n)
    wanted, undefined = expected(values, ask)
    assert np.flatnonzero(undefined).tolist() == [5, 9, 17_000]
    for threads in (1, 7):
        same(search(values, ask, threads)[0], wanted, threads)
        with pytest.raises(errors.InvalidInputError, match=r"^3 rows .* first is row 5\b"):
            search(values, ask, threads, skip_nan=False)


# ---- Ties and near ties ----


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_are_ranked_by_row(metric: str) -> None:
    """Over many groups (128 rows each) and threads."""
    values = np.broadcast_to(normal((1, 1, 4096)), (500, 1, 4096)).copy()
    queries = normal((2, 1, 4096), 1)
    for k in (1, 10, 500):
        scores, rows, _ = check(values, values, Ask(queries, k, metric), (1, 2, 3, 7))
        assert (rows == np.arange(k)).all()
        assert (scores == scores[:, :1]).all()


def test_scores_that_round_to_the_same_are_ties() -> None:
    """A unit of float64 apart is a tie, but not on both sides of where float32 rounds."""
    apart = np.array([3, -1, 0, 2, -5, 7, 1, -2, 0, 4], np.float64) * 2.0**-52
    for middle, all_tie in ((1.0, True), (1.0 + 2.0**-24, False), (1.0 + 3 * 2.0**-24, False)):
        pieces = np.array([1.0, middle - 1.0]) + np.zeros((10, 1))
        # The third product is what is left, in float64 alone.
        values = np.concatenate([pieces, apart[:, None] * 2.0**30], 1)
        queries = np.array([[1.0, 1.0, 2.0**-30]])
        _, rows, _ = check(array(values), array(values), Ask(array(queries), 10), (1, 3))
        tied = np.argsort(-(middle + apart).astype(F32), kind="stable")
        assert (rows[0] == tied).all()
        assert (rows[0] == np.arange(10)).all() == all_tie


@pytest.mark.parametrize("nq", [1, 4, 5, 16])
def test_what_float32_would_misrank(nq: int) -> None:
    """1e8 + tiny - 1e8, all three added to one sum by every instruction set."""
    values, queries = np.zeros((300, 1, 72)), np.zeros((nq, 1, 72))
    values[:, 0, 0], values[:, 0, 64] = 1e4, -1e4
    values[:, 0, 32] = np.random.default_rng(nq).permutation(300) * 1e-3
    queries[:, 0, 0] = queries[:, 0, 64] = 1e4
    queries[:, 0, 32] = 1e-3
    rows32, queries32 = values.astype(F32), queries.astype(F32)
    assert not np.cumsum(rows32[:, 0] * queries32[0], axis=1, dtype=F32)[:, -1].any()
    scores, _, _ = check(rows32, rows32, Ask(queries32, 300), (1, 3))
    assert (np.diff(scores[0]) < 0).all()
    check(rows32, rows32, Ask(queries32, 5), (1, 3))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("every", [1, 8, 16, 32])
def test_sums_that_lose_all_they_can(metric: str, every: int) -> None:
    """The best row comes last, and float32 sums of every `every`-th product lose all but the first of them.

    1 + s^2 is 1 in float32 when s^2 is below half a unit; so the quick score is as far too low as it may be.
    """
    s = F32(np.sqrt(0.98 * 2.0**-24))
    scales = [(1.0, 1.0), (2.0**20, 2.0**20), (2.0**-20, 2.0**-20)]
    if metric != "l2":
        # Squares of rows that float32 has as zero, and queries as great and as small as are trusted.
        scales += [(1.0, 2.0**-80), (2.0**49, 2.0**-60), (2.0**-39, 2.0**50)]
    for dim, nq, (q_scale, x_scale) in product((255, 256, 257, 512, 4096), (1, 5), scales):
        best = np.zeros(dim)
        best[: 256 * every : every] = s
        # Blocks of 256 are added up at the end.
        best[256 * every :: 256] = s
        best[0] = 1
        other = best.copy()
        # Enough of them fewer that its score is less.
        other[np.flatnonzero(other)[-4:]] = 0
        values = array(np.stack([other, *np.zeros((12, dim)), best]) * x_scale)
        queries = np.concatenate([array([best * q_scale]), normal((nq - 1, 1, dim))])
        ask = Ask(queries, 1, metric)
        scores, rows, _ = check(values, values, ask, what=(dim, nq, q_scale, x_scale))
        assert rows[0] == [13]
        check(values, values, replace(ask, min_score=float(scores[0, 0])), what=(dim, nq, q_scale, x_scale))


@pytest.mark.parametrize("every", [1, 8, 16, 32])
def test_squares_that_gain_all_they_can(every: int) -> None:
    """1 + s^2 is rounded up by nearly half a unit each time: the best row, the last, seems farther off.

    The other way of that: squares that are half of the least denormal, and count as a whole one.
    """
    for dim, nq, (one, s) in product(
        (256, 512, 2048, 4096), (1, 5), ((1.0, np.sqrt(1.02 * 2.0**-24)), (2.7e-23, 2.7e-23))
    ):
        best = np.zeros(dim)
        best[: 256 * every : every] = s
        best[0] = one
        other = np.zeros(dim)
        other[0] = np.sqrt((best * best).sum() * (1.000001 if one == 1 else 1.5))
        values = array(np.stack([other, *np.full((12, dim), 3.0), best]))
        queries = np.concatenate([np.zeros((1, 1, dim), F32), normal((nq - 1, 1, dim))])
        _, rows, _ = check(values, values, Ask(queries, 1, "l2"), what=(dim, nq, one))
        assert rows[0] == [13]


def test_the_least_score_is_one() -> None:
    values = array([[0.5], [0.25], [0.1], [-0.0], [0.0], [-0.5]])
    queries = array([[1.0]])
    for least, n in (
        (0.5, 1),
        (0.25, 2),
        (float(F32(0.1)), 3),
        (0.1, 3),
        (0.0, 5),
        (-0.0, 5),
        (-np.inf, 6),
        (np.inf, 0),
    ):
        scores, _, _ = check(values, values, Ask(queries, 9, min_score=least))
        assert (scores > -np.inf).sum() == n
        above = Ask(queries, 9, min_score=float(np.nextafter(F32(least), F32(np.inf))))
        check(values, values, above)
    tied = array(np.ones((50, 3)))
    check(tied, tied, Ask(tied[:1], 9, min_score=3.0), (1, 2))
    check(tied, tied, Ask(tied[:1], 9, min_score=float(np.nextafter(F32(3), F32(4)))), (1, 2))


# ---- Layers, rows and what they are called ----


def test_the_first_of_the_best_layers_wins() -> None:
    values = normal((60, 5, 24))
    values[::2, 3] = values[::2, 1]  # Ties.
    values[1::4, 2] = values[1::4, 0] * (1 + 2.0**-23)  # Nearly.
    queries = normal((20, 1, 24), 1)
    for metric, layers in product(METRICS, (None, [3, 1, 1, 2], [4], [2, 2])):
        check(values, values, Ask(queries, 60, metric, "max", layers=layers), (1, 2))
    # Float64 decides, though it is rounded after.
    close = np.zeros((1, 3, 2), F32)
    close[0] = np.array([[1, 0], [1, 2.0**-30], [1, 2.0**-31]])
    scores, _, winners = check(close, close, Ask(np.ones((1, 1, 2), F32), 1, combine="max"))
    assert (scores[0, 0], winners[0, 0]) == (1.0, 1)


@pytest.mark.parametrize("metric", METRICS)
def test_weights(metric: str) -> None:
    values, queries = normal((80, 3, 33)), normal((18, 3, 33), 1)
    values[:, 2] *= 1e3
    for weights in (
        [1.0, 1.0, 1.0],
        [-1.0, -1.0, -1.0],
        [0.0, 0.0, 0.0],
        [1.0, 0.0, -1.0],
        [1e-300, 1.0, 0.0],
        [1e300, 1.0, 1.0],
        [5e-324, 0.0, 0.0],
        [99.99, -100.0, 100.01],
        [1 / 3, 1 / 7, -0.1],
    ):
        for queries_of in (queries, queries[:, :1], queries[:2]):
            check(values, values, Ask(queries_of, 5, metric, weights=weights))
    # Two layers that cancel, but for the last digits.
    twins = values[:, [0, 0]].copy()
    twins[:, 1] += 1e-6 * normal((80, 33), 2)
    check(twins, twins, Ask(queries[:, :1], 80, metric, weights=[1.0, -1.0]))


def test_very_many_layers() -> None:
    """Sums over layers pass the range of float32 though no layer does."""
    values = np.full((10, 450, 1), 9e16, F32)
    values[::2] = -9e16
    for nq, weight in product((1, 5, 17), (-100.0, 100.0, 94.0)):
        queries = np.ones((nq, 1, 1), F32)
        check(values, values, Ask(queries, 3, "l2", weights=[weight] * 450))
    # On the way to a sum that is small.
    values[:, 450 // 2 :] *= 1 + np.arange(10, dtype=F32)[:, None, None] * F32(1e-6)
    values = np.repeat(values, 2, axis=1)
    for nq in (1, 17):
        ask = Ask(np.ones((nq, 1, 1), F32), 1, "l2", weights=[100.0] * 450 + [-100.0] * 450)
        scores, rows, _ = check(values, values, ask)
        assert np.isfinite(scores).all()
        assert rows[0] == [9]
    many = np.full((3, 40_000, 1), 9.9e16, F32)
    for weights in ([1.0] * 40_000, [100.0, -100.0] * 20_000):
        check(many, many, Ask(np.ones((1, 1, 1), F32), 3, "l2", weights=weights))


def test_numbers_decide_ties() -> None:
    values = np.repeat(normal((4, 1, 8)), 30, axis=0)
    rng = np.random.default_rng(0)
    for numbers in (rng.permutation(120), np.arange(120)[::-1].copy(), np.arange(120) + (1 << 50)):
        for rows in (None, (7, 100), rng.permutation(120)[:50]):
            ask = Ask(normal((3, 1, 8), 1), 40, rows=rows, numbers=numbers)
            _, found, _ = check(values, values, ask, (1, 3))
            assert set(found.ravel()) <= set(selected(values, ask)[1])


@pytest.mark.parametrize("dim", [8, 4096])
def test_any_rows(dim: int) -> None:
    n = 300
    values = normal((n, 1, dim))
    values[50:60] = values[7]
    rng = np.random.default_rng(dim)
    lists: list[Any] = [
        np.arange(n)[::-1].copy(),
        np.sort(rng.integers(0, n, 150)),
        rng.integers(0, n, 2 * n),
        np.full(40, 7),
        np.array([299, 0, 299, 55, 50]),
        np.array([], np.int64),
    ]
    runs = [(0, n), (13, n), (50, 51), (200, 200), (0, 0), (n, n)]
    for rows in (*runs, *lists):
        check(values, values, Ask(values[[7, 100]], 12, "cos", rows=rows), (1, 3), "rows")


# ---- Values at the ends of what there is ----


def test_zeros_have_one_sign() -> None:
    """-0 would be equal to 0 and yet other bits."""
    values = array([[0.0, 0.0], [-0.0, -0.0], [0.0, -0.0], [1e-45, 0.0], [-1e-45, 0.0]])
    queries = array([[-1e-45, 0.0], [0.0, 0.0], [-0.0, -0.0]])
    for metric, k in product(METRICS, (1, 5)):
        scores, _, _ = check(values, values, Ask(queries, k, metric))
        assert not np.signbit(scores[scores == 0]).any()


def test_a_zero_vector_has_cosine_zero() -> None:
    values = array([[0.0, 0.0], [1.0, 1.0], [-1.0, 2.0], [np.inf, 0.0], [-0.0, 0.0]])
    scores, rows, _ = check(values[:3], values[:3], Ask(array([[1.0, 0.0]]), 3, "cos"))
    assert (rows[0].tolist(), scores[0, 1]) == ([1, 0, 2], 0.0)
    scores, rows, _ = check(values, values, Ask(array([[0.0, -0.0]]), 5, "cos"))
    assert (rows[0].tolist(), scores[0].tolist()) == ([0, 1, 2, 3, 4], [0.0] * 5)


def test_denormal_vectors_have_a_cosine() -> None:
    values = array([[1e-45, 0.0], [3e-45, 3e-45], [1e-42, -1e-42], [1e30, 1e30], [3e38, 1e-45]])
    check(values, values, Ask(values, 5, "cos"))
    check(values * F32(1), values, Ask(array([[1e-42, 1e-42]] * 17), 5, "cos"))


def test_scores_beyond_float32() -> None:
    values = array([[3e38, 0.0], [-3e38, 0.0], [1.0, 3.4e38], [3e38, 3e38], [0.0, 1.0], [-1.0, -1.0]])
    for metric, queries in product(METRICS, (values, array([[2.0, 0.0]]), array([[1.0, 1e-38]]))):
        for k in (1, 3, 6):
            check(values, values, Ask(queries, k, metric), (1, 2))
    # Found all the same: by row, with their -inf or inf.
    scores, rows, _ = check(values, values, Ask(array([[-2.0, 0.0]]), 6))
    assert (rows[0].tolist(), scores[0, 0], scores[0, 5]) == ([1, 5, 4, 2, 0, 3], np.inf, -np.inf)
    top = float(np.finfo(F32).max)
    edge = array([[top], [-top]])
    check(edge, edge, Ask(array([[1.0], [1.0 + 2.0**-23], [1.0 - 2.0**-24], [-1.0]]), 2))


@pytest.mark.parametrize("nq", [2, 17])
def test_norms_where_float32_stops_being_trusted(nq: int) -> None:
    rng = np.random.default_rng(nq)
    values = np.concatenate([cases.edges(rng, (60, 2, 12)), cases.denormal(rng, (5, 2, 12))]).astype(F32)
    for metric, combine in COMBINATIONS:
        queries = cases.edges(rng, (nq, 2, 12)).astype(F32)
        check(values, values, Ask(queries, 65, metric, combine))
        check(values, values, Ask(queries, 3, metric, combine), (1, 2))


def test_infinities() -> None:
    values = array([[np.inf, 1.0], [1.0, -np.inf], [2.0, 2.0], [np.inf, -np.inf], [1.0, 1.0]])
    scores, rows, _ = check(values, values, Ask(array([[1.0, 1.0]]), 5))
    assert (rows[0].tolist(), scores[0].tolist()) == ([0, 2, 4, 1, -1], [np.inf, 4.0, 2.0, -np.inf, -np.inf])
    for metric, query in product(METRICS, ([1.0, 0.0], [np.inf, 1.0], [-np.inf, np.inf], [0.0, 0.0])):
        for nq in (1, 6):
            check(values, values, Ask(array([query] * nq), 5, metric), (1, 2))
    layers = np.stack([values[:, 0], values[::-1, 0]], 1)
    for metric, combine in COMBINATIONS:
        check(layers, layers, Ask(array([[1.0, 1.0]]), 5, metric, combine))
    check(layers, layers, Ask(array([[1.0, 1.0]]), 5, weights=[0.0, 1.0]))


@pytest.mark.parametrize("nq", [1, 5, 40])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_with_nan_are_counted_once(nq: int, threads: int) -> None:
    """Whatever the threads that share their queries."""
    values, queries = normal((5000, 2, 16)), normal((nq, 1, 16), 1)
    bad = [77, 4000, 4001, 4999]
    for i, row in enumerate(bad):
        values[row, i % 2, i * 5] = np.nan
    ask = Ask(queries, 3)
    for asked, count, first in (
        (ask, 4, 77),
        (replace(ask, rows=(78, 5000)), 3, 4000),
        (replace(ask, rows=np.array([4001, 3, 77])), 2, 77),
        (replace(ask, numbers=np.arange(5000)[::-1] + 1), 4, 1),
        (replace(ask, layers=[1]), 2, 4000),
    ):
        with pytest.raises(errors.InvalidInputError, match=rf"^{count} rows .* first is row {first};"):
            search(values, asked, threads, skip_nan=False)
        same(search(values, asked, threads)[0], expected(values, asked)[0], asked)
    with pytest.raises(errors.InvalidInputError, match=r"^1 row .* first is row 77;"):
        search(values, replace(ask, rows=(70, 80)), threads, skip_nan=False)
    check(values, values, replace(ask, rows=(78, 4000)), (threads,))
    everywhere = np.full((20, 1, 16), np.nan, F32)
    _, rows, _ = check(everywhere, everywhere, ask, (threads,))
    assert (rows == -1).all()


# ---- Threads and calls ----


def test_calls_do_not_disturb_one_another() -> None:
    """The same from the first call to the last, from several threads at once, and in a forked child."""
    values, queries = normal((30_000, 1, 8)), normal((20, 1, 8), 1)
    values[::7] = values[0]
    ask = Ask(queries, 25, "cos")
    wanted, _ = expected(values, ask)
    with ThreadPoolExecutor(4) as pool:
        for found, _ in pool.map(lambda i: search(values, ask, threads=i % 3), range(8)):
            same(found, wanted, "at once")
    if hasattr(os, "fork"):
        join(fork(lambda: same(search(values, ask, threads=2)[0], wanted, "forked")))


def test_few_scores_are_computed_exactly() -> None:
    """For usual rows the quick products decide nearly always."""
    values, queries = normal((20_000, 1, 64)), normal((16, 1, 64), 1)
    for metric in METRICS:
        for some in (queries, queries[:1]):
            _, n_rescored = search(values, Ask(some, 1, metric))
            assert n_rescored < 0.01 * len(some) * len(values)


def test_progress_reaches_the_end() -> None:
    values, seen = normal((300, 2, 4096)), []
    actstore.search(
        values,
        normal((40, 4096)),
        3,
        threads=2,
        progress=lambda *now: seen.append(now),
        metric="dot",
        combine="sum",
    )
    assert seen[-1] == (600, 600)


# ---- What arrays may be ----


def test_arrays_as_they_lie() -> None:
    values = normal((40, 2, 9))
    ask = Ask(normal((5, 1, 9), 1), 6)
    odd = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(F32).reshape(values.shape)
    assert not odd.flags.aligned
    assert not odd.flags.writeable
    check(odd, values, ask, (1, 2))
    wide = normal((40, 2, 9)).astype(np.float64) * 1e300
    check(wide, wide, ask)  # To infinity, as float32.
    check(wide * 1e-340, wide * 1e-340, ask)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_half(dtype: str) -> None:
    """All 65,536 of them, NaN and denormals too."""
    every = np.arange(1 << 16, dtype=np.uint16).view(actstore.SiteSpec(1, 1, dtype).dtype).reshape(-1, 1, 1)
    for query in (1.0, -3e-30, 1e38):
        check(every, every, Ask(np.full((1, 1, 1), query, F32), 1 << 16))


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "k": ({"k": 0}, errors.InvalidInputError, "k=0"),
    "metric": ({"metric": "cosine"}, errors.InvalidInputError, "'cosine'"),
    "combine": ({"combine": "mean"}, errors.InvalidInputError, "'mean'"),
    "dim": ({"queries": np.zeros((1, 1, 5), F32)}, errors.ShapeError, "4"),
    "layers of queries": ({"queries": np.zeros((1, 3, 4), F32)}, errors.ShapeError, "2"),
    "NaN": ({"queries": np.full((3, 1, 4), np.nan, F32)}, errors.InvalidInputError, "query 0"),
    "weights": ({"weights": [1.0]}, errors.InvalidInputError, "2"),
    "infinite weights": ({"weights": [1.0, np.inf]}, errors.InvalidInputError, "finite"),
    "weights of max": ({"weights": [1.0, 1.0], "combine": "max"}, errors.InvalidInputError, "sum"),
    "rows": ({"rows": (0, 11)}, errors.InvalidInputError, "11"),
    "listed rows": ({"rows": np.array([3, -1])}, errors.InvalidInputError, "-1"),
    "layers": ({"layers": [0, 2]}, errors.InvalidInputError, "2"),
    "no layers": ({"layers": []}, errors.ShapeError, "no layers"),
    "numbers": ({"numbers": np.arange(9)}, errors.ShapeError, "9"),
}


@pytest.mark.parametrize("asked", WRONG)
def test_what_cannot_be_asked(asked: str) -> None:
    arguments, error, words = WRONG[asked]
    with pytest.raises(error, match=words) as caught:
        search(np.zeros((10, 2, 4), F32), replace(Ask(np.zeros((1, 1, 4), F32)), **arguments))
    assert type(caught.value) is error


def test_no_queries_and_no_rows() -> None:
    values = normal((10, 2, 4))
    for queries, some in product(
        (normal((0, 1, 4)), normal((0, 2, 4)), normal((3, 1, 4))), (values, values[:0])
    ):
        for threads in (1, 3):
            found, _ = search(some, Ask(queries, 3), threads)
            same(found, expected(some, Ask(queries, 3))[0], "nothing")


def test_arrays_that_cannot_be_searched() -> None:
    ask = Ask(np.zeros((1, 1, 4), F32))
    for wrong, words in (
        (np.zeros((10, 2, 4), ">f4"), "byte order"),
        (np.zeros((10, 2, 8), F32)[:, :, ::2], "contiguous"),
        (np.zeros((10, 2, 4), np.int8), "int8"),
        (np.zeros((10, 4), F32), "three axes"),
    ):
        with pytest.raises(errors.InvalidInputError, match=words):
            search(wrong, ask)


def hits(found: actstore.Hits) -> Found:
    return found.scores, found.rows, found.layers


@pytest.mark.parametrize("seed", range(46))
def test_any_search_of_a_plain_array(seed: int) -> None:
    """`actstore.search` passes on what the core finds."""
    case = draw(1000 + seed, 200_000)
    values, _ = selected(case.values, case.ask)
    ask = replace(case.ask, rows=None, layers=None, numbers=None)
    scores, rows, layers = expected(values, ask)[0]
    if ask.combine == "sum" and values.shape[1] > 1:
        layers = np.full_like(layers, -1)
    queries = ask.queries[:, 0] if ask.queries.shape[1] == 1 else ask.queries
    found = actstore.search(
        values if values.shape[1] > 1 or seed % 2 else values[:, 0],
        queries,
        ask.k,
        metric=ask.metric,
        combine=ask.combine,
        weights=ask.weights,
        on_nan="skip",
        threads=2,
    )
    same(hits(found), (scores, rows, layers), case.what)
