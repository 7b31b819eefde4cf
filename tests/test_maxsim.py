"""Late interaction against brute force in float64, to the bit: any values, examples of any length."""

import os
import pickle
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray
from search_cases import COMBINATIONS, F32, OF_ROWS, draw
from search_oracle import Floats, added, score

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def lengths_drawn(rng: np.random.Generator, n: int) -> list[int]:
    """Lengths of examples of `n` rows in all: empty ones, of one row, and long ones."""
    lengths: list[int] = []
    while sum(lengths) < n:
        lengths.append(int(rng.choice([0, 1, 1, 2, 5, 17, 60, 300])))
    if n:
        lengths[-1] -= sum(lengths) - n
    return [0, *lengths, 0, 0]


def brute(
    rows: NDArray[np.float32],
    offset: NDArray[np.int64],
    queries: list[NDArray[np.float32]],
    k: int,
    metric: str = "dot",
    combine: str = "sum",
    weights: Any = None,
    min_score: float | None = None,
) -> Found:
    """Every score of every row, by the ranking contract."""
    n_examples = len(offset) - 1
    scores = np.full((len(queries), k), -np.inf, F32)
    found = np.full((len(queries), k), -1, np.int64)
    for j, query in enumerate(queries):
        of_tokens: Floats = np.array([score(vector, rows, metric, combine, weights)[0] for vector in query])
        ranked = []
        for e in range(n_examples):
            own = of_tokens[:, offset[e] : offset[e + 1]]
            usual = ~np.isnan(rows[offset[e] : offset[e + 1]]).any(axis=(1, 2))
            own = own[:, usual]
            if not own.shape[1]:
                continue
            with np.errstate(all="ignore"):
                best = np.array([of_token[~np.isnan(of_token)].max(initial=-np.inf) for of_token in own])
                total = added(best[None]).astype(F32)[0] + F32(0)
            if np.isnan(total) or np.isnan(own).all():
                continue
            if min_score is None or total >= F32(min_score):
                ranked.append((-total, e, total))
        ranked.sort(key=lambda item: item[:2])
        for i, (_, e, total) in enumerate(ranked[:k]):
            scores[j, i], found[j, i] = total, e
    return scores, found


def same(hits: actstore.Hits, wanted: Found, what: object) -> None:
    assert np.array_equal(hits.rows, wanted[1]), (what, hits.rows, wanted[1])
    assert np.array_equal(hits.scores.view(np.uint32), wanted[0].view(np.uint32)), what


@pytest.mark.parametrize("seed", range(3 * len(OF_ROWS) * len(COMBINATIONS)))
def test_any_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = draw(3000 + seed, 60_000)
    values, vectors, ask = case.values, case.ask.queries, case.ask
    with np.errstate(over="ignore", invalid="ignore"):
        rows = values.astype(F32)
    if ask.layers is not None:
        rows = np.ascontiguousarray(rows[:, list(ask.layers)])
    if not np.isfinite(rows).all() and seed % 3:
        rows[~np.isfinite(rows)] = 1.0
    offset = np.cumsum([0, *lengths_drawn(rng, len(rows))])
    cuts = np.sort(rng.integers(1, len(vectors) + 1, 2))
    queries = [part for part in np.split(vectors, np.unique(cuts)) if len(part)]
    k = int(rng.choice([1, 3, len(offset) + 2]))
    wanted = brute(rows, offset, queries, k, ask.metric, ask.combine, ask.weights, ask.min_score)
    for threads in (1, 3):
        try:
            hits = actstore.maxsim(
                rows,
                offset,
                queries,
                k,
                metric=ask.metric,
                combine=ask.combine,
                weights=ask.weights,
                min_score=ask.min_score,
                on_nan="skip",
                threads=threads,
            )
        except errors.InvalidInputError as error:
            if np.isfinite(vectors).all() or "NaN" not in str(error):
                raise
            return
        same(hits, wanted, case.what)


