"""Links within a store: read through, never written through."""

import os
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import FormatError, StorageError
from builders import Corpus
from test_creation import put, snapshot

ONE = Corpus()


@pytest.fixture
def path(memory_path: Path) -> Path:
    return ONE.build(memory_path / "x.act", 5)


def test_the_lock_is_a_regular_file(path: Path, memory_path: Path) -> None:
    lock = path / "commits/lock"
    put(memory_path, "mine", "a long text of mine that no lock may touch")
    for make in ("symbolic link", "dangling link", "pipe", "folder"):
        lock.unlink()
        match make:
            case "symbolic link":
                lock.symlink_to("../../mine")
            case "dangling link":
                lock.symlink_to("../../new")
            case "pipe":
                os.mkfifo(lock)
            case _:
                lock.mkdir()
        before = snapshot(memory_path) if make != "pipe" else {}
        for call in (actstore.append, actstore.compact, lambda x: ONE.create(x, overwrite=True)):
            with pytest.raises((FormatError, StorageError), match="regular file"):
                call(path)
        if before:
            assert snapshot(memory_path) == before
        if make == "folder":
            lock.rmdir()
            lock.touch()
    # A hard link cannot be told from a file: what is in it stays.
    lock.unlink()
    os.link(memory_path / "mine", lock)
    with actstore.append(path) as writer:
        ONE.append(writer, 1)
    assert (memory_path / "mine").read_text() == "a long text of mine that no lock may touch"


@pytest.mark.parametrize("node", ["tokens", "tokens/offset", "resid", "resid/c", "commits", "examples/id"])
def test_nothing_is_written_through_a_link(path: Path, memory_path: Path, node: str) -> None:
    other = ONE.build(memory_path / "other.act", 9)
    put(other, "tokens/extra/zarr.json", '{"zarr_format": 3, "node_type": "group"}')
    # The same store, but for a part of it that lies elsewhere.
    aside = memory_path / "elsewhere" / node
    aside.parent.mkdir(parents=True)
    (path / node).rename(aside)
    (path / node).symlink_to(aside)
    before = snapshot(memory_path)
    calls: dict[str, Any] = {
        "append": lambda: actstore.append(path),
        "compact": lambda: actstore.compact(path),
        "pool": lambda: actstore.open(path)["resid"].pool("mean", out="mean", on_empty="zero"),
    }
    assert ONE.check(actstore.open(path)) == 5
    for call in calls.values():
        with pytest.raises(FormatError, match="symbolic link"):
            call()
    # A linked group of another store: its nodes are not this one's to remove.
    (path / node).unlink()
    (path / node).symlink_to(other / node)
    for call in calls.values():
        with pytest.raises((FormatError, StorageError)):
            call()
    (path / node).unlink()
    (path / node).symlink_to(aside)
    after = snapshot(memory_path)
    assert {name: after[name] for name in after if "lock" not in name} == {
        name: before[name] for name in before if "lock" not in name
    }


def test_a_link_that_appears_while_a_writer_is_open(path: Path, memory_path: Path) -> None:
    writer = actstore.append(path)
    ONE.append(writer, 3)
    (path / "resid/c").rename(memory_path / "c")
    (path / "resid/c").symlink_to(memory_path / "c")
    before = snapshot(memory_path / "c")
    with pytest.raises(FormatError, match="symbolic link"):
        writer.commit()
    writer.abort()
    assert snapshot(memory_path / "c") == before
    assert ONE.check(actstore.open(path)) == 5


def test_links_are_nobodys_leftovers(path: Path, memory_path: Path) -> None:
    """A derived site, a column or a shard that somebody has linked was left by no writer."""
    actstore.open(path)["resid"].pool("mean", out="mean", on_empty="zero")
    (path / "mean").rename(memory_path / "mean")
    other = ONE.build(memory_path / "y.act", 5)
    n_shards = len(list((path / "resid/c").iterdir()))
    links = {
        "mean": memory_path / "mean",
        "tokens/score": memory_path / "mean",
        f"resid/c/{n_shards + 3}": memory_path / "mean",
    }
    for name, target in links.items():
        (other / name).symlink_to(target)
    before = snapshot(memory_path / "mean")
    assert actstore.open(other).verify(strict=True).leftovers == []
    with actstore.append(other) as writer:
        ONE.append(writer, 2)
    assert all((other / name).is_symlink() for name in links)
    assert snapshot(memory_path / "mean") == before


def test_a_store_behind_a_link_is_a_store(path: Path, memory_path: Path) -> None:
    (memory_path / "link").symlink_to("x.act")
    with actstore.append(memory_path / "link") as writer:
        ONE.append(writer, 2)
    actstore.compact(memory_path / "link")
    assert ONE.check(actstore.open(path)) == 7
    assert np.isfinite(actstore.open(memory_path / "link")["resid"].read("float32")).all()
