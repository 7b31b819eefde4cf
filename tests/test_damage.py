"""Damage done to files: an error that says where, or nothing at all; never other numbers or shapes."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import actstore
import pytest
from builders import Corpus, files_on_disk, newest_record, put, records, shard_path, twin
from limited import Tell, in_child

Content = dict[str, Any]


def read_everything(path: Path) -> Content:
    """All that a store says of itself: attributes, shapes, values, offsets, ids."""
    with actstore.open(path) as store:
        out: Content = {
            "sites": {
                name: (store[name].shape, store[name].dtype.name, store[name].layers, store[name].axis)
                for name in sorted(store.sites)
            },
            "identity": store.identity,
            "n": (store.n_examples, store.n_tokens),
        }
        for name in store.sites:
            out[f"values {name}"] = store[name].read().tobytes()
            out[f"rows {name}"] = store[name][[-1, 0]].tobytes()
        for axis, columns in [*store.axes.items(), ("examples", store.examples)]:
            out[f"offset {axis}"] = columns.offsets.tolist()
            for column in columns:
                array = columns[column]
                out[f"column {axis}/{column}"] = (array.dtype.name, array.tolist())
        return out


@dataclass(frozen=True)
class Victim:
    """A store to be damaged, and what it holds."""

    corpus: Corpus
    path: Path
    content: Content

    def chunks(self) -> Iterator[tuple[str, int, int, int, int]]:
        """Array, shard, number in the shard, offset and length of every chunk."""
        for name, array in newest_record(self.path)["arrays"].items():
            for shard, _ in array["shards"]:
                data = shard_path(self.path, name, shard).read_bytes()
                for i, (offset, length) in enumerate(index_of(self.path, name, data)):
                    yield name, shard, i, offset, length
            if array["tail"]:
                for i, (offset, length, _) in enumerate(array["tail"]["chunks"]):
                    yield name, len(array["shards"]), i, offset, length


def index_of(path: Path, name: str, shard: bytes) -> list[tuple[int, int]]:
    """Offset and length of each chunk, as the shard's index has them."""
    node = json.loads((path / name / "zarr.json").read_text())
    outer = node["chunk_grid"]["configuration"]["chunk_shape"]
    inner = node["codecs"][0]["configuration"]["chunk_shape"]
    n = 1
    for a, b in zip(outer, inner, strict=True):
        n *= a // b
    words = memoryview(shard[-16 * n - 4 : -4]).cast("Q").tolist()
    return list(zip(words[::2], words[1::2], strict=True))


STORES = {
    "blosc": Corpus(several=True, codec="blosc"),
    "raw": Corpus(several=True, codec="raw"),
    "compacted": Corpus(codec="blosc"),
    "empty": Corpus(codec="raw"),
}


@pytest.fixture(scope="module")
def victims(memory_folder: Path) -> dict[str, Victim]:
    out = {}
    for name, corpus in STORES.items():
        path = memory_folder / f"victim-{name}.act"
        corpus.build(path, *(() if name == "empty" else (4, 1, 9, 2, 6, 1)))
        if name == "compacted":
            actstore.compact(path)
            with actstore.append(path) as writer:
                corpus.append(writer, 2)
        out[name] = Victim(corpus, path, {} if name == "empty" else read_everything(path))
    return out


def look(path: Path, content: Content) -> str:
    """ "" when the damage is noticed or does not matter, else what went wrong."""
    try:
        found = read_everything(path)
    except actstore.FormatError:
        pass
    except actstore.ActstoreError as error:
        if not isinstance(error, actstore.NotFoundError | actstore.StorageError):
            return f"a {type(error).__name__}: {error}"
    except BaseException as error:
        return f"not an actstore error: {error!r}"
    else:
        if found != content:
            different = [key for key in content if found.get(key) != content[key]]
            return f"other content: {different}"
    try:
        with actstore.open(path) as store:
            store.verify(strict=True)
            store.info()
    except actstore.ActstoreError:
        pass
    except BaseException as error:
        return f"verify: not an actstore error: {error!r}"
    return ""