@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_examples_across_chunks_and_shards(tmp_path: Path, codec: Any, metric: Any) -> None:
    rng = np.random.default_rng(5)
    lengths = [0, 3, 1, 40, 0, 1, 100, 7, 0, 33, 1, 1, 0]
    rows = rng.normal(size=(sum(lengths), 2, 24)).astype(F32)
    with actstore.create(
        tmp_path / "x", {"x": actstore.SiteSpec(2, 24, "float32", chunk_rows=8, shard_rows=16)}, codec=codec
    ) as writer:
        for start in range(0, len(lengths), 3):
            some = lengths[start : start + 3]
            before = sum(lengths[:start])
            writer.append({"x": rows[before : before + sum(some)]}, some)
            writer.commit()
    offset = np.cumsum([0, *lengths])
    queries = [rng.normal(size=(n, 24)).astype(F32) for n in (1, 5, 17, 33)]
    site = actstore.open(tmp_path / "x")["x"]
    for layers in ([0], [1, 0], [0, 1]):
        some = [query[:, None] for query in queries]
        wanted = brute(rows[:, layers], offset, some, 6, metric)
        for threads in (1, 2, 5):
            same(
                site.select(layers=layers).maxsim(queries, 6, metric=metric, threads=threads, combine="sum"),
                wanted,
                layers,
            )


def test_filters(tmp_path: Path) -> None:
    """By examples in any order, by tokens, by layers: as of the rows that are left."""
    rng = np.random.default_rng(6)
    lengths = [4, 0, 9, 1, 6, 2, 30]
    rows = rng.normal(size=(sum(lengths), 3, 16)).astype(F32)
    special = (rng.random(len(rows)) < 0.3).astype(np.uint8)
    spec = {"x": actstore.SiteSpec(3, 16, "float32", labels=[0, 6, 12], chunk_rows=8, shard_rows=16)}
    with actstore.create(tmp_path / "x", spec) as writer:
        writer.append({"x": rows}, lengths, token_columns={"special": special})
    store = actstore.open(tmp_path / "x")
    offset = np.cumsum([0, *lengths])
    query = rng.normal(size=(5, 1, 16)).astype(F32)
    site = store["x"].select(layers=[12])
    for chosen in ([6, 2, 0, 3], [4], slice(1, 5), [1]):
        for mask in (None, store.tokens["special"] == 0):
            view = site if mask is None else site.select(rows=mask)
            view = view.select(examples=chosen)
            numbers = list(range(7))[chosen] if isinstance(chosen, slice) else chosen
            kept = [np.arange(offset[e], offset[e + 1]) for e in numbers]
            kept = [own if mask is None else own[mask[own]] for own in kept]
            ends = np.cumsum([0, *map(len, kept)])
            flat = np.concatenate(kept)
            scores, found = brute(rows[flat][:, [2]], ends, [query], 10)
            # Ties are ranked by the number in the store; there are none here.
            named = np.where(found >= 0, np.array(numbers)[found], -1)
            hits = view.maxsim([query[:, 0]], 10, metric="dot", combine="sum")
            same(hits, (scores, named), (chosen, mask is None))
            assert np.array_equal(hits.examples, named)
            assert [name for name in hits.ids[0] if name is not None] == [str(i) for i in named[0] if i >= 0]
            assert (hits.layers[hits.rows >= 0] == 12).all()
    # Rows in an order of their own, of which the same examples are.
    mixed = rng.permutation(len(rows))
    wanted = brute(rows[:, [2]], offset, [query], 10)
    same(site.select(rows=mixed).maxsim([query[:, 0]], 10, metric="dot", combine="sum"), wanted, "mixed")


def test_all_negative_and_one_token() -> None:
    """Nothing is padded: zeros would win here."""
    rows = -np.ones((6, 4), F32) * np.arange(1, 7, dtype=F32)[:, None]
    hits = actstore.maxsim(rows, [0, 1, 1, 4, 6], [np.ones((2, 4), F32)], k=5, metric="dot", combine="sum")
    assert hits.rows.tolist() == [[0, 2, 3, -1, -1]]
    assert hits.scores[0, :3].tolist() == [-8.0, -16.0, -40.0]


