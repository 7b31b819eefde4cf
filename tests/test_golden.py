"""The golden stores of every released format (docs/format.md, "Versions") are read, value for value."""

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import actstore
import golden_stores as golden
import numpy as np
import pytest
from actstore import _native
from builders import assert_same
from forgery import Forgery

FORMAT_1 = Path(__file__).parent / "golden/format1"
STORES = sorted(path for path in FORMAT_1.iterdir() if path.suffix == ".act")


def sites(store: actstore.Store, names: list[str], start: int = 0, stop: int = 5) -> None:
    for name in names:
        site = store[name]
        assert (site.axis, site.layers) == (golden.AXES[name], golden.LABELS[name])
        assert_same(site.read(), golden.site(name, start, stop))
        assert_same(site[::-1], golden.site(name, start, stop)[::-1])


def examples(store: actstore.Store, columns: bool) -> None:
    assert store.examples["id"].tolist() == golden.IDS
    for axis, columns_of in store.axes.items():
        assert columns_of.offsets.tolist() == [0, *np.cumsum(golden.LENGTHS[axis]).tolist()]
    if columns:
        assert store.examples["label"].tolist() == golden.labels(5)
        assert store.tokens["id"].tolist() == list(range(13))


def digest(axes: list[str], start: int = 0, stop: int = 5) -> str:
    """By the rule in docs/format.md."""
    out = bytes(16)
    for i in range(start, stop):
        name = golden.IDS[i].encode()
        rows = b"".join(golden.LENGTHS[axis][i].to_bytes(8, "little") for axis in sorted(axes))
        out = hashlib.blake2b(out + len(name).to_bytes(8, "little") + name + rows, digest_size=16).digest()
    return out.hex()


def state(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_native.Reader(str(path)).state)
    return found


def column(reader: _native.Reader, name: str, dtype: str) -> Any:
    array = reader.array(name)
    out = np.empty(array.shape, dtype)
    array.read((0, array.shape[0]), None, out)
    return out


def test_plain() -> None:
    path = FORMAT_1 / "plain.act"
    with actstore.open(path) as store:
        assert store.sites == list(golden.AXES)
        sites(store, store.sites)
        examples(store, columns=False)
        assert store.identity == golden.IDENTITY
        assert store["resid"].about == golden.ABOUT
        assert store.examples["label"].tolist() == golden.labels(5)
        for name in golden.COLUMN_DTYPES:
            assert_same(store.examples[name], golden.numbers(name, 5))
        for axis, lengths in golden.LENGTHS.items():
            assert store.axes[axis]["id"].tolist() == [3 * i for i in range(sum(lengths))]
    assert state(path)["digest"] == digest(["tokens", "decoder"])


def test_raw() -> None:
    with actstore.open(FORMAT_1 / "raw.act") as store:
        sites(store, ["resid"])
        examples(store, columns=False)
        assert store.info()["sites"]["resid"]["codec"] == "raw"


@pytest.mark.parametrize("name", ["commits", "compacted"])
def test_several_commits(name: str) -> None:
    path = FORMAT_1 / f"{name}.act"
    with actstore.open(path) as store:
        sites(store, ["resid"])
        examples(store, columns=name == "commits")
        assert (store.info()["hole_bytes"] == 0) == (name == "compacted")
    assert state(path)["digest"] == digest(["tokens"])


def test_parts() -> None:
    with actstore.open(FORMAT_1 / "parts") as store:
        sites(store, ["resid"])
        examples(store, columns=True)
    assert state(FORMAT_1 / "parts/part-1.act")["digest"] == digest(["tokens"], 3, 5)


def test_derived() -> None:
    with actstore.open(FORMAT_1 / "derived.act") as store:
        assert store.sites == ["mlp_out", "mean"]
        assert store["mean"].axis == "examples"
        want = golden.mean(golden.site("mlp_out"), golden.LENGTHS["tokens"])
        assert_same(store["mean"].read(), want)
        info = store.info()["derived"]
        assert (info["mean"]["recipe"]["source"], info["mean"]["recipe"]["kind"]) == ("mlp_out", "mean")
        assert (info["short"]["covers"], info["short"]["complete"]) == (3, False)
        with pytest.raises(actstore.NotFoundError, match="covers 3 of 5 examples"):
            store["short"]


def test_a_site_that_a_later_record_added(tmp_path: Path) -> None:
    """The root's copy of the table lacks it; the record has it, and the next writer updates the copy."""
    path = tmp_path / "x.act"
    shutil.copytree(FORMAT_1 / "extended.act", path)

    def root() -> Any:
        return json.loads((path / "zarr.json").read_text())["attributes"]

    assert list(root()["actstore"]["sites"]) == ["resid"]
    with actstore.open(path) as store:
        assert store.sites == ["resid", "mlp_out"]
        sites(store, store.sites)
        assert store.verify(strict=True).leftovers == []
    actstore.append(path).close()
    assert list(root()["actstore"]["sites"]) == ["resid", "mlp_out"]
    assert json.loads(_native.Reader(str(path)).attributes) == root()


