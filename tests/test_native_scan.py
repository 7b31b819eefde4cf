"""The reducers of the core against numpy: what is stored, what is picked, who counts in which thread."""

from itertools import pairwise
from typing import Any

import actstore
import numpy as np
import pytest
import zarr
from actstore import _native
from actstore.errors import ActstoreError, InvalidInputError, ShapeError
from builders import DTYPES
from numpy.typing import NDArray

N, LAYERS = 700, 3
DIMS = {"bfloat16": 48, "float16": 5, "float32": 33}
THREADS = (1, 2, 5)
KINDS = ("mean", "max", "first", "last", "weighted", "sum", "weighted_sum")
PIECES = ("n", "missing", "n_nan", "n_inf", "n_zero", "min", "max", "mean", "m2")
Rows = tuple[int, int] | NDArray[np.int64]


def some(dtype: str, odd: bool) -> NDArray[Any]:
    """Rows with columns of many means and scales; odd ones have what is not finite, and denormals."""
    rng = np.random.default_rng(DIMS[dtype])
    dim = DIMS[dtype]
    x = rng.normal(size=(N, LAYERS, dim)) * 2.0 ** rng.integers(-3, 4, dim) + rng.integers(-50, 50, dim)
    x[rng.random(x.shape) < 0.01] = 0
    x[:, 1, 2] = 7
    x[:, 2] = abs(x[:, 2])
    if odd:
        x[rng.random(x.shape) < 0.02] = np.nan
        x[rng.random(x.shape) < 0.01] = np.inf
        x[rng.random(x.shape) < 0.01] = -np.inf
        x[rng.random(x.shape) < 0.01] = 1e-7
        x[:, 0, 1] = np.nan
        x[: N // 2, 1, 3] = -np.inf
    return x.astype(DTYPES[dtype])


@pytest.fixture(scope="module", params=[False, True], ids=["finite", "odd"])
def sources(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Any, NDArray[Any]]]:
    """Stored arrays and arrays in memory, each with its values."""
    folder = tmp_path_factory.mktemp("sources")
    arrays = {dtype: some(dtype, request.param) for dtype in DIMS}
    out: list[tuple[Any, NDArray[Any]]] = [(x, x) for x in arrays.values()]
    wide = arrays["float32"].astype(np.float64)
    out.append((wide, wide))
    for codec in ("blosc", "raw"):
        path = folder / f"{codec}.act"
        sites = {
            dtype: actstore.SiteSpec(LAYERS, dim, dtype, chunk_rows=32, shard_rows=96)
            for dtype, dim in DIMS.items()
        }
        with actstore.create(path, sites, codec=codec) as writer:  # type: ignore[arg-type]
            writer.append(arrays, [N])
        reader = _native.Reader(str(path))
        out += [(reader.array(dtype), x) for dtype, x in arrays.items()]
    group = zarr.create_group(folder / "foreign.zarr")
    gzip = [zarr.codecs.GzipCodec()]
    group.create_array("resid", data=arrays["float32"], chunks=(50, 2, 8), compressors=gzip)
    out.append((actstore.open(folder / "foreign.zarr")["resid"].backend.native, arrays["float32"]))
    return out


def picks(rng: np.random.Generator) -> list[Rows]:
    """Ranges and lists: sorted, turned, mixed, of a few rows again and again, of none."""
    some = rng.integers(0, N, 500)
    few = np.repeat(rng.integers(0, N, 7), 20)
    lists = [np.sort(some), np.arange(N)[::-1].copy(), some, rng.permutation(few), some[:0]]
    return [(0, N), (13, 571), (9, 9), *lists]


def taken(values: NDArray[Any], rows: Rows, layers: list[int] | None) -> NDArray[np.float32]:
    picked = values[slice(*rows)] if isinstance(rows, tuple) else values[rows]
    return picked[:, slice(None) if layers is None else layers].astype(np.float32)


