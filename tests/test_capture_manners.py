"""The user's model is as it was afterward, with an error or without."""

import copy
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.capturing import available

pytest.importorskip("transformers")

import torch
from capture_models import batch, built, fresh, real
from capture_oracle import truth
from torch import nn

NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that could be left behind on a model."""
    return {
        "hooks": {
            f"{path} {name}": list(getattr(module, name))
            for path, module in model.named_modules()
            for name in HOOKS
        },
        "training": {path: module.training for path, module in model.named_modules()},
        "gradients": {path: (p.requires_grad, p.grad is None) for path, p in model.named_parameters()},
        "config": copy.deepcopy(model.config.to_dict()),
        "forward": [("forward" in vars(module)) for module in model.modules()],
        "attributes": {path: sorted(vars(module)) for path, module in model.named_modules()},
    }


def one_that_trains(name: str = "gpt2") -> Any:
    """A model as in the midst of training: some modules frozen, in eval mode or with dropout."""
    model = fresh(name).train()
    modules = dict(model.named_modules())
    modules["transformer.h.1" if name == "gpt2" else "decoder.block.1"].eval()
    next(model.parameters()).requires_grad_(False)
    with (
        torch.no_grad(),
        torch.random.fork_rng(),
    ):  # The first time transformers sets hooks of its own for these.
        model(**batch(name), output_hidden_states=True)
    return model


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_model_is_left_as_it_was(name: str, memory_path: Path) -> None:
    model = one_that_trains(name)
    before = state_of(model)
    weights = copy.deepcopy(model.state_dict())
    grad, deterministic = torch.is_grad_enabled(), torch.get_rng_state()
    sites = ["resid", "attn_out", "logits"]
    store = actstore.capture(memory_path / "run.act", model, batch(name), sites=sites, progress=False)
    actstore.plan(model, batch(name))
    available(model, sample=batch(name))
    assert state_of(model) == before
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert torch.is_grad_enabled() == grad
    assert torch.equal(torch.get_rng_state(), deterministic)
    result = model(**batch(name))
    result.logits.sum().backward()  # Nothing holds on to inference mode.
    # It was captured without dropout.
    expected = truth(name, built(name), batch(name))
    site = "resid" if name == "gpt2" else "decoder.resid"
    mask = batch(name).get("decoder_attention_mask", batch(name)["attention_mask"])
    wanted = torch.stack([real(tensor, mask) for tensor in expected[site].values()], 1)
    np.testing.assert_array_equal(store[site].read(), wanted.numpy())


class Stop(Exception):
    """What a user's hook may raise."""


@pytest.mark.parametrize("when", ["site", "first", "later", "nan", "inputs"])
def test_a_model_is_left_as_it_was_after_an_error(when: str, memory_path: Path) -> None:
    model = one_that_trains()
    calls = 0

    def fail(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if when == "first" or (when == "later" and calls > 3):
            raise Stop

    model.transformer.h[2].register_forward_pre_hook(fail)
    if when == "nan":
        with torch.no_grad():
            model.transformer.h[0].mlp.c_proj.bias[3] = torch.nan
    before = state_of(model)
    source: Any = [batch("gpt2")] * 6
    options: dict[str, Any] = {"sites": ["resid", "q"], "on_nan": "raise" if when == "nan" else "count"}
    if when == "site":
        options["sites"] = ["resid", "nothing"]
    if when == "inputs":
        source = [batch("gpt2"), batch("gpt2"), {"input_ids": [[1], [2, 3]], "attention_mask": [[1, 1]]}]
    with pytest.raises(Stop if when in ("first", "later") else actstore.ActstoreError):
        actstore.capture(memory_path / "run.act", model, source, progress=False, **options)
    assert state_of(model) == before
    with torch.no_grad():
        if when not in ("first", "later"):
            model(**batch("gpt2"))


def test_hooks_of_the_user_go_on(memory_path: Path) -> None:
    """They see each pass, and what they change is what is stored."""
    model = fresh("gpt2")
    seen = []

    def steer(module: nn.Module, args: Any, result: Any) -> Any:
        seen.append(result.shape)
        return result + 1

    handle = model.transformer.h[0].register_forward_hook(steer)
    expected = truth("gpt2", model, batch("gpt2"))["resid"]
    seen.clear()
    store = actstore.capture(memory_path / "run.act", model, batch("gpt2"), progress=False)
    wanted = torch.stack([real(tensor, batch("gpt2")["attention_mask"]) for tensor in expected.values()], 1)
    np.testing.assert_array_equal(store["resid"].read(), wanted.numpy())
    assert torch.Size([3, 9, 32]) in seen
    handle.remove()


def test_only_as_much_of_the_model_runs_as_is_needed(memory_path: Path) -> None:
    model = fresh("gpt2")
    ran = []
    for i, block in enumerate(model.transformer.h):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    actstore.capture(memory_path / "run.act", model, [batch("gpt2")] * 5, layers=[0, 1], progress=False)
    assert ran.count(2) < 5 <= ran.count(0)
