"""The order of rows: complete for all segments and shares, well mixed, stable, and small in memory."""

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from actstore.loader import permutation as permutations
from actstore.loader import schedule as schedules
from actstore.loader.permutation import Feistel, permutation, uniform
from actstore.loader.schedule import (
    BatchBounds,
    Schedule,
    cut_segments,
    rank_rows,
    segment_edges,
    worker_batches,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))


def z_score(counts: NDArray[Any], freedom: int) -> float:
    """How many standard deviations chi squared lies above its mean for uniform counts."""
    mean = counts.sum() / counts.size
    return float((((counts - mean) ** 2 / mean).sum() - freedom) / math.sqrt(2 * freedom))


# ---- Stable ----


def test_the_order_is_the_same_in_every_release() -> None:
    """Users keep states on disk, so a change of the order needs a new `permutations.ORDER`."""
    assert permutations.ORDER == 1
    assert permutation(10, 7, 1, 2).tolist() == [1, 3, 8, 5, 4, 7, 0, 9, 2, 6]
    assert Feistel(1000, 7, 1)(np.arange(8)).tolist() == [706, 544, 593, 695, 995, 917, 523, 79]
    segments = cut_segments(range(40), segment_edges([(40, 4)], 40))
    through_a_reservoir = Schedule(segments, True, 7, 1, range(40), round_rows=8, window=2)
    assert np.concatenate(list(through_a_reservoir.rows())).tolist() == RESERVOIR
    full = Schedule(segments, "full", 7, 1, range(40), round_rows=8)
    assert np.concatenate(list(full.rows())).tolist() == FULL


# fmt: off
RESERVOIR = [
    15, 10, 12, 6, 14, 23, 9, 22, 13, 11, 7, 8, 4, 20, 16, 31, 5, 21, 17, 19, 28, 29, 35, 18, 30, 2,
    3, 34, 33, 26, 25, 0, 32, 37, 39, 24, 36, 1, 38, 27,
]
FULL = [
    21, 2, 7, 28, 10, 16, 23, 12, 20, 26, 11, 0, 22, 6, 37, 17, 9, 5, 25, 29, 4, 27, 31, 33, 30, 38,
    39, 35, 34, 19, 15, 13, 1, 18, 36, 8, 14, 32, 3, 24,
]
# fmt: on


# ---- Complete ----


@st.composite
def rank_schedules(draw: st.DrawFn) -> tuple[Any, Any, list[Schedule]]:
    """The rows of a view, a shuffle mode, and the schedules of all ranks."""
    parts = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=3))
    n = sum(rows for rows, _ in parts)
    row = st.integers(0, max(n - 1, 0))
    lists = st.lists(row, max_size=50 if n else 0).map(lambda rows: np.array(rows, np.int64))
    ranges = st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda ends: range(min(ends), max(ends)))
    rows = draw(st.one_of(ranges, lists, lists.map(np.sort)))
    kind = draw(st.sampled_from([False, True, "full"]))
    segments = cut_segments(
        rows, segment_edges(parts, draw(st.integers(1, 30))), kind is False, draw(st.integers(1, 9))
    )
    window = draw(st.integers(1, 6)) if kind is True else 1
    world = draw(st.integers(1, 4))
    size = draw(st.integers(1, 30))
    shares = [rank_rows(len(rows), rank, world) for rank in range(world)]
    return rows, kind, [Schedule(segments, kind, 1, 2, share, size, window) for share in shares]


