"""The capture run: windows of examples go through the model, their rows into the store, with commits.

Where a window begins depends on the inputs alone, and each commit records where its window began. So a
resumed capture makes the same batches, and the same numbers, as one that was never interrupted.
"""

import contextlib
import itertools
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...disk.layout import EXAMPLES
from ...disk.writer import StoreWriter
from ...errors import InvalidInputError
from ..forward.row_buffer import RowBuffer
from ..inputs.batches import Batch
from ..inputs.example import Example
from ..inputs.sizes import n_tokens
from ..session import Session
from .destination import WriteOptions
from .groups import START, GroupStream, InputGroup, chained
from .interrupts import Interrupts, Stopped
from .progress import ProgressMeter

_COMMIT_SECONDS = 30.0
"""Minimum time between commits, which come at the ends of windows. Each commit rewrites the chunks that are
not full, and leaves their old bytes behind as holes."""


@dataclass
class CaptureTally:
    """Counts of truncated inputs and non-finite values among the stored examples."""

    n_examples: int = 0
    n_cut_examples: int = 0
    n_cut_tokens: int = 0
    nonfinite: dict[tuple[str, int], tuple[int, int, str]] = field(default_factory=dict)
    """By site and layer: number of NaN, number of infinities, the first example with some."""

    def add(self, buffer: RowBuffer, start: int, stop: int) -> None:
        """Count a range of a row buffer's examples."""
        examples = buffer.examples[start:stop]
        cut = [example.n_cut for example in examples if example.n_cut]
        self.n_examples += len(examples)
        self.n_cut_examples += len(cut)
        self.n_cut_tokens += sum(cut)
        for key, (n_nan, n_inf, example) in buffer.nonfinite(start, stop).items():
            before = self.nonfinite.get(key, (0, 0, example))
            self.nonfinite[key] = before[0] + n_nan, before[1] + n_inf, before[2]

    def warnings(self, max_length: int | None) -> list[str]:
        """The messages to warn with."""
        out = []
        if self.n_cut_examples:
            out.append(
                f"{self.n_cut_examples:,} inputs are longer than {max_length} tokens and were truncated: "
                f"{self.n_cut_tokens:,} tokens are not in the store (column n_cut)"
            )
        out += [
            f"{site}, layer {label}: {n_nan:,} NaN and {n_inf:,} infinite values, first in example "
            f"{example!r} (column n_nonfinite)"
            for (site, label), (n_nan, n_inf, example) in self.nonfinite.items()
        ]
        return out