def offsets(rng: np.random.Generator, n: int) -> NDArray[np.int64]:
    """Examples of many lengths, some empty, the first and last among them."""
    cuts = rng.integers(0, n + 1, n // 30 + 2)
    return np.sort(np.concatenate([[0, 0, n, n], cuts])).astype(np.int64)


def same(a: Any, b: Any) -> bool:
    """Whether two results have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


def check_summary(found: dict[str, NDArray[Any]], x: NDArray[np.float32], m2_of: float = 1e-9) -> None:
    n, n_layers, dim = x.shape
    assert set(found) == set(PIECES)
    assert found["n"].dtype == np.int64
    assert found["n"].tolist() == [n] * n_layers
    assert found["n_nan"].tolist() == np.isnan(x).sum((0, 2)).tolist()
    assert found["n_inf"].tolist() == np.isinf(x).sum((0, 2)).tolist()
    assert found["n_zero"].tolist() == (x == 0).sum((0, 2)).tolist()
    assert found["missing"].tolist() == (~np.isfinite(x)).sum(0).tolist()
    assert found["missing"].shape == found["mean"].shape == found["m2"].shape == (n_layers, dim)
    for layer in range(n_layers):
        there = x[:, layer][~np.isnan(x[:, layer])].astype(np.float64)
        least, most = (there.min(), there.max()) if there.size else (np.nan, np.nan)
        np.testing.assert_array_equal([found["min"][layer], found["max"][layer]], [least, most])
        for d in range(dim):
            column = x[:, layer, d].astype(np.float64)
            column = column[np.isfinite(column)]
            mean, m2 = found["mean"][layer, d], found["m2"][layer, d]
            if not len(column):
                assert np.isnan(mean)
                assert m2 == 0
                continue
            # Deviations from a value are exact, and so have a mean that is.
            away = column - column[0]
            exact = ((away - away.mean()) ** 2).sum()
            assert abs(m2 - exact) <= m2_of * exact
            assert abs(mean - (column[0] + away.mean())) <= 1e-9 * np.sqrt(exact / len(column)) + 1e-15 * abs(
                mean
            )


def check_pools(outs: dict[str, NDArray[Any]], x: NDArray[np.float32], offset: NDArray[np.int64]) -> None:
    """`outs` has those of float32, and float64 ones by the name and ``64``."""
    with np.errstate(invalid="ignore"):
        for e, (start, stop) in enumerate(pairwise(offset)):
            own, n = x[start:stop], int(stop - start)
            if n == 0:
                assert all((out[e] == 0).all() for out in outs.values())
                continue
            np.testing.assert_array_equal(outs["max"][e], own.max(0))
            np.testing.assert_array_equal(outs["first"][e], own[0])
            np.testing.assert_array_equal(outs["last"][e], own[-1])
            weights = np.arange(1, n + 1.0)[:, None, None]
            for kind, terms, over in [
                ("", own.astype(np.float64), n),
                ("weighted", own * weights, n * (n + 1) / 2),
            ]:
                sums = outs[f"{kind}_sum64" if kind else "sum64"][e]
                near = 1e-14 * n * np.abs(terms).sum(0)
                exact = terms.sum(0)
                close = (np.abs(sums - exact) <= near) | (sums == exact) | (np.isnan(sums) & np.isnan(exact))
                assert close.all()
                np.testing.assert_array_equal(outs[kind or "mean"][e], (sums / over).astype(np.float32))
                np.testing.assert_array_equal(outs[f"{kind or 'mean'}64"][e], sums / over)
                np.testing.assert_array_equal(
                    outs[f"{kind}_sum" if kind else "sum"][e], sums.astype(np.float32)
                )


def test_all_reducers_in_one_pass(sources: list[tuple[Any, NDArray[Any]]]) -> None:
    """Every kind of source, selection and layers, for several numbers of threads: one result, numpy's."""
    rng = np.random.default_rng(7)
    for source, values in sources:
        chosen = picks(rng)
        # All selections of some, two of each of the others.
        for rows in chosen if source is values else [chosen[i] for i in rng.permutation(len(chosen))[:3]]:
            layers = [None, [0, 2], [1]][int(rng.integers(3))]
            x = taken(values, rows, layers)
            offset = offsets(rng, len(x))
            results = []
            for threads in THREADS:
                shape = (len(offset) - 1, *x.shape[1:])
                outs: dict[str, NDArray[Any]] = {kind: np.full(shape, 9, np.float32) for kind in KINDS}
                outs |= {f"{kind}64": np.full(shape, 9, np.float64) for kind in KINDS}
                pools = [
                    ("pool", {"kind": name.removesuffix("64"), "offset": offset, "out": out})
                    for name, out in outs.items()
                ]
                summary, counts, *nothing = _native.scan(
                    source, rows, layers, [("summary", {}), ("histogram", {}), *pools], threads
                )
                assert nothing == [None] * len(pools)
                results.append(dict(summary=summary, histogram=counts, **outs))
            assert same(results[0], results[1])
            assert same(results[0], results[2])
            check_summary(summary, x)
            exponents = np.stack(
                [np.bincount(x[:, i].view(np.uint32).ravel() >> 23, minlength=512) for i in range(x.shape[1])]
            )
            np.testing.assert_array_equal(counts["counts"], exponents.reshape(-1, 2, 256))
            assert counts["counts"].dtype == np.uint64
            check_pools(outs, x, offset)


@pytest.mark.parametrize("far", [0.0, 1e3, 1e7])
def test_variance_far_from_zero(far: float) -> None:
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(30_000, 1, 20)) + far).astype(np.float32)
    # The first row is an outlier; a column drifts; a layer of constants has no variance at all.
    x[0, 0, :3] = 1e4
    x[:, 0, 3] += np.linspace(0, 100, len(x), dtype=np.float32)
    x[:, 0, 4] = far + 0.5
    for threads in (1, 3):
        [found] = _native.scan(x, (0, len(x)), None, [("summary", {})], threads)
        check_summary(found, x)
        assert found["m2"][0, 4] == 0
    half = len(x) // 2
    states = [_native.scan(x, rows, None, [("summary", {})])[0] for rows in ((0, half), (half, len(x)))]
    check_summary(_native.merge_states("summary", *states), x)


