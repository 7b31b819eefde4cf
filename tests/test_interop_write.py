"""What we write, zarr-python and tensorstore read with equal bytes, at every stage of a store's life."""

import json
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
import zarr
from children import LIMIT
from google_crc32c import value as crc32c
from numcodecs import Blosc
from oracle import (
    DTYPES,
    Expected,
    Plan,
    Step,
    appends,
    assert_same,
    bits,
    check_actstore,
    check_tensorstore,
    check_zarr,
    expected,
    open_tensorstore,
    write,
    write_append,
)

BFLOAT16 = DTYPES["bfloat16"]


def open_quietly(path: Path) -> zarr.Group:
    """The group as zarr-python opens it, any warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return zarr.open_group(path, mode="r")


def a_plan(codec: str = "blosc", after: str = "commit") -> Plan:
    """Two axes, a pooled site, columns of each sort; shards of three chunks, so that tails grow and fill."""
    lengths = [[2, 0, 3], [1], [], [0, 0], [7, 4], [1, 1, 1], [13], [2]]
    steps = [Step({"tokens": each, "decoder": each[::-1]}, len(each), after) for each in lengths]
    sites = {
        "resid": actstore.SiteSpec(3, 8, "bfloat16", labels=[0, 6, 12], chunk_rows=2, shard_rows=6),
        "cross": actstore.SiteSpec(1, 5, "float16", axis="decoder", chunk_rows=3, shard_rows=9),
        "pooled": actstore.SiteSpec(2, 4, "float32", axis="examples", chunk_rows=2, shard_rows=4),
        "wide": actstore.SiteSpec(1, 200, "float32"),
    }
    columns = {"tokens": {"id": "int32", "special": "bool", "log prob": "float64"}}
    patterns = dict.fromkeys(sites, "normal") | {"resid": "any bits"}
    return Plan(11, codec, sites, patterns, columns, {"score": "float32"}, ["text"], True, steps)


def check_others(path: Path, want: Expected) -> None:
    """Both readers find all arrays, equal; zarr-python without a warning, in the consolidated metadata."""
    arrays = want.zarr_arrays()
    group = open_quietly(path)
    assert group.metadata.consolidated_metadata is not None
    assert set(group.array_keys()) == set(want.sites)
    check_zarr(path, arrays)
    # Each array is right without the consolidated metadata as well.
    plain = zarr.open_group(path, mode="r", use_consolidated=False)
    for name, array in arrays.items():
        assert plain[name].shape == array.shape
    check_tensorstore(path, arrays)


# ---- Stages ----


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_all_stages_of_a_store(tmp_path: Path, codec: str) -> None:
    plan, path = a_plan(codec), tmp_path / "x.act"
    done = appends(plan)
    writer = actstore.create(path, plan.sites, codec=codec)
    group = open_quietly(path)
    assert {name: group[name].shape for name in group.array_keys()} == {
        name: (0, spec.n_layers, spec.dim) for name, spec in plan.sites.items()
    }
    for name, spec in plan.sites.items():
        assert open_tensorstore(path / name).shape == (0, spec.n_layers, spec.dim)

    for i, append in enumerate(done):
        write_append(writer, plan, append)
        writer.commit()
        check_others(path, expected(plan, done[: i + 1]))
        if i == 4:  # Once, the tail is taken up by another writer.
            writer.close()
            writer = actstore.append(path)
    writer.close()
    want = expected(plan, done)
    check_others(path, want)

    holes = actstore.open(path).info()["hole_bytes"]
    before = sum(file.stat().st_size for file in path.rglob("c/**/*") if file.is_file())
    report = actstore.compact(path)
    after = sum(file.stat().st_size for file in path.rglob("c/**/*") if file.is_file())
    assert holes > 0
    assert after < before
    assert report.bytes_after < report.bytes_before
    assert actstore.open(path).info()["hole_bytes"] == 0
    check_others(path, want)
    check_actstore(path, want, plan)

    with actstore.append(path) as writer:  # What a compaction made, an append goes on from.
        for append in appends(plan):
            append.ids = [f"again {name}" for name in append.ids or []] if append.ids else None
            append.ids = append.ids or [f"more {writer.n_examples + k}" for k in range(append.n_examples)]
            write_append(writer, plan, append)
            done.append(append)
    want = expected(plan, done)
    check_others(path, want)
    check_actstore(path, want, plan)


def test_a_writer_that_was_dropped_leaves_its_last_commit(tmp_path: Path) -> None:
    """One it made by itself, maybe: but no array has more than the others."""
    plan, path = a_plan(), tmp_path / "x.act"
    done = appends(plan)
    writer = actstore.create(path, plan.sites)
    for append in done[:5]:
        write_append(writer, plan, append)
    writer.commit()
    for append in done[5:]:
        write_append(writer, plan, append)
    writer.abort()
    counts = np.cumsum([append.n_examples for append in done]).tolist()
    there = actstore.open(path).n_examples
    assert there >= counts[4]
    check_others(path, expected(plan, done[: counts.index(there) + 1]))


def test_shapes_that_others_see_lie_at_a_commit(tmp_path: Path) -> None:
    """While a writer commits, the shape is that of some commit, its rows are there, and it only grows."""
    spec = actstore.SiteSpec(2, 16, "bfloat16", chunk_rows=4, shard_rows=12)
    path = tmp_path / "x.act"
    rng = np.random.default_rng(0)
    sizes = [int(n) for n in rng.integers(1, 9, 40)]
    rows = np.arange(1, sum(sizes) + 1)
    content = np.broadcast_to(rows[:, None, None] % 256, (len(rows), 2, 16)).astype(BFLOAT16)
    commits = {0, *np.cumsum(sizes).tolist()}
    failures: list[str] = []
    seen: dict[str, list[int]] = {"zarr-python": [], "tensorstore": []}
    stop = threading.Event()

    def watch(reader: str, look: Callable[[], np.ndarray]) -> None:
        try:
            while not stop.is_set():
                found = look()
                n = len(found)
                if n not in commits or (seen[reader] and n < seen[reader][-1]):
                    failures.append(f"{reader} saw {n} rows after {seen[reader][-1:]}")
                elif not np.array_equal(bits(found), bits(content[:n])):
                    failures.append(f"{reader} read other values among the first {n} rows")
                seen[reader].append(n)
        except Exception as error:
            failures.append(f"{reader}: {error!r}")

    writer = actstore.create(path, {"resid": spec})
    looks: dict[str, Callable[[], np.ndarray]] = {
        "zarr-python": lambda: zarr.open_group(path, mode="r")["resid"][...],
        "tensorstore": lambda: open_tensorstore(path / "resid").read().result(),
    }
    threads = [threading.Thread(target=watch, args=item) for item in looks.items()]
    for thread in threads:
        thread.start()
    try:
        start = 0
        for i, n in enumerate(sizes):
            writer.append({"resid": content[start : start + n]}, [n])
            start += n
            writer.commit()
            if i % 13 == 12:
                writer.close()
                writer = actstore.append(path)
        writer.close()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert all(len(set(counts)) > 1 for counts in seen.values())
    check_zarr_site(path, content)


def test_arrays_that_others_hold_open_stay_readable(tmp_path: Path) -> None:
    """Bytes never move: what was opened before a commit goes on reading its rows after it."""
    spec = actstore.SiteSpec(2, 16, "bfloat16", chunk_rows=4, shard_rows=12)
    path = tmp_path / "x.act"
    content = np.random.default_rng(0).normal(size=(60, 2, 16)).astype(BFLOAT16)
    held: list[tuple[int, Any, Any]] = []
    with actstore.create(path, {"resid": spec}) as writer:
        for start in range(0, 60, 5):
            writer.append({"resid": content[start : start + 5]}, [5])
            writer.commit()
            group = zarr.open_group(path, mode="r")
            held.append((start + 5, group["resid"], open_tensorstore(path / "resid")))
            for n, by_zarr, by_tensorstore in held:
                assert_same(by_zarr[...], content[:n])
                assert_same(by_tensorstore.read().result(), content[:n])


def check_zarr_site(path: Path, content: np.ndarray) -> None:
    assert_same(zarr.open_group(path, mode="r")["resid"][...], content)


# ---- Metadata ----


def test_metadata_are_the_form_that_all_readers_take(tmp_path: Path) -> None:
    """The form is written down in docs/format.md; readers reject what strays from it."""
    for dtype, size in [("bfloat16", 2), ("float16", 2), ("float32", 4)]:
        for codec in ("blosc", "raw"):
            path = tmp_path / f"{dtype} {codec}"
            spec = actstore.SiteSpec(3, 384, dtype, chunk_rows=128, shard_rows=4096)
            with actstore.create(path, {"resid": spec}, codec=codec) as writer:
                writer.append({"resid": np.ones((5, 3, 384), DTYPES[dtype])}, [5])
            blosc = {
                "cname": "zstd",
                "clevel": 1,
                "shuffle": "shuffle",
                "typesize": size,
                "blocksize": 1 << 20,
            }
            little = {"name": "bytes", "configuration": {"endian": "little"}}
            compress = [{"name": "blosc", "configuration": blosc}] if codec == "blosc" else []
            sharding = {
                "chunk_shape": [128, 1, 384],
                "codecs": [little, *compress, {"name": "crc32c"}],
                "index_codecs": [little, {"name": "crc32c"}],
                "index_location": "end",
            }
            want = {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [5, 3, 384],
                "data_type": dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4096, 3, 384]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": "NaN",
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {},
                "dimension_names": ["token", "layer", "dim"],
            }
            assert json.loads((path / "resid/zarr.json").read_text()) == want
            root = json.loads((path / "zarr.json").read_text())
            assert root["consolidated_metadata"]["metadata"]["resid"] == want
            assert root["consolidated_metadata"]["kind"] == "inline"
            assert root["consolidated_metadata"]["must_understand"] is False


def test_the_attributes_say_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.act"
    write(a_plan(), path)
    own = dict(open_quietly(path).attrs)["actstore"]
    assert own["format"] == 1
    assert own["sites"]["resid"] == {"axis": "tokens", "labels": [0, 6, 12]}
    assert own["sites"]["pooled"] == {"axis": "examples", "labels": [0, 1]}
    assert set(own["axes"]) == {"tokens", "decoder"}


def test_every_member_is_a_zarr_node(tmp_path: Path) -> None:
    """zarr-python warns of files and folders that are none, also when it has to list them itself."""
    path = tmp_path / "x.act"
    write(a_plan(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        listed = dict(zarr.open_group(path, mode="r", use_consolidated=False).members())
        from_root = dict(zarr.open_group(path, mode="r").members())
    assert set(listed) == set(from_root)
    assert {"resid", "tokens", "decoder", "examples", "commits"} <= set(listed)
    assert {name for name in path.iterdir() if name.is_dir()} == {path / name for name in listed}


def test_full_shards_are_where_zarr_looks_for_them(tmp_path: Path) -> None:
    """No chunk is left to the fill value: rows are there even when all of them are NaN, or zero."""
    for fill in (np.nan, 0.0):
        path = tmp_path / str(fill)
        spec = actstore.SiteSpec(1, 4, "float32", chunk_rows=2, shard_rows=4)
        with actstore.create(path, {"r": spec}) as writer:
            writer.append({"r": np.full((9, 1, 4), fill, np.float32)}, [9])
        assert {file.relative_to(path / "r/c").parts[0] for file in (path / "r/c").rglob("0/0")} == set("012")


# ---- Frames ----


def stored_chunks(path: Path, meta: dict[str, Any]) -> list[bytes]:
    """The chunks of a shard file, in order, their checksums checked and taken off."""
    data = path.read_bytes()
    config = meta["codecs"][0]["configuration"]
    outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
    n = int(np.prod([a // b for a, b in zip(outer, config["chunk_shape"], strict=True)]))
    index = data[-16 * n - 4 :]
    assert crc32c(index[:-4]) == int.from_bytes(index[-4:], "little")
    out = []
    for offset, length in np.frombuffer(index[:-4], "<u8").reshape(n, 2).tolist():
        if offset != 2**64 - 1:
            chunk = data[offset : offset + length]
            assert crc32c(chunk[:-4]) == int.from_bytes(chunk[-4:], "little")
            out.append(chunk[:-4])
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_frames_are_bloscs(tmp_path: Path, dtype: str) -> None:
    """Blosc itself decodes each chunk, whose header says what the metadata say."""
    rng = np.random.default_rng(0)
    array = rng.normal(size=(300, 2, 96)).astype(DTYPES[dtype])
    array[100:200] = 0
    spec = actstore.SiteSpec(2, 96, dtype, chunk_rows=128, shard_rows=256)
    with actstore.create(tmp_path / "x", {"r": spec}) as writer:
        writer.append({"r": array}, [300])
    meta = json.loads((tmp_path / "x/r/zarr.json").read_text())
    chunks = stored_chunks(tmp_path / "x/r/c/0/0/0", meta)
    assert len(chunks) == 4
    for i, chunk in enumerate(chunks):
        assert chunk[0] == 2
        assert chunk[3] == DTYPES[dtype].itemsize
        assert chunk[2] >> 5 == 4
        found = np.frombuffer(Blosc().decode(chunk), DTYPES[dtype]).reshape(128, 96)
        assert_same(found, array[i // 2 * 128 : (i // 2 + 1) * 128, i % 2])


def test_raw_chunks_are_the_bytes_aligned(tmp_path: Path) -> None:
    array = np.arange(64 * 2 * 7, dtype=np.float32).reshape(64, 2, 7)
    spec = actstore.SiteSpec(2, 7, "float32", chunk_rows=16, shard_rows=64)
    with actstore.create(tmp_path / "x", {"r": spec}, codec="raw") as writer:
        writer.append({"r": array}, [64])
    meta = json.loads((tmp_path / "x/r/zarr.json").read_text())
    file = tmp_path / "x/r/c/0/0/0"
    for i, chunk in enumerate(stored_chunks(file, meta)):
        assert_same(
            np.frombuffer(chunk, np.float32).reshape(16, 7), array[i // 2 * 16 : i // 2 * 16 + 16, i % 2]
        )
    index = np.frombuffer(file.read_bytes()[-8 * 16 - 4 : -4], "<u8").reshape(8, 2)
    assert (index[:, 0] % 64 == 0).all()


# ---- bfloat16 in zarr-python ----


def run(code: str) -> dict[str, Any]:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out: dict[str, Any] = json.loads(done.stdout)
    return out


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bf16") / "x.act"
    with actstore.create(path, {"r": actstore.SiteSpec(1, 3, "bfloat16")}) as writer:
        writer.append({"r": np.array([[[1, 2.5, -3]]], BFLOAT16)}, [1])
    return path


@pytest.mark.parametrize(
    "imports",
    [
        "import zarr; import actstore",
        "import actstore; import zarr",
        *(
            pytest.param(order, marks=pytest.mark.slow)
            for order in (
                "import actstore; from zarr import open_group; import zarr",
                "import actstore; import zarr.core.dtype; import zarr",
                "import actstore; import importlib; zarr = importlib.import_module('zarr')",
                "import zarr; import actstore; import importlib; importlib.reload(actstore)",
            )
        ),
    ],
)
def test_bfloat16_is_registered_in_any_order_of_import(store_path: Path, imports: str) -> None:
    found = run(f"""
        import json
        {imports}
        array = zarr.open_group({str(store_path)!r}, mode="r")["r"]
        content = array[...]
        print(json.dumps({{"dtype": content.dtype.name, "values": content.astype("f4").ravel().tolist()}}))
    """)
    assert found == {"dtype": "bfloat16", "values": [1, 2.5, -3]}


def test_the_hook_leaves_no_trace(store_path: Path) -> None:
    """Once zarr is there, its module is as any other's, and the finder is gone."""
    found = run("""
        import json, sys, importlib.util
        before = list(sys.meta_path)
        import actstore
        there = importlib.util.find_spec("zarr") is not None
        looked = "zarr" in sys.modules
        import zarr
        print(json.dumps({
            "there": there, "looked": looked, "same": sys.meta_path == before,
            "loader": type(zarr.__loader__).__module__, "spec": type(zarr.__spec__.loader).__module__,
            "file": zarr.__file__.endswith("__init__.py"),
        }))
    """)
    loader = "_frozen_importlib_external"
    assert found == {
        "there": True,
        "looked": False,
        "same": True,
        "loader": loader,
        "spec": loader,
        "file": True,
    }


