"""Export to safetensors files and back, and import of other formats."""

import json
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore.errors import (
    ActstoreError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    ShapeError,
    StorageError,
)
from builders import DTYPES, Corpus, assert_same, files_on_disk

safetensors = pytest.importorskip("safetensors")

N = 40
CORPUS = Corpus(several=True)
ACTS = np.arange(5 * 3 * 4, dtype=np.float32).reshape(5, 3, 4)


@pytest.fixture(scope="module")
def store_path(memory_folder: Path) -> Path:
    """Four sites on three axes, in three dtypes, with empty examples, numbers and strings."""
    return CORPUS.build(memory_folder / "interchange/run.act", 30, N - 30)


@pytest.fixture(scope="module")
def exported(store_path: Path) -> Path:
    path = store_path.with_name("exported")
    actstore.export(store_path, path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_on_disk(folder)}


def assert_equal(one: actstore.Store, other: actstore.Store) -> None:
    """Equal sites, columns, offsets and identity; the layout on disk may differ."""
    assert (one.sites, list(one.axes), one.identity) == (other.sites, list(other.axes), other.identity)
    for name in one:
        assert (one[name].layers, one[name].axis) == (other[name].layers, other[name].axis)
        assert_same(one[name].read(), other[name].read())
    for axis in one.axes:
        assert_same(one.axes[axis].offsets, other.axes[axis].offsets)
    tables = [(one.examples, other.examples), *((one.axes[axis], other.axes[axis]) for axis in one.axes)]
    for columns, others in tables:
        assert columns.dtypes == others.dtypes
        for name in columns:
            assert columns[name].tolist() == others[name].tolist()


# ---- Round trips ----


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_an_export_imported_is_the_same_store(
    store_path: Path, exported: Path, memory_path: Path, codec: Any
) -> None:
    actstore.import_(exported, memory_path / "again.act", codec=codec)
    with actstore.open(store_path) as one, actstore.open(memory_path / "again.act") as other:
        assert 0 in np.diff(one.tokens.offsets)
        assert {one[name].dtype.name for name in one} == {"bfloat16", "float16", "float32"}
        assert_equal(one, other)
        assert CORPUS.check(other) == N
        assert other.verify(strict=True).ok
        assert {site["codec"] for site in other.info()["sites"].values()} == {codec}
    # A second export gives the same bytes.
    actstore.export(memory_path / "again.act", memory_path / "exported")
    assert content(memory_path / "exported") == content(exported)


def test_columns_of_every_dtype(memory_path: Path) -> None:
    numbers: dict[str, Any] = {
        "bool": np.array([True, False, True]),
        "bfloat16": np.array([1, -2, np.inf], ml_dtypes.bfloat16),
        **{f"int{b}": np.array([-(2 ** (b - 1)), 0, 2 ** (b - 1) - 1], f"int{b}") for b in (8, 16, 32, 64)},
        **{f"uint{b}": np.array([0, 1, 2**b - 1], f"uint{b}") for b in (8, 16, 32, 64)},
        **{f"float{b}": np.array([np.nan, -0.0, 0.1], f"float{b}") for b in (16, 32, 64)},
    }
    texts = {"text": ["", "ß\0日本", "a\nb"], "more.text": ["x"] * 3}
    with actstore.create(memory_path / "x", {"r": actstore.SiteSpec(1, 2, "float32")}) as writer:
        rows = np.zeros((3, 1, 2), np.float32)
        writer.append(
            {"r": rows}, [1, 1, 1], ["a/b", "", "é"], token_columns=numbers, columns=numbers | texts
        )
    actstore.export(memory_path / "x", memory_path / "e")
    actstore.import_(memory_path / "e", memory_path / "y")
    with actstore.open(memory_path / "y") as store:
        for name, values in numbers.items():
            assert_same(store.tokens[name], values)
            assert_same(store.examples[name], values)
        for name, values in texts.items():
            assert store.examples[name].tolist() == values
        assert store.examples["id"].tolist() == ["a/b", "", "é"]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_stores_without_rows(memory_path: Path, lengths: list[int]) -> None:
    spec = actstore.SiteSpec(2, 3, "bfloat16", labels=[4, 2])
    with actstore.create(memory_path / "x", {"r": spec}, identity={"a": [1, {"b": None}]}) as writer:
        writer.append({"r": np.zeros((0, 2, 3), ml_dtypes.bfloat16)}, lengths, token_columns=[0] * 0)
    actstore.export(memory_path / "x", memory_path / "e")
    actstore.import_(memory_path / "e", memory_path / "y")
    with actstore.open(memory_path / "x") as one, actstore.open(memory_path / "y") as other:
        assert other.n_examples == len(lengths)
        assert_equal(one, other)