def test_states_merge(sources: list[tuple[Any, NDArray[Any]]]) -> None:
    for source, values in sources[:4]:
        whole = _native.scan(source, (0, N), None, [("summary", {}), ("histogram", {})])
        parts = [
            _native.scan(source, rows, None, [("summary", {}), ("histogram", {})])
            for rows in ((0, 0), (0, 1), (1, 300), (300, 300), (300, N))
        ]
        for i, kind in enumerate(["summary", "histogram"]):
            merged = parts[0][i]
            for part in parts[1:]:
                merged = _native.merge_states(kind, merged, part[i])
            if kind == "summary":
                check_summary(merged, values.astype(np.float32))
            else:
                assert same(merged, whole[i])
            # Nothing is nothing.
            assert same(_native.merge_states(kind, whole[i], parts[0][i]), whole[i])
            assert same(_native.merge_states(kind, parts[0][i], whole[i]), whole[i])


def test_a_mean_is_rounded_once() -> None:
    """The rows' float32 sum would be another; and the place of a row in its example is its weight."""
    x = np.array([1, 2**-24, 2**-24, 2**-24], np.float32).reshape(4, 1, 1)
    outs = [np.empty((1, 1, 1), np.float32) for _ in range(2)]
    pools = [
        ("pool", {"kind": kind, "offset": np.array([0, 4]), "out": out})
        for kind, out in zip(["sum", "weighted"], outs, strict=True)
    ]
    _native.scan(x, (0, 4), None, pools)
    assert outs[0].item() == np.float32(1 + 3 * 2**-24)
    assert outs[1].item() == np.float32((1 + (2 + 3 + 4) * 2**-24) / 10)


def test_blocks_for_python_hold_the_same_rows() -> None:
    x = some("float32", False)
    rows = np.random.default_rng(1).integers(0, N, 900)
    seen = np.zeros((900, LAYERS), int)

    def update(
        state: list[int], layer: int, positions: NDArray[np.int64], values: NDArray[np.float32]
    ) -> None:
        assert (values == x[rows[positions], layer]).all()
        seen[positions, layer] += 1
        state.append(len(positions))

    python = {"new": list, "update": update, "merge": lambda a, b: a + b}
    out = np.zeros((3, LAYERS, DIMS["float32"]))
    offset = np.array([0, 1, 30, 900])
    pool = ("pool", {"kind": "sum", "offset": offset, "out": out})
    lengths, nothing, _ = _native.scan(x, rows, None, [("python", python), pool, ("summary", {})], 2)
    assert (seen == 1).all()
    assert sum(lengths) == 900 * LAYERS
    assert nothing is None
    np.testing.assert_allclose(out, np.add.reduceat(x[rows].astype(float), offset[:-1]), rtol=1e-12)


