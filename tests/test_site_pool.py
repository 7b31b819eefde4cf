"""Pooling as it is called, and pooled sites: shapes, labels, ids, rows, pickles, errors, merging."""

import importlib
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore import Pool, errors
from numpy.typing import NDArray

OFFSET = np.array([0, 3, 4, 9, 9, 12])
IDS = ["a", "b", "c", "nothing", "d"]
FULL = ["a", "b", "c", "d"]
LAYERS = [0, 6, 12]
DIM = 8
ACTS = np.random.default_rng(0).normal(size=(12, 3, DIM)).astype(np.float32)
SPECIAL = np.isin(np.arange(12), [0, 2, 4, 8, 9, 11])
KINDS = ["mean", "max", "first", "last", "weighted"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "run.act"
    specs = {
        "resid": actstore.SiteSpec(3, DIM, "float32", LAYERS, chunk_rows=4, shard_rows=8),
        "docs": actstore.SiteSpec(1, 4, "float32", axis="examples"),
    }
    with actstore.create(path, specs) as writer:
        acts = {"resid": ACTS, "docs": np.zeros((5, 1, 4), np.float32)}
        writer.append(acts, np.diff(OFFSET), IDS, token_columns={"special": SPECIAL})
    return path


def of_rows(kind: str, rows: NDArray[Any]) -> NDArray[np.float32]:
    """One row ``[L, D]`` of rows ``[n, L, D]``."""
    if not len(rows):
        return np.zeros(rows.shape[1:], np.float32)
    wide = rows.astype(np.float64)
    out = {
        "mean": lambda: wide.mean(0),
        "max": lambda: wide.max(0),
        "first": lambda: wide[0],
        "last": lambda: wide[-1],
        "weighted": lambda: np.average(wide, axis=0, weights=np.arange(1, len(wide) + 1)),
    }[kind]()
    return out.astype(np.float32)


def expected(kind: str, examples: list[int], acts: NDArray[Any] = ACTS) -> NDArray[np.float32]:
    return np.stack([of_rows(kind, acts[OFFSET[e] : OFFSET[e + 1]]) for e in examples])


def close(found: NDArray[Any], truth: NDArray[Any]) -> None:
    assert found.dtype == np.float32
    assert found.shape == truth.shape
    np.testing.assert_allclose(found, truth, rtol=1e-6, atol=1e-7)


# ---- What comes back ----


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(site: actstore.Site, kind: Any) -> None:
    view = site.select(examples=FULL)
    pooled = view.pool(kind)
    assert isinstance(pooled, actstore.Site)
    assert (pooled.name, pooled.axis, pooled.layers, pooled.ndim) == ("resid", "examples", LAYERS, 3)
    assert (pooled.shape, pooled.dtype, len(pooled)) == ((4, 3, DIM), np.float32, 4)
    assert pooled.rows.tolist() == [0, 1, 2, 4]
    close(pooled.read(), expected(kind, [0, 1, 2, 4]))
    close(site.pool(kind, on_empty="zero").read(), expected(kind, [0, 1, 2, 3, 4]))


def test_rows_are_examples_of_the_whole_store(site: actstore.Site) -> None:
    pooled = site.select(examples=[4, 1]).pool("mean")
    assert pooled.rows.tolist() == [4, 1]
    close(pooled.read(), expected("mean", [4, 1]))
    close(pooled[0], expected("mean", [4])[0])
    close(pooled[1:, 12], expected("mean", [1])[:, 2])
    close(pooled.example("b"), expected("mean", [1]))
    close(pooled.example(0), expected("mean", [4]))
    assert pooled.select(examples="b").rows.tolist() == [1]
    assert pooled.select(examples=["b", "d", "b"]).rows.tolist() == [1, 4, 1]
    assert pooled.select(rows=[False, True]).rows.tolist() == [1]
    hits = pooled.select(layers=6).search(expected("mean", [4])[:, 1], k=3, metric="l2", combine="sum")
    assert (hits.rows.tolist(), hits.ids) == ([[4, 1, -1]], [["d", "b", None]])
    assert (hits.examples.tolist(), hits.positions.tolist()) == ([[4, 1, -1]], [[0, 0, -1]])
    np.testing.assert_allclose(hits.scores[0, 0], 0, atol=1e-12)
    for name in ("a", "no such"):
        with pytest.raises(errors.NotFoundError, match=repr(name)):
            pooled.example(name)
    assert site.select(examples=[1, 1, 4]).pool("first").rows.tolist() == [1, 1, 4]
    assert site.select(examples=[]).pool("mean").shape == (0, 3, DIM)


def test_rows_stand_in_the_order_of_the_view(site: actstore.Site) -> None:
    backwards = site.select(examples=["a", "c"]).select(rows=slice(None, None, -1))
    for kind in ("first", "last", "weighted"):
        truth = np.stack([of_rows(kind, ACTS[0:3][::-1]), of_rows(kind, ACTS[4:9][::-1])])
        close(backwards.pool(kind).read(), truth)
    mixed = site.select(examples=["a", "c"]).select(rows=[7, 0, 4, 2])
    close(mixed.pool("first").read(), ACTS[[0, 8]])
    close(mixed.pool("last").read(), ACTS[[2, 5]])


def test_layers_and_mixing(site: actstore.Site) -> None:
    view = site.select(examples=FULL)
    truth = expected("mean", [0, 1, 2, 4])
    assert view.pool("mean", layers=[12, 0]).layers == [12, 0]
    close(view.pool("mean", layers=[12, 0]).read(), truth[:, [2, 0]])
    assert view.pool("mean", layers=6).layers == [6]
    for mix, mixed in (
        ("mean", truth.mean(1, keepdims=True)),
        ("sum", truth.sum(1, keepdims=True)),
        ([0.5, 2, -1], np.einsum("eld,l->ed", truth, [0.5, 2, -1])[:, None]),
        ("concat", truth.reshape(4, 1, -1)),
    ):
        pooled = view.pool("mean", mix=mix)  # type: ignore[arg-type]
        assert pooled.layers == [0]
        np.testing.assert_allclose(pooled.read(), mixed, rtol=1e-5, atol=1e-6)
        one = view.pool("mean", layers=12, mix=[1.0] if isinstance(mix, list) else mix)  # type: ignore[arg-type]
        assert one.layers == [12]
        close(one.read(), truth[:, 2:])


def test_mixing_in_runs(site: actstore.Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few examples at a time where memory is short."""
    whole = site.pool("mean", mix=[1, 2, 3], on_empty="zero").read()
    calls: list[tuple[int, int]] = []
    # `actstore.pool` is the function, which hides the module of that name.
    monkeypatch.setattr(importlib.import_module("actstore.ops.pool"), "BLOCK_BYTES", 2 * 4 * 3 * DIM)
    runs = site.pool("mean", mix=[1, 2, 3], on_empty="zero", progress=lambda *at: calls.append(at)).read()
    assert runs.tobytes() == whole.tobytes()
    assert calls == sorted(calls)
    assert calls[-1] == (36, 36)


def test_special_tokens(site: actstore.Site) -> None:
    kept = ~SPECIAL
    for kind in ("mean", "first", "weighted"):
        pooled = site.select(examples=FULL).pool(kind, special=False)  # type: ignore[arg-type]
        truth = [of_rows(kind, ACTS[a:b][kept[a:b]]) for a, b in ((0, 3), (3, 4), (4, 9), (9, 12))]
        close(pooled.read(), np.stack(truth))
    backwards = site.select(examples=["c"]).select(rows=slice(None, None, -1))
    close(backwards.pool("first", special=False).read(), ACTS[[7]])
    nothing = site.select(rows=[5, 1]).select(rows=slice(0, 0))
    assert nothing.pool("mean", special=False, on_empty="zero").shape == (5, 3, DIM)
    only = site.select(rows=SPECIAL)
    with pytest.raises(errors.InvalidInputError, match=r"5 of 5 .* besides special tokens.* 'a'"):
        only.pool("mean", special=False)
    assert not only.pool("mean", special=False, on_empty="zero").read().any()


def test_what_it_says_of_itself(site: actstore.Site) -> None:
    pooled = site.select(examples=FULL, layers=[6, 12]).pool("mean", mix=[1, 2])
    assert (
        repr(pooled)
        == f"Site('resid' of {site.backend.snapshot.name!r}, mean, [4, 1, 8] float32, layers [0])"
    )
    assert pooled.recipe == {
        "operation": "pool",
        "version": 1,
        "source": "resid",
        "layers": [6, 12],
        "kind": "mean",
        "mix": [1.0, 2.0],
        "special": True,
        "skip_first": 0,
        "on_empty": "raise",
    }
    assert site.recipe is None


# ---- A site in memory is a site ----


@pytest.fixture
def pooled(site: actstore.Site) -> actstore.Site:
    return site.select(examples=["d", "a", "c"]).pool("mean")


def test_reading(pooled: actstore.Site) -> None:
    truth = expected("mean", [4, 0, 2])
    for dtype in (np.float64, np.float16, ml_dtypes.bfloat16):
        found = pooled.read(dtype)
        assert found.dtype == dtype
        np.testing.assert_allclose(found.astype(np.float64), truth, rtol=0.01, atol=0.01)
    out = np.empty((3, 3, 2 * DIM), np.float32)[..., ::2]
    assert pooled.read(out=out) is out
    close(out, truth)
    close(np.asarray(pooled), truth)
    view = pooled.select(layers=[12, 0], examples=[2, 0])
    assert (view.shape, view.rows.tolist()) == ((2, 2, DIM), [2, 4])
    close(view.read(), truth[[2, 0]][:, [2, 0]])
    close(pooled[[2, 2, 0], 6, 1:3], truth[[2, 2, 0], 1, 1:3])
    pooled.read()[:] = 0
    close(pooled.read(), truth)


def test_it_outlives_its_store(path: Path) -> None:
    with actstore.open(path) as store:
        pooled = store["resid"].select(examples=FULL).pool("mean")
    close(pooled.read(), expected("mean", [0, 1, 2, 4]))
    assert pooled.search(ACTS[0, 0], k=1, metric="dot", combine="sum").ids[0][0] in FULL
    assert pooled.example("d").shape == (1, 3, DIM)
    assert pickle.loads(pickle.dumps(pooled)).rows.tolist() == [0, 1, 2, 4]


def test_it_pickles_by_value(pooled: actstore.Site) -> None:
    for view in (
        pooled,
        pooled.select(examples=["c", "d"], layers=12),
        pooled.select(rows=[2]),
        pooled.select(rows=[2, 0, 0]),
        pooled.select(rows=[]),
    ):
        again: actstore.Site = pickle.loads(pickle.dumps(view))
        assert again.read().tobytes() == view.read().tobytes()
        assert (again.rows.tolist(), again.layers) == (view.rows.tolist(), view.layers)
        assert again.n_examples == view.n_examples
        assert again.recipe == view.recipe
        if len(view):
            found, truth = (
                site.search(np.ones(DIM), k=4, metric="dot", combine="sum") for site in (again, view)
            )
            assert (found.rows.tolist(), found.ids) == (truth.rows.tolist(), truth.ids)
    again = pickle.loads(pickle.dumps(pooled.select(layers=6)))
    close(again.example("c"), pooled.select(layers=6).example("c"))
    large = actstore.pool(np.ones((1000, 64)), np.arange(1001), "mean")
    assert len(pickle.dumps(large.select(examples=[5]))) < 10_000


def test_batches(pooled: actstore.Site) -> None:
    found = dict(
        zip(
            *map(np.concatenate, zip(*pooled.batches(2, shuffle=True, with_rows=True), strict=True)),
            strict=True,
        )
    )
    assert sorted(found) == [0, 2, 4]
    for row, values in found.items():
        close(values, expected("mean", [row])[0])


def test_scanning(pooled: actstore.Site) -> None:
    [summary] = pooled.scan([actstore.Summary()])
    np.testing.assert_allclose(summary.mean, pooled.read().mean(0), rtol=1e-6)


# ---- What cannot be pooled ----

Invalid, Shape, NotFound = errors.InvalidInputError, errors.ShapeError, errors.NotFoundError
Case = tuple[Callable[[actstore.Store], object], type[Exception], tuple[str, ...]]

WRONG: dict[str, Case] = {
    "kind": (lambda s: s["resid"].pool("sum"), Invalid, ("'sum'", "mean, max, first, last, weighted")),
    "kind of None": (lambda s: s["resid"].pool(None), Invalid, ("None",)),
    "mix": (lambda s: s["resid"].pool("mean", mix="max"), Invalid, ("'max'", "mean, sum, concat")),
    "too few weights": (lambda s: s["resid"].pool("mean", mix=[1.0]), Shape, ("[3]", "[1]")),
    "weights of NaN": (lambda s: s["resid"].pool("mean", mix=[1, np.nan, 1]), Invalid, ("nan",)),
    "special": (lambda s: s["resid"].pool("mean", special=None), Invalid, ("special is None",)),
    "on_empty": (lambda s: s["resid"].pool("mean", on_empty="skip"), Invalid, ("'skip'", "raise, zero")),
    "layers": (lambda s: s["resid"].pool("mean", layers=5), NotFound, ("5", "0, 6, 12")),
    "no layers": (lambda s: s["resid"].pool("mean", layers=[]), Invalid, ("no layers",)),
    "empty examples": (
        lambda s: s["resid"].pool("mean"),
        Invalid,
        ("1 of 5 examples", "'nothing'", "on_empty='zero'"),
    ),
    "a pooled site": (lambda s: s["docs"].pool("mean"), Invalid, ("'docs'", "pooled already")),
    "a pooled site in memory": (
        lambda s: s["resid"].select(examples=[0]).pool("mean").pool("max"),
        Invalid,
        ("'resid'", "pooled already"),
    ),
    "pooled and written": (
        lambda s: s["resid"].select(examples=[0]).pool("mean").pool("max", out="x"),
        Invalid,
        ("pooled already",),
    ),
    "a reducer's kind": (lambda s: Pool("median"), Invalid, ("'median'",)),
    "empty examples of a reducer": (
        lambda s: s["resid"].scan([Pool("mean")]),
        Invalid,
        ("1 of 5 examples", "'nothing'"),
    ),
    "a pooled site to scan": (lambda s: s["docs"].scan([Pool("max")]), Invalid, ("pooled already",)),
}


@pytest.mark.parametrize("asked", WRONG)
def test_wrong_arguments(store: actstore.Store, asked: str) -> None:
    call, error, words = WRONG[asked]
    with pytest.raises(error) as caught:
        call(store)
    assert type(caught.value) is error
    said = f"{caught.value} {caught.value.hint or ''}"  # type: ignore[attr-defined]
    assert [word for word in words if word not in said] == [], said


def test_no_column_of_special_tokens(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "x.act", {"resid": actstore.SiteSpec(1, 4, "float32")}) as writer:
        writer.append({"resid": np.ones((3, 1, 4), np.float32)}, [3], token_columns={"id": [1, 2, 3]})
    site = actstore.open(tmp_path / "x.act")["resid"]
    with pytest.raises(errors.NotFoundError, match=r"'special'.*id"):
        site.pool("mean", special=False)
    with pytest.raises(errors.NotFoundError, match=r"'special'.*id"):
        site.pool("mean", special=False, out="docs")


# ---- The reducer ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_reducer_is_the_method(site: actstore.Site, kind: Any) -> None:
    view = site.select(examples=["d", "a", "c"], layers=[12, 6])
    [found] = view.scan([Pool(kind)])
    truth = view.pool(kind)
    assert found.read().tobytes() == truth.read().tobytes()
    assert (found.layers, found.rows.tolist()) == (truth.layers, truth.rows.tolist())
    assert found.recipe == truth.recipe
    assert (
        found.search(ACTS[0, 0], k=3, metric="dot", combine="sum").ids
        == truth.search(ACTS[0, 0], k=3, metric="dot", combine="sum").ids
    )
    [zeros] = site.scan([Pool(kind, on_empty="zero")])
    close(zeros.read(), expected(kind, [0, 1, 2, 3, 4]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[], [5], [3, 4], [1, 2, 3, 5, 8, 10], list(range(13))])
def test_pieces_of_examples_merge(site: actstore.Site, kind: Any, cuts: list[int]) -> None:
    """Views over slices of tokens, as jobs of a cluster would take them."""
    reducer = Pool(kind, on_empty="zero")
    bounds = [0, *cuts, 12]
    states = [
        pickle.loads(pickle.dumps(site.select(rows=slice(a, b)).scan([reducer], partial=True)[0]))
        for a, b in itertools.pairwise(bounds)
    ]
    while len(states) > 1:  # As a tree.
        pairs = zip(states[::2], states[1::2], strict=False)
        states = [reducer.merge(a, b) for a, b in pairs] + ([states[-1]] if len(states) % 2 else [])
    found = reducer.finish(states[0])
    assert found.rows.tolist() == [0, 1, 2, 3, 4]
    close(found.read(), expected(kind, [0, 1, 2, 3, 4]))
    assert found.read().tobytes() == site.pool(kind, on_empty="zero").read().tobytes()
    assert found.example("c").shape == (1, 3, DIM)
    with pytest.raises(errors.InvalidInputError, match=r"1 of 5 .*'nothing'"):
        Pool(kind).finish(states[0])


def test_infinities_merge_without_a_word() -> None:
    acts = ACTS.copy()
    acts[0], acts[2] = np.inf, -np.inf
    for kind in KINDS:
        reducer = Pool(kind)
        states = [
            actstore.scan(acts[a:b], [reducer], offsets=[0, b - a], partial=True)[0]
            for a, b in ((0, 2), (2, 4))
        ]
        found = reducer.finish(reducer.merge(*states)).read()
        np.testing.assert_array_equal(found, actstore.pool(acts[:4], [0, 4], kind).read())


def test_different_examples_merge(site: actstore.Site) -> None:
    reducer = Pool("mean")
    a, b = (site.select(examples=names).scan([reducer], partial=True)[0] for names in (["d", "a"], ["b"]))
    found = reducer.finish(reducer.merge(a, b))
    assert found.rows.tolist() == [4, 0, 1]
    close(found.read(), expected("mean", [4, 0, 1]))
    assert found.example("b").tobytes() == expected("mean", [1]).tobytes()


def test_what_does_not_merge(site: actstore.Site) -> None:
    mean = Pool("mean")
    [state] = site.scan([mean], partial=True)
    [other_kind] = site.scan([Pool("max")], partial=True)
    [other_layers] = site.select(layers=0).scan([mean], partial=True)
    [twice] = site.select(examples=[0, 0]).scan([mean], partial=True)
    for other, word in ((other_kind, "'max'"), (other_layers, r"\[0\]"), (twice, "twice")):
        with pytest.raises(errors.InvalidInputError, match=word):
            mean.merge(state, other)


# ---- Plain arrays ----


def test_plain_arrays() -> None:
    pooled = actstore.pool(ACTS, OFFSET, "mean", on_empty="zero")
    close(pooled.read(), expected("mean", [0, 1, 2, 3, 4]))
    assert (pooled.layers, pooled.rows.tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4])
    assert pooled.search(ACTS[0, 0], k=5, metric="dot", combine="sum").rows.min() == 0
    flat = actstore.pool(ACTS[:, 1].astype(np.float64), OFFSET.tolist(), "last", on_empty="zero")
    assert flat.shape == (5, 1, DIM)
    close(flat.read(), expected("last", [0, 1, 2, 3, 4])[:, 1:2])
    assert flat.example("4").shape == (1, 1, DIM)
    narrow = ACTS.astype(ml_dtypes.bfloat16)
    close(
        actstore.pool(narrow, OFFSET, "first", on_empty="zero").read(),
        expected("first", [0, 1, 2, 3, 4], narrow),
    )
    mixed = actstore.pool(ACTS, OFFSET, "mean", mix="concat", on_empty="zero")
    assert mixed.shape == (5, 1, 3 * DIM)


@pytest.mark.parametrize(
    ("offset", "error", "words"),
    [
        ([0, 3, 11], Invalid, ("0 to 12, the number of rows", "[0, 3, 11]")),
        ([1, 12], Invalid, ("[1, 12]",)),
        ([0, 5, 4, 12], Invalid, ("[0, 5, 4, 12]",)),
        ([], Invalid, ("12, the number of rows",)),
        ([[0, 12]], Shape, ("expected shape [n]",)),
        ([0.0, 12.0], Invalid, ("integers",)),
        ([0, 0, 12], Invalid, ("1 of 2", "'0'")),
    ],
)
def test_offsets_that_cannot_be(offset: Any, error: type[Exception], words: tuple[str, ...]) -> None:
    with pytest.raises(error) as caught:
        actstore.pool(ACTS, offset, "mean")
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_pooling_a_plain_array_needs_offsets() -> None:
    with pytest.raises(errors.InvalidInputError, match="pooled already"):
        actstore.scan(ACTS, [Pool("mean")])
    [pooled] = actstore.scan(ACTS, [Pool("mean")], offsets=[0, 12])
    close(pooled.read()[0], ACTS.astype(np.float64).mean(0).astype(np.float32))
