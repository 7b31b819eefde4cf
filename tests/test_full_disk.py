"""No room: an append or a commit fails, nothing committed is lost, and the writer goes on with more room."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import actstore
import numpy as np
import pytest
from builders import Corpus, files_of_record, files_on_disk, rows_in_metadata, rows_in_record, twin
from children import LIMIT
from interposed import FAIL, KILL_AFTER, Nurseries, Nursery, Order, spread

ONE = Corpus()
FOR_EVER = 1 << 40


def fail_everywhere(
    nurseries: Nurseries, corpus: Corpus, folder: Path, task: str, every: int, error: int = errno.ENOSPC
) -> None:
    """Lets each `every`-th call of a task fail, alone and with all that follow."""
    base = folder / "base.act"
    if task != "full_create":
        corpus.build(base, 4, 1, 9, 2)
    if task == "full_open":
        before = nurseries[0].run("cross", corpus, base, Order()).calls
        shutil.rmtree(base)
        corpus.build(base, 4, 1, 9, 2)
        assert nurseries[0].run("cross", corpus, base, Order(KILL_AFTER, before * 3 // 4)).killed

    def run(nursery: Nursery, name: str, order: Order) -> list[tuple[str, int]]:
        path = folder / name
        shutil.rmtree(path, ignore_errors=True)
        if base.exists():
            twin(base, path)
        return nursery.run(task, corpus, path, order).said

    n_calls = dict(run(nurseries[0], "0.act", Order()))["calls"]
    failed: list[bool] = []

    def fail_at(nursery: Nursery, name: str, at: int) -> None:
        for until in (at, FOR_EVER):
            try:
                failed.append(("failed", 1) in run(nursery, name, Order(FAIL, at, until, error)))
            except AssertionError as problem:
                problem.add_note(f"{task}: calls {at} to {until} of {n_calls} fail, {corpus.codec}")
                raise

    spread(nurseries, range(n_calls, 0, -every), fail_at)
    assert sum(failed) > n_calls // every


TASKS = ["full", "full_create", "full_open", "full_close", "full_compact"]


@pytest.mark.parametrize("task", TASKS)
def test_some_calls_find_no_room(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    fail_everywhere(nurseries, ONE, memory_path, task, 23)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_calls_find_no_room(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    fail_everywhere(nurseries, ONE, memory_path, task, 2)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_calls_meet_a_bad_disk(nurseries: Nurseries, memory_path: Path, task: str) -> None:
    fail_everywhere(nurseries, Corpus(codec="raw"), memory_path, task, 4, errno.EIO)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    free = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    return filler


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_disk_of_too_few_pages(small_disk: Path, codec: str) -> None:
    """Whatever room is left, from none to enough."""
    corpus = Corpus(several=True, codec="raw" if codec == "raw" else "blosc")
    path = small_disk / "x.act"
    kinds = []
    corpus.build(path, 5)
    page = os.statvfs(small_disk).f_frsize
    for left in range(0, 80 * page, 5 * page):
        with actstore.append(path) as writer:
            n = writer.n_examples
            filler = fill(small_disk, left)
            try:
                corpus.append(writer, 3)
                writer.commit()
            except actstore.StorageError as error:
                kinds.append(error.kind)
            with actstore.open(path) as store:
                assert corpus.check(store) in {n, n + 3}
                assert store.verify().ok
            filler.unlink()
            if writer.n_examples == n:
                corpus.append(writer, 3)
            writer.commit()
            assert corpus.check(actstore.open(path)) == n + 3
            assert rows_in_metadata(path) == rows_in_record(path)
    assert len(kinds) >= 3
    assert set(kinds) == {"disk_full"}
    assert files_on_disk(path) == files_of_record(path)


def write_under_a_limit(path: Path, codec: str) -> None:
    """Appends until a shard meets the limit on a file's size; run in a process of its own."""
    corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
    spec = actstore.SiteSpec(1, 256, "float32", chunk_rows=64, shard_rows=4096)
    rows = np.random.default_rng(0).standard_normal((4000, 1, 256), np.float32)
    writer = actstore.create(path, {"resid": spec}, codec=corpus.codec)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    n = committed = 0

    def write_on() -> None:
        nonlocal n, committed
        while True:
            writer.append({"resid": rows[n : n + 100]}, [100])
            n += 100
            writer.commit()
            committed = n

    with pytest.raises(actstore.StorageError) as raised:
        write_on()
    assert raised.value.kind == "disk_full"
    assert 0 < committed < 1100
    with actstore.open(path) as store:
        assert store.n_tokens == committed
        assert (store["resid"].read() == rows[:committed]).all()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    n = writer.n_tokens
    writer.append({"resid": rows[n:2000]}, [2000 - n])
    writer.close()
    with actstore.open(path) as store:
        assert store.n_tokens == 2000
        assert (store["resid"].read() == rows[:2000]).all()
        assert store.verify(strict=True).leftovers == []


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_limit_on_the_size_of_a_file(tmp_path: Path, codec: str) -> None:
    code = (
        "import sys, pathlib, test_full_disk\n"
        "test_full_disk.write_under_a_limit(pathlib.Path(sys.argv[1]), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.act"), codec]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
