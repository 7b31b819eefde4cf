"""Files that say they hold terabytes, and do: of nothing. By name, as in `foreign_lies` and `forged_lies`."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import put, shard_path
from foreign_lies import Case, blosc, build_foreign, sharded
from forged_lies import CORPUS, RAW
from forgery import Forgery, crc32c

SPARSE: dict[str, Case] = {}
VAST = 1 << 43
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
ABSENT = ((1 << 64) - 1, (1 << 64) - 1)


def sparse(name: str) -> Callable[[Case], Case]:
    def add(make: Case) -> Case:
        assert name not in SPARSE
        SPARSE[name] = make
        return make

    return add


def index_of(spans: list[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack("<QQ", *span) for span in spans)


def put_end(file: Path, length: int, end: bytes) -> None:
    """Zeros that take no room, and something behind them."""
    put(file, b"")
    with open(file, "r+b") as shard:
        shard.seek(length)
        shard.write(end)


CHAINS: dict[str, list[Any]] = {
    "raw": [LITTLE],
    "raw and summed": [LITTLE, {"name": "crc32c"}],
    "zstd": [LITTLE, {"name": "zstd"}],
    "gzip": [LITTLE, {"name": "gzip"}],
    "blosc": [LITTLE, {"name": "blosc"}],
    "zstd over gzip, summed": [LITTLE, {"name": "gzip"}, {"name": "zstd"}, {"name": "crc32c"}],
}
for _label, _chain in CHAINS.items():

    @sparse(f"a foreign chunk of terabytes, {_label}")
    def _chunk(path: Path, chain: list[Any] = _chain) -> None:
        build_foreign(path, chain)
        with open(path / "x" / "c" / "0" / "0" / "0", "r+b") as file:
            file.truncate(VAST)

    @sparse(f"a foreign index of terabytes, {_label}")
    def _index(path: Path, chain: list[Any] = _chain) -> None:
        build_foreign(path, sharded(codecs=chain))
        index = index_of([(0, VAST), ABSENT])
        end = index + struct.pack("<I", crc32c(index))
        put_end(path / "x" / "c" / "0" / "0" / "0", VAST, end)


@sparse("a foreign index that is itself of gigabytes")
def _long_index(path: Path) -> None:
    codecs = sharded(chunk_shape=[1, 1, 1], index_codecs=[LITTLE])
    build_foreign(path, codecs)
    node = json.loads((path / "x" / "zarr.json").read_text())
    node["chunk_grid"]["configuration"]["chunk_shape"][0] = 1 << 25
    (path / "x" / "zarr.json").write_text(json.dumps(node))
    put_end(path / "x" / "c" / "0" / "0" / "0", VAST, b"\0")


@sparse("foreign chunks of a gibibyte, which the machine does not have")
def _large_chunk(path: Path) -> None:
    import zlib

    build_foreign(path, [LITTLE, {"name": "blosc"}])
    node = json.loads((path / "x" / "zarr.json").read_text())
    node["shape"] = [1, 1, 1 << 18]
    node["chunk_grid"]["configuration"]["chunk_shape"] = [1024, 1, 1 << 18]
    (path / "x" / "zarr.json").write_text(json.dumps(node))
    # One stream of one block, all of it in order but for the bytes that it should have been.
    stream = zlib.compress(bytes(1000))
    rest = struct.pack("<II", 20, len(stream)) + stream
    put(path / "x" / "c" / "0" / "0" / "0", blosc(1 << 30, 1 << 30, 16 + len(rest), 0x71, 4, rest))


for _values in (1 << 22, 1 << 25):

    @sparse(f"metadata of {_values} values, which take a hundred bytes each")
    def _json(path: Path, values: int = _values) -> None:
        build_foreign(path)
        text = (path / "x" / "zarr.json").read_text()
        file = path / "x" / "zarr.json"
        file.write_text(text.replace('"attributes": {}', f'"attributes": {{"a":[{"0," * values}0]}}'))


@sparse("a tail chunk of terabytes")
def _tail(path: Path) -> None:
    CORPUS.build(path, 9, 4)
    f = Forgery(path)
    tail = f.record["arrays"]["resid"]["tail"]
    shard = len(f.record["arrays"]["resid"]["shards"])
    tail["length"], tail["chunks"][0] = VAST, [0, VAST, 0]
    put_end(shard_path(path, "resid", shard), VAST, b"\0")
    f.write()


for _corpus in (CORPUS, RAW):

    @sparse(f"a full shard with a chunk of terabytes, {_corpus.codec}")
    def _full(path: Path, corpus: Any = _corpus) -> None:
        corpus.build(path, 9, 4)
        f = Forgery(path)
        file = shard_path(path, "resid", 0)
        index = file.read_bytes()[-100:-4]
        spans = [struct.unpack("<QQ", index[i : i + 16]) for i in range(0, 96, 16)]
        # Its sum is that of its last four bytes, which are in the hole.
        index = index_of([(0, VAST), *spans[1:]])
        table = bytes(24)
        put_end(file, VAST, table + index + struct.pack("<I", crc32c(index)))
        seal = [VAST + len(table) + len(index) + 4, crc32c(table + index)]
        f.record["arrays"]["resid"]["shards"][0] = [0, [seal]]
        f.write()


def build_many_chunks(path: Path) -> None:
    """More chunks than can be listed, none of which is there."""
    build_foreign(path)
    node = json.loads((path / "x" / "zarr.json").read_text())
    node["shape"][0] = 1 << 45
    (path / "x" / "zarr.json").write_text(json.dumps(node))
    assert np.prod(node["shape"], dtype=object) * 4 < 1 << 63
