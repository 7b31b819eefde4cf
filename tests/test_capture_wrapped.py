"""Models in wrappers, with adapters, with their weights elsewhere: the same rows as without."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.capturing import available

pytest.importorskip("transformers")

import torch
import trained_tokenizers
import transformers
from capture_models import batch, built, fresh, real, stirred
from capture_oracle import truth
from torch import nn


class Adapted(nn.Module):
    """As PEFT wraps a model: any arguments go on, attributes are the model's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


class LowRank(nn.Module):
    """A linear map with a small one beside it."""

    def __init__(self, base: nn.Module, width: int, out: int) -> None:
        super().__init__()
        self.base_layer = base
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, out, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(x))


def wrapped(kind: str, model: Any) -> Any:
    if kind == "compiled":
        return torch.compile(model)
    if kind == "data-parallel":
        return nn.DataParallel(model)
    return Adapted(model)


@pytest.mark.parametrize("kind", ["compiled", "data-parallel", "adapted"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama"])
def test_wrapped_models(kind: str, name: str, memory_path: Path) -> None:
    model = wrapped(kind, fresh(name))
    expected = truth(name, built(name), batch(name))
    sites = [site for site in expected if not site.endswith("_rot")]
    store = actstore.capture(memory_path / "run.act", model, batch(name), sites=sites, progress=False)
    for site in sites:
        decoder = name == "t5" and not site.startswith("encoder.")
        mask = batch(name)["decoder_attention_mask" if decoder else "attention_mask"]
        wanted = torch.stack([real(tensor, mask) for tensor in expected[site].values()], 1)
        np.testing.assert_array_equal(store[site].read(), wanted.numpy(), err_msg=site)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_wrapped_models_take_texts(name: str, memory_path: Path) -> None:
    """Token types that a tokenizer gives do not reach a model that would not have taken them."""
    tokenizer = trained_tokenizers.wordpiece()
    many = ["one two three", "four", "", "a b c d e f g"]
    rows = []
    for i, model in enumerate((built(name), Adapted(fresh(name)))):
        store = actstore.capture(
            memory_path / str(i), model, many, tokenizer=tokenizer, sites=["resid"], progress=False
        )
        rows.append(store["resid"].read())
    np.testing.assert_array_equal(rows[0], rows[1])
    assert len(rows[0])


def test_adapters_of_low_rank(memory_path: Path) -> None:
    """What their maps give is the sum: `q` is what enters attention, not the base layer's share of it."""
    model = fresh("llama")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for block in model.model.layers:
            block.self_attn.q_proj = LowRank(block.self_attn.q_proj, 32, 32)
            block.mlp.down_proj = LowRank(block.mlp.down_proj, 48, 32)
    model = Adapted(stirred(model))
    inputs = batch("llama")
    got = {}
    handles = []
    for i, block in enumerate(model.base_model.model.layers):
        for site, module in {"q": block.self_attn.q_proj, "mlp_out": block.mlp}.items():
            handles.append(
                module.register_forward_hook(
                    lambda module, args, result, key=(site, i): got.__setitem__(key, result.clone())
                )
            )
        handles.append(
            block.register_forward_hook(
                lambda module, args, result, key=("resid", i + 1): got.__setitem__(key, result.clone())
            )
        )
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    listed = {one["site"] for one in available(model, sample=inputs)}
    assert {"resid", "attn_out", "mlp_out"} <= listed
    sites = {"resid": [1, 2, 3], "mlp_out": [0, 1, 2]} | ({"q": [0, 1, 2]} if "q" in listed else {})
    store = actstore.capture(memory_path / "run.act", model, inputs, sites=sites, progress=False)
    for site, labels in sites.items():
        wanted = torch.stack([real(got[site, i], inputs["attention_mask"]) for i in labels], 1)
        np.testing.assert_array_equal(store[site].read(), wanted.numpy(), err_msg=site)


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_models_whose_weights_are_elsewhere(kind: str, memory_path: Path) -> None:
    """Offloaded by accelerate, as ``device_map`` does it: they are brought as they are needed."""
    accelerate = pytest.importorskip("accelerate")
    model = fresh("llama")
    sites = ["resid", "mlp_out", "q"]
    with actstore.capture(
        memory_path / "whole.act", model, batch("llama"), sites=sites, progress=False
    ) as store:
        expected, identity = {name: store[name].read() for name in sites}, store.identity
    if kind == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(memory_path / "weights"), execution_device=torch.device("cpu"))
    with actstore.capture(
        memory_path / "run.act", model, batch("llama"), sites=sites, progress=False
    ) as store:
        assert store.identity == identity
        for name in sites:
            np.testing.assert_array_equal(store[name].read(), expected[name], err_msg=name)


def test_weights_that_are_nowhere(memory_path: Path) -> None:
    with torch.device("meta"):
        model = transformers.BertModel(built("bert").config)
    with pytest.raises(actstore.InvalidInputError):
        actstore.capture(memory_path / "run.act", model.eval(), batch("bert"), progress=False)
