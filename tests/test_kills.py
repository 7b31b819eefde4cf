"""Writers killed with SIGKILL, at random moments and at every call by which they change a file."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Literal

import actstore
import pytest
from actstore._native import Reader
from builders import Corpus, files_of_record, files_on_disk, twin
from interposed import KILL_AFTER, KILL_BEFORE, TEAR, Nurseries, Nursery, Order, Outcome, spread, stop_file

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the interposer is Linux's")

ONE = Corpus(codec="blosc")
RAW = Corpus(codec="raw")


def examine(corpus: Corpus, path: Path, outcome: Outcome, others: bool = False) -> int:
    """Asserts all that holds after a kill; the examples that were found."""
    try:
        store = actstore.open(path)
    except actstore.NotFoundError:
        assert outcome.least == 0
        assert not (path / "zarr.json").exists()
        corpus.create(path).close()
        store = actstore.open(path)
    report = store.verify(strict=True)
    assert report.damaged == []
    found = corpus.check(store)
    assert found >= outcome.least
    assert found in outcome.allowed
    if others:
        corpus.check_with_zarr(path)
        corpus.check_with_tensorstore(path)

    # A kept view of the committed prefix outlives what the next writer does.
    with actstore.append(path) as writer:
        assert writer.n_examples == found
        corpus.append(writer, 3)
    assert corpus.check(store) == found
    store.close()
    with actstore.open(path) as store:
        assert corpus.check(store) == found + 3
        report = store.verify(strict=True)
        assert report.damaged == report.leftovers == []
    assert files_on_disk(path) == files_of_record(path)
    if others:
        corpus.check_with_zarr(path)
        corpus.check_with_tensorstore(path)
    return found


def base_for(task: str, corpus: Corpus, folder: Path) -> Path | None:
    """The store that a task begins with."""
    if task in ("create", "first_commit"):
        return None
    commits = {"add_columns": (), "compact": (4, 1, 9, 2)}.get(task, (4, 1))
    return corpus.build(folder / "base.act", *commits)


def kill_everywhere(
    nurseries: Nurseries, corpus: Corpus, folder: Path, task: str, mode: int, every: int, base: Path | None
) -> None:
    """Kills a task at each `every`-th call, and looks at what is left."""

    def copy(name: str) -> Path:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path if base is None else twin(base, path)

    n_calls = nurseries[0].run(task, corpus, copy("0.act"), Order()).calls
    assert n_calls > 0

    def kill_at(nursery: Nursery, name: str, at: int) -> None:
        path = copy(name)
        outcome = nursery.run(task, corpus, path, Order(mode, at))
        # Threads may share their work differently and come with a call less.
        assert outcome.killed or at > 0.9 * n_calls
        try:
            examine(corpus, path, outcome, others=at % 20 == 0)
        except BaseException as error:
            error.add_note(f"{task} killed at call {at} of {n_calls}, mode {mode}, {corpus.codec}")
            raise

    spread(nurseries, range(n_calls, 0, -every), kill_at)


TASKS = ["create", "first_commit", "add_columns", "grow", "cross", "compact", "recover", "close", "abort"]


@pytest.mark.parametrize("task", TASKS)
def test_kill_at_some_calls(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    base = base_for(task, ONE, memory_path)
    kill_everywhere(nurseries, ONE, memory_path, task, KILL_AFTER, 37, base)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task != "abort"])
def test_kill_after_each_call(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    kill_everywhere(nurseries, ONE, memory_path, task, KILL_AFTER, 1, base_for(task, ONE, memory_path))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_kill_within_calls(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    """Half of what is being written gets through."""
    kill_everywhere(nurseries, RAW, memory_path, task, TEAR, 3, base_for(task, RAW, memory_path))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["cross", "compact", "grow", "add_columns"])
def test_kill_while_recovering_from_a_kill(nurseries: Nurseries, memory_path: Path, first: str) -> None:
    base = base_for(first, ONE, memory_path)
    assert base is not None
    path = memory_path / "killed.act"
    twin(base, path)
    n_calls = nurseries[0].run(first, ONE, path, Order()).calls
    for at in range(n_calls, 0, -max(1, n_calls // 12)):
        twin(base, path)
        nurseries[0].run(first, ONE, path, Order(KILL_AFTER, at))
        kill_everywhere(nurseries, ONE, memory_path, "recover", KILL_AFTER, 3, path)


def test_attributes_are_those_of_a_commit(nurseries: Nurseries, memory_path: Path) -> None:
    """Two commits that change the root's attributes, killed at every call.

    The record has the truth, and the next writer brings the root up to date.
    """
    base = ONE.build(memory_path / "base.act", 4, 1)
    path = memory_path / "x.act"
    n_calls = nurseries[0].run("extend", ONE, twin(base, path), Order()).calls
    seen = Counter[tuple[object, object]]()
    for at in range(1, n_calls + 1):
        outcome = nurseries[0].run("extend", ONE, twin(base, path), Order(KILL_AFTER, at))
        assert outcome.killed
        truth = json.loads(Reader(str(path)).attributes)
        copy = json.loads((path / "zarr.json").read_text())["attributes"]
        seen[copy.get("extended"), truth.get("extended")] += 1
        assert truth.get("extended") in (copy.get("extended"), 1 if "extended" in copy else 0)
        assert examine(ONE, path, outcome) == 5
        assert json.loads(Reader(str(path)).attributes) == truth
        assert json.loads((path / "zarr.json").read_text())["attributes"] == truth
        assert (path / "artifacts/zarr.json").exists() == (truth.get("extended") == 1)
    assert {(None, None), (None, 0), (0, 0), (0, 1), (1, 1)} == set(seen)


def test_columns_that_were_never_committed_are_not_in_the_way(
    nurseries: Nurseries, memory_path: Path
) -> None:
    base = ONE.build(memory_path / "base.act")
    path = memory_path / "x.act"
    for at in range(120, 0, -17):
        twin(base, path)
        outcome = nurseries[0].run("add_columns", ONE, path, Order(KILL_AFTER, at))
        assert outcome.killed
        with actstore.append(path) as writer:
            if writer.n_examples:
                break
            ONE.append(writer, 4, columns=False)
        with actstore.open(path) as store:
            assert ONE.check(store, columns=False) == 4
            assert list(store.examples) == ["id"]
            assert list(store.tokens) == []
        assert files_on_disk(path) == files_of_record(path)


LIVES = [
    "create",
    "first_commit",
    "add_columns",
    "grow",
    "cross",
    "compact",
    "derive",
    "close",
    "overwrite",
    "story",
]


@pytest.mark.slow
def test_a_thousand_kills(
    nurseries: Nurseries, memory_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short stores, many kills: of every kind of writer, at calls drawn at random, before, after and within
    them; now and then the next writer is killed as well."""
    rng = random.Random(12)
    corpora = [ONE, RAW, Corpus(several=True), Corpus(several=True, codec="raw")]
    bases: dict[tuple[int, str], Path | None] = {}
    calls: dict[tuple[int, str], int] = {}
    for which, corpus in enumerate(corpora):
        for task in LIVES:
            folder = memory_path / f"{which}-{task}"
            folder.mkdir()
            begins = task in ("create", "first_commit", "story")
            bases[which, task] = base = None if begins else base_for(task, corpus, folder)
            path = folder / "counted.act"
            calls[which, task] = (
                nurseries[0].run(task, corpus, path if base is None else twin(base, path), Order()).calls
            )
    figures: Counter[str] = Counter()

    def killed(outcome: Outcome) -> bool:
        figures["kills"] += outcome.killed
        figures["a commit had returned"] += outcome.killed and outcome.least > 0
        return outcome.killed

    def kill(nursery: Nursery, name: str, drawn: tuple[int, str, int, int, bool, int]) -> None:
        which, task, mode, at, twice, again = drawn
        corpus, base = corpora[which], bases[which, task]
        path = memory_path / name
        shutil.rmtree(path, ignore_errors=True)
        if base is not None:
            twin(base, path)
        outcome = nursery.run(task, corpus, path, Order(mode, at))
        if task == "derive":  # It commits no examples, and loses none.
            outcome.said.append(("is", actstore.open(base).n_examples))
        figures[task] += killed(outcome)
        if twice and (path / "zarr.json").exists():
            said = outcome.said
            outcome = nursery.run("recover", corpus, path, Order(KILL_AFTER, again))
            figures["recover"] += killed(outcome)
            outcome.said.extend(said)
        try:
            figures["a commit stood that had not yet returned"] += (
                examine(corpus, path, outcome) > outcome.least
            )
        except BaseException as error:
            error.add_note(f"{drawn}")
            raise
        for left in path.parent.glob(f".{name}.new-*"):
            shutil.rmtree(left)

    def draw() -> tuple[int, str, int, int, bool, int]:
        which, task = rng.randrange(len(corpora)), rng.choice(LIVES)
        mode = rng.choice([KILL_BEFORE, KILL_AFTER, TEAR])
        at = rng.randint(1, calls[which, task])
        return which, task, mode, at, rng.random() < 0.3, rng.randint(1, 20)

    spread(nurseries, [draw() for _ in range(940)], kill)
    with capsys.disabled():
        print(
            "\n"
            + ", ".join(f"{name}: {n:,}" for name, n in sorted(figures.items(), key=lambda item: -item[1]))
        )
    assert figures["kills"] >= 1000
    assert all(figures[task] > 30 for task in LIVES)


