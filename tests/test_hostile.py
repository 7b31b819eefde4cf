"""Metadata that lie: refused with an error of actstore's, quickly, and before memory is asked for.

Over 600 lines because it is one table of lies, each with the place it is told at.
"""

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import Corpus, put, shard_path, twin
from forgery import Forgery, compact_json, crc32c
from limited import Tell, anonymous_memory, in_child

CORPUS = Corpus()
RAW = Corpus(codec="raw")

Case = Callable[[Path], None]
FOREIGN: dict[str, Case] = {}
FORGED: dict[str, Case] = {}
# Cases that might hang or flood memory, each in a process of its own.
ALONE: dict[str, Case] = {}
CASES = {"foreign": FOREIGN, "forged": FORGED, "alone": ALONE}

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
    "is empty": b"",
}.items():

    def _make(path: Path, chunk: bytes = _chunk) -> None:
        build_foreign(path, BLOSC)
        (path / "x" / "c" / "0" / "0" / "0").write_bytes(chunk)

    FOREIGN[f"a blosc chunk that {_label}"] = _make


_BASES: dict[str, Path] = {}


def base_of(corpus: Corpus, folder: Path) -> Path:
    """A store to be forged, made once in each process."""
    if corpus.codec not in _BASES:
        _BASES[corpus.codec] = corpus.build(folder / f"base-{corpus.codec}", 9, 4)
    return _BASES[corpus.codec]


def forged(name: str, corpus: Corpus = CORPUS) -> Callable[[Callable[[Forgery], object]], None]:
    """A case: one of our stores, its metadata changed and all checksums right."""

    def add(change: Callable[[Forgery], object]) -> None:
        def make(path: Path) -> None:
            twin(base_of(corpus, path.parent), path)
            forgery = Forgery(path)
            change(forgery)
            forgery.write()

        assert name not in FORGED
        FORGED[name] = make

    return add


def forge(name: str, where: tuple[Any, ...], value: Any) -> None:
    forged(f"{name} {compact_json(value)[:40]}")(lambda f: set_in(f.record, where, value))


RESID = ("arrays", "resid")
TAIL = (*RESID, "tail")
for _value in [*BAD_NUMBERS, *BAD_VALUES]:
    forge("rows", (*RESID, "rows"), _value)
    forge("rows of ids", ("arrays", "examples/id/offset", "rows"), _value)
    forge("shard number", (*RESID, "shards", 0, 0), _value)
    forge("shard length", (*RESID, "shards", 0, 1, 0, 0), _value)
    forge("shard seal", (*RESID, "shards", 0, 1, 0, 1), _value)
    forge("chunk offset", (*TAIL, "chunks", 0, 0), _value)
    forge("chunk length", (*TAIL, "chunks", 0, 1), _value)
    forge("chunk sum", (*TAIL, "chunks", 0, 2), _value)
    forge("tail length", (*TAIL, "length"), _value)
    forge("checkpoint", ("checkpoint",), _value)
    forge("number", ("number",), _value)
    forge("format", ("format",), _value)
    if _value not in (None,):
        forge("tail", TAIL, _value)
        forge("compacted", (*TAIL, "compacted"), _value)
    forge("shards", (*RESID, "shards"), _value)
    forge("chunks", (*TAIL, "chunks"), _value)
    if _value != {}:
        forge("arrays", ("arrays",), _value)
    if not isinstance(_value, dict):
        forge("groups", ("groups",), _value)
    if not isinstance(_value, dict):
        forge("root", ("root",), _value)
    forge("digest", ("state", "digest"), _value)
    if _value not in (None, {}, {"a": 1}):
        forge("state", ("state",), _value)
for _length in (0, 1, 3, 4, 5):
    forge("short chunk", (*TAIL, "chunks", 0, 1), _length)
forge("no tail", TAIL, None)
forge("no shards", (*RESID, "shards"), [])
forge("something new", ("evil",), 1)
forge("later format", ("format",), 2)
forge("earlier format", ("format",), 0)
for _name in BAD_NAMES:

    @forged(f"array named {_name[:20]!r}")
    def _named(f: Forgery, name: str = _name) -> None:
        f.record["arrays"][name] = f.record["arrays"]["resid"]

    @forged(f"group named {_name[:20]!r}")
    def _group_named(f: Forgery, name: str = _name) -> None:
        f.record["groups"][name] = 0


@special("a record of the last number there is")
def _last_number(path: Path) -> None:
    CORPUS.build(path, 9)
    forgery = Forgery(path)
    forgery.number = forgery.record["number"] = forgery.record["checkpoint"] = (1 << 64) - 1
    forgery.write()


