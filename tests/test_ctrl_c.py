"""Ctrl-C stops what takes long, soon, and leaves everything as it was."""

import gzip
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import Corpus
from children import other_process

ONE = Corpus()


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
    "moments": site.moments,
    "cross": lambda: site.select(layers=0).cross_moments(site.select(layers=1)),
    "maxsim": lambda: site.maxsim([np.ones((2, 512), "f4")], k=1),
    "neighbors": lambda: site.select(layers=0).neighbors(1),
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


@pytest.mark.parametrize("what", ["read", "list", "out", "verify", "moments", "cross", "maxsim", "neighbors"])
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
