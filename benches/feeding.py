"""Feeding a training loop: rows a second out of a DataLoader, an epoch in batches of 4,096 rows.

All give torch tensors in the stored dtype. The peers fetch a whole batch in one step (the sampler hands over
the batch's rows), not row by row as a map-style dataset does by itself, which is many times slower.
Workers stay alive between the epochs, so that what is timed is the feeding and not their start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import actstore
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    get_worker_info,
)

from .data import DataSet
from .measure import OURS, Case, interleave
from .store import SITE, Bench

BATCH_ROWS = 4096
SHARDS = 16
WORKERS = (0, 2)

Layer = int | None  # one layer, or all


class MemmapRows(Dataset[torch.Tensor]):
    """A mapped ``.npy`` file; an index is a list of rows: ``[rows, dim]``, or all layers."""

    def __init__(self, path: Path, dtype: torch.dtype, layer: Layer, in_order: bool) -> None:
        self.array = np.load(path, mmap_mode="c").view(np.int16).view(np.ndarray)
        self.dtype, self.layer, self.in_order = dtype, layer, in_order

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: list[int]) -> torch.Tensor:
        # Rows that follow one another are a slice, which NumPy copies several times faster. Without the
        # copy it would be a view of the file, and nothing would have been read.
        if self.in_order:
            part = slice(rows[0], rows[-1] + 1)
            taken = np.array(self.array[part] if self.layer is None else self.array[part, self.layer])
        else:
            taken = self.array[rows] if self.layer is None else self.array[rows, self.layer]
        return torch.from_numpy(taken).view(self.dtype)


class SafetensorsRows(IterableDataset[torch.Tensor]):
    """Files in a random order, and the rows of each in a random order: the usual shuffle of shards."""

    def __init__(self, files: list[Path], layer: Layer) -> None:
        self.files, self.layer = files, layer

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        order = torch.randperm(len(self.files), generator=torch.Generator().manual_seed(0)).tolist()
        for number in order[first::step]:
            with safe_open(self.files[number], framework="pt") as file:
                if self.layer is None:
                    rows = file.get_tensor("acts")
                else:
                    rows = file.get_slice("acts")[:, self.layer]
            for batch in torch.randperm(len(rows)).split(BATCH_ROWS):
                yield rows[batch]


def write_shards(folder: Path, data: DataSet, dtype: torch.dtype) -> list[Path]:
    """The data set as safetensors files of equal numbers of rows."""
    folder.mkdir()
    bits = torch.from_numpy(data.acts.view(np.int16))
    files = []
    for number, rows in enumerate(bits.chunk(SHARDS)):
        files.append(folder / f"{number:03}.safetensors")
        save_file({"acts": rows.contiguous().view(dtype)}, files[-1])
    return files


def feed(bench: Bench) -> None:
    """One layer and all layers, without workers and with two."""
    n, layers, _ = bench.data.acts.shape
    dtype = torch.bfloat16 if bench.data.dtype == "bfloat16" else torch.float16
    files = write_shards(bench.tmpfs / "safetensors", bench.data, dtype)
    store = actstore.open(bench.blosc)
    for layer in (layers // 2, None):
        what = "all layers" if layer is None else "one layer"
        site = store[SITE].select(layers=layer)
        for workers in WORKERS:
            loaders = {
                OURS: _whole(_ours(site, True), workers),
                "actstore, full permutation": _whole(_ours(site, "full"), workers),
                "actstore, in order": _whole(_ours(site, False), workers),
                "np.memmap, full permutation": _by_rows(bench, dtype, layer, False, workers),
                "np.memmap, in order": _by_rows(bench, dtype, layer, True, workers),
                "safetensors, shards shuffled": _whole(SafetensorsRows(files, layer), workers),
            }
            expected = _row_sums(
                torch.from_numpy(_rows(bench.data.acts, layer).view(np.int16)).split(BATCH_ROWS)
            )
            for name, loader in loaders.items():
                if not np.array_equal(_row_sums(loader), expected):
                    raise AssertionError(f"{name}: an epoch is not every row once")
            cases = {name: Case(_epoch(loader)) for name, loader in loaders.items()}
            samples = interleave(cases, max(1, bench.rounds.scan // 2))
            label = f"{bench.data.label}, {what}, {workers} workers"
            bench.report.timed("feed a DataLoader", label, samples, n, unit="Mrow/s")
            del loaders, cases  # and the workers


def _ours(site: actstore.Site, shuffle: Literal[False, True, "full"]) -> Any:
    return site.torch_dataset(BATCH_ROWS, shuffle=shuffle)


def _whole(dataset: Any, workers: int) -> DataLoader[torch.Tensor]:
    """A loader of a dataset that makes its own batches."""
    return DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def _by_rows(
    bench: Bench, dtype: torch.dtype, layer: Layer, in_order: bool, workers: int
) -> DataLoader[torch.Tensor]:
    dataset = MemmapRows(bench.npy, dtype, layer, in_order)
    rows = SequentialSampler(dataset) if in_order else RandomSampler(dataset)
    batches = BatchSampler(rows, BATCH_ROWS, drop_last=False)
    return DataLoader(
        dataset, sampler=batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )


def _epoch(loader: DataLoader[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def _rows(acts: NDArray[Any], layer: Layer) -> NDArray[Any]:
    return acts if layer is None else np.ascontiguousarray(acts[:, layer])


def _row_sums(batches: Any) -> NDArray[np.int64]:
    """The sums of each row's bits, sorted: equal for the same rows in any order."""
    return np.sort(np.concatenate([batch.view(torch.int16).flatten(1).sum(1).numpy() for batch in batches]))
