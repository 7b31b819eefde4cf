"""The row buffer: the rows of a window of examples in input order, filled batch by batch.

A hook point yields a padded ``[batch, token, dim]``. The rows to store are gathered on the model's device at
once, so that no padded tensor outlives its hook. From there they go to their position in the buffer: directly
on a CPU, through pinned memory from a GPU (:mod:`actstore.capturing.forward.transfer`).

With `pool`, the rows of each piece are reduced to one in float64, and the pieces of an example are combined.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...disk.layout import EXAMPLES
from ...errors import InvalidInputError
from ..discover.sites import CapturedSite
from ..inputs.batches import Batch
from ..inputs.example import Example
from ..inputs.sizes import stored_rows
from .transfer import Transfer

_LONG_RUN = 32
"""Mean number of rows per piece from which copying each piece separately is faster than one gather."""


@dataclass(frozen=True)
class Target:
    """A captured site with the dtype and pooling that it is stored with."""

    site: CapturedSite
    dtype: torch.dtype
    pool: str | None

    @property
    def row_bytes(self) -> int:
        """Memory of one row of all layers in the buffer."""
        itemsize = self.dtype.itemsize if self.pool is None else torch.float64.itemsize
        return itemsize * len(self.site.labels) * self.site.dim

    @property
    def axis(self) -> str:
        """The site's axis in the store."""
        return EXAMPLES if self.pool is not None else self.site.axis


