"""Writes the golden stores of the current format, each only if it is not there yet.

    PYTHONPATH=python python tests/golden/make.py

Stores that are committed are never written again: they show that later versions read what earlier ones wrote.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import actstore
import golden_stores as golden
from actstore import _native
from builders import small_columns
from forgery import Forgery

FOLDER = Path(__file__).parent / "format1"
MAKERS: dict[str, Callable[[Path], object]] = {}


def store(make: Callable[[Path], object]) -> Callable[[Path], object]:
    MAKERS[make.__name__] = make
    return make


def spec(name: str, **options: Any) -> actstore.SiteSpec:
    return actstore.SiteSpec(
        len(golden.LABELS[name]),
        golden.DIMS[name],
        golden.DTYPES[name],
        golden.LABELS[name],
        golden.AXES[name],
        **({"chunk_rows": 4, "shard_rows": 8} | options),
    )


def append(writer: actstore.StoreWriter, start: int, stop: int, columns: bool = False) -> None:
    axes = dict.fromkeys(golden.AXES[name] for name in writer.sites)
    axes.pop("examples", None)
    given: dict[str, Any] = {}
    if columns:
        first, last = (golden.n_rows("tokens", 0, i) for i in (start, stop))
        given["token_columns"] = {axis: {} for axis in axes} | {"tokens": {"id": np.arange(first, last)}}
        given["columns"] = {"label": golden.labels(5)[start:stop]}
    writer.append(
        {name: golden.site(name, start, stop) for name in writer.sites},
        {axis: golden.LENGTHS[axis][start:stop] for axis in axes},
        ids=golden.IDS[start:stop],
        **given,
    )


def column(name: str, dtype: str, **attributes: Any) -> dict[str, Any]:
    return array(name, [], dtype, ["row"], **attributes)


def array(name: str, shape: list[int], dtype: str, names: list[str], **attributes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "shape": shape,
        "dtype": dtype,
        "codec": "blosc",
        "chunk_rows": 4,
        "shard_rows": 8,
        "dimension_names": names,
        "attributes": {"actstore": attributes} if attributes else {},
    }


def extend(path: Path, rows: dict[str, Any], arrays: list[dict[str, Any]], **groups: Any) -> _native.Writer:
    """Adds arrays and groups by hand, and commits them."""
    writer = _native.Writer.append_to(str(path))
    if groups:
        writer.add_groups(json.dumps({name: {"actstore": own} for name, own in groups.items()}))
    writer.add_arrays(json.dumps(arrays))
    writer.append(rows)
    writer.commit(writer.state)
    return writer


@store
def plain(path: Path) -> None:
    """Every dtype, several axes, string columns, in one commit."""
    specs = {name: spec(name, **({"about": golden.ABOUT} if name == "resid" else {})) for name in golden.AXES}
    with actstore.create(path, specs, identity=golden.IDENTITY) as writer:
        writer.append(
            {name: golden.site(name) for name in specs},
            golden.LENGTHS,
            ids=golden.IDS,
            token_columns={axis: {"id": np.arange(sum(n)) * 3} for axis, n in golden.LENGTHS.items()},
            columns={"label": golden.labels(5)}
            | {name: golden.numbers(name, 5) for name in golden.COLUMN_DTYPES},
        )


@store
def raw(path: Path) -> None:
    """Without compression."""
    with actstore.create(path, {"resid": spec("resid")}, codec="raw") as writer:
        append(writer, 0, 5)


@store
def commits(path: Path, columns: bool = True) -> None:
    """A commit for each example, and one without rows: a checkpoint, increments, tails with holes."""
    with actstore.create(path, {"resid": spec("resid")}, identity=golden.IDENTITY) as writer:
        writer.commit()
        for i in range(5):
            append(writer, i, i + 1, columns)
            writer.commit()


@store
def compacted(path: Path) -> None:
    """The same sites, compacted."""
    commits(path, columns=False)
    actstore.compact(path)


@store
def parts(path: Path) -> None:
    """Two parts; the second has the last two examples."""
    for index, (start, stop) in enumerate([(0, 3), (3, 5)]):
        with actstore.create(path / f"part-{index}.act", {"resid": spec("resid")}, part=(index, 2)) as writer:
            append(writer, start, stop, columns=True)


@store
def derived(path: Path) -> None:
    """A pooled site of all examples, and one that is short."""
    with actstore.create(path, {"mlp_out": spec("mlp_out")}) as writer:
        append(writer, 0, 3)
    actstore.open(path)["mlp_out"].pool("mean", on_empty="zero", out="short")
    with actstore.append(path) as writer:
        append(writer, 3, 5)
    actstore.open(path)["mlp_out"].pool("mean", on_empty="zero", out="mean")


@store
def extended(path: Path) -> None:
    """A later record adds a site to the table; its writer was killed before it wrote the root."""
    with actstore.create(path, {"resid": spec("resid")}) as writer:
        append(writer, 0, 5)
    before = (path / "zarr.json").read_bytes()
    writer = _native.Writer.append_to(str(path))
    attributes = json.loads(writer.attributes)
    attributes["actstore"]["sites"]["mlp_out"] = {"axis": "tokens", "labels": golden.LABELS["mlp_out"]}
    writer.set_attributes(json.dumps(attributes))
    writer.add_arrays(json.dumps([array("mlp_out", [1, 4], "float32", ["token", "layer", "dim"])]))
    writer.append({"mlp_out": golden.site("mlp_out")})
    writer.commit(writer.state)
    writer.close()
    (path / "zarr.json").write_bytes(before)


@store
def artifacts(path: Path) -> None:
    """A whitener, a vocabulary, and an artifact of a kind that no version knows."""
    with actstore.create(path, {"mlp_out": spec("mlp_out")}) as writer:
        append(writer, 0, 5)
    blob, offset = b"".join(text.encode() for text in golden.TOKENS), [0]
    for text in golden.TOKENS:
        offset.append(offset[-1] + len(text.encode()))
    arrays = [column(f"artifacts/white/{name}", "float64") for name in golden.WHITENER]
    arrays += [column("artifacts/tokens/bytes", "uint8"), column("artifacts/tokens/offset", "int64")]
    arrays += [column("artifacts/later/data", "int32")]
    rows: dict[str, Any] = {f"artifacts/white/{name}": values for name, values in golden.WHITENER.items()}
    rows |= {
        "artifacts/tokens/bytes": np.frombuffer(blob, np.uint8),
        "artifacts/tokens/offset": np.array(offset, np.int64),
        "artifacts/later/data": np.arange(3, dtype=np.int32),
    }
    whitener = {"kind": "whitener", "version": 1, "layers": [3], "dim": 4, "transform": "pca", "rank": [2]}
    whitener |= {
        "n": 13,
        "eps": 0.0,
        "shrinkage": [0.0],
        "source": "mlp_out",
        "site": "mlp_out",
        "digest": "00",
    }
    vocabulary = {"kind": "vocabulary", "version": 1, "column": "tokens/id", "tokenizer": None}
    extend(
        path,
        rows,
        arrays,
        **{
            "artifacts/white": {"artifact": whitener},
            "artifacts/tokens": {"artifact": vocabulary},
            "artifacts/later": {"artifact": {"kind": "crystal", "version": 3}},
        },
    ).close()


@store
def unknown(path: Path) -> None:
    """What format 1 specifies or allows and the first version does not read, beside a site that it does."""
    with actstore.create(path, {"resid": spec("resid")}) as writer:
        append(writer, 0, 5)
    recipe = {"operation": "pool", "version": 1, "source": "resid", "layers": [0], "kind": "mean"}
    recipe |= {"mix": None, "special": True, "on_empty": "zero"}
    whole = {"derived": recipe, "axis": "examples", "labels": [0]}
    ragged = {
        "derived": recipe | {"operation": "sae"},
        "layout": "ragged",
        "axis": "tokens",
        "labels": [6],
        "dim": 99,
    }
    encoding = {"name": "int8-row", "version": 1}
    names = ["token", "layer", "dim"]
    arrays = [
        array("codes", [1, 4], "int8", names),
        array("encodings/codes/scale", [1], "float32", ["token", "layer"]),
        array("encoded_mean", [1, 4], "int8", names, **whole, encoding=encoding),
        array("woven", [1, 4], "float32", names, **whole | {"derived": recipe | {"operation": "weave"}}),
        array("narrow", [1, 4], "uint8", names, **whole),
        column("latents/offset", "int64"),
        column("latents/index", "uint32"),
        column("latents/value", "float32"),
        column("tokens/short", "int16", column={"added": True, "fill": None}),
        column("tokens/full", "int16", column={"added": True, "fill": 7}),
        column("examples/remark/bytes", "uint8"),
        column("examples/remark/offset", "int64"),
    ]
    codes = np.arange(13 * 4).reshape(13, 1, 4) % 255 - 127
    rows: dict[str, Any] = {
        "codes": codes.astype(np.int8),
        "encodings/codes/scale": np.full((13, 1), 0.5, np.float32),
        "encoded_mean": codes[:5].astype(np.int8),
        "woven": np.zeros((5, 1, 4), np.float32),
        "narrow": np.zeros((5, 1, 4), np.uint8),
        "latents/offset": np.minimum(np.arange(14), 2),
        "latents/index": np.array([5, 98], np.uint32),
        "latents/value": np.array([0.5, 2], np.float32),
        "tokens/short": np.arange(4, dtype=np.int16),
        "tokens/full": np.arange(13, dtype=np.int16),
        "examples/remark/bytes": np.frombuffer(b"abc", np.uint8),
        "examples/remark/offset": np.array([0, 1, 3]),
    }
    writer = _native.Writer.append_to(str(path))
    attributes = json.loads(writer.attributes)
    attributes["actstore"]["sites"]["codes"] = {"axis": "tokens", "labels": [6], "encoding": encoding}
    writer.set_attributes(json.dumps(attributes))
    groups = {"latents": ragged, "examples/remark": {"column": {"added": True, "fill": ""}}}
    writer.add_groups(json.dumps({name: {"actstore": own} for name, own in groups.items()}))
    writer.add_arrays(json.dumps(arrays))
    writer.append(rows)
    writer.commit(writer.state)
    writer.close()
    forgery = Forgery(path)  # No writer of this version makes an array of this data type.
    forgery.nodes["narrow"]["data_type"] = "float8_e4m3fn"
    forgery.nodes["narrow"]["fill_value"] = "NaN"
    forgery.write()


def main() -> None:
    for name, make in MAKERS.items():
        path = FOLDER / (name if name == "parts" else f"{name}.act")
        if path.exists():
            print(f"{path} is there")
            continue
        try:
            with small_columns(8, 16):
                make(path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        print(f"{path} is written")


if __name__ == "__main__":
    main()