@forged("more shards than rows")
def _more_shards(f: Forgery) -> None:
    f.record["arrays"]["resid"]["shards"] *= 2


@forged("a shard twice")
def _shard_twice(f: Forgery) -> None:
    shards = f.record["arrays"]["resid"]["shards"]
    shards[1] = shards[0]


@forged("offsets that fall")
def _offsets(f: Forgery) -> None:
    put_offsets(f, [0, 9, 3, *range(3, 14)])


@forged("offsets that begin late")
def _late(f: Forgery) -> None:
    put_offsets(f, [5, *range(6, 19)])


@forged("offsets that go too far")
def _far(f: Forgery) -> None:
    put_offsets(f, [*range(13), 1 << 62])


@forged("offsets below zero")
def _negative(f: Forgery) -> None:
    put_offsets(f, [0, -(1 << 63), *range(12)])


def put_offsets(f: Forgery, offsets: list[int]) -> None:
    name = "tokens/offset"
    plain = np.zeros(chunk_rows(f, name), np.int64)
    plain[: len(offsets)] = offsets
    put_column(f, name, plain.tobytes())


def chunk_rows(f: Forgery, name: str) -> int:
    return int(f.nodes[name]["codecs"][0]["configuration"]["chunk_shape"][0])


def put_column(f: Forgery, name: str, plain: bytes) -> None:
    """Other bytes in the one chunk of a column, not compressed, as blosc allows."""
    array = f.record["arrays"][name]
    assert not array["shards"]
    body = blosc(len(plain), len(plain), 16 + len(plain), flags=2, rest=plain)
    data = body + struct.pack("<I", crc32c(body))
    file = shard_path(f.path, name, 0)
    put(file, data + file.read_bytes())
    array["tail"] = {"length": len(data), "chunks": [[0, len(data), crc32c(body)]]}


@forged("ids that are no utf-8")
def _utf8(f: Forgery) -> None:
    name = "examples/id/bytes"
    put_column(f, name, b"\xff" * chunk_rows(f, name))


def spans_of(f: Forgery) -> list[tuple[int, int]]:
    return [(0, 92)] * 6


for _what, _span in {
    "behind the end": (1 << 40, 92),
    "over the end": (0, 1 << 40),
    "around the end of all numbers": ((1 << 64) - 50, 92),
    "of no length": (0, 0),
    "shorter than a checksum": (0, 3),
    "that is absent": ((1 << 64) - 1, (1 << 64) - 1),
    "half absent": ((1 << 64) - 1, 92),
}.items():

    @forged(f"a full shard with a chunk {_what}")
    def _span_case(f: Forgery, span: tuple[int, int] = _span) -> None:
        data = shard_path(f.path, "resid", 0).read_bytes()
        f.seal("resid", 0, data, [span, *spans_of(f)[1:]])

    @forged(f"a full raw shard with a chunk {_what}", RAW)
    def _raw_span_case(f: Forgery, span: tuple[int, int] = _span) -> None:
        data = shard_path(f.path, "resid", 0).read_bytes()
        f.seal("resid", 0, data, [span, *[(64, 68)] * 5])


for _what, _where, _value in [
    ("more layers", ("shape", 1), 5),
    ("fewer layers", ("shape", 1), 1),
    ("another dim", ("shape", 2), 9),
    ("other shards", (*CHUNK_SHAPE, 0), 8),
    ("vast shards", (*CHUNK_SHAPE, 0), 1 << 40),
    ("another dtype", ("data_type",), "float32"),
    ("a wider dtype", ("data_type",), "float64"),
    ("a dtype of whole numbers", ("data_type",), "int16"),
    ("other chunks", ("codecs", 0, "configuration", "chunk_shape", 0), 2),
    ("chunks of a gibibyte", ("codecs", 0, "configuration", "chunk_shape", 0), 12),
    ("no checksums", ("codecs", 0, "configuration", "codecs"), [{"name": "bytes"}]),
    ("gzip", ("codecs", 0, "configuration", "codecs", 1), {"name": "gzip"}),
    ("the index at its start", ("codecs", 0, "configuration", "index_location"), "start"),
    ("an index without a checksum", ("codecs", 0, "configuration", "index_codecs"), [{"name": "bytes"}]),
    ("no shards", ("codecs",), [{"name": "bytes"}]),
]:

    @forged(f"an array with {_what}")
    def _array_case(f: Forgery, where: tuple[Any, ...] = _where, value: Any = _value) -> None:
        set_in(f.nodes["resid"], where, value)


