"""Work in a fresh process with little memory and an end to its time: what hangs, crashes or asks for
terabytes is a failure there, and not the end of the tests."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest

Tell = Callable[[str], None]
"""Called by the work to say where it is."""


def in_child(work: Callable[..., Any], *args: Any, seconds: float = 120, room: int = 2 << 30) -> Any:
    """What ``work(tell, *args)`` returns; `room` is the address space it may add."""
    context = multiprocessing.get_context("forkserver")  # As fresh as a spawned one, and sooner there.
    context.set_forkserver_preload(["ml_dtypes", "numpy", "pytest", "actstore"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(work, args, sender, room))
    process.start()
    sender.close()
    last = "its start"
    end = time.monotonic() + seconds
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            try:
                kind, value = receiver.recv()
            except EOFError:
                break
            if kind == "done":
                return value
            last = value
        process.join(1)
        died = process.exitcode
        return pytest.fail(f"{'hung' if died is None else f'died with {died}'} at {last}")
    finally:
        process.kill()
        process.join()


def _report(work: Callable[..., Any], args: tuple[Any, ...], sender: Any, room: int) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    sender.send(("done", work(lambda text: sender.send(("at", text)), *args)))


def anonymous_memory() -> int:
    """Bytes of this process that are backed by no file."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    raise OSError("no RssAnon")
