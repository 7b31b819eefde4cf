"""Zarr groups that lie, by hand: a dictionary of names and of what makes each in a folder."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from forgery import compact_json

Case = Callable[[Path], None]
FOREIGN: dict[str, Case] = {}
# Those that might hang or flood memory, to be tried one by one.
ALONE: dict[str, Case] = {}

BAD_NUMBERS: list[Any] = [-1, -(1 << 63), 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**400]
BAD_VALUES: list[Any] = [None, True, 4.5, 1e300, "4", "", [], [4], {}, {"a": 1}]
BAD_NAMES = [
    "../x",
    "..",
    "/etc",
    "a/../../x",
    ".",
    "",
    "a\\b",
    "a\0b",
    "x" * 5000,
    "zarr.json",
    ".hidden",
    "c/..",
]


def build_foreign(path: Path, codecs: list[Any] | None = None) -> None:
    """A Zarr group of one array ``[8, 2, 4]`` of two chunks, by hand."""
    (path / "x" / "c" / "0" / "0").mkdir(parents=True)
    (path / "x" / "c" / "1" / "0").mkdir(parents=True)
    group = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    (path / "zarr.json").write_text(json.dumps(group))
    node = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [8, 2, 4],
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 2, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0,
        "codecs": codecs or [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
    (path / "x" / "zarr.json").write_text(json.dumps(node))
    data = np.arange(64, dtype=np.float32)
    for i in range(2):
        (path / "x" / "c" / str(i) / "0" / "0").write_bytes(data[32 * i : 32 * i + 32].tobytes())


def set_in(tree: Any, where: tuple[Any, ...], value: Any) -> None:
    for step in where[:-1]:
        tree = tree[step]
    tree[where[-1]] = value


def foreign(name: str, where: tuple[Any, ...], value: Any, file: str = "x/zarr.json") -> None:
    """A case: a foreign group, one value of a metadata file replaced."""

    def make(path: Path) -> None:
        build_foreign(path)
        tree = json.loads((path / file).read_text())
        set_in(tree, where, value)
        (path / file).write_text(json.dumps(tree))

    FOREIGN[f"{name} {compact_json(value)[:40]}"] = make


SHARDED = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [2, 2, 4],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    },
}


def sharded(**changes: Any) -> list[Any]:
    return [{**SHARDED, "configuration": {**SHARDED["configuration"], **changes}}]  # type: ignore[dict-item]


CHUNK_SHAPE = ("chunk_grid", "configuration", "chunk_shape")
for _value in [*BAD_NUMBERS, *BAD_VALUES]:
    foreign("shape 0", ("shape", 0), _value)
    foreign("shape 2", ("shape", 2), _value)
    foreign("chunk 0", (*CHUNK_SHAPE, 0), _value)
    foreign("chunk 2", (*CHUNK_SHAPE, 2), _value)
    foreign("inner chunk", ("codecs",), sharded(chunk_shape=[_value, 2, 4]))
    if _value not in (None, []):
        foreign("shape", ("shape",), _value)
    foreign("chunk shape", CHUNK_SHAPE, _value)
    foreign("chunk grid", ("chunk_grid",), _value)
    foreign("codecs", ("codecs",), _value)
    foreign("data type", ("data_type",), _value)
    foreign("key encoding", ("chunk_key_encoding",), _value)
foreign("chunk 0", (*CHUNK_SHAPE, 0), 0)
foreign("inner chunk of 0", ("codecs",), sharded(chunk_shape=[0, 2, 4]))
foreign("inner chunk that divides nothing", ("codecs",), sharded(chunk_shape=[3, 2, 4]))
foreign("inner chunk of two axes", ("codecs",), sharded(chunk_shape=[2, 2]))
foreign("many axes", ("shape",), [1] * 40)
foreign("product overflows", ("shape",), [1 << 40, 1 << 40, 1 << 40])
foreign("shape of 0 in a vast array", ("shape",), [0, 1 << 52, 1 << 52])
foreign("chunk product overflows", CHUNK_SHAPE, [1 << 50, 1 << 50, 1 << 50])
foreign("chunk of a terabyte", CHUNK_SHAPE, [1 << 38, 1, 4])
foreign("shards in shards", ("codecs",), sharded(codecs=[SHARDED]))
foreign("no codecs", ("codecs",), [])
foreign("many codecs", ("codecs",), [{"name": "bytes"}] + [{"name": "zstd"}] * 100_000)
foreign("transposed twice", ("codecs",), [{"name": "transpose", "configuration": {"order": [0, 0, 1]}}])
foreign("transposed far", ("codecs",), [{"name": "transpose", "configuration": {"order": [0, 1, 1 << 60]}}])
foreign("compressed index", ("codecs",), sharded(index_codecs=[{"name": "bytes"}, {"name": "zstd"}]))
foreign("index in the middle", ("codecs",), sharded(index_location="middle"))
foreign("index of gigabytes", ("codecs",), sharded(chunk_shape=[1, 1, 1], codecs=[{"name": "bytes"}]))
foreign("separator", ("chunk_key_encoding", "configuration", "separator"), "/../")
foreign("data type", ("data_type",), "complex128")
foreign("data type", ("data_type",), "r16")
foreign("data type", ("data_type",), "float16" * 1000)
foreign("fill", ("fill_value",), [1])
foreign("fill", ("fill_value",), "0xzz")
foreign("fill", ("fill_value",), "0x1ffffffff")
foreign("format", ("zarr_format",), 2)
foreign("something new", ("storage_transformers",), [{"name": "evil"}])
foreign("something new", ("evil",), {"name": "evil"})
for _value in [None, 5, "x", [], {"format": "1"}, {"format": True}, {"format": 1.0}, {"format": 99}]:
    foreign("actstore", ("attributes",), {"actstore": _value}, "zarr.json")
OWN = {"format": 1, "axes": {"tokens": {}}, "sites": {"x": {"axis": "tokens", "labels": [0, 1]}}}
for _name in BAD_NAMES:
    for _key in ("axes", "sites"):
        foreign(
            f"{_key} named",
            ("attributes",),
            {"actstore": {**OWN, _key: {_name: {"axis": "tokens", "labels": [0, 1]}}}},
            "zarr.json",
        )
for _labels in [
    [0],
    [0, 0],
    [0, -1],
    [0, 1 << 63],
    [0, 1.5],
    [0, "1"],
    [0, True],
    "01",
    None,
    list(range(100_000)),
]:
    _sites = {"x": {"axis": "tokens", "labels": _labels}}
    foreign("labels", ("attributes",), {"actstore": {**OWN, "sites": _sites}}, "zarr.json")
foreign("root of another type", ("node_type",), "array", "zarr.json")
foreign("root of another type", ("node_type",), ["group"], "zarr.json")
foreign("root of another format", ("zarr_format",), 2, "zarr.json")


def text_case(name: str, file: str, text: str | bytes) -> None:
    """A case: a foreign group, one file replaced as a whole."""

    def make(path: Path) -> None:
        build_foreign(path)
        (path / file).write_bytes(text.encode() if isinstance(text, str) else text)

    FOREIGN[f"{file} is {name}"] = make


for _file in ("zarr.json", "x/zarr.json"):
    text_case("empty", _file, "")
    text_case("no JSON", _file, "{")
    text_case("a list", _file, "[]")
    text_case("a number", _file, "3")
    text_case("null", _file, "null")
    text_case("not utf-8", _file, b'{"zarr_format":3,"node_type":"group\xff"}')
    text_case("zeros", _file, bytes(1000))
    text_case("very deep", _file, "[" * 200_000)
    text_case("very deep and whole", _file, '{"a":' * 50_000 + "1" + "}" * 50_000)
    text_case("a NaN", _file, '{"zarr_format":3,"node_type":"group","attributes":{"a":NaN}}')
    text_case("a number of many digits", _file, '{"zarr_format":3,"node_type":' + "9" * 100_000 + "}")


def special(name: str) -> Callable[[Case], Case]:
    def add(make: Case) -> Case:
        ALONE[name] = make
        return make

    return add


@special("a metadata file of terabytes")
def _vast_file(path: Path) -> None:
    build_foreign(path)
    with open(path / "x" / "zarr.json", "r+b") as file:
        file.truncate(1 << 40)


@special("a metadata file that is a pipe")
def _pipe(path: Path) -> None:
    build_foreign(path)
    (path / "x" / "zarr.json").unlink()
    os.mkfifo(path / "x" / "zarr.json")


@special("a root that is a pipe")
def _root_pipe(path: Path) -> None:
    build_foreign(path)
    (path / "zarr.json").unlink()
    os.mkfifo(path / "zarr.json")


@special("a metadata file without an end")
def _endless(path: Path) -> None:
    build_foreign(path)
    (path / "x" / "zarr.json").unlink()
    (path / "x" / "zarr.json").symlink_to("/dev/zero")


@special("a chunk that is a pipe")
def _pipe_chunk(path: Path) -> None:
    build_foreign(path)
    chunk = path / "x" / "c" / "0" / "0" / "0"
    chunk.unlink()
    os.mkfifo(chunk)


@special("a chunk without an end")
def _endless_chunk(path: Path) -> None:
    build_foreign(path)
    chunk = path / "x" / "c" / "0" / "0" / "0"
    chunk.unlink()
    chunk.symlink_to("/dev/zero")


@special("a metadata file that is a link to itself")
def _link(path: Path) -> None:
    build_foreign(path)
    (path / "x" / "zarr.json").unlink()
    (path / "x" / "zarr.json").symlink_to("zarr.json")


@special("a site of more rows than memory")
def _many_rows(path: Path) -> None:
    build_foreign(path)
    node = json.loads((path / "x" / "zarr.json").read_text())
    node["shape"][0] = 1 << 45
    (path / "x" / "zarr.json").write_text(json.dumps(node))


@special("a zstd chunk that claims a terabyte")
def _zstd_bomb(path: Path) -> None:
    build_foreign(path, [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}])
    frame = bytes.fromhex("28b52ffd") + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + bytes.fromhex("010000")
    (path / "x" / "c" / "0" / "0" / "0").write_bytes(frame)


@special("a zstd chunk of gigabytes that claims nothing")
def _zstd_run(path: Path) -> None:
    build_foreign(path, [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "zstd"}])
    # Blocks of 128 KiB of one repeated byte, in four bytes each.
    block = struct.pack("<I", (128 << 10) << 3 | 1 << 1)[:3] + b"\0"
    frame = bytes.fromhex("28b52ffd0070") + block * 20_000 + b"\1\0\0"
    (path / "x" / "c" / "0" / "0" / "0").write_bytes(frame)


@special("a gzip chunk of gigabytes")
def _gzip_bomb(path: Path) -> None:
    import gzip

    build_foreign(path, [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}])
    (path / "x" / "c" / "0" / "0" / "0").write_bytes(gzip.compress(bytes(64 << 20), 1) * 40)


def blosc(
    nbytes: int, block: int, total: int, flags: int = 0x81, typesize: int = 4, rest: bytes = b""
) -> bytes:
    return struct.pack("<BBBBIII", 2, 1, flags, typesize, nbytes, block, total) + rest


BLOSC = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "blosc"}]
for _label, _chunk in {
    "claims more than the chunk has": blosc((1 << 32) - 1, 1 << 20, 100, rest=bytes(84)),
    "claims its size and a vast block": blosc(128, (1 << 32) - 1, 100, rest=bytes(84)),
    "has blocks of nothing": blosc(128, 0, 100, rest=bytes(84)),
    "has blocks of one byte": blosc(128, 1, 1000, rest=bytes(984)),
    "points behind its end": blosc(128, 128, 24, rest=struct.pack("<II", 1 << 31, 5)),
    "points before its beginning": blosc(128, 128, 24, rest=struct.pack("<ii", -8, 5)),
    "has streams of a vast length": blosc(128, 128, 28, rest=struct.pack("<III", 20, (1 << 32) - 1, 0)),
    "has streams of negative length": blosc(128, 128, 28, rest=struct.pack("<IiI", 20, -5, 0)),
    "has elements of no size": blosc(128, 128, 24, typesize=0, rest=struct.pack("<II", 20, 0)),
    "has elements of many bytes": blosc(128, 128, 24, typesize=255, rest=struct.pack("<II", 20, 0)),
    "is of an unknown format": blosc(128, 128, 24, flags=0xE1, rest=struct.pack("<II", 20, 0)),
    "is a header alone": blosc(128, 128, 16),
    "is stored, and short": blosc(128, 128, 16, flags=0x02),
    "has blocks that share a stream": blosc(
        128, 16, 68, rest=struct.pack("<8I", *[48] * 8) + struct.pack("<I", 16) + bytes(16)
    ),
    "is empty": b"",
}.items():

    def _make(path: Path, chunk: bytes = _chunk) -> None:
        build_foreign(path, BLOSC)
        (path / "x" / "c" / "0" / "0" / "0").write_bytes(chunk)

    FOREIGN[f"a blosc chunk that {_label}"] = _make
