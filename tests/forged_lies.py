"""Our own stores, their metadata changed and every checksum made right again, by name."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import Corpus, put, shard_path, twin
from foreign_lies import BAD_NAMES, BAD_NUMBERS, BAD_VALUES, CHUNK_SHAPE, Case, blosc, set_in, special
from forgery import Forgery, compact_json, crc32c

CORPUS = Corpus()
RAW = Corpus(codec="raw")
FORGED: dict[str, Case] = {}
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
