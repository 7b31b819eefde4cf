"""How a capture gets on: examples, tokens a second, bytes a second, what holds it back, how long to go."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STAGES = ("read", "forward", "write")
"""Reading and encoding inputs; the model, the copy from the device included; compressing and committing."""


class Progress:
    """Times the stages of a run, and shows a bar on stderr where somebody may be looking.

    Parameters
    ----------
    shown : bool
        Whether to show anything.
    total : int, optional
        Examples there will be.
    done : int
        Examples that were there before.
    """

    def __init__(self, shown: bool, total: int | None, done: int = 0) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.n_tokens = self.n_bytes = 0
        self._start = time.perf_counter()
        self._bar: Any = None
        if shown and sys.stderr is not None:
            from tqdm.auto import tqdm  # type: ignore[import-untyped]

            # A bar is for eyes; in a log it is a line now and then, and none of what is done in a moment.
            watched = sys.stderr.isatty()
            every = 0.2 if watched else 60.0
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="ex",
                desc="capture",
                dynamic_ncols=True,
                mininterval=every,
                maxinterval=max(10.0, every),
                delay=0 if watched else 5,
            )

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens within is of this stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def ran(self, n_tokens: int) -> None:
        """So many tokens more went through the model."""
        self.n_tokens += n_tokens
        self._tell()

    def wrote(self, n_examples: int, n_bytes: int) -> None:
        """So many examples more are in the store, so many bytes before compression."""
        self.n_bytes += n_bytes
        if self._bar is not None:
            self._bar.update(n_examples)
        self._tell()

    @property
    def slowest(self) -> tuple[str, float]:
        """The stage that takes most of the time, and its share."""
        name = max(self.seconds, key=lambda stage: self.seconds[stage])
        return name, self.seconds[name] / max(sum(self.seconds.values()), 1e-9)

    def _tell(self) -> None:
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
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
