"""Writers that run in processes of their own and are killed, failed or recorded at a call of choice.

Run as a program it is the nursery: it has imported everything, sits under `interposer.c`, and forks
a child for each task, which takes milliseconds where a new interpreter takes most of a second. What
the child had committed it says in a file beside the store, which outlives it. More than 600 lines,
because a nursery knows its tasks by name: they stand together.
"""

import contextlib
import ctypes
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import actstore
import numpy as np
from actstore import _native
from actstore.disk.layout import column_array
from builders import (
    Corpus,
    files_of_record,
    files_on_disk,
    rows_in_metadata,
    rows_in_record,
    small_columns,
)
from children import LIMIT

COUNT, KILL_BEFORE, KILL_AFTER, TEAR, FAIL, RECORD = range(1, 7)


@dataclass(frozen=True)
class Order:
    """What the interposer is to do: at which calls, and with which error or journal."""

    mode: int = COUNT
    at: int = 0
    until: int = 0
    error: int = 0
    journal: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    killed: bool
    calls: int
    """Calls counted, if it came to its end."""
    said: list[tuple[str, int]]
    """``("may", n)`` before n examples can be committed, ``("is", n)`` once they are."""

    @property
    def least(self) -> int:
        """Examples that were committed when it ended."""
        return max([n for word, n in self.said if word == "is"], default=0)

    @property
    def allowed(self) -> set[int]:
        """Numbers of examples that a commit may have ended with."""
        return {0, *(n for _, n in self.said)}


def compile_interposer(folder: Path) -> Path:
    """Compiles the shim with the system's compiler."""
    library = folder / "interposer.so"
    source = Path(__file__).with_name("interposer.c")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-lpthread"]
    subprocess.run(command, check=True, capture_output=True)
    return library


