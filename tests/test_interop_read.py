"""What zarr-python and tensorstore wrote is read as they read it themselves.

Metadata are written here by hand, so that each form of them is said in full, and both writers open
the same ones; the oracle is what the writer reads back.
"""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import DTYPES, assert_same, open_tensorstore, scratch, values

RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}


def blosc(
    cname: str = "zstd",
    shuffle: str = "shuffle",
    typesize: int = 2,
    clevel: int = 5,
    blocksize: int = 0,
) -> dict[str, Any]:
    names = {"cname": cname, "shuffle": shuffle, "typesize": typesize, "clevel": clevel}
    return {"name": "blosc", "configuration": {**names, "blocksize": blocksize}}


def metadata(
    shape: list[int],
    dtype: str,
    chunk: list[int],
    codecs: list[dict[str, Any]],
    *,
    shard: list[int] | None = None,
    index_codecs: list[dict[str, Any]] | None = None,
    index_location: str = "end",
    fill: Any = 0,
    keys: tuple[str, str] = ("default", "/"),
) -> dict[str, Any]:
    """An array's ``zarr.json``."""
    if shard is not None:
        configuration = {
            "chunk_shape": chunk,
            "codecs": codecs,
            "index_codecs": [LITTLE, CRC] if index_codecs is None else index_codecs,
            "index_location": index_location,
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or chunk}},
        "chunk_key_encoding": {"name": keys[0], "configuration": {"separator": keys[1]}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
    }


def put(path: Path, node: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "zarr.json").write_text(json.dumps(node))


def put_group(path: Path, attributes: dict[str, Any] | None = None) -> None:
    put(path, {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}})


def with_zarr(path: Path) -> Any:
    return zarr.open_array(store=path, mode="r+")


Opener = Callable[[Path], Any]
WRITERS: dict[str, Opener] = {"zarr-python": with_zarr, "tensorstore": open_tensorstore}


def written(
    path: Path, node: dict[str, Any], boxes: list[tuple[tuple[slice, ...], np.ndarray]], by: str
) -> Any:
    """Writes an array in some boxes, and gives back what its writer reads then."""
    put(path, node)
    array = WRITERS[by](path)
    for box, content in boxes:
        array[box] = content
    return np.asarray(WRITERS[by](path)[...])


