"""Small stores whose every value follows from its row number, so that any prefix can be checked."""

import contextlib
import importlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import actstore
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}


def mix(*numbers: Any) -> NDArray[np.uint64]:
    """A hash of whole numbers, broadcast against one another."""
    out = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for number in numbers:
            out = (out ^ np.asarray(number, np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
            out = (out ^ (out >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            out ^= out >> np.uint64(32)
    return out


def values(salt: int, start: int, stop: int, n_layers: int, dim: int, dtype: str) -> NDArray[Any]:
    """Rows ``[stop - start, n_layers, dim]``; eighths from -16 to 16, which every float dtype holds."""
    rows = np.arange(start, stop, dtype=np.uint64)[:, None, None]
    bits = mix(salt, rows, np.arange(n_layers)[:, None], np.arange(dim)) & np.uint64(0xFF)
    return ((bits.astype(np.float32) - 128) / 8).astype(DTYPES[dtype])


@dataclass(frozen=True)
class SmallSite:
    """A site of a few rows a chunk and a few chunks a shard."""

    n_layers: int
    dim: int
    dtype: str
    axis: str
    chunk_rows: int
    shard_rows: int
    labels: tuple[int, ...] | None = None

    @property
    def spec(self) -> actstore.SiteSpec:
        return actstore.SiteSpec(
            self.n_layers, self.dim, self.dtype, self.labels, self.axis, self.chunk_rows, self.shard_rows
        )


ONE = {"resid": SmallSite(2, 8, "bfloat16", "tokens", 4, 12)}
SEVERAL = {
    "resid": SmallSite(3, 8, "bfloat16", "tokens", 4, 12, (0, 6, 12)),
    "mlp_out": SmallSite(1, 4, "float32", "tokens", 8, 16),
    "cross": SmallSite(2, 5, "float16", "decoder", 3, 15),
    "pooled": SmallSite(1, 6, "float32", "examples", 4, 8),
}

_LIMIT = 6000


@dataclass(frozen=True)
class Corpus:
    """An endless row of examples; stores are filled with its first ones."""

    several: bool = False
    codec: Literal["blosc", "raw"] = "blosc"

    @property
    def sites(self) -> dict[str, SmallSite]:
        return SEVERAL if self.several else ONE

    @cached_property
    def axes(self) -> list[str]:
        return list(dict.fromkeys(site.axis for site in self.sites.values() if site.axis != "examples"))

    @cached_property
    def offsets(self) -> dict[str, NDArray[np.int64]]:
        """Ragged, with empty examples, and now and then one over several shards."""
        out = {}
        numbers = np.arange(_LIMIT)
        for i, axis in enumerate(self.axes):
            lengths = (mix(i, numbers) % np.uint64(6)).astype(np.int64)
            lengths[numbers % 23 == 7 + i] = 31
            out[axis] = np.concatenate([[0], np.cumsum(lengths)])
        return out

    def n_rows(self, axis: str, n_examples: int) -> int:
        return n_examples if axis == "examples" else int(self.offsets[axis][n_examples])

    def rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        site = self.sites[name]
        salt = 1 + list(self.sites).index(name)
        return values(salt, start, stop, site.n_layers, site.dim, site.dtype)

    def ids(self, start: int, stop: int) -> list[str]:
        return [f"ex-{i}" for i in range(start, stop)]

    def labels(self, start: int, stop: int) -> list[str]:
        return ["" if i % 5 == 0 else "ß" * (i % 4) + str(i * i) for i in range(start, stop)]

    def scores(self, start: int, stop: int) -> NDArray[np.float64]:
        return np.arange(start, stop) / 7

    def token_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop) * 3 + 1

    def positions(self, axis: str, n_examples: int) -> NDArray[np.int32]:
        offset = self.offsets[axis][: n_examples + 1]
        return (np.arange(offset[-1]) - np.repeat(offset[:-1], np.diff(offset))).astype(np.int32)

    def create(self, path: str | os.PathLike[str], **keywords: Any) -> actstore.StoreWriter:
        specs = {name: site.spec for name, site in self.sites.items()}
        identity = {"weights": "sha256:1234", "config": {"layers": 12}}
        return actstore.create(path, specs, codec=self.codec, identity=identity, **keywords)

    def append(self, writer: actstore.StoreWriter, n: int, columns: bool = True) -> None:
        """Appends the `n` examples that come next."""
        start, stop = writer.n_examples, writer.n_examples + n
        acts = {
            name: self.rows(name, self.n_rows(site.axis, start), self.n_rows(site.axis, stop))
            for name, site in self.sites.items()
        }
        lengths = {axis: np.diff(self.offsets[axis][start : stop + 1]) for axis in self.axes}
        if not columns:
            writer.append(acts, lengths, self.ids(start, stop))
            return
        tokens = {}
        for axis in self.axes:
            first, last = self.n_rows(axis, start), self.n_rows(axis, stop)
            tokens[axis] = {
                "id": self.token_ids(first, last),
                "position": self.positions(axis, stop)[first:],
            }
        more = {"label": self.labels(start, stop), "score": self.scores(start, stop)}
        writer.append(acts, lengths, self.ids(start, stop), tokens, more)

    def build(self, path: str | os.PathLike[str], *commits: int, columns: bool = True) -> Path:
        """A store of so many examples in each commit."""
        with small_columns(), self.create(path) as writer:
            for n in commits:
                self.append(writer, n, columns)
                writer.commit()
        return Path(path)

    def check(self, store: actstore.Store, columns: bool = True) -> int:
        """Asserts that a store holds the first examples, no more and no less; how many."""
        n = store.n_examples
        written = [name for name in store if store.snapshot.recipe(name) is None]
        assert sorted(written) == sorted(self.sites)
        assert sorted(store.axes) == sorted(self.axes)
        for name, site in self.sites.items():
            rows = self.n_rows(site.axis, n)
            assert store[name].shape == (rows, site.n_layers, site.dim)
            assert_same(store[name].read(), self.rows(name, 0, rows))
        for axis in self.axes:
            assert_same(store.axes[axis].offsets, self.offsets[axis][: n + 1])
        assert store.examples["id"].tolist() == self.ids(0, n)
        if columns and n:
            for axis in self.axes:
                assert_same(store.axes[axis]["id"], self.token_ids(0, self.n_rows(axis, n)))
                assert_same(store.axes[axis]["position"], self.positions(axis, n))
            assert store.examples["label"].tolist() == self.labels(0, n)
            assert_same(store.examples["score"], self.scores(0, n))
        return n

    def check_rows(self, store: actstore.Store, rng: np.random.Generator) -> None:
        """Asserts that some rows of every site are what they must be: cheaper than `check`."""
        n = store.n_examples
        for name, site in self.sites.items():
            rows = self.n_rows(site.axis, n)
            assert len(store[name]) == rows
            if rows:
                start, stop = np.sort(rng.integers(0, rows + 1, 2)).tolist()
                assert_same(store[name][start:stop], self.rows(name, start, stop))
                row = int(rng.integers(rows))
                assert_same(store[name][[row, 0]], self.rows(name, 0, rows)[[row, 0]])

    def check_with_zarr(self, path: str | os.PathLike[str]) -> None:
        """Asserts that zarr-python reads the true values of the rows that it sees."""
        import zarr

        group = zarr.open_group(os.fspath(path), mode="r")
        for name, site in self.sites.items():
            array = group[name]
            assert array.shape[1:] == (site.n_layers, site.dim)
            assert_same(np.asarray(array[:]), self.rows(name, 0, array.shape[0]))
        for axis in self.axes:
            offset = group[f"{axis}/offset"][:]
            assert_same(offset, self.offsets[axis][: len(offset)])

    def check_with_tensorstore(self, path: str | os.PathLike[str]) -> None:
        """Asserts that tensorstore reads the true values of the rows that it sees."""
        import tensorstore

        for name, site in self.sites.items():
            kvstore = {"driver": "file", "path": os.path.join(path, name)}
            array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
            assert array.shape[1:] == (site.n_layers, site.dim)
            assert_same(array.read().result(), self.rows(name, 0, array.shape[0]))


def assert_same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal dtype, shape and bits."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


@contextlib.contextmanager
def small_columns(chunk_rows: int = 64, shard_rows: int = 192) -> Iterator[None]:
    """Columns made meanwhile have small chunks too, so that few rows are several shards of them."""
    from actstore.disk import layout

    def small(name: str, dtype: str) -> dict[str, Any]:
        array = layout_column_array(name, dtype)
        return {**array, "chunk_rows": chunk_rows, "shard_rows": shard_rows}

    layout_column_array = layout.column_array
    with contextlib.ExitStack() as stack:
        # `actstore.create` is the function, which hides the module of that name.
        for module in ("actstore.disk.create", "actstore.disk.writer"):
            stack.enter_context(mock.patch.object(importlib.import_module(module), "column_array", small))
        yield


def twin(base: Path, path: Path) -> Path:
    """A copy of a store, in place of what is there. Its files are links: nobody may change one in place."""

    def link(source: str, target: str) -> str:
        if source.endswith("lock"):  # Each has one of its own.
            return shutil.copyfile(source, target)
        os.link(source, target)
        return target

    shutil.rmtree(path, ignore_errors=True)
    return Path(shutil.copytree(base, path, copy_function=link))


def put(file: Path, data: bytes | bytearray | str) -> None:
    """Other content for a file; a new one, for what is mapped or linked elsewhere must not change."""
    staged = file.with_name(file.name + ".new")
    staged.write_bytes(data.encode() if isinstance(data, str) else data)
    staged.replace(file)


def records(path: str | os.PathLike[str]) -> list[Path]:
    """The commit records, oldest first."""
    return sorted(p for p in Path(path, "commits").iterdir() if len(p.name) == 25 and p.suffix == ".json")


def newest_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest record, merged with those it builds on."""
    bodies = {int(p.stem): json.loads(p.read_text())["record"] for p in records(path)}
    last = bodies[max(bodies)]
    shards: dict[str, dict[int, Any]] = {}
    for number in range(last["checkpoint"], last["number"] + 1):
        for name, array in bodies[number]["arrays"].items():
            shards.setdefault(name, {}).update(dict(array["shards"]))
    for name, array in last["arrays"].items():
        array["shards"] = [list(pair) for pair in sorted(shards[name].items())]
    return last


def shard_path(path: str | os.PathLike[str], name: str, number: int) -> Path:
    """The file of a shard."""
    flat = len(json.loads(Path(path, name, "zarr.json").read_text())["shape"]) == 1
    return Path(path, name, "c", str(number), *(() if flat else ("0", "0")))


def files_of_record(path: str | os.PathLike[str]) -> set[str]:
    """Every file that a store at its newest record should have, relative to it."""
    root, record = Path(path), newest_record(path)
    out = {"zarr.json", "commits/lock", *(str(p.relative_to(root)) for p in records(root))}
    out |= {f"{name}/zarr.json" for name in (*record["groups"], *record["arrays"])}
    for name, array in record["arrays"].items():
        for number in range(len(array["shards"]) + bool(array["tail"])):
            out.add(str(shard_path(root, name, number).relative_to(root)))
    return out


def files_on_disk(path: str | os.PathLike[str]) -> set[str]:
    """Every file below a store, relative to it."""
    return {str(p.relative_to(path)) for p in Path(path).rglob("*") if not p.is_dir()}


def rows_in_record(path: str | os.PathLike[str]) -> dict[str, int]:
    """Rows of each array by the newest record."""
    return {name: array["rows"] for name, array in newest_record(path)["arrays"].items()}


def rows_in_metadata(path: str | os.PathLike[str]) -> dict[str, int]:
    """Rows of each array as other Zarr readers see them, in both places."""
    members = json.loads(Path(path, "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    out = {name: node["shape"][0] for name, node in members.items() if node["node_type"] == "array"}
    for name, rows in out.items():
        assert json.loads(Path(path, name, "zarr.json").read_text())["shape"][0] == rows, name
    return out