@pytest.mark.parametrize("n", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_every_row_once(n: int) -> None:
    @settings(RELAXED, max_examples=n)
    @given(rank_schedules())
    def check(case: tuple[Any, Any, list[Schedule]]) -> None:
        rows, kind, of_ranks = case
        given_rows = []
        for schedule in of_ranks:
            steps = list(schedule.rows())
            assert np.diff(schedule.step_starts()).tolist() == [len(step) for step in steps]
            given_rows += [*steps]
        got = np.concatenate([*given_rows, np.zeros(0, np.int64)]).tolist()
        assert (got if kind is False else sorted(got)) == (list(rows) if kind is False else sorted(rows))

    check()


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 5), st.booleans(), st.integers(1, 5))
def test_ranks_and_workers_share_batches_evenly(
    n_rows: int, batch_size: int, world_size: int, drop_last: bool, n_workers: int
) -> None:
    counts, n_given = [], 0
    for rank in range(world_size):
        bounds = BatchBounds.of(n_rows, batch_size, drop_last, rank, world_size)
        edges = [bounds[i] for i in range(bounds.n_batches + 1)]
        sizes = np.diff(edges)
        assert edges[0] == 0
        assert edges[-1] <= len(rank_rows(n_rows, rank, world_size))
        assert ((sizes > 0) & (sizes <= batch_size)).all()
        assert (sizes == batch_size).all() or not drop_last
        counts.append(bounds.n_batches)
        n_given += int(sizes.sum())
        # Worker i % n_workers makes batch i, and each worker makes a contiguous range of batches.
        runs = [worker_batches(bounds.n_batches, worker, n_workers) for worker in range(n_workers)]
        assert [i for run in runs for i in run] == list(range(bounds.n_batches))
        assert [len(run) for run in runs] == [
            len(range(worker, bounds.n_batches, n_workers)) for worker in range(n_workers)
        ]
    if drop_last:
        assert n_given == n_rows // (batch_size * world_size) * batch_size * world_size
    else:
        assert n_given == n_rows
    if drop_last or (batch_size > 1 and n_rows >= world_size):
        assert len(set(counts)) == 1


def test_a_segment_has_at_most_max_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.diff(np.append(segment_edges([(100, 40)], 15), 100)).max() == 15
    assert segment_edges([(10, 4), (0, 3), (5, 8)], 100).tolist() == [0, 4, 8, 10]
    monkeypatch.setattr(schedules, "MAX_SEGMENTS", 10)
    assert len(segment_edges([(1000, 1)], 500)) == 10
    assert len(segment_edges([(1000, 4)], 1)) == 10


# ---- Uniform ----


@pytest.mark.parametrize("n", [1, 2, 3, 5, 17, 1000, 65_537, 999_983])
def test_permutations_are_permutations(n: int) -> None:
    everything = np.arange(n)
    for seed in (0, 2**64 + 1):
        for got in (permutation(n, seed, 3), Feistel(n, seed, 3)(everything), uniform(n, seed)(everything)):
            assert got.dtype == np.int64
            assert np.array_equal(np.sort(got), everything)
    assert permutation(0, 1).tolist() == []


def test_small_permutations_are_uniform() -> None:
    """The 120 permutations of five elements are equally frequent."""
    number = {p: i for i, p in enumerate(itertools.permutations(range(5)))}
    counts = np.bincount(
        [number[tuple(permutation(5, seed).tolist())] for seed in range(12_000)], minlength=120
    )
    assert abs(z_score(counts, 119)) < 4


