"""Site.scan, Site.map_blocks and actstore.scan as they are called: reducers, blocks, states, results."""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import Histogram, Pool, Summary, errors
from numpy.typing import NDArray

OFFSET = np.array([0, 3, 3, 4, 9, 9, 12])
LAYERS = [0, 6, 12]
DIM = 5
ACTS = np.random.default_rng(0).normal(size=(12, 3, DIM)).astype(np.float32)
IDS = ["a", "nothing", "b", "c", "nor here", "d"]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "run.act"
    spec = actstore.SiteSpec(3, DIM, "float32", LAYERS, chunk_rows=4, shard_rows=8)
    with actstore.create(path, {"resid": spec}) as writer:
        writer.append({"resid": ACTS}, np.diff(OFFSET), IDS)
    return path


@pytest.fixture
def site(path: Path) -> Iterator[actstore.Site]:
    with actstore.open(path) as store:
        yield store["resid"]


class Blocks:
    """A reducer that keeps all it was given."""

    def new(self) -> list[actstore.Block]:
        return []

    def update(self, state: list[actstore.Block], block: actstore.Block) -> None:
        state.append(block)

    def merge(self, a: list[actstore.Block], b: list[actstore.Block]) -> list[actstore.Block]:
        return a + b

    def finish(self, state: list[actstore.Block]) -> list[actstore.Block]:
        return state


class Rows:
    """A reducer that counts rows and returns its state."""

    def new(self) -> int:
        return 0

    def update(self, state: int, block: actstore.Block) -> int:
        return state + len(block.rows)

    def merge(self, a: int, b: int) -> int:
        return a + b

    def finish(self, state: int) -> str:
        return f"{state} rows"


def gathered(blocks: list[actstore.Block], view: actstore.Site) -> NDArray[np.float32]:
    """What the blocks hold, where they say it stands."""
    out = np.full(view.shape, np.nan, np.float32)
    for block in blocks:
        assert block.values.dtype == np.float32
        assert block.rows.dtype == block.positions.dtype == np.int64
        assert block.values.shape == (len(block.rows), view.shape[2])
        np.testing.assert_array_equal(view.rows[block.positions], block.rows)
        out[block.positions, view.layers.index(block.layer)] = block.values
    assert sum(block.values.size for block in blocks) == out.size
    return out


# ---- Reducers of one's own ----


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_each_row_is_given_once(site: actstore.Site, threads: int) -> None:
    views = [
        site,
        site.select(layers=[12, 0]),
        site.select(layers=6, rows=slice(3, 11)),
        site.select(rows=[11, 2, 7, 3]),
        site.select(rows=[5, 5, 1]),
        site.select(examples=["d", "a"]),
        site.select(rows=[]),
    ]
    for view in views:
        [blocks] = view.scan([Blocks()], threads=threads)
        np.testing.assert_array_equal(gathered(blocks, view), view.read())


def test_rows_of_ungrouped_views_beside_pooling(site: actstore.Site) -> None:
    """Pooling puts rows in the order of examples; blocks still say where they stand in the view."""
    view = site.select(examples=["d", "a"]).select(rows=[5, 0, 3, 2])
    blocks, pooled = view.scan([Blocks(), Pool("first")])
    np.testing.assert_array_equal(gathered(blocks, view), view.read())
    np.testing.assert_array_equal(pooled.read(), ACTS[[9, 2]])


def test_states_and_results(site: actstore.Site) -> None:
    assert site.scan([Rows(), Rows()]) == ["36 rows"] * 2
    assert site.scan([]) == []
    reducer = Rows()
    states = [site.select(rows=slice(a, b)).scan([reducer], partial=True)[0] for a, b in ((0, 5), (5, 12))]
    assert states == [15, 21]
    assert reducer.finish(reducer.merge(*states)) == "36 rows"
    assert site.select(rows=[]).scan([Rows()]) == ["0 rows"]


def test_what_a_reducer_raises(site: actstore.Site) -> None:
    class Fails(Rows):
        def update(self, state: int, block: actstore.Block) -> int:
            raise KeyError("not today")

    with pytest.raises(KeyError, match="not today"):
        site.scan([Fails(), Summary()])
    assert site.scan([Rows()]) == ["36 rows"]


