"""to_faiss and to_usearch hold the rows and row ids of a view; rerank gives the scores of search."""

import os
import sys
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore import errors
from actstore.rows.view import View
from numpy.typing import NDArray

faiss = pytest.importorskip("faiss")
usearch = pytest.importorskip("usearch.index")

N, DIM, LAYERS = 600, 16, [0, 6]
LENGTHS = np.tile([7, 0, 3, 20], 20)
RNG = np.random.default_rng(0)
ACTS = (RNG.normal(size=(N, 2, DIM)) * np.linspace(0.3, 3, DIM) + 0.2).astype(np.float32)
QUERIES = RNG.normal(size=(9, DIM)).astype(np.float32)
METRICS: list[Any] = ["dot", "cos", "l2"]
LIBRARIES: list[Any] = [actstore.to_faiss, actstore.to_usearch]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("indexes") / "run.act"
    specs = {
        "resid": actstore.SiteSpec(2, DIM, "float32", LAYERS, chunk_rows=64, shard_rows=256),
        "docs": actstore.SiteSpec(1, DIM, "float32", axis="examples"),
    }
    with actstore.create(path, specs) as writer:
        writer.append({"resid": ACTS, "docs": ACTS[: len(LENGTHS), :1]}, LENGTHS)
    return path


@pytest.fixture
def layer(site: actstore.Site) -> actstore.Site:
    """One layer of the site."""
    return site.select(layers=6)


