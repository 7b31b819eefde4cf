"""Locks, forks, threads, pickles, Ctrl-C: a store among several processes.

Over 600 lines because the programs that run in other processes stand beside the tests that start them.
"""

import contextlib
import gzip
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import Corpus, files_of_record, files_on_disk, small_columns

ONE = Corpus()
SEVERAL = Corpus(several=True)


def fork(work: Callable[[], object]) -> int:
    """A forked child that does `work` and ends without a word to pytest: 0 if all was well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of forking beside threads, which is the point.
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def join(pid: int, seconds: float = 30) -> None:
    """Asserts that a child ends well, and soon."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"the child hung for {seconds} s")


@contextlib.contextmanager
def other_process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Runs code in a new interpreter; it says `ready` when it is."""
    command = [sys.executable, "-u", "-c", code, *map(str, args)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


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
            process.wait(30)
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
    time.sleep(60)
    os._exit(0)
time.sleep(60)
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
                process.wait(30)
                os.kill(child, 0)  # ... and no longer, though the child still lives.
                with actstore.append(path) as writer:
                    ONE.append(writer, 2)
            finally:
                os.kill(child, signal.SIGKILL)
        assert ONE.check(actstore.open(path)) == 5

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
    view = store["resid"].select(layers=[6, 0], examples=slice(3, 12), tokens=slice(1, None, 2))
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with context.Pool(2) as pool:
            assert pool.apply_async(check_store, (store,)).get(60) == 20
            for got in pool.map_async(read_site, [view, view, store["pooled"]]).get(60)[:2]:
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


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_many_threads_read(memory_path: Path, codec: str) -> None:
    corpus = Corpus(several=True, codec="raw" if codec == "raw" else "blosc")
    store = actstore.open(corpus.build(memory_path / "x.act", 50, 5))

    def read(seed: int) -> int:
        rng = np.random.default_rng(seed)
        for _ in range(5):
            corpus.check_rows(store, rng)
        store["resid"].read(threads=1 + seed % 4)
        return corpus.check(store)

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(read, range(64), timeout=60)) == {55}


def test_many_threads_append(memory_path: Path) -> None:
    """One after the other, each whole: the store holds all that was appended, each once."""
    path = memory_path / "x.act"
    spec = actstore.SiteSpec(1, 4, "float32", chunk_rows=4, shard_rows=16)
    with actstore.create(path, {"resid": spec}) as writer:
        lock = threading.Lock()

        def append(i: int) -> None:
            rows = np.full((i % 5, 1, 4), i, np.float32)
            with lock:
                writer.append({"resid": rows}, [len(rows)], [str(i)])
            if i % 7 == 0:
                writer.commit()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(append, range(100)))
    with actstore.open(path) as store:
        for i, name in enumerate(store.examples["id"]):
            rows = store["resid"].example(i)
            assert (rows == float(name)).all()
            assert len(rows) == int(name) % 5
        assert sorted(store.examples["id"], key=int) == [str(i) for i in range(100)]


class TestViews:
    def test_a_reader_keeps_its_view(self, memory_path: Path) -> None:
        path = ONE.build(memory_path / "x.act", 5, 2)
        store = actstore.open(path)
        site = store["resid"]
        unread = actstore.open(path)
        for _ in range(4):
            with small_columns(), actstore.append(path) as writer:
                ONE.append(writer, 3)
            assert ONE.check(store) == 7
            assert len(site) == len(site.read())
        assert ONE.check(unread) == 7
        assert store.refresh()
        assert not store.refresh()
        assert ONE.check(store) == 19
        assert len(site) == ONE.n_rows("tokens", 7)

    @pytest.mark.parametrize("codec", ["blosc", "raw"])
    def test_compaction_is_told_and_refresh_helps(self, memory_path: Path, codec: str) -> None:
        corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
        path = corpus.build(memory_path / "x.act", 1, 1, 1, 1, 1, 1, 1, 30, 1, 1, 1)
        opened, unread = actstore.open(path), actstore.open(path)
        assert corpus.check(opened) == 40
        holes = opened.info()["hole_bytes"]
        done = actstore.compact(path)
        assert done.bytes_after < done.bytes_before
        assert actstore.open(path).info()["hole_bytes"] < holes

        # What was open before either still has its files or says what happened; never other rows.
        for store in (opened, unread):
            try:
                assert_rows = store["resid"].read()
            except actstore.FormatError as error:
                kind = error.kind
            else:
                kind = "compacted"
                assert assert_rows.tobytes() == corpus.rows("resid", 0, len(assert_rows)).tobytes()
            assert kind == "compacted"
            if store is unread:
                with pytest.raises(actstore.FormatError, match="refresh") as raised:
                    [store["resid"].read(), store.tokens["id"], store.examples["id"], store.verify()]
                assert raised.value.kind == "compacted"
            assert store.refresh()
            assert corpus.check(store) == 40
            assert store.verify(strict=True).ok

    def test_readers_meanwhile(self, memory_path: Path) -> None:
        """Threads that read and refresh while another appends, commits and compacts."""
        path = ONE.build(memory_path / "x.act", 3)
        stop = threading.Event()

        def read(seed: int) -> int:
            rng = np.random.default_rng(seed)
            store, n_reads = actstore.open(path), 0
            while not stop.is_set():
                try:
                    ONE.check_rows(store, rng)
                except actstore.FormatError as error:
                    if error.kind != "compacted":
                        raise
                if seed % 2 or rng.random() < 0.3:
                    store.refresh()
                else:
                    store = actstore.open(path)
                n_reads += 1
            return n_reads

        with ThreadPoolExecutor(4) as threads:
            readers = [threads.submit(read, seed) for seed in range(3)]
            try:
                for i in range(12):
                    with small_columns(), actstore.append(path) as writer:
                        for _ in range(3):
                            ONE.append(writer, 2)
                            writer.commit()
                    if i % 4 == 3:
                        actstore.compact(path)
            finally:
                stop.set()
            assert all(reader.result(60) > 0 for reader in readers)
        assert ONE.check(actstore.open(path)) == 75


def slow_store(path: Path, n_chunks: int) -> None:
    """A Zarr group that takes long to read: many chunks of gzip, all of them one file."""
    (path / "x" / "c").mkdir(parents=True)
    shape = [256 * n_chunks, 8, 512]
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    node = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [256, 8, 512]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}],
    }
    (path / "x" / "zarr.json").write_text(json.dumps(node))
    rows = np.random.default_rng(0).integers(0, 64, (256, 8, 512)).astype(np.float32)
    data = path / "data"
    data.write_bytes(gzip.compress(rows.tobytes(), 1))
    for i in range(n_chunks):
        (path / "x" / "c" / str(i) / "0").mkdir(parents=True)
        os.link(data, path / "x" / "c" / str(i) / "0" / "0")
    data.unlink()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow") / "slow.zarr"
    slow_store(path, 1000)
    return path


INTERRUPTED = """
import os, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # So that it takes long on any machine.
import numpy as np
import actstore
store = actstore.open(sys.argv[1])
site = store["x"]
rows = np.arange(0, len(site), 300)
work = {
    "read": lambda: site[::256, 0],
    "list": lambda: site[np.arange(0, len(site), 256)[::-1], 0],
    "out": lambda: site.select(tokens=rows).read(out=np.empty((len(rows), 8, 512), "f4")),
    "verify": store.verify,
}[sys.argv[2]]
print("ready", flush=True)
try:
    work()
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
else:
    print("done", time.time(), flush=True)
