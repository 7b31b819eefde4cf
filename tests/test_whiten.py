"""Whitening against scikit-learn and explicit transformation; what is dropped; in a store and out of it."""

import ast
import copy
import importlib.util
import json
import pickle
import pkgutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray
from search_cases import F32
from tiny_models import MINILM, needs_minilm

METRICS = ["dot", "cos", "l2"]


def rows_of(n: int, dim: int, seed: int = 0, n_layers: int = 1) -> NDArray[np.float32]:
    """Correlated, far from zero, of scales apart."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim)) * 10.0 ** rng.uniform(-1, 1, dim)
    out: NDArray[np.float32] = (
        rng.normal(size=(n, n_layers, dim)) @ mixing + rng.normal(size=dim) * 5
    ).astype(F32)
    return out


def whitened_brute(w: actstore.Whitener, rows: NDArray[Any], i: int = 0) -> NDArray[np.float64]:
    """In float64, along the principal directions."""
    away = rows.astype(np.float64) - w.mean_[i]
    out: NDArray[np.float64] = away @ w.components_[i].T / np.sqrt(w.explained_variance_[i] + w.eps)
    return out


@pytest.mark.parametrize("dim", [None, 5])
@pytest.mark.parametrize("n", [60, 2000])
def test_as_scikit_learn_has_it(n: int, dim: int | None) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    rows = rows_of(n, 16)[:, 0]
    w = actstore.Whitener(n_components=dim).fit(rows)
    theirs = decomposition.PCA(dim, whiten=True, svd_solver="full").fit(rows.astype(np.float64))
    ours = w.transform(rows)
    wanted = theirs.transform(rows.astype(np.float64))
    assert ours.shape == wanted.shape
    assert ours.dtype == np.float32
    signs = np.sign((ours * wanted).sum(0))
    np.testing.assert_allclose(ours * signs, wanted, atol=1e-5)
    np.testing.assert_allclose(w.explained_variance_[0], theirs.explained_variance_, rtol=1e-8)
    np.testing.assert_allclose(np.cov(ours.T.astype(np.float64)), np.eye(ours.shape[1]), atol=1e-5)


def test_zca_stays_near_the_rows() -> None:
    rows = rows_of(3000, 12)[:, 0]
    pca, zca = actstore.Whitener().fit(rows), actstore.Whitener(kind="zca").fit(rows)
    out = zca.transform(rows).astype(np.float64)
    np.testing.assert_allclose(np.cov(out.T), np.eye(12), atol=1e-4)
    values, vectors = np.linalg.eigh(np.cov(rows.T.astype(np.float64)))
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    np.testing.assert_allclose(out, (rows - rows.mean(0, dtype=np.float64)) @ root, atol=1e-4)
    for metric in METRICS:
        a, b = (
            actstore.search(rows, rows[:5], 7, metric=metric, transform=w, combine="sum") for w in (pca, zca)
        )  # type: ignore[arg-type]
        assert np.array_equal(a.scores, b.scores)
    few = actstore.Whitener(n_components=3, kind="zca").fit(rows)
    assert few.transform(rows).shape == (3000, 12)
    assert np.linalg.matrix_rank(few.transform(rows).astype(np.float64), tol=1e-2) == 3


def test_eps_and_shrinkage() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    rows = rows_of(40, 20)[:, 0]
    w = actstore.Whitener(eps=2.5).fit(rows)
    np.testing.assert_allclose(w.transform(rows), whitened_brute(w, rows), atol=1e-5)
    plain = actstore.Whitener().fit(rows)
    np.testing.assert_allclose(w.explained_variance_, plain.explained_variance_)
    shrunk = actstore.Whitener(shrinkage=0.3).fit(rows)
    empirical = np.cov(rows.T.astype(np.float64), bias=True)
    wanted = np.linalg.eigvalsh(covariance.shrunk_covariance(empirical, 0.3))[::-1] * 40 / 39
    np.testing.assert_allclose(shrunk.explained_variance_[0], wanted, rtol=1e-7)
    oas = actstore.Whitener(shrinkage="oas").fit(rows)
    _, amount = covariance.oas(rows.astype(np.float64))
    np.testing.assert_allclose(oas.shrinkage_, [amount], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_singular_directions_are_dropped(dtype: str) -> None:
    """What layer normalization leaves singular, rounded to the stored dtype, is found to be."""
    spec = actstore.SiteSpec(1, 64, dtype)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 64)) * rng.uniform(0.5, 2, 64)
    rows -= rows.mean(1, keepdims=True)
    rows /= rows.std(1, keepdims=True)
    gain = rng.uniform(0.2, 3, 64)
    gain[5] = 60.0  # One massive dim.
    stored = (rows * gain + 0.1).astype(spec.dtype)
    w = actstore.Whitener().fit(stored)
    assert w.rank_.tolist() == [63]
    assert w.components_.shape == (1, 63, 64)
    out = w.transform(stored).astype(np.float64)
    np.testing.assert_allclose(np.cov(out.T), np.eye(63), atol=1e-4)
    constant = stored.copy()
    constant[:, 3] = 7  # The others are then independent.
    assert actstore.Whitener().fit(constant).rank_[0] == 63
    with pytest.warns(actstore.ActstoreWarning, match="20 rows of 64 dims"):
        few = actstore.Whitener().fit(stored[:20])
    assert few.rank_[0] == 19


def test_layers_of_different_rank() -> None:
    rows = rows_of(500, 10, n_layers=3)
    rows[:, 1, 4] = rows[:, 1, 2]
    rows[:, 1, 7:] = 3.0
    w = actstore.Whitener().fit(rows)
    assert w.rank_.tolist() == [10, 6, 10]
    out = w.transform(rows)
    assert out.shape == (500, 3, 10)
    assert (out[:, 1, 6:] == 0).all()
    for i in range(3):
        np.testing.assert_allclose(
            out[:, i], whitened_brute(w, rows[:, i], i) if i != 1 else out[:, 1], atol=1e-4
        )
    alone = w.select(1)
    assert alone.transform(rows[:, 1]).shape == (500, 6)
    np.testing.assert_allclose(alone.transform(rows[:, 1]), out[:, 1, :6], atol=1e-6)


# ---- Search ----


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n_layers", [1, 3])
def test_search_is_that_of_whitened_rows(metric: Any, n_layers: int) -> None:
    rows = rows_of(2000, 24, n_layers=n_layers)
    queries = rows[::97] + np.random.default_rng(1).normal(size=(21, n_layers, 24)).astype(F32)
    w = actstore.Whitener().fit(rows)
    for options in ({}, {"combine": "max"}, {"weights": list(range(1, n_layers + 1))}):
        hits = actstore.search(rows, queries, 10, metric=metric, transform=w, **options)  # type: ignore[arg-type]
        plain = actstore.search(w.transform(rows), w.transform(queries), 10, metric=metric, **options)  # type: ignore[arg-type]
        np.testing.assert_allclose(hits.scores, plain.scores, rtol=1e-5, atol=2e-5)
        apart = hits.rows != plain.rows
        # Only where scores are as good as equal.
        np.testing.assert_allclose(hits.scores[apart], plain.scores[apart], rtol=1e-6)
        assert np.array_equal(hits.layers >= 0, plain.layers >= 0)


@pytest.mark.parametrize("metric", METRICS)
def test_search_is_the_same_for_any_batch_threads_and_codec(tmp_path: Path, metric: Any) -> None:
    rows = rows_of(700, 40, n_layers=2)
    w = actstore.Whitener().fit(rows)
    queries = rows[:50] * F32(1.01)
    wanted = actstore.search(rows, queries, 9, metric=metric, transform=w, combine="sum")
    for codec in ("blosc", "raw"):
        spec = actstore.SiteSpec(2, 40, "float32", chunk_rows=32, shard_rows=128)
        with actstore.create(tmp_path / codec, {"x": spec}, codec=codec) as writer:  # type: ignore[arg-type]
            writer.append({"x": rows}, [700])
        site = actstore.open(tmp_path / codec)["x"]
        for threads, batch in ((1, slice(50)), (3, slice(50)), (2, slice(3)), (1, slice(20, 37))):
            hits = site.search(queries[batch], 9, metric=metric, transform=w, threads=threads, combine="sum")
            assert np.array_equal(hits.scores.view(np.uint32), wanted.scores[batch].view(np.uint32))
            assert np.array_equal(hits.rows, wanted.rows[batch])
        # Of some rows, in any order: norms go with them, those that were kept and those that were not.
        picked = np.random.default_rng(0).permutation(700)[:111]
        fresh = actstore.open(tmp_path / codec)["x"].select(rows=picked, layers=[1, 0])
        turned = np.ascontiguousarray(queries[:, ::-1])
        again = site.select(rows=picked).search(queries, 5, metric=metric, transform=w, combine="sum")
        assert np.array_equal(
            fresh.search(turned, 5, metric=metric, transform=w, combine="sum").rows, again.rows
        )
        hits = site.select(rows=picked).search(queries, 5, metric=metric, transform=w, combine="sum")
        again = actstore.search(rows[np.sort(picked)], queries, 5, metric=metric, transform=w, combine="sum")
        assert np.array_equal(hits.scores, again.scores)
        assert np.array_equal(hits.rows, np.sort(picked)[again.rows])


def test_equal_rows_are_near_and_zero_norms_are_zero() -> None:
    rows = rows_of(300, 8)[:, 0]
    w = actstore.Whitener().fit(rows)
    hits = actstore.search(rows, rows[:20], 1, metric="l2", transform=w, combine="sum")
    assert np.array_equal(hits.rows[:, 0], np.arange(20))
    assert (np.abs(hits.scores) < 1e-9).all()
    assert (hits.scores <= 0).all()
    middle = np.repeat(w.mean_.astype(F32), 4, 0)
    exact = copy.deepcopy(w)
    exact.mean_ = middle[:1].astype(np.float64)
    del exact.mapping
    assert (
        actstore.search(middle, rows[:2], 4, metric="cos", transform=exact, combine="sum").scores == 0
    ).all()


# ---- Of a real model ----


@needs_minilm
@pytest.mark.slow
def test_all_layers_of_minilm(memory_path: Path) -> None:
    """Singular on every layer: 383 directions are left of 384 on layers 0 to 5, 381 on the last."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    texts = [text for module in pkgutil.iter_modules() for text in [docstring(module.name)] if text]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", actstore.CaptureWarning)  # Some are long, and are cut.
        store = actstore.capture(
            memory_path / "x.act", MINILM, texts, sites=["resid"], device="cpu", progress=False
        )
    site = store["resid"]
    assert len(site) > 3 * 384
    w = actstore.Whitener().fit(site)
    assert w.rank_.tolist() == [383] * 6 + [381]
    rows = site.read("float32")
    out = w.transform(site)
    for i in range(7):
        rank = int(w.rank_[i])
        theirs = decomposition.PCA(rank, whiten=True, svd_solver="full").fit(rows[:, i].astype(np.float64))
        wanted = theirs.transform(rows[:, i].astype(np.float64))
        signs = np.sign((out[:, i, :rank] * wanted).sum(0))
        np.testing.assert_allclose(out[:, i, :rank] * signs, wanted, atol=1e-5 * np.abs(wanted).max())
        one = site.select(layers=i)
        for metric in METRICS:
            hits = one.search(one.read()[::500, 0], 10, metric=metric, transform=w, combine="sum")  # type: ignore[arg-type]
            mine = w.select(i)
            plain = actstore.search(
                mine.transform(rows[:, i]),
                mine.transform(rows[::500, i]),
                10,
                metric=metric,  # type: ignore[arg-type],
                combine="sum",
            )
            scale = np.abs(plain.scores).max()
            np.testing.assert_allclose(hits.scores, plain.scores, rtol=1e-5, atol=1e-5 * scale)


