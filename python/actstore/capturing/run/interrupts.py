"""Deferring SIGINT and SIGTERM until the complete examples are committed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Stopped(BaseException):
    """A signal arrived while the capture waited for inputs."""


class Interrupts:
    """In its context, SIGINT and SIGTERM are only recorded; a second SIGINT raises KeyboardInterrupt.

    Python delivers signals to the main thread only. In other threads the context does nothing.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._waiting = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # Keep a handler that was installed outside Python, and ignored signals ignored.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # In a worker forked by the inputs, restore the default behavior.
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
            return
        if self.pending is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.pending = number
        if self._waiting:
            raise Stopped

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In this context, a signal raises `Stopped`: the wait may be long, and ending it loses nothing."""
        if self.pending is not None:
            raise Stopped
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def deliver(self) -> None:
        """Raise the recorded signal again; to be called after the context."""
        if self.pending is not None:
            signal.raise_signal(self.pending)