def test_artifacts() -> None:
    path = FORMAT_1 / "artifacts.act"
    with actstore.open(path) as store:
        assert store.sites == ["mlp_out"]
        sites(store, ["mlp_out"])
        whitener = store.whiteners["white"]
        assert_same(whitener.mean_.ravel(), golden.WHITENER["mean"])
        assert_same(whitener.components_.ravel(), golden.WHITENER["components"])
    reader = _native.Reader(str(path))
    kinds = {
        name: json.loads(attributes)["actstore"]["artifact"]
        for name, attributes in reader.groups.items()
        if name.startswith("artifacts/")
    }
    assert {name: (own["kind"], own["version"]) for name, own in kinds.items()} == {
        "artifacts/white": ("whitener", 1),
        "artifacts/tokens": ("vocabulary", 1),
        "artifacts/later": ("crystal", 3),
    }
    for name, values in golden.WHITENER.items():
        assert_same(column(reader, f"artifacts/white/{name}", "float64"), values)
    offset = column(reader, "artifacts/tokens/offset", "int64")
    blob = column(reader, "artifacts/tokens/bytes", "uint8").tobytes()
    assert [blob[a:b].decode() for a, b in pairwise(offset)] == golden.TOKENS
    assert column(reader, "artifacts/later/data", "int32").tolist() == [0, 1, 2]


UNKNOWN = {
    "codes": "encoding 'int8-row', version 1",
    "encoded_mean": "encoding 'int8-row', version 1",
    "woven": "operation 'weave', version 1",
    "latents": "layout 'ragged'",
}


def test_what_the_first_version_does_not_know_is_refused_by_name() -> None:
    path = FORMAT_1 / "unknown.act"
    with actstore.open(path) as store:
        assert store.sites == ["resid"]
        sites(store, ["resid"])
        for name, message in UNKNOWN.items():
            with pytest.raises(actstore.FormatError, match=message) as caught:
                store[name]
            assert caught.value.kind == "version"
            assert name in str(caught.value)
        with pytest.raises(actstore.FormatError, match="float8_e4m3fn") as caught:
            store["narrow"]
        assert caught.value.kind == "unsupported"
        assert store.verify().ok


def test_added_columns() -> None:
    with actstore.open(FORMAT_1 / "unknown.act") as store:
        assert list(store.tokens) == ["full"]
        assert store.tokens["full"].tolist() == list(range(13))
        assert list(store.examples) == ["id"]
        with pytest.raises(actstore.NotFoundError, match="tokens/short covers 4 of 13 rows"):
            store.tokens["short"]
        with pytest.raises(actstore.NotFoundError, match="examples/remark covers 2 of 5 rows"):
            store.examples["remark"]


def test_a_store_with_sites_of_a_later_version_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "x.act"
    shutil.copytree(FORMAT_1 / "unknown.act", path)
    with pytest.raises(actstore.FormatError, match="narrow"):
        actstore.append(path)
    forgery = Forgery(path)
    forgery.nodes["narrow"]["data_type"], forgery.nodes["narrow"]["fill_value"] = "uint8", 0
    forgery.nodes["narrow"]["attributes"] = {}
    forgery.write()
    with pytest.raises(actstore.FormatError, match="'codes' has encoding 'int8-row'") as caught:
        actstore.append(path)
    assert caught.value.kind == "version"


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_verified_and_written_to(path: Path, tmp_path: Path) -> None:
    """Every store is intact, and those that have only what this version can write are appended to."""
    with actstore.open(path) as store:
        assert store.verify(strict=True) == actstore.Report(
            chunks=store.verify().chunks, bytes=store.verify().bytes
        )
        names = list(store.sites)
        rows = {name: store[name].read() for name in names if store[name].axis == "tokens"}
    if path.stem in ("plain", "commits", "unknown"):
        return  # These would need columns.
    copy = tmp_path / "x.act"
    shutil.copytree(path, copy)
    with actstore.append(copy) as writer:
        axes = {golden.AXES[name] for name in writer.sites}
        acts = {name: golden.site(name, 2, 4) for name in writer.sites}
        writer.append(acts, {axis: golden.LENGTHS[axis][2:4] for axis in axes}, ids=["new", "newer"])
    with actstore.open(copy) as store:
        for name, before in rows.items():
            assert_same(store[name].read(), np.concatenate([before, golden.site(name, 2, 4)]))


# ---- Variations that need no golden store ----


