"""The manners of the interface: what a user of numpy, torch, scikit-learn and data frames expects."""

import math
import pickle
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 3, 8)).astype(np.float32)
OFFSETS = [0, 12, 12, 30, 40]
IDS = ["a", "empty", "b", "c"]
LABELS = [0, 6, 12]


def memory() -> actstore.Site:
    return actstore.from_array(
        ROWS, OFFSETS, IDS, LABELS, columns={"topic": ["x", "y", "x", "z"]}, token_columns={"id": range(40)}
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("interface") / "x.act"
    spec = actstore.SiteSpec(3, 8, "float32", labels=LABELS)
    with actstore.create(path, {"resid": spec}) as writer:
        writer.append(
            {"resid": ROWS},
            np.diff(OFFSETS),
            ids=IDS,
            token_columns={"id": range(40)},
            columns={"topic": ["x", "y", "x", "z"]},
        )
    return path


@pytest.fixture(params=["stored", "memory"])
def site(request: pytest.FixtureRequest, path: Path) -> actstore.Site:
    return memory() if request.param == "memory" else actstore.open(path)["resid"]


# ---- A view ----


def test_a_view_tells_what_its_rows_are(site: actstore.Site) -> None:
    assert site.ids == IDS
    assert site.offsets.tolist() == OFFSETS
    assert site.column("id").tolist() == list(range(40))
    assert site.column("topic").tolist() == ["x"] * 12 + ["x"] * 18 + ["z"] * 10
    assert site.nbytes == ROWS.nbytes
    some = site.select(examples=["b", "a"], layers=[6])
    assert (some.ids, some.offsets.tolist()) == (["b", "a"], [0, 18, 30])
    assert some.column("topic").tolist() == ["x"] * 30
    assert site.pool("mean", on_empty="zero").column("topic").tolist() == ["x", "y", "x", "z"]
    mixed = site.select(rows=[20, 3, 21])
    with pytest.raises(actstore.InvalidInputError, match="not contiguous"):
        _ = mixed.offsets
    assert mixed.column("id").tolist() == [20, 3, 21]
    with pytest.raises(actstore.NotFoundError, match="nope"):
        site.column("nope")


def test_rows_are_selected_by_position_or_by_id(site: actstore.Site) -> None:
    view = site.select(examples="b", layers=12)
    assert view.select(rows=[0, 2]).rows.tolist() == [12, 14]
    assert view.select(row_ids=[14, 12, 14]).rows.tolist() == [14, 12, 14]
    assert np.array_equal(view.select(row_ids=np.array([29])).read()[0, 0], ROWS[29, 2])
    assert view.select(row_ids=[]).shape == (0, 1, 8)
    for wrong in ([11], [30], [-1]):
        with pytest.raises(actstore.NotFoundError, match="not in this view"):
            view.select(row_ids=wrong)
    with pytest.raises(actstore.InvalidInputError, match="one of them"):
        view.select(rows=[0], row_ids=[12])
    docs = site.select(examples=[2, 3]).pool("mean")
    assert docs.rows.tolist() == [2, 3]
    assert docs.select(row_ids=[3]).rows.tolist() == [3]
    hits = docs.select(layers=6).search(ROWS[:1, 1], k=2)
    assert hits.site(0).ids == hits.ids[0]


# ---- Queries and layers ----


def test_the_default_metric_is_cosine(site: actstore.Site) -> None:
    layer = site.select(layers=6)
    query = RNG.normal(size=8).astype(np.float32)
    wide = ROWS[:, 1].astype(float)
    cosine = wide @ query / np.linalg.norm(wide, axis=1) / np.linalg.norm(query)
    hits = layer.search(query, k=3)
    assert hits.rows[0].tolist() == np.argsort(-cosine)[:3].tolist()
    np.testing.assert_allclose(hits.scores[0], np.sort(cosine)[::-1][:3], rtol=1e-6)
    for alias, name in (("cosine", "cos"), ("ip", "dot"), ("euclidean", "l2"), ("sqeuclidean", "l2")):
        assert (
            layer.search(query, metric=alias).scores.tobytes()
            == layer.search(query, metric=name).scores.tobytes()
        )


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 8), (2, 1, 8)])
def test_one_vector_for_several_layers_needs_combine(site: actstore.Site, shape: tuple[int, ...]) -> None:
    query = RNG.normal(size=shape).astype(np.float32)
    with pytest.raises(actstore.InvalidInputError, match=r"3 layers.*combine="):
        site.search(query)
    with pytest.raises(actstore.InvalidInputError, match="combine="):
        site.maxsim([np.atleast_2d(query.reshape(-1, 8))])
    with pytest.raises(actstore.InvalidInputError, match="combine="):
        actstore.rerank(site, query, [list(range(40))] * math.prod(shape[:-1]))
    summed = site.search(query, combine="sum")
    assert summed.scores.tobytes() == site.search(query, weights=[1, 1, 1]).scores.tobytes()
    assert (summed.layers == -1).all()
    assert set(site.search(query, combine="max").layers.ravel().tolist()) <= set(LABELS)
    assert site.select(layers=6).search(query).rows.shape == (math.prod(shape[:-1]), 10)
    with pytest.raises(actstore.InvalidInputError, match="weights need combine='sum'"):
        site.search(query, weights=[1, 1, 1], combine="max")


