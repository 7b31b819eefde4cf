"""Our zstd frames, Huffman-coded literals without matches, are decoded by libzstd itself.

Byte planes are made by hand and put together to float16, so that the store's writer takes them
apart again and codes each. The low plane is noise: it keeps rows from repeating, so that the
fast way is taken, and is stored as it is.
"""

from pathlib import Path

import actstore
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numcodecs import Blosc
from numcodecs.zstd import Zstd
from oracle import assert_same, open_tensorstore, scratch

BLOCK = 128 << 10
"""Most bytes of a zstd block."""
MAGIC = bytes.fromhex("28b52ffd")
DTYPES = {2: np.dtype(np.float16), 4: np.dtype(np.float32)}


def store_planes(path: Path, planes: list[np.ndarray], dim: int) -> np.ndarray:
    """A store of one chunk whose bytes are these planes; the array."""
    dtype = DTYPES[len(planes)]
    array = np.stack(planes, axis=1).reshape(-1).view(dtype).reshape(-1, 1, dim)
    rows = len(array)
    spec = actstore.SiteSpec(1, dim, dtype.name, chunk_rows=rows, shard_rows=rows)
    with actstore.create(path, {"r": spec}) as writer:
        writer.append({"r": array}, [rows])
    return array


def streams(path: Path) -> tuple[bytes, list[bytes]]:
    """The blosc frame of the only chunk, and its streams, if it is a single block."""
    shard = (path / "r/c/0/0/0").read_bytes()
    offset, length = np.frombuffer(shard[-20:-4], "<u8").tolist()
    frame = shard[offset : offset + length - 4]
    n_bytes, block, _ = np.frombuffer(frame[4:16], "<u4").tolist()
    out = []
    if n_bytes == block:
        at = int.from_bytes(frame[16:20], "little")
        for _ in range(1 if frame[2] & 16 else frame[3]):
            size = int.from_bytes(frame[at : at + 4], "little")
            out.append(frame[at + 4 : at + 4 + size])
            at += 4 + size
        assert at == len(frame)
    return frame, out


def is_literals(frame: bytes) -> bool:
    """Whether a zstd frame is one of ours: a single segment, its size in four bytes."""
    return frame[:5] == MAGIC + b"\xa0"


def noise(n: int, seed: int = 0) -> np.ndarray:
    # Never zero: elements of zeros would look like the output of a ReLU, which is compressed otherwise.
    return np.random.default_rng(seed).integers(1, 256, n, dtype=np.uint8)


