"""Ctrl-C stops what takes long, soon, and leaves everything as it was."""

import contextlib
import gzip
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import Corpus
from children import LIMIT, CtrlC, other_process

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


FEW, MANY = 4, 1000
"""Chunks. How much work the many are is told from the few."""
SOON = 0.2
"""What part of all work may still be done after a Ctrl-C: it is a hundredth as a rule, and the 25th part of
cross-moments, which listen once in 48 chunks."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow") / "few.zarr"
    slow_store(path, FEW)
    return path


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slow") / "many.zarr"
    slow_store(path, MANY)
    return path


INTERRUPTED = """
import os, sys, time
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # So that it takes long on any machine.
import numpy as np
import actstore
from children import CtrlC
from test_ctrl_c import FEW, MANY

def out(site):
    rows = np.arange(0, len(site), 256)
    return site.select(rows=rows).read(out=np.empty((len(rows), 8, 512), "f4"))

work = {
    "read": lambda store, site: site[::256, 0],
    "list": lambda store, site: site[np.arange(0, len(site), 256)[::-1], 0],
    "out": lambda store, site: out(site),
    "verify": lambda store, site: store.verify(),
    "moments": lambda store, site: site.moments(),
    "cross": lambda store, site: site.select(layers=0).cross_moments(site.select(layers=1)),
    "maxsim": lambda store, site: site.maxsim([np.ones((2, 512), "f4")], k=1, combine="sum"),
    "neighbors": lambda store, site: site.select(layers=0).neighbors(1),
}[sys.argv[3]]
few, many = [actstore.open(path) for path in sys.argv[1:3]]
start = time.process_time()
work(few, few["x"])
whole = (time.process_time() - start) * MANY / FEW
print("ready", flush=True)
try:
    with CtrlC(whole / 200) as ctrl_c:
        work(many, many["x"])
except KeyboardInterrupt:
    print("interrupted", ctrl_c.work_after / whole, flush=True)
else:
    print("done", 1, flush=True)
site = many["x"]
assert site[5:7, 3].shape == (2, 512)
assert (site[256 * 7 : 256 * 7 + 3, 1] == site[:3, 1]).all()
print("still good", flush=True)
"""


@pytest.mark.parametrize("what", ["read", "list", "out", "verify", "moments", "cross", "maxsim", "neighbors"])
def test_ctrl_c_stops(few: Path, many: Path, what: str) -> None:
    with other_process(INTERRUPTED, few, many, what) as process:
        assert process.stdout is not None
        word, share = process.stdout.readline().split()
        assert word == "interrupted"
        assert float(share) < SOON
        assert process.stdout.readline() == "still good\n"
        assert process.wait(LIMIT) == 0


def test_ctrl_c_from_a_thread(few: Path, many: Path) -> None:
    def read(path: Path) -> None:
        actstore.open(path)["x"].select(layers=0, rows=slice(None, None, 256)).read(threads=2)

    start = time.process_time()
    read(few)
    whole = (time.process_time() - start) * MANY / FEW
    ctrl_c = CtrlC(whole / 200, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), ctrl_c:
        read(many)
    assert ctrl_c.work_after is not None
    assert ctrl_c.work_after < SOON * whole
    store = actstore.open(many)
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
    n_without = 0
    expected: list[Any] = []
    with actstore.create(path, {"resid": spec}, threads=1) as writer:
        start = time.process_time()
        writer.append({"resid": rows}, [len(rows)], ["whole"])
        whole = time.process_time() - start
        expected.append("whole")
        for i in range(8):
            n = writer.n_examples
            # One that comes too late is the next append's.
            with contextlib.suppress(KeyboardInterrupt), CtrlC(whole * (0.1 + 0.15 * i)):
                writer.append({"resid": rows}, [len(rows)], [str(i)])
            assert writer.n_examples in (n, n + 1)
            if writer.n_examples > n:
                expected.append(str(i))
            else:
                n_without += 1
            if len(expected) > 3:
                break
        writer.append({"resid": rows[:50]}, [50], ["last"])
    assert n_without
    with actstore.open(path) as store:
        assert store.examples["id"].tolist() == [*expected, "last"]
        for name in expected:
            assert (store["resid"].example(name) == rows).all()
        assert (store["resid"].example("last") == rows[:50]).all()
        assert store.verify(strict=True).leftovers == []