def test_without_zarr_nothing_is_missed(store_path: Path) -> None:
    """Neither zarr nor anything else heavy is imported by opening and reading; a missing zarr is no error."""
    found = run(f"""
        import json, sys
        sys.modules["zarr"] = None
        import actstore
        content = actstore.open({str(store_path)!r})["r"].read("float32").ravel().tolist()
        heavy = ["torch", "transformers", "safetensors", "pandas", "scipy", "tensorstore"]
        print(json.dumps({{"values": content, "heavy": [name for name in heavy if name in sys.modules]}}))
    """)
    assert found == {"values": [1, 2.5, -3], "heavy": []}


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # ml_dtypes, when NaNs are compared.
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_writes_bfloat16_too(tmp_path: Path, sharded: bool) -> None:
    """Every bit pattern round-trips through our data type, and tensorstore and we read it."""
    everything = np.arange(1 << 16, dtype=np.uint16).view(BFLOAT16).reshape(64, 4, 256)
    root = zarr.create_group(tmp_path)
    array = root.create_array(
        "a",
        shape=everything.shape,
        chunks=(16, 1, 100),
        shards=(32, 4, 300) if sharded else None,
        dtype=ml_dtypes.bfloat16,
        fill_value=np.nan,
    )
    array[...] = everything
    again = zarr.open_group(tmp_path, mode="r")["a"]
    assert again.dtype == BFLOAT16
    meta = json.loads((tmp_path / "a/zarr.json").read_text())
    assert (meta["data_type"], meta["fill_value"]) == ("bfloat16", "NaN")
    assert_same(again[...], everything)
    assert_same(open_tensorstore(tmp_path / "a").read().result(), everything)
    assert_same(actstore.open(tmp_path)["a"].read(), everything)

    array[3:5, 1] = 7
    assert_same(array[2:6, 1, 0], np.array([everything[2, 1, 0], 7, 7, everything[5, 1, 0]], BFLOAT16))
    array.resize((70, 4, 256))
    assert np.isnan(array[69, 0, 0])


