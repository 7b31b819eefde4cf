"""The rows of a window of examples, in their order, filled batch by batch.

A tap gives ``[batch, token, dim]``, padded. What is stored of it is gathered on the model's device at once,
so that no padded tensor outlives its hook; from there it goes to its place in the window, on a CPU directly
and from a GPU through pinned memory (:mod:`actstore.capture.transfer`).

Pooled at the source, the rows of each piece become one, in float64; pieces of an example are added up.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..layout import EXAMPLES
from .batches import Batch
from .example import Example
from .sites import Captured
from .sizes import rows_of
from .transfer import Transfer

_LONG = 32
"""Rows of a piece, in the mean, from which on it is quicker to copy each piece by itself than all at once."""


@dataclass(frozen=True)
class Target:
    """A site as it will be stored."""

    site: Captured
    dtype: torch.dtype
    pool: str | None

    @property
    def row_bytes(self) -> int:
        """What a row of all layers takes while it waits to be written."""
        itemsize = self.dtype.itemsize if self.pool is None else torch.float64.itemsize
        return itemsize * len(self.site.labels) * self.site.dim

    @property
    def axis(self) -> str:
        """What the rows in the store are."""
        return EXAMPLES if self.pool is not None else self.site.axis


class Window:
    """Room for the rows of some examples, used again for the next.

    Parameters
    ----------
    targets : sequence of Target
    grids : mapping of str to int
        By axis, the rows that a piece has in the model, where its tokens do not say (images).
    transfer : Transfer, optional
        From the device to here; None: the model runs on the CPU.
    """

    def __init__(self, targets: Sequence[Target], grids: dict[str, int], transfer: Transfer | None) -> None:
        self.targets = list(targets)
        self._grids, self._transfer = grids, transfer
        self._slots = [
            (t, layer) for t, target in enumerate(targets) for layer in range(len(target.site.taps))
        ]
        self._room: list[torch.Tensor] = [_empty(target, 0) for target in targets]
        self._bad: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._counting = threading.Lock()  # Rows from a GPU come in another thread.

    @property
    def taps(self) -> list[Any]:
        """What to take of each forward pass, in the order of `batch`'s sinks."""
        return [self.targets[t].site.taps[layer] for t, layer in self._slots]

    def begin(self, examples: Sequence[Example]) -> None:
        """Room for these examples; nothing is in it yet."""
        self.examples = list(examples)
        axes = {target.site.axis for target in self.targets}
        self._of_piece = {
            axis: [[self._n_rows(piece, axis) for piece in example.pieces] for example in examples]
            for axis in axes
        }
        self.lengths = {axis: np.array([sum(of) for of in self._of_piece[axis]], np.int64) for axis in axes}
        self._starts = {axis: np.concatenate([[0], np.cumsum(n)]) for axis, n in self.lengths.items()}
        self._bad.clear()
        self.n_nonfinite = np.zeros(len(examples), np.int64)
        for t, target in enumerate(self.targets):
            n = len(examples) if target.axis == EXAMPLES else int(self._starts[target.axis][-1])
            if self._room[t].shape[0] < n:
                self._room[t] = _empty(target, max(n, self._room[t].shape[0] * 5 // 4))
            if target.axis == EXAMPLES:
                self._room[t][:n] = -torch.inf if target.pool == "max" else 0

    def _n_rows(self, piece: Any, axis: str) -> int:
        if axis == EXAMPLES:
            return 1
        return len(rows_of(piece)[axis])

    def free(self) -> None:
        """Let the memory go; what `rows` has given stays."""
        self._room = [_empty(target, 0) for target in self.targets]

    def sink(self, batch: Batch, padded: dict[str, int]) -> "_Sink":
        """Where the tensors of one batch go."""
        return _Sink(self, batch, padded)

    # ---- what is in it ----

    def rows(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """Each site's rows of a run of the examples, ``[rows, layer, dim]``, as they are to be stored."""
        out = {}
        for target, room in zip(self.targets, self._room, strict=True):
            if target.axis != EXAMPLES:
                starts = self._starts[target.axis]
                out[target.site.name] = room[int(starts[start]) : int(starts[stop])]
            elif target.pool is None:
                out[target.site.name] = room[start:stop]
            else:
                lengths = self.lengths[target.site.axis][start:stop]
                out[target.site.name] = _divided(room[start:stop], lengths, target.pool).to(target.dtype)
        return out

    def nonfinite(self, start: int, stop: int) -> dict[tuple[str, int], tuple[int, int, str]]:
        """Of a run of the examples, by site and layer label: how many NaN, how many infinities, the first
        example that has some."""
        out: dict[tuple[str, int], tuple[int, int, str]] = {}
        for (t, layer, e), (n_nan, n_inf) in sorted(self._bad.items()):
            if not start <= e < stop:
                continue
            site = self.targets[t].site
            key = (site.name, site.labels[layer])
            before = out.get(key, (0, 0, self.examples[e].id))
            out[key] = (before[0] + n_nan, before[1] + n_inf, before[2])
        return out

    def _place(self, t: int, layer: int, sink: "_Sink", rows: torch.Tensor) -> None:
        """Rows of one layer, on the CPU, to their places."""
        target = self.targets[t]
        places = sink.places(target)
        into = self._room[t][:, layer]
        runs = sink.runs(target.site.axis) if target.pool is None and target.axis != EXAMPLES else None
        if runs is not None:
            done = 0
            for run in runs:
                n = run.stop - run.start
                into[run.at : run.at + n] = rows[done : done + n]
                done += n
        elif target.pool is None:
            into.index_copy_(0, places, rows)
        elif target.pool == "max":
            np.maximum.at(into.numpy(), places.numpy(), rows.numpy())
        else:
            into.index_add_(0, places, rows.to(into.dtype))
        if not _finite(rows):
            self._count(t, layer, rows, places)

    def _put(self, t: int, layer: int, sink: "_Sink", padded: torch.Tensor, runs: Sequence["_Run"]) -> None:
        """The same of ``[batch, token, dim]``, of which long runs are stored: straight to their places."""
        into = self._room[t][:, layer]
        for run in runs:
            into[run.at : run.at + run.stop - run.start] = padded[run.piece, run.start : run.stop]
        if not _finite(padded):  # It may be the padding.
            rows = torch.cat([padded[run.piece, run.start : run.stop] for run in runs])
            self._count(t, layer, rows, sink.places(self.targets[t]))

    def _count(self, t: int, layer: int, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Count NaN and infinities, by layer and by example."""
        target = self.targets[t]
        n_nan, n_inf = torch.isnan(rows).sum(1), torch.isinf(rows).sum(1)
        for row in torch.nonzero(n_nan + n_inf)[:, 0].tolist():
            place = int(places[row])
            starts = self._starts[target.site.axis] if target.axis != EXAMPLES else None
            e = place if starts is None else int(np.searchsorted(starts, place, side="right")) - 1
            with self._counting:
                nan, inf = self._bad.get((t, layer, e), (0, 0))
                self._bad[t, layer, e] = nan + int(n_nan[row]), inf + int(n_inf[row])
                self.n_nonfinite[e] += int(n_nan[row] + n_inf[row])


def _finite(rows: torch.Tensor) -> bool:
    """Whether all are: of all ways to see it the least and the greatest are the quickest, in any dtype."""
    return not rows.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all())


class _Run(NamedTuple):
    """Rows of a piece that lie one behind the other, and where they go."""

    piece: int
    start: int
    stop: int
    at: int
    """In the window."""
    before: int
    """Rows of the example before them."""


class _Sink:
    """Takes the tensors of one batch."""

    def __init__(self, window: Window, batch: Batch, padded: dict[str, int]) -> None:
        self._window, self._batch, self._padded = window, batch, padded
        self._source: dict[str, torch.Tensor] = {}
        self._places: dict[tuple[str, bool], torch.Tensor] = {}
        self._sizes: dict[str, list[int]] = {
            axis: [of[e][p] for e, p in batch.of] for axis, of in window._of_piece.items()
        }
        self._of_axis: dict[str, list[_Run] | None] = {}

    def __call__(self, slot: int, tensor: torch.Tensor) -> None:
        window = self._window
        t, layer = window._slots[slot]
        target = window.targets[t]
        if not sum(self._sizes[target.site.axis]):
            return
        if tensor.ndim == 2 and target.site.axis != EXAMPLES:  # The batch is flattened.
            tensor = tensor.reshape(len(self._batch.pieces), -1, tensor.shape[1])
        if len(self._batch.pieces) != tensor.shape[0]:
            raise InvalidInputError(
                f"site {target.site.name!r}: {list(tensor.shape)} for {len(self._batch.pieces)} sequences"
            )
        if tensor.ndim == 4:
            tensor = tensor.flatten(2).transpose(1, 2)
        runs = None
        if tensor.ndim == 3:
            self._check_length(target, tensor)
            runs = self.runs(target.site.axis) if tensor.device.type == "cpu" else None
        if target.pool is None and tensor.dtype != target.dtype:
            tensor = tensor.to(target.dtype)
        if runs is not None and target.pool is None:
            window._put(t, layer, self, tensor, runs)
            return
        if target.pool is None:
            rows = self._rows(target, tensor)
        elif runs is not None:
            rows = torch.stack([self._reduced(target, tensor[run.piece], run) for run in runs])
        else:
            rows = self._pooled(target, self._rows(target, tensor))
        if window._transfer is None or rows.device.type == "cpu":
            window._place(t, layer, self, rows.cpu())
        else:
            window._transfer.send(rows, lambda here: window._place(t, layer, self, here))

    def _check_length(self, target: Target, tensor: torch.Tensor) -> None:
        axis = target.site.axis
        expected = self._padded.get(axis, self._window._grids.get(axis))
        if tensor.shape[1] != expected:
            raise InvalidInputError(
                f"site {target.site.name!r}: {tensor.shape[1]} rows for {expected} tokens of axis {axis!r}"
            )

    def runs(self, axis: str) -> "list[_Run] | None":
        """Where the rows of each piece lie and go, if they are long runs: then they are copied as such."""
        if axis not in self._of_axis:
            of, starts = self._window._of_piece[axis], self._window._starts[axis]
            runs = []
            for i, (piece, (e, p)) in enumerate(zip(self._batch.pieces, self._batch.of, strict=True)):
                rows = rows_of(piece)[axis]
                if len(rows):
                    start, stop = int(rows[0]), int(rows[-1]) + 1
                    if stop - start != len(rows):
                        break
                    before = sum(of[e][:p])
                    runs.append(_Run(i, start, stop, int(starts[e]) + before, before))
            else:
                if sum(self._sizes[axis]) >= _LONG * len(runs):
                    self._of_axis[axis] = runs
            self._of_axis.setdefault(axis, None)
        return self._of_axis[axis]

    def _reduced(self, target: Target, rows: torch.Tensor, run: "_Run") -> torch.Tensor:
        """What the rows of a piece come to, float64 ``[dim]``."""
        wide = rows[run.start : run.stop].to(torch.float64)
        if target.pool == "max":
            return wide.amax(0)
        if target.pool == "weighted":
            wide = wide * torch.arange(1 + run.before, 1 + run.before + len(wide), device="cpu")[:, None]
        return wide.sum(0)

    def _rows(self, target: Target, tensor: torch.Tensor) -> torch.Tensor:
        """The rows that are stored, ``[n, dim]``, piece after piece."""
        if tensor.ndim == 2:
            # It is still the model's, which may go on to write to it before it is copied from a GPU.
            return tensor if tensor.device.type == "cpu" else tensor.clone()
        axis = target.site.axis
        source = self._source.get(f"{axis} {tensor.device}")
        if source is None:
            source = self._sources(axis, tensor.shape[1]).to(tensor.device, non_blocking=True)
            self._source[f"{axis} {tensor.device}"] = source
        return tensor.reshape(-1, tensor.shape[2]).index_select(0, source)

    def _sources(self, axis: str, padded: int) -> torch.Tensor:
        each = [rows_of(piece)[axis] + i * padded for i, piece in enumerate(self._batch.pieces)]
        return torch.from_numpy(np.concatenate(each))

    def _pooled(self, target: Target, rows: torch.Tensor) -> torch.Tensor:
        """One row for each piece that has some, ``[pieces, dim]``, float64 where the device has it."""
        wide = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
        if target.pool == "weighted":
            wide = wide * self._weights(target.site.axis).to(wide)[:, None]
        sizes = torch.tensor([n for n in self._sizes[target.site.axis] if n], device=wide.device)
        how = "max" if target.pool == "max" else "sum"
        return torch.segment_reduce(wide, how, lengths=sizes, axis=0)

    def _weights(self, axis: str) -> torch.Tensor:
        """The place of each row in its example, from 1."""
        of = self._window._of_piece[axis]
        each = [np.arange(of[e][p]) + 1 + sum(of[e][:p]) for e, p in self._batch.of]
        return torch.from_numpy(np.concatenate(each))

    def places(self, target: Target) -> torch.Tensor:
        """Where the rows go in the window: int64 ``[n]``."""
        key = target.site.axis, target.axis == EXAMPLES
        if key not in self._places:
            axis, pooled = key
            of = self._window._of_piece[axis]
            if pooled:
                where = [e for e, p in self._batch.of if of[e][p]]
                self._places[key] = torch.tensor(where, dtype=torch.int64, device="cpu")
            else:
                starts = self._window._starts[axis]
                each = [np.arange(of[e][p]) + starts[e] + sum(of[e][:p]) for e, p in self._batch.of]
                self._places[key] = torch.from_numpy(np.concatenate(each))
        return self._places[key]


def _divided(sums: torch.Tensor, lengths: NDArray[np.int64], pool: str) -> torch.Tensor:
    """What was added up, as the mean that it is to be; zeros for examples without rows."""
    n = torch.from_numpy(lengths).to(torch.float64)[:, None, None]
    if pool == "mean":
        sums = sums / n
    elif pool == "weighted":
        sums = sums / (n * (n + 1) / 2)
    return torch.where(n > 0, sums, 0.0)


def _empty(target: Target, n: int) -> torch.Tensor:
    dtype = target.dtype if target.pool is None else torch.float64
    return torch.empty((n, len(target.site.taps), target.site.dim), dtype=dtype, device="cpu")


def first_or_last(example: Example, kind: str) -> None:
    """Keep of an example the first or the last row that it keeps, on each axis."""
    every = [rows_of(piece) for piece in example.pieces]
    for axis in every[0] if every else ():
        having = [rows for rows in every if len(rows[axis])]
        for rows in every:
            chosen = having and rows is (having[0] if kind == "first" else having[-1])
            one = slice(0, 1) if kind == "first" else slice(-1, None)
            rows[axis] = rows[axis][one if chosen else slice(0, 0)]