assert site[5:7, 3].shape == (2, 512)
assert (site[256 * 7 : 256 * 7 + 3, 1] == site[:3, 1]).all()
print("still good", flush=True)
"""


@pytest.mark.parametrize("what", ["read", "list", "out", "verify"])
def test_ctrl_c_stops(slow: Path, what: str) -> None:
    with other_process(INTERRUPTED, slow, what) as process:
        assert process.stdout is not None
        time.sleep(0.3)
        sent = time.time()
        process.send_signal(signal.SIGINT)
        word, when = process.stdout.readline().split()
        assert word == "interrupted"
        assert float(when) - sent < 1.5
        assert process.stdout.readline() == "still good\n"
        assert process.wait(30) == 0


def test_ctrl_c_from_a_thread(slow: Path) -> None:
    store = actstore.open(slow)
    timer = threading.Timer(0.4, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        store["x"].select(layers=0, tokens=slice(None, None, 256)).read(threads=2)
    assert time.monotonic() - start < 2
    timer.join()
    with pytest.raises(KeyboardInterrupt):
        interrupt_by_progress(store)
    assert store["x"][:2, 0].shape == (2, 512)


def interrupt_by_progress(store: actstore.Store) -> None:
    """An exception of the caller's own stops a walk as well."""

    def progress(done: int, total: int) -> None:
        assert 0 <= done <= total
        if done:
            raise KeyboardInterrupt

    store.verify(progress=progress)


