"""One capture by several processes: each writes a part, and the folder is the whole in the input's order."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from children import LIMIT

pytest.importorskip("transformers")

from capture_cases import CASES, bert, contents, of_text, ready_batches, texts, vit
from capture_nursery import FAILED, nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked")

N = 100


def assert_close(path: Path, expected: Path) -> None:
    """Asserts equal ids and columns, and rows that differ by what other batches make of them."""
    ours, theirs = contents(path), contents(expected)
    assert sorted(ours) == sorted(theirs)
    with actstore.open(path) as store, actstore.open(expected) as whole:
        for name in ours:
            if name not in store.sites:
                assert ours[name] == theirs[name], name
                continue
            assert store[name].shape == whole[name].shape
            assert store[name].dtype == whole[name].dtype
            assert store[name].layers == whole[name].layers
            rows, other = (one[name].read(dtype="float32") for one in (store, whole))
            np.testing.assert_allclose(rows, other, atol=1e-5 if store[name].dtype == np.float32 else 0.05)


def at_once(path: Path, world: int, job: str = "part", **more: Any) -> None:
    """All processes of a capture, at the same time."""
    children = [nursery().start(job, path, rank=rank, world=world, **more) for rank in range(world)]
    for child in children:
        assert child.wait() == 0, child.said


@pytest.mark.parametrize(("world", "case"), [(2, "tokens"), (3, "tokens"), (2, "ready"), (2, "two axes")])
def test_parts_of_a_list(memory_path: Path, world: int, case: str) -> None:
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    at_once(path, world, case=case, n=N)
    nursery().run("slowly", whole, case=case, n=N)
    assert sorted(os.listdir(path)) == [f"part-{rank:05d}-of-{world:05d}" for rank in range(world)]
    assert_close(path, whole)


def test_parts_of_an_iterator(memory_path: Path) -> None:
    """Dealt out one by one; ids are places in the whole input."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    at_once(path, 3, "dealt", case="mean", n=N)
    nursery().run("slowly", whole, case="mean", n=N)
    with actstore.open(path) as store, actstore.open(whole) as one:
        ids = store.examples["id"].tolist()
        assert ids == [str(i) for rank in range(3) for i in range(rank, N, 3)]
        rows, other = store["resid"].read(), one["resid"].read()
        np.testing.assert_allclose(rows, other[[int(name) for name in ids]], atol=1e-5)
    for rank in range(3):
        with actstore.open(path / f"part-{rank:05d}-of-00003") as part:
            assert part.examples["id"].tolist() == [str(i) for i in range(rank, N, 3)]


def test_one_part_is_killed_and_resumed(memory_path: Path) -> None:
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    children = [
        nursery().start("part", path, rank=rank, world=2, case="tokens", n=N, pause=0.003)
        for rank in range(2)
    ]
    children[1].wait_for_ticks(8)
    children[1].send(signal.SIGKILL)
    assert children[0].wait() == 0
    assert children[1].wait() == -signal.SIGKILL
    nursery().run("slowly", whole, case="tokens", n=N)
    assert contents(path / "part-00000-of-00002")["n_examples"] == N // 2
    at_once(path, 2, case="tokens", n=N)
    assert_close(path, whole)


@pytest.mark.slow
def test_parts_are_killed_again_and_again(memory_path: Path) -> None:
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    nursery().run("slowly", whole, case="tokens", n=N)
    rng = random.Random(0)
    for _ in range(10):
        more = {"case": "tokens", "n": N, "pause": 0.004}
        children = [nursery().start("part", path, rank=rank, world=3, **more) for rank in range(3)]
        time.sleep(rng.uniform(0.1, 0.5))
        for child in children:
            child.send(signal.SIGKILL)
            assert child.wait() in (0, -signal.SIGKILL)
    at_once(path, 3, case="tokens", n=N)
    assert_close(path, whole)