def docstring(name: str) -> str:
    """What a module of the standard library says of itself, without importing it."""
    if name.startswith("_") or name not in sys.stdlib_module_names:
        return ""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


# ---- In a store ----


def make(path: Path, rows: NDArray[Any], parts: int = 1) -> None:
    for part, own in enumerate(np.array_split(rows, parts)):
        spec = actstore.SiteSpec(rows.shape[1], rows.shape[2], "float32", labels=[2, 4], chunk_rows=32)
        where = path if parts == 1 else path / f"part-{part}"
        with actstore.create(where, {"x": spec}, part=None if parts == 1 else (part, parts)) as w:
            w.append({"x": own}, [len(own)], ids=[f"e{part}"])


@pytest.mark.parametrize("parts", [1, 3])
def test_saved_and_loaded(tmp_path: Path, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(500, 12, n_layers=2)
    path = tmp_path / "x"
    make(path, rows, parts)
    site = actstore.open(path)["x"]
    w = actstore.Whitener(n_components=9, eps=0.01, shrinkage=0.05).fit(site)
    assert w.layers_ == [2, 4]
    seen: list[tuple[int, int]] = []
    w.save(path, "white", site="x", progress=lambda *now: seen.append(now))
    assert seen[-1] == (1000, 1000)
    seen.clear()
    w.save(path, "white", site="x", progress=lambda *now: seen.append(now))
    assert seen == []  # Nothing is missing.
    store = actstore.open(path)
    assert list(store.whiteners) == ["white"]
    assert store.verify().ok
    back = store.whiteners["white"]
    assert back.digest == w.digest
    assert np.array_equal(back.transform(rows), w.transform(rows))
    assert (back.kind, back.eps, back.shrinkage_, back.n_samples_) == (
        w.kind,
        w.eps,
        w.shrinkage_,
        w.n_samples_,
    )
    assert pickle.loads(pickle.dumps(w)).digest == w.digest
    hits = site.search(rows[:7], 5, metric="cos", transform=w, combine="sum")
    # Stored norms are used: computing them would fail.
    monkeypatch.setattr("actstore.ops.norms.compute_norms", None)
    monkeypatch.setattr("actstore.ops.whiten.compute_norms", None)
    for some in (store["x"], store["x"].select(layers=4), store["x"].select(rows=[3, 400, 77])):
        some.search(rows[:7, : some.shape[1]], 5, metric="cos", transform=back, combine="sum")
    assert np.array_equal(
        store["x"].search(rows[:7], 5, metric="cos", transform=back, combine="sum").scores, hits.scores
    )


def test_saved_again_after_rows_came(tmp_path: Path) -> None:
    rows = rows_of(400, 6, n_layers=2)
    make(tmp_path / "x", rows[:250])
    w = actstore.Whitener().fit(actstore.open(tmp_path / "x")["x"])
    w.save(tmp_path / "x", "white", site="x")
    with actstore.append(tmp_path / "x") as writer:
        writer.append({"x": rows[250:]}, [150], ids=["more"])
    store = actstore.open(tmp_path / "x")
    hits = store["x"].search(rows[:3], 5, metric="l2", transform=store.whiteners["white"], combine="sum")
    w.save(tmp_path / "x", "white", site="x")
    store = actstore.open(tmp_path / "x")
    norms = store.snapshot.parts[0].reader.array("artifacts/white/norm")
    assert norms.shape == (800,)
    again = store["x"].search(rows[:3], 5, metric="l2", transform=store.whiteners["white"], combine="sum")
    assert np.array_equal(hits.scores, again.scores)
    assert store.verify(strict=True).ok
    other = actstore.Whitener().fit(rows)
    other.layers_ = [2, 4]
    with pytest.raises(errors.StorageError, match="another whitener 'white'") as found:
        other.save(tmp_path / "x", "white", site="x")
    assert found.value.kind == "exists"


def test_update_adds_the_norms_of_rows_that_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(400, 6, n_layers=2)
    path = tmp_path / "x"
    make(path, rows[:250])
    store = actstore.open(path)
    w = actstore.Whitener().fit(store["x"])
    w.save(path, "white", site="x")
    w.save(path, "map")  # of no site: it lacks nothing
    store["x"].pool("mean", out="mean")
    actstore.Whitener().fit(rows[:, :1]).save(path, "other")
    w.save(path, "docs", site="mean")
    assert actstore.update(path) == []
    with actstore.append(path) as writer:
        writer.append({"x": rows[250:]}, [150], ids=["more"])
    assert actstore.update(path, ["artifacts/map"]) == []
    seen: list[tuple[int, int]] = []
    todo = actstore.update(path, progress=lambda *now: seen.append(now))
    assert todo == ["mean", "artifacts/docs", "artifacts/white"]
    assert seen[-1] == (300, 300)
    assert actstore.update(path) == []
    with actstore.append(path) as writer:
        writer.append({"x": rows[:50]}, [50], ids=["again"])
    # What it stands on comes first.
    assert actstore.update(path, ["artifacts/docs", "artifacts/docs"]) == ["mean", "artifacts/docs"]
    assert actstore.update(path) == ["artifacts/white"]
    store = actstore.open(path)
    monkeypatch.setattr("actstore.ops.norms.compute_norms", None)
    monkeypatch.setattr("actstore.ops.whiten.compute_norms", None)
    for name in ("x", "mean"):
        store[name].search(rows[:3], 2, metric="cos", transform=store.whiteners["white"], combine="sum")
    with pytest.raises(errors.NotFoundError, match=r"no artifact '.*/nope' .*whiteners: .*/docs, "):
        actstore.update(path, ["artifacts/nope"])
    with pytest.raises(errors.InvalidInputError, match="a list of names"):
        actstore.update(path, [3])  # type: ignore[list-item]


def test_zarr_reads_it(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    rows = rows_of(100, 5, n_layers=2)
    make(tmp_path / "x", rows)
    w = actstore.Whitener().fit(actstore.open(tmp_path / "x")["x"])
    w.save(tmp_path / "x", "white", site="x")
    group = zarr.open_group(tmp_path / "x", mode="r")["artifacts/white"]
    assert np.array_equal(group["mean"][:].reshape(2, 5), w.mean_)
    norms = np.linalg.norm(w.transform(rows).astype(np.float64), axis=2)
    np.testing.assert_allclose(group["norm"][:].reshape(100, 2), norms, rtol=1e-6)
    assert group.attrs["actstore"]["artifact"]["rank"] == [5, 5]


def test_damage_is_told(tmp_path: Path) -> None:
    make(tmp_path / "x", rows_of(100, 5, n_layers=2))
    w = actstore.Whitener().fit(actstore.open(tmp_path / "x")["x"])
    w.save(tmp_path / "x", "white", site="x")
    [shard] = [path for path in (tmp_path / "x/artifacts/white/components").rglob("*") if path.name == "0"]
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(errors.FormatError):
        actstore.open(tmp_path / "x").whiteners["white"]


def test_a_whitener_that_is_none_is_in_nobodys_way(tmp_path: Path) -> None:
    """What a later actstore, or somebody else, has put there."""
    rows = rows_of(60, 4, n_layers=2)
    make(tmp_path / "x", rows)
    from actstore import _native

    groups = {
        "artifacts/odd": {"actstore": {"artifact": {"kind": "whitener", "version": 1, "layers": "all"}}},
        "artifacts/probe": {"actstore": {"artifact": {"kind": "probe", "version": 3}}},
        "artifacts/strange": {"mine": 1},
    }
    writer = _native.Writer.append_to(str(tmp_path / "x"))
    writer.add_groups(json.dumps(groups))
    writer.commit(writer.state)
    writer.close()
    w = actstore.Whitener().fit(actstore.open(tmp_path / "x")["x"])
    w.save(tmp_path / "x", "good", site="x")
    store = actstore.open(tmp_path / "x")
    assert "malformed" in store.info()["whiteners"]["odd"]["error"]
    assert store.info()["whiteners"]["good"]["rank"] == [4, 4]
    store["x"].search(rows[:2], 3, metric="cos", transform=store.whiteners["good"], combine="sum")
    assert store.whiteners.get("none") is None
    with pytest.raises(errors.FormatError, match="malformed"):
        store.whiteners["odd"]
    artifacts = store.info()["artifacts"]
    assert artifacts["probe"] == {"kind": "probe", "version": 3}
    assert artifacts["strange"] == {"kind": None, "version": None}
    with pytest.raises(errors.StorageError, match="'probe' of kind 'probe'") as found:
        w.save(tmp_path / "x", "probe")
    assert found.value.kind == "exists"


def test_the_group_of_artifacts_is_reserved(tmp_path: Path) -> None:
    spec = actstore.SiteSpec(1, 3, "float32")
    for sites in ({"artifacts": spec}, {"x": replace(spec, axis="artifacts")}):
        with pytest.raises(errors.InvalidInputError, match="'artifacts' is reserved"):
            actstore.create(tmp_path / "x", sites)


# ---- Wrong input ----


def test_wrong_input(tmp_path: Path) -> None:
    rows = rows_of(50, 6)[:, 0]

    def fit(rows: Any, **parameters: Any) -> actstore.Whitener:
        return actstore.Whitener(**parameters).fit(rows)

    for arguments, match in (
        ({"n_components": 0}, "n_components is 0"),
        ({"n_components": 7}, "the rows have 6"),
        ({"kind": "ica"}, "kind"),
        ({"eps": -1}, "eps"),
        ({"eps": np.nan}, "eps"),
        ({"shrinkage": 1.5}, "shrinkage"),
        ({"shrinkage": "ledoit"}, "shrinkage"),
    ):
        with pytest.raises(errors.InvalidInputError, match=match):
            fit(rows, **arguments)
    with pytest.raises(errors.InvalidInputError, match="without covariances"):
        fit(actstore.moments(rows, cov=False))
    with pytest.raises(errors.InvalidInputError, match="grouped"):
        fit(actstore.moments(rows, by=np.arange(50) % 2))
    for few in (rows[:0], rows[:1], np.ones((9, 3))):
        with pytest.raises(errors.NumericalError) as found:
            fit(few)
        assert found.value.kind == "singular"
    w = fit(rows)
    for wrong in (rows[:, :5], np.ones((3, 2, 6), F32), np.ones(6, F32)):
        with pytest.raises(errors.ShapeError):
            w.transform(wrong)
    with pytest.raises(errors.InvalidInputError, match="int64"):
        w.transform(np.ones((2, 6), int))
    with pytest.raises(errors.InvalidInputError, match="not a Whitener"):
        actstore.search(rows, rows[:1], transform=np.eye(6), metric="dot", combine="sum")  # type: ignore[arg-type]
    with pytest.raises(errors.ShapeError, match="has dim 6"):
        actstore.search(rows[:, :5], rows[:1, :5], transform=w, metric="dot", combine="sum")
    with pytest.raises(errors.NotFoundError, match="no layer 1"):
        actstore.search(
            np.ones((3, 2, 6), F32), np.ones((1, 6), F32), transform=w, metric="dot", combine="sum"
        )
    make(tmp_path / "x", rows_of(20, 6, n_layers=2))
    with pytest.raises(errors.InvalidInputError, match="no site 'y'"):
        fit(actstore.open(tmp_path / "x")["x"]).save(tmp_path / "x", "w", site="y")
    with pytest.raises(errors.NotFoundError, match="'x' has no layer 0, it has: 2, 4"):
        w.save(tmp_path / "x", "w", site="x")
    with pytest.raises(errors.InvalidInputError, match=r"layer twice: \[4, 4\]"):
        fit(actstore.open(tmp_path / "x")["x"].select(layers=[4, 4])).save(tmp_path / "x", "w")
    narrow = fit(actstore.open(tmp_path / "x")["x"])
    narrow.mean_ = narrow.mean_[:, :5]
    narrow.n_features_in_ = 5
    with pytest.raises(errors.ShapeError, match="'x' has dim 6, the whitener has dim 5"):
        narrow.save(tmp_path / "x", "w", site="x")
    with pytest.raises(errors.NotFoundError, match="no whitener 'w'"):
        actstore.open(tmp_path / "x").whiteners["w"]
    with pytest.raises(errors.InvalidInputError, match="slash"):
        fit(actstore.open(tmp_path / "x")["x"]).save(tmp_path / "x", "a/b")
