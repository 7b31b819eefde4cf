"""Memory of a capture: bounded by a window, however long the input is."""

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import pytest

pytest.importorskip("transformers")

from capture_cases import bert, images, of_text, texts, tokenizer, vit
from capture_nursery import nursery
from limited import Tell, anonymous_memory, in_child
from tiny_models import WORDS

GIB = 1 << 30


class Peak:
    """The most memory that was in use, in bytes, and when."""

    def __init__(self) -> None:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, anonymous_memory())

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def sentences(n: int, seed: int, most: int = 26) -> Iterator[str]:
    """Made as they are asked for, so that they take no memory themselves."""
    rng = random.Random(seed)
    words = WORDS.split()
    for _ in range(n):
        yield " ".join(rng.choices(words, k=rng.randrange(most // 6, most)))


def capture_much(tell: Tell, folder: Path, n: int, most: int, more: dict[str, Any]) -> tuple[int, int]:
    """The peaks of a short capture and of one 20 times as long, after one that warms up."""
    import torch

    torch.set_num_threads(1)
    model = bert(dim=256, n_layers=2)
    # A window is small against the whole of even the short one.
    common = {"tokenizer": tokenizer(), "batch_tokens": 512, "window": 4, "progress": False, **more}
    peaks = []
    for i, times in enumerate((1, 1, 20)):
        tell(f"capture {i}")
        with Peak() as peak:
            store = actstore.capture(folder / f"{i}.act", model, sentences(n * times, i, most), **common)
        assert store.n_examples == n * times
        store.close()
        peaks.append(peak.bytes)
    return peaks[1], peaks[2]


@pytest.mark.slow
@pytest.mark.parametrize("pool", [None, "mean"])
def test_twenty_times_as_long(memory_path: Path, pool: str | None) -> None:
    """The long one has 180 MB of tokens or 61 MB of examples; what waits to be compressed is some of them."""
    n, most, more = (1000, 7, {"pool": pool}) if pool else (400, 26, {"dtype": "bfloat16"})
    short, long = in_child(capture_much, memory_path, n, most, more, room=64 * GIB, seconds=300)
    assert long - short < 36 << 20


def hold_nothing(tell: Tell, folder: Path) -> tuple[int, int]:
    """Peaks of a capture of wide logits, and of the same of nothing wide."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=80, n_embd=64, n_layer=12, n_head=2, n_positions=64, n_inner=8192
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    common: dict[str, Any] = {"tokenizer": tokenizer(), "progress": False, "window": 2, "batch_tokens": 4096}
    peaks = []
    for i in range(2):
        tell(f"capture {i}")
        with Peak() as peak:
            before = anonymous_memory()
            actstore.capture(folder / f"{i}.act", model, sentences(300, i), sites=["resid"], **common).close()
        peaks.append(peak.bytes - before)
    return peaks[0], peaks[1]


@pytest.mark.slow
def test_activations_within_are_not_kept(memory_path: Path) -> None:
    """12 layers' mlp activations of a batch are 12 x 4096 x 8192 floats = 1.6 GB; of one layer 134 MB."""
    _, again = in_child(hold_nothing, memory_path, room=64 * GIB, seconds=300)
    assert again < 800 << 20


# ---- windows ----


def window_of(model: Any, given: Any, *, pool: str | None = None, **more: Any) -> tuple[int, int]:
    """Examples of a first window, and the bytes that its rows will take."""
    from actstore.capturing.inputs.sample import Sample
    from actstore.capturing.inputs.stream import InputStream
    from actstore.capturing.model.loading import load
    from actstore.capturing.run.groups import GroupStream
    from actstore.capturing.session import CaptureOptions, Session, encoder_for

    loaded = load(model, tokenizer() if isinstance(given[0], str) else None)
    options = CaptureOptions(**{"sites": ("resid",), "pool": pool, **more})
    encoder = encoder_for(loaded)
    sample = Sample(encoder, list(InputStream(given[:2])))  # type: ignore[arg-type]
    with Session.prepare(loaded, encoder, sample.examples(), options) as session:
        groups = GroupStream(session, InputStream(given), sample).window(session.window_tokens)
        examples = [example for group in groups for example in group.examples]
        n_rows = sum(
            len(piece.rows["tokens"]) for example in examples for piece in example.pieces if piece.rows
        )
        n_bytes = 0
        for target in session.targets:
            of = len(target.site.labels) * target.site.dim
            n_bytes += of * (8 * len(examples) if pool else target.dtype.itemsize * n_rows)
        return len(examples), n_bytes


def test_windows_of_images_are_bounded() -> None:
    """By rows: 64 tokens twice are some images of 17 rows, not 128."""
    n, _ = window_of(vit(), images(150), batch_tokens=64, window=2)
    assert n <= 10


@pytest.mark.slow
@pytest.mark.parametrize("pool", [None, "mean"])
def test_rows_of_a_window_are_a_gibibyte(pool: str | None) -> None:
    """Also where only one row of each example is kept, and in float64 while it is added up."""
    n, n_bytes = window_of(bert(dim=512, n_layers=12), ["cat"] * 60_000, pool=pool, window=64)
    assert n > 100
    assert n_bytes <= 1.05 * GIB


@pytest.mark.slow
def test_logits_of_a_large_vocabulary() -> None:
    """Half a megabyte a token: a batch of 8,192 tokens would be 4 GiB."""
    import transformers

    config = transformers.GPT2Config(vocab_size=128_000, n_embd=16, n_layer=1, n_head=2, n_positions=48)
    model = transformers.GPT2LMHeadModel(config).eval()
    _, n_bytes = window_of(model, texts(1000), sites=("logits",))
    assert n_bytes <= 1.05 * GIB


@pytest.mark.slow
def test_commits_by_the_clock_waste_little(memory_path: Path) -> None:
    """A slow model commits now and then: what is rewritten stays below what is written."""
    from actstore.capturing.run import run

    path = memory_path / "x.act"
    nursery().run(
        "slowly",
        path,
        case="share",
        n=600,
        pause=0.05,
        commit_seconds=run._COMMIT_SECONDS,
        texts=texts(600),
        seconds=120,
    )
    nursery().run("slowly", memory_path / "whole.act", case="share", n=600, commit_seconds=1e9)
    sizes = []
    for one in (path, memory_path / "whole.act"):
        with actstore.open(one) as store:
            sizes.append(sum(site["stored_bytes"] for site in store.info()["sites"].values()))
    assert sizes[0] <= 2 * sizes[1]


def test_many_commits_leave_fewer_holes_than_rows(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where chunks fill between commits, what is rewritten stays below what is written."""
    from actstore.capturing.run import run

    arguments = of_text(bert(dim=256), texts=texts(1200), batch_tokens=512, window=1)
    sizes = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(run, "_COMMIT_SECONDS", seconds)
        with actstore.capture(memory_path / f"{seconds}.act", **arguments) as store:
            info = store.info()
            sizes.append(
                (info["sites"]["resid"]["stored_bytes"], info["hole_bytes"], info["parts"][0]["record"])
            )
    assert sizes[0][2] >= 20
    assert sizes[1][2] <= 2
    assert sizes[0][1] > 0
    assert sizes[0][0] <= 2 * sizes[1][0]


def test_nothing_is_kept_afterwards(memory_path: Path) -> None:
    """Neither the windows nor the inputs outlive a capture."""
    import gc
    import weakref

    class Text(str):
        """One that can be referred to weakly."""

    model = bert()
    given = [Text(text) for text in texts(100)]
    alive = weakref.WeakSet(given)
    actstore.capture(memory_path / "x.act", **of_text(model, texts=given)).close()
    given.clear()
    gc.collect()
    time.sleep(0)
    assert len(alive) == 0
