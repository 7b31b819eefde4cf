"""SIGINT and SIGTERM, held back until what is complete has been committed."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class Stopped(BaseException):
    """A signal came while the inputs were waited for."""


class Interrupts:
    """While the context lasts, a SIGINT or SIGTERM is only noted; a second SIGINT is KeyboardInterrupt.

    Signals can be caught in the main thread alone; in others nothing is.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._waiting = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # One that was set outside Python, or is ignored, is not ours to replace.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # A worker that the inputs have forked: there it is as ever.
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
        """What happens within may take long and nothing is lost with it: a signal ends it, as `Stopped`."""
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
        """Do what the signal would have done; call it when the context has ended."""
        if self.pending is not None:
            signal.raise_signal(self.pending)