def test_queries_of_several_layers_are_matched_by_label(site: actstore.Site) -> None:
    queries = site.select(rows=[3, 25])
    own = site.search(queries, k=2)
    assert own.rows[:, 0].tolist() == [3, 25]
    np.testing.assert_allclose(own.scores[:, 0], 3, rtol=1e-6)
    by_array = site.search(queries.read(), k=2)
    assert own.scores.tobytes() == by_array.scores.tobytes()
    turned = site.select(layers=[12, 0, 6]).search(queries, k=2)
    assert turned.rows[:, 0].tolist() == [3, 25]
    np.testing.assert_allclose(turned.scores, own.scores, rtol=1e-6)


@pytest.mark.parametrize(("ours", "theirs"), [([0, 6], [6, 12]), ([0, 6, 12], [0, 6]), ([0, 6], [0, 6, 12])])
def test_layers_that_do_not_match_are_refused(
    site: actstore.Site, ours: list[int], theirs: list[int]
) -> None:
    queries = site.select(layers=theirs, rows=[1])
    with pytest.raises(actstore.InvalidInputError, match="queries have layers"):
        site.select(layers=ours).search(queries)
    if len(ours) != len(theirs):
        with pytest.raises(actstore.ShapeError, match="layers"):
            site.select(layers=ours).search(queries.read())


# ---- torch ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_torch_and_back(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    tensor = torch.from_numpy(ROWS).to(kind)
    with actstore.create(tmp_path / "x.act", {"x": actstore.SiteSpec(3, 8, dtype)}) as writer:
        writer.append({"x": tensor}, lengths=[40])
    site = actstore.open(tmp_path / "x.act")["x"]
    back = site.to_torch()
    assert back.dtype == kind
    assert torch.equal(back, tensor)
    out = torch.empty(40, 3, 8, dtype=kind)
    assert site.read(out=out) is out
    assert torch.equal(out, tensor)
    strided = torch.empty(3, 40, 8, dtype=kind).transpose(0, 1)
    site.read(out=strided)
    assert torch.equal(strided, tensor)
    assert torch.equal(site.to_torch("float32"), tensor.float())
    assert torch.equal(
        site.select(rows=slice(3, 5)).to_torch(torch.float32, device="cpu"), tensor[3:5].float()
    )
    for wrong, error in (
        (torch.empty(40, 3, 7, dtype=kind), actstore.ShapeError),
        (torch.empty(40, 3, 8, dtype=torch.int16), actstore.InvalidInputError),
        (torch.empty(40, 3, 8, dtype=kind, requires_grad=True), actstore.InvalidInputError),
        (torch.empty(40, 3, 8, dtype=kind, device="meta"), actstore.InvalidInputError),
        ([[1.0]], actstore.InvalidInputError),
    ):
        with pytest.raises(error):
            site.read(out=wrong)


# ---- scikit-learn ----


