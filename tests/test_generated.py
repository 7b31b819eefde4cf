"""Generated stores equal the arrays they were made from, for us, zarr-python and tensorstore alike.

Reading is compared with numpy, key by key; conversions with numpy and ml_dtypes, value by value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import (
    DTYPES,
    PATTERNS,
    Expected,
    Plan,
    Step,
    assert_same,
    check_actstore,
    check_tensorstore,
    check_zarr,
    plans,
    scratch,
    values,
    write,
)

RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))


def runs(some: int, many: int) -> pytest.MarkDecorator:
    """A parameter `n`: how many examples hypothesis draws, few or, slowly, many."""
    return pytest.mark.parametrize("n", [some, pytest.param(many, marks=pytest.mark.slow)])


# ---- Three readers ----


def three_readers(plan: Plan) -> None:
    with scratch() as folder:
        path = folder / "x.act"
        want = write(plan, path)
        check_actstore(path, want, plan)
        arrays = want.zarr_arrays()
        check_zarr(path, arrays)
        check_tensorstore(path, arrays)


@runs(30, 400)
def test_a_store_equals_its_arrays_in_three_readers(n: int) -> None:
    settings(RELAXED, max_examples=n)(given(plans(max_steps=4 if n < 100 else 9))(three_readers))()


def one_site(spec: actstore.SiteSpec, pattern: str, steps: list[Step], codec: str = "blosc") -> Plan:
    columns = {"tokens": {"id": "int32", "special": "bool"}}
    return Plan(7, codec, {"resid": spec}, {"resid": pattern}, columns, {}, [], True, steps)


def steps_of(*lengths: list[int], after: str = "commit") -> list[Step]:
    return [Step({"tokens": each}, len(each), after) for each in lengths]


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("pattern", ["heavy", "sparse", "specials"])
def test_chunks_and_shards_of_the_default_size(codec: str, dtype: str, pattern: str) -> None:
    spec = actstore.SiteSpec(2, 384, dtype)
    steps = steps_of([1500, 0, 3], [700] * 3, [1], after="commit") + steps_of([900, 100], after="reopen")
    three_readers(one_site(spec, pattern, steps, codec))


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize(
    ("dtype", "dim"), [("bfloat16", 524_289), ("float32", 600_001), ("float32", 262_144)]
)
def test_rows_of_more_than_a_block(codec: str, dtype: str, dim: int) -> None:
    """A row wider than a mebibyte is a chunk of several blosc blocks, the last of them short."""
    for pattern in ("normal", "repeated rows", "zeros"):
        three_readers(one_site(actstore.SiteSpec(1, dim, dtype), pattern, steps_of([2, 1]), codec))
    wide = actstore.SiteSpec(1, dim, dtype, chunk_rows=3, shard_rows=6)
    three_readers(one_site(wide, "normal", steps_of([2, 2], [4]), codec))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_in_full_chunks(pattern: str) -> None:
    """Full chunks take the fast way of compressing, which the tails of small stores seldom do."""
    for dtype in ("bfloat16", "float16", "float32"):
        spec = actstore.SiteSpec(2, 48, dtype, chunk_rows=128, shard_rows=256)
        three_readers(one_site(spec, pattern, steps_of([300, 20], [64, 128])))


def test_labels_need_not_be_in_order(tmp_path: Path) -> None:
    acts = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    labels = [2**63 - 1, 0, 17]
    with actstore.create(tmp_path / "x", {"r": actstore.SiteSpec(3, 2, "float32", labels=labels)}) as w:
        w.append({"r": acts}, [2])
    site = actstore.open(tmp_path / "x")["r"]
    assert site.layers == labels
    assert_same(site[:, [17, 2**63 - 1]], acts[:, [2, 0]])
    assert_same(site[:, 1:], acts[:, [0, 2]])


# ---- Reading as numpy does ----


@dataclass
class Case:
    """An open store, and its sites as numpy has them."""

    store: actstore.Store
    want: Expected
    labels: dict[str, list[int]]

    def __repr__(self) -> str:
        return repr(self.store)


@pytest.fixture(scope="module")
def cases() -> Iterator[list[Case]]:
    """Stores compressed and raw, of one part and of several, with labels by default and of their own."""
    # Hypothesis may not draw here, so the plans are written out.
    lengths = [[7, 0, 12], [1, 30], [], [0], [5, 5, 0, 0], [11]]
    steps = [Step({"tokens": each, "decoder": each[::-1]}, len(each), "commit") for each in lengths]
    sites = {
        "resid": actstore.SiteSpec(4, 9, "bfloat16", chunk_rows=3, shard_rows=6),
        "mlp_out": actstore.SiteSpec(3, 5, "float32", labels=[3, 12, 40], chunk_rows=16),
        "cross": actstore.SiteSpec(2, 16, "float16", labels=[8, 1], axis="decoder"),
        "pooled": actstore.SiteSpec(2, 4, "float32", axis="examples", chunk_rows=2, shard_rows=4),
    }
    with scratch() as folder:
        made = []
        for i, codec in enumerate(["blosc", "raw"]):
            columns = {"tokens": {"id": "int64"}}
            plan = Plan(i, codec, sites, dict.fromkeys(sites, "any bits"), columns, {}, [], True, steps)
            made.append((folder / codec, write(plan, folder / codec)))
        labels = {name: list(spec.labels or ()) for name, spec in sites.items()}
        out = [Case(actstore.open(path), want, labels) for path, want in made]

        # Parts, joined by hand; ids of the second part would be those of the first otherwise.
        plan = Plan(
            5, "blosc", sites, dict.fromkeys(sites, "any bits"), {"tokens": {"id": "int64"}}, {}, [], True, []
        )
        parts, wants = [], []
        for i, taken in enumerate([steps[:2], [], steps[2:]]):
            part = Plan(
                i, "blosc" if i else "raw", sites, plan.patterns, plan.token_columns, {}, [], False, taken
            )
            wants.append(write(part, folder / f"part{i}"))
            parts.append(folder / f"part{i}")
        shifts = {
            axis: np.cumsum([0] + [w.offsets[axis][-1] for w in wants]) for axis in ("tokens", "decoder")
        }
        joined = Expected(
            {name: np.concatenate([w.sites[name] for w in wants]) for name in sites},
            {
                axis: np.concatenate(
                    [[0]] + [w.offsets[axis][1:] + s for w, s in zip(wants, shifts[axis], strict=False)]
                )
                for axis in shifts
            },
            {
                "tokens": {
                    "id": np.concatenate([w.tokens["tokens"].get("id", np.zeros(0, np.int64)) for w in wants])
                }
            },
            {},
            {"id": [name for w in wants for name in w.ids]},
        )
        out.append(Case(actstore.open(parts), joined, labels))
        yield out
        for case in out:
            case.store.close()


def row_keys(n: int) -> st.SearchStrategy[Any]:
    """Whatever numpy takes on an axis of `n`."""
    bound = st.one_of(st.none(), st.integers(-n - 5, n + 5))
    step = st.one_of(st.none(), st.sampled_from([1, 2, 3, 7, -1, -2, -5, n + 1]))
    slices = st.builds(slice, bound, bound, step)
    seeds = st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    masks = seeds.map(lambda x: np.random.default_rng(x[0]).random(n) < x[1])
    keys = [slices, masks, masks.map(lambda mask: mask.tolist()), st.just(slice(None)), st.just(Ellipsis)]
    if n:
        one = st.integers(-n, n - 1)
        many = st.lists(one, max_size=12)
        kinds = [np.int64, np.int32, np.int8] if n < 100 else [np.int64, np.int16]
        keys += [
            one,
            one.map(np.int64),
            many,
            many.flatmap(lambda x: st.sampled_from(kinds).map(lambda t: np.array(x, t))),
            st.lists(st.integers(0, n - 1), max_size=9).map(lambda x: np.array(x, np.uint64)),
            st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda ab: np.arange(min(ab), max(ab))),
        ]
    return st.one_of(keys)


def layer_keys(labels: list[int]) -> st.SearchStrategy[Any]:
    """By label: an int, a negative one from the last, lists of either, half-open slices of labels."""
    one = st.one_of(st.sampled_from(labels), st.integers(-len(labels), -1))
    bound = st.one_of(st.none(), st.integers(0, max(labels) + 2))
    return st.one_of(
        one,
        st.lists(one, max_size=5),
        st.lists(one, max_size=5).map(lambda x: np.array(x, np.int64)),
        st.builds(slice, bound, bound, st.one_of(st.none(), st.integers(1, 3))),
        st.just(slice(None)),
    )


def layer_oracle(labels: list[int], key: Any) -> int | list[int]:
    """The positions of layers, from the definition: slices go over labels, in stored order."""

    def one(label: int) -> int:
        return labels.index(label) if label >= 0 else len(labels) + label

    if isinstance(key, slice):
        inside = [
            i
            for i, label in enumerate(labels)
            if (key.start is None or label >= key.start) and (key.stop is None or label < key.stop)
        ]
        return inside[:: key.step or 1]
    return one(key) if isinstance(key, int) else [one(int(label)) for label in key]


def index(array: np.ndarray, rows: Any, layers: int | list[int], dims: Any) -> np.ndarray:
    """Each axis by itself, an int dropping it: what brackets are to mean."""
    out = array[rows]
    axis = 0 if np.ndim(rows) == 0 and isinstance(rows, int | np.integer) else 1
    out = np.take(out, layers, axis)
    return out[..., dims]


@runs(80, 600)
def test_brackets_are_numpys(cases: list[Case], n: int) -> None:
    @settings(RELAXED, max_examples=n)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(cases))
        name = data.draw(st.sampled_from(sorted(case.labels)))
        array, labels, site = case.want.sites[name], case.labels[name], case.store[name]
        n, _, dim = array.shape
        rows, layers = data.draw(row_keys(n)), data.draw(layer_keys(labels))
        dims = data.draw(
            st.one_of(st.just(slice(None)), row_keys(dim).filter(lambda key: key is not Ellipsis))
        )
        at = layer_oracle(labels, layers)
        if rows is Ellipsis:
            assert_same(site[..., layers, dims], index(array, slice(None), at, dims))
            assert_same(site[..., dims], array[..., dims])
        else:
            rows_now = np.array(rows, np.int64 if not rows else None) if isinstance(rows, list) else rows
            assert_same(site[rows, layers, dims], index(array, rows_now, at, dims))
            assert_same(site[rows, layers], index(array, rows_now, at, slice(None)))
            assert_same(site[rows], array[rows_now])

    check()


@runs(60, 300)
def test_layer_slices_of_default_labels_are_numpys(cases: list[Case], n: int) -> None:
    @settings(RELAXED, max_examples=n)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(cases))
        array, site = case.want.sites["resid"], case.store["resid"]
        bound = st.one_of(st.none(), st.integers(-7, 7))
        key = data.draw(st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2])))
        assert_same(site[::9, key], array[::9, key])
        assert_same(site.select(layers=key).read(), array[:, key])

    check()


# ---- Views ----


class View:
    """A view by its definition: rows one by one, each with the place of its example in the view."""

    def __init__(self, rows: list[int], owners: list[int], examples: list[int], layers: list[int]) -> None:
        self.rows, self.owners, self.examples, self.layers = rows, owners, examples, layers

    def take_examples(self, places: list[int]) -> "View":
        picked = [
            (row, i)
            for i, at in enumerate(places)
            for row, o in zip(self.rows, self.owners, strict=True)
            if o == at
        ]
        rows, owners = [row for row, _ in picked], [i for _, i in picked]
        return View(rows, owners, [self.examples[at] for at in places], self.layers)

    def take_rows(self, places: list[int]) -> "View":
        rows, owners = [self.rows[i] for i in places], [self.owners[i] for i in places]
        return View(rows, owners, self.examples, self.layers)


@runs(50, 500)
def test_select_composes(cases: list[Case], n: int) -> None:
    @settings(RELAXED, max_examples=n)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(cases))
        name = data.draw(st.sampled_from(sorted(case.labels)))
        array, labels, site = case.want.sites[name], case.labels[name], case.store[name]
        ids = case.want.ids
        if site.axis == "examples":
            owners = list(range(len(ids)))
        else:
            owners = np.repeat(range(len(ids)), np.diff(case.want.offsets[site.axis])).tolist()
        want = View(list(range(len(array))), owners, list(range(len(ids))), list(range(len(labels))))

        view: Any = site
        for _ in range(data.draw(st.integers(1, 4))):
            chosen: dict[str, Any] = {}
            if data.draw(st.booleans()):
                now = [labels[i] for i in want.layers]
                if now:
                    key = data.draw(layer_keys(now))
                    at = layer_oracle(now, key)
                    chosen["layers"] = key
                    want.layers = [want.layers[i] for i in (at if isinstance(at, list) else [at])]
            if data.draw(st.booleans()):
                n = len(want.examples)
                key = data.draw(row_keys(n).filter(lambda key: key is not Ellipsis))
                # Several parts may use an id twice, which then names nothing.
                names = [ids[e] for e in want.examples if ids.count(ids[e]) == 1]
                if names and data.draw(st.booleans()):
                    key = data.draw(
                        st.one_of(st.sampled_from(names), st.lists(st.sampled_from(names), max_size=4))
                    )
                    listed = [key] if isinstance(key, str) else key
                    places = [want.examples.index(ids.index(one)) for one in listed]
                else:
                    places = positions(key, n)
                chosen["examples"] = key
                want = want.take_examples(places)
            if data.draw(st.booleans()):
                n = len(want.rows)
                key = data.draw(row_keys(n).filter(lambda key: key is not Ellipsis))
                chosen["rows"] = key
                want = want.take_rows(positions(key, n))
            view = view.select(**chosen)

        assert view.rows.tolist() == want.rows
        assert view.layers == [labels[i] for i in want.layers]
        assert view.n_examples == len(want.examples)
        content = array[want.rows][:, want.layers]
        assert view.shape == content.shape
        assert_same(view.read(), content)
        assert_same(view[::-2], content[::-2])
        for i in range(0, len(want.examples), 3):
            mine = [row for row, owner in zip(want.rows, want.owners, strict=True) if owner == i]
            assert_same(view.example(i), array[mine][:, want.layers])

    check()


def positions(key: Any, n: int) -> list[int]:
    """The positions that a key of `row_keys` means, as numpy has them."""
    key = np.array(key, np.int64 if not key else None) if isinstance(key, list) else key
    return np.atleast_1d(np.arange(n)[key]).tolist()


@runs(50, 300)
def test_read_into_arrays_of_any_layout(cases: list[Case], n: int) -> None:
    @settings(RELAXED, max_examples=n)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        case = data.draw(st.sampled_from(cases))
        name = data.draw(st.sampled_from(sorted(case.labels)))
        array, site = case.want.sites[name], case.store[name]
        key = data.draw(row_keys(len(array)).filter(lambda key: key is not Ellipsis))
        view = site.select(rows=key)
        with np.errstate(all="ignore"):
            content = array[positions(key, len(array))]
        dtype = data.draw(st.sampled_from(["float32", "float64", site.dtype.name]))
        n, layers, dim = content.shape
        layout = data.draw(st.sampled_from(["C", "F", "strided", "reversed", "unaligned"]))
        if layout == "strided":
            out = np.zeros((2 * n, layers, dim + 3), DTYPES[dtype])[::2, :, 1 : dim + 1]
        elif layout == "reversed":
            out = np.zeros((n, layers, dim), DTYPES[dtype])[::-1, ::-1]
        elif layout == "unaligned":
            raw = np.zeros(content.size * DTYPES[dtype].itemsize + 1, np.uint8)[1:]
            out = raw.view(DTYPES[dtype]).reshape(content.shape)
        else:
            out = np.zeros((n, layers, dim), DTYPES[dtype], order=layout)
        assert view.read(out=out) is out
        if dtype == site.dtype.name:
            assert_same(out, content)
        else:
            np.testing.assert_array_equal(out, cast(content, dtype))
        assert_same(view.read(dtype, threads=data.draw(st.integers(0, 3))), np.ascontiguousarray(out))

    check()


# ---- Conversions ----


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(DTYPES[dtype])


def equal_values(found: np.ndarray, want: np.ndarray) -> None:
    """Equal in every bit, but that any NaN will do for a NaN of the same sign."""
    assert found.dtype == want.dtype
    with np.errstate(all="ignore"):  # ml_dtypes sets flags over NaNs.
        nan = np.isnan(want)
        np.testing.assert_array_equal(np.isnan(found), nan)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(want))
        zero = want.dtype.type(0)
        assert_same(np.where(nan, zero, found), np.where(nan, zero, want))


def converted(folder: Path, array: np.ndarray, codec: str, dtypes: list[str]) -> None:
    """Compares conversions with numpy's, by every way there is of reading."""
    spec = actstore.SiteSpec(array.shape[1], array.shape[2], array.dtype.name, chunk_rows=96)
    with actstore.create(folder, {"r": spec}, codec=codec) as writer:
        writer.append({"r": array}, [len(array)])
    order = np.random.default_rng(0).permutation(len(array))
    with actstore.open(folder) as store:
        site = store["r"]
        for dtype in dtypes:
            want = cast(array, dtype)
            equal_values(site.read(dtype), want)
            equal_values(site.select(layers=0, rows=slice(3, None)).read(dtype), want[3:, :1])
            equal_values(site.select(rows=order).read(dtype), want[order])


