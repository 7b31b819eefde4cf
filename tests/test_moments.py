"""Means and covariances against numpy in float64, whatever the values, cuts, threads and groups."""

import itertools
import pickle
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import errors
from numpy.typing import NDArray

F32 = np.float32
Rows = NDArray[Any]


def scaled(n: int, n_layers: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    """Correlated rows whose dims lie up to a million deviations from zero, at scales from 1e-6 to 1e6."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(dim) + 0.3 * rng.normal(size=(dim, dim)) / np.sqrt(dim)
    rows = rng.normal(size=(n, n_layers, dim)) @ mixing
    scale = 10.0 ** rng.uniform(-6, 6, (n_layers, dim))
    shift = rng.choice([0.0, 1.0, -30.0, 1e3, 1e6], (n_layers, dim))
    out: NDArray[np.float32] = ((rows + shift) * scale).astype(F32)
    return out


def check(m: actstore.MomentsResult, rows: Rows, rtol: float = 1e-9) -> None:
    """Against two passes over deviations from the first row, which float64 has exactly, or nearly so."""
    wide = rows.astype(np.float64)
    assert m.n == len(wide)
    for i in range(wide.shape[1]):
        away = wide[:, i] - wide[0, i]
        mean = away.mean(0)
        away -= mean
        cov = away.T @ away / len(away)
        spread = np.sqrt(np.diagonal(cov))
        assert (
            np.abs(m.mean[i] - wide[0, i] - mean) <= rtol * spread + 1e-15 * np.abs(wide[0, i] + mean)
        ).all()
        assert (np.abs(m.var[i] - spread**2) <= rtol * spread**2).all()
        if m.cov is not None:
            assert (np.abs(m.cov[i] - cov) <= rtol * np.outer(spread, spread)).all()
            assert np.array_equal(m.cov[i], m.cov[i].T)
            assert np.array_equal(np.diagonal(m.cov[i]), m.var[i])


SHAPES = [
    (2, 1, 1),
    (3, 2, 5),
    (300, 1, 23),
    (700, 3, 24),
    (1500, 1, 25),
    (257, 2, 48),
    (1000, 1, 100),
    (5000, 2, 130),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cov", [True, False])
def test_badly_scaled_and_shifted(shape: tuple[int, int, int], cov: bool) -> None:
    rows = scaled(*shape)
    whole = actstore.moments(rows, cov)
    check(whole, rows)
    for threads in (1, 3):
        again = actstore.moments(rows, cov, threads=threads)
        assert np.array_equal(again.mean, whole.mean)
        assert np.array_equal(again.var, whole.var)
        assert cov is False or np.array_equal(again.cov, whole.cov)  # type: ignore[arg-type]


def test_float32_products() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 2, 70)).astype(F32) * 3 + 2
    m = actstore.moments(rows, precision="float32")
    check(m, rows, 1e-6)
    exact = actstore.moments(rows)
    assert exact.cov is not None
    assert not np.array_equal(m.cov, exact.cov)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_merged_partials_are_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = scaled(int(rng.integers(2, 2000)), 2, int(rng.integers(1, 60)), seed)
    # Sorted by their first value, so that the means of the pieces lie far apart.
    rows = rows[np.argsort(rows[:, 0, 0])]
    cuts = np.sort(rng.integers(0, len(rows) + 1, rng.integers(0, 8)))
    parts = [actstore.moments(part) for part in np.split(rows, cuts)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged + part
    check(merged, rows)
    check(pickle.loads(pickle.dumps(merged)), rows)


@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_stored(tmp_path: Path, codec: Any, dtype: str) -> None:
    spec = actstore.SiteSpec(3, 40, dtype, labels=[0, 6, 12], chunk_rows=16, shard_rows=64)
    rows = (np.random.default_rng(1).normal(size=(500, 3, 40)) * 4 + 7).astype(spec.dtype)
    with actstore.create(tmp_path / "x", {"x": spec}, codec=codec) as w:
        w.append({"x": rows}, [200, 0, 299, 1])
    site = actstore.open(tmp_path / "x")["x"]
    m = site.moments()
    check(m, rows.astype(F32))
    assert m.layers == [0, 6, 12]
    assert m.dtype == dtype
    some = np.random.default_rng(2).integers(0, 500, 123)
    for view, wanted in (
        (site.select(layers=[12, 0]), rows[:, [2, 0]]),
        (site.select(rows=some), rows[some]),
        (site.select(examples=[2, 0]), rows[[*range(200, 499), *range(200)]]),
        (site.select(rows=slice(17, 333)), rows[17:333]),
    ):
        check(view.moments(), wanted.astype(F32))
    check(m.select(12), rows[:, [2]].astype(F32))


def test_in_a_scan_beside_others(tmp_path: Path) -> None:
    """One pass; the others find what they find alone."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(900, 2, 33)).astype(F32)
    with actstore.create(tmp_path / "x", {"x": actstore.SiteSpec(2, 33, "float32", chunk_rows=32)}) as w:
        w.append({"x": rows}, [100, 0, 500, 300])
    site = actstore.open(tmp_path / "x")["x"]

    class Rows:
        def new(self) -> Any:
            return []

        def update(self, state: Any, block: actstore.Block) -> None:
            state.append((block.layer, block.rows))

        def merge(self, a: Any, b: Any) -> Any:
            return a + b

        def finish(self, state: Any) -> Any:
            return state

    reducers = [actstore.Summary(), actstore.Moments(), actstore.Pool("mean", on_empty="zero"), Rows()]
    summary, m, pooled, seen = site.scan([*reducers, actstore.Histogram()], threads=2)[:4]
    check(m, rows)
    alone = site.scan([actstore.Summary()])[0]
    np.testing.assert_allclose(summary.mean, alone.mean, rtol=1e-12)
    np.testing.assert_allclose(summary.m2, alone.m2, rtol=1e-12)
    assert np.array_equal(pooled.read(), site.pool("mean", on_empty="zero").read())
    for layer in (0, 1):
        assert np.array_equal(np.concatenate([r for at, r in seen if at == layer]), np.arange(900))
    first, second = (
        site.select(rows=part).scan(reducers[:2], partial=True) for part in (slice(400), slice(400, 900))
    )
    check(actstore.Moments().finish(actstore.Moments().merge(first[1], second[1])), rows)


# ---- Groups ----


def test_groups() -> None:
    rows = scaled(1300, 2, 30, 7)
    labels = np.random.default_rng(0).integers(-3, 5, 1300) * 10
    for cov, threads in itertools.product((True, False), (1, 3)):
        m = actstore.moments(rows, cov, by=labels, threads=threads)
        assert m.groups is not None
        assert m.groups.tolist() == sorted(set(labels.tolist()))
        assert m.mean.shape == (8, 2, 30)
        for g, label in enumerate(m.groups):
            of_group = actstore.MomentsResult(
                m.layers, m.n[g], m.mean[g], m.var[g], None if m.cov is None else m.cov[g], None, m.dtype
            )
            check(of_group, rows[labels == label])


def test_groups_merge_whatever_they_have() -> None:
    rows = scaled(600, 1, 12, 8)
    labels = np.array([f"class {i % 7}" for i in range(600)])
    labels[:300][labels[:300] == "class 6"] = "class 0"
    a, b = (actstore.moments(rows[part], by=labels[part]) for part in (slice(300), slice(300, 600)))
    whole, merged = actstore.moments(rows, by=labels), a + b
    assert whole.groups is not None
    assert merged.groups is not None
    assert merged.groups.tolist() == whole.groups.tolist()
    assert merged.n.tolist() == whole.n.tolist()
    for g, label in enumerate(whole.groups):
        of_group = actstore.MomentsResult(
            [0],
            merged.n[g],
            merged.mean[g],
            merged.var[g],
            merged.cov[g],
            None,
            "float32",  # type: ignore[index]
        )
        check(of_group, rows[labels == label])


def test_by_position_example_and_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    lengths = [4, 0, 7, 1, 30]
    n = sum(lengths)
    rows = rng.normal(size=(n, 2, 5)).astype(F32)
    kinds, topics = rng.integers(0, 3, n), ["x", "y", "x", "z", "y"]
    with actstore.create(tmp_path / "x", {"x": actstore.SiteSpec(2, 5, "float32", chunk_rows=8)}) as w:
        w.append(
            {"x": rows},
            lengths,
            token_columns={"kind": kinds},
            columns={"topic": topics, "year": [1, 2, 1, 3, 3]},
        )
    store = actstore.open(tmp_path / "x")
    site = store["x"]
    example = np.repeat(np.arange(5), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    of_rows = {
        "position": position,
        "example": example,
        "kind": kinds,
        "topic": np.array(topics)[example],
        "year": np.array([1, 2, 1, 3, 3])[example],
    }
    picked = rng.permutation(n)[: n // 2]
    for name, labels in of_rows.items():
        for view, at in ((site, np.arange(n)), (site.select(rows=picked), picked)):
            m = view.moments(cov=False, by=name)
            assert m.groups is not None
            wanted = np.unique(labels[at])
            assert m.groups.tolist() == wanted.tolist(), name
            for g, label in enumerate(wanted):
                own = rows[at][labels[at] == label].astype(np.float64)
                assert m.n[g] == len(own)
                np.testing.assert_allclose(m.mean[g], own.mean(0), atol=1e-12)
                np.testing.assert_allclose(m.var[g], own.var(0), atol=1e-12)
    pooled = site.select(examples=[0, 2, 3, 4]).pool("mean")
    assert pooled.moments(cov=False, by="topic").n.tolist() == [2, 1, 1]
    with pytest.raises(errors.NotFoundError, match="color"):
        site.moments(by="color")
    with pytest.raises(errors.ShapeError, match=r"by: expected \[42\]"):
        site.moments(by=[1, 2])
    with pytest.raises(errors.InvalidInputError, match="integers or strings"):
        site.moments(by=np.zeros(n))


# ---- What cannot be ----


def test_nan_and_infinities_are_named(tmp_path: Path) -> None:
    rows = np.ones((500, 2, 6), F32)
    with actstore.create(tmp_path / "x", {"x": actstore.SiteSpec(2, 6, "float32", labels=[3, 9])}) as w:
        w.append({"x": rows}, [500])
    rows[[77, 400], 1, 3] = np.nan, -np.inf
    with actstore.append(tmp_path / "x") as w:
        w.append({"x": rows}, [500])
    site = actstore.open(tmp_path / "x")["x"]
    for cov in (True, False):
        with pytest.raises(
            errors.InvalidInputError, match="2 rows of layer 9 are NaN or infinite, the first is row 577"
        ):
            site.moments(cov)
    assert site.select(layers=3).moments().n == 1000
    assert site.select(rows=slice(577)).moments().n == 577
    with pytest.raises(errors.InvalidInputError, match="row 577"):
        site.select(layers=9).cross_moments(site.select(layers=3))


def test_few_rows_and_none() -> None:
    m = actstore.moments(np.zeros((0, 2, 3), F32))
    assert m.n == 0
    assert np.isnan(m.mean).all()
    assert m.cov is not None
    assert np.isnan(m.cov).all()
    one = actstore.moments(np.full((1, 2, 3), 5.0, F32))
    assert (one.mean == 5).all()
    assert (one.var == 0).all()
    both = m + one
    assert both.n == 1
    assert (both.mean == 5).all()
    assert actstore.moments(np.zeros((4, 0), F32)).cov.shape == (1, 0, 0)  # type: ignore[union-attr]


def test_what_does_not_merge() -> None:
    a = actstore.moments(np.ones((3, 2, 4)))
    for other, error in (
        (actstore.moments(np.ones((3, 1, 4))), errors.InvalidInputError),
        (actstore.moments(np.ones((3, 2, 5))), errors.ShapeError),
        (actstore.moments(np.ones((3, 2, 4)), cov=False), errors.InvalidInputError),
        (actstore.moments(np.ones((3, 2, 4)), by=[1, 1, 2]), errors.InvalidInputError),
    ):
        with pytest.raises(error, match="do not merge"):
            a + other
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_wrong_arguments_and_too_large() -> None:
    with pytest.raises(errors.InvalidInputError, match="precision"):
        actstore.Moments(precision="float16")
    with pytest.raises(errors.InvalidInputError, match="cov"):
        actstore.Moments(cov="yes")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError, match="of memory"):
        actstore.moments(np.zeros((2, 500_000), F32))


# ---- Two sites ----


@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1, 1), (300, 2, 23, 3, 25), (1500, 1, 100, 2, 48), (4000, 3, 60, 1, 7)]
)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_cross(shape: tuple[int, int, int, int, int], precision: Any) -> None:
    n, x_layers, x_dim, y_layers, y_dim = shape
    x, y = scaled(n, x_layers, x_dim, 1), scaled(n, y_layers, y_dim, 2)
    y[:, 0, 0] += x[:, 0, 0]
    c = actstore.cross_moments(x, y, precision=precision)
    assert c.cov.shape == (x_layers, y_layers, x_dim, y_dim)
    cuts = [0, n // 3, n // 3, n]
    parts = [actstore.cross_moments(x[a:b], y[a:b], precision=precision) for a, b in itertools.pairwise(cuts)]
    rtol = 1e-9 if precision == "float64" else 2e-5
    for found in (
        c,
        parts[0] + parts[1] + parts[2],
        actstore.cross_moments(x, y, precision=precision, threads=3),
    ):
        assert found.n == n
        for i, j in itertools.product(range(x_layers), range(y_layers)):
            wide, other = x[:, i].astype(np.float64), y[:, j].astype(np.float64)
            a, b = wide - wide[0], other - other[0]
            a, b = a - a.mean(0), b - b.mean(0)
            least = rtol * np.outer(a.std(0), b.std(0))
            assert (np.abs(found.cov[i, j] - a.T @ b / n) <= least).all()
            np.testing.assert_allclose(found.mean[i], wide.mean(0), rtol=1e-9, atol=1e-9 * a.std())
            np.testing.assert_allclose(found.other_mean[j], other.mean(0), rtol=1e-9, atol=1e-9 * b.std())


def test_cross_of_stored_sites(tmp_path: Path) -> None:
    """Chunks of other lengths, views in any order, rows of the same tokens."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(700, 2, 8)).astype(F32), rng.normal(size=(700, 1, 12)).astype(F32)
    lengths = [300, 0, 399, 1]
    for name, rows, chunk in (("a", x, 16), ("b", y, 56)):
        spec = actstore.SiteSpec(
            rows.shape[1], rows.shape[2], "float32", chunk_rows=chunk, shard_rows=4 * chunk
        )
        with actstore.create(tmp_path / name, {"x": spec}) as w:
            w.append({"x": rows}, lengths)
    a, b = (actstore.open(tmp_path / name)["x"] for name in "ab")

    def wanted(at: NDArray[np.int64], shift: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        left = x[at, 1].astype(np.float64)
        right = y[at if shift is None else shift, 0].astype(np.float64)
        product: NDArray[np.float64] = (left - left.mean(0)).T @ (right - right.mean(0)) / len(at)
        return product

    mixed = rng.permutation(700)[:200]
    for at in (np.arange(700), np.arange(13, 650), np.sort(mixed), mixed):
        found = a.select(layers=1, rows=at).cross_moments(b.select(rows=at))
        np.testing.assert_allclose(found.cov[0, 0], wanted(at), atol=1e-12)
    # One in order, the other not: what they pair is for the views to say.
    other = rng.permutation(700)
    found = a.select(layers=1).cross_moments(b.read()[other])
    np.testing.assert_allclose(found.cov[0, 0], wanted(np.arange(700), other), atol=1e-12)
    there = np.concatenate([np.arange(297), np.arange(300, 696)])
    found = a.select(layers=1).cross_moments(b, lag=3)
    assert found.n == len(there)
    np.testing.assert_allclose(found.cov[0, 0], wanted(there, there + 3), atol=1e-12)
    found = a.select(layers=1).cross_moments(b, lag=-3)
    np.testing.assert_allclose(found.cov[0, 0], wanted(there + 3, there), atol=1e-12)
    with actstore.create(tmp_path / "c", {"x": actstore.SiteSpec(1, 4, "float32")}) as w:
        w.append({"x": np.zeros((700, 1, 4), F32)}, [299, 1, 399, 1])
    with pytest.raises(errors.InvalidInputError, match=r"example '0' has 300 rows.*and 299"):
        a.cross_moments(actstore.open(tmp_path / "c")["x"])
    with pytest.raises(errors.ShapeError, match="700 rows"):
        a.cross_moments(np.ones((3, 2)))
    with pytest.raises(errors.InvalidInputError, match="lag"):
        a.cross_moments(b, lag=0.5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_many_wide_layers_take_the_memory_of_the_result(tmp_path: Path) -> None:
    """33 layers of 4,096 squared: 4.4 GB, and little more."""
    import os
    import resource
    import subprocess
    import sys

    if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 12e9:
        pytest.skip("the result alone is 4.4 GB")
    spec = actstore.SiteSpec(33, 4096, "bfloat16")
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(512, 33, 4096)).astype(spec.dtype)
    with actstore.create(tmp_path / "x", {"x": spec}) as w:
        w.append({"x": rows}, [512])
    code = (
        "import sys, resource, numpy as np, actstore\n"
        "m = actstore.open(sys.argv[1])['x'].moments()\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "np.save(sys.argv[2], m.cov[32, :50, :50]); print(peak - m.cov.nbytes)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x"), str(tmp_path / "c.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) < 450e6, "beyond the result: the interpreter, the libraries, the windows"
    wanted = np.cov(rows[:, 32, :50].astype(np.float64).T, bias=True)
    np.testing.assert_allclose(np.load(tmp_path / "c.npy"), wanted, atol=1e-12)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_a_reducer_that_raises_beside_moments() -> None:
    class Broken:
        def new(self) -> Any:
            return None

        def update(self, state: Any, block: actstore.Block) -> None:
            raise ValueError("not today")

        def merge(self, a: Any, b: Any) -> Any:
            return None

        def finish(self, state: Any) -> Any:
            return None

    rows = np.ones((5000, 2, 40), F32)
    with pytest.raises(ValueError, match="not today"):
        actstore.scan(rows, [actstore.Moments(), Broken()])


def test_progress_reaches_the_end() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 2, 30)).astype(F32)
    seen: list[tuple[int, int]] = []
    actstore.moments(rows, progress=lambda *now: seen.append(now))
    assert seen[-1] == (8000, 8000)
    actstore.cross_moments(rows, rows, progress=lambda *now: seen.append(now))
    assert seen[-1] == (4000, 4000)


@pytest.mark.parametrize("far", [1e3, 1e5, 1e7])
def test_rows_as_far_from_zero_as_float32_can_tell_apart(far: float) -> None:
    """Against exact sums: a mean far away costs no digit of what is around it."""
    rng = np.random.default_rng(int(far))
    rows = (rng.normal(size=(1500, 1, 30)) + far).astype(F32)
    away = rows.astype(np.longdouble)[:, 0] - far
    away -= away.mean(0)
    cov = (away.T @ away / len(away)).astype(np.float64)
    for m in (actstore.moments(rows), actstore.moments(rows[:400]) + actstore.moments(rows[400:])):
        assert m.cov is not None
        spread = np.sqrt(np.outer(np.diagonal(cov), np.diagonal(cov)))
        assert (np.abs(m.cov[0] - cov) <= (1e-12 if m is not None and far < 1e6 else 1e-10) * spread).all()
