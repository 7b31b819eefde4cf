"""Models that are not transformers', or take no mask: padding must not be seen there either."""

import inspect
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import trained_tokenizers
import transformers
from capture_models import batch, padded, sequences, stirred
from torch import nn

NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


class Block(nn.Module):
    """Pre-norm, without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Plain(nn.Module):
    """Takes token ids and no mask, and gives a tensor; each token sees the mean of all."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.mixes = mixes
        self.embed = nn.Embedding(704, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        if self.mixes:
            x = x + x.mean(1, keepdim=True)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def plain(mixes: bool) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return stirred(Plain(mixes))


def plain_rows(model: Plain, ids: torch.Tensor) -> np.ndarray:
    x = model.embed(ids)
    if model.mixes:
        x = x + x.mean(0, keepdim=True)
    states = [x]
    for block in model.blocks:
        states.append(block(states[-1]))
    return torch.stack(states, 1).detach().numpy()


@pytest.mark.parametrize("mixes", [False, True])
def test_a_plain_module(mixes: bool, memory_path: Path) -> None:
    """A model that takes no mask may see all that it is given: its rows are those of each sequence alone."""
    model = plain(mixes)
    rows = sequences([6, 3, 6, 1, 9])
    for side in ("right", "left"):
        ids, mask = padded(rows, 0, side)
        store = actstore.capture(
            memory_path / side,
            model,
            {"input_ids": ids, "attention_mask": mask},
            sites=["resid", "head", "blocks.*.up"],
            progress=False,
        )
        assert store["resid"].layers == [0, 1, 2, 3]
        assert store["blocks.*.up"].layers == [0, 1, 2]
        for i, row in enumerate(rows):
            np.testing.assert_allclose(store["resid"].example(i), plain_rows(model, row), **NEAR)
            head = model(row[None])[0].detach().numpy()
            np.testing.assert_allclose(store["head"].example(i)[:, 0], head, **NEAR)


@pytest.mark.parametrize("mixes", [False, True])
def test_a_plain_module_and_texts(mixes: bool, memory_path: Path) -> None:
    model, tokenizer = plain(mixes), trained_tokenizers.wordpiece()
    many = ["one two three", "four", "", "a b c d e f g", "one two four"]
    store = actstore.capture(
        memory_path / "run.act", model, many, tokenizer=tokenizer, sites=["resid"], progress=False
    )
    for i, text in enumerate(many):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        np.testing.assert_allclose(store["resid"].example(i), plain_rows(model, ids), **NEAR)


def test_a_transformer_without_a_mask(memory_path: Path) -> None:
    """FNet mixes all tokens by a Fourier transform and takes no mask."""
    config = transformers.FNetConfig(
        hidden_size=32, num_hidden_layers=2, intermediate_size=48, vocab_size=704, max_position_embeddings=96
    )
    assert "attention_mask" not in inspect.signature(transformers.FNetModel.forward).parameters
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stirred(transformers.FNetModel(config))
    rows = sequences([6, 3, 6, 9])
    ids, mask = padded(rows, config.pad_token_id)
    store = actstore.capture(
        memory_path / "run.act",
        model,
        {"input_ids": ids, "attention_mask": mask},
        progress=False,
        sites=["encoder.layer.*"],
    )
    for i, row in enumerate(rows):
        with torch.no_grad():
            states = model(row[None], output_hidden_states=True).hidden_states[1:]
        wanted = torch.stack([state[0] for state in states], 1).numpy()
        np.testing.assert_allclose(store["encoder.layer.*"].example(i), wanted, **NEAR)


def test_a_module_that_takes_something_else(memory_path: Path) -> None:
    """Neither ids nor pixels: an error in words."""

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.map(x)

    with pytest.raises(actstore.InvalidInputError):
        actstore.capture(memory_path / "run.act", Other(), batch("gpt2"), sites=["map"], progress=False)
