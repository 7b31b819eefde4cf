"""What is behind a hit: the scores of its tokens, as brute force has them."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray
from search_cases import F32
from search_oracle import score

LENGTHS = [5, 0, 2, 9, 1, 30]
IDS = list("abcdef")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain") / "x"
    rows = np.random.default_rng(0).normal(size=(sum(LENGTHS), 3, 16)).astype(F32)
    spec = {"resid": actstore.SiteSpec(3, 16, "float32", labels=[0, 6, 12], chunk_rows=8, shard_rows=16)}
    with actstore.create(folder, spec) as w:
        w.append({"resid": rows}, LENGTHS, ids=IDS, token_columns={"id": np.arange(len(rows))})
    return folder


@pytest.fixture
def site(path: Path) -> actstore.Site:
    return actstore.open(path)["resid"]


def layers_of(site: actstore.Site, example: int, query: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Scores ``[T, L]``."""
    rows = site.example(example)
    columns = [score(query[None], rows[:, [i]], metric, "sum", None)[0] for i in range(rows.shape[1])]
    return np.stack(columns, 1)


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_of_a_search(site: actstore.Site, metric: Any) -> None:
    query = np.random.default_rng(1).normal(size=16).astype(F32)
    hits = site.search(query, k=3, metric=metric, combine="sum")
    for rank in range(3):
        found = hits.explain(0, rank)
        example = int(hits.examples[0, rank])
        wanted = layers_of(site, example, query, metric)
        assert found.shape == (LENGTHS[example], 3)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-6)
        assert found.layers == [0, 6, 12]
        assert found.id == IDS[example]
        # The row of the hit is one of these, and its score their sum.
        at = found.rows.tolist().index(hits.rows[0, rank])
        np.testing.assert_allclose(found.scores[at].sum(), hits.scores[0, rank], rtol=1e-5)
    one = site.select(layers=6).search(query, k=1, metric=metric, combine="sum")
    assert one.explain(0, 0).shape[1] == 1
    assert one.explain(0, 0)[0, 0] == one.explain(0, 0, layers=slice(None))[0, 1]
    assert one.explain(0, 0, layers=[12, 0]).layers == [12, 0]