def test_the_whitener_is_an_estimator() -> None:
    base = pytest.importorskip("sklearn.base")
    pipeline = pytest.importorskip("sklearn.pipeline")
    linear = pytest.importorskip("sklearn.linear_model")
    whitener = actstore.Whitener(n_components=4, eps=0.1)
    copy = base.clone(whitener)
    assert copy is not whitener
    assert copy.get_params() == whitener.get_params() == {
        "n_components": 4, "kind": "pca", "eps": 0.1, "shrinkage": 0.0, "on_singular": "raise",
    }  # fmt: skip
    assert whitener.set_params(kind="zca") is whitener
    assert whitener.kind == "zca"
    with pytest.raises(actstore.InvalidInputError, match="no parameter 'dim'"):
        whitener.set_params(dim=3)
    with pytest.raises(actstore.InvalidInputError, match="not fitted"):
        whitener.transform(ROWS[:, 0])
    assert repr(actstore.Whitener(n_components=4)) == "Whitener(n_components=4)"
    flat, labels = ROWS[:, 0], np.arange(40) % 2
    model = pipeline.make_pipeline(actstore.Whitener(), linear.LogisticRegression()).fit(flat, labels)
    assert model.predict(flat).shape == (40,)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_whitening_goes_back(site: actstore.Site, kind: str) -> None:
    whitener = actstore.Whitener(kind=kind).fit(site)
    assert whitener.layers_ == LABELS
    whitened = whitener.transform(site)
    assert isinstance(whitened, actstore.Site)
    assert (whitened.layers, whitened.ids, whitened.offsets.tolist()) == (LABELS, IDS, OFFSETS)
    assert whitened.column("topic").tolist() == site.column("topic").tolist()
    assert np.array_equal(whitened.read(), whitener.transform(ROWS))
    np.testing.assert_allclose(whitener.inverse_transform(whitened).read(), ROWS, atol=1e-4)
    np.testing.assert_allclose(whitener.inverse_transform(whitener.transform(ROWS)), ROWS, atol=1e-4)
    part = whitened.select(examples="b", layers=12)
    assert part.rows.tolist() == list(range(12, 30))
    found = whitened.search(whitener.transform(ROWS[:2]), k=1)
    assert found.ids == [["a"], ["a"]]
    assert np.array_equal(found.rows, site.search(ROWS[:2], k=1, transform=whitener).rows)
    again = pickle.loads(pickle.dumps(part))
    assert np.array_equal(again.read(), part.read())
    assert (again.ids, again.rows.tolist()) == (part.ids, part.rows.tolist())
    with pytest.raises(actstore.ShapeError):
        whitener.transform(ROWS[:, 0])  # Three layers were fitted.


def test_singular_layers_and_few_rows() -> None:
    rows = np.stack([ROWS[:, 0], np.ones((40, 8), np.float32)], 1)
    with pytest.raises(actstore.NumericalError, match="layer 1"):
        actstore.Whitener().fit(rows)
    skipped = actstore.Whitener(on_singular="skip").fit(rows)
    assert skipped.rank_.tolist() == [8, 0]
    assert not skipped.transform(rows)[:, 1].any()
    assert np.array_equal(
        skipped.transform(rows)[:, 0], actstore.Whitener().fit(rows[:, 0]).transform(rows[:, 0])
    )
    with pytest.warns(actstore.ActstoreWarning, match="8 rows of 8 dims"):
        actstore.Whitener().fit(ROWS[:8, 0])


# ---- Results ----


def test_hits_are_sliced_and_seen_as_a_site(site: actstore.Site) -> None:
    hits = site.search(site.select(rows=[3, 25, 13]), k=4)
    some = hits[1:]
    assert isinstance(some, actstore.Hits)
    assert (len(some), some[0], some[-1]) == (2, hits[1], hits[2])
    assert np.array_equal(some.explain(0, 0), hits.explain(1, 0))
    near = hits.site(1)
    assert near.rows.tolist() == hits.rows[1].tolist()
    assert np.array_equal(near.read(), ROWS[hits.rows[1]])
    late = site.maxsim([ROWS[:2], ROWS[5:6], ROWS[20:23]], k=3)
    assert late[1:].rows.tolist() == late.rows[1:].tolist()
    assert np.array_equal(late[1:].explain(1, 0), late.explain(2, 0))
    assert late.site(2).ids == late.ids[2]
    gone = pickle.loads(pickle.dumps(hits))
    assert gone[1:].ids == hits.ids[1:]
    with pytest.raises(actstore.InvalidInputError, match="pickled"):
        gone.site(0)