def check(path: Path, high: np.ndarray, dim: int = 1, size: int = 2) -> list[bytes]:
    """Stores a plane as the highest byte of each element; all readers must give the array back."""
    planes = [noise(len(high), k) for k in range(size - 1)] + [high]
    array = store_planes(path, planes, dim)
    frame, parts = streams(path)
    assert_same(np.frombuffer(Blosc().decode(frame), array.dtype), array.reshape(-1))
    if len(parts) == size:
        for plane, stream in zip(planes, parts, strict=True):
            if len(stream) != len(plane):
                assert bytes(Zstd().decode(stream)) == plane.tobytes()
    assert_same(open_tensorstore(path / "r").read().result(), array)
    with actstore.open(path) as store:
        assert_same(store["r"].read(), array)
        np.testing.assert_array_equal(store["r"][len(array) // 2 :, 0], array[len(array) // 2 :, 0])
        assert store.verify().ok
    return parts


def skewed(n: int, counts: np.ndarray, seed: int = 1) -> np.ndarray:
    """`n` symbols in random order, about as often as `counts` says, each of them there."""
    counts = np.asarray(counts, np.float64)
    share = 1 + np.floor(counts / counts.sum() * (n - len(counts))).astype(int)
    share[np.argmax(share)] += n - share.sum()
    out = np.repeat(np.arange(len(counts), dtype=np.uint8), share)
    np.random.default_rng(seed).shuffle(out)
    return out


FIBONACCI = np.array([1, 1, *np.cumsum(np.ones(20))], float)
for i in range(2, len(FIBONACCI)):
    FIBONACCI[i] = FIBONACCI[i - 1] + FIBONACCI[i - 2]

DISTRIBUTIONS = {
    "two symbols": np.array([1, 1]),
    "two symbols, one rare": np.array([1, 4000]),
    "three symbols": np.array([5, 1, 3]),
    # The plain code of Fibonacci's numbers is as deep as there are symbols; zstd allows eleven bits.
    "Fibonacci": FIBONACCI,
    "Fibonacci, falling": FIBONACCI[::-1],
    "powers of two": 2.0 ** np.arange(24),
    "one of half, 255 rare": np.array([255.0 * 40, *np.ones(255)]),
    "geometric, 256 symbols": 0.93 ** np.arange(256),
    "flat, 128 symbols": np.ones(128),
    "flat, 129 symbols": np.ones(129),
    "flat, 255 symbols": np.ones(255),
    "flat, 200 symbols and a peak": np.array([300.0, *np.ones(199)]),
    "exponents": np.exp(-0.5 * ((np.arange(80) - 60) / 1.3) ** 2) + 1e-5,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("size", [2, 4])
def test_distributions(tmp_path: Path, name: str, size: int) -> None:
    for n in (40_000, 200_000):
        parts = check(tmp_path / str(n), skewed(n, DISTRIBUTIONS[name]), dim=100, size=size)
        if name not in ("flat, 255 symbols", "flat, 200 symbols and a peak"):
            assert is_literals(parts[-1]), "the fast way was not taken, so nothing was tested"


@pytest.mark.parametrize("shift", [1, 77, 127, 176])
@pytest.mark.parametrize("name", ["Fibonacci", "exponents", "flat, 128 symbols"])
def test_symbols_anywhere(tmp_path: Path, name: str, shift: int) -> None:
    """The table is described up to the last symbol that occurs, absent ones before it included."""
    plane = skewed(30_000, DISTRIBUTIONS[name]) + np.uint8(min(shift, 255 - len(DISTRIBUTIONS[name]) + 1))
    assert is_literals(check(tmp_path / "x", plane, dim=10)[-1])


def test_symbols_far_apart(tmp_path: Path) -> None:
    for i, symbols in enumerate(
        [[0, 255], [0, 1, 255], [3, 200, 254, 255], [255], [0], list(range(0, 256, 5))]
    ):
        rng = np.random.default_rng(i)
        plane = np.array(symbols, np.uint8)[np.minimum(rng.geometric(0.4, 50_000) - 1, len(symbols) - 1)]
        check(tmp_path / str(i), plane, dim=50)


@pytest.mark.parametrize("symbol", [0, 1, 63, 255])
def test_one_symbol(tmp_path: Path, symbol: int) -> None:
    for n in (64, 256, 1000, BLOCK, BLOCK + 1, 300_000):
        check(tmp_path / str(n), np.full(n, symbol, np.uint8))


def test_noise_is_stored_as_it_is(tmp_path: Path) -> None:
    plane = noise(100_000, 9)
    parts = check(tmp_path / "x", plane, dim=100)
    assert parts[-1] == plane.tobytes()
    everything = np.random.default_rng(0).permutation(np.repeat(np.arange(256, dtype=np.uint8), 400))
    assert len(check(tmp_path / "y", everything, dim=100)[-1]) == len(everything)


EDGES = [64, 65, 127, 128, 129, 255, 256, 257, 511, 1023, 1024, 16_383, 16_384, 16_385]
BORDERS = [k * BLOCK + d for k in (1, 2, 3) for d in (-65, -4, -1, 0, 1, 2, 3, 5, 63, 64, 65, 255, 256)]


@pytest.mark.parametrize(
    "name", ["two symbols, one rare", "Fibonacci", "exponents", "geometric, 256 symbols"]
)
def test_lengths(tmp_path: Path, name: str) -> None:
    """Short planes, which blosc does not split, and those whose last block has hardly anything."""
    counts = DISTRIBUTIONS[name]
    for n in EDGES:
        if n > len(counts):
            check(tmp_path / str(n), skewed(n, counts))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["two symbols, one rare", "Fibonacci", "exponents", "geometric, 256 symbols"]
)
def test_lengths_about_the_borders_of_blocks(tmp_path: Path, name: str) -> None:
    for n in BORDERS:
        assert is_literals(check(tmp_path / str(n), skewed(n, DISTRIBUTIONS[name]))[-1])


def test_a_block_that_does_not_compress_between_some_that_do(tmp_path: Path) -> None:
    """The table stays that of the first block that has one, also over blocks stored as they are."""
    good = skewed(BLOCK, DISTRIBUTIONS["exponents"])
    for i, order in enumerate(
        [[good, noise(BLOCK, 3), good], [noise(BLOCK, 4), good, good], [good, good, noise(9)]]
    ):
        check(tmp_path / str(i), np.concatenate(order))


def test_blocks_of_one_symbol_among_others(tmp_path: Path) -> None:
    """A block of nothing but the rarest symbol takes eleven bits a byte if it is coded."""
    plane = np.concatenate(
        [skewed(2 * BLOCK, FIBONACCI), np.full(BLOCK, 0, np.uint8), skewed(500, FIBONACCI)]
    )
    check(tmp_path / "x", plane)
    rare = np.concatenate([np.full(3 * BLOCK, 7, np.uint8), np.arange(256, dtype=np.uint8)])
    check(tmp_path / "y", rare)


@pytest.mark.parametrize("n", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_any_plane(n: int) -> None:
    @settings(max_examples=n, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(st.sampled_from(EDGES), st.integers(1, 5000), st.integers(BLOCK - 300, 2 * BLOCK + 300)),
        st.lists(st.floats(-30, 10), min_size=1, max_size=256),
        st.integers(0, 2**32 - 1),
        st.sampled_from([2, 4]),
    )
    def check_any(length: int, logits: list[float], seed: int, size: int) -> None:
        rng = np.random.default_rng(seed)
        share = np.exp(logits) / np.exp(logits).sum()
        symbols = rng.permutation(256)[: len(share)].astype(np.uint8)
        with scratch() as folder:
            check(folder / "x", rng.choice(symbols, length, p=share), size=size)

    check_any()
