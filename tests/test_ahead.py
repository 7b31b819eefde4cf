"""The threads that read ahead: they end with the loop, however it ends, and their errors are the loop's."""

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
from actstore.ahead import Ahead, _Channel
from actstore.batches import batches
from actstore.site import Site
from actstore.view import View
from builders import put, shard_path
from children import LIMIT, fork, join, other_process
from feeding import MODES, N, flat, live, rows_of, write


@pytest.fixture(scope="module")
def path(memory_folder: Path) -> Path:
    return write(memory_folder / "ahead.act")


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
    feed = batches(site, 5, True, reservoir=20)
    assert live() == 0  # Made when iterated, not before.
    for _ in feed:
        assert live() > 0
        break
    assert live() == 0
    iterator = iter(feed)
    next(iterator)
    iterator.close()
    assert live() == 0
    assert list(iterator) == []

    def fail() -> None:
        for _ in feed:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    gc.collect()
    assert live() == 0
    iterator = iter(feed)
    del iterator
    assert live() == 0
    assert sum(len(batch) for batch in feed) == N
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


def test_no_more_is_made_than_asked_for(site: Site) -> None:
    made = 0

    def count() -> Any:
        nonlocal made
        while True:
            made += 1
            yield made

    ahead = Ahead(count(), depth=3)
    assert next(ahead) == 1
    time.sleep(0.05)
    assert made <= 4
    ahead.close()
    assert list(ahead) == []


def test_damage_reaches_the_loop(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actstore.feed._ROUND_BYTES", 1)
    path = write(memory_path / "x")
    file = shard_path(path, "resid", 8)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    put(file, data)
    site = actstore.open(path)["resid"]
    for shuffle in MODES:
        feed = batches(site, 4, shuffle, reservoir=16, with_rows=True)
        given = 0
        iterator = iter(feed)

        def go(iterator: Any = iterator) -> None:
            nonlocal given
            for _ in iterator:
                given += 1

        with pytest.raises(actstore.FormatError) as raised:
            go()
        assert raised.value.kind == "checksum"
        assert feed.state()["batch"] == given
        with pytest.raises(actstore.FormatError):  # Not an end that a loop could mistake for the epoch's.
            next(iterator)
        assert live() == 0
        if shuffle is False:
            assert 90 < 4 * given <= 96  # All that stands before it.
    good = site.select(tokens=np.r_[0:96, 108:N])
    assert sum(len(rows) for rows, _ in batches(good, 7, True, with_rows=True)) == N - 12


def test_a_closed_store(memory_path: Path) -> None:
    path = write(memory_path / "x", codec="raw")
    store = actstore.open(path)
    site = store["resid"]
    feed = batches(site, 2, reservoir=4)
    iterator = iter(feed)
    next(iterator)
    store.close()
    for again in (lambda: batches(site, 2), lambda: iter(feed)):
        with pytest.raises(actstore.StorageError, match="closed") as raised:
            again()
        assert raised.value.kind == "closed"
    # Its rounds hold the whole store, which was read before.
    assert len(list(iterator)) <= len(feed)


def test_ctrl_c_while_waiting(site: Site) -> None:
    """For rows that come only when the loop has ended."""
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
        return _Channel.take.__code__ in functions and threading.Condition.wait.__code__ in functions

    with mock.patch.object(View, "_read_into", read):
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
from actstore.batches import batches
site = actstore.open(sys.argv[1])["resid"]
iterator = iter(batches(site, 3, shuffle=True, reservoir=10))
next(iterator)
print("ready", flush=True)
"""


def test_the_interpreter_ends_with_a_loop_unfinished(path: Path) -> None:
    with other_process(EXITS, path) as process:
        assert process.wait(LIMIT) == 0


def test_after_a_fork(site: Site) -> None:
    feed = batches(site, 10, True, with_rows=True, reservoir=30)
    expected = rows_of(feed)
    feed.set_epoch(0)
    iterator = iter(feed)
    next(iterator)

    def child() -> None:
        assert sorted(flat(rows_of(feed))) == list(range(N))
        feed.set_epoch(0)
        assert rows_of(feed) == expected
        with pytest.raises(actstore.StorageError) as raised:
            next(iterator)
        assert raised.value.kind == "forked"
        iterator.close()

    join(fork(child))
    assert [rows.tolist() for rows, _ in iterator] == expected[1:]
