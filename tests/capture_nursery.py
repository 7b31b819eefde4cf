"""Captures in processes of their own, which are killed or sent signals.

Run as a program it is the nursery: it has imported torch and made the models, and forks a child for each
capture, which takes milliseconds where a new interpreter takes seconds. It runs on one thread, so that its
children may use torch as well, and so that all captures compute alike.
"""

import atexit
import contextlib
import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from children import LIMIT, hear_signals

INTERRUPTED = 130
"""The exit status of a child that saw KeyboardInterrupt."""
FAILED = 3
"""That of one that saw an error of ours; its text is what the child said last."""


class Child:
    """A capture under way."""

    def __init__(self, nursery: "Nursery", pid: int, ticks: Path, said: Path) -> None:
        self._nursery, self.pid, self._ticks, self._said = nursery, pid, ticks, said

    @property
    def n_ticks(self) -> int:
        """Batches that were begun so far, without those of the pilot."""
        return self._ticks.stat().st_size if self._ticks.exists() else 0

    def wait_for_ticks(self, n: int, seconds: float = LIMIT) -> bool:
        """Until the model has run so often; False when the child is at its end before."""
        end = time.monotonic() + seconds
        while self.n_ticks < n:
            if self._said.exists():
                return False
            assert time.monotonic() < end, f"only {self.n_ticks} of {n} batches in {seconds} s"
            time.sleep(0.001)
        return True

    def send(self, number: int) -> None:
        """A signal, unless it is dead already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = LIMIT) -> int:
        """Its exit status; -n when it died of signal n. One that hangs is killed, and that is an error."""
        hung = threading.Event()

        def end() -> None:
            hung.set()
            self.send(signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        status = self._nursery.status(self.pid)
        timer.cancel()
        assert not hung.is_set(), f"still running after {seconds} s"
        return status

    @property
    def said(self) -> str:
        """What the child said at its end."""
        return self._said.read_text() if self._said.exists() else ""


class Nursery:
    """A process that has torch imported and forks children for captures."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        env |= {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self._statuses: dict[int, int] = {}
        self._number = 0

    def start(self, job: str, path: Path, **more: Any) -> Child:
        """Begins a job, one of the functions below."""
        self._number += 1
        ticks, said = (Path(f"{path}.{self._number}.{end}") for end in ("ticks", "said"))
        asked = {"job": job, "path": str(path), "ticks": str(ticks), "said": str(said), "more": more}
        self._write(asked)
        return Child(self, int(self._line()["pid"]), ticks, said)

    def run(self, job: str, path: Path, seconds: float = LIMIT, **more: Any) -> Child:
        """A job from beginning to end, which is good."""
        child = self.start(job, path, **more)
        status = child.wait(seconds)
        assert status == 0, f"status {status}: {child.said}"
        return child

    def status(self, pid: int) -> int:
        """The exit status of a child, once it has ended."""
        while pid not in self._statuses:
            self._write({"wait": pid})
            found = self._line()
            self._statuses[found["pid"]] = found["status"]
        return self._statuses.pop(pid)

    def end(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(LIMIT)
        self._process.stdout.close()

    def _write(self, asked: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery died: see stderr"
        found: dict[str, Any] = json.loads(line)
        return found


@functools.cache
def nursery() -> Nursery:
    """The one of these tests."""
    made = Nursery()
    atexit.register(made.end)
    return made


def random_kills(
    path: Path, n_kills: int, seed: int, check: Callable[[int], int], longest: float = 6, **more: Any
) -> int:
    """Kills a capture of `path` so often at random, resuming it; after how many kills there was more.

    Parameters
    ----------
    check
        Called after each kill with the examples that were found before; the examples found now.
    longest
        Batches that a life may last, to begin with.
    """
    rng = random.Random(seed)
    most, found, n_fruitful = longest, 0, 0
    for _ in range(n_kills):
        n = rng.randrange(int(most))
        # It does not come to its end before the kill, though this process be kept from sending it.
        child = nursery().start("slowly", path, hold=n + 40, **more)
        child.wait_for_ticks(n)
        time.sleep(rng.uniform(0, 0.02))
        child.send(signal.SIGKILL)
        status = child.wait()
        assert status == -signal.SIGKILL, f"status {status} before it could be killed: {child.said}"
        now = check(found)
        assert now >= found
        n_fruitful += now > found
        most = most * 1.3 if now == found else max(most / 1.3, longest)
        found = now
    return n_fruitful


# ---- in the child ----


def slowly(
    path: str,
    tick: Callable[[], None],
    case: str,
    n: int,
    pause: float = 0.0,
    hold: int | None = None,
    **more: Any,
) -> None:
    """Captures a case, resuming it, with a commit after each window; it goes no further than batch `hold`."""
    import actstore
    from actstore.capturing.run import run

    run._COMMIT_SECONDS = more.pop("commit_seconds", 0.0)
    if more.pop("overlapped", False):
        run.CaptureRun = overlapped(run.CaptureRun)  # type: ignore[misc]
    arguments = dict(_case(case, n))
    passed = itertools.count(1)

    class Watched(run.CaptureRun):  # type: ignore[name-defined]
        def run(self, *args: Any) -> None:
            arguments["model"].register_forward_pre_hook(pass_by)
            super().run(*args)

    def pass_by(module: Any, args: Any) -> None:
        tick()
        time.sleep(10 * LIMIT if next(passed) == hold else pause)

    run.CaptureRun = Watched  # type: ignore[misc]
    actstore.capture(path, **{"resume": True, **arguments, **more}).close()


def overlapped(kind: Any) -> Any:
    """A `CaptureRun` that writes in a thread while the next window is computed, as for a GPU."""
    from concurrent.futures import ThreadPoolExecutor

    class Overlapped(kind):  # type: ignore[misc]
        def __init__(self, session: Any, *args: Any) -> None:
            super().__init__(session, *args)
            self._buffers.append(session.new_buffer())
            self._pool = ThreadPoolExecutor(1)

    return Overlapped


def part(path: str, tick: Callable[[], None], rank: int, world: int, **more: Any) -> None:
    """Captures what a process of several has to."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    slowly(path, tick, **more)


def dealt(path: str, tick: Callable[[], None], rank: int, world: int, **more: Any) -> None:
    """The same, of an iterator."""
    case = _case(more["case"], more["n"])
    slowly(path, tick, texts=iter(case["texts"]), **more, part=(rank, world))


def signaled(path: str, tick: Callable[[], None], how: str, number: int, at: int, **more: Any) -> None:
    """Sends itself a signal at a batch, from the main thread or another."""
    n = 0

    def send() -> None:
        if how == "kill":
            os.kill(os.getpid(), number)
        else:
            signal.raise_signal(number)

    def ticking() -> None:
        nonlocal n
        tick()
        n += 1
        if n == at:
            if how == "here":
                send()
            else:
                thread = threading.Thread(target=send)
                thread.start()
                thread.join()

    slowly(path, ticking, **more)


def stuck(path: str, tick: Callable[[], None], **more: Any) -> None:
    """Captures with a model that never comes to the end of its first batch.

    It ticks when that begins, and again once a signal has been noted.
    """

    def ticking() -> None:
        tick()
        noting = signal.getsignal(signal.SIGINT).__self__  # type: ignore[union-attr]
        while noting.pending is None:
            time.sleep(0.001)
        tick()
        time.sleep(10 * LIMIT)

    slowly(path, ticking, **more)


def beside(path: str, tick: Callable[[], None], **more: Any) -> None:
    """Captures in a thread; Ctrl-C is the main thread's, and the capture goes on."""
    ended = threading.Event()  # A `join` that is interrupted takes the thread for dead.
    errors: list[BaseException] = []

    def work() -> None:
        try:
            slowly(path, tick, **more)
        except BaseException as error:
            errors.append(error)
        ended.set()

    threading.Thread(target=work).start()
    try:
        ended.wait()
        word = "not interrupted"
    except KeyboardInterrupt:
        word = "interrupted"
    ended.wait()
    if errors:
        raise errors[0]
    raise SystemExit(word)


def talking(path: str, tick: Callable[[], None], **more: Any) -> None:
    """Captures with its stderr in a file, as under a scheduler."""
    os.dup2(os.open(f"{path}.err", os.O_WRONLY | os.O_CREAT), 2)
    slowly(path, tick, **more)


def reading(path: str, tick: Callable[[], None], number: int, **more: Any) -> None:
    """Sends itself a signal when the run begins, before its first window."""
    from actstore.capturing.run import run

    class Signalled(run.CaptureRun):  # type: ignore[name-defined]
        def run(self, *args: Any) -> None:
            signal.raise_signal(number)
            super().run(*args)

    run.CaptureRun = Signalled  # type: ignore[misc]
    slowly(path, tick, **more)


def trickle(path: str, tick: Callable[[], None], seconds: float, **more: Any) -> None:
    """Captures inputs that come one by one."""

    def slow() -> Iterator[Any]:
        for text in _case(more["case"], more["n"])["texts"] * 100:
            yield text["text"]
            tick()
            time.sleep(seconds)

    slowly(path, tick, texts=slow(), **more)


def with_workers(path: str, tick: Callable[[], None], **more: Any) -> None:
    """Captures inputs that fork a process half way, and end it by SIGTERM."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    words = []

    def inputs() -> Iterator[Any]:
        given = _case(more["case"], more["n"])["texts"]
        yield from given[:100]
        process = context.Process(target=time.sleep, args=(10 * LIMIT,))
        process.start()
        time.sleep(0.1)
        process.terminate()
        process.join(LIMIT / 2)
        words.append(f"died of {process.exitcode}")
        process.kill()
        process.join()
        yield from given[100:]

    slowly(path, tick, texts=inputs(), **more)
    raise SystemExit(words[0])


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job
    for job in (slowly, part, dealt, signaled, stuck, beside, talking, reading, trickle, with_workers)
}


@functools.cache
def _case(case: str, n: int) -> dict[str, Any]:
    from capture_cases import CASES

    return CASES[case](n)


def _child(asked: dict[str, Any]) -> int:
    ticks = os.open(asked["ticks"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    said = ""
    try:
        JOBS[asked["job"]](asked["path"], lambda: os.write(ticks, b"."), **asked["more"])
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except SystemExit as end:
        status, said = 0, str(end.code)
    except BaseException as error:
        from actstore import ActstoreError

        status = FAILED if isinstance(error, ActstoreError) else 1
        said = f"{type(error).__name__}: {error}" if status == FAILED else traceback.format_exc()
    Path(asked["said"]).write_text(said)
    return status


def main() -> None:
    """Forks a child for each line that asks for one."""
    import actstore.capturing.run.run  # noqa: F401
    import capture_cases  # noqa: F401
    import torch

    hear_signals()
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            _, status = os.waitpid(asked["wait"], 0)
            print(json.dumps({"pid": asked["wait"], "status": os.waitstatus_to_exitcode(status)}))
            continue
        if "case" in asked["more"]:
            _case(asked["more"]["case"], asked["more"]["n"])
        pid = os.fork()
        if pid == 0:
            os.close(0)
            os.dup2(2, 1)  # What the parent reads is not the child's to write.
            os._exit(_child(asked))
        print(json.dumps({"pid": pid}))


if __name__ == "__main__":
    main()