class Interrupted:
    """A native writer, and a Ctrl-C that comes just when its append has ended."""

    def __init__(self, native: Any) -> None:
        self._wrapped = native
        self.due = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def append(self, rows: dict[str, Any]) -> bool:
        due = self._wrapped.append(rows)
        if self.due:
            raise KeyboardInterrupt
        return bool(due)


def test_ctrl_c_at_the_end_of_an_append(memory_path: Path) -> None:
    """The rows are taken by then; whoever asks must be told so."""
    path = ONE.build(memory_path / "x.act", 3)
    with actstore.append(path) as writer:
        native = writer._native
        interrupted = Interrupted(native)
        writer._native = interrupted  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            ONE.append(writer, 4)
        interrupted.due = False
        assert writer.n_examples == 7
        assert writer.n_tokens == ONE.n_rows("tokens", 7)
        with pytest.raises(actstore.InvalidInputError, match="ex-6"):
            writer.append(
                {"resid": ONE.rows("resid", 0, 1)},
                [1],
                ["ex-6"],
                {"tokens": {"id": ONE.token_ids(0, 1), "position": ONE.positions("tokens", 9)[:1]}},
                {"label": ["x"], "score": [1.0]},
            )
        ONE.append(writer, 2)
    assert ONE.check(actstore.open(path)) == 9


@pytest.mark.slow
def test_an_interrupted_append_leaves_nothing(memory_path: Path) -> None:
    """All of an append or nothing, whenever Ctrl-C comes."""
    path = memory_path / "x.act"
    spec = actstore.SiteSpec(4, 512, "float32", chunk_rows=16, shard_rows=1024)
    rows = np.random.default_rng(0).standard_normal((12_000, 4, 512), np.float32)
    n_interrupted = 0
    expected: list[Any] = []
    with actstore.create(path, {"resid": spec}, threads=1) as writer:
        for i in range(8):
            timer = threading.Timer(0.02 + 0.03 * i, lambda: signal.raise_signal(signal.SIGINT))
            n = writer.n_examples
            timer.start()
            try:
                writer.append({"resid": rows}, [len(rows)], [str(i)])
                timer.join()
                time.sleep(0.2)
            except KeyboardInterrupt:
                n_interrupted += 1
            assert writer.n_examples in (n, n + 1)
            if writer.n_examples > n:
                expected.append(str(i))
            if len(expected) > 2:
                break
        writer.append({"resid": rows[:50]}, [50], ["last"])
    assert n_interrupted
    with actstore.open(path) as store:
        assert store.examples["id"].tolist() == [*expected, "last"]
        for name in expected:
            assert (store["resid"].example(name) == rows).all()
        assert (store["resid"].example("last") == rows[:50]).all()
        assert store.verify(strict=True).leftovers == []
