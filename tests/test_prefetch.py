"""Prefetching threads: they end with the loop, however it ends, and their errors are raised in the loop."""

import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import actstore
import numpy as np
import pytest
from actstore.loader.batches import batches
from actstore.loader.prefetch import PrefetchChannel, Prefetcher
from actstore.rows.view import View
from actstore.site import Site
from builders import put, shard_path
from children import LIMIT, fork, join, other_process
from feeding import MODES, N, flat, live, rows_of, write


@pytest.fixture(scope="module")
def path(memory_folder: Path) -> Path:
    return write(memory_folder / "prefetch.act")


@pytest.fixture
def site(path: Path) -> Site:
    return actstore.open(path)["resid"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if live():
        gc.collect()
    assert live() == 0


def test_the_threads_end_with_the_loop(site: Site) -> None:
    loader = batches(site, 5, True, reservoir=20)
    assert live() == 0  # Threads start with the iteration.
    for _ in loader:
        assert live() > 0
        break
    assert live() == 0
    iterator = iter(loader)
    next(iterator)
    iterator.close()
    assert live() == 0
    assert list(iterator) == []

    def fail() -> None:
        for _ in loader:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert live() == 0
    iterator = iter(loader)
    del iterator
    assert live() == 0
    assert sum(len(batch) for batch in loader) == N
    assert live() == 0


def test_a_cycle_is_collected(site: Site) -> None:
    class Loop:
        pass

    loop: Any = Loop()
    loop.self, loop.iterator = loop, iter(batches(site, 5))
    next(loop.iterator)
    del loop
    gc.collect()
    assert live() == 0


def test_no_more_items_than_the_depth_are_produced(site: Site) -> None:
    made = 0

    def count() -> Any:
        nonlocal made
        while True:
            made += 1
            yield made

    prefetched = Prefetcher(count(), depth=3)
    assert next(prefetched) == 1
    time.sleep(0.05)
    assert made <= 4
    prefetched.close()
    assert list(prefetched) == []


def test_damage_reaches_the_loop(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.loader.batch_plan._ROUND_BYTES", 1)
    path = write(memory_path / "x")
    file = shard_path(path, "resid", 8)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    put(file, data)
    site = actstore.open(path)["resid"]
    for shuffle in MODES:
        loader = batches(site, 4, shuffle, reservoir=16, with_rows=True)
        given = 0
        iterator = iter(loader)

        def go(iterator: Any = iterator) -> None:
            nonlocal given
            for _ in iterator:
                given += 1

        with pytest.raises(actstore.FormatError) as raised:
            go()
        assert raised.value.kind == "checksum"
        assert loader.state()["batch"] == given
        with pytest.raises(
            actstore.FormatError
        ):  # Not StopIteration, which would look like the end of the epoch.
            next(iterator)
        assert live() == 0
        if shuffle is False:
            assert 90 < 4 * given <= 96  # All batches before the damaged chunk.
    good = site.select(rows=np.r_[0:96, 108:N])
    assert sum(len(rows) for rows, _ in batches(good, 7, True, with_rows=True)) == N - 12


def test_a_closed_store(memory_path: Path) -> None:
    path = write(memory_path / "x", codec="raw")
    store = actstore.open(path)
    site = store["resid"]
    loader = batches(site, 2, reservoir=4)
    iterator = iter(loader)
    next(iterator)
    store.close()
    for again in (lambda: batches(site, 2), lambda: iter(loader)):
        with pytest.raises(actstore.StorageError, match="closed") as raised:
            again()
        assert raised.value.kind == "closed"
    # The reservoir holds the whole store, which was read before it was closed.
    assert len(list(iterator)) <= len(loader)


def test_ctrl_c_while_waiting(site: Site) -> None:
    """Ctrl-C interrupts a loop that waits for rows which arrive only after the loop has ended."""
    reading, release, hung = threading.Event(), threading.Event(), threading.Event()
    main = threading.get_ident()

    def read(self: View, *rest: Any) -> None:
        reading.set()
        if not release.wait(LIMIT):
            hung.set()

    def interrupt() -> None:
        assert reading.wait(LIMIT)
        while not loop_waits():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    def loop_waits() -> bool:
        functions = [frame.f_code for frame, _ in traceback.walk_stack(sys._current_frames()[main])]
        return PrefetchChannel.take.__code__ in functions and threading.Condition.wait.__code__ in functions

    with mock.patch.object(View, "read_rows_into", read):
        iterator = iter(batches(site, 5))
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
        assert not hung.is_set()
        thread.join()
        release.set()
        iterator.close()


EXITS = """
import sys
import actstore
from actstore.loader.batches import batches
site = actstore.open(sys.argv[1])["resid"]
iterator = iter(batches(site, 3, shuffle=True, reservoir=10))
next(iterator)
print("ready", flush=True)
"""


def test_the_interpreter_exits_during_an_unfinished_loop(path: Path) -> None:
    with other_process(EXITS, path) as process:
        assert process.wait(LIMIT) == 0


def test_after_a_fork(site: Site) -> None:
    loader = batches(site, 10, True, with_rows=True, reservoir=30)
    expected = rows_of(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)

    def child() -> None:
        assert sorted(flat(rows_of(loader))) == list(range(N))
        loader.set_epoch(0)
        assert rows_of(loader) == expected
        with pytest.raises(actstore.StorageError) as raised:
            next(iterator)
        assert raised.value.kind == "forked"
        iterator.close()

    join(fork(child))
    assert [rows.tolist() for rows, _ in iterator] == expected[1:]
