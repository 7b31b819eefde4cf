"""Other processes: forked ones, and interpreters of their own; and Ctrl-C in the midst of work."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

LIMIT = 120.0
"""Seconds after which something hangs, however busy the machine is. How soon something is done is never
told by the clock, but by what else was done before it."""


def hear_signals() -> None:
    """Has SIGINT and SIGTERM mean what they mean in a terminal.

    What nohup or a shell's ``&`` starts ignores SIGINT, and so do its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def without_forecast(printed: str) -> str:
    """What a command printed but for how long its capture will take, which it tells if that is long.

    It is on a busy machine.
    """
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("capture: about "))


def fork(work: Callable[[], object]) -> int:
    """A forked child that does `work` and ends without a word to pytest: 0 if all was well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of forking beside threads, which is the point.
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def join(pid: int, seconds: float = LIMIT) -> None:
    """Asserts that a child ends well."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"the child hung for {seconds} s")


@contextlib.contextmanager
def other_process(code: str, *args: object, seconds: float = LIMIT) -> Iterator[subprocess.Popen[str]]:
    """Runs code in a new interpreter; it says `ready` when it is. One that hangs is killed."""
    hearing = "from children import hear_signals\nhear_signals()\n"
    command = [sys.executable, "-u", "-c", hearing + code, *map(str, args)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    hung = threading.Event()

    def end() -> None:
        hung.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    except BaseException as error:
        if hung.is_set():
            error.add_note(f"the process hung and was killed after {seconds} s")
        raise
    finally:
        timer.cancel()
        timer.join()
        process.kill()
        process.communicate()


class CtrlC:
    """A Ctrl-C that comes in the midst of what is done within, if that lasts so long.

    Both are measured in CPU time of the whole process: that is work, which other processes slow down but
    do not add to.

    Parameters
    ----------
    after : float
        Seconds of work before it comes.
    send : callable
        Sends it, from a thread of its own.
    """

    def __init__(self, after: float, send: Callable[[], object] | None = None) -> None:
        self._after = after
        self._send = send or (lambda: os.kill(os.getpid(), signal.SIGINT))
        self._sent: float | None = None
        self.work_after: float | None = None
        """Seconds of work between it and the end of what is done within; None when it never came."""

    def __enter__(self) -> "CtrlC":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, args=(time.process_time() + self._after,))
        self._thread.start()
        return self

    def _wait(self, until: float) -> None:
        while not self._over.wait(0.001):
            if time.process_time() >= until:
                self._sent = time.process_time()
                self._send()
                return

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._sent is not None:
            self.work_after = time.process_time() - self._sent