def test_a_missing_part_is_seen(memory_path: Path) -> None:
    """A whole of which a part was never written, or not to its end, must not pass for the whole."""
    path = memory_path / "x.act"
    for rank in (0, 2):
        nursery().run("part", path, rank=rank, world=3, case="mean", n=N)
    try:
        with actstore.open(path) as store:
            shown = f"{store!r} {store.info()}"
    except (actstore.ActstoreError, Warning) as error:
        shown = str(error)
    assert re.search(r"2 of 3|part 1\b|part-00001-of-00003|missing", shown), shown


def test_parts_of_two_runs_are_seen(memory_path: Path) -> None:
    """Another number of processes at the same path."""
    path = memory_path / "x.act"
    at_once(path, 2, case="mean", n=N)
    child = nursery().start("part", path, rank=0, world=3, case="mean", n=N)
    child.wait()
    with pytest.raises(actstore.ActstoreError, match="part"):
        actstore.open(path)


def test_parts_within_a_store(memory_path: Path) -> None:
    """`open` would see the store and not the parts."""
    path = memory_path / "x.act"
    nursery().run("slowly", path, case="mean", n=10)
    assert nursery().start("part", path, rank=0, world=2, case="mean", n=10).wait() == FAILED


def test_a_store_among_parts(memory_path: Path) -> None:
    at_once(memory_path / "y.act", 2, case="mean", n=10)
    assert nursery().start("slowly", memory_path / "y.act", case="mean", n=10).wait() == FAILED
    assert contents(memory_path / "y.act")["n_examples"] == 10


def test_two_processes_on_one_part(memory_path: Path) -> None:
    path = memory_path / "x.act"
    more = {"rank": 1, "world": 2, "case": "tokens", "n": N}
    first = nursery().start("part", path, pause=0.02, **more)
    assert first.wait_for_ticks(5)
    second = nursery().start("part", path, **more)
    assert second.wait() == FAILED
    assert f"part-00001-of-00002 is being written by process {first.pid}" in second.said
    assert first.wait() == 0, first.said


@pytest.mark.parametrize("case", ["mean", "tokens", "ready", "images"])
def test_more_processes_than_inputs(memory_path: Path, case: str) -> None:
    """Some have nothing to do, and say nothing."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    at_once(path, 3, case=case, n=1)
    nursery().run("slowly", whole, case=case, n=1)
    assert_close(path, whole)


def test_the_environment(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = of_text(bert(), texts=texts(10))
    for environment, words in (
        ({"RANK": "2", "WORLD_SIZE": "2"}, "part 2 of 2"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "part -1 of 2"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE"),
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(actstore.InvalidInputError, match=words):
            actstore.capture(memory_path / "x.act", **arguments)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    actstore.capture(memory_path / "one.act", **arguments).close()
    assert (memory_path / "one.act" / "zarr.json").exists()


def test_a_world_without_a_rank(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process would take itself for the first."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(actstore.InvalidInputError, match="RANK"):
        actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(10)))


def test_parts_by_hand(memory_path: Path) -> None:
    """`part=` goes before the environment; ready batches and images are cut as texts are."""
    path = memory_path / "x.act"
    for rank in range(2):
        with actstore.capture(path, **of_text(bert(), texts=texts(11)), part=(rank, 2)) as store:
            assert store.n_examples == (5, 6)[rank]
    with actstore.open(path) as store:
        assert store.examples["id"].tolist() == [str(i) for i in range(11)]
    rng = np.random.default_rng(0)
    images = list(rng.standard_normal((5, 3, 16, 16)).astype(np.float32))
    for rank in range(2):
        actstore.capture(memory_path / "i", vit(), images, part=(rank, 2), progress=False).close()
    with actstore.open(memory_path / "i") as store:
        assert store.examples["id"].tolist() == list("01234")
    total = sum(len(one["input_ids"]) for one in ready_batches(20))
    assert total == 20


TORCHRUN = """
import sys
sys.path.insert(0, sys.argv[2])
from capture_cases import CASES
import actstore
actstore.capture(sys.argv[1], **CASES["tokens"](60)).close()
"""


@pytest.mark.slow
def test_torchrun(memory_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=env,
    )
    assert done.returncode == 0, done.stderr
    actstore.capture(whole, **CASES["tokens"](60)).close()
    assert_close(path, whole)