def test_ties_by_number() -> None:
    rows = np.tile(np.eye(4, dtype=F32), (50, 1))
    offset = np.arange(0, 201, 4)
    hits = actstore.maxsim(rows, offset, [np.eye(4, dtype=F32)] * 3, k=50, metric="dot", combine="sum")
    assert (hits.rows == np.arange(50)).all()
    assert (hits.scores == 4).all()


def test_many_queries_are_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 40)).astype(F32)
    offset = np.cumsum([0, *lengths_drawn(rng, 3000)])
    queries = [rng.normal(size=(n, 40)).astype(F32) for n in rng.integers(1, 40, 200)]
    together = actstore.maxsim(rows, offset, queries, k=7, metric="dot", combine="sum")
    for i in (0, 57, 199):
        alone = actstore.maxsim(rows, offset, [queries[i]], k=7, metric="dot", combine="sum")
        same(alone, (together.scores[i : i + 1], together.rows[i : i + 1]), i)
    same(together, brute(rows[:, None], offset, [query[:, None] for query in queries], 7), "all")


def test_few_scores_are_computed_exactly() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20_000, 64)).astype(F32)
    hits = actstore.maxsim(
        rows,
        np.arange(0, 20_001, 100),
        [rng.normal(size=(32, 64)).astype(F32)],
        k=10,
        metric="dot",
        combine="sum",
    )
    assert hits.certificate.n_rescored < 32 * 60
    assert hits.certificate.exact


def test_nan() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(50, 8)).astype(F32)
    rows[[7, 30, 31]] = np.nan
    offset = [0, 10, 30, 32, 50]
    query = rng.normal(size=(3, 8)).astype(F32)
    with pytest.raises(errors.InvalidInputError, match=r"3 rows are NaN.*the first is row 7"):
        actstore.maxsim(rows, offset, [query], metric="dot", combine="sum")
    hits = actstore.maxsim(rows, offset, [query], k=4, on_nan="skip", metric="dot", combine="sum")
    # The third example has no other rows.
    assert sorted(hits.rows[0].tolist()) == [-1, 0, 1, 3]
    same(hits, brute(rows[:, None], np.array(offset), [query[:, None]], 4), "skip")


def test_whitened() -> None:
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(400, 12)) * np.arange(1, 13) + 5).astype(F32)
    offset = np.arange(0, 401, 8)
    query = rng.normal(size=(4, 12)).astype(F32) * 5
    whitener = actstore.Whitener().fit(rows)
    for metric in ("dot", "cos", "l2"):
        hits = actstore.maxsim(rows, offset, [query], 10, metric=metric, transform=whitener, combine="sum")  # type: ignore[arg-type]
        plain = actstore.maxsim(
            whitener.transform(rows),
            offset,
            [whitener.transform(query)],
            10,
            metric=metric,  # type: ignore[arg-type],
            combine="sum",
        )
        assert np.array_equal(hits.rows, plain.rows), metric
        np.testing.assert_allclose(hits.scores, plain.scores, rtol=1e-5, atol=1e-5)


def test_pickled_hits_keep_their_examples() -> None:
    rows = np.eye(4, dtype=F32)
    hits = actstore.maxsim(rows, [0, 2, 4], [rows[:1]], k=2, metric="dot", combine="sum")
    back = pickle.loads(pickle.dumps(hits))
    assert back.ids == hits.ids == [["0", "1"]]
    assert np.array_equal(back.examples, hits.examples)
    with pytest.raises(errors.InvalidInputError, match="pickled"):
        back.explain(0, 0)


