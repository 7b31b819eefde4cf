"""One protocol for everything kept beside the sites of a store, such as pooled sites and whiteners.

An artifact is complete in a part when it covers all of the part's rows; appending leaves it short. `complete`
writes what is missing, part by part, under each part's lock and through its commits, so that what a killed
process had committed is never computed again. `update` finds short artifacts through the registry of kinds.
"""

import contextlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.progress import Progress
from ..disk.location import find_parts
from ..disk.parts import Part, read_part
from ..disk.snapshot import Snapshot
from ..errors import ActstoreError, FormatError

_COMMIT_SECONDS = 30.0


@dataclass(frozen=True)
class ArtifactRows:
    """Rows to append to the arrays of an artifact, and the work that they stand for."""

    arrays: Mapping[str, NDArray[Any]]
    work: int


class Artifact(ABC):
    """Something kept beside a site, one piece in each part of a store."""

    name: str
    """In messages."""

    @abstractmethod
    def is_short(self, part: Part) -> bool:
        """Whether rows, or everything, are missing in a part.

        Raises
        ------
        InvalidInputError, NotFoundError, ShapeError, StorageError, FormatError
            When it cannot be written there.
        """

    def prepare(self, part: Part) -> None:  # noqa: B027
        """Refuse what cannot be computed, before anything is written anywhere; by default nothing."""

    @abstractmethod
    def work(self, part: Part) -> int:
        """The work that is missing in a part, in rows times layers."""

    @abstractmethod
    def arrays(self, part: Part) -> list[dict[str, Any]]:
        """The arrays to add to a part, as the native writer takes them; none when they exist."""

    def groups(self, part: Part) -> dict[str, Any]:
        """The groups to add to a part, attributes by path; by default none."""
        return {}

    @abstractmethod
    def missing(self, part: Part, threads: int, progress: Progress | None) -> Iterator[ArtifactRows]:
        """The missing rows of a part, in order, in runs that fit in memory."""


def complete(source: Any, artifact: Artifact, threads: int = 0, progress: Progress | None = None) -> bool:
    """Write what is missing of an artifact at the newest commit of every part.

    Parameters
    ----------
    source : path or list of paths
        A store, as `actstore.open` takes it.
    artifact : Artifact
    threads : int
        For compression; 0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    bool
        Whether anything was missing.

    Raises
    ------
    FormatError
        kind ``unsupported`` for a group without commits.
    StorageError
        kind ``locked`` while the store is being written.
    ActstoreError
        What the artifact raises. Rows computed before an error are committed.
    """
    parts = [read_part(_native.Reader(path)) for path in find_parts(source)]
    short = []
    for part in parts:
        _check_writable(part, artifact.name)
        if artifact.is_short(part):
            short.append(part)
    for part in short:
        artifact.prepare(part)
    meter = _Meter(sum(artifact.work(part) for part in short), progress)
    for part in short:
        _complete_part(part, artifact, threads, meter)
    return bool(short)


def _check_writable(part: Part, name: str) -> None:
    if part.foreign:
        raise FormatError(
            f"{part.path} is a Zarr group without commits: {name!r} cannot be written into it",
            kind="unsupported",
            hint="import it into a store",
        )


def _complete_part(part: Part, artifact: Artifact, threads: int, meter: "_Meter") -> None:
    """One part, under its lock."""
    with contextlib.closing(_native.Writer.append_to(part.path, threads)) as writer:
        part = read_part(part.reader.refresh())
        if not artifact.is_short(part):
            return
        groups, specs = artifact.groups(part), artifact.arrays(part)
        if groups:
            writer.add_groups(json.dumps(groups))
        if specs:
            writer.add_arrays(json.dumps(specs))
        uncommitted, last = False, time.monotonic()
        try:
            for rows in artifact.missing(part, threads, meter.of_run()):
                due = writer.append(
                    {name: np.ascontiguousarray(array) for name, array in rows.arrays.items()}
                )
                uncommitted = True
                meter.advance(rows.work)
                if due or time.monotonic() - last > _COMMIT_SECONDS:
                    writer.commit(writer.state, threads)
                    uncommitted, last = False, time.monotonic()
        except BaseException:
            if uncommitted:  # These rows are right, and may have taken long.
                with contextlib.suppress(ActstoreError):
                    writer.commit(writer.state, threads)
            raise
        writer.commit(writer.state, threads)


class _Meter:
    """Progress over all parts."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def of_run(self) -> Progress | None:
        """To be called within a run, with the work done of it."""
        progress = self._progress
        if progress is None:
            return None
        return lambda done, _: progress(min(self._done + done, self._total), self._total)

    def advance(self, work: int) -> None:
        """A run is done. Rows may have been appended meanwhile, so the total may grow."""
        self._done += work
        self._total = max(self._total, self._done)
        if self._progress is not None:
            self._progress(self._done, self._total)


# ---- Kinds ----


@dataclass(frozen=True)
class ArtifactKind:
    """How `update` finds and completes the artifacts of one kind."""

    name: str
    """What this kind's artifacts are called together: ``"derived site"``."""
    names: Callable[[Snapshot], Sequence[str]]
    """All artifacts of this kind in a store, by the names that `update` takes."""
    short: Callable[[Snapshot], Mapping[str, str | None]]
    """Those that are short, each with the site that it needs to be complete first, if any."""
    complete: Callable[[Snapshot, str, int, Progress | None], None]
    """Completes one of them."""


KINDS: list[ArtifactKind] = []
"""The kinds that `update` knows."""


def register(kind: ArtifactKind) -> None:
    """Let `update` know a kind."""
    KINDS.append(kind)