def test_of_pooled_sites(site: actstore.Site, path: Path) -> None:
    """The tokens that were pooled: their mean is what was scored."""
    query = np.random.default_rng(2).normal(size=16).astype(F32)
    docs = site.select(examples=[0, 2, 3, 4, 5]).pool("mean", layers=[6, 12])
    hits = docs.search(query, k=2, metric="dot", combine="sum")
    found = hits.explain(0, 0)
    example = int(hits.rows[0, 0])
    np.testing.assert_allclose(np.asarray(found), layers_of(site, example, query, "dot")[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(found.scores.mean(0).sum(), hits.scores[0, 0], rtol=1e-5)
    # Written beside the site, and mixed.
    site.pool("mean", on_empty="zero", mix="mean", out="mixed")
    mixed = actstore.open(path)["mixed"]
    found = mixed.search(query, k=1, metric="dot", combine="sum").explain(0, 0)
    assert found.layers == [0, 6, 12]
    np.testing.assert_allclose(
        found.scores.mean(), mixed.search(query, k=1, metric="dot", combine="sum").scores[0, 0], rtol=1e-5
    )
    wide = site.pool("mean", on_empty="zero", mix="concat")
    long = np.random.default_rng(3).normal(size=48).astype(F32)
    found = wide.search(long, k=1, metric="dot", combine="sum").explain(0, 0)
    np.testing.assert_allclose(
        found.scores.mean(0).sum(),
        wide.search(long, k=1, metric="dot", combine="sum").scores[0, 0],
        rtol=1e-4,
    )


def test_of_concatenated_layers(site: actstore.Site) -> None:
    """Each layer has its own part of the query, in whatever order layers are asked for."""
    docs = site.pool("mean", on_empty="zero", mix="concat")
    hits = docs.search(np.random.default_rng(3).normal(size=48).astype(F32), k=1, metric="dot", combine="sum")
    whole = hits.explain(0, 0)
    turned = hits.explain(0, 0, layers=[12, 6, 0])
    assert np.array_equal(turned.scores, whole.scores[:, ::-1])
    assert np.array_equal(hits.explain(0, 0, layers=6).scores, whole.scores[:, [1]])
    some = site.pool("mean", on_empty="zero", mix="concat", layers=[0, 6])
    hits = some.search(np.ones(32, F32), k=1, metric="dot", combine="sum")
    with pytest.raises(errors.InvalidInputError, match="none for 12"):
        hits.explain(0, 0, layers=[6, 12])


def test_only_what_was_pooled(tmp_path: Path) -> None:
    """Neither special tokens that were left out, nor rows that a view has not."""
    rows = np.array([9, 1, 3, 7, 5], F32)[:, None, None]
    with actstore.create(tmp_path / "x", {"x": actstore.SiteSpec(1, 1, "float32")}) as w:
        w.append({"x": rows}, [3, 2], token_columns={"special": [1, 0, 0, 1, 0]})
    site = actstore.open(tmp_path / "x")["x"]
    site.pool("mean", special=False, out="kept")
    query = np.ones((1, 1), F32)
    [reduced] = site.select(rows=[1, 2, 4]).scan([actstore.Pool("mean")])
    for docs in (
        site.pool("mean", special=False),
        site.select(rows=[1, 2, 4]).pool("mean"),
        actstore.open(tmp_path / "x")["kept"],
        reduced,
    ):
        hits = docs.search(query, k=2, metric="dot", combine="sum")
        assert hits.scores.tolist() == [[5.0, 2.0]]
        assert hits.explain(0, 1).scores[:, 0].tolist() == [1.0, 3.0]
        assert hits.explain(0, 1).rows.tolist() == [1, 2]
        assert hits.explain(0, 0).rows.tolist() == [4]


def test_weights_and_nan() -> None:
    rows = np.array([[[18, 1]], [[np.nan, 1]], [[3, 5]]], F32).swapaxes(1, 2)
    hits = actstore.maxsim(
        rows, [0, 3], [np.ones((1, 1), F32)], k=1, weights=[1, 2], on_nan="skip", metric="dot"
    )
    found = hits.explain(0, 0)
    assert found.best.tolist() == [0]
    np.testing.assert_allclose(found.scores[0, [0, 2]], [20, 13])
    assert hits.explain(0, 0, layers=1).scores[0].tolist() == [2.0, 2.0, 10.0]


def test_of_maxsim(site: actstore.Site) -> None:
    rng = np.random.default_rng(4)
    query = rng.normal(size=(4, 16)).astype(F32)
    mask = rng.random(len(site)) < 0.7
    for view in (site.select(layers=6), site, site.select(layers=6, rows=mask)):
        for combine in ("sum", "max"):
            hits = view.maxsim([query], k=2, combine=combine, metric="dot")  # type: ignore[arg-type]
            found = hits.explain(0, 1)
            own = view.select(examples=int(hits.rows[0, 1]))
            assert found.kind == "maxsim"
            assert found.shape == (4, len(own))
            assert np.array_equal(found.rows, own.rows)
            wanted = [score(vector[None], own.read(), "dot", combine, None)[0] for vector in query]
            np.testing.assert_allclose(np.asarray(found), np.array(wanted), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.scores.max(1).sum(), hits.scores[0, 1], rtol=1e-5)
            assert np.array_equal(found.best, np.argmax(wanted, 1))


def test_whitened(site: actstore.Site) -> None:
    whitener = actstore.Whitener().fit(site)
    query = site.example("d")[2]
    hits = site.search(query[None], k=1, metric="cos", transform=whitener, combine="sum")
    found = hits.explain(0, 0)
    at = found.rows.tolist().index(hits.rows[0, 0])
    np.testing.assert_allclose(found.scores[at].sum(), hits.scores[0, 0], rtol=1e-5)


def test_plain_arrays(site: actstore.Site) -> None:
    rows = np.eye(3, dtype=F32)
    found = actstore.search(rows, rows[1], k=1, metric="dot", combine="sum").explain(0, 0)
    assert found.scores.tolist() == [[1.0]]
    assert found.id == "1"


def test_wrong(site: actstore.Site) -> None:
    hits = site.search(np.ones((1, 16), F32), k=100, metric="dot", combine="sum")
    for query, rank in ((1, 0), (0, 100), (0, "1"), (0.5, 0)):
        with pytest.raises(errors.InvalidInputError):
            hits.explain(query, rank)  # type: ignore[arg-type]
    with pytest.raises(errors.NotFoundError, match="no layer 3"):
        hits.explain(0, 0, layers=3)
    by_layer = site.select(layers=[0, 6]).search(np.ones((1, 2, 16), F32), k=1, metric="dot", combine="sum")
    assert by_layer.explain(0, 0, layers=[6]).shape[1] == 1
    with pytest.raises(errors.InvalidInputError, match="a vector for each"):
        by_layer.explain(0, 0, layers=[6, 12])
