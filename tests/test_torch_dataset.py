"""The torch dataset: each row once over ranks and workers; epochs, states, columns.

Most tests simulate the workers in this process; a few slow ones start real workers. More than 600 lines: all
of them compare the same few datasets with one oracle.
"""

import contextlib
import gc
import itertools
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import actstore
import numpy as np
import pytest
import torch
from actstore.loader.batches import batches
from actstore.loader.torch_dataset import TorchDataset, sites_of, torch_dataset
from actstore.site import Site
from builders import put, shard_path, values
from children import LIMIT
from torch.utils.data import DataLoader

MODES = [False, True, "full"]
N, LAYERS, DIM = 103, 2, 4
LENGTHS = [40, 0, 50, 13]


def write(path: Path, **more: actstore.SiteSpec) -> Path:
    specs = {"resid": actstore.SiteSpec(LAYERS, DIM, "bfloat16", chunk_rows=4, shard_rows=16), **more}
    with actstore.create(path, specs) as w:
        acts = {
            name: values(i, 0, N, spec.n_layers, spec.dim, spec.dtype)
            for i, (name, spec) in enumerate(specs.items())
        }
        tokens = {
            "id": np.arange(N) * 7,
            "special": np.arange(N) % 5 == 0,
            "weight": values(9, 0, N, 1, 1, "bfloat16").ravel(),
        }
        columns = {"label": ["a", "b", "c", "d"], "score": [0.5, 1.5, 2.5, 3.5]}
        w.append(acts, LENGTHS, ["w", "x", "y", "z"], tokens, columns)
    return path


@pytest.fixture(scope="module")
def store(memory_folder: Path) -> Iterator[actstore.Store]:
    mlp = actstore.SiteSpec(1, 6, "float32", chunk_rows=16, shard_rows=32)
    pooled = memory_folder / "torch.act"
    with actstore.open(write(pooled, mlp=mlp)) as opened:
        yield opened


@pytest.fixture
def site(store: actstore.Store) -> Site:
    return store["resid"]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    if threads():
        gc.collect()
    assert threads() == []


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("actstore")]


def make(site: Any, batch_size: int = 5, shuffle: Any = True, **options: Any) -> TorchDataset:
    return torch_dataset(site, batch_size, shuffle, **{"reservoir": 30, "columns": [], **options})


def rows_of(batches: Any) -> list[list[int]]:
    return [batch["rows"].tolist() for batch in batches]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


@contextlib.contextmanager
def as_worker(number: int, n_workers: int, seed: int = 1000) -> Iterator[None]:
    """Make this process look like a worker of a DataLoader."""
    info = SimpleNamespace(id=number, num_workers=n_workers, seed=seed + number)
    with mock.patch("actstore.loader.torch_dataset.get_worker_info", return_value=info):
        yield


class Loader:
    """Simulates the workers of a DataLoader: copies of the dataset in this process, iterated in turn."""

    def __init__(self, dataset: TorchDataset, n_workers: int, persistent: bool = False) -> None:
        self.dataset, self.n_workers, self.persistent = dataset, n_workers, persistent
        self.copies: list[TorchDataset] = []
        self.seeds = itertools.count(10)

    def __iter__(self) -> Iterator[Any]:
        if not (self.persistent and self.copies):
            self.copies = [pickle.loads(pickle.dumps(self.dataset)) for _ in range(self.n_workers)]
            self.seed = next(self.seeds)
        turns = []
        for number, each in enumerate(self.copies):
            with as_worker(number, self.n_workers, self.seed):
                turns.append(iter(each))
        left = dict(enumerate(turns))
        while left:
            for number, turn in list(left.items()):
                with as_worker(number, self.n_workers, self.seed):
                    try:
                        batch = next(turn)
                    except StopIteration:
                        del left[number]
                        continue
                yield batch


# ---- Each row once ----