def test_tables(site: actstore.Site) -> None:
    hits = site.search(site.select(rows=[3, 25]), k=50)
    columns = hits.to_columns()
    assert {len(column) for column in columns.values()} == {80}
    assert columns["id"][0] == "a"
    near = site.select(rows=slice(0, 5)).neighbors(k=9)
    assert {len(column) for column in near.to_columns().values()} == {20}
    tables: list[tuple[Any, Mapping[str, Any]]] = [(hits, columns), (near, near.to_columns())]
    for result, expected in tables:
        for library, method in (("pyarrow", "to_arrow"), ("pandas", "to_pandas"), ("polars", "to_polars")):
            try:
                __import__(library)
            except ImportError:
                with pytest.raises(actstore.InvalidInputError, match=f"pip install {library}"):
                    getattr(result, method)()
                continue
            table = getattr(result, method)()
            assert table.shape == (len(next(iter(expected.values()))), len(expected))


def test_a_run_file(tmp_path: Path) -> None:
    docs = memory().pool("mean", layers=6, on_empty="zero")
    hits = docs.search(ROWS[:2, 1], k=3)
    hits.write_run(tmp_path / "a.run", ["q1", "q2"], tag="mean-6")
    lines = [line.split() for line in (tmp_path / "a.run").read_text().splitlines()]
    assert [len(line) for line in lines] == [6] * 6
    assert [line[:4] for line in lines[:2]] == [
        ["q1", "Q0", hits.ids[0][0], "1"],
        ["q1", "Q0", hits.ids[0][1], "2"],
    ]
    run = hits.to_run(["q1", "q2"])
    assert {(q, d): float(s) for q, _, d, _, s, _ in lines} == {
        (q, d): s for q, found in run.items() for d, s in found.items()
    }
    measures = pytest.importorskip("ir_measures")
    assert len(list(measures.read_trec_run(str(tmp_path / "a.run")))) == 6
    for wrong in (["a b", "c"], ["", "c"], ["a"]):
        with pytest.raises(actstore.InvalidInputError):
            hits.write_run(tmp_path / "b.run", wrong)
    assert not (tmp_path / "b.run").exists()
    with pytest.raises(actstore.StorageError):
        hits.write_run(tmp_path / "no/such/folder")


def test_scan_answers_in_the_form_of_the_question(site: actstore.Site) -> None:
    one = site.scan(actstore.Summary())
    assert isinstance(one, actstore.SummaryResult)
    both = site.scan((actstore.Summary(), actstore.Moments()))
    assert isinstance(both, tuple)
    assert np.array_equal(both[0].mean, one.mean)
    named = site.scan({"s": actstore.Summary(), "p": actstore.Pool("max", on_empty="zero")})
    assert list(named) == ["s", "p"]
    assert isinstance(named["p"], actstore.Site)
    assert site.scan([]) == []
    state = site.scan(actstore.Moments(), partial=True)
    assert actstore.Moments().finish(state).n == 40