def wander(corpus: Corpus, folder: Path, n_kills: int, seed: int) -> None:
    """Kills writers of one store at random moments, while others read it."""
    rng = random.Random(seed)
    path = folder / "x.act"
    corpus.build(path, 3)
    writers, readers = Nursery(), [Nursery() for _ in range(3)]
    try:
        pids = [
            nursery.start(task, corpus, path, seed=seed)
            for nursery, task in zip(readers, ["read_anew", "read_kept", "read_refreshed"], strict=True)
        ]
        found = 3
        n_fruitful = 0
        for i in range(n_kills):
            pid = writers.start("wander", corpus, path, seed=rng.getrandbits(32))
            # Counted in what it does, so that a slow machine sees as much of it.
            writers.wait_for_words(rng.randrange(10))
            time.sleep(rng.uniform(0, 0.02))
            with contextlib.suppress(ProcessLookupError):  # Now and then it kills itself.
                os.kill(pid, signal.SIGKILL)
            outcome = writers.wait(pid)
            assert outcome.killed
            outcome.said.append(("is", found))
            n_fruitful += outcome.least > found
            found = examine(corpus, path, outcome, others=i % 10 == 0) + 3
        stop_file(path).touch()
        for nursery, pid in zip(readers, pids, strict=True):
            assert dict(nursery.wait(pid).said)["reads"] > 0
    finally:
        for nursery in (writers, *readers):
            nursery.end()
    assert n_fruitful > n_kills / 4


def test_killed_at_random(memory_path: Path) -> None:
    wander(Corpus(several=True), memory_path, 12, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize("several", [True, False])
def test_killed_at_random_often(
    memory_path: Path, several: bool, codec: Literal["blosc", "raw"], seed: int
) -> None:
    wander(Corpus(several, codec), memory_path, 13, seed)
