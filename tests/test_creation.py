"""Making a store removes nothing but what an interrupted creation left, or the store that it replaces."""

import importlib
import json
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import FormatError, NotFoundError, StorageError, _native
from builders import Corpus
from children import fork, join

ONE = Corpus()
SPEC = {"resid": actstore.SiteSpec(1, 4, "float32")}
RECORD = "0" * 20 + ".json"


def snapshot(path: Path) -> dict[str, Any]:
    """All below a folder: the bytes of files, where links lead, folders."""
    found: dict[str, Any] = {}
    for one in sorted(path.rglob("*")):
        name = str(one.relative_to(path))
        found[name] = (
            os.readlink(one) if one.is_symlink() else one.read_bytes() if one.is_file() else "folder"
        )
    return found


def refused(path: Path, kind: str = "exists", **keywords: Any) -> str:
    """Asserts that a creation fails and changes nothing; what it says."""
    before = snapshot(path.parent)
    with pytest.raises(StorageError) as caught:
        actstore.create(path, SPEC, **keywords)
    assert caught.value.kind == kind
    assert snapshot(path.parent) == before
    return str(caught.value)


def put(path: Path, name: str, text: str = "mine") -> None:
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        (path / name).mkdir(exist_ok=True)
    else:
        (path / name).write_text(text)