def test_pooling_skips_the_first_rows(site: actstore.Site) -> None:
    docs = site.pool("mean", skip_first=2, on_empty="zero")
    for i, (start, stop) in enumerate(pairwise(OFFSETS)):
        expected = ROWS[start + 2 : stop].mean(0) if stop > start else np.zeros((3, 8))
        np.testing.assert_allclose(docs.read()[i], expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(actstore.InvalidInputError, match="after the first 10"):
        site.select(examples=["a", "c"]).pool("mean", skip_first=10)
    for alias, kind in (("cls", "first"), ("lasttoken", "last"), ("weightedmean", "weighted")):
        assert np.array_equal(
            site.pool(alias, on_empty="zero").read(), site.pool(kind, on_empty="zero").read()
        )


# ---- The store ----


def test_a_store_is_a_mapping(path: Path) -> None:
    store, other = actstore.open(path), actstore.open(path)
    assert isinstance(store, Mapping)
    assert list(store.keys()) == ["resid"] == [site.name for site in store.values()]
    assert [name for name, _ in store.items()] == ["resid"]
    assert store.get("nope") is None
    assert store.get("nope", 3) == 3
    assert "nope" not in store
    assert store == store
    assert store != other
    assert len({store, other}) == 2
    with pytest.raises(actstore.NotFoundError):
        store["nope"]


def test_notebooks_show_small_tables(path: Path) -> None:
    store = actstore.open(path)
    hits = store["resid"].select(layers=6).search(ROWS[:20, 1])
    for value in (store, store["resid"], hits):
        html = value._repr_html_()
        assert html.startswith("<table>")
        assert html.endswith("</table>")
        assert "<script" not in html
        assert len(html) < 20_000
    odd = actstore.from_array(ROWS, OFFSETS, ids=["<b>", "&", "'", '"'])
    assert "<b>" not in odd.search(ROWS[:1])._repr_html_()


def test_what_an_array_cannot_be() -> None:
    for arguments, error, words in (
        ({"offsets": [0, 50]}, actstore.InvalidInputError, "from 0 to 40, the number of rows"),
        ({"offsets": [0, 40], "ids": ["a", "b"]}, actstore.ShapeError, "expected 1"),
        ({"offsets": [0, 1, 40], "ids": ["a", "a"]}, actstore.InvalidInputError, "'a' occurs twice"),
        ({"offsets": [0, 1, 40], "ids": ["a", 2]}, actstore.InvalidInputError, "strings, got 2"),
        ({"labels": [1, 2]}, actstore.ShapeError, "expected 3"),
        ({"labels": [1, 1, 2]}, actstore.InvalidInputError, "distinct"),
        ({"columns": {"x": [1]}}, actstore.ShapeError, r"expected \[40\]"),
        ({"token_columns": {"x": [1]}}, actstore.ShapeError, r"expected \[40\]"),
    ):
        with pytest.raises(error, match=words):
            actstore.from_array(ROWS, **arguments)  # type: ignore[arg-type]
    own = actstore.from_array(ROWS.astype(ml_dtypes.bfloat16))
    assert own.dtype == ml_dtypes.bfloat16
    assert own.ids[:2] == ["0", "1"]


def test_what_is_passed_in_place_of_an_array_or_a_path(path: Path) -> None:
    store = actstore.open(path)
    for wrong in (None, "text", store):
        with pytest.raises(actstore.InvalidInputError, match="expected an array"):
            actstore.from_array(wrong)
    whitener = actstore.Whitener().fit(store["resid"])
    with pytest.raises(actstore.InvalidInputError, match=r"expected a path.*got Store"):
        whitener.save(store, "w")
    with pytest.raises(actstore.InvalidInputError, match="queries are <U") as caught:
        store["resid"].search(["a text"])
    assert "embed" in (caught.value.hint or "")
    with pytest.raises(actstore.InvalidInputError, match="not fitted"):
        store["resid"].search(ROWS[:1], transform=actstore.Whitener())
    with pytest.raises(actstore.NotFoundError, match="no site 0"):
        store[0]  # type: ignore[index]
    with pytest.raises(actstore.InvalidInputError, match=r"1\.0 is not an index"):
        store["resid"][1.0]


def test_ids_are_plain_strings() -> None:
    ids = actstore.from_array(ROWS[:2], ids=np.array(["a", "b"])).ids  # type: ignore[arg-type]
    assert [type(name) for name in ids] == [str, str]


def test_neighbors_are_looked_up_by_position(site: actstore.Site) -> None:
    near = site.neighbors(k=2)
    assert near[-1] == near[39]
    for wrong in (40, slice(0, 2), "a"):
        with pytest.raises(actstore.InvalidInputError, match="neighbors: "):
            near[wrong]  # type: ignore[index]


def test_importing_is_lazy() -> None:
    code = (
        "import sys, actstore\n"
        "assert not {'torch', 'transformers', 'zarr', 'numpy'} & set(sys.modules), sys.modules.keys()\n"
        "assert 'search' in dir(actstore)\n"
        "actstore.update; import actstore.updating; assert callable(actstore.update)\n"
        "assert not {'torch', 'transformers', 'zarr'} & set(sys.modules)\n"
        "from actstore import *\n"
        "assert callable(capture) and not {'torch', 'transformers', 'zarr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- Bad arguments, alike for rows in memory and in a store ----


def test_threads_are_checked(site: actstore.Site) -> None:
    with pytest.raises(actstore.InvalidInputError, match="threads=-1: give 0 for all cores"):
        site.read(threads=-1)


def test_groups_by_a_column_that_is_not_there(site: actstore.Site) -> None:
    """Both the columns of rows and those of examples are listed."""
    wanted = r"no column 'no', it has: id; .* no column 'no', it has: (id, )?topic$"
    with pytest.raises(actstore.NotFoundError, match=wanted):
        site.moments(cov=False, by="no")


def test_a_single_one_has_no_plural(site: actstore.Site) -> None:
    one = site.select(layers=6, rows=[0])
    assert repr(one.search(ROWS[0, 1], k=1)).startswith("Hits(1 query, k=1, of 1 row; ")
    assert repr(one.neighbors(1)) == "Neighbors(1 row, k=1)"
