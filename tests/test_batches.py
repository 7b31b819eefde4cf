"""Batches: each row once per epoch with its values, reproducible from the seed, and resumable.

test_shuffle.py measures how well the order is shuffled; test_prefetch.py tests the threads that read.
"""

import contextlib
import gc
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import actstore
import numpy as np
import pytest
from actstore.base.arrays import FLOAT_DTYPES
from actstore.loader.batches import Batches, batches
from actstore.rows.memory import MemoryBackend, PositionIds
from actstore.rows.view import View
from actstore.site import Site
from builders import DTYPES
from feeding import DIM, LAYERS, MODES, N, flat, foreign, live, rows_of, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limited import Tell, anonymous_memory, in_child


@pytest.fixture(scope="module")
def sites(memory_folder: Path) -> Iterator[dict[str, Site]]:
    """The same rows in stores of every codec, dtype and layout."""
    folder = memory_folder / "batches"
    (folder / "parts").mkdir(parents=True)
    for i in range(3):
        write(folder / f"parts/{i}", [50, 0, 61][i], part=(i, 3))
    with contextlib.ExitStack() as stack:
        stores = {
            "blosc": actstore.open(write(folder / "blosc")),
            "raw": actstore.open(write(folder / "raw", codec="raw", dtype="float32")),
            "half": actstore.open(write(folder / "half", dtype="float16")),
            "parts": actstore.open(folder / "parts"),
            "foreign": actstore.open(foreign(folder / "foreign")),
        }
        for store in stores.values():
            stack.enter_context(store)
        yield {name: store["resid"] for name, store in stores.items()}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if live():
        gc.collect()
    assert live() == 0


# ---- Every row once, with its values ----


def views(site: Site) -> st.SearchStrategy[Site]:
    """A view by a range, a mask or a list with repeats, of some layers in any order, and loader options."""
    n = len(site)
    tokens = st.one_of(
        st.builds(slice, st.integers(0, n), st.integers(0, n)),
        st.lists(st.booleans(), min_size=n, max_size=n).map(lambda mask: np.array(mask, bool)),
        st.lists(st.integers(0, n - 1), max_size=60).map(lambda rows: np.array(rows, np.int64)),
        st.none(),
    )
    layers = st.lists(st.sampled_from(site.layers), min_size=1, max_size=4)
    return st.builds(lambda t, ls: site.select(layers=ls, rows=t), tokens, layers)


@st.composite
def loader_cases(draw: st.DrawFn, sites: dict[str, Site]) -> tuple[Site, dict[str, Any]]:
    view = draw(views(sites[draw(st.sampled_from(sorted(sites)))]))
    return view, {
        "batch_size": draw(st.integers(1, 70)),
        "shuffle": draw(st.sampled_from(MODES)),
        "seed": draw(st.integers(0, 2**70)),
        "epoch": draw(st.integers(0, 9)),
        "reservoir": draw(st.one_of(st.none(), st.integers(1, 120))),
        "dtype": draw(st.sampled_from([None, "float32", "float64", "bfloat16"])),
        "world_size": draw(st.integers(1, 3)),
        "prefetch": draw(st.integers(1, 3)),
        "threads": draw(st.integers(0, 2)),
    }


@pytest.mark.parametrize("n", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_each_row_once_with_its_values(sites: dict[str, Site], n: int) -> None:
    @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))
    @given(loader_cases(sites))
    def check(case: tuple[Site, dict[str, Any]]) -> None:
        view, options = case
        dtype = view.dtype if options["dtype"] is None else FLOAT_DTYPES[options["dtype"]]
        whole = Site(view.backend, view.layer_positions)  # All rows of these layers.
        expected = whole.read(dtype)
        got, counts = [], []
        for rank in range(options["world_size"]):
            loader = batches(view, rank=rank, with_rows=True, **options)
            given = list(loader)
            assert len(given) == len(loader)
            counts.append(len(given))
            for i, (rows, batch) in enumerate(given):
                assert rows.dtype == np.int64
                assert batch.dtype == dtype
                assert batch.tobytes() == expected[rows].tobytes()
                assert 0 < len(rows) <= options["batch_size"]
                if options["world_size"] == 1 and i < len(given) - 1:
                    assert len(rows) == options["batch_size"]
            got += [rows for rows, _ in given]
        rows = np.concatenate([*got, np.zeros(0, np.int64)])
        if options["shuffle"] is False:
            assert rows.tolist() == view.rows.tolist()
        else:
            assert sorted(rows.tolist()) == sorted(view.rows.tolist())
        if options["batch_size"] > 1 and len(view) >= options["world_size"]:
            assert len(set(counts)) == 1

    check()