class RowBuffer:
    """Memory for the rows of a window of examples, reused for the next window.

    Parameters
    ----------
    targets : sequence of Target
    grids : mapping of str to int
        For images, the number of rows of a piece by axis.
    transfer : Transfer, optional
        Copies rows from a GPU; None if the model runs on the CPU.

    Attributes
    ----------
    examples : list of Example
        The examples of the window.
    lengths, starts : dict
        For each axis, int64: the number of rows of each example, and where they start in the buffer.
    piece_rows : dict
        For each axis and example, the number of rows of each piece.
    slots : list of (int, int)
        For each hook point, the number of its target and the position of its layer.
    n_nonfinite : int64 ``[n_examples]``
        The number of non-finite values of each example.
    """

    def __init__(self, targets: Sequence[Target], grids: dict[str, int], transfer: Transfer | None) -> None:
        self.targets = list(targets)
        self.grids, self.transfer = grids, transfer
        self.slots = [
            (t, layer) for t, target in enumerate(targets) for layer in range(len(target.site.hook_points))
        ]
        self._arrays: list[torch.Tensor] = [_empty(target, 0) for target in targets]
        self._nonfinite: dict[tuple[int, int, int], tuple[int, int]] = {}
        self._counting = threading.Lock()  # Rows from a GPU arrive in another thread.

    @property
    def hook_points(self) -> list[Any]:
        """The hook points to read in each forward pass, in the order of the sink's slots."""
        return [self.targets[t].site.hook_points[layer] for t, layer in self.slots]

    def begin(self, examples: Sequence[Example]) -> None:
        """Make room for examples, and discard the previous ones."""
        self.examples = list(examples)
        axes = {target.site.axis for target in self.targets}
        self.piece_rows = {
            axis: [[self._n_rows(piece, axis) for piece in example.pieces] for example in examples]
            for axis in axes
        }
        self.lengths = {
            axis: np.array([sum(counts) for counts in self.piece_rows[axis]], np.int64) for axis in axes
        }
        self.starts = {axis: np.concatenate([[0], np.cumsum(n)]) for axis, n in self.lengths.items()}
        self._nonfinite.clear()
        self.n_nonfinite = np.zeros(len(examples), np.int64)
        for t, target in enumerate(self.targets):
            n = len(examples) if target.axis == EXAMPLES else int(self.starts[target.axis][-1])
            if self._arrays[t].shape[0] < n:
                self._arrays[t] = _empty(target, max(n, self._arrays[t].shape[0] * 5 // 4))
            if target.axis == EXAMPLES:
                self._arrays[t][:n] = -torch.inf if target.pool == "max" else 0

    def _n_rows(self, piece: Any, axis: str) -> int:
        if axis == EXAMPLES:
            return 1
        return len(stored_rows(piece)[axis])

    def free(self) -> None:
        """Release the memory. Tensors that `rows` returned stay valid."""
        self._arrays = [_empty(target, 0) for target in self.targets]

    def sink(self, batch: Batch, padded: dict[str, int]) -> "_BatchSink":
        """The sink for the tensors of one batch, padded to these lengths by axis."""
        return _BatchSink(self, batch, padded)

    # ---- reading ----

    def rows(self, start: int, stop: int) -> dict[str, torch.Tensor]:
        """The rows ``[rows, layer, dim]`` of a range of examples by site, in their stored dtype."""
        out = {}
        for target, array in zip(self.targets, self._arrays, strict=True):
            if target.axis != EXAMPLES:
                starts = self.starts[target.axis]
                out[target.site.name] = array[int(starts[start]) : int(starts[stop])]
            elif target.pool is None:
                out[target.site.name] = array[start:stop]
            else:
                lengths = self.lengths[target.site.axis][start:stop]
                out[target.site.name] = _pooled_rows(array[start:stop], lengths, target.pool).to(target.dtype)
        return out

    def nonfinite(self, start: int, stop: int) -> dict[tuple[str, int], tuple[int, int, str]]:
        """Non-finite values of a range of examples.

        Returns
        -------
        dict
            By site and layer label: the number of NaN, the number of infinities, and the first example with
            some.
        """
        out: dict[tuple[str, int], tuple[int, int, str]] = {}
        for (t, layer, e), (n_nan, n_inf) in sorted(self._nonfinite.items()):
            if not start <= e < stop:
                continue
            site = self.targets[t].site
            key = (site.name, site.labels[layer])
            before = out.get(key, (0, 0, self.examples[e].id))
            out[key] = (before[0] + n_nan, before[1] + n_inf, before[2])
        return out

    def store_rows(self, t: int, layer: int, sink: "_BatchSink", rows: torch.Tensor) -> None:
        """Store rows of one layer, which are on the CPU."""
        target = self.targets[t]
        positions = sink.positions(target)
        destination = self._arrays[t][:, layer]
        runs = sink.runs(target.site.axis) if target.pool is None and target.axis != EXAMPLES else None
        if runs is not None:
            done = 0
            for run in runs:
                n = run.stop - run.start
                destination[run.at : run.at + n] = rows[done : done + n]
                done += n
        elif target.pool is None:
            destination.index_copy_(0, positions, rows)
        elif target.pool == "max":
            np.maximum.at(destination.numpy(), positions.numpy(), rows.numpy())
        else:
            destination.index_add_(0, positions, rows.to(destination.dtype))
        if not _finite(rows):
            self._count(t, layer, rows, positions)

    def store_runs(
        self, t: int, layer: int, sink: "_BatchSink", padded: torch.Tensor, runs: Sequence["_RowRun"]
    ) -> None:
        """Store long runs of a padded ``[batch, token, dim]``, without gathering them first."""
        destination = self._arrays[t][:, layer]
        for run in runs:
            destination[run.at : run.at + run.stop - run.start] = padded[run.piece, run.start : run.stop]
        if not _finite(padded):  # Only the padding may be non-finite.
            rows = torch.cat([padded[run.piece, run.start : run.stop] for run in runs])
            self._count(t, layer, rows, sink.positions(self.targets[t]))

    def _count(self, t: int, layer: int, rows: torch.Tensor, positions: torch.Tensor) -> None:
        """Count NaN and infinities by layer and example."""
        target = self.targets[t]
        n_nan, n_inf = torch.isnan(rows).sum(1), torch.isinf(rows).sum(1)
        for row in torch.nonzero(n_nan + n_inf)[:, 0].tolist():
            place = int(positions[row])
            starts = self.starts[target.site.axis] if target.axis != EXAMPLES else None
            e = place if starts is None else int(np.searchsorted(starts, place, side="right")) - 1
            with self._counting:
                nan, inf = self._nonfinite.get((t, layer, e), (0, 0))
                self._nonfinite[t, layer, e] = nan + int(n_nan[row]), inf + int(n_inf[row])
                self.n_nonfinite[e] += int(n_nan[row] + n_inf[row])


def _finite(rows: torch.Tensor) -> bool:
    """Whether all values are finite. Checking the minimum and maximum is fastest in any dtype."""
    return not rows.numel() or bool(torch.isfinite(torch.stack(torch.aminmax(rows))).all())


class _RowRun(NamedTuple):
    """A contiguous run of a piece's rows, and its destination."""

    piece: int
    start: int
    stop: int
    at: int
    """Position in the buffer."""
    before: int
    """Number of the example's rows before the run."""


class _BatchSink:
    """Stores the tensors of one batch in a row buffer."""

    def __init__(self, buffer: RowBuffer, batch: Batch, padded: dict[str, int]) -> None:
        self._buffer, self._batch, self._padded = buffer, batch, padded
        self._source: dict[str, torch.Tensor] = {}
        self._positions: dict[tuple[str, bool], torch.Tensor] = {}
        self._sizes: dict[str, list[int]] = {
            axis: [counts[e][p] for e, p in batch.origins] for axis, counts in buffer.piece_rows.items()
        }
        self._runs: dict[str, list[_RowRun] | None] = {}

    def __call__(self, slot: int, tensor: torch.Tensor) -> None:
        buffer = self._buffer
        t, layer = buffer.slots[slot]
        target = buffer.targets[t]
        if not sum(self._sizes[target.site.axis]):
            return
        if tensor.ndim == 2 and target.site.axis != EXAMPLES:  # The batch is flattened.
            tensor = tensor.reshape(len(self._batch.pieces), -1, tensor.shape[1])
        if len(self._batch.pieces) != tensor.shape[0]:
            raise InvalidInputError(
                f"site {target.site.name!r} has shape {list(tensor.shape)} "
                f"for {len(self._batch.pieces)} sequences"
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
            buffer.store_runs(t, layer, self, tensor, runs)
            return
        if target.pool is None:
            rows = self._rows(target, tensor)
        elif runs is not None:
            rows = torch.stack([self._reduced(target, tensor[run.piece], run) for run in runs])
        else:
            rows = self._pooled(target, self._rows(target, tensor))
        if buffer.transfer is None or rows.device.type == "cpu":
            buffer.store_rows(t, layer, self, rows.cpu())
        else:
            buffer.transfer.send(rows, lambda host_rows: buffer.store_rows(t, layer, self, host_rows))

    def _check_length(self, target: Target, tensor: torch.Tensor) -> None:
        axis = target.site.axis
        expected = self._padded.get(axis, self._buffer.grids.get(axis))
        if tensor.shape[1] != expected:
            raise InvalidInputError(
                f"site {target.site.name!r} has {tensor.shape[1]} rows for {expected} tokens on axis {axis!r}"
            )

    def runs(self, axis: str) -> "list[_RowRun] | None":
        """The runs of stored rows of each piece, or None if they are not contiguous or too short."""
        if axis not in self._runs:
            counts, starts = self._buffer.piece_rows[axis], self._buffer.starts[axis]
            runs = []
            for i, (piece, (e, p)) in enumerate(zip(self._batch.pieces, self._batch.origins, strict=True)):
                rows = stored_rows(piece)[axis]
                if len(rows):
                    start, stop = int(rows[0]), int(rows[-1]) + 1
                    if stop - start != len(rows):
                        break
                    before = sum(counts[e][:p])
                    runs.append(_RowRun(i, start, stop, int(starts[e]) + before, before))
            else:
                if sum(self._sizes[axis]) >= _LONG_RUN * len(runs):
                    self._runs[axis] = runs
            self._runs.setdefault(axis, None)
        return self._runs[axis]

    def _reduced(self, target: Target, rows: torch.Tensor, run: "_RowRun") -> torch.Tensor:
        """Reduce the rows of a piece, float64 ``[dim]``."""
        wide = rows[run.start : run.stop].to(torch.float64)
        if target.pool == "max":
            return wide.amax(0)
        if target.pool == "weighted":
            wide = wide * torch.arange(1 + run.before, 1 + run.before + len(wide), device="cpu")[:, None]
        return wide.sum(0)

    def _rows(self, target: Target, tensor: torch.Tensor) -> torch.Tensor:
        """Gather the rows to store, ``[n, dim]``, piece by piece."""
        if tensor.ndim == 2:
            # The model owns the tensor and may overwrite it before it is copied from a GPU.
            return tensor if tensor.device.type == "cpu" else tensor.clone()
        axis = target.site.axis
        source = self._source.get(f"{axis} {tensor.device}")
        if source is None:
            source = self._sources(axis, tensor.shape[1]).to(tensor.device, non_blocking=True)
            self._source[f"{axis} {tensor.device}"] = source
        return tensor.reshape(-1, tensor.shape[2]).index_select(0, source)

    def _sources(self, axis: str, padded: int) -> torch.Tensor:
        each = [stored_rows(piece)[axis] + i * padded for i, piece in enumerate(self._batch.pieces)]
        return torch.from_numpy(np.concatenate(each))

    def _pooled(self, target: Target, rows: torch.Tensor) -> torch.Tensor:
        """Reduce the rows of each non-empty piece, ``[pieces, dim]``, in float64 where supported."""
        wide = rows.to(torch.float32 if rows.device.type == "mps" else torch.float64)
        if target.pool == "weighted":
            wide = wide * self._weights(target.site.axis).to(wide)[:, None]
        sizes = torch.tensor([n for n in self._sizes[target.site.axis] if n], device=wide.device)
        reduction = "max" if target.pool == "max" else "sum"
        return torch.segment_reduce(wide, reduction, lengths=sizes, axis=0)

    def _weights(self, axis: str) -> torch.Tensor:
        """The position of each row in its example, from 1."""
        counts = self._buffer.piece_rows[axis]
        each = [np.arange(counts[e][p]) + 1 + sum(counts[e][:p]) for e, p in self._batch.origins]
        return torch.from_numpy(np.concatenate(each))

    def positions(self, target: Target) -> torch.Tensor:
        """Positions of the rows in the buffer: int64 ``[n]``."""
        key = target.site.axis, target.axis == EXAMPLES
        if key not in self._positions:
            axis, pooled = key
            counts = self._buffer.piece_rows[axis]
            if pooled:
                where = [e for e, p in self._batch.origins if counts[e][p]]
                self._positions[key] = torch.tensor(where, dtype=torch.int64, device="cpu")
            else:
                starts = self._buffer.starts[axis]
                each = [
                    np.arange(counts[e][p]) + starts[e] + sum(counts[e][:p]) for e, p in self._batch.origins
                ]
                self._positions[key] = torch.from_numpy(np.concatenate(each))
        return self._positions[key]


def _pooled_rows(sums: torch.Tensor, lengths: NDArray[np.int64], pool: str) -> torch.Tensor:
    """Turn sums into means; zeros for examples without rows."""
    n = torch.from_numpy(lengths).to(torch.float64)[:, None, None]
    if pool == "mean":
        sums = sums / n
    elif pool == "weighted":
        sums = sums / (n * (n + 1) / 2)
    return torch.where(n > 0, sums, 0.0)


def _empty(target: Target, n: int) -> torch.Tensor:
    dtype = target.dtype if target.pool is None else torch.float64
    return torch.empty((n, len(target.site.hook_points), target.site.dim), dtype=dtype, device="cpu")


def first_or_last(example: Example, kind: str) -> None:
    """Restrict an example to the first or the last of its stored rows, on each axis."""
    rows_by_piece = [stored_rows(piece) for piece in example.pieces]
    for axis in rows_by_piece[0] if rows_by_piece else ():
        nonempty = [rows for rows in rows_by_piece if len(rows[axis])]
        for rows in rows_by_piece:
            chosen = nonempty and rows is (nonempty[0] if kind == "first" else nonempty[-1])
            one = slice(0, 1) if kind == "first" else slice(-1, None)
            rows[axis] = rows[axis][one if chosen else slice(0, 0)]
