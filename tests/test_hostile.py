"""Metadata that lie: refused with an error of actstore's, quickly, and before memory is asked for."""

import time
from collections.abc import Sequence
from pathlib import Path

import actstore
import numpy as np
import pytest
from foreign_lies import ALONE, FOREIGN, build_foreign
from forged_lies import CORPUS, FORGED
from limited import Tell, anonymous_memory, in_child
from sparse_lies import SPARSE, build_many_chunks

CASES = {"foreign": FOREIGN, "forged": FORGED, "alone": ALONE, "sparse": SPARSE}


def attempt(path: Path) -> tuple[str, str]:
    """How far everything one can do with a store gets: the error's class and its message."""
    try:
        with actstore.open(path) as store:
            _ = store.identity, repr(store)
            for name in store.sites:
                store[name][:1]
                store[name].read()
            for columns in (*store.axes.values(), store.examples):
                _ = columns.offsets, [columns[name] for name in columns]
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


@pytest.mark.parametrize("name", SPARSE)
def test_terabytes_of_nothing(tmp_path: Path, name: str) -> None:
    """An error, where a process that asks for the memory would end: with little address space."""
    outcomes = in_child(try_all, tmp_path, "sparse", [name], seconds=20, room=1 << 30)
    assert problem(name, outcomes[name]) is None


def test_terabytes_of_nothing_where_address_space_is_plenty(tmp_path: Path) -> None:
    names = [name for name in SPARSE if "terabytes" in name]
    outcomes = in_child(try_all, tmp_path, "sparse", names, seconds=60, room=1 << 50)
    problems = {name: problem(name, outcome) for name, outcome in outcomes.items()}
    assert {name: text for name, text in problems.items() if text} == {}


def ask(tell: Tell, path: Path) -> list[str]:
    """What becomes of an analysis of all rows."""
    out = []
    with actstore.open(path) as store:
        for name, work in {
            "search": lambda site: site.search(np.ones((1, 4), np.float32), k=1, metric="dot", combine="sum"),
            "moments": lambda site: site.moments(),
        }.items():
            tell(name)
            try:
                work(store["x"])
                out.append("none")
            except actstore.ActstoreError as error:
                out.append(str(error))
    return out


def test_an_analysis_of_more_chunks_than_can_be_listed(tmp_path: Path) -> None:
    build_many_chunks(tmp_path / "x.zarr")
    outcomes = in_child(ask, tmp_path / "x.zarr", seconds=20, room=1 << 30)
    assert all("no memory for a list of chunks" in outcome for outcome in outcomes), outcomes


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
    for link in (path / "evil", path / "resid" / "c" / "77", path / "tokens" / "id" / "c" / "9"):
        with pytest.raises(actstore.StorageError, match="does not belong to the store"):
            CORPUS.create(path, overwrite=True)
        assert link.is_symlink()
        link.unlink()
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
