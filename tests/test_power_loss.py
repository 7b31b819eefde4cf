"""What is on disk when the power fails at any moment: only what was synced is sure to be there.

A kill leaves everything that was written. A power failure may lose whatever was not synced: bytes of
a file, names in a folder, each by itself. So a writer's calls are recorded, with what each sync made
durable, and from that record the disk is put together as it may be found after each of them.
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import actstore
import pytest
from builders import Corpus
from interposed import RECORD, Nurseries, Nursery, Order

Names = dict[str, int]


@dataclass
class Disk:
    """Files and folders by inode: as programs see them, and as they are durable.

    By POSIX a folder's names are durable once that folder is synced. On a journal that is written
    in order, as ext4's and XFS's, any sync brings along all names given before it.
    """

    top: int
    ordered: bool
    folders: dict[int, Names] = field(default_factory=dict)
    durable_folders: dict[int, Names] = field(default_factory=dict)
    durable_files: dict[int, bytes] = field(default_factory=dict)

    def apply(self, fields: list[str], journal: Path) -> None:
        """One line of the interposer's journal."""
        what, inode, path, other = fields[0], int(fields[1]), Path(fields[2]), fields[3]
        if what == "sync":
            self.durable_files[inode] = (journal / other).read_bytes()
            self._sync_all()
        elif what == "syncdir":
            lines = (journal / other).read_text().splitlines()
            names = dict(line.split("\t")[::-1] for line in lines)
            self.durable_folders[inode] = {name: int(number) for name, number in names.items()}
            self._sync_all()
        elif what in ("create", "mkdir"):
            self._folder(path)[path.name] = inode
            if what == "mkdir":
                self.folders[inode] = {}
        elif what == "link":
            self._folder(Path(other))[Path(other).name] = inode
        elif what == "rename":
            del self._folder(path)[path.name]
            self._folder(Path(other))[Path(other).name] = inode
        elif what == "unlink":
            del self._folder(path)[path.name]

    def _sync_all(self) -> None:
        if self.ordered:
            self.durable_folders = {inode: dict(names) for inode, names in self.folders.items()}

    def _folder(self, path: Path) -> Names:
        """The folder that a path is in."""
        inode = self.top
        for name in path.parent.parts[self.depth :]:
            inode = self.folders[inode][name]
        return self.folders.setdefault(inode, {})

    depth: int = 0

    def restore(self, to: Path, rng: random.Random | None) -> None:
        """The disk after a power failure: the least there may be, or any of the others."""
        self._restore(self.top, to, rng)

    def _restore(self, inode: int, to: Path, rng: random.Random | None) -> None:
        to.mkdir()
        newest = rng is not None and rng.random() < 0.5
        names = (self.folders if newest else self.durable_folders).get(inode, {})
        for name, child in names.items():
            if child in self.folders:
                self._restore(child, to / name, rng)
            else:
                (to / name).write_bytes(self.durable_files.get(child, b""))


def moments(journal: Path, top: Path, ordered: bool) -> Iterator[tuple[Disk, int, set[int], str]]:
    """The disk after each call, the examples whose commit had returned, those that may be there."""
    disk = Disk(top.stat().st_ino, ordered, depth=len(top.parts))
    disk.folders[disk.top] = {}
    least, allowed = -1, {0}
    for line in (journal / "log").read_text().splitlines():
        fields = line.split("\t")
        if fields[0] == "note":
            word, number = fields[1].split()
            least = int(number) if word == "is" else least
            allowed.add(int(number))
        else:
            disk.apply(fields, journal)
        yield disk, least, allowed, line


def examine(corpus: Corpus, path: Path, least: int, allowed: set[int], go_on: bool) -> None:
    try:
        with actstore.open(path) as store:
            assert store.verify(strict=True).damaged == []
            found = corpus.check(store)
    except actstore.NotFoundError:
        assert least < 0, "a store whose creation had returned is gone"
        assert not (path / "zarr.json").exists()
        corpus.create(path).close()
        found = 0
    assert found >= least
    assert found in allowed
    if go_on:
        with actstore.append(path) as writer:
            corpus.append(writer, 2)
        assert corpus.check(actstore.open(path)) == found + 2


def fail_everywhere(nursery: Nursery, folder: Path, corpus: Corpus, ordered: bool, every: int) -> None:
    top, journal = folder / "disk", folder / "journal"
    top.mkdir()
    journal.mkdir()
    nursery.run("story", corpus, top / "x.act", Order(RECORD, journal=str(journal)))
    rng = random.Random(0)
    n_failures = 0
    for i, (disk, least, allowed, line) in enumerate(moments(journal, top, ordered)):
        if i % every:
            continue
        # On an ordered journal names are lost together, which is the least there may be.
        for chosen in [None] if ordered else [None, rng, rng]:
            n_failures += 1
            restored = folder / f"restored-{n_failures}"
            disk.restore(restored, chosen)
            try:
                examine(corpus, restored / "x.act", least, allowed, go_on=n_failures % 4 == 0)
            except BaseException as error:
                error.add_note(f"after line {i}: {line}; in {restored}")
                raise
            shutil.rmtree(restored)
    assert n_failures > 20


@pytest.mark.parametrize("ordered", [True, False])
def test_power_fails_at_some_calls(nurseries: Nurseries, memory_path: Path, ordered: bool) -> None:
    fail_everywhere(nurseries[0], memory_path, Corpus(), ordered, 23)


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [True, False])
def test_power_fails_at_many_calls(nurseries: Nurseries, memory_path: Path, ordered: bool) -> None:
    fail_everywhere(nurseries[0], memory_path, Corpus(codec="raw"), ordered, 2 if ordered else 3)