@pytest.mark.parametrize("shuffle", MODES)
@pytest.mark.parametrize("n_workers", [0, 1, 2, 3, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_row_once(site: Site, shuffle: Any, n_workers: int, world_size: int) -> None:
    expected = site.read()
    for batch_size in (7, 33, 200):
        got, counts = [], []
        for rank in range(world_size):
            dataset = make(site, batch_size, shuffle, rank=rank, world_size=world_size)
            given = list(Loader(dataset, n_workers) if n_workers else dataset)
            assert len(given) == len(dataset)
            counts.append(len(given))
            for batch in given:
                rows, resid = batch["rows"], batch["resid"]
                assert rows.dtype == torch.int64
                assert resid.dtype == torch.bfloat16
                assert resid.view(torch.int16).numpy().tobytes() == expected[rows.numpy()].tobytes()
            got += flat(rows_of(given))
        assert sorted(got) == list(range(N))
        assert len(set(counts)) == 1


def test_without_workers_it_equals_batches(site: Site) -> None:
    for options in ({}, {"shuffle": True, "seed": 4}, {"shuffle": "full", "drop_last": True}):
        expected = list(batches(site, 10, **options, device="cpu"))  # type: ignore[arg-type]
        got = list(torch_dataset(site, 10, **options))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    wide = next(iter(torch_dataset(site, N, dtype=torch.float32)))
    assert torch.equal(wide, torch.from_numpy(site.read("float32")))


def test_workers_are_reproducible_and_share_the_cores(site: Site) -> None:
    first, again = (rows_of(Loader(make(site), 2)) for _ in range(2))
    assert first == again
    assert rows_of(Loader(make(site, seed=1), 2)) != first
    dataset = make(site)
    with as_worker(0, 2), mock.patch("actstore.loader.torch_dataset._cores", return_value=12):
        assert dataset.plan().threads == 6
    with as_worker(0, 200):
        assert dataset.plan().threads == 1
    assert make(site, threads=3).plan().threads == 3


# ---- Epochs ----


@pytest.mark.parametrize(("n_workers", "persistent"), [(0, False), (2, False), (2, True), (3, False)])
def test_each_iteration_is_the_next_epoch(site: Site, n_workers: int, persistent: bool) -> None:
    def loader(dataset: TorchDataset) -> Any:
        return Loader(dataset, n_workers, persistent) if n_workers else dataset

    def epoch(number: int) -> list[list[int]]:
        dataset = make(site)
        dataset.set_epoch(number)
        return rows_of(loader(dataset))

    epochs = [epoch(i) for i in range(4)]
    assert len({json.dumps(each) for each in epochs}) == 4
    dataset = make(site)
    batches = loader(dataset)
    assert rows_of(batches) == epochs[0]
    assert rows_of(batches) == epochs[1]
    for batch in batches:  # An unfinished epoch counts.
        assert batch["rows"].tolist() == epochs[2][0]
        break
    assert rows_of(batches) == epochs[3]
    dataset.set_epoch(1)
    assert rows_of(batches) == epochs[1]
    assert rows_of(batches) == epochs[2]
    assert rows_of(loader(dataset)) == epochs[3]
    for done in (0, 1, 2, 9, 20, 21):
        dataset.set_epoch(1, batch=done)
        assert rows_of(batches) == epochs[1][done:]
        assert rows_of(batches) == epochs[2]


def test_a_late_worker_stays_in_its_iteration(site: Site) -> None:
    """The first of two iterations is abandoned before its second worker has begun."""
    dataset = make(site)
    expected = rows_of(Loader(make(site), 2))
    one, two = pickle.loads(pickle.dumps(dataset)), pickle.loads(pickle.dumps(dataset))
    with as_worker(0, 2, seed=5):
        early = iter(one)
        assert next(early)["rows"].tolist() == expected[0]
    with as_worker(0, 2, seed=77):  # Another iteration.
        another = iter(pickle.loads(pickle.dumps(dataset)))
        assert next(another)["rows"].tolist() != expected[0]
    with as_worker(1, 2, seed=5):
        late = iter(two)
        assert next(late)["rows"].tolist() == expected[1]
    for each in (early, another, late):
        each.close()
    # An iterator without any next() takes no epoch.
    iter(dataset)
    assert dataset.epochs.peek(None) == (2, 0)


def test_the_same_torch_seed_for_each_epoch_needs_set_epoch(site: Site) -> None:
    dataset = make(site)
    loader = Loader(dataset, 2)
    loader.seeds = itertools.repeat(3)  # type: ignore[assignment]
    first = rows_of(loader)
    assert rows_of(loader) == first
    dataset.set_epoch(1)
    second = rows_of(loader)
    assert second != first
    dataset.set_epoch(0)
    assert rows_of(loader) == first


def test_the_epoch_file_is_deleted_with_the_dataset(site: Site) -> None:
    dataset = make(site)
    path = dataset.epochs.path
    twin = pickle.loads(pickle.dumps(dataset))
    assert twin.epochs.path == path
    data = pickle.dumps(dataset)
    dataset.set_epoch(4)
    assert twin.state_dict()["epoch"] == 4
    del twin
    assert os.path.exists(path)
    twin = pickle.loads(pickle.dumps(dataset))
    del dataset
    gc.collect()
    assert not os.path.exists(path)
    assert twin.state_dict()["epoch"] == 4  # It creates a file of its own.
    elsewhere = pickle.loads(data)  # The file is gone, as on another machine.
    assert rows_of(elsewhere) == rows_of(make(site))
    assert not {path} & {twin.epochs.path, elsewhere.epochs.path}


# ---- States ----


@pytest.mark.parametrize("shuffle", MODES)
def test_resumed_at_every_point(site: Site, shuffle: Any) -> None:
    whole = make(site, 9, shuffle)
    epochs = [rows_of(whole) for _ in range(2)]
    first = make(site, 9, shuffle)
    states = [first.state_dict()]
    for _ in first:
        states.append(first.state_dict())
    states.append(first.state_dict())
    for i, state in enumerate(states):
        again = make(site, 9, shuffle)
        again.load_state_dict(json.loads(json.dumps(state)))
        assert again.state_dict() == state
        if i < len(states) - 1:
            assert rows_of(again) == epochs[0][i:]
        assert rows_of(again) == epochs[1]


@pytest.mark.parametrize("done", range(6))
def test_each_worker_has_a_state(site: Site, done: int) -> None:
    """States are saved and loaded in the workers, as by StatefulDataLoader."""
    dataset = make(site, 10)
    whole: list[list[list[int]]] = []
    for number in range(2):
        with as_worker(number, 2):
            worker = pickle.loads(pickle.dumps(dataset))
            whole.append(rows_of(worker))
    dataset = make(site, 10)
    for number in range(2):
        with as_worker(number, 2):
            worker = pickle.loads(pickle.dumps(dataset))
            iterator = iter(worker)
            assert rows_of(itertools.islice(iterator, done)) == whole[number][:done]
            state = json.loads(json.dumps(worker.state_dict()))
            del iterator
    dataset = make(site, 10)
    for number in range(2):
        with as_worker(number, 2, seed=5):
            worker = pickle.loads(pickle.dumps(dataset))
            worker.load_state_dict({**state, "worker": number})
            assert worker.state_dict() == {**state, "worker": number}
            assert rows_of(worker) == whole[number][done:]
            # It stays in its epoch: other workers may not have finished theirs.
            assert (worker.state_dict()["epoch"], worker.state_dict()["batch"]) == (0, len(whole[number]))


def test_a_state_that_does_not_match_is_refused(site: Site) -> None:
    state = make(site).state_dict()
    for other, word in (
        (make(site, 6), "batch_size was 5 and is 6"),
        (make(site, seed=3), "seed was 0 and is 3"),
        (make(site, rank=1, world_size=2), "rank was 0 and is 1"),
        (make(site.select(rows=slice(0, 50))), "rows was 103 and is 50"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=word):
            other.load_state_dict(state)
    with as_worker(0, 2), pytest.raises(actstore.InvalidInputError, match="n_workers was 1 and is 2"):
        make(site).load_state_dict(state)


def test_state_dict_needs_the_workers_states(site: Site) -> None:
    dataset = make(site)
    rows_of(Loader(dataset, 2))
    with pytest.raises(actstore.InvalidInputError, match="workers") as raised:
        dataset.state_dict()
    assert "set_epoch" in str(raised.value.hint)
    dataset.set_epoch(3, batch=2)
    state = dataset.state_dict()
    assert (state["epoch"], state["batch"]) == (3, 2)


# ---- Columns and sites ----


def test_columns(store: actstore.Store) -> None:
    names = ["id", "special", "weight", "label", "score"]
    view = store["resid"].select(layers=1, rows=np.r_[90:20:-3, 5])
    got = list(torch_dataset(view, 7, True, columns=names))
    assert [list(batch) for batch in got] == [["resid", "rows", *names]] * len(got)
    examples = np.repeat(np.arange(4), LENGTHS)
    for batch in got:
        rows = batch["rows"].numpy()
        assert batch["resid"].shape == (len(rows), 1, DIM)
        assert batch["id"].tolist() == (rows * 7).tolist()
        assert batch["id"].dtype == torch.int64
        assert batch["special"].tolist() == (rows % 5 == 0).tolist()
        weights = store.tokens["weight"][rows]
        assert batch["weight"].dtype == torch.bfloat16
        assert batch["weight"].float().tolist() == weights.astype(np.float32).tolist()
        assert batch["label"] == [store.examples["label"][i] for i in examples[rows]]
        assert batch["score"].tolist() == store.examples["score"][examples[rows]].tolist()
    assert sorted(flat(rows_of(got))) == sorted(view.rows.tolist())
    assert isinstance(next(iter(torch_dataset(view, 7))), torch.Tensor)


def test_several_sites_in_a_batch(store: actstore.Store) -> None:
    pair = sites_of(store, ["mlp", "resid"])
    got = list(torch_dataset(pair, 20, True, reservoir=40))
    for batch in got:
        rows = batch["rows"].numpy()
        assert list(batch) == ["mlp", "resid", "rows"]
        assert (batch["mlp"].numpy() == store["mlp"].read()[rows]).all()
        assert (batch["resid"].float().numpy() == store["resid"].read("float32")[rows]).all()
    assert sorted(flat(rows_of(got))) == list(range(N))
    resid = store["resid"]
    layered = {"in": resid.select(layers=0), "out": resid.select(layers=1)}
    for batch in torch_dataset(layered, 50, "full", columns=["id"]):
        both = resid.read("float32")[batch["rows"].numpy()]
        assert (batch["in"].float().numpy() == both[:, :1]).all()
        assert (batch["out"].float().numpy() == both[:, 1:]).all()


def test_sites_of_a_store(store: actstore.Store, memory_path: Path) -> None:
    assert sites_of(store, "mlp").name == "mlp"  # type: ignore[union-attr]
    with pytest.raises(actstore.InvalidInputError, match="2 sites: resid, mlp") as raised:
        sites_of(store, None)
    assert "sites=" in str(raised.value.hint)
    with pytest.raises(actstore.NotFoundError):
        sites_of(store, ["resid", "q"])
    assert sites_of(actstore.open(write(memory_path / "x")), None).name == "resid"  # type: ignore[union-attr]


# ---- Ranks ----


def test_the_rank_comes_from_torch_distributed_or_the_environment(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(site)
    everything = rows_of(dataset)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    expected = rows_of(make(site, rank=1, world_size=2))
    assert rows_of(make(site)) == expected
    dataset.set_epoch(0)
    assert rows_of(dataset) == expected  # The dataset was made before the environment was set.
    assert rows_of(make(site, rank=0, world_size=1)) == everything
    with (
        mock.patch("torch.distributed.is_initialized", return_value=True),
        mock.patch("torch.distributed.get_rank", return_value=2),
        mock.patch("torch.distributed.get_world_size", return_value=3),
    ):
        assert len(make(site)) == 7
        third = make(site)
        assert rows_of(third) == rows_of(make(site, rank=2, world_size=3))
        spawned = pickle.dumps(make(site))
    # A spawned worker has no process group, so the pickle contains the rank.
    assert rows_of(pickle.loads(spawned)) == rows_of(make(site, rank=2, world_size=3))
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(actstore.InvalidInputError, match="RANK"):
        make(site)


# ---- Bad input ----


def test_bad_input(store: actstore.Store, site: Site, memory_path: Path) -> None:
    for options, word in (
        ({"batch_size": 0}, "batch_size"),
        ({"shuffle": "some"}, "shuffle"),
        ({"seed": -1}, "seed"),
        ({"reservoir": 0}, "reservoir"),
        ({"prefetch": 0}, "prefetch"),
        ({"threads": -1}, "threads"),
        ({"dtype": "int32"}, "int32"),
        ({"rank": 1}, "world_size is None"),
        ({"world_size": 2}, "rank is None"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
        ({"columns": "id"}, "columns"),
        ({"columns": ["rows"]}, "'rows'"),
        ({"columns": ["resid"]}, "'resid'"),
        ({"batch_size": 200, "drop_last": True}, "drop_last"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=word):
            make(site, **options)
    with pytest.raises(
        actstore.NotFoundError,
        match=r"no column 'lable'.*special.*'examples' has no column 'lable'.*id, label",
    ):
        make(site, columns=["lable"])
    for sites in ({}, 7, {"x": 7}):
        with pytest.raises(actstore.InvalidInputError, match="expected sites"):
            make(sites)
    with pytest.raises(actstore.InvalidInputError, match="'a' and 'b' differ in their rows"):
        make({"a": site, "b": site.select(rows=slice(0, 50))})
    with pytest.raises(actstore.InvalidInputError, match="another key"):
        make({"rows": site})
    for epoch, batch in ((-1, 0), (0, -1), (0, 22)):
        with pytest.raises(actstore.InvalidInputError):
            make(site).set_epoch(epoch, batch)
    with actstore.open(write(memory_path / "x")) as opened:
        closed = opened["resid"]
        dataset = make(closed)
    with pytest.raises(actstore.StorageError, match="closed"):
        list(dataset)
    with pytest.raises(actstore.StorageError, match="closed"):
        make(closed)


def test_an_empty_view(site: Site) -> None:
    empty = make(site.select(rows=slice(0, 0)))
    assert (len(empty), list(empty), rows_of(Loader(empty, 2))) == (0, [], [])


# ---- Real workers ----


def run(dataset: TorchDataset, n_workers: int, **options: Any) -> DataLoader[Any]:
    timeout = LIMIT if n_workers else 0  # An error instead of a hang.
    return DataLoader(dataset, batch_size=None, num_workers=n_workers, timeout=timeout, **options)


@pytest.fixture
def forks() -> Iterator[None]:
    """Ignore warnings about forking a multithreaded process and about more workers than cores."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        yield


@pytest.mark.usefixtures("forks")
def test_forked_workers(site: Site) -> None:
    dataset = make(site, columns=["id", "label"])
    loader = run(dataset, 2, multiprocessing_context="fork")
    epochs = [list(loader) for _ in range(2)]
    acted = Loader(make(site), 2)
    for epoch in epochs:
        assert rows_of(epoch) == rows_of(acted)
        assert sorted(flat(rows_of(epoch))) == list(range(N))
        for batch in epoch:
            assert batch["id"].tolist() == (batch["rows"] * 7).tolist()
            assert len(batch["label"]) == len(batch["rows"])
    assert len(loader) == len(epochs[0]) == 21


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(
    ("method", "n_workers", "persistent"),
    [
        *itertools.product(["fork"], [1, 2, 3], [False, True]),
        *itertools.product(["spawn"], [2], [False, True]),
        ("forkserver", 2, True),
    ],
)
def test_workers_of_every_kind(site: Site, method: str, n_workers: int, persistent: bool) -> None:
    dataset = make(site)
    options = {"multiprocessing_context": method, "persistent_workers": persistent}
    loader = run(dataset, n_workers, **options)
    acted = [rows_of(loader) for loader in [Loader(make(site), n_workers)] for _ in range(3)]
    assert rows_of(loader) == acted[0]
    if method != "spawn" or persistent:  # Spawned workers take long to start.
        for batch in loader:
            assert batch["rows"].tolist() == acted[1][0]
            break
        gc.collect()
        assert rows_of(loader) == acted[2]
    dataset.set_epoch(1, batch=5)
    assert rows_of(loader) == acted[1][5:]
    assert rows_of(loader) == acted[2]


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("world_size", [2, 3])
def test_workers_of_several_ranks(site: Site, world_size: int) -> None:
    got: list[int] = []
    for rank in range(world_size):
        dataset = make(site, rank=rank, world_size=world_size)
        got += flat(rows_of(run(dataset, 2, multiprocessing_context="fork")))
    assert sorted(got) == list(range(N))


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("n_workers", [0, 1, 2])
def test_damage_reaches_the_loop(memory_path: Path, n_workers: int) -> None:
    path = write(memory_path / "x")
    file = shard_path(path, "resid", 2)
    data = bytearray(file.read_bytes())
    data[90] ^= 1
    put(file, data)
    loader = run(make(actstore.open(path)["resid"]), n_workers)
    with pytest.raises(actstore.FormatError, match="crc32c"):
        list(loader)


@pytest.mark.slow
@pytest.mark.usefixtures("forks")
@pytest.mark.filterwarnings("ignore")  # torchdata's own warnings.
@pytest.mark.parametrize("n_workers", [0, 2])
def test_stateful_data_loader(site: Site, n_workers: int) -> None:
    """Runs only if torchdata is installed."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def loader() -> Any:
        return stateful(make(site), batch_size=None, num_workers=n_workers)

    whole = loader()
    epochs = [rows_of(whole) for _ in range(3)]
    for done in (0, 1, 9, 20, 21):
        first = loader()
        iterator = iter(first)
        for _ in range(done):
            next(iterator)
        state = first.state_dict()
        del iterator, first
        again = loader()
        again.load_state_dict(state)
        assert rows_of(again) == epochs[0][done:]
        assert rows_of(again) == epochs[1]
    ended = loader()
    rows_of(ended)
    again = loader()
    again.load_state_dict(ended.state_dict())
    assert rows_of(again) == epochs[1]


# ---- Imports ----


def test_torch_is_imported_lazily() -> None:
    """torch is imported only when a torch dataset is made."""
    code = "import sys, actstore, actstore.loader.batches; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_torch(memory_path: Path) -> None:
    code = """
import sys
sys.modules["torch"] = None
import actstore
try:
    from actstore.loader.torch_dataset import torch_dataset
except actstore.InvalidInputError as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'pip install "actstore[torch]"'
