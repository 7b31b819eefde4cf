"""Capturing on a GPU: nothing is read before its copy has ended, and memory is that of a window."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from capture_cases import bert, of_text, texts
from capture_models import batch, fresh

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SLEEP = 50_000_000
"""Cycles that the GPU is busy before what is copied is there: tens of milliseconds."""


def late(n: int, size: int) -> list[Any]:
    """Tensors of 0, 1, 2, ..., each of which is there only after a while."""
    out = []
    for i in range(n):
        torch.cuda._sleep(SLEEP)
        out.append(torch.full((size,), float(i), device="cuda"))
    return out


def received(n: int, n_buffers: int) -> list[list[float]]:
    """What comes out of a transfer of such: the distinct values of each."""
    from actstore.capturing.forward.transfer import Transfer

    transfer = Transfer(n_buffers)
    seen: list[list[float]] = []
    for tensor in late(n, 1 << 20):
        transfer.send(tensor, lambda here: seen.append(here.unique().tolist()))
    transfer.drain()
    transfer.close()
    return seen


@pytest.mark.parametrize("n_buffers", [1, 2, 8])
def test_a_buffer_is_read_after_its_copy(n_buffers: int) -> None:
    assert received(12, n_buffers) == [[float(i)] for i in range(12)]


def test_without_waiting_it_would_be_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the test above can fail: with no event waited for, buffers hold what was there before."""
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: None)
    assert received(12, 2) != [[float(i)] for i in range(12)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "vit"])
def test_the_same_as_on_the_cpu(name: str, memory_path: Path) -> None:
    model, inputs = fresh(name), batch(name)
    prefix = "encoder." if name == "t5" else ""
    sites = [f"{prefix}{site}" for site in ("resid", "attn_out", "mlp_out", "q")]
    with actstore.capture(memory_path / "cpu.act", model, inputs, sites=sites, progress=False) as store:
        expected = {site: store[site].read() for site in sites}
    model = model.to("cuda")
    with actstore.capture(memory_path / "cuda.act", model, inputs, sites=sites, progress=False) as store:
        for site in sites:
            np.testing.assert_allclose(store[site].read(), expected[site], atol=2e-3, err_msg=site)


@pytest.mark.parametrize("pool", [None, "mean", "max", "last"])
def test_many_windows_are_those_of_a_plain_pass(pool: str | None, memory_path: Path) -> None:
    """Against hidden states taken without any of this, on the same GPU."""
    arguments = of_text(bert().to("cuda"), texts=texts(200), pool=pool)
    with actstore.capture(memory_path / "x.act", **arguments) as store:
        rows = store["resid"]
        for i, text in enumerate(texts(200)):
            given = arguments["tokenizer"](text, return_tensors="pt").to("cuda")
            with torch.inference_mode():
                states = arguments["model"](**given, output_hidden_states=True).hidden_states
            wanted = torch.stack([state[0] for state in states], 1).double().cpu()
            if pool is not None:
                wanted = {"mean": wanted.mean(0), "max": wanted.amax(0), "last": wanted[-1]}[pool][None]
            np.testing.assert_allclose(rows.example(i), wanted.numpy(), atol=2e-3)


@pytest.mark.slow
def test_memory_of_the_device_is_constant(memory_path: Path) -> None:
    arguments = of_text(bert(dim=512, n_layers=8).to("cuda"), texts=texts(400))
    peaks = []
    for times in (1, 1, 20):
        torch.cuda.reset_peak_memory_stats()
        path = memory_path / f"{len(peaks)}.act"
        actstore.capture(path, **arguments | {"texts": texts(400 * times)}).close()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= 1.05 * peaks[1]