def test_wrong_input() -> None:
    rows, offset = np.ones((4, 3), F32), [0, 2, 4]
    for queries, match in (
        ([np.ones((0, 3), F32)], "have no vectors, the first is query 0"),
        ([np.ones(3, F32)], r"expected \[Tq, D\]"),
        ([np.ones((2, 4), F32)], "dim 4"),
        ([np.full((2, 3), np.nan, F32)], "NaN"),
        ([np.ones((2, 3), int)], "int64"),
        (np.ones(3, F32), "expected a list"),
    ):
        with pytest.raises(errors.InvalidInputError, match=match):
            actstore.maxsim(rows, offset, queries, metric="dot", combine="sum")
    with pytest.raises(errors.InvalidInputError, match="k is 0"):
        actstore.maxsim(rows, offset, [rows], k=0, metric="dot", combine="sum")
    with pytest.raises(errors.InvalidInputError, match="pooled"):
        actstore.pool(rows, offset, "mean").maxsim([rows], metric="dot", combine="sum")
    assert actstore.maxsim(rows, offset, [], metric="dot", combine="sum").rows.shape == (0, 10)
    assert actstore.maxsim(rows[:0], [0, 0], [rows], k=2, metric="dot", combine="sum").rows.tolist() == [
        [-1, -1]
    ]
    # One query needs no list; three axes are so many queries.
    assert actstore.maxsim(rows, offset, rows[:2], k=1, metric="dot", combine="sum").rows.shape == (1, 1)
    assert actstore.maxsim(
        rows, offset, np.ones((5, 2, 3), F32), k=1, metric="dot", combine="sum"
    ).rows.shape == (5, 1)


def test_a_site_of_queries() -> None:
    rng = np.random.default_rng(4)
    rows, queries = rng.normal(size=(2, 30, 6)).astype(F32)
    offset = [0, 4, 20, 30]
    from actstore.rows.memory import array_backend

    site = actstore.Site(array_backend(queries, [0, 10, 30]))
    found = actstore.maxsim(rows, offset, site, k=3, metric="dot", combine="sum")
    same(found, brute(rows[:, None], np.array(offset), [queries[:10, None], queries[10:, None]], 3), "site")


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    actstore.maxsim(
        np.ones((3000, 16), F32),
        [0, 3000],
        [np.ones((2, 16), F32)],
        progress=lambda *now: seen.append(now),
        metric="dot",
        combine="sum",
    )
    assert seen[-1] == (3000, 3000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked() -> None:
    from children import fork, join

    rows = np.random.default_rng(0).normal(size=(1000, 8)).astype(F32)
    wanted = actstore.maxsim(rows, [0, 500, 1000], [rows[:3]], k=2, metric="dot", combine="sum")

    def child() -> None:
        found = actstore.maxsim(rows, [0, 500, 1000], [rows[:3]], k=2, metric="dot", combine="sum")
        assert np.array_equal(found.scores, wanted.scores)

    join(fork(child))


def test_candidates_are_pruned() -> None:
    """Examples that come ever better are candidates all, until better ones are known."""
    import subprocess
    import sys

    code = (
        "import numpy as np, actstore, resource\n"
        "rows = np.zeros((200_000, 4), np.float32); rows[:, 0] = np.arange(len(rows))\n"
        "queries = [np.array([[1 + i, 0, 0, 0]], np.float32) for i in range(60)]\n"
        "offset = np.arange(len(rows) + 1)\n"
        "actstore.maxsim(rows[:100], offset[:101], queries, 1, metric='dot')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "hits = actstore.maxsim(rows, offset, queries, 1, metric='dot', threads=1)\n"
        "assert (hits.rows == len(rows) - 1).all()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 < 100e6


def test_three_axes_are_so_many_queries_whatever_the_layers() -> None:
    rng = np.random.default_rng(7)
    rows, queries = rng.normal(size=(10, 3, 4)).astype(F32), rng.normal(size=(2, 3, 4)).astype(F32)
    together = actstore.maxsim(rows, [0, 5, 10], queries, k=2, metric="dot", combine="sum")
    one_by_one = actstore.maxsim(
        rows, [0, 5, 10], list(queries[:, :, None]), k=2, metric="dot", combine="sum"
    )
    assert np.array_equal(together.scores, one_by_one.scores)