def attempt(path: Path) -> tuple[str, str]:
    """How far everything one can do with a store gets: the error's class and its message."""
    try:
        with actstore.open(path) as store:
            _ = store.identity, repr(store)
            for name in store.sites:
                store[name][:1]
                store[name].read()
            for columns in (*store.axes.values(), store.examples):
                _ = columns.offset, [columns[name] for name in columns]
    except actstore.ActstoreError as error:
        return type(error).__name__, str(error)
    except BaseException as error:
        return "BaseException", repr(error)
    return "none", ""


def look_around(path: Path) -> tuple[str, str]:
    """The same for what looks at files rather than values, and for writing."""
    try:
        with actstore.open(path) as store:
            store.info()
            store.verify(strict=True)
        actstore.append(path).close()
    except actstore.ActstoreError as error:
        return type(error).__name__, str(error)
    except BaseException as error:
        return "BaseException", repr(error)
    return "none", ""


Found = dict[str, tuple[tuple[str, str], tuple[str, str], float, int]]


def try_all(tell: Tell, folder: Path, which: str, names: Sequence[str]) -> Found:
    out = {}
    for i, name in enumerate(names):
        make = CASES[which][name]
        path = folder / f"{which}-{i}"
        tell(f"{name!r} ({path})")
        make(path)
        before, start = anonymous_memory(), time.monotonic()
        read, looked = attempt(path), look_around(path)
        out[name] = (read, looked, time.monotonic() - start, anonymous_memory() - before)
    return out


# What is nobody's to refuse when it is read, but when it is written to.
READABLE = ("state ", "digest ", "a record of the last number", 'actstore {"actstore":null}')


def problem(name: str, outcome: tuple[tuple[str, str], tuple[str, str], float, int]) -> str | None:
    """What is wrong with how a case was met."""
    read, looked, seconds, memory = outcome
    if "BaseException" in (read[0], looked[0]):
        return f"no error of ours: {read} {looked}"
    if not name.startswith(READABLE):
        if read[0] == "none":
            return "it was read"
    elif looked[0] == "none" and not name.startswith("digest"):
        return "it was written to"
    if seconds > 5 or memory > 64 << 20:
        return f"it took {seconds:.1f} s, {memory >> 20} MiB"
    return None


def refuse(folder: Path, which: str, every: int) -> None:
    names = list(CASES[which])[::every]
    outcomes = in_child(try_all, folder, which, names, seconds=100, room=1 << 30)
    assert list(outcomes) == names
    problems = {name: problem(name, outcome) for name, outcome in outcomes.items()}
    assert {name: text for name, text in problems.items() if text} == {}


def test_refused(memory_path: Path) -> None:
    refuse(memory_path, "foreign", 1)
    refuse(memory_path, "forged", 5)


@pytest.mark.slow
def test_all_forged_are_refused(memory_path: Path) -> None:
    refuse(memory_path, "forged", 1)


@pytest.mark.parametrize("name", ALONE)
def test_refused_alone(tmp_path: Path, name: str) -> None:
    outcomes = in_child(try_all, tmp_path, "alone", [name], seconds=20, room=1 << 30)
    assert problem(name, outcomes[name]) is None