def found(index: Any, queries: NDArray[Any], k: int, metric: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Scores, in the scale of `Site.search`, and row ids of an exhaustive search in an index."""
    if isinstance(index, usearch.Index):
        matches = index.search(queries, k, exact=True)
        distances, keys = np.atleast_2d(matches.distances), np.atleast_2d(matches.keys).astype(np.int64)
        return (-distances if metric == "l2" else 1 - distances), keys
    if metric == "cos":
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores, rows = index.search(np.ascontiguousarray(queries, np.float32), k)
    return (-scores if metric == "l2" else scores), rows


def ids_in(index: Any) -> list[int]:
    """The row ids in an index, ascending."""
    if isinstance(index, usearch.Index):
        return sorted(index.search(QUERIES[0], len(index), exact=True).keys.tolist())
    if isinstance(index, faiss.IndexIDMap):
        return sorted(faiss.vector_to_array(index.id_map).tolist())
    rows = index.search(QUERIES[:1], index.ntotal)[1][0]
    return sorted(rows.tolist())


# ---- The content of an index ----


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("metric", METRICS)
def test_an_exhaustive_index_finds_what_search_finds(layer: actstore.Site, make: Any, metric: Any) -> None:
    scores, rows = found(make(layer, metric=metric), QUERIES, 7, metric)
    hits = layer.search(QUERIES, 7, metric=metric, combine="sum")
    np.testing.assert_array_equal(rows, hits.rows)
    np.testing.assert_allclose(scores, hits.scores, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitened(site: actstore.Site, make: Any, metric: Any, kind: str) -> None:
    """A whitener fitted to several layers applies the layer's own transform."""
    whitener = actstore.Whitener(n_components=10, kind=kind).fit(site)
    layer = site.select(layers=6)
    index = make(layer, metric=metric, transform=whitener)
    queries = whitener.select(6).transform(QUERIES)
    scores, rows = found(index, queries, 7, metric)
    hits = layer.search(QUERIES, 7, metric=metric, transform=whitener, combine="sum")
    np.testing.assert_array_equal(rows, hits.rows)
    np.testing.assert_allclose(scores, hits.scores, rtol=1e-4, atol=1e-4)
    again = actstore.rerank(layer, QUERIES, rows, 7, metric=metric, transform=whitener)
    np.testing.assert_array_equal(again.scores, hits.scores)


@pytest.mark.parametrize("make", LIBRARIES)
def test_labels_are_row_ids(store: actstore.Store, layer: actstore.Site, make: Any) -> None:
    pooled = layer.select(examples=[40, 2, 0]).pool("mean")
    for view in (
        layer,
        layer.select(rows=slice(100, 300)),
        layer.select(rows=[599, 3, 4, 20]),
        layer.select(examples=[3, 0, 79]),
        store["docs"],
        store["docs"].select(examples=[70, 5, 6]),
        pooled,
    ):
        index = make(view, metric="l2")
        assert ids_in(index) == sorted(view.rows.tolist())
        # All rows differ, so each is its own nearest neighbor.
        rows = found(index, view.read()[:, 0], 1, "l2")[1]
        np.testing.assert_array_equal(rows[:, 0], view.rows)
    assert ids_in(make(pooled)) == [0, 2, 40]


@pytest.mark.parametrize("make", LIBRARIES)
def test_parts(tmp_path: Path, make: Any) -> None:
    for i in range(2):
        spec = {"resid": actstore.SiteSpec(1, DIM, "float32")}
        with actstore.create(tmp_path / f"parts/{i}.act", spec, part=(i, 2)) as writer:
            writer.append({"resid": ACTS[30 * i : 30 * i + 30, :1]}, [30], ids=[str(i)])
    with actstore.open(tmp_path / "parts") as store:
        site = store["resid"]
        np.testing.assert_array_equal(
            found(make(site, metric="dot"), QUERIES, 5, "dot")[1],
            actstore.search(ACTS[:60, 0], QUERIES, 5, metric="dot", combine="sum").rows,
        )
        assert ids_in(make(site.select(examples=["1"]))) == list(range(30, 60))


@pytest.mark.parametrize("make", LIBRARIES)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_plain_arrays(make: Any, dtype: Any) -> None:
    array = ACTS[:, 1].astype(dtype)
    _, rows = found(make(array, metric="dot"), QUERIES, 5, "dot")
    np.testing.assert_array_equal(rows, actstore.search(array, QUERIES, 5, metric="dot", combine="sum").rows)


@pytest.mark.parametrize("make", LIBRARIES)
def test_zero_rows_have_cosine_0(make: Any) -> None:
    array = np.zeros((3, DIM), np.float32)
    array[1] = 1e-30
    scores, rows = found(make(array, metric="cos"), np.ones((1, DIM)), 3, "cos")
    assert rows[0, 0] == 1 or make is actstore.to_usearch  # usearch underflows a norm this small
    assert make is actstore.to_usearch or scores[0].round(3).tolist() == [1, 0, 0]


@pytest.mark.parametrize("make", LIBRARIES)
def test_a_view_without_rows(layer: actstore.Site, make: Any) -> None:
    index = make(layer.select(rows=[]))
    assert len(index) == 0 if make is actstore.to_usearch else index.ntotal == 0


@pytest.mark.parametrize("make", LIBRARIES)
def test_memory_use_is_one_block(layer: actstore.Site, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, calls = [], []
    read = View.read_rows_into

    def spy(view: View, rows: Any, layers: list[int], out: NDArray[Any], threads: int) -> None:
        sizes.append(out.nbytes)
        read(view, rows, layers, out, threads)

    whole = found(make(layer), QUERIES, 9, "dot")
    monkeypatch.setattr(View, "read_rows_into", spy)
    monkeypatch.setattr("actstore.interchange.index_rows.BLOCK_BYTES", 50 * 4 * DIM + 3)
    for view in (layer, layer.select(rows=np.arange(N)[::-1])):
        sizes.clear()
        calls.clear()
        index = make(view, threads=1, progress=lambda *call: calls.append(call))
        assert sizes == [50 * 4 * DIM] * 12
        assert calls == [(done, N) for done in range(50, 601, 50)]
        for ours, theirs in zip(found(index, QUERIES, 9, "dot"), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_number_of_threads_is_restored(layer: actstore.Site) -> None:
    before = faiss.omp_get_max_threads()
    actstore.to_faiss(layer, threads=1, metric="dot")
    with pytest.raises(errors.InvalidInputError):
        actstore.to_faiss(layer.select(rows=[0]), "IVF4,Flat", threads=1, metric="dot")
    assert faiss.omp_get_max_threads() == before


# ---- faiss ----


def test_an_id_map_only_if_needed(layer: actstore.Site) -> None:
    assert type(actstore.to_faiss(layer, metric="dot")) is faiss.IndexFlat or isinstance(
        actstore.to_faiss(layer, metric="dot"), faiss.IndexFlatIP
    )
    some = layer.select(rows=slice(1, None))
    assert type(actstore.to_faiss(some, metric="dot")) is faiss.IndexIDMap2
    for factory in ("IVF4,Flat", "PCA8,IVF4,Flat", "IDMap2,HNSW8"):
        index = actstore.to_faiss(some, factory, metric="dot")
        assert (type(index) is faiss.IndexIDMap2) == factory.startswith("IDMap2")
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None:
            ivf.nprobe = 4
        assert ids_in(index) == list(range(1, N))


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat", "PCA8,PQ4x4", "IVF8,PQ4x4,RFlat", "SQ8"])
def test_candidates_of_any_index_get_exact_scores(layer: actstore.Site, factory: str) -> None:
    view = layer.select(rows=slice(50, 500))
    index = actstore.to_faiss(view, factory, metric="l2")
    candidates = index.search(QUERIES, 100)[1]
    hits = actstore.rerank(view, QUERIES, candidates, 10, metric="l2")
    exact = view.search(QUERIES, len(view), metric="l2", combine="sum")
    at = [exact.rows[q].tolist().index(row) for q, rows in enumerate(hits.rows) for row in rows if row >= 0]
    scores = exact.scores[np.repeat(np.arange(len(QUERIES)), (hits.rows >= 0).sum(1)), at]
    np.testing.assert_array_equal(hits.scores[hits.rows >= 0], scores)
    recall = np.mean([len(set(a) & set(b[:10])) / 10 for a, b in zip(hits.rows, exact.rows, strict=True)])
    assert recall >= {"IVF8,Flat": 0.3, "IVF8,PQ4x4,RFlat": 0.3}.get(factory, 0.8)


def test_the_training_sample_is_reproducible(layer: actstore.Site) -> None:
    samples, calls = [], []
    for train_rows in (64, 64, None, 10_000):
        index = faiss.index_factory(DIM, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
        train = index.train
        index.train = lambda sample, train=train: (samples.append(sample.copy()), train(sample))
        calls.clear()
        actstore.to_faiss(
            layer, index, train_rows=train_rows, progress=lambda *call: calls.append(call), metric="dot"
        )
        n = min(train_rows or N, N)
        assert calls == [(n, N + n), (N + n, N + n)]
        assert index.ntotal == N
    rows = {row.tobytes(): i for i, row in enumerate(ACTS[:, 1])}
    places = [[rows[row.tobytes()] for row in sample] for sample in samples]
    assert places[0] == places[1] == sorted(set(places[0]))
    assert len(places[0]) == 64
    assert places[0][-1] > N / 2
    assert places[2] == places[3] == list(range(N))
    # An index without training reads the rows once.
    actstore.to_faiss(layer, "HNSW8", progress=lambda *call: calls.append(call), metric="dot")
    assert calls[-1] == (N, N)


def test_the_default_number_of_training_rows(layer: actstore.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.interchange.faiss.TRAIN_ROWS", 300)
    sizes: list[int] = []
    for factory in ("SQ8", "IVF2,Flat"):
        index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
        train = index.train
        index.train = lambda sample, train=train: (sizes.append(len(sample)), train(sample))
        actstore.to_faiss(layer, index, metric="dot")
    assert sizes == [300, 512]


def test_an_existing_index_keeps_its_content(layer: actstore.Site) -> None:
    index = faiss.IndexFlatIP(DIM)
    for part in (slice(0, 250), slice(250, None)):  # in order, without an id map
        assert actstore.to_faiss(layer.select(rows=part), index, metric="dot") is index
    np.testing.assert_array_equal(
        index.search(QUERIES, 5)[1], layer.search(QUERIES, 5, metric="dot", combine="sum").rows
    )
    with pytest.raises(errors.InvalidInputError, match="from 600, but these begin with row 0") as caught:
        actstore.to_faiss(layer, index, metric="dot")
    assert "IndexIDMap2" in str(caught.value.hint)

    index = faiss.IndexIDMap2(faiss.IndexFlatL2(DIM))
    for tokens in ([5, 400], slice(20, 30), [7]):
        assert actstore.to_faiss(layer.select(rows=tokens), index, metric="l2") is index
    assert ids_in(index) == [5, 7, *range(20, 30), 400]


def test_invalid_faiss_indexes(layer: actstore.Site, site: actstore.Site) -> None:
    for wrong in ("Bogus", "", "PQ5"):
        with pytest.raises(errors.InvalidInputError, match=f"index '{wrong}': ") as caught:
            actstore.to_faiss(layer, wrong, metric="dot")
        assert "/project" not in str(caught.value)
    with pytest.raises(errors.InvalidInputError, match="index has type int, expected a string"):
        actstore.to_faiss(layer, 3, metric="dot")
    with pytest.raises(errors.ShapeError, match="index has dim 5, the rows have dim 16"):
        actstore.to_faiss(layer, faiss.IndexFlatIP(5), metric="dot")
    whitener = actstore.Whitener(n_components=4).fit(site)
    with pytest.raises(errors.ShapeError, match="index has dim 16, the rows have dim 4"):
        actstore.to_faiss(layer, faiss.IndexFlatIP(DIM), transform=whitener, metric="dot")
    for metric, right in (("dot", "METRIC_INNER_PRODUCT"), ("cos", "METRIC_INNER_PRODUCT")):
        with pytest.raises(
            errors.InvalidInputError, match=f"metric '{metric}' needs .*{right}.*has METRIC_L2"
        ):
            actstore.to_faiss(layer, faiss.IndexFlatL2(DIM), metric=metric)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError, match="no rows to train with"):
        actstore.to_faiss(layer.select(rows=[]), "IVF4,Flat", metric="dot")
    with pytest.raises(errors.InvalidInputError, match="training points"):
        actstore.to_faiss(layer.select(rows=[1, 2]), "IVF4,Flat", metric="dot")
    for wrong_number in (0, -1, 2.5, True):
        with pytest.raises(errors.InvalidInputError, match="train_rows is"):
            actstore.to_faiss(layer, train_rows=wrong_number, metric="dot")  # type: ignore[arg-type]


# ---- usearch ----


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8"])
def test_dtypes_of_usearch(layer: actstore.Site, dtype: Any) -> None:
    index = actstore.to_usearch(layer, metric="cos", dtype=dtype, connectivity=8, expansion_add=64)
    assert (index.ndim, index.connectivity, index.expansion_add) == (DIM, 8, 64)
    assert str(index.dtype).rpartition(".")[2].lower() == dtype
    hits = actstore.rerank(layer, QUERIES, index.search(QUERIES, 60), 10, metric="cos")
    exact = layer.search(QUERIES, 10, metric="cos", combine="sum")
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(hits.rows, exact.rows, strict=True)])
    assert recall >= 0.9


def test_invalid_usearch_options(layer: actstore.Site) -> None:
    with pytest.raises(errors.InvalidInputError, match="dtype is 'f8'"):
        actstore.to_usearch(layer, dtype="f8", metric="dot")  # type: ignore[arg-type]
    for metric in ("dot", "l2"):
        with pytest.raises(errors.InvalidInputError, match=f"'i8' drops the norms.*'{metric}'"):
            actstore.to_usearch(layer, metric=metric, dtype="i8")  # type: ignore[arg-type]
    for name in ("connectivity", "expansion_add"):
        options: dict[str, Any] = {name: 0}
        with pytest.raises(errors.InvalidInputError, match=f"{name} is 0"):
            actstore.to_usearch(layer, **options)
    large = ACTS[:, 1].copy()
    large[[300, 500], 3] = -70_000, 65_519
    with pytest.raises(errors.InvalidInputError, match="row 300 has values that overflow f16"):
        actstore.to_usearch(large, dtype="f16", metric="dot")
    large[300] = 0
    assert np.isfinite(actstore.to_usearch(large, dtype="f16", metric="dot").get(500)).all()
    assert len(actstore.to_usearch(large * 1e9, dtype="bf16", metric="dot")) == N


# ---- Invalid input ----


@pytest.mark.parametrize("make", LIBRARIES)
def test_rows_that_are_not_finite(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.interchange.index_rows.BLOCK_BYTES", 50 * 4 * DIM)
    array = ACTS.copy()
    array[[420, 77, 333], 1, 5] = np.nan, np.nan, np.inf
    array[0, 0] = np.nan
    view = actstore.pool(array, np.arange(N + 1), "first").select(layers=1)
    for metric in METRICS:
        with pytest.raises(errors.InvalidInputError, match=r"3 rows have NaN or infinities.*is row 77"):
            make(view, metric=metric)
    with pytest.raises(errors.InvalidInputError, match=r"1 row has NaN or infinities.*is row 420") as caught:
        make(view.select(rows=slice(400, None)))
    assert "select" in str(caught.value.hint)
    whitener = actstore.Whitener().fit(ACTS[:, 1])
    with pytest.raises(errors.InvalidInputError, match=r"3 rows have NaN or infinities.*is row 77"):
        make(array[:, 1], transform=whitener)
    if make is actstore.to_faiss:
        with pytest.raises(errors.InvalidInputError, match=r"3 rows have NaN or infinities.*is row 77"):
            make(view, "IVF4,Flat")
    good = np.isfinite(array[:, 1]).all(1)
    assert ids_in(make(view.select(rows=good))) == np.flatnonzero(good).tolist()


@pytest.mark.parametrize("make", LIBRARIES)
def test_invalid_arguments(site: actstore.Site, layer: actstore.Site, make: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match=r"rows of one layer, site 'resid'.* 0, 6") as caught:
        make(site)
    assert "select(layers=...)" in str(caught.value.hint)
    with pytest.raises(errors.InvalidInputError, match="one layer, the array has layers 0, 1"):
        make(ACTS)
    with pytest.raises(errors.InvalidInputError, match="row 7 is selected more than once"):
        make(layer.select(rows=[7, 3, 7]))
    with pytest.raises(errors.InvalidInputError, match="metric is 'manhattan'"):
        make(layer, metric="manhattan")
    with pytest.raises(errors.InvalidInputError, match="transform has type str"):
        make(layer, transform="pca")
    with pytest.raises(errors.NotFoundError, match="no layer 6"):
        make(layer, transform=actstore.Whitener().fit(site.select(layers=0)))
    with pytest.raises(errors.InvalidInputError, match="threads is -1"):
        make(layer, threads=-1)


@pytest.mark.parametrize(("make", "name"), list(zip(LIBRARIES, ["faiss", "usearch"], strict=True)))
def test_without_the_library(
    layer: actstore.Site, make: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.InvalidInputError, match=f"{name} cannot be imported") as caught:
        make(layer)
    assert caught.value.hint == ("pip install faiss-cpu" if name == "faiss" else "pip install usearch")
    hits = actstore.rerank(
        layer, QUERIES, np.zeros((len(QUERIES), 1), int), 1, metric="dot"
    )  # rerank needs neither library
    assert not hits.rows.any()


# ---- Writing to a file ----


def restored(path: Path, make: Any) -> Any:
    return faiss.read_index(str(path)) if make is actstore.to_faiss else usearch.Index.restore(str(path))


@pytest.mark.parametrize("make", LIBRARIES)
def test_written_and_read_again(layer: actstore.Site, tmp_path: Path, make: Any) -> None:
    view = layer.select(rows=slice(100, 300))
    target = tmp_path / "one.index"
    target.write_bytes(b"an older one")
    for out in (target, str(target)):
        index = make(view, out=out)
        again = restored(target, make)
        for ours, theirs in zip(
            found(index, QUERIES, 9, "dot"), found(again, QUERIES, 9, "dot"), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
        assert os.listdir(tmp_path) == ["one.index"]


@pytest.mark.parametrize("make", LIBRARIES)
def test_write_errors(
    layer: actstore.Site, tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(errors.StorageError, match="is not a directory") as caught:
        make(layer, out=tmp_path / "not/there", progress=pytest.fail)
    assert caught.value.kind == "io"
    with pytest.raises(errors.StorageError, match="is a directory"):
        make(layer, out=tmp_path, progress=pytest.fail)
    with pytest.raises(errors.InvalidInputError, match="out: expected a path"):
        make(layer, out=3)

    target = tmp_path / "one.index"
    target.write_bytes(b"an older one")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(errors.StorageError, match="No space left") as caught:
        make(layer, out=target)
    assert caught.value.kind == "disk_full"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("one.index", b"an older one")]
    monkeypatch.undo()

    def full(*_: object) -> None:
        raise RuntimeError("disk says no")

    monkeypatch.setattr(faiss, "write_index", full)
    monkeypatch.setattr(usearch.Index, "save", full)
    with pytest.raises(errors.StorageError, match="disk says no"):
        make(layer, out=target)
    assert target.read_bytes() == b"an older one"


# ---- rerank ----


def test_candidates_select_rows(store: actstore.Store, layer: actstore.Site) -> None:
    """Searching only the examples of the candidates, as the guide recommends."""
    candidates = actstore.to_faiss(layer, metric="dot").search(QUERIES, 20)[1]
    hits = layer.select(rows=np.unique(candidates[candidates >= 0])).search(
        QUERIES, 10, metric="dot", combine="sum"
    )
    exact = layer.search(QUERIES, 10, metric="dot", combine="sum")
    np.testing.assert_array_equal(hits.rows, exact.rows)
    np.testing.assert_array_equal(hits.scores, exact.scores)
    docs = store["docs"]
    candidates = actstore.to_faiss(docs, metric="dot").search(QUERIES, 20)[1]
    hits = docs.select(examples=np.unique(candidates)).search(QUERIES, 10, metric="dot", combine="sum")
    np.testing.assert_array_equal(hits.rows, docs.search(QUERIES, 10, metric="dot", combine="sum").rows)


@pytest.mark.parametrize("block", [1, 1 << 26])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("whitened", [False, True])
def test_rerank_of_all_rows_is_search(
    site: actstore.Site, metric: Any, whitened: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actstore.ops.rerank.BLOCK_BYTES", block)
    transform = actstore.Whitener(n_components=12).fit(site) if whitened else None
    some = site.select(rows=slice(300, 500) if whitened else np.random.default_rng(1).permutation(N)[:200])
    options: list[dict[str, Any]] = [{"weights": [0.3, -2.0]}, {"combine": "max", "min_score": -5e2}]
    for view in (some, some.select(layers=6)):
        candidates = np.broadcast_to(view.rows, (len(QUERIES), len(view)))
        for how in options if view is some else [{}]:
            how = {**how, "metric": metric, "transform": transform}
            hits = actstore.rerank(view, QUERIES, candidates, 250, **how)
            exact = view.search(QUERIES, 250, **how)
            for name in ("scores", "rows", "layers", "examples", "positions"):
                np.testing.assert_array_equal(getattr(hits, name), getattr(exact, name), err_msg=name)
            assert hits.ids == exact.ids
            np.testing.assert_array_equal(hits.explain(3, 0), exact.explain(3, 0))
            assert not hits.certificate.exact
            assert hits.certificate.n_rows == 200


def test_each_query_has_its_own_candidates(layer: actstore.Site) -> None:
    candidates = np.random.default_rng(1).integers(0, N, (len(QUERIES), 30))
    candidates[0, 5:] = -1
    candidates[1] = -1
    calls = []
    hits = actstore.rerank(
        layer, QUERIES, candidates, 8, progress=lambda *call: calls.append(call), metric="dot"
    )
    assert calls == [(9, 9)]
    assert (hits.rows[1] == -1).all()
    assert (hits.scores[1] == -np.inf).all()
    for q, own in enumerate(candidates):
        own = np.unique(own[own >= 0])
        alone = layer.select(rows=own).search(QUERIES[q], 8, metric="dot", combine="sum")
        np.testing.assert_array_equal(hits.rows[q], alone.rows[0])
        np.testing.assert_array_equal(hits.scores[q], alone.scores[0])
        np.testing.assert_array_equal(hits.layers[q], alone.layers[0])
    one = actstore.rerank(layer, QUERIES[2], candidates[2], 8, metric="dot")
    np.testing.assert_array_equal(one.rows[0], hits.rows[2])
    none = actstore.rerank(layer, QUERIES[:0], candidates[:0], 8, metric="dot")
    assert none.rows.shape == (0, 8)
    empty = actstore.rerank(layer, QUERIES, np.zeros((9, 0), int), 2, metric="dot")
    assert (empty.rows == -1).all()


def test_missing_matches_of_usearch(layer: actstore.Site) -> None:
    """Missing keys are 0, which is also a row id; the matches' counts tell them apart."""
    view = layer.select(rows=[30, 10, 20])
    index = actstore.to_usearch(view, metric="dot")
    for queries in (QUERIES, QUERIES[0]):
        hits = actstore.rerank(view, queries, index.search(queries, 10), 5, metric="dot")
        np.testing.assert_array_equal(hits.rows, view.search(queries, 5, metric="dot", combine="sum").rows)


def test_rows_with_nan_among_candidates() -> None:
    array = ACTS[:, 0].copy()
    array[50] = np.nan
    with pytest.raises(errors.InvalidInputError, match="the first is row 50"):
        actstore.rerank(array, QUERIES[:1], [[49, 50]], metric="dot")
    hits = actstore.rerank(array, QUERIES[:1], [[49, 50]], 2, on_nan="skip", metric="dot")
    assert hits.rows.tolist() == [[49, -1]]


def test_invalid_candidates(layer: actstore.Site) -> None:
    view = layer.select(rows=[5, 9, 11])
    for site, wrong in ((layer, N), (view, 6), (view, 12), (layer.select(rows=slice(7, 9)), 6)):
        with pytest.raises(errors.InvalidInputError, match=f"candidate {wrong} is not a row of site 'resid'"):
            actstore.rerank(site, QUERIES[:1], [[-1, wrong]], metric="dot")
    with pytest.raises(errors.ShapeError, match=r"expected \[9, m\].*got \[8, 3\]"):
        actstore.rerank(layer, QUERIES, np.zeros((8, 3), int), metric="dot")
    with pytest.raises(errors.InvalidInputError, match="expected row ids as integers, got float64"):
        actstore.rerank(layer, QUERIES[:1], [[1.0]], metric="dot")
    with pytest.raises(errors.InvalidInputError, match="rerank: k is 0"):
        actstore.rerank(layer, QUERIES[:1], [[1]], 0, metric="dot")
    with pytest.raises(errors.InvalidInputError, match="rerank: metric is 'manhattan'"):
        actstore.rerank(layer, QUERIES[:1], [[1]], metric="manhattan")
    with pytest.raises(errors.ShapeError, match="query has dim 3"):
        actstore.rerank(layer, QUERIES[:1, :3], [[1]], metric="dot")


def test_a_closed_store(path: Path) -> None:
    with actstore.open(path) as store:
        layer = store["resid"].select(layers=6)
    for call in (*LIBRARIES, lambda site: actstore.rerank(site, QUERIES[:1], [[1]], metric="dot")):
        with pytest.raises(errors.StorageError) as caught:
            call(layer)
        assert caught.value.kind == "closed"
