"""Groups that others wrote: which arrays are sites, how they are divided into examples, what is refused."""

import re
import warnings
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
import zarr
from foreign import (
    CRC,
    FILLS,
    LITTLE,
    WRITERS,
    blosc,
    metadata,
    plain,
    put,
    put_group,
    reads_the_same,
    smooth,
    written,
)
from oracle import DTYPES, assert_same, open_tensorstore


def consolidate(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of what version 3 does not specify yet.
        zarr.consolidate_metadata(path)


@pytest.mark.parametrize("consolidated", [False, True])
def test_a_group_of_all_sorts(tmp_path: Path, consolidated: bool) -> None:
    """Float arrays of the root with two or three axes are sites of one example; all else is left alone."""
    rng = np.random.default_rng(0)
    sites = {
        "a": rng.normal(size=(20, 2, 3)).astype(np.float32),
        "b": rng.normal(size=(20, 4, 7)),
        "c": rng.normal(size=(20, 1, 5)).astype(DTYPES["bfloat16"]),
    }
    root = zarr.create_group(tmp_path / "g", attributes={"author": "somebody", "n": [1, 2]})
    for name, array in sites.items():
        plain(tmp_path / "g", name, array, chunks=(7, 1, 3))
    matrix = rng.normal(size=(20, 3)).astype(np.float32)
    plain(tmp_path / "g", "matrix", matrix, chunks=(7, 2))
    sites["matrix"] = matrix[:, None]
    plain(tmp_path / "g", "counts", rng.integers(0, 9, (20, 2, 3)))
    plain(tmp_path / "g", "flat counts", rng.integers(0, 9, (20, 3)))
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
        assert sorted(store.sites) == ["a", "b", "c", "matrix"]
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
            assert store.axes[store[name].axis].offsets.tolist() == [0, len(array)]


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


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint64", "uint8"])
def test_offsets_without_our_metadata_are_used(tmp_path: Path, dtype: str) -> None:
    array = smooth((9, 1, 2), "float32")
    root = zarr.create_group(tmp_path)
    plain(tmp_path, "a", array)
    root.create_array("tokens/offset", data=np.array([0, 2, 2, 9], dtype))
    root.create_array("tokens/id", data=np.arange(9, dtype=np.uint16))
    with actstore.open(tmp_path) as store:
        assert store.n_examples == 3
        assert_same(store["a"].example(2), array[2:])
        assert_same(store.tokens.offsets, np.array([0, 2, 2, 9]))
        assert_same(store.tokens["id"], np.arange(9, dtype=np.uint16))


@pytest.mark.parametrize("offset", [[1, 9], [0, 8], [0, 10], [0, 5, 4, 9], [0, -1, 9], [0, 2**62, 9]])
def test_offsets_that_are_none(tmp_path: Path, offset: list[int]) -> None:
    root = zarr.create_group(tmp_path)
    plain(tmp_path, "a", smooth((9, 1, 2), "float32"))
    root.create_array("tokens/offset", data=np.array(offset, np.int64))
    with actstore.open(tmp_path) as store:
        with pytest.raises(actstore.FormatError, match="tokens/offset"):
            store["a"].example(0)
        assert store["a"].read().shape == (9, 1, 2)


def test_a_group_within_a_group_opens_by_itself(tmp_path: Path) -> None:
    array = smooth((6, 2, 3), "float32")
    zarr.create_group(tmp_path / "g").create_group("runs").create_group("one")
    plain(tmp_path / "g/runs/one", "a", array)
    with actstore.open(tmp_path / "g/runs/one") as store:
        assert_same(store["a"].read(), array)
    with actstore.open(tmp_path / "g") as store:
        assert store.sites == []


def test_an_array_is_no_store(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=smooth((6, 2, 3), "float32"))
    with pytest.raises(actstore.FormatError, match="not a Zarr v3 group"):
        actstore.open(tmp_path / "a")


def test_a_group_of_version_2_is_no_store(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "g", zarr_format=2)
    with pytest.raises(actstore.NotFoundError, match=r"zarr\.json"):
        actstore.open(tmp_path / "g")


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
    named = "string" if dtype == "string" else codec
    assert named in str(caught.value)
    assert "bad" in str(caught.value)

    array = smooth((4, 1, 2), "float32")
    put_group(tmp_path / "both")
    put(tmp_path / "both" / "bad", bad)
    plain(tmp_path / "both", "good", array)
    with actstore.open(tmp_path / "both") as store:
        assert store.sites == ["good"]
        assert_same(store["good"].read(), array)
        assert "bad" not in store
        with pytest.raises(actstore.FormatError, match=re.escape(named)) as caught:
            store["bad"]
        assert caught.value.kind == "unsupported"


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
    put(
        tmp_path / "a",
        node
        | {
            "hint": {"name": "x", "must_understand": False},
            "storage_transformers": [],
            "dimension_names": None,
        },
    )
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
