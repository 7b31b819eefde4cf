"""Results on stdout, progress on stderr."""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ..arrays import human_bytes


def print_json(result: Any) -> None:
    """One JSON object, on one line; in ASCII where the output cannot take more."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    print(json.dumps(result, ensure_ascii=not encoding.lower().startswith("utf")))


class Bar:
    """A line on stderr: how much is done, how fast, how long to go; nothing unless it is a terminal."""

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._start = time.monotonic()
        self._shown = 0.0
        self._width = 0

    @property
    def progress(self) -> Callable[[int, int], None] | None:
        """To be called with the bytes done and the bytes in all."""
        # It is None where the caller has closed it.
        return self._update if sys.stderr is not None and sys.stderr.isatty() else None

    def _update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < 0.1 and done < total:
            return
        self._shown = now
        rate = done / max(now - self._start, 1e-9)
        left = _clock((total - done) / rate) if rate else "?"
        share = done / total if total else 1.0
        bar = "#" * round(24 * min(share, 1.0))
        line = (
            f"{self._verb} [{bar:<24}] {share:4.0%}  {human_bytes(done)} of {human_bytes(total)}"
            f"  {rate / 1e9:.2f} GB/s  ETA {left}"
        )
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