@pytest.mark.parametrize("shuffle", MODES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_drop_last_gives_full_batches_and_all_ranks_as_many(
    sites: dict[str, Site], shuffle: Any, world_size: int
) -> None:
    got: list[int] = []
    for rank in range(world_size):
        loader = batches(
            sites["blosc"],
            20,
            shuffle,
            drop_last=True,
            with_rows=True,
            reservoir=50,
            rank=rank,
            world_size=world_size,
        )
        lists = rows_of(loader)
        assert [len(rows) for rows in lists] == [20] * (N // (20 * world_size))
        got += flat(lists)
    assert len(set(got)) == len(got)


def test_in_order_without_rows(sites: dict[str, Site]) -> None:
    site = sites["parts"]
    got = np.concatenate(list(batches(site, 7, dtype="float32")))
    assert got.tobytes() == site.read("float32").tobytes()


def test_row_ids_of_a_site_in_memory() -> None:
    """The rows of a pooled site in memory have example numbers as their row ids."""
    pooled = np.arange(8 * LAYERS * DIM, dtype=np.float32).reshape(8, LAYERS, DIM)
    numbers = np.array([7, 2, 30, 9, 4, 5, 11, 3])
    site = Site(MemoryBackend(pooled, [0, 6, 12], PositionIds(31), numbers))
    for shuffle in MODES:
        got = list(batches(site, 3, shuffle, with_rows=True))
        assert sorted(flat([rows.tolist() for rows, _ in got])) == sorted(numbers)
        for rows, batch in got:
            assert (batch == pooled[[numbers.tolist().index(row) for row in rows]]).all()


def test_an_empty_view_gives_nothing(sites: dict[str, Site]) -> None:
    empty = sites["blosc"].select(rows=slice(0, 0))
    for shuffle in MODES:
        for drop_last in (False, True):
            loader = batches(empty, 5, shuffle, drop_last=drop_last)
            assert (len(loader), list(loader), list(loader)) == (0, [], [])
            assert list(batches(empty, 5, shuffle, drop_last=drop_last, state=loader.state())) == []


def test_each_chunk_is_read_once(sites: dict[str, Site]) -> None:
    """A whole store, in order or shuffled; ``"full"`` reads each chunk once per half reservoir."""
    original = View.read_rows_into
    for shuffle, most in ((False, 1), (True, 1), ("full", 203 // 50 + 1)):
        seen: list[int] = []

        def read(self: View, rows: Any, *rest: Any, seen: list[int] = seen) -> None:
            seen += np.unique(np.asarray(rows) // 4).tolist()
            original(self, rows, *rest)

        with mock.patch.object(View, "read_rows_into", read):
            list(batches(sites["blosc"], 3, shuffle, reservoir=100))
        counts = np.bincount(seen)
        assert counts.min() >= 1
        assert counts.max() <= most


# ---- By seed ----


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_the_order_depends_only_on_seed_epoch_and_reservoir(sites: dict[str, Site], shuffle: Any) -> None:
    def order(seed: int = 3, epoch: int = 1, **options: Any) -> list[list[int]]:
        options = {"reservoir": 40, **options}
        return rows_of(batches(sites["blosc"], 16, shuffle, seed, epoch, with_rows=True, **options))

    first = order()
    assert order(threads=1) == order(threads=2, prefetch=7) == first
    assert order(dtype="float32") == order(device="cpu") == first
    orders = [first, order(seed=4), order(epoch=2), order(seed=2**64 + 3), order(reservoir=80)]
    if shuffle == "full":  # The permutation does not depend on the reservoir.
        assert orders.pop() == first
    assert len({json.dumps(each) for each in orders}) == len(orders)


def test_each_iteration_is_the_next_epoch(sites: dict[str, Site]) -> None:
    def loader(epoch: int = 0) -> Batches:
        return batches(sites["raw"], 50, True, epoch=epoch, with_rows=True, reservoir=60)

    epochs = [rows_of(loader(epoch)) for epoch in range(4)]
    one = loader()
    assert one.epoch == 0
    assert rows_of(one) == epochs[0]
    for rows, _ in one:
        assert rows.tolist() == epochs[1][0]
        break  # An unfinished epoch counts too.
    assert one.epoch == 1
    assert rows_of(one) == epochs[2]
    assert rows_of(one) == epochs[3]
    one.set_epoch(1)
    assert one.epoch == 1
    assert rows_of(one) == epochs[1]
    two = loader()
    assert [(a[0].tolist(), b[0].tolist()) for a, b in zip(two, two, strict=True)] == list(
        zip(epochs[0], epochs[1], strict=True)
    )


# ---- States ----


@pytest.mark.parametrize("shuffle", MODES)
@pytest.mark.parametrize("options", [{}, {"rank": 1, "world_size": 2}, {"drop_last": True}])
def test_resumed_at_every_point(sites: dict[str, Site], shuffle: Any, options: dict[str, int]) -> None:
    site = sites["blosc"].select(layers=6, rows=slice(3, 190))

    def loader(**more: Any) -> Batches:
        return batches(site, 9, shuffle, seed=5, with_rows=True, reservoir=30, **options, **more)

    whole = loader()
    epochs = [[(rows.tolist(), batch.tobytes()) for rows, batch in whole] for _ in range(2)]
    first = loader()
    states = [first.state()]
    for _ in first:
        states.append(first.state())
    states.append(first.state())
    for i, state in enumerate(states):
        assert len(json.dumps(state)) < 500
        again = loader(state=json.loads(json.dumps(state)))
        assert again.state() == state
        rest = [[(rows.tolist(), batch.tobytes()) for rows, batch in again] for _ in range(2)]
        if i < len(states) - 1:
            assert (state["epoch"], state["batch"]) == (0, i)
            assert rest == [epochs[0][i:], epochs[1]]
        else:
            assert (state["epoch"], state["batch"]) == (1, 0)
            assert rest[0] == epochs[1]


def test_each_iterator_has_its_own_state(sites: dict[str, Site]) -> None:
    loader = batches(sites["raw"], 50, True)
    one, two = iter(loader), iter(loader)
    next(one)
    for _ in range(3):
        next(two)
    assert [(s["epoch"], s["batch"]) for s in (one.state(), two.state(), loader.state())] == [
        (0, 1),
        (1, 3),
        (1, 3),
    ]
    one.close()
    two.close()
    assert (loader.state()["epoch"], loader.state()["batch"]) == (1, 3)


def test_a_state_that_does_not_match_is_refused(sites: dict[str, Site], memory_path: Path) -> None:
    site = sites["blosc"]

    def loader(site: Site = site, batch_size: int = 10, shuffle: Any = True, **options: Any) -> Batches:
        return batches(site, batch_size, shuffle, **{"seed": 1, "reservoir": 50, **options})

    state = loader().state()
    grown = actstore.open(write(memory_path / "x", N + 10))["resid"]
    other = write(memory_path / "y")
    rechunked = memory_path / "z"
    spec = actstore.SiteSpec(LAYERS, DIM, "bfloat16", [0, 6, 12], chunk_rows=8, shard_rows=16)
    with actstore.create(rechunked, {"resid": spec}) as w:
        w.append({"resid": actstore.open(other)["resid"].read()}, [N])
    for changed, word in (
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"batch_size": 11}, "batch_size was 10 and is 11"),
        ({"shuffle": "full"}, "shuffle was True and is 'full'"),
        ({"reservoir": 51}, "reservoir was 50 and is 51"),
        ({"drop_last": True}, "drop_last was False"),
        ({"world_size": 2}, "world_size was 1 and is 2"),
        ({"site": grown}, f"rows was {N} and is {N + 10}"),
        ({"site": site.select(layers=[0, 12])}, "sites was .*6.* and is"),
        ({"site": site.select(rows=np.arange(N)[::-1])}, "other rows"),
        ({"site": actstore.open(rechunked)["resid"]}, "other chunks"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=word):
            loader(**changed, state=state)  # type: ignore[arg-type]
    # Arguments that do not affect the order may differ.
    loader(actstore.open(other)["resid"], dtype="float32", threads=1, prefetch=5, epoch=3, state=state)
    # A store that has grown, restricted to its earlier rows.
    ranged = loader(grown.select(rows=slice(0, N)), state=state)
    assert len(list(ranged)) == len(loader())
    for wrong, word in (
        (7, "int"),
        ({}, "it has no epoch"),
        ({**state, "epoch": -1}, "epoch"),
        ({**state, "batch": 1000}, "1000"),
        ({**state, "batch": "1"}, "batch"),
        ({**state, "order": 0}, "order was 0"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=word):
            loader(state=wrong)


def test_pickles(sites: dict[str, Site]) -> None:
    loader = batches(sites["blosc"], 10, True, with_rows=True)
    again = pickle.loads(pickle.dumps(loader))
    assert rows_of(again) == rows_of(loader)


# ---- Bad input ----


def test_bad_input(sites: dict[str, Site]) -> None:
    site = sites["blosc"]
    for wrong, word in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -3}, "batch_size is -3"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"shuffle": "buffer"}, "shuffle is 'buffer'"),
        ({"shuffle": 1}, "shuffle is 1"),
        ({"shuffle": None}, "shuffle is None"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None"),
        ({"epoch": -1}, "epoch is -1"),
        ({"reservoir": 0, "shuffle": True}, "reservoir is 0"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"rank": -1}, "rank is -1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"dtype": "int8"}, "int8"),
        ({"batch_size": N + 1, "drop_last": True}, f"there are {N} rows"),
        ({"batch_size": N // 2 + 1, "drop_last": True, "world_size": 2}, "each of 2 ranks"),
        ({"device": "gpu"}, "gpu"),
        ({"device": object()}, "device"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=word):
            batches(site, **{"batch_size": 10, **wrong})
    assert [len(batch) for batch in batches(site, N + 1)] == [N]
    with pytest.raises(actstore.InvalidInputError, match="epoch is -2"):
        batches(site, 10).set_epoch(-2)
    assert batches(site, np.int32(10)).state()["batch_size"] == 10


def test_a_batch_larger_than_memory(sites: dict[str, Site]) -> None:
    """An error before any allocation, for a view that selects one row millions of times."""
    many = np.zeros(1 << 21, np.int64)
    big = sites["blosc"].select(rows=many)
    with (
        mock.patch("actstore.base.arrays._physical_memory", return_value=1 << 24),
        pytest.raises(actstore.InvalidInputError, match="memory"),
    ):
        next(iter(batches(big, 1 << 21, True)))


def test_repr(sites: dict[str, Site]) -> None:
    loader = batches(sites["blosc"], 10, True, reservoir=50)
    assert "21 of 10 rows, shuffle=True, reservoir=50 rows (1.8 KiB as stored)" in repr(loader)
    assert loader.reservoir == 50
    assert batches(sites["blosc"], 10).reservoir is None
    # The default: 128 MiB, 4 batches or 16 chunks.
    assert batches(sites["blosc"], 10, True).reservoir == (128 << 20) // 36
    assert batches(sites["blosc"], 2_000_000, True).reservoir == 8_000_000
    with mock.patch("actstore.loader.batch_plan._RESERVOIR_BYTES", 36):
        assert batches(sites["blosc"], 10, True).reservoir == 16 * 4


# ---- torch ----


def test_torch_tensors(sites: dict[str, Site]) -> None:
    import torch

    for name, dtype in (("blosc", torch.bfloat16), ("raw", torch.float32), ("half", torch.float16)):
        for batch in batches(sites[name], 64, device="cpu"):
            assert batch.dtype == dtype
            assert batch.device.type == "cpu"
    [rows_and_batch] = list(batches(sites["blosc"], N, "full", device=torch.device("cpu"), with_rows=True))
    rows, batch = rows_and_batch
    expected = sites["blosc"].read()[rows]
    assert batch.view(torch.int16).numpy().tobytes() == expected.tobytes()
    assert next(iter(batches(sites["blosc"], 8, device="meta", dtype="float32"))).shape == (8, LAYERS, DIM)


def test_torch_converts_as_we_do(memory_path: Path) -> None:
    """All bfloat16 and float16 values, and float32 values of all magnitudes."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    single = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    for stored, rows in (
        ("bfloat16", bits.view(DTYPES["bfloat16"])),
        ("float16", bits.view(np.float16)),
        ("float32", single),
    ):
        path = memory_path / stored
        with actstore.create(path, {"x": actstore.SiteSpec(1, 64, stored)}) as w:
            w.append({"x": rows.reshape(-1, 1, 64)}, [1024])
        site = actstore.open(path)["x"]
        for dtype in ("bfloat16", "float16", "float32", "float64"):
            [ours], [theirs] = (
                batches(site, 1024, dtype=dtype),
                batches(site, 1024, dtype=dtype, device="cpu"),
            )
            with np.errstate(invalid="ignore"):  # All NaN bit patterns.
                ours, theirs = ours.astype(np.float64), theirs.double().numpy()
            assert np.array_equal(ours, theirs, equal_nan=True)
            assert (np.signbit(ours) == np.signbit(theirs))[~np.isnan(ours)].all()


def test_without_torch(sites: dict[str, Site]) -> None:
    with (
        mock.patch.dict(sys.modules, {"torch": None}),
        pytest.raises(actstore.InvalidInputError, match="torch") as raised,
    ):
        batches(sites["blosc"], 10, device="cpu")
    assert raised.value.hint == 'pip install "actstore[torch]"'


@pytest.mark.parametrize("index", [None, 1])
def test_cuda_copies_are_non_blocking(sites: dict[str, Site], index: int | None) -> None:
    """The calls of torch, recorded on a machine without CUDA."""
    import torch

    device = "cuda" if index is None else f"cuda:{index}"
    calls: list[dict[str, Any]] = []
    empty, to = torch.empty, torch.Tensor.to

    def allocate(*args: Any, pin_memory: bool, **keywords: Any) -> torch.Tensor:
        assert pin_memory
        return empty(*args, **keywords)

    def move(tensor: torch.Tensor, **keywords: Any) -> torch.Tensor:
        calls.append(keywords)
        return to(tensor, dtype=keywords["dtype"])

    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.empty", allocate),
        mock.patch("torch.Tensor.to", move),
    ):
        got = list(batches(sites["blosc"], 100, dtype="float32", device=device))
    assert calls == [{"device": device, "dtype": torch.float32, "non_blocking": True}] * 3
    assert torch.cat(got).numpy().tobytes() == sites["blosc"].read("float32").tobytes()
    if not torch.cuda.is_available():
        with pytest.raises(actstore.InvalidInputError, match="no CUDA device"):
            batches(sites["blosc"], 100, device=device)


# ---- Memory ----


def feed_much(tell: Tell, path: Path) -> dict[str, int]:
    """The peak of anonymous memory during the block, above the level before it."""
    site = actstore.open(path)["resid"]
    peaks = {}
    for shuffle in (False, True):
        tell(str(shuffle))
        peak, before = 0, anonymous_memory()
        for batch in batches(site, 1024, shuffle):
            peak = max(peak, anonymous_memory() - before)
            assert batch.shape[1:] == (1, 2048)
        peaks[str(shuffle)] = peak
    return peaks


@pytest.mark.slow
def test_memory_is_the_reservoir(memory_path: Path) -> None:
    """A store of 750 MiB, in batches of 4 MiB."""
    rows = np.random.default_rng(0).normal(size=(12_000, 1, 2048)).astype(DTYPES["bfloat16"])
    with actstore.create(memory_path / "x", {"resid": actstore.SiteSpec(1, 2048, "bfloat16")}) as w:
        for _ in range(16):
            w.append({"resid": rows}, [len(rows)])
    peaks = in_child(feed_much, memory_path / "x", room=64 << 30)
    assert peaks["False"] < 80 << 20
    assert 128 << 20 < peaks["True"] < (128 + 16 + 50) << 20