class CaptureRun:
    """Captures the inputs of one process into a store."""

    def __init__(
        self, session: Session, writer: StoreWriter, options: WriteOptions, progress: ProgressMeter
    ) -> None:
        self._session, self._writer, self._options, self._progress = session, writer, options, progress
        self.tally = CaptureTally()
        self._committed = time.monotonic()
        # With a GPU, the host writes one buffer while the model fills the other. A CPU would share its cores.
        overlap = session.on_gpu
        self._buffers = [session.buffer, *([session.new_buffer()] if overlap else [])]
        self._pool = ThreadPoolExecutor(1, "actstore-write") if overlap else None
        self._writing: list[Future[None]] = []
        self._failed = False

    def run(self, groups: GroupStream, interrupts: Interrupts) -> None:
        """Capture all inputs, or those that are complete when a signal comes."""
        try:
            with contextlib.suppress(Stopped):
                self._run_windows(groups, interrupts)
            for future in self._writing:
                future.result()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _run_windows(self, groups: GroupStream, interrupts: Interrupts) -> None:
        n_done = self._writer.n_examples
        with interrupts.waiting(), self._progress.stage("read"):
            start, digest = self._catch_up(groups, n_done)
        for number in itertools.count():
            with interrupts.waiting(), self._progress.stage("read"):
                window = groups.window(self._session.window_tokens)
            if not window:
                break
            hashes = [one for group in window for one in group.hashes]
            n_stored = max(n_done - start, 0)
            if 0 < n_stored <= len(hashes):
                self._check_same(chained(digest, hashes[:n_stored]))
            if n_stored < len(hashes):
                self._run_window(number, window, start, n_stored, digest, interrupts)
            start, digest = start + len(hashes), chained(digest, hashes)
        if start < n_done:
            raise self._other_inputs(f"there are only {start:,}")

    # ---- resuming ----

    def _catch_up(self, groups: GroupStream, n_done: int) -> tuple[int, bytes]:
        """Skip to the window in which the store ends.

        Returns its first example and the hash of earlier inputs.
        """
        if not n_done:
            return 0, START
        begins = min(int(self._writer.note.get("window", n_done)), n_done)
        n_skipped, digest = groups.skip(begins, START)
        if n_skipped != begins:
            raise self._other_inputs(f"there are only {n_skipped:,}")
        if begins == n_done:
            self._check_same(digest)
        return begins, digest

    def _check_same(self, digest: bytes) -> None:
        """Compare the inputs up to the end of the store with those that it was captured from."""
        if digest.hex() != self._writer.note["inputs"]:
            filtered = ", or their kept tokens differ" if self._session.encoder.filters_by_mask else ""
            raise self._other_inputs(f"they differ{filtered}")

    def _other_inputs(self, reason: str) -> InvalidInputError:
        return InvalidInputError(
            f"resume: the first {self._writer.n_examples:,} inputs are not those that {self._writer.path} "
            f"was captured from: {reason}",
            hint="pass the same inputs in the same order; more may follow",
        )

    # ---- a window ----

    def _run_window(
        self,
        number: int,
        groups: Sequence[InputGroup],
        start: int,
        n_stored: int,
        digest: bytes,
        interrupts: Interrupts,
    ) -> None:
        """Run a window through the model, and append its complete examples that are not stored yet."""
        session = self._session
        buffer = self._buffers[number % len(self._buffers)]
        while len(self._writing) >= len(self._buffers):
            self._writing.pop(0).result()
        examples = [example for group in groups for example in group.examples]
        session.buffer = buffer
        buffer.begin(examples)
        self._check_empty(buffer)
        n_pending = np.zeros(len(examples), np.int64)
        batches = [
            batch for batch in _batches(session, groups) if any(e >= n_stored for e, _ in batch.origins)
        ]
        for batch in batches:
            np.add.at(n_pending, [e for e, _ in batch.origins], 1)
        for batch in batches:
            if interrupts.pending is not None:
                break
            with self._progress.stage("forward"):
                session.run(batch)
            np.subtract.at(n_pending, [e for e, _ in batch.origins], 1)
            self._progress.ran(sum(map(n_tokens, batch.pieces)))
        with self._progress.stage("forward"):
            session.drain()
        complete = int(np.argmax(n_pending > 0)) if n_pending.any() else len(examples)
        hashes = [one for group in groups for one in group.hashes][:complete]
        whole = complete == len(examples)
        note = {"inputs": chained(digest, hashes).hex(), "window": start + complete if whole else start}
        if complete <= n_stored:
            return
        if self._pool is None:
            self._append(buffer, n_stored, complete, note)
        else:
            self._writing.append(self._pool.submit(self._append, buffer, n_stored, complete, note))

    def _check_empty(self, buffer: RowBuffer) -> None:
        if self._options.on_empty == "zero":
            return
        for target in buffer.targets:
            empty = np.flatnonzero(buffer.lengths[target.site.axis] == 0)
            if target.axis == EXAMPLES and len(empty):
                missing = "rows to pool" if target.pool is not None else "tokens"
                raise InvalidInputError(
                    f"example {buffer.examples[empty[0]].id!r} has no {missing}, but site "
                    f"{target.site.name!r} has one row per example",
                    hint="on_empty='zero' stores zeros for it",
                )

    def _append(self, buffer: RowBuffer, start: int, stop: int, note: dict[str, Any]) -> None:
        if self._failed:  # An earlier window is missing: appending this one would leave a gap.
            return
        self._failed = True
        with self._progress.stage("write"):
            examples = buffer.examples[start:stop]
            if self._options.on_nan == "raise" and buffer.n_nonfinite[start:stop].any():
                (site, label), (n_nan, n_inf, example) = next(iter(buffer.nonfinite(start, stop).items()))
                raise InvalidInputError(
                    f"{site}, layer {label}: {n_nan:,} NaN and {n_inf:,} infinite values in example "
                    f"{example!r}",
                    hint="on_nan='count' stores and counts them",
                )
            rows = buffer.rows(start, stop)
            axes = self._session.axes
            self._writer.append(
                rows,
                {axis: buffer.lengths[axis][start:stop] for axis in axes} if axes else None,
                ids=[example.id for example in examples],
                token_columns={axis: _token_columns(examples, axis) for axis in axes} if axes else None,
                columns=self._columns(buffer, examples, start, stop),
                note=note,
            )
            self.tally.add(buffer, start, stop)
            if time.monotonic() - self._committed > _COMMIT_SECONDS:
                self._writer.commit()
                self._committed = time.monotonic()
        self._failed = False
        self._progress.wrote(len(examples), sum(site.nbytes for site in rows.values()))

    def _columns(
        self, buffer: RowBuffer, examples: Sequence[Example], start: int, stop: int
    ) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "n_cut": np.array([example.n_cut for example in examples], np.int64),
            "n_nonfinite": buffer.n_nonfinite[start:stop],
        }
        if self._options.store_text:
            columns["text"] = [example.text or "" for example in examples]
        if self._session.options.pool is not None:
            lengths = [n for axis, n in buffer.lengths.items() if axis != EXAMPLES]
            columns["n_rows"] = (
                np.sum([n[start:stop] for n in lengths], axis=0)
                if lengths
                else np.ones_like(columns["n_cut"])
            )
        for name in examples[0].columns:
            columns[name] = [example.columns[name] for example in examples]
        return columns


def _batches(session: Session, groups: Sequence[InputGroup]) -> list[Batch]:
    """The batches of a window. A ready batch stays together, padded to its own length."""
    if groups[0].padded is None or not session.takes_mask:
        return session.batches([example for group in groups for example in group.examples])
    out: list[Batch] = []
    first = 0
    for group in groups:
        pieces = [
            (piece, (first + e, p))
            for e, example in enumerate(group.examples)
            for p, piece in enumerate(example.pieces)
        ]
        if pieces:
            out.append(Batch([piece for piece, _ in pieces], [origin for _, origin in pieces], group.padded))
        first += len(group.examples)
    return out


def _token_columns(examples: Sequence[Example], axis: str) -> dict[str, Any]:
    names = examples[0].tokens[axis]
    return {name: np.concatenate([example.tokens[axis][name] for example in examples]) for name in names}
