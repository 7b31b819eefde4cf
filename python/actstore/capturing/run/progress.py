"""The progress of a capture: examples, tokens/s, GB/s, the slowest stage, and the remaining time."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STAGES = ("read", "forward", "write")
"""Reading and encoding inputs; the model and the transfer from its device; compressing and committing."""


class ProgressMeter:
    """Times the stages of a run, and optionally shows a progress bar on stderr.

    Parameters
    ----------
    shown : bool
        Whether to show a bar.
    total : int, optional
        Number of examples in total.
    done : int
        Number of examples stored before the run.
    """

    def __init__(self, shown: bool, total: int | None, done: int = 0) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.n_tokens = self.n_bytes = 0
        self._start = time.perf_counter()
        self._bar: Any = None
        if shown and sys.stderr is not None:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            # In a log file, print a line now and then, and nothing for a run of a few seconds.
            interactive = sys.stderr.isatty()
            interval = 0.2 if interactive else 60.0
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="ex",
                desc="capture",
                dynamic_ncols=True,
                mininterval=interval,
                maxinterval=max(10.0, interval),
                delay=0 if interactive else 5,
            )

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the context to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def ran(self, n_tokens: int) -> None:
        """Count tokens that went through the model."""
        self.n_tokens += n_tokens
        self._update_bar()

    def wrote(self, n_examples: int, n_bytes: int) -> None:
        """Count examples appended to the store, and their bytes before compression."""
        self.n_bytes += n_bytes
        if self._bar is not None:
            self._bar.update(n_examples)
        self._update_bar()

    @property
    def slowest(self) -> tuple[str, float]:
        """The stage that takes the most time, and its share."""
        name = max(self.seconds, key=lambda stage: self.seconds[stage])
        return name, self.seconds[name] / max(sum(self.seconds.values()), 1e-9)

    def _update_bar(self) -> None:
        if self._bar is None:
            return
        name, share = self.slowest
        elapsed = max(self.elapsed, 1e-9)
        self._bar.set_postfix_str(
            f"{self.n_tokens / elapsed:,.0f} tok/s, {self.n_bytes / elapsed / 1e9:.2f} GB/s, "
            f"{name} {share:.0%}",
            refresh=False,
        )
        self._bar.update(0)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