def test_a_folder_that_contains_itself(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(actstore.NotFoundError):
        actstore.open(folder)
    CORPUS.build(folder / "part-0", 3)
    with actstore.open(folder) as store:
        assert CORPUS.check(store) == 3


def test_a_part_that_is_there_twice(tmp_path: Path) -> None:
    """Its rows must not count twice, whichever way it got there."""
    CORPUS.build(tmp_path / "part-0", 3)
    (tmp_path / "part-1").symlink_to(tmp_path / "part-0")
    with pytest.raises(actstore.InvalidInputError):
        actstore.open([tmp_path / "part-0", tmp_path / "part-1"])
    with pytest.raises(actstore.InvalidInputError):
        actstore.open(tmp_path)


def many_loops(tell: Tell, path: Path) -> tuple[str, str]:
    tell("many loops")
    return attempt(path)


def test_a_group_that_contains_itself_many_times(tmp_path: Path) -> None:
    """Each link is a way deeper, so that the ways are many more than the links."""
    path = tmp_path / "x.zarr"
    build_foreign(path)
    for i in range(200):
        (path / f"loop-{i}").symlink_to(path)
    read, _ = in_child(many_loops, path, seconds=20)
    assert read != "BaseException"


def test_links_in_a_store_are_not_followed_to_what_is_removed(tmp_path: Path) -> None:
    """Nothing outside a store is touched, whatever its folders hold."""
    precious = tmp_path / "precious"
    build_foreign(precious)
    before = sorted(p.relative_to(precious) for p in precious.rglob("*"))
    path = CORPUS.build(tmp_path / "x.act", 3)
    (path / "evil").symlink_to(precious)
    (path / "resid" / "c" / "77").symlink_to(precious)
    (path / "commits" / ".tmp-1-1").symlink_to(precious)
    (path / "tokens" / "id" / "c" / "9").symlink_to(precious / "zarr.json")
    with actstore.open(path) as store:
        store.verify(strict=True)
        assert CORPUS.check(store) == 3
    with actstore.append(path) as writer:
        CORPUS.append(writer, 3)
    assert CORPUS.check(actstore.open(path)) == 6
    assert sorted(p.relative_to(precious) for p in precious.rglob("*")) == before
    CORPUS.create(path, overwrite=True).close()
    assert sorted(p.relative_to(precious) for p in precious.rglob("*")) == before


def test_arrays_that_are_links_elsewhere(tmp_path: Path) -> None:
    """A link may stand for an array, if what it leads to is what was committed."""
    path = CORPUS.build(tmp_path / "x.act", 3)
    other = CORPUS.build(tmp_path / "other.act", 4)
    (path / "resid").rename(tmp_path / "elsewhere")
    (path / "resid").symlink_to(tmp_path / "elsewhere")
    assert CORPUS.check(actstore.open(path)) == 3
    (path / "resid").unlink()
    (path / "resid").symlink_to(other / "resid")
    with pytest.raises(actstore.FormatError):
        actstore.open(path)["resid"].read()


def nodes_of(tree: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*where, key)
        yield from nodes_of(child, (*where, key))


def mutate(tree: Any, rng: random.Random) -> None:
    """One to three changes of any kind, anywhere."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(nodes_of(tree))
        where = rng.choice(places)
        parent = tree
        for step in where[:-1]:
            parent = parent[step]
        value = parent[where[-1]]
        kind = rng.randrange(7)
        if kind == 0:
            del parent[where[-1]]
        elif kind == 1:
            parent[where[-1]] = rng.choice(BAD_NUMBERS + BAD_VALUES + BAD_NAMES)
        elif kind == 2 and isinstance(value, int) and not isinstance(value, bool):
            parent[where[-1]] = rng.choice(
                [value + 1, value - 1, value * 2, 1 << rng.randrange(64), -value, 0]
            )
        elif kind == 3:
            other = tree
            for step in rng.choice(places):
                other = other[step] if not isinstance(other, list) or step < len(other) else None
                if not isinstance(other, dict | list):
                    break
            parent[where[-1]] = json.loads(json.dumps(other))
        elif kind == 4 and isinstance(value, list):
            parent[where[-1]] = value * rng.choice([2, 3]) if rng.random() < 0.5 else value[:-1]
        elif kind == 5 and isinstance(parent, dict):
            parent[rng.choice(BAD_NAMES)] = parent.pop(where[-1])
        elif kind == 6:
            parent[where[-1]] = [value]


def fuzz(tell: Tell, folder: Path, n: int, seed: int) -> list[str]:
    problems = []
    bases = [base_of(CORPUS, folder), base_of(RAW, folder)]
    plain = folder / "foreign"
    build_foreign(plain, [*sharded(chunk_shape=[2, 2, 4])])
    for i in range(n):
        rng = random.Random(f"{seed} {i}")
        path = folder / f"x-{i}"
        tell(f"case {i}")
        if i % 3:
            twin(rng.choice(bases), path)
            forgery = Forgery(path)
            target = rng.choice(["record", "root", "node"])
            if target == "node":
                mutate(forgery.nodes[rng.choice(list(forgery.nodes))], rng)
            else:
                mutate(vars(forgery)[target], rng)
            try:
                forgery.write()
            except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
                shutil.rmtree(path)  # Beyond what can be made to look right.
                continue
        else:
            twin(plain, path)
            file = path / rng.choice(["zarr.json", "x/zarr.json"])
            tree = json.loads(file.read_text())
            mutate(tree, rng)
            put(file, json.dumps(tree))
        before, start = anonymous_memory(), time.monotonic()
        for found in attempt(path), look_around(path):
            if found[0] == "BaseException":
                problems.append(f"case {i}: {found[1]}")
        if time.monotonic() - start > 5:
            problems.append(f"case {i}: took {time.monotonic() - start:.1f} s")
        if anonymous_memory() - before > 128 << 20:
            problems.append(f"case {i}: took {(anonymous_memory() - before) >> 20} MiB")
        shutil.rmtree(path)
    return problems


def test_some_mutations(memory_path: Path) -> None:
    assert in_child(fuzz, memory_path, 80, 0) == []


@pytest.mark.slow
def test_mutations(memory_path: Path) -> None:
    assert in_child(fuzz, memory_path, 1500, 1) == []