@pytest.mark.parametrize(
    "fill", [0, 1.5, -0.0, np.nan, np.inf, -np.inf, np.float32(2), ml_dtypes.bfloat16(3)]
)
def test_fill_values_of_bfloat16(tmp_path: Path, fill: Any) -> None:
    root = zarr.create_group(tmp_path)
    root.create_array("a", shape=(4, 1, 2), chunks=(2, 1, 2), dtype="bfloat16", fill_value=fill)
    want = np.full((4, 1, 2), float(fill)).astype(BFLOAT16)
    assert_same(zarr.open_group(tmp_path, mode="r")["a"][...], want)
    assert_same(open_tensorstore(tmp_path / "a").read().result(), want)
    assert_same(actstore.open(tmp_path)["a"].read(), want)


def test_bfloat16_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="v2"):
        zarr.create_array(tmp_path / "v2", shape=(2,), dtype=BFLOAT16, zarr_format=2)
    for fill in ("many", b"", [1, 2], object(), 1j):
        with pytest.raises(TypeError):
            zarr.create_array(tmp_path / "fill", shape=(2,), dtype=BFLOAT16, fill_value=fill)


def test_another_bfloat16_that_was_registered_first_stays() -> None:
    found = run("""
        import json
        from zarr.core.dtype import data_type_registry, Float16
        class Theirs(Float16):
            _zarr_v3_name = "bfloat16"
        data_type_registry.register("bfloat16", Theirs)
        import actstore
        print(json.dumps(data_type_registry.contents["bfloat16"].__name__))
    """)
    assert found == "Theirs"
