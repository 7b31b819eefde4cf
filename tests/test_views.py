"""Threads and views: many readers of one store, and a writer meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import actstore
import numpy as np
import pytest
from builders import Corpus, small_columns
from children import LIMIT

ONE = Corpus()


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
        assert set(threads.map(read, range(64), timeout=LIMIT)) == {55}


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
