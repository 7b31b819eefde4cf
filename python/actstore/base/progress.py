"""Progress callbacks."""

from collections.abc import Callable

Progress = Callable[[int, int], object]
"""Called as ``progress(done, total)``. Each function documents the unit: rows times layers, or bytes."""


def shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Report one step of a longer job as progress of the whole job, `before` units of which are done."""
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
