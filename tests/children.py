"""Other processes: forked ones, and interpreters of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


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


def join(pid: int, seconds: float = 30) -> None:
    """Asserts that a child ends well, and soon."""
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
def other_process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Runs code in a new interpreter; it says `ready` when it is."""
    command = [sys.executable, "-u", "-c", code, *map(str, args)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
