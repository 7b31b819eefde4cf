"""Capturing on a GPU: a Llama of a billion parameters in bfloat16, beside each of the stages by itself.

    python -m benches.capturing_gpu

Stages: the bare forward pass over the same batches; the copy of the same bytes into pinned memory; their way
from there to their places in a window; compressing and writing them. What a capture takes is given over the
slowest of these, and over the bare forward pass. All go to tmpfs. The medians of some rounds, in turns; the
first round does not count.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from unittest import mock

import actstore
import numpy as np
import torch
import transformers
from actstore.capturing.model.loading import load
from actstore.capturing.run import progress

FOLDER = Path("/dev/shm/actstore-bench-gpu")
CONFIG = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
}
N_BATCHES, SIZE, LENGTH = 16, 16, 512
ROUNDS = 2

Batch = dict[str, torch.Tensor]


def seconds(run: Callable[[], float | None]) -> tuple[float, float]:
    """Of a run, the device's part included; and those before its first window, if it has some."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    torch.cuda.synchronize()
    start = time.perf_counter()
    before = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, before or 0.0


def forward(model: torch.nn.Module, batches: list[Batch]) -> None:
    """The model over the batches, with nothing kept."""
    with torch.inference_mode():
        for batch in batches:
            model(**{key: value.cuda() for key, value in batch.items()}, use_cache=False)


def copied(n_bytes: int) -> None:
    """So many bytes to pinned memory, 32 MB at a time."""
    for _ in range(n_bytes // HERE.numel()):
        HERE.copy_(THERE, non_blocking=True)


def placed(n_bytes: int, n_layers: int, dim: int) -> None:
    """So many bytes from pinned memory to rows of a window, layer by layer, as they come."""
    rows = HERE.view(torch.bfloat16).view(-1, dim)
    room = ROOM[: len(rows) * n_layers * dim].view(len(rows), n_layers, dim)
    runs = [slice(i, i + LENGTH) for i in range(0, len(rows), LENGTH)]
    for i in range(n_bytes // HERE.numel()):
        into = room[:, i % n_layers]
        for run in runs:
            into[run] = rows[run]


def written(rows: torch.Tensor, lengths: np.ndarray[Any, Any], times: int, codec: str) -> None:
    """Rows of a window, compressed and written so many times."""
    path = FOLDER / "written.act"
    spec = actstore.SiteSpec(rows.shape[1], rows.shape[2], "bfloat16")
    with actstore.create(path, {"resid": spec}, codec=codec) as writer:  # type: ignore[arg-type]
        for _ in range(times):
            writer.append({"resid": rows}, lengths)


class Watched(progress.ProgressMeter):
    """Remembers when the run began."""

    began = 0.0
    stages: ClassVar[dict[str, float]] = {}

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        Watched.began, Watched.stages = time.perf_counter(), self.seconds


def captured(model: Any, batches: list[Batch], **asked: Any) -> float:
    """A capture, from a model in memory to a store on tmpfs: the seconds before its first window."""
    path = FOLDER / "captured.act"
    start = time.perf_counter()
    with mock.patch.object(progress, "Progress", Watched):
        actstore.capture(path, model, batches, progress=False, overwrite=True, **asked).close()
    return Watched.began - start


def main() -> None:
    """Print the table."""
    global HERE, THERE, ROOM
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.LlamaModel(transformers.LlamaConfig(**CONFIG)).to(torch.bfloat16).eval()
    loaded = load(model)
    n_layers, dim = CONFIG["num_hidden_layers"] + 1, CONFIG["hidden_size"]
    batches = [
        {
            "input_ids": torch.randint(5, CONFIG["vocab_size"], (SIZE, LENGTH)),
            "attention_mask": torch.ones((SIZE, LENGTH), dtype=torch.int64),
        }
        for _ in range(N_BATCHES)
    ]
    n_tokens = N_BATCHES * SIZE * LENGTH
    n_bytes = n_tokens * n_layers * dim * 2
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(
        f"{n_params / 1e9:.2f}e9 parameters, {n_tokens:,} tokens, {n_bytes / 1e9:.1f} GB of rows", flush=True
    )

    THERE = torch.empty(SIZE * LENGTH * dim * 2, dtype=torch.uint8, device="cuda")
    HERE = torch.empty(THERE.numel(), dtype=torch.uint8, pin_memory=True)
    captured(loaded, batches[:2])
    with actstore.open(FOLDER / "captured.act") as store:
        rows = torch.from_numpy(store["resid"].read().view(np.int16)).view(torch.bfloat16)
        lengths = np.diff(store.tokens.offsets)
    ROOM = torch.empty_like(rows).view(-1)
    times = n_bytes // rows.nbytes

    stages = {
        "forward": lambda: forward(model, batches),
        "copy": lambda: copied(n_bytes),
        "place": lambda: placed(n_bytes, n_layers, dim),
        "write, blosc": lambda: written(rows, lengths, times, "blosc"),
        "write, raw": lambda: written(rows, lengths, times, "raw"),
    }
    captures: dict[str, dict[str, Any]] = {
        "capture": {},
        "capture, raw": {"codec": "raw"},
        "capture, 4 layers": {"layers": [4, 8, 12, 16]},
        "capture, last layer, raw": {"layers": -1, "codec": "raw"},
        "capture, pool mean": {"pool": "mean"},
    }
    cases = stages | {
        name: functools.partial(captured, loaded, batches, **asked) for name, asked in captures.items()
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for number in range(-1, ROUNDS):
        for name, run in cases.items():
            found = seconds(run)
            if number >= 0:
                taken[name].append(found)
            stages_of = {stage: round(took, 2) for stage, took in Watched.stages.items()}
            print(f"  {name}: {found[0]:.2f} s, {found[1]:.2f} of it before; {stages_of}", flush=True)
    shutil.rmtree(FOLDER)
    medians = {name: median(whole - before for whole, before in each) for name, each in taken.items()}
    looked = median(before for _, before in taken["capture"])
    print(f"from the first window on; before it {looked:.2f} s (the model is looked at, its weights hashed)")
    for name, found in medians.items():
        rates = f"{n_tokens / found / 1e3:6.0f} k tokens/s  {n_bytes / found / 1e9:6.1f} GB/s"
        print(f"{name:<26} {found:6.3f} s  {rates}")
    for name, codec in (("capture", "blosc"), ("capture, raw", "raw")):
        slowest = max(("forward", "copy", f"write, {codec}"), key=lambda stage: medians[stage])
        print(f"{name}: {medians[slowest] / medians[name]:.0%} of the speed of its slowest stage, {slowest}")
    for name in captures:
        print(f"{name}: {medians[name] / medians['forward']:.2f}x of bare forward")


HERE: torch.Tensor
THERE: torch.Tensor
ROOM: torch.Tensor

if __name__ == "__main__":
    main()