def test_long_examples_and_many_short_ones() -> None:
    """Examples of one row, and one that lies in every block of the scan."""
    x = np.random.default_rng(5).normal(size=(40_000, 1, 64)).astype(np.float32)
    for offset in (np.arange(len(x) + 1), np.array([0, 3, len(x) - 1, len(x)])):
        out = np.empty((len(offset) - 1, 1, 64), np.float32)
        largest = np.empty_like(out)
        reducers = [
            ("pool", {"kind": k, "offset": offset, "out": o}) for k, o in [("mean", out), ("max", largest)]
        ]
        _native.scan(x, (0, len(x)), None, reducers, 2)
        counts = np.diff(offset)[:, None, None]
        np.testing.assert_allclose(
            out, np.add.reduceat(x.astype(float), offset[:-1]) / counts, rtol=1e-6, atol=1e-9
        )
        np.testing.assert_array_equal(largest, np.maximum.reduceat(x, offset[:-1]))


def test_progress_and_exceptions() -> None:
    told: list[tuple[int, int]] = []
    x = np.zeros((100, 2, 3), np.float32)
    _native.scan(
        x, (0, 100), None, [("summary", {})], progress=lambda done, total: told.append((done, total))
    )
    assert told[-1] == (200, 200)

    def stop() -> None:
        raise ZeroDivisionError("not now")

    out = np.zeros((1, 2, 3), np.float32)
    pool = ("pool", {"kind": "mean", "offset": np.array([0, 100]), "out": out})
    with pytest.raises(ZeroDivisionError, match="not now"):
        _native.scan(x, (0, 100), None, [pool, ("python", {"new": stop, "update": stop, "merge": stop})])


@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3), (5, 2, 0), (0, 0, 0)])
def test_axes_of_no_length(shape: tuple[int, int, int]) -> None:
    x = np.zeros(shape, np.float32)
    n, n_layers, dim = shape
    outs = [np.ones((2, n_layers, dim), np.float32) for _ in KINDS]
    pools = [
        ("pool", {"kind": kind, "offset": np.array([0, 0, n]), "out": out})
        for kind, out in zip(KINDS, outs, strict=True)
    ]
    summary, counts, *_ = _native.scan(x, (0, n), None, [("summary", {}), ("histogram", {}), *pools])
    check_summary(summary, x)
    assert counts["counts"].shape == (n_layers, 2, 256)
    assert counts["counts"].sum() == x.size
    assert all((out == 0).all() for out in outs)


X = np.zeros((10, 2, 4), np.float32)
GOOD = np.array([0, 4, 10])