def smooth(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Values that every shuffle and compressor gains on, with a stretch in which none does."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    out = np.round(np.cumsum(rng.normal(size=n)), 1).astype(DTYPES[dtype])
    out[n // 2 : n // 2 + n // 5] = rng.normal(size=n // 5).astype(DTYPES[dtype])
    return out.reshape(shape)


def reads_the_same(path: Path, name: str, want: np.ndarray, seed: int = 0) -> None:
    """The site as a whole and by every other way that chunks are walked."""
    rng = np.random.default_rng(seed)
    with actstore.open(path) as store:
        site = store[name]
        assert_same(site.read(), want, name)
        rows, layers, _ = want.shape
        if not want.size:
            return
        picked = rng.integers(-rows, rows, 2 * rows)
        assert_same(site[picked], want[picked])
        assert_same(site[::-1], want[::-1])
        layer = int(rng.integers(layers))
        assert_same(site[rows // 3 :, layer], want[rows // 3 :, layer])
        assert_same(site[int(picked[0]), layer], want[picked[0], layer])
        some = rng.permutation(layers)[: max(1, layers - 1)].tolist()
        assert_same(site[1:, some], want[1:, some])
        wide = site.select(tokens=picked).read("float64")
        with np.errstate(all="ignore"):  # Signalling NaNs.
            np.testing.assert_array_equal(wide, want[picked].astype(np.float64))


# ---- Any array in the subset ----


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


FILLS = ["NaN", 0, 0.0, -0.0, 1.5, -2, "Infinity", "-Infinity"]


@st.composite
def foreign_arrays(draw: st.DrawFn) -> Drawn:
    """Any 3-D float array in the codec subset, and where it is written."""
    by = draw(st.sampled_from(list(WRITERS)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    size = DTYPES[dtype].itemsize
    shape = [draw(st.integers(0, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 40))]
    chunk = [draw(st.integers(1, 17)), draw(st.integers(1, 3)), draw(st.integers(1, 50))]
    shard = [c * draw(st.integers(1, 3)) for c in chunk] if draw(st.booleans()) else None
    # zarr-python has no swapped bfloat16, as numpy cannot tell one.
    ends = ["little"] if by == "zarr-python" and dtype == "bfloat16" else ["little", "big"]
    codecs = [{"name": "bytes", "configuration": {"endian": draw(st.sampled_from(ends))}}]
    if draw(st.booleans()):
        order = draw(st.permutations(range(3)))
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
        reads_the_same(folder / "g", "site", want, drawn.seed)


@pytest.mark.parametrize("n", [60, pytest.param(500, marks=pytest.mark.slow)])
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


# ---- Groups ----


def plain(path: Path, name: str, array: np.ndarray, **options: Any) -> None:
    """An array as `zarr.create_array` makes it by default."""
    group = zarr.open_group(path, mode="r+")
    group.create_array(name, data=array, **options)


def consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of what version 3 does not specify yet.
        zarr.consolidate_metadata(path)


@pytest.mark.parametrize("consolidated", [False, True])
def test_a_group_of_all_sorts(tmp_path: Path, consolidated: bool) -> None:
    """3-D float arrays of the root are sites, one axis, one example; all else is left alone."""
    rng = np.random.default_rng(0)
    sites = {
        "a": rng.normal(size=(20, 2, 3)).astype(np.float32),
        "b": rng.normal(size=(20, 4, 7)),
        "c": rng.normal(size=(20, 1, 5)).astype(DTYPES["bfloat16"]),
    }
    root = zarr.create_group(tmp_path / "g", attributes={"author": "somebody", "n": [1, 2]})
    for name, array in sites.items():
        plain(tmp_path / "g", name, array, chunks=(7, 1, 3))
    plain(tmp_path / "g", "counts", rng.integers(0, 9, (20, 2, 3)))
    plain(tmp_path / "g", "matrix", rng.normal(size=(20, 3)))
    plain(tmp_path / "g", "volume", rng.normal(size=(2, 3, 4, 5)))
    plain(tmp_path / "g", "line", rng.normal(size=20))
    plain(tmp_path / "g", "complex", rng.normal(size=(4, 1, 3)).astype(np.complex64))
    root.create_array("scalar", shape=(), dtype="f4")
    inner = root.create_group("nested").create_group("deeper")
    inner.create_array("site", data=rng.normal(size=(9, 2, 2)))
    if consolidated:
        consolidate(tmp_path / "g")
    (tmp_path / "g" / "notes.txt").write_text("not Zarr")
    (tmp_path / "g" / "empty").mkdir()

    with actstore.open(tmp_path / "g") as store:
        assert sorted(store.sites) == ["a", "b", "c"]
        assert (store.n_tokens, store.n_examples, list(store.axes)) == (20, 1, ["tokens"])
        assert store.identity == {}
        for name, array in sites.items():
            assert_same(store[name].read(), array)
            assert store[name].layers == list(range(array.shape[1]))
            assert_same(store[name].example(0), array)
        assert store.examples["id"].tolist() == ["0"]
        assert store.verify().ok


def test_arrays_of_unequal_length_are_axes_of_their_own(tmp_path: Path) -> None:
    zarr.create_group(tmp_path)
    arrays = {name: smooth((n, 1, 2), "float32") for name, n in [("x", 5), ("y", 9)]}
    for name, array in arrays.items():
        plain(tmp_path, name, array)
    with actstore.open(tmp_path) as store:
        assert store.n_examples == 1
        assert store["x"].axis != store["y"].axis
        for name, array in arrays.items():
            assert_same(store[name].read(), array)
            assert store.axes[store[name].axis].offset.tolist() == [0, len(array)]


@pytest.mark.parametrize("name", ["tokens", "examples"])
def test_sites_called_as_our_groups_are(tmp_path: Path, name: str) -> None:
    array = smooth((6, 2, 3), "float32")
    zarr.create_group(tmp_path)
    plain(tmp_path, name, array)
    with actstore.open(tmp_path) as store:
        assert_same(store[name].read(), array)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (4, 2, 0)])
def test_arrays_of_nothing(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    zarr.create_group(tmp_path)
    zarr.open_group(tmp_path, mode="r+").create_array("a", shape=shape, chunks=(2, 1, 1), dtype="f4")
    with actstore.open(tmp_path) as store:
        assert store["a"].read().shape == shape
        assert store["a"][:, :, :].shape == shape


@pytest.mark.parametrize("by", WRITERS)
@pytest.mark.parametrize("fill", [*FILLS, "0x7fc1"])
@pytest.mark.parametrize("sharded", [False, True])
def test_missing_chunks_are_the_fill_value(tmp_path: Path, by: str, fill: Any, sharded: bool) -> None:
    put_group(tmp_path)
    node = metadata(
        [10, 2, 6], "bfloat16", [2, 1, 4], [LITTLE, CRC], fill=fill, shard=[4, 2, 8] if sharded else None
    )
    box = (slice(5, 7), slice(1, 2), slice(0, 3))
    want = written(tmp_path / "site", node, [(box, np.full((2, 1, 3), 7, DTYPES["bfloat16"]))], by)
    reads_the_same(tmp_path, "site", want)
    only = written(tmp_path / "none", node, [], by)
    reads_the_same(tmp_path, "none", only)


@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_group_with_our_metadata(tmp_path: Path, consolidated: bool, sharded: bool) -> None:
    """Sites, axes, labels, columns and ids by our conventions, though no commit was ever made."""
    rng = np.random.default_rng(3)
    ids = ["one", "zwölf", "", "four"]
    raw = [name.encode() for name in ids]
    lengths = {"encoder": [3, 0, 5, 1], "decoder": [2, 2, 2, 0]}
    acts = {
        "enc": rng.normal(size=(9, 2, 8)).astype(np.float32),
        "dec": rng.normal(size=(6, 3, 4)).astype(DTYPES["bfloat16"]),
        "pooled": rng.normal(size=(4, 1, 8)).astype(np.float16),
    }
    own = {
        "format": 1,
        "identity": {"weights": "abc"},
        "axes": {"encoder": {}, "decoder": {}},
        "sites": {
            "enc": {"axis": "encoder", "labels": [6, 12]},
            "dec": {"axis": "decoder", "labels": [0, 5, 3]},
            "pooled": {"axis": "examples", "labels": [9]},
        },
    }
    root = zarr.create_group(tmp_path / "g", attributes={"actstore": own, "else": 1})
    sharding: dict[str, Any] = (
        {"chunks": (2, 1, 4), "shards": (4, 3, 8)} if sharded else {"chunks": (2, 1, 4)}
    )
    for name, array in acts.items():
        chosen = {**sharding, "shards": (4, array.shape[1], 8)} if sharded else sharding
        root.create_array(name, shape=array.shape, dtype=array.dtype, fill_value="NaN", **chosen)[:] = array
    for axis, sizes in lengths.items():
        root.create_array(f"{axis}/offset", data=np.cumsum([0, *sizes]))
    root.create_array("encoder/id", data=np.arange(9, dtype=np.int32), chunks=(4,))
    root.create_array("examples/id/bytes", data=np.frombuffer(b"".join(raw), np.uint8))
    root.create_array("examples/id/offset", data=np.cumsum([0, *map(len, raw)]))
    root.create_array("examples/score", data=np.array([1.5, np.nan, 0, -1]))
    if consolidated:
        consolidate(tmp_path / "g")

    with actstore.open(tmp_path / "g") as store:
        assert (store.n_examples, set(store.axes)) == (4, {"encoder", "decoder"})
        assert store.identity == {"weights": "abc"}
        assert store["enc"].layers == [6, 12]
        assert store["pooled"].axis == "examples"
        for name, array in acts.items():
            assert_same(store[name].read(), array)
        assert_same(store["dec"].select(layers=[3, 0], examples="zwölf").read(), acts["dec"][2:4][:, [2, 0]])
        assert_same(store["enc"].example(2), acts["enc"][3:8])
        assert store["enc"].example("zwölf").shape == (0, 2, 8)
        assert store.examples["id"].tolist() == ids
        assert_same(store.examples["score"], np.array([1.5, np.nan, 0, -1]))
        assert_same(store.axes["encoder"]["id"], np.arange(9, dtype=np.int32))


def test_a_group_with_our_metadata_that_lacks_offsets_is_one_example(tmp_path: Path) -> None:
    own = {"format": 1, "axes": {"tokens": {}}, "sites": {"a": {"axis": "tokens", "labels": [7]}}}
    zarr.create_group(tmp_path, attributes={"actstore": own})
    array = smooth((4, 1, 2), "float32")
    plain(tmp_path, "a", array)
    with actstore.open(tmp_path) as store:
        assert (store.n_examples, store["a"].layers) == (1, [7])
        assert_same(store["a"].example("0"), array)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"format": 1, "axes": {"tokens": {}}, "sites": {"b": {"axis": "tokens", "labels": [7]}}}, "'b'"),
        (
            {"format": 1, "axes": {"tokens": {}}, "sites": {"a": {"axis": "tokens", "labels": [7, 8]}}},
            "2 layers",
        ),
        ({"format": 1, "axes": {}, "sites": {"a": {"axis": "tokens", "labels": [7]}}}, "axis"),
        ({"format": 1, "axes": {"tokens": {}}, "sites": {"a": {"axis": "tokens", "labels": [-1]}}}, "labels"),
        ({"format": 2, "axes": {"tokens": {}}, "sites": {}}, "format 2"),
    ],
    ids=["no array", "too many labels", "no axis", "negative label", "later format"],
)
def test_a_group_whose_metadata_contradict_it(tmp_path: Path, own: dict[str, Any], named: str) -> None:
    zarr.create_group(tmp_path, attributes={"actstore": own})
    plain(tmp_path, "a", smooth((4, 1, 2), "float32"))
    with pytest.raises(actstore.FormatError, match=named) as caught:
        actstore.open(tmp_path)
    assert caught.value.kind == ("version" if own["format"] == 2 else "metadata")


def test_offsets_without_our_metadata_are_used(tmp_path: Path) -> None:
    array = smooth((9, 1, 2), "float32")
    root = zarr.create_group(tmp_path)
    plain(tmp_path, "a", array)
    root.create_array("tokens/offset", data=np.array([0, 2, 2, 9]))
    root.create_array("tokens/id", data=np.arange(9, dtype=np.uint16))
    with actstore.open(tmp_path) as store:
        assert store.n_examples == 3
        assert_same(store["a"].example(2), array[2:])
        assert_same(store.tokens["id"], np.arange(9, dtype=np.uint16))


# ---- What is not read says so ----

VLEN = {"name": "vlen-utf8"}
REFUSED = {
    "numcodecs.pcodec": [{"name": "numcodecs.pcodec", "configuration": {}}],
    "numcodecs.delta": [{"name": "numcodecs.delta", "configuration": {"dtype": "<f4"}}, LITTLE],
    "bitround": [{"name": "bitround", "configuration": {"keepbits": 3}}, LITTLE],
    "packbits": [{"name": "packbits"}],
    "vlen-utf8": [VLEN],
    "lz4": [LITTLE, {"name": "lz4", "configuration": {"acceleration": 1}}],
}


@pytest.mark.parametrize("codec", REFUSED)
def test_an_unknown_codec_is_named_and_the_rest_is_read(tmp_path: Path, codec: str) -> None:
    dtype = "string" if codec == "vlen-utf8" else "float32"
    bad = metadata([4, 1, 2], dtype, [4, 1, 2], REFUSED[codec], fill="" if dtype == "string" else 0)
    put_group(tmp_path / "alone")
    put(tmp_path / "alone" / "bad", bad)
    with pytest.raises(actstore.FormatError) as caught:
        actstore.open(tmp_path / "alone")
    assert caught.value.kind == "unsupported"
    assert ("string" if dtype == "string" else codec) in str(caught.value)
    assert "bad" in str(caught.value)

    array = smooth((4, 1, 2), "float32")
    put_group(tmp_path / "both")
    put(tmp_path / "both" / "bad", bad)
    plain(tmp_path / "both", "good", array)
    with actstore.open(tmp_path / "both") as store:
        assert store.sites == ["good"]
        assert_same(store["good"].read(), array)
        assert "bad" not in store


@pytest.mark.parametrize("cname", ["blosclz", "snappy"])
def test_compressors_inside_blosc_that_are_not_read(tmp_path: Path, cname: str) -> None:
    zarr.create_group(tmp_path)
    array = np.zeros((500, 1, 20), np.float32)
    array[::7] = 1
    if cname == "snappy":  # Left out of most builds of blosc; the header says it all the same.
        put(tmp_path / "bad", metadata([500, 1, 20], "float32", [500, 1, 20], [LITTLE, blosc("snappy")]))
        frame = bytes([2, 1, 0b0101_0001, 4]) + np.array([40_000, 40_000, 28, 20, 4, 0], "<u4").tobytes()
        (tmp_path / "bad/c/0/0").mkdir(parents=True)
        (tmp_path / "bad/c/0/0/0").write_bytes(frame)
    else:
        plain(tmp_path, "bad", array, compressors=[zarr.codecs.BloscCodec(cname=cname, shuffle="shuffle")])
    plain(tmp_path, "good", array)
    with actstore.open(tmp_path) as store:
        assert_same(store["good"].read(), array)
        with pytest.raises(actstore.FormatError, match=cname) as caught:
            store["bad"].read()
    assert caught.value.kind == "unsupported"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"storage_transformers": [{"name": "cache", "configuration": {}}]}, "storage transformer"),
        (
            {"chunk_grid": {"name": "rectangular", "configuration": {"chunk_shape": [[4], [1], [2]]}}},
            "rectangular",
        ),
        ({"chunk_key_encoding": {"name": "fanout"}}, "fanout"),
        ({"something_new": {"name": "x"}}, "something_new"),
        ({"data_type": "float8_e4m3"}, "float8_e4m3"),
        ({"zarr_format": 4}, "zarr_format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_extensions_that_must_be_understood(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    put_group(tmp_path)
    put(tmp_path / "bad", metadata([4, 1, 2], "float32", [4, 1, 2], [LITTLE]) | change)
    with pytest.raises(actstore.FormatError, match=named) as caught:
        actstore.open(tmp_path)
    assert caught.value.kind == "unsupported"


def test_extensions_that_need_not_be_understood(tmp_path: Path) -> None:
    put_group(tmp_path)
    node = metadata([4, 1, 2], "float32", [4, 1, 2], [LITTLE], fill=2.5)
    put(tmp_path / "a", node | {"hint": {"name": "x", "must_understand": False}, "storage_transformers": []})
    with actstore.open(tmp_path) as store:
        assert_same(store["a"].read(), np.full((4, 1, 2), 2.5, np.float32))


def test_the_shorter_forms_of_metadata(tmp_path: Path) -> None:
    """Names in place of objects and defaults left out, as the specification allows."""
    put_group(tmp_path)
    node = metadata([4, 1, 2], "float32", [4, 1, 2], [LITTLE, "crc32c"])  # type: ignore[list-item]
    node["chunk_key_encoding"] = {"name": "v2"}
    box = (slice(None), slice(None), slice(None))
    content = smooth((4, 1, 2), "float32")
    full = metadata([4, 1, 2], "float32", [4, 1, 2], [LITTLE, CRC], keys=("v2", "."))
    written(tmp_path / "a", full, [(box, content)], "tensorstore")
    put(tmp_path / "a", node)
    reads_the_same(tmp_path, "a", content)


def test_tensorstore_writes_while_we_read_anew(tmp_path: Path) -> None:
    """A foreign array has no commits: each open sees what is there."""
    put_group(tmp_path)
    node = metadata([0, 2, 3], "float16", [4, 1, 3], [LITTLE, CRC], shard=[8, 2, 3], fill="NaN")
    put(tmp_path / "a", node)
    whole = smooth((30, 2, 3), "float16")
    for n in (3, 8, 21, 30):
        array = open_tensorstore(tmp_path / "a").resize(exclusive_max=[n, None, None]).result()
        array[:n] = whole[:n]
        reads_the_same(tmp_path, "a", whole[:n])
    assert isinstance(array, tensorstore.TensorStore)
