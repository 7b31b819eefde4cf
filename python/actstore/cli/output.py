"""Results on stdout, progress on stderr."""

import contextlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from ..arrays import human_bytes
from ..errors import ActstoreWarning


def print_json(result: Any) -> None:
    """One JSON object, on one line; in ASCII where the output cannot take more."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    print(json.dumps(result, ensure_ascii=not encoding.lower().startswith("utf")))


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of ours are a line on stderr, those of libraries nothing."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if sys.stderr is not None:
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ActstoreWarning)
        warnings.showwarning = show
        yield


def width_of_terminal() -> int:
    """Columns to fill: those of the terminal, or 80; never fewer than 40 nor more than 200."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 40), 200)


def table(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> list[str]:
    """Lines of aligned columns: the first `left` of them to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (" " * gap)
        .join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        .rstrip()
        for row in rows
    ]


def unicode_output() -> bool:
    """Whether stdout can take bars and blocks."""
    try:
        "▁█▏…".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


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

    def of(self, unit: int) -> Callable[[int, int], None] | None:
        """To be called with units done and units in all, of so many bytes each."""
        if self.progress is None:
            return None
        return lambda done, total: self._update(done * unit, total * unit)

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
