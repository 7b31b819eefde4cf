"""Neighbors against brute force in float64, to the bit: ties, equal rows, several layers, views."""

import importlib
import pickle
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray
from search_cases import F32, OF_QUERIES, draw
from search_oracle import score


def brute(rows: NDArray[np.float32], k: int, metric: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of rows ``[n, L, D]``, every distance by the ranking contract."""
    n = len(rows)
    distances, found = np.full((n, k), np.inf, F32), np.full((n, k), -1, np.int64)
    for i in range(n):
        total, _ = score(rows[i], rows, metric, "sum", None)
        with np.errstate(all="ignore"):
            away = np.sqrt(-total) if metric == "l2" else -(total - rows.shape[1])
            away = away.astype(F32) + F32(0)
        others = np.delete(np.arange(n), i)
        others = others[~np.isnan(away[others])]
        best = others[np.lexsort((others, away[others]))][:k]
        distances[i, : len(best)], found[i, : len(best)] = away[best], best
    return distances, found


def same(found: Any, wanted: tuple[NDArray[np.float32], NDArray[np.int64]], what: object) -> None:
    assert np.array_equal(found.rows, wanted[1]), what
    assert np.array_equal(found.distances.view(np.uint32), wanted[0].view(np.uint32)), what


@pytest.mark.parametrize("seed", range(6 * len(OF_QUERIES)))
def test_any_values(seed: int) -> None:
    case = draw(5000 + seed, 20_000)
    values = case.values[:120]
    with np.errstate(over="ignore", invalid="ignore"):
        rows = values.astype(F32)
    rows[~np.isfinite(rows)] = 2.0
    if not rows.size:
        return
    metric = ("l2", "cos")[seed % 2]
    k = (1, 3, len(rows) + 1)[seed % 3]
    wanted = brute(rows, k, metric)
    for threads in (1, 3):
        same(actstore.neighbors(rows, k, metric=metric, threads=threads), wanted, case.what)  # type: ignore[arg-type]


def test_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 20)).astype(F32)
    rows[100:110] = rows[0]
    wanted = brute(rows[:, None], 5, "l2")
    # The package has a function of that name.
    monkeypatch.setattr(importlib.import_module("actstore.ops.neighbors"), "_MOST_QUERIES", 37)
    seen: list[tuple[int, int]] = []
    same(actstore.neighbors(rows, 5, progress=lambda *now: seen.append(now)), wanted, "blocks")
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_equal_rows_leave_themselves_out_by_number() -> None:
    nn = actstore.neighbors(np.ones((5, 3), F32), k=2)
    assert nn.rows.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    assert (nn.distances == 0).all()
    assert not np.signbit(nn.distances).any()


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_stored_and_pooled(tmp_path: Path, codec: Any) -> None:
    rng = np.random.default_rng(1)
    lengths = [3, 1, 8, 2, 5, 40, 1]
    spec = actstore.SiteSpec(2, 12, "bfloat16", labels=[4, 8], chunk_rows=8, shard_rows=16)
    rows = rng.normal(size=(60, 2, 12)).astype(spec.dtype)
    with actstore.create(tmp_path / "x", {"x": spec}, codec=codec) as w:
        w.append({"x": rows}, lengths, ids=list("abcdefg"))
    site = actstore.open(tmp_path / "x")["x"]
    wide = rows.astype(F32)
    same(site.neighbors(4), brute(wide, 4, "l2"), "all layers")
    same(site.select(layers=8).neighbors(4, metric="cos"), brute(wide[:, [1]], 4, "cos"), "one layer")
    # A view's rows keep their numbers.
    picked = np.array([50, 3, 17, 22, 59])
    distances, found = brute(wide[np.sort(picked)], 2, "l2")
    order = np.argsort(np.argsort(picked))
    nn = site.select(rows=picked).neighbors(2)
    assert np.array_equal(nn.distances, distances[order])
    assert np.array_equal(nn.rows, np.sort(picked)[found][order])
    docs = site.pool("mean", layers=8)
    nn = docs.neighbors(k=2)
    same(nn, brute(docs.read(), 2, "l2"), "pooled")
    assert nn.ids[0] == ["abcdefg"[i] for i in nn.rows[0]]
    some = docs.select(examples=[1, 4, 6]).neighbors(k=5)
    assert some.rows[0].tolist()[2:] == [-1, -1, -1]
    assert set(some.rows[0, :2].tolist()) == {4, 6}
    assert some.ids[0][2:] == [None, None, None]
    assert len(list(nn)) == len(nn)
    assert [[near.row for near in row] for row in nn] == nn.rows.tolist()
    assert [[near.distance for near in row] for row in nn] == nn.distances.tolist()
    assert np.array_equal(pickle.loads(pickle.dumps(nn)).rows, nn.rows)


def test_nan() -> None:
    rows = np.random.default_rng(2).normal(size=(30, 1, 6)).astype(F32)
    rows[[4, 20], 0, 1] = np.nan
    with pytest.raises(errors.InvalidInputError, match=r"2 rows are NaN.*the first is row 4"):
        actstore.neighbors(rows, 3)
    nn = actstore.neighbors(rows, 3, on_nan="skip")
    left = np.delete(np.arange(30), [4, 20])
    distances, found = brute(rows[left], 3, "l2")
    assert np.array_equal(nn.rows[left], left[found])
    assert np.array_equal(nn.distances[left], distances)
    assert (nn.rows[[4, 20]] == -1).all()
    assert (nn.distances[[4, 20]] == np.inf).all()


def test_rows_that_come_twice_are_refused(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "x", {"x": actstore.SiteSpec(1, 2, "float32")}) as w:
        w.append({"x": np.eye(2, dtype=F32)[[0, 1, 0, 1, 0], None]}, [5])
    with pytest.raises(errors.InvalidInputError, match="a row twice"):
        actstore.open(tmp_path / "x")["x"].select(rows=[3, 3, 4]).neighbors(k=1)


def test_few_rows_and_wrong_input() -> None:
    assert actstore.neighbors(np.zeros((0, 3)), 2).rows.shape == (0, 2)
    assert actstore.neighbors(np.zeros((1, 3)), 2).rows.tolist() == [[-1, -1]]
    assert actstore.neighbors(np.zeros((1, 3)), 2).distances.tolist() == [[np.inf, np.inf]]
    for arguments, match in (
        ({"k": 0}, "k is 0"),
        ({"metric": "dot"}, "metric"),
        ({"on_nan": "zero"}, "on_nan"),
    ):
        with pytest.raises(errors.InvalidInputError, match=match):
            actstore.neighbors(np.ones((3, 2)), **arguments)  # type: ignore[arg-type]


def test_two_nearest_neighbors_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    rows = np.random.default_rng(3).normal(size=(2000, 32)).astype(F32)
    index = faiss.IndexFlatL2(32)
    index.add(rows)
    squares, found = index.search(rows, 3)
    nn = actstore.neighbors(rows, k=2)
    assert np.array_equal(nn.rows, found[:, 1:])
    np.testing.assert_allclose(nn.distances, np.sqrt(squares[:, 1:]), rtol=1e-5)