def test_some_sites(store_path: Path, exported: Path, memory_path: Path) -> None:
    actstore.export(store_path, memory_path / "e", sites=["pooled", "cross"])
    names = ["actstore.json", "columns.safetensors", "cross.0.safetensors", "cross.1.safetensors"]
    assert sorted(os.listdir(memory_path / "e")) == [*names, "pooled.0.safetensors"]
    actstore.import_(memory_path / "e", memory_path / "both")
    actstore.import_(exported, memory_path / "one", sites=["cross"])
    with actstore.open(memory_path / "both") as both, actstore.open(memory_path / "one") as one:
        assert sorted(both.sites) == ["cross", "pooled"]
        assert (one.sites, list(one.axes)) == (["cross"], ["decoder"])
        assert_same(one["cross"].read(), CORPUS.rows("cross", 0, CORPUS.n_rows("decoder", N)))
        assert one.examples["label"].tolist() == both.examples["label"].tolist() == CORPUS.labels(0, N)
    for call in (actstore.export, actstore.import_):
        with pytest.raises(NotFoundError, match=r"'mlp'.*resid"):
            call(store_path, memory_path / "no", sites=["resid", "mlp"])
        with pytest.raises(InvalidInputError):
            call(store_path, memory_path / "no", sites=[])
    assert not (memory_path / "no").exists()


def test_parts_become_one(memory_path: Path) -> None:
    for index in range(3):
        with actstore.create(memory_path / f"parts/{index}", {"r": actstore.SiteSpec(3, 4, "float32")}) as w:
            w.append({"r": ACTS + index}, [2, 3], ids=[f"{index}a", f"{index}b"], columns={"n": [index] * 2})
    actstore.import_(memory_path / "parts", memory_path / "one")
    with actstore.open(memory_path / "parts") as parts, actstore.open(memory_path / "one") as one:
        assert_equal(parts, one)
        actstore.export(parts, memory_path / "e")
    actstore.import_(memory_path / "e", memory_path / "two")
    assert actstore.open(memory_path / "two")["r"].read().tolist() == [
        *ACTS.tolist(),
        *(ACTS + 1).tolist(),
        *(ACTS + 2).tolist(),
    ]


# ---- The files ----


def test_files_open_with_safetensors(store_path: Path, exported: Path) -> None:
    with actstore.open(store_path) as store:
        for name in store:
            for label in store[name].layers:
                with safetensors.safe_open(exported / f"{name}.{label}.safetensors", "np") as file:
                    assert list(file.keys()) == [f"{name}.{label}"]
                    assert_same(file.get_tensor(f"{name}.{label}"), store[name][:, label])
        with safetensors.safe_open(exported / "columns.safetensors", "np") as file:
            for axis in store.axes:
                assert_same(file.get_tensor(f"{axis}/offset"), store.axes[axis].offsets)
                assert_same(file.get_tensor(f"{axis}/id"), store.axes[axis]["id"])
            assert_same(file.get_tensor("examples/score"), store.examples["score"])
            raw, ends = (file.get_tensor(f"examples/label/{leaf}") for leaf in ("bytes", "offset"))
            texts = [raw[a:b].tobytes().decode() for a, b in pairwise(ends)]
            assert texts == CORPUS.labels(0, N)
        told = json.loads((exported / "actstore.json").read_text())
        assert told["sites"]["resid"] == {
            "axis": "tokens",
            "labels": [0, 6, 12],
            "dtype": "bfloat16",
            "dim": 8,
        }
        assert (told["identity"], told["n_examples"]) == (store.identity, N)