def flip_bits(tell: Tell, victim: Victim, per_file: int, seed: int) -> str:
    """Flips bits at sampled places of every file; problems, a line each."""
    rng = random.Random(seed)
    problems = []
    for name in sorted(files_on_disk(victim.path)):
        file = victim.path / name
        data = file.read_bytes()
        # More where there is more, and always the ends.
        n = min(8 * len(data), per_file + per_file * len(data) // 1000)
        places = {rng.randrange(8 * len(data)) for _ in range(n)} | {0, 8 * len(data) - 1} if data else set()
        for place in sorted(places):
            byte, bit = divmod(place, 8)
            tell(f"{name}, byte {byte}, bit {bit}")
            damaged = bytearray(data)
            damaged[byte] ^= 1 << bit
            put(file, damaged)
            problem = look(victim.path, victim.content)
            if problem:
                problems.append(f"{name}, byte {byte} of {len(data)}, bit {bit}: {problem}")
        put(file, data)
    return "\n".join(problems)


def copy_of(victim: Victim, folder: Path) -> Victim:
    path = folder / "copy.act"
    twin(victim.path, path)
    return Victim(victim.corpus, path, victim.content)


def test_a_copy_reads_the_same(victims: dict[str, Victim], memory_path: Path) -> None:
    for name in ("blosc", "raw", "compacted"):
        original = victims[name]
        copy = Victim(original.corpus, memory_path / f"{name}.act", original.content)
        shutil.copytree(original.path, copy.path)
        assert read_everything(copy.path) == copy.content
        with actstore.append(copy.path) as writer:
            copy.corpus.append(writer, 3)
        copy.corpus.check(actstore.open(copy.path))


@pytest.mark.parametrize("name", ["blosc", "raw"])
def test_some_flipped_bits(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    assert in_child(flip_bits, copy_of(victims[name], memory_path), 1, 0) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blosc", "raw", "compacted"])
def test_flipped_bits(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    assert in_child(flip_bits, copy_of(victims[name], memory_path), 10, 1) == ""


def cut_and_grow(tell: Tell, victim: Victim, every: int, seed: int) -> str:
    """Files cut short, emptied, deleted, made longer, filled with zeros or with noise."""
    rng = random.Random(seed)
    problems = []
    for name in sorted(files_on_disk(victim.path))[::every]:
        file = victim.path / name
        data = file.read_bytes()
        others: dict[str, bytes | None] = {
            "emptied": b"",
            "deleted": None,
            "last byte gone": data[:-1],
            "cut": data[: rng.randrange(len(data) + 1)],
            "a byte more": data + b"\0",
            "twice": data + data,
            "noise behind": data + rng.randbytes(100),
            "zeros": bytes(len(data)),
            "noise": rng.randbytes(len(data)),
        }
        for what, other in others.items():
            tell(f"{name}, {what}")
            if other is None:
                file.unlink()
            else:
                put(file, other)
            problem = look(victim.path, victim.content)
            if problem:
                problems.append(f"{name}, {what}: {problem}")
        # A folder where a file should be.
        file.unlink(missing_ok=True)
        file.mkdir()
        tell(f"{name}, a folder")
        problem = look(victim.path, victim.content)
        if problem:
            problems.append(f"{name}, a folder: {problem}")
        file.rmdir()
        put(file, data)
    return "\n".join(problems)


@pytest.mark.parametrize("name", ["blosc", "raw"])
def test_some_files_cut_short(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    assert in_child(cut_and_grow, copy_of(victims[name], memory_path), 9, 0) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blosc", "raw", "compacted"])
def test_files_cut_short(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    assert in_child(cut_and_grow, copy_of(victims[name], memory_path), 1, 1) == ""


def exchange(tell: Tell, victim: Victim, n: int, seed: int) -> str:
    """Files in one another's place."""
    rng = random.Random(seed)
    problems = []
    names = sorted(files_on_disk(victim.path) - {"commits/lock"})
    shards = [name for name in names if "/c/" in name]
    for i in range(n):
        a, b = rng.sample(shards if i % 2 else names, 2)
        first, second = victim.path / a, victim.path / b
        contents = first.read_bytes(), second.read_bytes()
        if contents[0] == contents[1]:
            continue
        tell(f"{a} and {b}")
        put(first, contents[1])
        if i % 3:
            put(second, contents[0])
        problem = look(victim.path, victim.content)
        if problem:
            problems.append(f"{a} and {b}: {problem}")
        put(first, contents[0])
        put(second, contents[1])
    return "\n".join(problems)


@pytest.mark.parametrize("name", ["blosc", "raw"])
def test_exchanged_files(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    assert in_child(exchange, copy_of(victims[name], memory_path), 100, 0) == ""


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_exchanged_shards_of_one_array(memory_path: Path, codec: str) -> None:
    """Full shards of equal length, whose chunks are all in order by themselves."""
    corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
    path = corpus.build(memory_path / "x.act", 20)
    first, second = shard_path(path, "resid", 0), shard_path(path, "resid", 1)
    contents = first.read_bytes(), second.read_bytes()
    put(first, contents[1])
    with pytest.raises(actstore.FormatError):
        actstore.open(path)["resid"].read()
    assert not actstore.open(path).verify().ok
    put(second, contents[0])
    with pytest.raises(actstore.FormatError):
        actstore.open(path)["resid"].read()
    assert not actstore.open(path).verify().ok


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_exchanged_chunks_of_one_shard(memory_path: Path, codec: str) -> None:
    """Chunks of equal length in one another's place, the index as it was."""
    corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
    path = corpus.build(memory_path / "x.act", 20)
    file = shard_path(path, "resid", 0)
    data = file.read_bytes()
    spans = index_of(path, "resid", data)
    a, b = next((a, b) for a in spans for b in spans if a < b and a[1] == b[1])
    changed = bytearray(data)
    changed[a[0] : sum(a)], changed[b[0] : sum(b)] = data[b[0] : sum(b)], data[a[0] : sum(a)]
    assert changed != data
    put(file, changed)
    with pytest.raises(actstore.FormatError):
        actstore.open(path)["resid"].read()
    assert not actstore.open(path).verify().ok


@pytest.mark.parametrize("name", ["blosc", "raw"])
def test_each_damaged_chunk_is_named(victims: dict[str, Victim], memory_path: Path, name: str) -> None:
    victim = copy_of(victims[name], memory_path)
    rng = random.Random(0)
    chunks = list(victim.chunks())
    assert actstore.open(victim.path).verify().chunks == len(chunks)
    n_arrays: dict[str, int] = {}
    for array, shard, chunk, offset, length in rng.sample(chunks, 60):
        n_layers = victim.corpus.sites[array].n_layers if array in victim.corpus.sites else 1
        file = shard_path(victim.path, array, shard)
        data = file.read_bytes()
        damaged = bytearray(data)
        damaged[offset + rng.randrange(length)] ^= 1 << rng.randrange(8)
        put(file, damaged)

        place = [chunk // n_layers, chunk % n_layers, 0]
        with actstore.open(victim.path) as store:
            report = store.verify(strict=True)
            assert not report.ok
            (found,) = report.damaged
            assert (found.array, found.shard, found.chunk) == (array, shard, place)
            assert found.kind == "checksum"
            if array not in store.sites:
                n_arrays[array] = 1
            else:
                with pytest.raises(actstore.FormatError) as raised:
                    store[array].read()
                message = str(raised.value)
                assert f"'{array}' of {victim.path}, shard {shard}, chunk {place}" in message
                assert raised.value.kind == "checksum"
        put(file, data)
    assert len(n_arrays) > 3


def damage_and_kind(path: Path, damage: Callable[[Path], object]) -> tuple[str, str, str]:
    """Kinds of the errors that reading and verifying give after damage to a middle shard; the message."""
    damage(shard_path(path, "resid", 1))
    with actstore.open(path) as store:
        with pytest.raises(actstore.FormatError) as raised:
            store["resid"].read()
        (found,) = store.verify().damaged
        assert (found.array, found.shard, found.chunk) == ("resid", 1, None)
        assert found.part == str(path)
        assert len(store["resid"][:12]) == 12  # What is not damaged is read.
    return raised.value.kind, found.kind, str(raised.value)


@pytest.mark.parametrize("codec", ["blosc", "raw"])
@pytest.mark.parametrize(
    ("what", "kind"),
    [("deleted", "missing_shard"), ("emptied", "truncated"), ("cut", "truncated"), ("longer", "checksum")],
)
def test_damaged_shards_are_named(memory_path: Path, codec: str, what: str, kind: str) -> None:
    corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
    path = corpus.build(memory_path / "x.act", 30)

    def damage(file: Path) -> None:
        data = file.read_bytes()
        file.unlink()
        if what != "deleted":
            file.write_bytes({"emptied": b"", "cut": data[:-7], "longer": data + b"!"}[what])

    read, verified, message = damage_and_kind(path, damage)
    assert read == verified == kind
    assert f"'resid' of {path}, shard 1" in message


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_a_short_tail_is_named(memory_path: Path, codec: str) -> None:
    corpus = Corpus(codec="raw" if codec == "raw" else "blosc")
    path = corpus.build(memory_path / "x.act", 5, 1)
    array = newest_record(path)["arrays"]["resid"]
    file = shard_path(path, "resid", len(array["shards"]))
    data = file.read_bytes()

    # Behind the chunks of the record nothing matters to us; other readers need the index.
    put(file, data[: array["tail"]["length"]])
    with actstore.open(path) as store:
        corpus.check(store)
        (found,) = store.verify().damaged
        assert (found.array, found.shard, found.chunk) == ("resid", len(array["shards"]), None)

    put(file, data[: array["tail"]["length"] - 1])
    with actstore.open(path) as store, pytest.raises(actstore.FormatError) as raised:
        store["resid"].read()
    assert raised.value.kind == "truncated"
    file.unlink()
    with actstore.open(path) as store, pytest.raises(actstore.FormatError) as raised:
        store["resid"].read()
    assert raised.value.kind == "missing_shard"


def test_missing_and_damaged_records(memory_path: Path) -> None:
    corpus = Corpus()
    path = corpus.build(memory_path / "x.act", 5, 3, 1, 2)
    last = newest_record(path)["number"]
    for file in records(path):
        data = file.read_bytes()
        needed = int(file.stem) >= newest_record(path)["checkpoint"]
        file.unlink()
        if needed:
            with pytest.raises(actstore.FormatError) as raised:
                actstore.open(path)
            assert raised.value.kind == "metadata"
            # Nobody may write behind a record that is gone.
            with pytest.raises(actstore.FormatError):
                actstore.append(path)
        file.write_bytes(data.replace(b'"rows":', b'"rowz":', 1))
        if needed:
            with pytest.raises(actstore.FormatError) as raised:
                actstore.open(path)
            assert raised.value.kind == "checksum"
        file.write_bytes(data)
    assert corpus.check(actstore.open(path)) == 11
    # A half-written record is damage, never skipped.
    following = path / "commits" / f"{last + 1:020}.json"
    following.write_bytes(records(path)[-1].read_bytes()[:-20])
    with pytest.raises(actstore.FormatError):
        actstore.open(path)
    following.unlink()
    for file in records(path):
        file.unlink()
    with pytest.raises(actstore.FormatError, match="commit records are missing"):
        actstore.open(path)


def test_damage_to_what_only_others_read(memory_path: Path) -> None:
    """Consolidated metadata say the same as the arrays', or something is wrong."""
    corpus = Corpus()
    path = corpus.build(memory_path / "x.act", 5)
    file = path / "zarr.json"
    root = json.loads(file.read_text())
    for axis, extent in [(1, 3), (2, 7), (0, 1 << 40)]:
        changed = json.loads(json.dumps(root))
        changed["consolidated_metadata"]["metadata"]["resid"]["shape"][axis] = extent
        file.write_text(json.dumps(changed))
        with pytest.raises(actstore.FormatError):
            actstore.open(path)


def test_reading_goes_on_beside_damage(memory_path: Path) -> None:
    """One damaged layer of one chunk is in nobody else's way."""
    corpus = Corpus(codec="raw")
    path = corpus.build(memory_path / "x.act", 30)
    file = shard_path(path, "resid", 0)
    data = bytearray(file.read_bytes())
    offset, length = index_of(path, "resid", bytes(data))[3]  # rows 4 to 8, the second layer
    data[offset + length // 2] ^= 1
    put(file, data)
    with actstore.open(path) as store:
        expected = corpus.rows("resid", 0, 24)
        assert (store["resid"][:24, 0] == expected[:, 0]).all()
        assert (store["resid"][:4] == expected[:4]).all()
        assert (store["resid"][8:24] == expected[8:]).all()
        for _ in range(2):  # Once found it is not forgotten.
            with pytest.raises(actstore.FormatError, match=r"shard 0, chunk \[1, 1, 0\]"):
                store["resid"][7, 1]
            with pytest.raises(actstore.FormatError, match=r"shard 0, chunk \[1, 1, 0\]"):
                store["resid"][[0, 5, 9]]


@pytest.mark.slow
def test_environment_of_the_child() -> None:
    """The child must notice what this module says it does."""
    with pytest.raises(pytest.fail.Exception, match="died with"):
        in_child(crash)
    with pytest.raises(pytest.fail.Exception, match="hung at asleep"):
        in_child(sleep, seconds=10)


def crash(tell: Tell) -> str:
    os._exit(3)


def sleep(tell: Tell) -> str:
    tell("asleep")
    time.sleep(60)
    return ""