@pytest.mark.parametrize("n", [1_000_003, 3_000_017])
def test_large_permutations_look_uniform(n: int) -> None:
    """Images of rows, images of neighbors and their distances: chi squared over 4,096 bins."""
    place = uniform(n, 11, 5)
    assert isinstance(place, Feistel) == (n > permutations.MAX_TABLE)
    rows = np.arange(n)
    to = place(rows)
    box = to * 64 // n
    assert abs(z_score(np.bincount((rows * 64 // n) * 64 + box, minlength=4096), 63 * 63)) < 4
    for step in (
        1,
        math.isqrt(n - 1) + 1,
        -(-n // (math.isqrt(n - 1) + 1)),
    ):  # 1 and the sizes of the network's halves.
        apart = (to[step:] - to[:-step]) % n
        assert abs(z_score(np.bincount(apart * 4096 // n, minlength=4096), 4095)) < 4
        assert abs(z_score(np.bincount(box[step:] * 64 + box[:-step], minlength=4096), 4095)) < 4
    other = uniform(n, 11, 6)(rows)
    assert abs(z_score(np.bincount(box * 64 + other * 64 // n, minlength=4096), 63 * 63)) < 4


# ---- Mixed ----

CHUNK, CHUNKS = 64, 400


def order(kind: Any, window: int, round_chunks: int, epoch: int = 0) -> NDArray[np.int64]:
    segments = cut_segments(range(CHUNK * CHUNKS), segment_edges([(CHUNK * CHUNKS, CHUNK)], CHUNK))
    rows = range(CHUNK * CHUNKS)
    schedule = Schedule(segments, kind, 5, epoch, rows, round_chunks * CHUNK, window)
    return np.concatenate(list(schedule.rows()))


@pytest.mark.parametrize(("window", "round_chunks"), [(8, 4), (8, 1), (4, 2)])
def test_a_reservoir_mixes_as_many_chunks_as_it_holds(window: int, round_chunks: int) -> None:
    """The rows of a chunk are spread over about a reservoir of rows, and no batch has many of them."""
    held = window * round_chunks
    got = order(True, window, round_chunks)
    chunk = got // CHUNK
    # Consecutive rows share a chunk about as often as two random rows of the reservoir.
    assert 0.5 / held < (chunk[1:] == chunk[:-1]).mean() < 2 / held
    place = np.empty_like(got)
    place[got] = np.arange(len(got))
    place = place.reshape(CHUNKS, CHUNK)
    spread = place.max(1) - place.min(1)
    assert np.median(spread) > 0.9 * held * CHUNK
    # A batch of a third of the reservoir, from the middle, has rows of all its chunks, evenly.
    batch = chunk[len(chunk) // 2 :][: held * CHUNK // 3]
    counts = np.bincount(batch)
    assert np.count_nonzero(counts) >= held
    assert counts.max() < 0.8 * CHUNK
    # A chunk's position is independent of its position in the store and in another epoch.
    for before in (
        np.arange(CHUNKS),
        order(True, window, round_chunks, 1).argsort().reshape(CHUNKS, -1).mean(1),
    ):
        assert abs(np.corrcoef(place.mean(1), before)[0, 1]) < 4 / math.sqrt(CHUNKS)


def test_a_reservoir_of_all_rows_gives_a_uniform_order() -> None:
    counts = np.zeros((12, 12))
    segments = cut_segments(range(12), segment_edges([(12, 3)], 12))
    for epoch in range(3000):
        [got] = Schedule(segments, True, 0, epoch, range(12), 3, window=8).rows()
        counts[np.arange(12), got] += 1
    assert abs(z_score(counts, 11 * 11)) < 4


def test_full_is_independent_of_chunks() -> None:
    chunk = order("full", 1, 4) // CHUNK
    expected = (CHUNK - 1) / (CHUNK * CHUNKS - 1)
    n = len(chunk) - 1
    assert abs((chunk[1:] == chunk[:-1]).sum() - n * expected) < 4 * math.sqrt(n * expected)
    counts = np.bincount((np.arange(n + 1) * 40 // (n + 1)) * 40 + chunk // 10, minlength=1600)
    assert abs(z_score(counts, 39 * 39)) < 4


# ---- Small ----


@pytest.mark.parametrize("kind", [True, "full", False])
def test_a_billion_rows_take_little_memory(kind: Any) -> None:
    n = 10**9
    tracemalloc.start()
    try:
        segments = cut_segments(range(n), segment_edges([(n, 682)], 1 << 20), kind is False)
        schedule = Schedule(segments, kind, 0, 0, rank_rows(n, 1, 3), 10_000, 8 if kind is True else 1)
        starts = schedule.step_starts()
        rows = np.concatenate(list(itertools.islice(schedule.rows(), 2)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert starts[-1] == len(rank_rows(n, 1, 3))
    assert len(np.unique(rows)) == len(rows)
    assert peak < 100 << 20
