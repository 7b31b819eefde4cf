"""Memory stays bounded, however much is written or read."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import actstore
import numpy as np
import pytest
from builders import DTYPES
from limited import Tell, anonymous_memory, in_child

pytestmark = pytest.mark.slow

LIMIT = 300 << 20
N_LAYERS, DIM = 4, 1024
ROW = N_LAYERS * DIM * 2
BLOCK = 2000
"""Rows of an append: 16 MiB."""


class Peak:
    bytes = 0


@contextmanager
def peak_of_memory() -> Iterator[Peak]:
    """The most anonymous memory meanwhile, beyond what there was before."""
    peak, stop, before = Peak(), threading.Event(), anonymous_memory()

    def watch() -> None:
        while not stop.wait(0.003):
            peak.bytes = max(peak.bytes, anonymous_memory() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def block(dtype: str) -> np.ndarray[Any, Any]:
    """Heavy-tailed rows, as activations are."""
    rng = np.random.default_rng(0)
    rows = rng.standard_t(4, (BLOCK, N_LAYERS, DIM)).astype(np.float32)
    return rows.astype(DTYPES[dtype])


def write(tell: Tell, path: Path, codec: Literal["blosc", "raw"], n_blocks: int) -> int:
    rows = block("bfloat16")
    lengths = np.full(20, BLOCK // 20)
    ids = np.arange(BLOCK)
    spec = actstore.SiteSpec(N_LAYERS, DIM, "bfloat16")
    with peak_of_memory() as peak:
        with actstore.create(path, {"resid": spec}, codec=codec) as writer:
            for i in range(n_blocks):
                tell(f"append {i}")
                writer.append({"resid": rows}, lengths, token_columns={"id": ids})
        assert writer.n_tokens == n_blocks * BLOCK
    return peak.bytes


def write_at_once(tell: Tell, path: Path, codec: Literal["blosc", "raw"], source: Path) -> int:
    """One append, far larger than what it may take; its input is mapped from a file."""
    rows = np.memmap(source, np.float16, "r").reshape(-1, N_LAYERS, DIM)
    spec = actstore.SiteSpec(N_LAYERS, DIM, "float16")
    with peak_of_memory() as peak, actstore.create(path, {"resid": spec}, codec=codec) as writer:
        writer.append({"resid": rows}, [len(rows)])
    return peak.bytes


def read(tell: Tell, path: Path, n_blocks: int) -> dict[str, int]:
    expected = block("bfloat16")
    peaks = {}
    with actstore.open(path) as store:
        site = store["resid"]
        assert len(site) == n_blocks * BLOCK
        out = np.empty((BLOCK, N_LAYERS, DIM), expected.dtype)
        out[:] = 0
        with peak_of_memory() as peak:
            for i in range(n_blocks):
                tell(f"slice {i}")
                site.select(rows=slice(i * BLOCK, (i + 1) * BLOCK)).read(out=out)
                assert out.tobytes() == expected.tobytes()
        peaks["slices"] = peak.bytes

        wide = np.zeros((4 * BLOCK, 1, DIM), np.float32)
        with peak_of_memory() as peak:
            for start in range(0, len(site) - len(wide), len(wide)):
                tell(f"layer from {start}")
                site.select(layers=2, rows=slice(start, start + len(wide))).read(out=wide)
            assert (wide[:BLOCK, 0] == expected[:, 2]).all()
        peaks["a layer as float32"] = peak.bytes

        rng = np.random.default_rng(0)
        with peak_of_memory() as peak:
            for i in range(8):
                tell(f"random rows {i}")
                rows = rng.integers(0, len(site), 2000)
                site.select(layers=1, rows=rows).read(out=wide[:2000])
                assert (wide[:2000, 0] == expected[rows % BLOCK, 1]).all()
        peaks["random rows"] = peak.bytes

        with peak_of_memory() as peak:
            tell("verify")
            assert store.verify().ok
        peaks["verify"] = peak.bytes
    return peaks


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_writing_and_reading_much(tmp_path: Path, codec: str) -> None:
    """Four times as much as the limit."""
    path, n_blocks = tmp_path / "x.act", 75
    assert n_blocks * BLOCK * ROW > 4 * LIMIT - (100 << 20)
    # The limit on the address space is off: raw shards are mapped, and take none of what is counted.
    assert in_child(write, path, codec, n_blocks, room=64 << 30) < LIMIT
    for what, peak in in_child(read, path, n_blocks, room=64 << 30).items():
        assert peak < LIMIT, what
    shutil.rmtree(path)


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_one_large_append(tmp_path: Path, codec: str) -> None:
    source = tmp_path / "rows"
    rows = block("float16")
    with open(source, "wb") as file:
        for _ in range(38):
            file.write(rows.tobytes())
    assert source.stat().st_size > 2 * LIMIT - (100 << 20)
    path = tmp_path / "x.act"
    assert in_child(write_at_once, path, codec, source, room=64 << 30) < LIMIT
    with actstore.open(path) as store:
        last = len(store["resid"]) - BLOCK
        assert store["resid"][last:].tobytes() == rows.tobytes()


def many_examples(tell: Tell, path: Path) -> tuple[int, int]:
    """Ids and offsets are kept in memory, but hardly more than they must be."""
    spec = actstore.SiteSpec(1, 2, "float32", axis="tokens")
    n = 20_000
    rows = np.ones((n, 1, 2), np.float32)
    with actstore.create(path, {"resid": spec}) as writer, peak_of_memory() as peak:
        for i in range(50):
            writer.append({"resid": rows}, np.ones(n, np.int64), token_columns=np.arange(n))
            if i == 5:
                early = peak.bytes
    return early, peak.bytes


def test_a_million_examples(tmp_path: Path) -> None:
    early, late = in_child(many_examples, tmp_path / "x.act", room=64 << 30)
    assert late < LIMIT
    assert late - early < 150 << 20
