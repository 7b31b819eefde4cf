"""Arrays that zarr-python and tensorstore wrote are read as they read them themselves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from foreign import (
    CRC,
    FILLS,
    LITTLE,
    RELAXED,
    WRITERS,
    blosc,
    metadata,
    put,
    put_group,
    reads_the_same,
    smooth,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import DTYPES, assert_same, scratch, values

# zarr-python compares chunks with the fill value, and ml_dtypes warns when NaNs are compared.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")


@dataclass
class Drawn:
    """An array to be written by somebody else."""

    node: dict[str, Any]
    boxes: list[list[tuple[int, int]]]
    pattern: str
    seed: int
    by: str


def bytes_codecs(size: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    """What may follow `bytes`: a compressor or none, checksums before and after, or two compressors."""
    any_blosc = st.builds(
        blosc,
        st.sampled_from(["zstd", "lz4", "lz4hc", "zlib"]),
        st.sampled_from(["shuffle", "bitshuffle", "noshuffle"]),
        st.sampled_from([size, size, 1, 3, 4, 16, 100]),
        st.sampled_from([0, 1, 5, 9]),
        st.sampled_from([0, 0, 256, 1000, 4096, 1 << 20]),
    )
    zstd = st.builds(
        lambda level, checksum: {"name": "zstd", "configuration": {"level": level, "checksum": checksum}},
        st.sampled_from([-5, 0, 1, 9]),
        st.booleans(),
    )
    gzip = st.sampled_from([{"name": "gzip", "configuration": {"level": n}} for n in (0, 1, 9)])
    one = st.one_of(any_blosc, zstd, gzip)
    return st.one_of(
        st.just([]),
        st.just([CRC]),
        one.map(lambda c: [c]),
        one.map(lambda c: [c, CRC]),
        st.one_of(zstd, gzip).map(lambda c: [CRC, c]),
        st.tuples(st.one_of(any_blosc, zstd, gzip), st.one_of(zstd, gzip)).map(list),
    )


@st.composite
def foreign_arrays(draw: st.DrawFn) -> Drawn:
    """Any float array of two or three axes in the codec subset, and where it is written."""
    by = draw(st.sampled_from(list(WRITERS)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    size = DTYPES[dtype].itemsize
    shape = [draw(st.integers(0, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 40))]
    chunk = [draw(st.integers(1, 17)), draw(st.integers(1, 3)), draw(st.integers(1, 50))]
    if draw(st.booleans()):  # Without layers: [rows, dim].
        del shape[1], chunk[1]
    shard = [c * draw(st.integers(1, 3)) for c in chunk] if draw(st.booleans()) else None
    # zarr-python has no swapped bfloat16, as numpy cannot tell one.
    ends = ["little"] if by == "zarr-python" and dtype == "bfloat16" else ["little", "big"]
    codecs = [{"name": "bytes", "configuration": {"endian": draw(st.sampled_from(ends))}}]
    if draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        codecs.insert(0, {"name": "transpose", "configuration": {"order": list(order)}})
    codecs += draw(bytes_codecs(size))
    # zarr-python forgets the payload of a NaN, so it is given another number in this form.
    number = values(np.random.default_rng(1), "constant", (1,), DTYPES[dtype])
    if by == "tensorstore":
        number = np.array([np.nan], DTYPES[dtype])
        number.view(f"u{size}")[0] += 1
    in_hex = f"0x{int(number.view(f'u{size}')[0]):0{2 * size}x}"
    node = metadata(
        shape,
        dtype,
        chunk,
        codecs,
        shard=shard,
        index_codecs=draw(st.sampled_from([[LITTLE, CRC], [LITTLE]])),
        index_location=draw(st.sampled_from(["start", "end"])),
        fill=draw(st.sampled_from([*FILLS, in_hex])),
        keys=draw(st.sampled_from([(name, mark) for name in ("default", "v2") for mark in "/."])),
    )
    whole = [[(0, n) for n in shape]]
    ranges = [
        st.integers(0, n).flatmap(lambda a, n=n: st.integers(a, n).map(lambda b, a=a: (a, b))) for n in shape
    ]
    boxes = whole if draw(st.booleans()) else draw(st.lists(st.tuples(*ranges).map(list), max_size=3))
    pattern = draw(st.sampled_from(["normal", "zeros", "repeated rows", "any bits", "sparse", "specials"]))
    return Drawn(node, boxes, pattern, draw(st.integers(0, 2**32 - 1)), by)


def read_as_written(drawn: Drawn) -> None:
    rng = np.random.default_rng(drawn.seed)
    dtype = DTYPES[drawn.node["data_type"]]
    boxes = []
    for box in drawn.boxes:
        place = tuple(slice(a, b) for a, b in box)
        boxes.append((place, values(rng, drawn.pattern, tuple(b - a for a, b in box), dtype)))
    with scratch() as folder:
        put_group(folder / "g")
        want = written(folder / "g" / "site", drawn.node, boxes, drawn.by)
        reads_the_same(folder / "g", "site", want if want.ndim == 3 else want[:, None], drawn.seed)


@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_an_array_is_read_as_its_writer_reads_it(n: int) -> None:
    settings(RELAXED, max_examples=n)(given(foreign_arrays())(read_as_written))()


# ---- Codecs one by one, over chunks of several blocks ----


@pytest.mark.parametrize("shuffle", ["shuffle", "bitshuffle", "noshuffle"])
@pytest.mark.parametrize("cname", ["zstd", "lz4", "lz4hc", "zlib"])
@pytest.mark.parametrize("by", WRITERS)
def test_blosc(tmp_path: Path, by: str, cname: str, shuffle: str) -> None:
    put_group(tmp_path)
    wants = {}
    for dtype in ("float16", "float32"):
        size = DTYPES[dtype].itemsize
        # 1003 rows: blocks at the end whose elements do not divide by eight, which blosc treats apart.
        for rows, typesize, clevel, blocksize in [
            (1003, size, 5, 0),
            (1003, size, 1, 4096),
            (1000, size, 9, 1 << 20),
            (1003, size, 0, 0),
            (1003, 1, 5, 0),
            (1003, 8, 5, 1000),
            (1003, 3, 5, 0),
            (1003, 17, 5, 512),
            (1, size, 5, 0),
        ]:
            name = f"{dtype} {rows} {typesize} {clevel} {blocksize}"
            shape = (rows, 2, 5)
            codecs = [LITTLE, blosc(cname, shuffle, typesize, clevel, blocksize)]
            node = metadata(list(shape), dtype, list(shape), codecs)
            box = (slice(None), slice(None), slice(None))
            wants[name] = written(tmp_path / name, node, [(box, smooth(shape, dtype))], by)
            assert_same(wants[name], smooth(shape, dtype))
    for name, want in wants.items():
        reads_the_same(tmp_path, name, want)


@pytest.mark.slow
def test_blosc_in_all_its_forms() -> None:
    """Frames of numcodecs itself, put where the chunk belongs: thousands, with no reader in between."""
    from numcodecs import Blosc

    shuffles = {"noshuffle": Blosc.NOSHUFFLE, "shuffle": Blosc.SHUFFLE, "bitshuffle": Blosc.BITSHUFFLE}
    rng = np.random.default_rng(1)
    with scratch() as folder:
        put_group(folder)
        for dtype, n in [("bfloat16", 1003), ("float16", 70_001), ("float32", 33_333), ("float64", 4097)]:
            path = folder / "site"
            array = smooth((n, 1, 1), dtype, n)
            for cname in ("zstd", "lz4", "lz4hc", "zlib"):
                for shuffle, number in shuffles.items():
                    for typesize in (1, 2, 3, 4, 7, 8, 16, 255):
                        clevel, blocksize = (
                            int(rng.integers(0, 10)),
                            int(rng.choice([0, 0, 128, 1001, 65536])),
                        )
                        codec = blosc(cname, shuffle, typesize, clevel, blocksize)
                        put(path, metadata([n, 1, 1], dtype, [n, 1, 1], [LITTLE, codec]))
                        frame = Blosc(cname, clevel, number, blocksize, typesize=typesize).encode(
                            array.tobytes()
                        )
                        (path / "c/0/0").mkdir(parents=True, exist_ok=True)
                        (path / "c/0/0/0").write_bytes(frame)
                        with actstore.open(folder) as store:
                            assert_same(store["site"].read(), array, codec)


@pytest.mark.parametrize("by", WRITERS)
@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "zstd", "configuration": {"level": level, "checksum": checksum}}]
        for level in (-7, 0, 1, 3, 12)
        for checksum in (False, True)
    ]
    + [[{"name": "gzip", "configuration": {"level": level}}] for level in (0, 1, 6, 9)]
    + [[CRC], [{"name": "gzip", "configuration": {"level": 1}}, CRC]],
    ids=str,
)
def test_zstd_gzip_and_crc(tmp_path: Path, by: str, codecs: list[dict[str, Any]]) -> None:
    put_group(tmp_path)
    box = (slice(None), slice(None), slice(None))
    content = smooth((700, 3, 50), "float32")
    node = metadata([700, 3, 50], "float32", [300, 2, 50], [LITTLE, *codecs])
    want = written(tmp_path / "site", node, [(box, content)], by)
    reads_the_same(tmp_path, "site", want)
