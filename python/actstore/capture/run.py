"""The capture itself: windows of examples through the model, rows into the store, commits.

Where a window begins depends on the inputs alone, and each commit says where the window in which it came
began. So a capture that is resumed makes the same batches as one that was never interrupted, and the same
numbers.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..create import append, create_where
from ..errors import FormatError, InvalidInputError, StorageError
from ..layout import EXAMPLES
from ..store import open as open_store
from ..writer import StoreWriter
from .batches import Batch
from .example import Example
from .groups import START, Group, Groups, chained
from .identity import difference
from .interrupts import Interrupts, Stopped
from .progress import Progress
from .session import Session
from .sizes import n_tokens
from .window import Window

_COMMIT_SECONDS = 30.0
"""Commits come at the ends of windows, but no more often than this: each writes anew the chunks that are not
full, and what they were stays behind as holes."""


@dataclass(frozen=True)
class Options:
    """How to write, as `capture` takes it."""

    store_text: bool
    resume: bool
    on_nan: str
    on_empty: str
    overwrite: bool = False
    codec: Any = "blosc"
    threads: int = 0


@dataclass
class Tally:
    """What a run has seen, of what is in the store."""

    n_examples: int = 0
    n_cut_examples: int = 0
    n_cut_tokens: int = 0
    nonfinite: dict[tuple[str, int], tuple[int, int, str]] = field(default_factory=dict)
    """By site and layer: NaN, infinities, the first example that has some."""

    def add(self, window: Window, start: int, stop: int) -> None:
        """Count what was written of a window."""
        examples = window.examples[start:stop]
        cut = [example.n_cut for example in examples if example.n_cut]
        self.n_examples += len(examples)
        self.n_cut_examples += len(cut)
        self.n_cut_tokens += sum(cut)
        for key, (n_nan, n_inf, example) in window.nonfinite(start, stop).items():
            before = self.nonfinite.get(key, (0, 0, example))
            self.nonfinite[key] = before[0] + n_nan, before[1] + n_inf, before[2]

    def warnings(self, max_length: int | None) -> list[str]:
        """What one should know, in words."""
        out = []
        if self.n_cut_examples:
            out.append(
                f"{self.n_cut_examples:,} inputs are longer than {max_length} tokens and were cut: "
                f"{self.n_cut_tokens:,} tokens are not in the store (column n_cut)"
            )
        out += [
            f"{site}, layer {label}: {n_nan:,} NaN and {n_inf:,} infinite values, the first in example "
            f"{example!r} (column n_nonfinite)"
            for (site, label), (n_nan, n_inf, example) in self.nonfinite.items()
        ]
        return out


def open_writer(
    path: str, session: Session, identity: dict[str, Any], part: tuple[int, int] | None, options: Options
) -> StoreWriter:
    """The store that is to be written, new or, to go on with it, as it was left.

    One that has no examples yet is in nobody's way.

    Raises
    ------
    InvalidInputError
        When it holds something else, naming the first difference.
    """
    if not (options.resume and is_store(path)):
        check_place(path, options)  # Loading the model has taken a while.
        return create_where(
            path,
            session.specs(),
            "always" if options.overwrite else "empty",
            codec=options.codec,
            identity=identity,
            part=part,
            threads=options.threads,
        )
    writer = append(path, threads=options.threads)
    try:
        found = difference(writer.identity, identity)
        if found is not None:
            key, stored, ours = found
            raise InvalidInputError(
                f"resume: {path} was captured with {key} = {json.dumps(stored)}, "
                f"this run has {json.dumps(ours)}",
                hint="another path, or overwrite for a new capture",
            )
        if writer.n_examples and "inputs" not in writer.note:
            raise InvalidInputError(
                f"resume: {path} does not say which inputs it has: capture did not write it"
            )
    except BaseException:
        writer.abort()
        raise
    return writer


def is_store(path: str) -> bool:
    """Whether something that may be a store is there."""
    return os.path.exists(os.path.join(path, "zarr.json"))


def check_place(path: str, options: Options) -> None:
    """Raise StorageError (``exists``) where a store is neither to be replaced nor to be gone on with."""
    if options.resume or options.overwrite or not is_store(path):
        return
    with contextlib.suppress(FormatError), open_store(path) as store:
        if not store.n_examples and "model" in store.identity:
            return  # A capture that came to nothing.
    raise StorageError(
        f"{path} exists already", kind="exists", hint="resume goes on with it, overwrite replaces it"
    )


class Run:
    """Takes the inputs of one process through the model and into a store."""

    def __init__(self, session: Session, writer: StoreWriter, options: Options, progress: Progress) -> None:
        self._session, self._writer, self._options, self._progress = session, writer, options, progress
        self.tally = Tally()
        self._committed = time.monotonic()
        # A GPU goes on while the host writes; on a CPU both would have the same cores.
        overlap = session.on_gpu
        self._windows = [session.window, *([session.another_window()] if overlap else [])]
        self._pool = ThreadPoolExecutor(1, "actstore-write") if overlap else None
        self._writing: list[Future[None]] = []
        self._failed = False

    def run(self, groups: Groups, interrupts: Interrupts) -> None:
        """All of the inputs, or until a signal: what is complete is appended."""
        try:
            with contextlib.suppress(Stopped):
                self._all(groups, interrupts)
            for future in self._writing:
                future.result()
        finally:
            if self._pool is not None:
                self._pool.shutdown()

    def _all(self, groups: Groups, interrupts: Interrupts) -> None:
        n_done = self._writer.n_examples
        with interrupts.waiting(), self._progress.stage("read"):
            start, digest = self._catch_up(groups, n_done)
        for number in itertools.count():
            with interrupts.waiting(), self._progress.stage("read"):
                window = groups.window(self._session.window_tokens)
            if not window:
                break
            prints = [one for group in window for one in group.prints]
            n_there = max(n_done - start, 0)
            if 0 < n_there <= len(prints):
                self._check_same(chained(digest, prints[:n_there]))
            if n_there < len(prints):
                self._through(number, window, start, n_there, digest, interrupts)
            start, digest = start + len(prints), chained(digest, prints)
        if start < n_done:
            raise self._other_inputs(f"there are only {start:,}")

    # ---- going on ----

    def _catch_up(self, groups: Groups, n_done: int) -> tuple[int, bytes]:
        """To the window in which the store ends: its first example, and the hash of the inputs before it."""
        if not n_done:
            return 0, START
        begins = min(int(self._writer.note.get("window", n_done)), n_done)
        passed, digest = groups.skip(begins, START)
        if passed != begins:
            raise self._other_inputs(f"there are {passed:,} where {begins:,} were")
        if begins == n_done:
            self._check_same(digest)
        return begins, digest

    def _check_same(self, digest: bytes) -> None:
        """Compare the inputs that are in the store already with those that went in."""
        if digest.hex() != self._writer.note["inputs"]:
            chosen = (
                ", or the tokens that were chosen of them" if self._session.encoder.rows_by_choice else ""
            )
            raise self._other_inputs(f"they differ{chosen}")

    def _other_inputs(self, what: str) -> InvalidInputError:
        return InvalidInputError(
            f"resume: the first {self._writer.n_examples:,} inputs are not those that {self._writer.path} "
            f"was captured from: {what}",
            hint="give the same inputs in the same order; more may follow them",
        )

    # ---- a window ----

    def _through(
        self,
        number: int,
        groups: Sequence[Group],
        start: int,
        n_there: int,
        digest: bytes,
        interrupts: Interrupts,
    ) -> None:
        """A window through the model; what is complete of it, beyond what is there, is appended."""
        session = self._session
        window = self._windows[number % len(self._windows)]
        while len(self._writing) >= len(self._windows):
            self._writing.pop(0).result()
        examples = [example for group in groups for example in group.examples]
        session.window = window
        window.begin(examples)
        self._check_empty(window)
        left = np.zeros(len(examples), np.int64)
        todo = [batch for batch in _batches(session, groups) if any(e >= n_there for e, _ in batch.of)]
        for batch in todo:
            np.add.at(left, [e for e, _ in batch.of], 1)
        for batch in todo:
            if interrupts.pending is not None:
                break
            with self._progress.stage("forward"):
                session.run(batch)
            np.subtract.at(left, [e for e, _ in batch.of], 1)
            self._progress.ran(sum(map(n_tokens, batch.pieces)))
        with self._progress.stage("forward"):
            session.drain()
        complete = int(np.argmax(left > 0)) if left.any() else len(examples)
        prints = [one for group in groups for one in group.prints][:complete]
        whole = complete == len(examples)
        note = {"inputs": chained(digest, prints).hex(), "window": start + complete if whole else start}
        if complete <= n_there:
            return
        if self._pool is None:
            self._append(window, n_there, complete, note)
        else:
            self._writing.append(self._pool.submit(self._append, window, n_there, complete, note))

    def _check_empty(self, window: Window) -> None:
        if self._options.on_empty == "zero":
            return
        for target in window.targets:
            empty = np.flatnonzero(window.lengths[target.site.axis] == 0)
            if target.axis == EXAMPLES and len(empty):
                what = "no rows to pool" if target.pool is not None else "no tokens to run"
                raise InvalidInputError(
                    f"example {window.examples[empty[0]].id!r} has {what}, and {target.site.name!r} a row "
                    "for each example",
                    hint="on_empty='zero' gives zeros for such",
                )

    def _append(self, window: Window, start: int, stop: int, note: dict[str, Any]) -> None:
        if self._failed:  # What follows a window that is not there must not take its place.
            return
        self._failed = True
        with self._progress.stage("write"):
            examples = window.examples[start:stop]
            if self._options.on_nan == "raise" and window.n_nonfinite[start:stop].any():
                (site, label), (n_nan, n_inf, example) = next(iter(window.nonfinite(start, stop).items()))
                raise InvalidInputError(
                    f"{site}, layer {label}: {n_nan:,} NaN and {n_inf:,} infinite values in example "
                    f"{example!r}",
                    hint="on_nan='count' stores them and counts them",
                )
            rows = window.rows(start, stop)
            axes = self._session.axes
            self._writer.append(
                rows,
                {axis: window.lengths[axis][start:stop] for axis in axes} if axes else None,
                ids=[example.id for example in examples],
                tokens={axis: _token_columns(examples, axis) for axis in axes} if axes else None,
                columns=self._columns(window, examples, start, stop),
                note=note,
            )
            self.tally.add(window, start, stop)
            if time.monotonic() - self._committed > _COMMIT_SECONDS:
                self._writer.commit()
                self._committed = time.monotonic()
        self._failed = False
        self._progress.wrote(len(examples), sum(site.nbytes for site in rows.values()))

    def _columns(self, window: Window, examples: Sequence[Example], start: int, stop: int) -> dict[str, Any]:
        columns: dict[str, Any] = {
            "n_cut": np.array([example.n_cut for example in examples], np.int64),
            "n_nonfinite": window.n_nonfinite[start:stop],
        }
        if self._options.store_text:
            columns["text"] = [example.text or "" for example in examples]
        if self._session.asked.pool is not None:
            of = [n for axis, n in window.lengths.items() if axis != EXAMPLES]
            columns["n_rows"] = (
                np.sum([n[start:stop] for n in of], axis=0) if of else np.ones_like(columns["n_cut"])
            )
        for name in examples[0].columns:
            columns[name] = [example.columns[name] for example in examples]
        return columns


def _batches(session: Session, groups: Sequence[Group]) -> list[Batch]:
    """Those of a window; ready ones stay as they are, at their own length."""
    if groups[0].padded is None or not session.masks:
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
            out.append(Batch([piece for piece, _ in pieces], [of for _, of in pieces], group.padded))
        first += len(group.examples)
    return out


def _token_columns(examples: Sequence[Example], axis: str) -> dict[str, Any]:
    names = examples[0].tokens[axis]
    return {name: np.concatenate([example.tokens[axis][name] for example in examples]) for name in names}