def dense_on_tokens(path: Path) -> None:
    writer = _native.Writer.append_to(str(path))
    recipe = {"operation": "pool", "version": 1, "source": "resid", "layers": [0]}
    spec = {"name": "smooth", "shape": [1, 2], "dtype": "float32", "codec": "blosc", "chunk_rows": 4}
    spec |= {"shard_rows": 8, "dimension_names": ["token", "layer", "dim"]}
    spec["attributes"] = {"actstore": {"derived": recipe, "axis": "tokens", "labels": [0]}}
    writer.add_arrays(json.dumps([spec]))
    writer.append({"smooth": np.arange(26, dtype=np.float32).reshape(13, 1, 2)})
    writer.commit(writer.state)
    writer.close()


def test_a_derived_site_on_an_axis_of_tokens(tmp_path: Path) -> None:
    path = tmp_path / "x.act"
    shutil.copytree(FORMAT_1 / "extended.act", path)
    dense_on_tokens(path)
    with actstore.open(path) as store:
        assert store["smooth"].axis == "tokens"
        assert_same(store["smooth"].example(2), np.arange(26, dtype=np.float32).reshape(13, 1, 2)[3:8])
    with actstore.append(path) as writer:
        writer.append({name: golden.site(name, 3, 4) for name in writer.sites}, [1], ids=["more"])
    with (
        actstore.open(path) as store,
        pytest.raises(actstore.NotFoundError, match="covers 13 of 14 rows of axis 'tokens'"),
    ):
        store["smooth"]


def lie(key: str, value: Any) -> Callable[[Forgery], None]:
    def change(forgery: Forgery) -> None:
        forgery.nodes["tokens/full"]["attributes"]["actstore"][key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lie("column", None),
        lie("column", {}),
        lie("column", {"added": 1}),
        lie("column", {"added": True, "fill": [1]}),
        lambda f: f.nodes["latents"]["attributes"]["actstore"].pop("layout"),
        lambda f: f.record["attributes"]["actstore"]["sites"]["codes"].update(encoding=None),
        lambda f: f.record["attributes"]["actstore"]["sites"]["codes"].update(encoding={"name": "int8-row"}),
        lambda f: f.record["attributes"]["actstore"]["sites"].update(
            artifacts={"axis": "tokens", "labels": [0]}
        ),
        lambda f: f.record["attributes"]["actstore"]["axes"].update(encodings={}),
    ],
    ids=range(9),
)
def test_malformed_attributes(tmp_path: Path, change: Callable[[Forgery], object]) -> None:
    path = tmp_path / "x.act"
    shutil.copytree(FORMAT_1 / "unknown.act", path)
    forgery = Forgery(path)
    change(forgery)
    forgery.root["attributes"] = forgery.record["attributes"]
    forgery.write()
    if "layout" not in forgery.nodes["latents"]["attributes"]["actstore"]:
        with actstore.open(path) as store, pytest.raises(actstore.FormatError, match="layout None"):
            store["latents"]
        return
    with pytest.raises(actstore.FormatError) as caught:
        actstore.open(path)
    assert caught.value.kind == "metadata"


def test_a_root_that_contradicts_the_record_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.act"
    shutil.copytree(FORMAT_1 / "commits.act", path)
    forgery = Forgery(path)
    forgery.root["attributes"]["actstore"]["identity"] = {"model": "another"}
    forgery.write()
    with pytest.raises(actstore.FormatError, match="different attributes"):
        actstore.open(path)


def test_parts_may_differ_in_added_columns(tmp_path: Path) -> None:
    for index in range(2):
        shutil.copytree(FORMAT_1 / f"parts/part-{index}.act", tmp_path / str(index))

    def add(index: int, values: list[int], dtype: str = "int16") -> None:
        writer = _native.Writer.append_to(str(tmp_path / str(index)))
        if "tokens/more" not in writer.arrays:
            spec: dict[str, Any] = {"name": "tokens/more", "shape": [], "dtype": dtype, "codec": "blosc"}
            spec |= {"chunk_rows": 4, "shard_rows": 8, "dimension_names": ["token"]}
            spec["attributes"] = {"actstore": {"column": {"added": True, "fill": None}}}
            writer.add_arrays(json.dumps([spec]))
        writer.append({"tokens/more": np.array(values, dtype)})
        writer.commit(writer.state)
        writer.close()

    add(0, list(range(8)))
    with actstore.open(tmp_path) as store:
        assert list(store.tokens) == ["id"]
        assert store.snapshot.short_columns()["tokens"]["more"]["covers"] == 8
    add(1, [8, 9])
    with actstore.open(tmp_path) as store:
        assert list(store.tokens) == ["id"]
    add(1, [10, 11, 12])
    with actstore.open(tmp_path) as store:
        assert store.tokens["more"].tolist() == list(range(13))
        assert store.snapshot.short_columns() == {}
    # An append does not give it, and leaves it short.
    with actstore.append(tmp_path / "1") as writer:
        writer.append(
            {"resid": golden.site("resid", 0, 1)},
            [3],
            ["more"],
            token_columns={"id": [1, 2, 3]},
            columns={"label": ["z"]},
        )
    with actstore.open(tmp_path) as store:
        assert list(store.tokens) == ["id"]
