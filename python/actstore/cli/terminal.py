"""Writing to the terminal: JSON and tables on stdout, warnings and progress on stderr."""

import contextlib
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from ..base.progress import Progress
from ..base.text import human_bytes
from ..errors import ActstoreWarning


def print_json(result: Any) -> None:
    """Print a JSON object on one line; in ASCII unless stdout is UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or ""
    print(json.dumps(result, ensure_ascii=not encoding.lower().startswith("utf")))


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings of actstore as one line on stderr, and suppress those of other libraries."""

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


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence torch and transformers, except for progress bars of downloads.

    Raises
    ------
    InvalidInputError
        If transformers cannot be imported.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from ..capturing.model.libraries import library, quiet

    library("transformers")  # `quiet` only silences libraries that are imported already.
    with quiet():
        yield


def terminal_width() -> int:
    """Columns to fill: the terminal's width or 80, clamped to 40-200."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 40), 200)


def table(rows: Sequence[Sequence[str]], left: int = 1, gap: int = 2) -> list[str]:
    """Lines of aligned columns: the first `left` columns left-aligned, the others right-aligned."""
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
    """Whether stdout can encode the block characters of charts."""
    try:
        "▁█▏…".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


class ProgressBar:
    """A progress line on stderr: bytes done, speed and time left. Shown only on a terminal.

    Parameters
    ----------
    verb : str
        Name of the operation, such as ``"pool"``.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._start = time.monotonic()
        self._last_update = 0.0
        self._width = 0

    @property
    def in_bytes(self) -> Progress | None:
        """A callback that takes bytes done and bytes in total; None if the bar is not shown."""
        # stderr is None if the caller closed it.
        return self._update if sys.stderr is not None and sys.stderr.isatty() else None

    def in_units(self, unit_bytes: int) -> Progress | None:
        """A callback that takes units done and units in total, each of `unit_bytes` bytes."""
        if self.in_bytes is None:
            return None
        return lambda done, total: self._update(done * unit_bytes, total * unit_bytes)

    def _update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last_update < 0.1 and done < total:
            return
        self._last_update = now
        rate = done / max(now - self._start, 1e-9)
        left = _clock((total - done) / rate) if rate else "?"
        fraction = done / total if total else 1.0
        bar = "#" * round(24 * min(fraction, 1.0))
        line = (
            f"{self._verb} [{bar:<24}] {fraction:4.0%}  {human_bytes(done)} of {human_bytes(total)}"
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
