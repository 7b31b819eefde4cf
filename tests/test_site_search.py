"""Site.search and actstore.search as they are called: shapes, labels, ids, errors, pickles."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray

OFFSET = [0, 3, 3, 4, 9, 9, 12]
IDS = ["a", "nothing", "b", "c", "nor here", "d"]
LAYERS = [0, 6, 12]
DIM = 8
ACTS = np.random.default_rng(0).normal(size=(12, 3, DIM)).astype(np.float32)
QUERIES = np.random.default_rng(1).normal(size=(5, DIM)).astype(np.float32)
EXAMPLE_OF = np.repeat(np.arange(6), np.diff(OFFSET))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "run.act"
    specs = {
        "resid": actstore.SiteSpec(3, DIM, "float32", LAYERS, chunk_rows=4, shard_rows=8),
        "docs": actstore.SiteSpec(2, DIM, "float32", axis="examples"),
    }
    with actstore.create(path, specs) as writer:
        writer.append({"resid": ACTS, "docs": ACTS[:6, :2]}, np.diff(OFFSET), IDS)
    return path


def best(scores: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of scores ``[nq, n]``: by score descending, then row ascending."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


def dots(queries: NDArray[Any], layer: int, acts: NDArray[Any] = ACTS) -> NDArray[Any]:
    return queries.astype(np.float64) @ acts[:, layer].astype(np.float64).T


# ---- What comes back ----


def test_one_layer(site: actstore.Site) -> None:
    hits = site.select(layers=6).search(QUERIES, k=4, metric="dot", combine="sum")
    scores, rows = best(dots(QUERIES, 1), 4)
    assert hits.scores.dtype == np.float32
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-6)
    assert hits.rows.dtype == hits.examples.dtype == hits.positions.dtype == hits.layers.dtype == np.int64
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.examples, EXAMPLE_OF[rows])
    np.testing.assert_array_equal(hits.positions, rows - np.array(OFFSET)[EXAMPLE_OF[rows]])
    assert hits.ids == [[IDS[EXAMPLE_OF[row]] for row in of_query] for of_query in rows]
    assert (hits.layers == 6).all()
    assert len(hits) == 5
    certificate = hits.certificate
    assert (certificate.exact, certificate.n_rows) == (True, 12)
    assert certificate.n_rescored >= 0


def test_several_layers(site: actstore.Site) -> None:
    weights = [0.5, -1.0, 2]
    summed = site.search(QUERIES, k=3, weights=weights, metric="dot")
    scores, rows = best(sum(w * dots(QUERIES, i) for i, w in enumerate(weights)), 3)
    np.testing.assert_array_equal(summed.rows, rows)
    np.testing.assert_allclose(summed.scores, scores, rtol=1e-6)
    assert (summed.layers == -1).all()

    by_layer = np.stack([dots(QUERIES, i) for i in range(3)])
    greatest = site.search(QUERIES, k=3, combine="max", metric="dot")
    scores, rows = best(by_layer.max(0), 3)
    np.testing.assert_array_equal(greatest.rows, rows)
    winners = np.array(LAYERS)[by_layer.argmax(0)]
    np.testing.assert_array_equal(greatest.layers, np.take_along_axis(winners, rows, 1))


def test_layers_are_those_selected_in_their_order(site: actstore.Site) -> None:
    view = site.select(layers=[12, 0])
    queries = np.stack([QUERIES, 3 * QUERIES], 1)
    hits = view.search(queries, k=2, metric="dot", combine="sum")
    _, rows = best(dots(QUERIES, 2) + dots(3 * QUERIES, 0), 2)
    np.testing.assert_array_equal(hits.rows, rows)
    assert set(view.search(queries, combine="max", metric="dot").layers.ravel()) <= {0, 12}
    assert (
        site.select(layers=[12]).search(QUERIES, k=1, combine="max", metric="dot").layers.tolist()
        == [[12]] * 5
    )


def test_rows_count_in_the_whole_store(site: actstore.Site) -> None:
    view = site.select(layers=0, examples=["c", "a"])
    hits = view.search(QUERIES, k=8, metric="dot", combine="sum")
    assert sorted(hits.rows[0]) == [0, 1, 2, 4, 5, 6, 7, 8]
    assert {name for names in hits.ids for name in names} == {"a", "c"}
    assert hits.certificate.n_rows == 8
    one = site.select(layers=0, rows=[11]).search(QUERIES, k=1, metric="dot", combine="sum")
    assert (one.rows.tolist(), one.ids, one.positions.tolist()) == ([[11]] * 5, [["d"]] * 5, [[2]] * 5)


def test_rows_of_pooled_sites_are_examples(store: actstore.Store) -> None:
    hits = (
        store["docs"].select(layers=1, examples=["b", "d"]).search(QUERIES, k=1, metric="dot", combine="sum")
    )
    _, at = best(dots(QUERIES, 1, ACTS[[2, 5]]), 1)
    rows = np.array([2, 5])[at]
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.examples, rows)
    assert not hits.positions.any()
    assert hits.ids == [[IDS[row]] for [row] in rows]


def test_what_is_missing(site: actstore.Site) -> None:
    hits = site.select(layers=0, rows=slice(2)).search(QUERIES[:2], k=4, metric="dot", combine="sum")
    assert (hits.scores[:, 2:] == -np.inf).all()
    for array in (hits.rows, hits.examples, hits.positions, hits.layers):
        assert array.shape == (2, 4)
        assert (array[:, 2:] == -1).all()
        assert (array[:, :2] >= 0).all()
    assert hits.ids == [["a", "a", None, None]] * 2
    assert [len(found) for found in hits] == [2, 2]

    scores = best(dots(QUERIES, 0), 12)[0]
    some = site.select(layers=0).search(QUERIES, k=12, min_score=0.5, metric="dot", combine="sum")
    np.testing.assert_array_equal((some.rows >= 0).sum(1), (scores >= 0.5).sum(1))

    nothing = site.select(rows=[]).search(QUERIES, k=3, metric="dot", combine="sum")
    assert (nothing.rows == -1).all()
    assert nothing.ids == [[None] * 3] * 5
    assert "no hits" in repr(nothing)
    for none in (np.zeros((0, DIM), np.float32), np.zeros((0, 3, DIM), np.float32)):
        hits = site.search(none, k=2, metric="dot", combine="sum")
        assert (len(hits), hits.rows.shape, hits.ids, list(hits), hits.to_run()) == (0, (0, 2), [], [], {})


def test_a_far_greater_k_than_rows(site: actstore.Site) -> None:
    hits = site.search(QUERIES[0], k=100_000, metric="dot", combine="sum")
    assert hits.rows.shape == (1, 100_000)
    assert (hits.rows >= 0).sum() == 12
    with pytest.raises(errors.InvalidInputError, match="memory"):
        site.search(QUERIES, k=1 << 50, metric="dot", combine="sum")


def test_parts(tmp_path: Path) -> None:
    for i in range(2):
        spec = {"resid": actstore.SiteSpec(3, DIM, "float32", LAYERS)}
        with actstore.create(tmp_path / f"parts/{i}.act", spec, part=(i, 2)) as writer:
            ids = None if i else [f"{name}!" for name in IDS]
            writer.append({"resid": ACTS}, np.diff(OFFSET), ids)
    hits = actstore.open(tmp_path / "parts")["resid"].search(QUERIES, k=2, metric="dot", combine="sum")
    assert [b - a for a, b in hits.rows] == [12] * 5  # Ties: row ascending.
    assert [b - a for a, b in hits.examples] == [6] * 5
    for q, (first, second) in enumerate(hits.ids):
        assert first == f"{IDS[hits.examples[q, 0]]}!"
        assert second == str(hits.examples[q, 0])


# ---- Queries ----


def test_forms_of_queries(site: actstore.Site) -> None:
    view = site.select(layers=6)
    expected = view.search(QUERIES[:1], k=3, metric="dot", combine="sum")
    for queries in (QUERIES[0], QUERIES[:1, None], QUERIES[0].tolist(), QUERIES[:1].astype(np.float64)):
        hits = view.search(queries, k=3, metric="dot", combine="sum")
        assert hits.scores.tobytes() == expected.scores.tobytes()
        np.testing.assert_array_equal(hits.rows, expected.rows)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        narrow = QUERIES.astype(dtype)
        np.testing.assert_array_equal(
            view.search(narrow, metric="dot", combine="sum").scores,
            view.search(narrow.astype(np.float32), metric="dot", combine="sum").scores,
        )
    np.testing.assert_array_equal(
        view.search(QUERIES[::-1], metric="dot", combine="sum").rows,
        view.search(QUERIES, metric="dot", combine="sum").rows[::-1],
    )
    one_for_each = view.search(np.asfortranarray(QUERIES), metric="dot", combine="sum")
    np.testing.assert_array_equal(one_for_each.rows, view.search(QUERIES, metric="dot", combine="sum").rows)


def test_one_query_for_all_layers_or_one_for_each(site: actstore.Site) -> None:
    repeated = np.repeat(QUERIES[:, None], 3, axis=1)
    for hits in (
        site.search(repeated, metric="dot", combine="sum"),
        site.search(QUERIES[:, None], metric="dot", combine="sum"),
    ):
        assert hits.scores.tobytes() == site.search(QUERIES, metric="dot", combine="sum").scores.tobytes()


def test_a_site_of_queries(site: actstore.Site) -> None:
    hits = site.search(site.select(rows=[3, 8]), k=1, metric="cos", combine="sum")
    assert hits.rows.tolist() == [[3], [8]]
    np.testing.assert_allclose(hits.scores, 3)
    crossed = site.select(layers=6).search(site.select(layers=12), k=2, metric="dot", combine="sum")
    np.testing.assert_array_equal(crossed.rows, best(dots(ACTS[:, 2], 1), 2)[1])
    turned = site.select(layers=[6, 0]).search(site.select(layers=[0, 6]), metric="dot")
    straight = site.select(layers=[0, 6]).search(site.select(layers=[0, 6]), metric="dot")
    np.testing.assert_array_equal(turned.rows, straight.rows)
    for layers in ([0, 6], [0, 6, 12]):
        with pytest.raises(errors.InvalidInputError, match=r"layers \[.*\], .* has layers \[6, 12\]"):
            site.select(layers=[6, 12]).search(site.select(layers=layers))


def test_torch(site: actstore.Site) -> None:
    torch = pytest.importorskip("torch")
    narrow = torch.from_numpy(QUERIES).to(torch.bfloat16)
    hits = site.search(narrow.requires_grad_(), k=3, metric="dot", combine="sum")
    expected = site.search(QUERIES.astype(ml_dtypes.bfloat16), k=3, metric="dot", combine="sum")
    assert hits.scores.tobytes() == expected.scores.tobytes()
    plain = actstore.search(torch.from_numpy(ACTS).to(torch.bfloat16), narrow, metric="dot", combine="sum")
    rows = actstore.search(ACTS.astype(ml_dtypes.bfloat16), narrow, metric="dot", combine="sum").rows
    np.testing.assert_array_equal(plain.rows, rows)


# ---- Arguments that cannot be ----

Invalid, Shape, NotFound = errors.InvalidInputError, errors.ShapeError, errors.NotFoundError
Case = tuple[Callable[[actstore.Site], object], type[Exception], tuple[str, ...]]

WRONG: dict[str, Case] = {
    "dim": (
        lambda s: s.search(np.zeros((2, 7), np.float32), metric="dot", combine="sum"),
        Shape,
        ("dim 7", "'resid'", "run.act", "dim 8"),
    ),
    "layers": (
        lambda s: s.search(np.zeros((2, 2, DIM)), metric="dot", combine="sum"),
        Shape,
        ("2 layers", "has 3", "select"),
    ),
    "axes": (
        lambda s: s.search(np.zeros((1, 2, 3, DIM)), metric="dot", combine="sum"),
        Shape,
        ("[nq, D]", "[1, 2, 3, 8]"),
    ),
    "a number": (lambda s: s.search(0.5, metric="dot", combine="sum"), Shape, ("[nq, D]", "[]")),
    "ints": (
        lambda s: s.search(np.zeros((1, DIM), int), metric="dot", combine="sum"),
        Invalid,
        ("int64", "float32"),
    ),
    "a list of ints": (lambda s: s.search([1] * DIM, metric="dot", combine="sum"), Invalid, ("int64",)),
    "text": (lambda s: s.search("what is", metric="dot", combine="sum"), Invalid, ("queries",)),
    "NaN": (
        lambda s: s.search(np.array([QUERIES[0], QUERIES[0] * np.nan]), metric="dot", combine="sum"),
        Invalid,
        ("1 of 2", "query 1"),
    ),
    "metric": (
        lambda s: s.search(QUERIES, metric="cosinus", combine="sum"),
        Invalid,
        ("'cosinus'", "cos, dot, l2"),
    ),
    "combine": (lambda s: s.search(QUERIES, combine="mean", metric="dot"), Invalid, ("'mean'", "sum, max")),
    "on_nan": (
        lambda s: s.search(QUERIES, on_nan="zero", metric="dot", combine="sum"),
        Invalid,
        ("'zero'", "raise, skip"),
    ),
    "k of zero": (lambda s: s.search(QUERIES, 0, metric="dot", combine="sum"), Invalid, ("k is 0",)),
    "k of True": (lambda s: s.search(QUERIES, True, metric="dot", combine="sum"), Invalid, ("k is True",)),
    "k of a float": (lambda s: s.search(QUERIES, 2.0, metric="dot", combine="sum"), Invalid, ("k is 2.0",)),
    "weights with max": (
        lambda s: s.search(QUERIES, combine="max", weights=[1, 1, 1], metric="dot"),
        Invalid,
        ("'max'",),
    ),
    "too few weights": (lambda s: s.search(QUERIES, weights=[1.0], metric="dot"), Shape, ("[3]", "[1]")),
    "weights of NaN": (
        lambda s: s.search(QUERIES, weights=[1, 1, np.nan], metric="dot"),
        Invalid,
        ("nan", "finite"),
    ),
    "weights of text": (
        lambda s: s.search(QUERIES, weights=["a", "b", "c"], metric="dot"),
        Invalid,
        ("numbers",),
    ),
    "min_score": (
        lambda s: s.search(QUERIES, min_score=np.nan, metric="dot", combine="sum"),
        Invalid,
        ("nan", "min_score"),
    ),
    "min_score of text": (
        lambda s: s.search(QUERIES, min_score="1", metric="dot", combine="sum"),
        Invalid,
        ("'1'",),
    ),
    "no layers": (
        lambda s: s.select(layers=[]).search(QUERIES, metric="dot", combine="sum"),
        Invalid,
        ("no layers",),
    ),
}


@pytest.mark.parametrize("asked", WRONG)
def test_wrong_arguments(site: actstore.Site, asked: str) -> None:
    call, error, words = WRONG[asked]
    with pytest.raises(error) as caught:
        call(site)
    assert type(caught.value) is error
    said = f"{caught.value} {caught.value.hint or ''}"  # type: ignore[attr-defined]
    assert [word for word in words if word not in said] == [], said


def test_rows_with_nan() -> None:
    rows = ACTS.copy()
    rows[4, 1, 3] = rows[9, 0, 0] = np.nan
    with pytest.raises(errors.InvalidInputError, match=r"\b2\b.*\b4\b"):
        actstore.search(rows, QUERIES, metric="dot", combine="sum")
    hits = actstore.search(rows, QUERIES, k=12, on_nan="skip", metric="dot", combine="sum")
    assert {4, 9}.isdisjoint(hits.rows.ravel())
    assert (hits.rows >= 0).sum(1).tolist() == [10] * 5
    assert (actstore.search(rows[:, 2], QUERIES, k=12, metric="dot", combine="sum").rows >= 0).all()


def test_a_closed_store(path: Path) -> None:
    with actstore.open(path) as store:
        site = store["resid"]
        hits = site.search(QUERIES, k=2, metric="dot", combine="sum")
        looked_up = site.search(QUERIES, k=2, metric="dot", combine="sum")
        ids = looked_up.ids
    with pytest.raises(errors.StorageError) as caught:
        site.search(QUERIES, metric="dot", combine="sum")
    assert caught.value.kind == "closed"
    with pytest.raises(errors.StorageError) as caught:
        hits.ids  # noqa: B018
    assert caught.value.kind == "closed"
    assert looked_up.ids == ids


def test_threads_and_progress(site: actstore.Site) -> None:
    calls: list[tuple[int, int]] = []
    expected = site.search(QUERIES, threads=1, metric="dot", combine="sum")
    hits = site.search(
        QUERIES,
        threads=3,
        progress=lambda done, total: calls.append((done, total)),
        metric="dot",
        combine="sum",
    )
    assert hits.scores.tobytes() == expected.scores.tobytes()
    assert calls[-1] == (36, 36)


# ---- Hits ----


def test_hits_of_a_query(site: actstore.Site) -> None:
    hits = site.search(QUERIES, k=2, combine="max", metric="dot")
    first = hits[0][0]
    assert first == (
        hits.scores[0, 0],
        hits.rows[0, 0],
        hits.ids[0][0],
        hits.examples[0, 0],
        hits.positions[0, 0],
        hits.layers[0, 0],
    )
    assert [type(value) for value in first] == [float, int, str, int, int, int]
    assert list(hits) == [hits[q] for q in range(5)]
    assert hits[-1] == hits[4]
    for wrong in (5, "a", None):
        with pytest.raises(errors.InvalidInputError):
            hits[wrong]  # type: ignore[index]
    assert "5 queries" in repr(hits)
    assert f"row {hits.rows[0, 0]}" in repr(hits)


def test_hits_as_others_have_them(site: actstore.Site) -> None:
    hits = site.select(layers=0).search(QUERIES, k=12, metric="dot", combine="sum")
    dicts = hits.to_dicts()
    assert dicts[1][0] == {"id": hits.ids[1][0], "score": float(hits.scores[1, 0])}
    assert [len(found) for found in dicts] == [12] * 5
    run = hits.to_run([f"q{i}" for i in range(5)])
    assert list(run) == ["q0", "q1", "q2", "q3", "q4"]
    for q, documents in enumerate(run.values()):
        assert list(documents) == list(dict.fromkeys(hits.ids[q]))  # Each once, by its best.
        assert all(type(score) is float for score in documents.values())
    assert list(hits.to_run()) == ["0", "1", "2", "3", "4"]
    with pytest.raises(errors.ShapeError, match="expected 5"):
        hits.to_run(["a"])
    with pytest.raises(errors.InvalidInputError, match="different"):
        hits.to_run(["a"] * 5)
    with pytest.raises(errors.InvalidInputError, match="strings"):
        hits.to_run([1, 2, 3, 4, 5])  # type: ignore[list-item]


def test_a_run_keeps_its_order_where_scores_tie() -> None:
    """trec_eval sorts by float32 score descending, then by id descending."""
    hits = actstore.search(
        np.array([[1.0], [2.0], [1.0], [1.0], [0.0], [0.0]]),
        np.array([1.0]),
        k=6,
        metric="dot",
        combine="sum",
    )
    [run] = hits.to_run().values()
    assert list(run) == ["1", "0", "2", "3", "4", "5"]
    scores = np.array(list(run.values()))
    assert (np.diff(scores.astype(np.float32)) < 0).all()
    np.testing.assert_allclose(scores, hits.scores[0], atol=1e-6)


def test_hits_pickle_by_value(path: Path) -> None:
    with actstore.open(path) as store:
        hits = store["resid"].search(QUERIES, k=3, metric="dot", combine="sum")
        raw = pickle.dumps(hits)
        ids, positions = hits.ids, hits.positions
    again: actstore.Hits = pickle.loads(raw)
    assert (again.ids, again.certificate) == (ids, hits.certificate)
    assert again.scores.tobytes() == hits.scores.tobytes()
    np.testing.assert_array_equal(again.positions, positions)
    assert again.to_run() == hits.to_run()


# ---- Plain arrays ----


def test_plain_arrays(tmp_path: Path) -> None:
    hits = actstore.search(ACTS, QUERIES, k=3, metric="dot", combine="sum")
    _, rows = best(sum(dots(QUERIES, i) for i in range(3)), 3)
    np.testing.assert_array_equal(hits.rows, rows)
    np.testing.assert_array_equal(hits.examples, rows)
    assert hits.ids == [[str(row) for row in of_query] for of_query in rows]
    flat = actstore.search(ACTS[:, 1], QUERIES, k=3, metric="dot", combine="sum")
    np.testing.assert_array_equal(flat.rows, best(dots(QUERIES, 1), 3)[1])
    assert (flat.layers == 0).all()

    np.save(tmp_path / "acts.npy", ACTS)
    mapped = np.load(tmp_path / "acts.npy", mmap_mode="r")
    for same in (mapped, np.asfortranarray(ACTS), ACTS.astype(">f4"), ACTS.tolist(), ACTS.astype(np.float64)):
        found = actstore.search(same, QUERIES, k=3, metric="dot", combine="sum")
        assert found.scores.tobytes() == hits.scores.tobytes()
    backward = actstore.search(ACTS[::-1], QUERIES, k=3, metric="dot", combine="sum")
    np.testing.assert_array_equal(11 - backward.rows, hits.rows)


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.zeros(8), Shape, ("[n, D] or [n, L, D]", "[8]")),
        (np.zeros((2, 3, 4, 5)), Shape, ("[2, 3, 4, 5]",)),
        (np.zeros((2, 8), int), Invalid, ("int64",)),
        (np.zeros((2, 7)), Shape, ("query has dim 8", "the array has dim 7")),
        (np.zeros((2, 0, 8)), Invalid, ("no layers",)),
        ("rows", Invalid, ("expected an array", "str")),
    ],
)
def test_arrays_that_cannot_be(array: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        actstore.search(array, QUERIES, metric="dot", combine="sum")
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_the_function_takes_a_site_too(site: actstore.Site) -> None:
    own = site.search(QUERIES, metric="dot", combine="sum")
    assert np.array_equal(actstore.search(site, QUERIES, metric="dot", combine="sum").rows, own.rows)
    with pytest.raises(errors.InvalidInputError, match="site"):
        actstore.scan(site, actstore.Summary(), offsets=[0, len(site)])


# ---- Ids of few among many ----


def test_ids_of_few_examples_among_many(tmp_path: Path) -> None:
    """Those of the hits are read, not the whole column."""
    rows = np.arange(200, dtype=np.float32).reshape(200, 1, 1)
    names = [f"{'ß' * (i % 3)}{i}" for i in range(200)]
    for part, (a, b) in enumerate(((0, 90), (90, 90), (90, 200))):
        spec = {"resid": actstore.SiteSpec(1, 1, "float32")}
        with actstore.create(tmp_path / f"parts/{part}.act", spec, part=(part, 3)) as writer:
            writer.append({"resid": rows[a:b]}, np.ones(b - a, int), names[a:b])
    store = actstore.open(tmp_path / "parts")
    wanted = [3, 88, 89, 90, 91, 199, 0]
    queries = np.ones((1, 1), np.float32)
    for picked in (wanted, [5], list(range(85, 95))):
        hits = (
            store["resid"].select(examples=picked).search(queries, k=len(picked), metric="dot", combine="sum")
        )
        assert hits.rows[0].tolist() == sorted(picked, reverse=True)
        assert hits.ids[0] == [names[i] for i in sorted(picked, reverse=True)]
    assert store.snapshot.examples._cache == {}


def test_ids_of_zarr_without_ids(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(tmp_path / "x.zarr")
    group.create_array("resid", data=ACTS)
    group.create_array("tokens/offset", data=np.arange(13))
    hits = (
        actstore.open(tmp_path / "x.zarr")["resid"]
        .select(layers=0)
        .search(QUERIES, k=1, metric="dot", combine="sum")
    )
    assert hits.ids == [[str(row)] for [row] in hits.rows.tolist()]
    assert not hits.positions.any()
