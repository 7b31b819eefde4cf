"""Locks, forks and pickles: a store among several processes."""

import multiprocessing
import os
import pickle
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import actstore
import numpy as np
import pytest
from builders import Corpus, files_of_record, files_on_disk
from children import LIMIT, fork, join, other_process

ONE = Corpus()
SEVERAL = Corpus(several=True)


WRITER = """
import sys, time
import actstore
from builders import Corpus
writer = actstore.append(sys.argv[1])
Corpus().append(writer, 2)
print("ready")
sys.stdin.readline()
writer.commit()
"""


class TestLock:
    def test_a_second_writer_is_told_who_has_it(self, tmp_path: Path) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        with other_process(WRITER, path) as process:
            for refused in (
                lambda: actstore.append(path),
                lambda: actstore.compact(path),
                lambda: ONE.create(path, overwrite=True),
            ):
                with pytest.raises(actstore.StorageError, match=rf"\b{process.pid}\b") as raised:
                    refused()
                assert raised.value.kind == "locked"
            assert ONE.check(actstore.open(path)) == 3  # Readers never wait.
        actstore.append(path).close()

    def test_in_the_same_process(self, tmp_path: Path) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        with actstore.append(path):
            with pytest.raises(actstore.StorageError, match=str(os.getpid())) as raised:
                actstore.append(path)
            assert raised.value.kind == "locked"
        with ONE.create(tmp_path / "y.act"), pytest.raises(actstore.StorageError) as raised:
            actstore.append(tmp_path / "y.act")
        assert raised.value.kind == "locked"

    def test_it_goes_with_close_abort_and_exceptions(self, tmp_path: Path) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        writer = actstore.append(path)
        writer.close()
        writer = actstore.append(path)
        writer.abort()

        def fail() -> None:
            with actstore.append(path) as writer:
                ONE.append(writer, 1)
                raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            fail()
        writer = actstore.append(path)
        assert writer.n_examples == 3
        del writer  # Forgotten writers let go as well.
        actstore.append(path).close()
        assert files_on_disk(path) == files_of_record(path)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
    def test_it_goes_with_the_process(self, tmp_path: Path, number: signal.Signals) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        with other_process(WRITER, path) as process:
            process.send_signal(number)
            process.wait(LIMIT)
            with actstore.append(path) as writer:
                ONE.append(writer, 1)
        assert ONE.check(actstore.open(path)) == 4
        assert files_on_disk(path) == files_of_record(path)

    def test_a_closed_writer_says_so(self, tmp_path: Path) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        writer = actstore.append(path)
        writer.close()
        writer.close()
        for use in (writer.commit, lambda: ONE.append(writer, 1)):
            with pytest.raises(actstore.StorageError) as raised:
                use()
            assert raised.value.kind == "closed"


# A writer that forks a child and tells its number; the child sleeps.
FORKING = """
import os, sys, time
import actstore
from builders import Corpus
writer = actstore.append(sys.argv[1])
Corpus().append(writer, 2)
if os.fork() == 0:
    print("ready")
    print(os.getpid())
    time.sleep(1200)
    os._exit(0)
time.sleep(1200)
"""