ALL = ["float32", "float16", "bfloat16", "float64"]


@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_halves_convert_as_numpy_converts_them(tmp_path: Path, dtype: str, codec: str) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype])
    np.random.default_rng(1).shuffle(halves.view(np.uint16))
    # A width that no vector divides, so that the loops' remainders are met as well.
    array = np.resize(halves, (65536 // 74 + 1, 2, 37))
    converted(tmp_path / "x", array, codec, ALL)


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_floats_round_to_halves_as_numpy_rounds_them(tmp_path: Path, codec: str) -> None:
    """Every half, every tie between two, and the floats right beside each."""
    kinds = []
    for dtype in ("float16", "bfloat16"):
        halves = np.arange(1 << 15, dtype=np.uint16).view(DTYPES[dtype]).astype(np.float32)
        halves = halves[np.isfinite(halves)]
        ties = (halves[1:].astype(np.float64) + halves[:-1]) / 2
        exact = np.concatenate([halves, ties.astype(np.float32)])
        pattern = exact.view(np.uint32)
        kinds.append(np.concatenate([pattern, pattern + 1, np.maximum(pattern, 1) - 1]))
    rng = np.random.default_rng(2)
    kinds.append(rng.integers(0, 1 << 32, 1 << 17, np.uint32))
    bits = np.concatenate(kinds)
    bits ^= rng.integers(0, 2, bits.size, np.uint32) << np.uint32(31)
    rng.shuffle(bits)
    array = np.resize(bits, (bits.size // 130 + 1, 2, 65)).view(np.float32)
    converted(tmp_path / "x", array, codec, ["float16", "bfloat16", "float64"])


def test_doubles_of_other_writers_are_rounded_once(tmp_path: Path) -> None:
    """Beside a tie of the half by less than a float32 can tell: rounding twice would go wrong."""
    import zarr

    rng = np.random.default_rng(3)
    halves = rng.normal(size=2000).astype(np.float16).astype(np.float64)
    ties = halves * (1 + 2.0**-11)
    shorts = rng.normal(size=2000).astype(DTYPES["bfloat16"]).astype(np.float64)
    near = np.concatenate([ties, shorts * (1 + 2.0**-8)])
    near = np.concatenate([near, np.nextafter(near, 0), np.nextafter(near, np.inf), near + 2.0**-40])
    array = np.resize(near, (400, 2, 20))
    zarr.create_group(tmp_path).create_array("r", data=array, chunks=(64, 1, 20))
    with actstore.open(tmp_path) as store:
        equal_values(store["r"].read("float16"), cast(array, "float16"))
        equal_values(store["r"].read("float32"), cast(array, "float32"))
        # ml_dtypes goes through float32 and so rounds twice; the nearest is found by hand.
        low = (array.view(np.uint64) >> np.uint64(45) << np.uint64(45)).view(np.float64)
        high = (low.view(np.uint64) + np.uint64(1 << 45)).view(np.float64)
        up = np.abs(high - array) < np.abs(array - low)
        tie = np.abs(high - array) == np.abs(array - low)
        even = (low.view(np.uint64) >> np.uint64(45)) & np.uint64(1) == 0
        want = np.where(up | (tie & ~even), high, low)
        equal_values(store["r"].read("bfloat16"), want.astype(DTYPES["bfloat16"]))


def test_what_is_appended_with_cast_is_rounded_once(tmp_path: Path) -> None:
    array = values(np.random.default_rng(4), "heavy", (50, 2, 7), np.dtype(np.float64))
    for dtype in ("bfloat16", "float16", "float32"):
        with actstore.create(tmp_path / dtype, {"r": actstore.SiteSpec(2, 7, dtype)}) as writer:
            writer.append({"r": array}, [50], cast=True)
        want = cast(array, "float32") if dtype == "bfloat16" else array
        np.testing.assert_allclose(
            actstore.open(tmp_path / dtype)["r"].read("float64"), cast(want, dtype).astype(float), rtol=2**-7
        )