def read_only() -> NDArray[Any]:
    out = np.zeros((2, 2, 4), np.float32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "median"}, InvalidInputError, "no pooling 'median': there are mean, max"),
        ({"offset": np.array([0, 4, 9])}, InvalidInputError, "ends with 9, but there are 10 rows"),
        ({"offset": np.array([0, 4, 11])}, InvalidInputError, "ends with 11"),
        ({"offset": np.array([1, 4, 10])}, InvalidInputError, "begins with 1"),
        ({"offset": np.array([0, 12, 10])}, InvalidInputError, "falls from 12 to 10 at example 1"),
        ({"offset": np.array([0, -4, 10])}, InvalidInputError, "negative"),
        ({"offset": np.array([], np.int64)}, InvalidInputError, "empty"),
        ({"offset": GOOD.astype(np.float64)}, InvalidInputError, "offset is an array of int64"),
        ({"offset": GOOD.astype(np.int32)}, InvalidInputError, "offset is an array of int64"),
        ({"offset": GOOD[None]}, InvalidInputError, "offset is an array of int64"),
        ({"offset": [0, 4, 10]}, InvalidInputError, "offset is an array of int64"),
        ({"out": np.zeros((3, 2, 4), np.float32)}, ShapeError, r"\[2, 2, 4\], not \[3, 2, 4\]"),
        ({"out": np.zeros((2, 8), np.float32)}, ShapeError, r"\[2, 2, 4\], not \[2, 8\]"),
        ({"out": np.zeros((2, 2, 4), np.float16)}, InvalidInputError, "float32 or float64, not float16"),
        ({"out": np.zeros((2, 2, 4), np.int32)}, InvalidInputError, "int32"),
        ({"out": np.zeros((2, 2, 4), ">f4")}, InvalidInputError, "byte order"),
        ({"out": np.zeros((2, 2, 8), np.float32)[:, :, ::2]}, InvalidInputError, "contiguous"),
        ({"out": read_only()}, InvalidInputError, "read-only"),
        ({"out": X[4:6]}, InvalidInputError, "shares memory"),
    ],
)
def test_wrong_pools(change: dict[str, Any], error: type[ActstoreError], message: str) -> None:
    spec = {"kind": "mean", "offset": GOOD, "out": np.zeros((2, 2, 4), np.float32), **change}
    with pytest.raises(error, match=message):
        _native.scan(X, (0, 10), None, [("pool", spec)])


def test_outputs_that_overlap_are_refused() -> None:
    out = np.zeros((3, 2, 4), np.float32)
    pools = [("pool", {"kind": "mean", "offset": GOOD, "out": part}) for part in (out[:2], out[1:])]
    with pytest.raises(InvalidInputError, match="shares memory"):
        _native.scan(X, (0, 10), None, pools)


def test_an_unaligned_output_will_do() -> None:
    memory = np.zeros(2 * 2 * 4 * 8 + 1, np.uint8)[1:]
    out = memory.view(np.float64).reshape(2, 2, 4)
    _native.scan(X + 3, (0, 10), None, [("pool", {"kind": "mean", "offset": GOOD, "out": out})])
    assert (out == 3).all()


def test_wrong_reducers_and_states() -> None:
    with pytest.raises(InvalidInputError, match="no reducer 'mode': there are"):
        _native.scan(X, (0, 10), None, [("mode", {})])
    with pytest.raises(InvalidInputError, match="layer position 2 of 2"):
        _native.scan(X, (0, 10), [2], [("summary", {})])
    with pytest.raises(InvalidInputError, match=r"rows 0\.\.11"):
        _native.scan(X, (0, 11), None, [("summary", {})])
    [a, counts] = _native.scan(X, (0, 10), None, [("summary", {}), ("histogram", {})])
    [b, others] = _native.scan(X[:, :1].copy(), (0, 10), None, [("summary", {}), ("histogram", {})])
    merge = _native.merge_states
    with pytest.raises(InvalidInputError, match="no states of 'pool'"):
        merge("pool", a, a)
    for kind, pair in [("summary", (a, b)), ("histogram", (counts, others))]:
        with pytest.raises(ShapeError, match="do not merge"):
            merge(kind, *pair)
    with pytest.raises(InvalidInputError, match="without 'counts'"):
        merge("histogram", a, a)
    wrong: list[tuple[dict[str, Any], type[ActstoreError], str]] = [
        ({"mean": [0.0]}, InvalidInputError, "'mean' is no array"),
        ({"mean": a["mean"][:, :3]}, ShapeError, r"'mean' is \[2, 3\], not \[2, 4\]|not"),
        ({"m2": a["m2"].astype(np.float32)}, InvalidInputError, "'m2' is of float32, not float64"),
        ({"missing": a["missing"][0]}, ShapeError, "'missing'"),
        ({"n": np.array([10, -1])}, InvalidInputError, "'n'"),
        ({"missing": a["missing"] + np.uint64(11)}, InvalidInputError, "'n'"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            merge("summary", a, a | change)
    with pytest.raises(ShapeError, match="counts"):
        merge("histogram", {"counts": counts["counts"][:, :1]}, counts)
