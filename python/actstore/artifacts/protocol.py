"""One protocol for all artifacts: data stored beside the sites, such as pooled sites and whiteners.

An artifact is complete in a part when it covers all rows of the part; an append makes it incomplete.
`complete` writes the missing rows, part by part, under each part's lock and in several commits, so that rows
which a killed process committed are never computed again. `update` finds incomplete artifacts through the
registry of kinds.
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
    """Rows to append to the arrays of an artifact, and the work done for them, in rows times layers."""

    arrays: Mapping[str, NDArray[Any]]
    work: int


class Artifact(ABC):
    """Data stored beside a site, one piece in each part of a store."""

    name: str
    """The name in the store and in error messages."""

    @abstractmethod
    def is_incomplete(self, part: Part) -> bool:
        """Whether a part lacks rows of the artifact, or all of it.

        Raises
        ------
        InvalidInputError, NotFoundError, ShapeError, StorageError, FormatError
            When the artifact cannot be written into the part.
        """

    def prepare(self, part: Part) -> None:  # noqa: B027
        """Raise if rows cannot be computed; called before any part is written. Does nothing by default."""

    @abstractmethod
    def work(self, part: Part) -> int:
        """The remaining work in a part, in rows times layers."""

    @abstractmethod
    def arrays(self, part: Part) -> list[dict[str, Any]]:
        """The arrays to add to a part, in the native writer's form; none when they exist."""

    def groups(self, part: Part) -> dict[str, Any]:
        """The groups to add to a part: attributes by path. None by default."""
        return {}

    @abstractmethod
    def missing(self, part: Part, threads: int, progress: Progress | None) -> Iterator[ArtifactRows]:
        """The missing rows of a part, in order, in runs that fit in memory."""


def complete(source: Any, artifact: Artifact, threads: int = 0, progress: Progress | None = None) -> bool:
    """Write the missing rows of an artifact at the newest commit of every part.

    Parameters
    ----------
    source : path or list of paths
        A store, as `actstore.open` takes it.
    artifact : Artifact
        The artifact to complete.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    bool
        Whether anything was missing.

    Raises
    ------
    FormatError
        kind ``unsupported`` for a foreign Zarr group, which has no commits.
    StorageError
        kind ``locked`` while the store is being written.
    ActstoreError
        Any error of the artifact. Rows computed before the error are committed.
    """
    parts = [read_part(_native.Reader(path)) for path in find_parts(source)]
    incomplete = []
    for part in parts:
        _check_writable(part, artifact.name)
        if artifact.is_incomplete(part):
            incomplete.append(part)
    for part in incomplete:
        artifact.prepare(part)
    meter = _Meter(sum(artifact.work(part) for part in incomplete), progress)
    for part in incomplete:
        _complete_part(part, artifact, threads, meter)
    return bool(incomplete)


def _check_writable(part: Part, name: str) -> None:
    if part.foreign:
        raise FormatError(
            f"{part.path} is a Zarr group without commits: {name!r} cannot be written into it",
            kind="unsupported",
            hint="import it into a store",
        )


def _complete_part(part: Part, artifact: Artifact, threads: int, meter: "_Meter") -> None:
    """Complete the artifact in one part, under the part's lock."""
    with contextlib.closing(_native.Writer.append_to(part.path, threads)) as writer:
        part = read_part(part.reader.refresh())
        if not artifact.is_incomplete(part):
            return
        groups, specs = artifact.groups(part), artifact.arrays(part)
        if groups:
            writer.add_groups(json.dumps(groups))
        if specs:
            writer.add_arrays(json.dumps(specs))
        uncommitted, last = False, time.monotonic()
        try:
            for rows in artifact.missing(part, threads, meter.for_run()):
                due = writer.append(
                    {name: np.ascontiguousarray(array) for name, array in rows.arrays.items()}
                )
                uncommitted = True
                meter.advance(rows.work)
                if due or time.monotonic() - last > _COMMIT_SECONDS:
                    writer.commit(writer.state, threads)
                    uncommitted, last = False, time.monotonic()
        except BaseException:
            if uncommitted:  # Keep these rows: they are correct and may have taken long to compute.
                with contextlib.suppress(ActstoreError):
                    writer.commit(writer.state, threads)
            raise
        writer.commit(writer.state, threads)


class _Meter:
    """Progress over all parts."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._progress, self._done, self._total = progress, 0, total

    def for_run(self) -> Progress | None:
        """A progress callback for the current run, which takes the work done in that run."""
        progress = self._progress
        if progress is None:
            return None
        return lambda done, _: progress(min(self._done + done, self._total), self._total)

    def advance(self, work: int) -> None:
        """Count a finished run. The total grows when rows were appended meanwhile."""
        self._done += work
        self._total = max(self._total, self._done)
        if self._progress is not None:
            self._progress(self._done, self._total)


# ---- Kinds ----


@dataclass(frozen=True)
class ArtifactKind:
    """How `update` finds and completes the artifacts of one kind."""

    name: str
    """The name of the kind in messages: ``"derived site"``."""
    names: Callable[[Snapshot], Sequence[str]]
    """All artifacts of this kind in a store, by the names that `update` takes."""
    incomplete: Callable[[Snapshot], Mapping[str, str | None]]
    """The incomplete artifacts, each with the site that has to be complete first, if any."""
    complete: Callable[[Snapshot, str, int, Progress | None], None]
    """Completes the artifact of this name: ``complete(snapshot, name, threads, progress)``."""


KINDS: list[ArtifactKind] = []
"""The kinds that `update` knows."""


def register(kind: ArtifactKind) -> None:
    """Make a kind known to `update`."""
    KINDS.append(kind)