@pytest.mark.parametrize(
    ("reducers", "words"),
    [
        ([Summary], ("Summary is a class",)),
        ([len], ("not a reducer", "new")),
        ("summary", ("'summary'", "not a reducer")),
    ],
)
def test_what_is_no_reducer(site: actstore.Site, reducers: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        site.scan(reducers)
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


def test_progress_and_closing(path: Path) -> None:
    calls: list[tuple[int, int]] = []
    with actstore.open(path) as store:
        site = store["resid"]
        site.scan([Rows(), Summary()], progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (36, 36)
    for use in (lambda: site.scan([Summary()]), lambda: site.map_blocks(len)):
        with pytest.raises(errors.StorageError) as caught:
            use()
        assert caught.value.kind == "closed"


def test_no_layers(site: actstore.Site) -> None:
    with pytest.raises(errors.InvalidInputError, match="no layers"):
        site.select(layers=[]).scan([Summary()])


# ---- Blocks ----


def test_map_blocks(site: actstore.Site) -> None:
    view = site.select(layers=[6, 0])
    blocks = view.map_blocks(lambda block: block, threads=3)
    np.testing.assert_array_equal(gathered(blocks, view), view.read())
    order = [(int(block.rows[0]), view.layers.index(block.layer)) for block in blocks]
    assert order == sorted(order)
    assert len(blocks) > 2
    scattered = site.select(rows=[11, 2, 7, 3]).map_blocks(lambda block: block.rows.tolist())
    assert sorted({row for rows in scattered for row in rows}) == [2, 3, 7, 11]
    assert [min(rows) for rows in scattered] == sorted(min(rows) for rows in scattered)
    assert site.select(rows=[]).map_blocks(len) == []
    with pytest.raises(errors.InvalidInputError, match="function"):
        site.map_blocks([])  # type: ignore[arg-type]


def test_blocks_of_pooled_sites(site: actstore.Site) -> None:
    pooled = site.select(examples=["d", "a"]).pool("last")
    [block] = pooled.select(layers=12).map_blocks(lambda block: block)
    assert (block.layer, block.rows.tolist(), block.positions.tolist()) == (12, [5, 0], [0, 1])
    np.testing.assert_array_equal(block.values, ACTS[[11, 2], 2])


# ---- Summary ----


def odd_acts() -> NDArray[np.float32]:
    acts = ACTS.copy()
    acts[3, 0, 1], acts[4, 0, 1], acts[5, 1, 0] = np.nan, -np.inf, np.inf
    acts[7, 2] = 0.0
    return acts


def test_summary() -> None:
    acts = odd_acts()
    [summary] = actstore.scan(acts, [Summary()])
    finite = np.isfinite(acts)
    values = np.where(finite, acts, np.nan).astype(np.float64)
    assert summary.layers == [0, 1, 2]
    assert summary.n.tolist() == [12, 12, 12]
    assert (summary.n_nan.tolist(), summary.n_inf.tolist(), summary.n_zero.tolist()) == (
        [1, 0, 0],
        [1, 1, 0],
        [0, 0, DIM],
    )
    np.testing.assert_array_equal(summary.missing, (~finite).sum(0))
    np.testing.assert_array_equal(summary.count, finite.sum(0))
    np.testing.assert_array_equal(summary.min, np.nanmin(acts, axis=(0, 2)))
    np.testing.assert_array_equal(summary.max, np.nanmax(acts, axis=(0, 2)))
    for found, expected in (
        (summary.mean, np.nanmean(values, 0)),
        (summary.var, np.nanvar(values, 0)),
        (summary.std, np.nanstd(values, 0)),
        (summary.norm, np.sqrt(np.nansum(values**2, 0))),
    ):
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert repr(summary) == "SummaryResult(12 rows, layers [0, 1, 2], dim 5, 1 NaN, 2 infinite)"


def test_summaries_merge_and_pickle() -> None:
    acts = odd_acts()
    [whole] = actstore.scan(acts, [Summary()])
    [a], [b] = (actstore.scan(part, [Summary()]) for part in (acts[:5], acts[5:]))
    reducer = Summary()
    states = [actstore.scan(part, [reducer], partial=True)[0] for part in (acts[:5], acts[5:])]
    merged = reducer.finish(reducer.merge(*(pickle.loads(pickle.dumps(state)) for state in states)))
    for found in (a + b, merged, pickle.loads(pickle.dumps(whole))):
        assert found.layers == whole.layers
        for name in ("n", "missing", "n_nan", "n_inf", "n_zero", "min", "max"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        for name in ("mean", "var", "norm"):
            np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9)
    [nothing] = actstore.scan(acts[:0], [Summary()])
    np.testing.assert_allclose((nothing + whole).mean, whole.mean)
    assert nothing.n.tolist() == [0, 0, 0]
    assert np.isnan(nothing.min).all()
    assert np.isnan(nothing.var).all()
    assert not nothing.norm.any()
    with pytest.raises(TypeError):
        whole + 1


def test_other_layers_do_not_merge(site: actstore.Site) -> None:
    for reducer in (Summary(), Histogram()):
        one, other = (site.select(layers=layer).scan([reducer], partial=True)[0] for layer in (0, 6))
        with pytest.raises(errors.InvalidInputError, match=r"\[0\].*\[6\]"):
            reducer.merge(one, other)


# ---- Histogram ----


def test_histogram(site: actstore.Site) -> None:
    [found] = site.scan([Histogram()])
    assert found.layers == LAYERS
    assert (found.counts.shape, found.counts.dtype) == ((3, 2, 256), np.uint64)
    assert found.counts.sum() == ACTS.size
    assert not found.n_special.any()
    for i, layer in enumerate(LAYERS):
        counts, edges = found.bins(layer)
        assert counts[0] > 0
        assert counts[-1] > 0
        inside = [((lo <= ACTS[:, i]) & (ACTS[:, i] < hi)).sum() for lo, hi in itertools.pairwise(edges)]
        assert counts.tolist() == inside
    assert found.edges[[0, 1, 127, 254, 255]].tolist() == [0, 2**-126, 1, 2.0**127, np.inf]
    with pytest.raises(errors.NotFoundError, match="5"):
        found.bins(5)


def test_histogram_of_odd_values() -> None:
    values = np.array([[0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 3.0, -3.0]], np.float32)
    [found] = actstore.scan(values, [Histogram()])
    assert found.n_special.tolist() == [3]
    counts, edges = found.bins(0)
    assert (edges[0], edges[-1]) == (-4, 4)
    middle = len(counts) // 2
    assert (counts[middle - 1], counts[middle]) == (2, 2)
    assert edges[middle] == 0
    assert (found + found).counts.sum() == 18
    [empty] = actstore.scan(values[:0], [Histogram()])
    with pytest.raises(errors.NotFoundError, match="no finite"):
        empty.bins(0)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.counts, found.counts)