EMPTY_ARRAY = json.dumps({"zarr_format": 3, "node_type": "array", "shape": [0]})
FULL_ARRAY = json.dumps({"zarr_format": 3, "node_type": "array", "shape": [5]})
GROUP = json.dumps({"zarr_format": 3, "node_type": "group"})
STRANGERS: dict[str, dict[str, str]] = {
    "folders of a name like ours": {"commits/": "", "issues/": ""},
    "files in them": {"commits/1.patch": "mine", "issues/1.md": "mine"},
    "a lock, and a file": {"commits/lock": "7\n", "notes.txt": "mine"},
    "a lock, and a file further down": {"commits/lock": "7\n", "resid/notes.txt": "mine"},
    "another lock": {"commits/lock/": ""},
    "something in commits": {"commits/lock": "7\n", "commits/message": "mine"},
    "a later record": {"commits/lock": "7\n", "commits/00000000000000000001.json": "{}"},
    "rows": {"commits/lock": "7\n", "resid/zarr.json": FULL_ARRAY},
    "a shard": {"commits/lock": "7\n", "resid/zarr.json": EMPTY_ARRAY, "resid/c/0/0/0": "rows"},
    "metadata of something else": {"commits/lock": "7\n", "resid/zarr.json": "{}"},
    "metadata that do not parse": {"commits/lock": "7\n", "resid/zarr.json": "{"},
    "no lock": {"commits/zarr.json": GROUP, "resid/zarr.json": EMPTY_ARRAY},
    "no commits": {"resid/zarr.json": EMPTY_ARRAY},
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", STRANGERS)
def test_a_strangers_folder_is_left_alone(memory_path: Path, what: str, overwrite: bool) -> None:
    for name, text in STRANGERS[what].items():
        put(memory_path / "x", name, text)
    refused(memory_path / "x", overwrite=overwrite)


def test_links_are_no_remains_of_a_creation(memory_path: Path) -> None:
    put(memory_path, "elsewhere/zarr.json", EMPTY_ARRAY)
    for name, target in [("resid", "../elsewhere"), ("commits/.tmp-1-0", "../../elsewhere/zarr.json")]:
        put(memory_path / "x", "commits/lock", "7\n")
        (memory_path / "x" / name).symlink_to(target)
        refused(memory_path / "x")
        shutil.rmtree(memory_path / "x")
    put(memory_path / "x", "commits/lock", "7\n")
    put(memory_path / "x/resid", "zarr.json", EMPTY_ARRAY)
    (memory_path / "x/resid/zarr.json").unlink()
    (memory_path / "x/resid/zarr.json").symlink_to("../../elsewhere/zarr.json")
    refused(memory_path / "x")
    (memory_path / "y").symlink_to("nowhere")
    assert "leads nowhere" in refused(memory_path / "y")


REMAINS: dict[str, dict[str, str]] = {
    "nothing": {},
    "a folder for commits": {"commits/": ""},
    "a lock": {"commits/lock": ""},
    "temporary files": {"commits/lock": "7\n", "commits/.tmp-7-0": "half"},
    "some nodes": {
        "commits/lock": "7\n",
        "commits/zarr.json": GROUP,
        "examples/zarr.json": GROUP,
        "examples/id/": "",
        "resid/zarr.json": EMPTY_ARRAY,
    },
    "all but the root": {
        "commits/lock": "7\n",
        f"commits/{RECORD}": "{}",
        "resid/zarr.json": EMPTY_ARRAY,
        "tokens/offset/zarr.json": EMPTY_ARRAY,
    },
}


@pytest.mark.parametrize("what", REMAINS)
def test_an_interrupted_creation_is_taken_over(memory_path: Path, what: str) -> None:
    path = memory_path / "x"
    path.mkdir()
    for name, text in REMAINS[what].items():
        put(path, name, text)
    if REMAINS[what].keys() - {"commits/"}:
        with pytest.raises(NotFoundError, match="interrupted"):
            actstore.open(path)
    ONE.build(path, 4)
    assert ONE.check(actstore.open(path)) == 4
    assert actstore.open(path).verify(strict=True).leftovers == []


# ---- A store that lost its root ----


@pytest.fixture
def rootless(memory_path: Path) -> Path:
    path = ONE.build(memory_path / "x.act", 5)
    (path / "zarr.json").rename(memory_path / "root.json")
    return path


def test_a_store_without_its_root_is_damage_with_a_way_out(rootless: Path, run: Any) -> None:
    for overwrite in (False, True):
        assert "verify --repair" in refused(rootless, overwrite=overwrite)
    for call in (actstore.open, actstore.append, actstore.compact):
        with pytest.raises(FormatError, match="verify --repair") as caught:
            call(rootless)
        assert caught.value.kind == "metadata"
    status, out, _ = run("verify", rootless)
    assert (status, "verify --repair" in out) == (1, True)
    status, out, _ = run("verify", "--repair", rootless)
    assert (status, out.splitlines()[0]) == (0, "restored: zarr.json")
    lost = json.loads((rootless.parent / "root.json").read_text())
    assert json.loads((rootless / "zarr.json").read_text()) == lost
    assert ONE.check(actstore.open(rootless)) == 5
    ONE.check_with_zarr(rootless)
    status, out, _ = run("verify", "--repair", "--json", rootless)
    assert (status, json.loads(out)["repaired"]) == (0, [])


def test_a_part_without_its_root_is_not_passed_over(memory_path: Path) -> None:
    for name in ("part-0", "part-1"):
        ONE.build(memory_path / "parts" / name, 3)
    (memory_path / "parts/part-1/zarr.json").unlink()
    for source in (memory_path / "parts", [memory_path / "parts/part-0", memory_path / "parts/part-1"]):
        with pytest.raises(FormatError, match="part-1"):
            actstore.open(source)


def test_repair_writes_what_was_committed_or_nothing(rootless: Path, memory_path: Path) -> None:
    node = rootless / "resid/zarr.json"
    text = node.read_text()
    node.write_text(text.replace('"NaN"', "0.0"))
    with pytest.raises(FormatError):
        actstore.repair(rootless)
    assert not (rootless / "zarr.json").exists()
    node.write_text(text)
    with actstore.create(memory_path / "y", SPEC), pytest.raises(NotFoundError):
        actstore.repair(memory_path / "z")
    assert actstore.repair(rootless) == ["zarr.json"]
    assert actstore.repair(rootless) == []
    with actstore.append(rootless) as writer:
        ONE.append(writer, 2)
    assert ONE.check(actstore.open(rootless)) == 7


# ---- Overwriting ----


def fails_to_write(path: Path) -> None:
    """A creation that runs out of room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(StorageError) as caught:
            actstore.create(path, SPEC, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.kind == "disk_full"


def test_an_overwrite_that_fails_leaves_everything(memory_path: Path) -> None:
    path = ONE.build(memory_path / "x.act", 5)
    before = snapshot(memory_path)
    fails_to_write(path)
    assert snapshot(memory_path) == before
    assert ONE.check(actstore.open(path)) == 5
    ONE.create(path, overwrite=True).close()
    assert [one.name for one in memory_path.iterdir()] == ["x.act"]


def test_overwrite_removes_a_store_and_nothing_else(memory_path: Path) -> None:
    path = ONE.build(memory_path / "x.act", 5)
    strangers = (
        "notes.txt",
        "mine/zarr.json",
        "commits/message",
        "resid/figure.png",
        "tokens/x/y",
        "resid/c/0/x",
    )
    for name in strangers:
        put(path, name, GROUP)
        assert name.split("/")[0] in refused(path, overwrite=True)
        top = path / name
        top.unlink()
        if not any(top.parent.iterdir()):
            top.parent.rmdir()
    # What an interrupted writer left is the store's own.
    put(path, "commits/.tmp-1-1", "half")
    put(path, "tokens/late/zarr.json", EMPTY_ARRAY)
    put(path, "tokens/late/c/0", "rows")
    ONE.create(path, overwrite=True).close()
    assert actstore.open(path).n_examples == 0


def test_overwrite_through_a_link(memory_path: Path) -> None:
    (memory_path / "disk").mkdir()
    path = ONE.build(memory_path / "disk/x.act", 5)
    (memory_path / "x.act").symlink_to("disk/x.act")
    with ONE.create(memory_path / "x.act", overwrite=True) as writer:
        ONE.append(writer, 2)
    assert (memory_path / "x.act").is_symlink()
    assert ONE.check(actstore.open(path)) == 2
    assert [one.name for one in (memory_path / "disk").iterdir()] == ["x.act"]


def test_a_store_below_a_link(memory_path: Path) -> None:
    """The folders above a store may be links."""
    (memory_path / "disk/deep").mkdir(parents=True)
    (memory_path / "link").symlink_to("disk")
    path = memory_path / "link/deep/runs/x.act"
    ONE.build(path, 3)
    with actstore.append(path) as writer:
        ONE.append(writer, 2)
    ONE.create(path, overwrite=True).close()
    ONE.build(memory_path / "link/y.act", 4)
    actstore.compact(memory_path / "link/y.act")
    assert ONE.check(actstore.open(memory_path / "disk/y.act")) == 4
    assert actstore.open(memory_path / "disk/deep/runs/x.act").n_examples == 0


def test_overwriting_what_is_empty_alone(memory_path: Path) -> None:
    """As a capture does with what one before it left."""

    def create() -> None:
        _native.Writer.create(str(path), "{}", "[]", "null", "empty").close()

    path = ONE.build(memory_path / "x.act", 1)
    before = snapshot(path)
    with pytest.raises(StorageError) as caught:
        create()
    assert (caught.value.kind, snapshot(path)) == ("exists", before)
    ONE.create(path, overwrite=True).close()
    create()
    assert snapshot(path).keys() == {
        "commits",
        "zarr.json",
        *(f"commits/{n}" for n in (RECORD, "lock", "zarr.json")),
    }


def hold(path: Path, log: Path, seconds: float) -> None:
    """Overwrites again and again; while it has the lock, nobody else may."""
    end = time.monotonic() + seconds
    mark = path.parent / "held"
    while time.monotonic() < end:
        try:
            writer = actstore.create(path, SPEC, overwrite=True)
        except StorageError as error:
            if error.kind != "locked":
                raise
            continue
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        writer.append({"resid": np.ones((3, 1, 4), np.float32)}, [3])
        writer.commit()
        # What is at the path is this store, whoever else tries meanwhile.
        assert actstore.open(path).n_tokens == 3
        with log.open("a") as file:
            file.write("x")
        mark.unlink()
        writer.close()


@pytest.mark.parametrize("there", [False, True])
def test_racing_overwrites_have_one_lock(memory_path: Path, there: bool) -> None:
    (memory_path / "place").mkdir()
    path, log = memory_path / "place/x.act", memory_path / "log"
    if there:
        actstore.create(path, SPEC).close()
    children = [fork(lambda: hold(path, log, 1.5)) for _ in range(3)]
    for child in children:
        join(child, 60)
    assert len(log.read_text()) > 3
    assert [one.name for one in path.parent.iterdir()] == ["x.act"]
    assert actstore.open(path).verify(strict=True).leftovers == []


def test_a_writer_whose_store_was_moved_writes_no_other(memory_path: Path) -> None:
    writer = ONE.create(memory_path / "x.act")
    ONE.append(writer, 2)
    writer.commit()
    (memory_path / "x.act").rename(memory_path / "y.act")
    path = ONE.build(memory_path / "x.act", 1)
    before = snapshot(path)
    ONE.append(writer, 2)
    with pytest.raises(StorageError, match="moved"):
        writer.commit()
    writer.abort()
    assert snapshot(path) == before
    assert ONE.check(actstore.open(memory_path / "y.act")) == 2


# ---- Imports and exports ----


def npy(path: Path) -> Path:
    np.save(path, np.ones((5, 2, 4), np.float32))
    return path


def test_an_import_replaces_a_store_and_nothing_else(memory_path: Path) -> None:
    source = npy(memory_path / "x.npy")
    path = ONE.build(memory_path / "x.act", 3)
    put(path, "notes.txt")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        actstore.import_(source, path, overwrite=True)
    assert (path / "notes.txt").exists()
    (path / "notes.txt").unlink()
    with actstore.append(path), pytest.raises(StorageError) as caught:
        actstore.import_(source, path, overwrite=True)
    assert caught.value.kind == "locked"
    assert ONE.check(actstore.open(path)) == 3
    actstore.import_(source, path, overwrite=True)
    assert actstore.open(path).n_tokens == 5
    assert sorted(one.name for one in memory_path.iterdir()) == ["x.act", "x.npy"]


def test_an_export_replaces_an_export_and_nothing_else(memory_path: Path) -> None:
    path = ONE.build(memory_path / "x.act", 3)
    out = memory_path / "out"
    put(out, "actstore.json", "{}")
    with pytest.raises(StorageError, match="is not an export"):
        actstore.export(path, out, overwrite=True)
    shutil.rmtree(out)
    actstore.export(path, out)
    put(out, "notes.txt")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        actstore.export(path, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").unlink()
    before = sorted(snapshot(out))
    actstore.export(path, out, overwrite=True)
    assert sorted(snapshot(out)) == before
    assert sorted(one.name for one in memory_path.iterdir()) == ["out", "x.act"]


def test_imports_and_exports_through_a_link(memory_path: Path) -> None:
    """What the link leads to is replaced, where it lies."""
    source = npy(memory_path / "x.npy")
    path = ONE.build(memory_path / "disk/x.act", 3)
    actstore.export(path, memory_path / "disk/out")
    before = sorted(snapshot(memory_path / "disk/out"))
    for name in ("x.act", "out"):
        (memory_path / name).symlink_to(f"disk/{name}")
    actstore.export(path, memory_path / "out", overwrite=True)
    assert sorted(snapshot(memory_path / "disk/out")) == before
    actstore.import_(source, memory_path / "x.act", overwrite=True)
    assert actstore.open(path).n_tokens == 5
    assert all((memory_path / name).is_symlink() for name in ("x.act", "out"))
    assert sorted(one.name for one in (memory_path / "disk").iterdir()) == ["out", "x.act"]
    (memory_path / "y.act").symlink_to("nowhere")
    with pytest.raises(StorageError):
        actstore.import_(source, memory_path / "y.act")
    assert not (memory_path / "nowhere").exists()


def test_two_exports_at_once_do_not_take_each_others_files(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that fails removes what is its own."""
    path = ONE.build(memory_path / "x.act", 3)
    module = importlib.import_module("actstore.interchange.export")
    write: Callable[..., Any] = module._write_columns

    def write_and_fail_another(*arguments: Any) -> None:
        write(*arguments)
        monkeypatch.setattr(module, "_write_columns", write)
        monkeypatch.setattr(module, "sync_tree", lambda folder: (_ for _ in ()).throw(OSError("failed")))
        with pytest.raises(StorageError):
            actstore.export(path, memory_path / "out")
        monkeypatch.undo()

    monkeypatch.setattr(module, "_write_columns", write_and_fail_another)
    actstore.export(path, memory_path / "out")
    actstore.import_(memory_path / "out", memory_path / "back.act")
    assert ONE.check(actstore.open(memory_path / "back.act")) == 3