def test_files_open_with_torch(store_path: Path, exported: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    with actstore.open(store_path) as store:
        for name in store:
            for label in store[name].layers:
                tensor = load_file(exported / f"{name}.{label}.safetensors")[f"{name}.{label}"]
                assert tensor.dtype == getattr(torch, store[name].dtype.name)
                assert_same(tensor.float().numpy(), store[name].select(layers=label).read("float32")[:, 0])


def test_tensors_are_aligned(exported: Path) -> None:
    """Other libraries memory-map the files and read the tensors in place."""
    for path in exported.glob("*.safetensors"):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        ends = [0]
        for tensor in json.loads(raw[8 : 8 + length]).values():
            start, stop = tensor["data_offsets"]
            size = int(tensor["dtype"].lstrip("BFIUOL")) // 8 if tensor["dtype"] != "BOOL" else 1
            assert (8 + length + start) % size == 0
            assert start == ends[-1]
            ends.append(stop)
        assert 8 + length + ends[-1] == len(raw)


# ---- Other formats ----


@pytest.mark.parametrize("dtype", DTYPES)
def test_npy(memory_path: Path, dtype: str) -> None:
    acts = ACTS.astype(DTYPES[dtype])
    np.save(memory_path / "x.npy", acts)
    np.save(memory_path / "flat.npy", np.asfortranarray(acts[:, 0]))
    np.save(memory_path / "lengths.npy", np.array([2, 0, 3], np.int32))
    # .npy files cannot name bfloat16, so the caller does.
    name = dtype if dtype == "bfloat16" else None
    x, flat = memory_path / "x.npy", memory_path / "flat.npy"
    actstore.import_(
        x, memory_path / "x", offsets=[0, 2, 2, 5], ids=["a", "b", "c"], labels=[0, 6, 12], dtype=name
    )
    actstore.import_(
        str(flat), str(memory_path / "flat"), lengths=memory_path / "lengths.npy", site="mlp", dtype=name
    )
    actstore.import_(flat, memory_path / "whole", dtype=name)
    with actstore.open(memory_path / "x") as store:
        assert (store.sites, store["resid"].layers) == (["resid"], [0, 6, 12])
        assert_same(store["resid"].read(), acts)
        assert store.examples["id"].tolist() == ["a", "b", "c"]
        assert store["resid"].example("b").shape == (0, 3, 4)
        assert_same(store["resid"].example("c"), acts[2:])
    with actstore.open(memory_path / "flat") as store:
        assert_same(store["mlp"].read(), acts[:, :1])
        assert store.tokens.offsets.tolist() == [0, 2, 2, 5]
    with actstore.open(memory_path / "whole") as store:
        assert (store.n_examples, store.n_tokens) == (1, 5)


def test_npy_of_other_floats(memory_path: Path) -> None:
    rows = np.full((1, 1, 4), 1 + 2**-8 + 2**-40)
    np.save(memory_path / "x.npy", rows)
    np.save(memory_path / "swapped.npy", ACTS.astype(">f4"))
    with pytest.raises(InvalidInputError, match="float64"):
        actstore.import_(memory_path / "x.npy", memory_path / "x")
    actstore.import_(memory_path / "x.npy", memory_path / "x", dtype="bfloat16")
    # Rounded once; through float32 it would be 1.
    assert float(actstore.open(memory_path / "x")["resid"][0, 0, 0]) == 1 + 2**-7
    actstore.import_(memory_path / "swapped.npy", memory_path / "swapped")
    assert_same(actstore.open(memory_path / "swapped")["resid"].read(), ACTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_safetensors(memory_path: Path, dtype: str) -> None:
    from safetensors.numpy import save_file

    acts = ACTS.astype(DTYPES[dtype])
    save_file({"mlp": np.ascontiguousarray(acts[:, 1]), "resid": acts}, memory_path / "x.safetensors")
    actstore.import_(memory_path / "x.safetensors", memory_path / "x", lengths=[4, 1], ids=["a", "b"])
    with actstore.open(memory_path / "x") as store:
        assert sorted(store.sites) == ["mlp", "resid"]
        assert_same(store["resid"].read(), acts)
        assert_same(store["mlp"].read(), acts[:, 1:2])
        assert_same(store["resid"].example("b"), acts[4:])
    one = {"sites": ["resid"], "labels": [5, 3, 1], "dtype": "float32"}
    actstore.import_(memory_path / "x.safetensors", memory_path / "one", **one)
    with actstore.open(memory_path / "one") as store:
        assert (store.sites, store["resid"].layers) == (["resid"], [5, 3, 1])
        assert_same(store["resid"].read(), ACTS)


def test_foreign_zarr_groups(memory_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(memory_path / "g.zarr")
    group.create_array("resid", data=ACTS, chunks=(2, 1, 4), shards=(4, 3, 4))
    group.create_array("mlp", data=ACTS[:, :1].astype(np.float16), chunks=(3, 1, 4))
    group.create_array("notes", data=np.arange(3))
    actstore.import_(memory_path / "g.zarr", memory_path / "g", offsets=[0, 0, 5], ids=["none", "all"])
    actstore.import_(memory_path / "g.zarr/resid", memory_path / "a", lengths=[1, 4], labels=[2, 4, 8])
    # A foreign group can have offsets.
    group.create_array("tokens/offset", data=np.array([0, 3, 5]))
    actstore.import_(memory_path / "g.zarr", memory_path / "own", dtype="bfloat16", sites=["resid"])
    with pytest.raises(InvalidInputError, match="has its own example boundaries"):
        actstore.import_(memory_path / "g.zarr", memory_path / "no", offsets=[0, 5])
    with actstore.open(memory_path / "g") as store:
        assert_same(store["resid"].read(), ACTS)
        assert_same(store["mlp"].read(), ACTS[:, :1].astype(np.float16))
        assert_same(store["resid"].example("all"), ACTS)
    with actstore.open(memory_path / "a") as store:
        assert (store.sites, store["resid"].layers) == (["resid"], [2, 4, 8])
        assert_same(store["resid"].example(1), ACTS[1:])
    with actstore.open(memory_path / "own") as store:
        assert_same(store["resid"].read("float32"), ACTS)
        assert store.tokens.offsets.tolist() == [0, 3, 5]


def test_a_store_in_another_dtype(store_path: Path, memory_path: Path) -> None:
    actstore.import_(store_path, memory_path / "x", dtype="float32", codec="raw")
    with actstore.open(store_path) as one, actstore.open(memory_path / "x") as other:
        for name in one:
            assert_same(other[name].read(), one[name].read("float32"))
        assert other.examples["id"].tolist() == one.examples["id"].tolist()


@pytest.mark.parametrize("lengths", [[64, 0, 64], [0, 128], [1] * 128])
def test_examples_larger_than_a_block(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, lengths: list[int]
) -> None:
    """With a block of only a few rows instead of 32 MiB, an example is copied in several pieces."""
    # `actstore.interchange.export` is the function, which hides the module.
    monkeypatch.setattr(sys.modules["actstore.interchange.imports"], "_BLOCK_BYTES", 100)
    monkeypatch.setattr(sys.modules["actstore.interchange.export"], "BLOCK_BYTES", 100)
    acts = np.arange(128 * 2 * 4, dtype=np.float32).reshape(128, 2, 4)
    np.save(memory_path / "x.npy", acts)
    seen: list[tuple[int, int]] = []
    path = memory_path / "x"
    actstore.import_(memory_path / "x.npy", path, lengths=lengths, progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (acts.nbytes, acts.nbytes)
    seen.clear()
    actstore.export(path, memory_path / "e", progress=lambda *done: seen.append(done))
    assert seen == sorted(seen)
    assert seen[-1] == (acts.nbytes, acts.nbytes)
    actstore.import_(memory_path / "e", memory_path / "y")
    with actstore.open(path) as one, actstore.open(memory_path / "y") as other:
        assert_same(one["resid"].read(), acts)
        assert np.diff(one.tokens.offsets).tolist() == lengths
        assert_equal(one, other)


def test_large_examples_of_several_axes(
    exported: Path, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites on other axes, pooled sites and columns stay aligned with the pieces."""
    monkeypatch.setattr(sys.modules["actstore.interchange.imports"], "_BLOCK_BYTES", 200)
    actstore.import_(exported, memory_path / "x")
    with actstore.open(memory_path / "x") as store:
        assert CORPUS.check(store) == N


# ---- Failures ----


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


Case = tuple[Callable[[Path, Path], object], type[Exception]]
FAILURES: dict[str, Case] = {
    "no source": (lambda t, to: actstore.import_(t / "no.npy", to, overwrite=True), NotFoundError),
    "a text": (lambda t, to: actstore.import_(t / "x.txt", to, overwrite=True), InvalidInputError),
    "an empty folder": (lambda t, to: actstore.import_(t / "empty", to, overwrite=True), NotFoundError),
    "text called npy": (lambda t, to: actstore.import_(t / "bad.npy", to, overwrite=True), FormatError),
    "pickles": (lambda t, to: actstore.import_(t / "pickle.npy", to, overwrite=True), FormatError),
    "a short npy": (lambda t, to: actstore.import_(t / "short.npy", to, overwrite=True), FormatError),
    "no safetensors": (
        lambda t, to: actstore.import_(t / "bad.safetensors", to, overwrite=True),
        FormatError,
    ),
    "a row count": (
        lambda t, to: actstore.import_(t / "x.npy", to, lengths=[2, 2], overwrite=True),
        ShapeError,
    ),
    "falling offsets": (
        lambda t, to: actstore.import_(t / "x.npy", to, offsets=[0, 4, 2, 5], overwrite=True),
        ShapeError,
    ),
    "offsets from 1": (
        lambda t, to: actstore.import_(t / "x.npy", to, offsets=[1, 5], overwrite=True),
        ShapeError,
    ),
    "no offsets": (lambda t, to: actstore.import_(t / "x.npy", to, offsets=[], overwrite=True), ShapeError),
    "negative lengths": (
        lambda t, to: actstore.import_(t / "x.npy", to, lengths=[6, -1], overwrite=True),
        ActstoreError,
    ),
    "offsets and lengths": (
        lambda t, to: actstore.import_(t / "x.npy", to, offsets=[0, 5], lengths=[5], overwrite=True),
        InvalidInputError,
    ),
    "ids": (lambda t, to: actstore.import_(t / "x.npy", to, ids=["a", "b"], overwrite=True), ShapeError),
    "ids twice": (
        lambda t, to: actstore.import_(t / "x.npy", to, lengths=[2, 3], ids=["a", "a"], overwrite=True),
        InvalidInputError,
    ),
    "labels": (
        lambda t, to: actstore.import_(t / "x.npy", to, labels=[1, 2], overwrite=True),
        InvalidInputError,
    ),
    "a site's name": (
        lambda t, to: actstore.import_(t / "x.npy", to, site="a/b", overwrite=True),
        InvalidInputError,
    ),
    "a dtype": (
        lambda t, to: actstore.import_(t / "x.npy", to, dtype="int8", overwrite=True),
        InvalidInputError,
    ),
    "a codec": (
        lambda t, to: actstore.import_(t / "x.npy", to, codec="zip", overwrite=True),
        InvalidInputError,
    ),  # type: ignore[arg-type]
    "integers": (lambda t, to: actstore.import_(t / "int.npy", to, overwrite=True), InvalidInputError),
    "one axis": (lambda t, to: actstore.import_(t / "flat.npy", to, overwrite=True), InvalidInputError),
    # These errors occur while rows are being written.
    "values too large": (
        lambda t, to: actstore.import_(t / "huge.npy", to, dtype="float16", lengths=[1] * 5, overwrite=True),
        InvalidInputError,
    ),
    "a damaged store": (lambda t, to: actstore.import_(t / "damaged.act", to, overwrite=True), FormatError),
    "a short tensor": (lambda t, to: actstore.import_(t / "short", to, overwrite=True), FormatError),
    "a missing tensor": (lambda t, to: actstore.import_(t / "missing", to, overwrite=True), NotFoundError),
    "a newer export": (lambda t, to: actstore.import_(t / "newer", to, overwrite=True), FormatError),
    "an odd export": (lambda t, to: actstore.import_(t / "odd", to, overwrite=True), FormatError),
    "labels of an export": (
        lambda t, to: actstore.import_(t / "export", to, labels=[1, 2, 3], overwrite=True),
        InvalidInputError,
    ),
    "progress that raises": (
        lambda t, to: actstore.import_(t / "x.npy", to, progress=lambda *_: 1 / 0, overwrite=True),
        ZeroDivisionError,
    ),
}


@pytest.fixture(scope="module")
def bad(memory_folder: Path) -> Path:
    """A folder of files and directories that cannot be imported."""
    folder = memory_folder / "bad"
    (folder / "empty").mkdir(parents=True)
    (folder / "x.txt").write_text("text")
    (folder / "bad.npy").write_text("text")
    (folder / "bad.safetensors").write_bytes(b"\xff" * 100)
    np.save(folder / "x.npy", ACTS)
    np.save(folder / "int.npy", ACTS.astype(int))
    np.save(folder / "flat.npy", ACTS.reshape(-1))
    np.save(folder / "pickle.npy", np.array([{}], object), allow_pickle=True)
    huge = ACTS.copy()
    huge[4] = 1e6
    np.save(folder / "huge.npy", huge)
    raw = (folder / "x.npy").read_bytes()
    (folder / "short.npy").write_bytes(raw[:-4])
    spec = actstore.SiteSpec(3, 4, "float32", chunk_rows=2, shard_rows=2)
    with actstore.create(folder / "damaged.act", {"resid": spec}) as writer:
        writer.append({"resid": ACTS}, [3, 2], columns={"label": ["x", "y"]})
    for name in ("export", "short", "missing", "newer", "odd"):
        actstore.export(folder / "damaged.act", folder / name)
    _flip(folder / "damaged.act/resid/c/1/0/0")
    raw = (folder / "short/resid.2.safetensors").read_bytes()
    (folder / "short/resid.2.safetensors").write_bytes(raw[:-4])
    (folder / "missing/resid.1.safetensors").unlink()
    told = json.loads((folder / "newer/actstore.json").read_text())
    (folder / "newer/actstore.json").write_text(json.dumps(told | {"format": 99}))
    (folder / "odd/actstore.json").write_text(json.dumps(told | {"sites": [1]}))
    return folder


@pytest.mark.parametrize("what", FAILURES)
def test_a_failed_import_leaves_nothing(bad: Path, memory_path: Path, what: str) -> None:
    call, error = FAILURES[what]
    with pytest.raises(error):
        call(bad, memory_path / "new.act")
    assert list(memory_path.iterdir()) == []
    # A failed import does not change the store that it was to replace.
    actstore.create(memory_path / "old.act", {"resid": actstore.SiteSpec(1, 2, "float32")}).close()
    before = content(memory_path)
    with pytest.raises(error):
        call(bad, memory_path / "old.act")
    assert content(memory_path) == before


def test_nothing_is_replaced_unasked(bad: Path, memory_path: Path) -> None:
    actstore.import_(bad / "x.npy", memory_path / "x.act")
    (memory_path / "folder").mkdir()
    (memory_path / "folder/thesis.tex").write_text("years of work")
    (memory_path / "file").write_text("mine")
    before = content(memory_path)
    for name in ("x.act", "folder", "file"):
        for call in (actstore.import_, actstore.export):
            source = bad / "x.npy" if call is actstore.import_ else memory_path / "x.act"
            with pytest.raises(StorageError) as caught:
                call(source, memory_path / name)
            assert caught.value.kind == "exists"
            if (
                name != "x.act" or call is actstore.export
            ):  # A store replaces only a store, and an export only an export.
                with pytest.raises(ActstoreError):
                    call(source, memory_path / name, overwrite=True)
            assert content(memory_path) == before


def test_overwrite(bad: Path, memory_path: Path) -> None:
    actstore.import_(bad / "export", memory_path / "x.act")
    actstore.import_(bad / "x.npy", memory_path / "x.act", site="mlp", overwrite=True)
    with actstore.open(memory_path / "x.act") as store:
        assert (store.sites, store.n_examples) == (["mlp"], 1)
        assert store.verify(strict=True).leftovers == []
    actstore.export(memory_path / "x.act", memory_path / "e")
    actstore.import_(bad / "x.npy", memory_path / "x.act", labels=[5, 6, 7], overwrite=True)
    actstore.export(memory_path / "x.act", memory_path / "e", overwrite=True)
    names = [f"resid.{label}.safetensors" for label in (5, 6, 7)]
    assert sorted(os.listdir(memory_path / "e")) == ["actstore.json", "columns.safetensors", *names]
    assert sorted(os.listdir(memory_path)) == ["e", "x.act"]


def test_a_failed_export_leaves_nothing(bad: Path, memory_path: Path) -> None:
    with pytest.raises(FormatError):
        actstore.export(bad / "damaged.act", memory_path / "e")
    assert list(memory_path.iterdir()) == []
    actstore.import_(bad / "x.npy", memory_path / "x.act")
    actstore.export(memory_path / "x.act", memory_path / "e")
    before = content(memory_path)
    with pytest.raises(FormatError):
        actstore.export(bad / "damaged.act", memory_path / "e", overwrite=True)
    assert content(memory_path) == before


def test_a_store_that_is_written_to_is_not_replaced(bad: Path, memory_path: Path) -> None:
    with actstore.create(memory_path / "x", {"resid": actstore.SiteSpec(3, 4, "float32")}) as writer:
        writer.append({"resid": ACTS}, [5])
        with pytest.raises(StorageError) as caught:
            actstore.import_(bad / "x.npy", memory_path / "x", overwrite=True)
        assert caught.value.kind == "locked"
    assert actstore.open(memory_path / "x").n_tokens == 5
    assert sorted(os.listdir(memory_path)) == ["x"]