class TestFork:
    def test_a_child_does_not_keep_the_lock_of_a_killed_parent(self, tmp_path: Path) -> None:
        path = ONE.build(tmp_path / "x.act", 3)
        with other_process(FORKING, path) as process:
            assert process.stdout is not None
            child = int(process.stdout.readline())
            try:
                # It holds as long as the parent lives, ...
                with pytest.raises(actstore.StorageError) as raised:
                    actstore.append(path)
                assert raised.value.kind == "locked"
                process.kill()
                process.wait(LIMIT)
                os.kill(child, 0)  # ... and no longer, though the child still lives.
                with actstore.append(path) as writer:
                    ONE.append(writer, 2)
            finally:
                os.kill(child, signal.SIGKILL)
        assert ONE.check(actstore.open(path)) == 5

    @pytest.mark.parametrize("codec", ["blosc", "raw"])
    def test_a_child_reads_single_rows_after_its_parent_did(
        self, memory_path: Path, codec: Literal["blosc", "raw"]
    ) -> None:
        path = memory_path / "x.act"
        acts = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        with actstore.create(path, {"resid": actstore.SiteSpec(2, 3, "float32")}, codec=codec) as writer:
            writer.append({"resid": acts}, [4])
        site = actstore.open(path)["resid"]
        assert (site[3] == acts[3]).all()

        def child() -> None:
            assert (site[2] == acts[2]).all()
            assert (site[[2, 0]] == acts[[2, 0]]).all()
            assert site.search(acts[1:2, 0], k=1, metric="l2", weights=[1, 0]).rows.tolist() == [[1]]

        join(fork(child))

    def test_a_child_cannot_use_the_writer_and_takes_nothing_away(self, memory_path: Path) -> None:
        path = ONE.build(memory_path / "x.act", 3)
        writer = actstore.append(path)
        ONE.append(writer, 9)
        before = files_on_disk(path)

        def child() -> None:
            for use in (writer.commit, writer.close, lambda: ONE.append(writer, 1)):
                with pytest.raises(actstore.StorageError) as raised:
                    use()
                assert raised.value.kind == "forked"
            writer.abort()
            writer._native.close()
            assert files_on_disk(path) == before

        join(fork(child))
        assert files_on_disk(path) == before
        with pytest.raises(actstore.StorageError, match=str(os.getpid())):
            actstore.append(path)
        ONE.append(writer, 2)
        writer.close()
        assert ONE.check(actstore.open(path)) == 14
        assert files_on_disk(path) == files_of_record(path)

    def test_a_child_that_ends_as_usual_takes_nothing_away(self, tmp_path: Path) -> None:
        """Interpreter exit runs destructors, of a writer in use by the parent as well."""
        path = ONE.build(tmp_path / "x.act", 3)
        code = """
import os, sys
import actstore
from builders import Corpus, files_on_disk
path = sys.argv[1]
writer = actstore.append(path)
Corpus().append(writer, 9)
before = files_on_disk(path)
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
assert files_on_disk(path) == before
try:
    actstore.append(path)
except actstore.StorageError as error:
    assert error.kind == "locked"
else:
    raise AssertionError("the lock is gone")
Corpus().append(writer, 2)
writer.close()
print("ready")
"""
        with other_process(code, path):
            pass
        assert ONE.check(actstore.open(path)) == 14
        assert files_on_disk(path) == files_of_record(path)

    def test_children_read_while_threads_of_the_parent_do(self, memory_path: Path) -> None:
        path = SEVERAL.build(memory_path / "x.act", 60)
        store = actstore.open(path)
        stop = threading.Event()
        failed: list[BaseException] = []

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                while not stop.is_set():
                    SEVERAL.check_rows(store, rng)
            except BaseException as error:
                failed.append(error)

        def child() -> None:
            SEVERAL.check(store)
            SEVERAL.check(actstore.open(path))
            with ThreadPoolExecutor(4) as threads:
                for done in [threads.submit(SEVERAL.check, store) for _ in range(8)]:
                    done.result()
            assert store.verify().ok
            # And its own children.
            join(fork(lambda: SEVERAL.check(store)))

        threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(6):
                pids = [fork(child) for _ in range(2)]
                for pid in pids:
                    join(pid)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failed == []

    def test_children_write_stores_of_their_own(self, memory_path: Path) -> None:
        """Though the parent has a pool and a writer."""
        parts = [memory_path / f"part-{i}" for i in range(3)]
        with ONE.create(memory_path / "parent.act") as writer:
            ONE.append(writer, 9)
            for pid in [fork(lambda path=path: ONE.build(path, 9, 2)) for path in parts]:  # type: ignore[misc]
                join(pid)
            ONE.append(writer, 2)
        assert ONE.check(actstore.open(memory_path / "parent.act")) == 11
        for path in parts:
            assert ONE.check(actstore.open(path)) == 11


def check_store(store: actstore.Store) -> int:
    return SEVERAL.check(store)


def read_site(site: actstore.Site) -> tuple[tuple[int, ...], bytes]:
    return site.shape, site.read().tobytes()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_stores_and_sites_go_to_workers(memory_path: Path, method: str) -> None:
    path = SEVERAL.build(memory_path / "x.act", 20)
    store = actstore.open(path, verify="always")
    SEVERAL.check(store)
    view = store["resid"].select(layers=[6, 0], examples=slice(3, 12), rows=slice(1, None, 2))
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with context.Pool(2) as pool:
            assert pool.apply_async(check_store, (store,)).get(LIMIT) == 20
            for got in pool.map_async(read_site, [view, view, store["pooled"]]).get(LIMIT)[:2]:
                assert got == read_site(view)
            pool.close()
            pool.join()


def test_pickles_do_not_see_what_comes_after(memory_path: Path) -> None:
    """A site's rows stay the same when there are more by the time it is unpickled."""
    path = ONE.build(memory_path / "x.act", 5)
    site = actstore.open(path)["resid"]
    frozen = pickle.dumps(site)
    with actstore.append(path) as writer:
        ONE.append(writer, 9)
    thawed = pickle.loads(frozen)
    assert thawed.shape == site.shape
    assert read_site(thawed) == read_site(site)