class Nursery:
    """A process that has everything imported and forks children for tasks."""

    def __init__(self, library: Path | None = None) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if library is not None:
            env["LD_PRELOAD"] = str(library)
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._pid: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it; a child under way is killed."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()

    def start(self, task: str, corpus: Corpus, path: Path, order: Order | None = None, **more: Any) -> int:
        """Begins a task; its process."""
        self._said = beside(path, task)
        self._said.unlink(missing_ok=True)
        asked = {
            "task": task,
            "corpus": [corpus.several, corpus.codec],
            "path": str(path),
            "order": None if order is None else vars(order),
            "more": more,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        self._pid = int(self._line())
        return self._pid

    def wait_for_words(self, n: int) -> None:
        """Until the child has said so many things, or is dead."""
        assert self._pid is not None
        end = time.monotonic() + LIMIT
        while self._said_lines() < n and _lives(self._pid):
            assert time.monotonic() < end, f"fewer than {n} words in {LIMIT} s"
            time.sleep(0.001)

    def _said_lines(self) -> int:
        return self._said.read_text().count("\n") if self._said.exists() else 0

    def wait(self, pid: int, seconds: float = LIMIT) -> Outcome:
        """Its end. One that hangs is killed, and that is an error."""
        hung = threading.Event()

        def end() -> None:
            hung.set()
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        status = int(self._line())
        self._pid = None
        timer.cancel()
        assert not hung.is_set(), f"still running after {seconds} s"
        killed = os.WIFSIGNALED(status)
        assert killed or status == 0, f"the task failed, status {status}: see stderr"
        assert not killed or os.WTERMSIG(status) == signal.SIGKILL, f"died of signal {os.WTERMSIG(status)}"
        lines = self._said.read_text().split("\n") if self._said.exists() else []
        # The last line may be half written.
        words = [line.split() for line in lines[:-1]]
        calls = [int(number) for word, number in words if word == "calls"]
        return Outcome(killed, sum(calls), [(word, int(number)) for word, number in words])

    def run(self, task: str, corpus: Corpus, path: Path, order: Order | None = None, **more: Any) -> Outcome:
        """A task from beginning to end."""
        return self.wait(self.start(task, corpus, path, order, **more))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery died: see stderr"
        return line


def _lives(pid: int) -> bool:
    """Whether there is such a process: the nursery waits for its children, none stays a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


Nurseries = Sequence[Nursery]


def spread(nurseries: Nurseries, places: Sequence[int], work: Callable[[Nursery, str, int], None]) -> None:
    """Does `work` at all places, with each nursery in a thread of its own; `str` is a name for its store."""

    def share(i: int) -> None:
        for place in places[i :: len(nurseries)]:
            work(nurseries[i], f"{i}.act", place)

    with ThreadPoolExecutor(len(nurseries)) as threads:
        for done in [threads.submit(share, i) for i in range(len(nurseries))]:
            done.result()


def beside(path: str | Path, task: str) -> Path:
    """Where the child says what it has committed."""
    return Path(f"{path}.{task}.said")


def stop_file(path: str | Path) -> Path:
    """Where the parent tells readers to end."""
    return Path(f"{path}.stop")


class Child:
    """A task under way, in its own process."""

    def __init__(self, asked: dict[str, Any]) -> None:
        several, codec = asked["corpus"]
        self.corpus = Corpus(several, codec)
        self.path = asked["path"]
        self.order = Order(**asked["order"]) if asked["order"] else None
        self.random = random.Random(asked["more"].get("seed", 0))
        self.numpy_random = np.random.default_rng(asked["more"].get("seed", 0))
        self._said = os.open(beside(self.path, asked["task"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._shim = ctypes.CDLL(os.environ["LD_PRELOAD"]) if self.order else None

    def say(self, word: str, number: int) -> None:
        os.write(self._said, f"{word} {number}\n".encode())
        if self._shim and self.order and self.order.mode == RECORD:
            self._shim.note(f"{word} {number}".encode())

    def arm(self) -> None:
        if self._shim and self.order:
            o = self.order
            # What is durable of a store depends on the folder it is in.
            below = os.path.dirname(self.path) if o.mode == RECORD else self.path
            self._shim.arm(
                below.encode(),
                o.mode,
                ctypes.c_long(o.at),
                ctypes.c_long(o.until),
                o.error,
                o.journal.encode(),
            )

    def disarm(self) -> None:
        if self._shim:
            self._shim.disarm.restype = ctypes.c_long
            self.say("calls", self._shim.disarm())

    def append(self, writer: actstore.StoreWriter, n: int) -> None:
        self.say("may", writer.n_examples + n)
        self.corpus.append(writer, n)

    def until_told(self) -> Iterator[int]:
        """Counts until the parent makes a file that says stop."""
        n = 0
        while not stop_file(self.path).exists():
            yield n
            n += 1
            time.sleep(0.005)  # Not to keep the writer from its work.
        self.say("reads", n)

    def attempt(self, act: Callable[[], object]) -> bool:
        """Whether it failed, as it must where calls do."""
        try:
            act()
        except actstore.StorageError as error:
            kind = error.kind
        else:
            return False
        assert kind == ("disk_full" if self.order and self.order.error == errno.ENOSPC else "io")
        self.say("failed", 1)
        return True

    def check(self, n: int) -> None:
        """A new reader finds so many examples, and those of other readers find them as well."""
        with actstore.open(self.path) as store:
            assert self.corpus.check(store) == n
            assert store.verify().ok
        assert rows_in_metadata(self.path) == rows_in_record(self.path)

    def commit(self, writer: actstore.StoreWriter) -> None:
        writer.commit()
        self.say("is", writer.n_examples)


def create(child: Child) -> None:
    child.arm()
    writer = child.corpus.create(child.path, threads=1)
    child.disarm()
    writer.abort()


def overwrite(child: Child) -> None:
    """A new store in the place of one that is there."""
    child.say("may", actstore.open(child.path).n_examples)
    child.arm()
    writer = child.corpus.create(child.path, overwrite=True, threads=1)
    child.disarm()
    writer.abort()


def first_commit(child: Child) -> None:
    """The first, which brings the columns."""
    writer = child.corpus.create(child.path, threads=1)
    child.arm()
    child.append(writer, 5)
    child.commit(writer)
    child.disarm()
    writer.abort()


def add_columns(child: Child) -> None:
    """A later commit that brings the columns."""
    writer = actstore.append(child.path, threads=1)
    child.arm()
    child.append(writer, 5)
    child.commit(writer)
    child.disarm()
    writer.abort()


def grow(child: Child) -> None:
    """A commit of few rows, into a shard that readers see."""
    writer = actstore.append(child.path, threads=1)
    child.say("is", writer.n_examples)
    child.arm()
    child.append(writer, 2)
    child.commit(writer)
    child.disarm()
    writer.abort()


def cross(child: Child) -> None:
    """Appends over the borders of shards, with the commits they cause, and one more."""
    writer = actstore.append(child.path, threads=1)
    child.say("is", writer.n_examples)
    child.arm()
    child.append(writer, 11)
    child.append(writer, 9)
    child.commit(writer)
    child.disarm()
    writer.abort()


def compact(child: Child) -> None:
    store = actstore.open(child.path)
    child.say("is", store.n_examples)
    child.arm()
    actstore.compact(child.path, threads=1)
    child.disarm()


def extend(child: Child) -> None:
    """Changes the root's attributes twice; the second commit also adds a group and an array."""
    child.say("is", actstore.open(child.path).n_examples)
    child.arm()
    writer = _native.Writer.append_to(str(child.path))
    attributes = json.loads(writer.attributes)
    for i in range(2):
        attributes["extended"] = i
        writer.set_attributes(json.dumps(attributes))
        if i:
            note = {"actstore": {"artifact": {"kind": "note", "version": 1}}}
            writer.add_groups(json.dumps({"artifacts/note": note}))
            writer.add_arrays(json.dumps([column_array("artifacts/note/text", "uint8")]))
        writer.commit(writer.state)
    writer.close()
    child.disarm()


def derive(child: Child) -> None:
    """A site derived from another, with a commit every few examples."""
    from unittest import mock

    from pooled import pool

    site = actstore.open(child.path)["resid"]
    run_bytes = 5 * 4 * site.shape[1] * site.shape[2]
    with (
        mock.patch("actstore.artifacts.pooled._OUT_BYTES", run_bytes),
        mock.patch("actstore.artifacts.protocol._COMMIT_SECONDS", 0),
    ):
        child.arm()
        pool(site, threads=1)
        child.disarm()


def recover(child: Child) -> None:
    """Going on behind a writer that was killed."""
    store = actstore.open(child.path)
    child.say("is", store.n_examples)
    child.arm()
    writer = actstore.append(child.path, threads=1)
    child.disarm()
    writer.abort()


def close(child: Child) -> None:
    writer = actstore.append(child.path, threads=1)
    child.say("is", writer.n_examples)
    child.append(writer, 1)  # So few that nothing is committed before.
    child.arm()
    writer.close()
    child.say("is", writer.n_examples)
    child.disarm()


def abort(child: Child) -> None:
    writer = actstore.append(child.path, threads=1)
    child.say("is", writer.n_examples)
    child.arm()
    child.append(writer, 13)
    child.append(writer, 1)
    writer.abort()
    child.disarm()


def full(child: Child) -> None:
    """An append and a commit while calls fail; then they do not fail any more, and it goes on."""
    writer = actstore.append(child.path, threads=1)
    n = writer.n_examples
    child.say("is", n)
    child.arm()
    failed = child.attempt(lambda: child.append(writer, 2))
    committed = child.attempt(lambda: child.commit(writer))
    child.disarm()
    assert writer.n_examples == n + 2 * (not failed)
    with actstore.open(child.path) as store:
        found = child.corpus.check(store)
        assert found in {n, writer.n_examples}
        assert store.verify().ok
        if not committed:
            assert found == writer.n_examples
    if failed:
        child.append(writer, 2)
    child.commit(writer)
    child.check(n + 2)
    child.append(writer, 12)
    child.commit(writer)
    child.check(n + 14)
    child.append(writer, 1)
    writer.close()
    child.check(n + 15)
    # What could not be removed in need is removed by the next writer.
    actstore.append(child.path).close()
    assert files_on_disk(child.path) == files_of_record(child.path)


def full_create(child: Child) -> None:
    child.arm()
    made: list[actstore.StoreWriter] = []
    child.attempt(lambda: made.append(child.corpus.create(child.path, threads=1)))
    child.disarm()
    if made:
        made[0].abort()
        writer = actstore.append(child.path)
    else:
        # The least that failed may be what came after everything was in place.
        there = os.path.exists(os.path.join(child.path, "zarr.json"))
        writer = child.corpus.create(child.path, overwrite=there)
    child.append(writer, 5)
    writer.close()
    child.check(5)
    assert files_on_disk(child.path) == files_of_record(child.path)


def full_open(child: Child) -> None:
    """Going on behind a killed writer."""
    n = actstore.open(child.path).n_examples
    child.arm()
    made: list[actstore.StoreWriter] = []
    child.attempt(lambda: made.append(actstore.append(child.path, threads=1)))
    child.disarm()
    assert child.corpus.check(actstore.open(child.path)) == n
    writer = made[0] if made else actstore.append(child.path)
    child.append(writer, 3)
    writer.close()
    child.check(n + 3)


def full_close(child: Child) -> None:
    writer = actstore.append(child.path, threads=1)
    n = writer.n_examples
    child.append(writer, 1)
    child.arm()
    failed = child.attempt(writer.close)
    child.disarm()
    if failed:
        child.append(writer, 1)
        writer.close()
    child.check(n + 1 + failed)


def full_compact(child: Child) -> None:
    n = actstore.open(child.path).n_examples
    child.arm()
    child.attempt(lambda: actstore.compact(child.path, threads=1))
    child.disarm()
    with actstore.open(child.path) as store:
        assert child.corpus.check(store) == n
        assert store.verify().ok
    actstore.compact(child.path)
    child.check(n)
    with actstore.append(child.path) as writer:
        child.append(writer, 3)
    child.check(n + 3)
    assert files_on_disk(child.path) == files_of_record(child.path)


def story(child: Child) -> None:
    """A store from nothing, by several writers, with a compaction."""
    child.arm()
    writer = child.corpus.create(child.path, threads=1)
    child.say("is", 0)
    for n in (4, 1, 17, 2):
        child.append(writer, n)
        child.commit(writer)
    writer.close()
    with actstore.append(child.path, threads=1) as writer:
        for n in (3, 25):
            child.append(writer, n)
            child.commit(writer)
    actstore.compact(child.path, threads=1)
    with actstore.append(child.path, threads=1) as writer:
        child.append(writer, 6)
        child.commit(writer)
    child.disarm()


def wander(child: Child) -> None:
    """Appends and commits of all kinds, until somebody kills it."""
    rng = child.random
    while True:
        if os.path.exists(os.path.join(child.path, "zarr.json")):
            writer = actstore.append(child.path)
        else:
            writer = child.corpus.create(child.path)
        child.say("is", writer.n_examples)
        for _ in range(rng.randrange(1, 12)):
            child.append(writer, rng.choice([0, 1, 1, 2, 3, 5, 25]))
            if rng.random() < 0.4:
                child.commit(writer)
            if rng.random() < 0.02:
                os.kill(os.getpid(), signal.SIGKILL)
        if rng.random() < 0.2:
            writer.abort()
        else:
            writer.close()
            child.say("is", writer.n_examples)


def read_anew(child: Child) -> None:
    """Opens the store again and again."""
    seen = 0
    for n_reads in child.until_told():
        try:
            store = actstore.open(child.path)
        except actstore.NotFoundError:
            assert not seen
            continue
        if n_reads % 8:
            child.corpus.check_rows(store, child.numpy_random)
        else:
            child.corpus.check(store)
        assert store.n_examples >= seen
        seen = store.n_examples
        store.close()


def read_kept(child: Child) -> None:
    """Goes on with what it opened at first."""
    store = actstore.open(child.path)
    n = store.n_examples
    for _ in child.until_told():
        child.corpus.check_rows(store, child.numpy_random)
        assert store.n_examples == n


def read_refreshed(child: Child) -> None:
    """Follows the writer."""
    store = actstore.open(child.path)
    n = store.n_examples
    for n_reads in child.until_told():
        store.refresh()
        assert store.n_examples >= n
        n = store.n_examples
        if n_reads % 8:
            child.corpus.check_rows(store, child.numpy_random)
        else:
            child.corpus.check(store)


TASKS = {
    task.__name__: task
    for task in (
        full,
        full_create,
        full_open,
        full_close,
        full_compact,
        create,
        overwrite,
        first_commit,
        add_columns,
        grow,
        cross,
        compact,
        extend,
        derive,
        recover,
        close,
        abort,
        story,
        wander,
        read_anew,
        read_kept,
        read_refreshed,
    )
}


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with small_columns():
                    TASKS[asked["task"]](Child(asked))
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
