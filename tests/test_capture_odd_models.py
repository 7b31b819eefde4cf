"""Models that are not built as most are: what is found in them is right, or nothing is."""

import gc
import weakref
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.capturing import available

pytest.importorskip("transformers")

import torch
import transformers
from capture_cases import bert, gpt2, of_text, t5, texts, tokenizer
from capture_models import VOCABULARY, batch, built, padded, sequences, stirred
from torch import nn
from torch.nn import functional

WIDTH = 16


class Attention(nn.Module):
    """Self-attention of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        return self.out(
            functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        )


class MLP(nn.Module):
    """Of one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Block(nn.Module):
    """Pre-norm; its parts may be those of other blocks too, and its stream may be scaled."""

    def __init__(self, mlp: nn.Module | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mlp = Attention(), mlp or MLP()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (
            x + self.attention(self.norm(x))
            if self.scale == 1
            else self.scale * x + self.attention(self.norm(x))
        )
        return x + self.mlp(self.norm2(x))


class Mixer(nn.Module):
    """A state-space model's, in short: a causal convolution between two maps."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.conv = nn.Conv1d(32, 32, 3, groups=32, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.inner(x).transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.out(functional.silu(y))


class Hybrid(nn.Module):
    """As in Zamba: a block that others share goes into what the mixer sees; the stream has the mixer's."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear, self.mixer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), Mixer()
        self.shared = [shared]  # Not among its own modules.

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mixer(self.norm(x + self.linear(self.shared[0](x))))


class Both(nn.Module):
    """A mixer and attention, one after the other, and then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.mixer, self.attention, self.mlp = Mixer(), Attention(), MLP()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.norms[0](x))
        x = x + self.attention(self.norms[1](x))
        return x + self.mlp(self.norms[2](x))


class Model(nn.Module):
    """Blocks between an embedding and a head, which takes no mask."""

    def __init__(self, blocks: list[nn.Module], head: nn.Module | None = None) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.head = head or nn.Identity()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def made(*blocks: nn.Module, head: nn.Module | None = None) -> Model:
    model = Model(list(blocks), head)
    stirred(model)
    return model


def inputs(lengths: tuple[int, ...] = (6, 6)) -> dict[str, torch.Tensor]:
    ids, mask = padded(sequences(lengths))
    return {"input_ids": ids, "attention_mask": mask}


def listed(model: nn.Module) -> set[str]:
    return {one["site"] for one in available(model, sample=inputs())}


def sums(path: Path, model: nn.Module, parts: list[str]) -> actstore.Store:
    """Captures, and checks that each block adds these parts to the stream."""
    store = actstore.capture(path, model, inputs(), sites=["resid", *parts], progress=False)
    resid, added = store["resid"].read(), sum(store[part].read() for part in parts)
    np.testing.assert_allclose(resid[:, :-1] + added, resid[:, 1:], atol=1e-5)
    return store


def test_blocks_that_share_a_module(memory_path: Path) -> None:
    mlp = MLP()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made(Block(mlp), Block(mlp), Block(mlp))
    store = sums(memory_path / "x.act", model, ["attn_out", "mlp_out"])
    assert len({rows.tobytes() for rows in store["mlp_out"].read().swapaxes(0, 1)}) == 3


def test_a_norm_that_is_used_twice(memory_path: Path) -> None:
    model = made(Block(), Block())
    for block in model.blocks:
        block.norm2 = block.norm
    sums(memory_path / "x.act", model, ["attn_out", "mlp_out"])
    store = actstore.capture(
        memory_path / "y.act", model, inputs(), sites=["resid", "resid_mid", "attn_out"], progress=False
    )
    resid, middle, attention = (store[site].read() for site in ("resid", "resid_mid", "attn_out"))
    np.testing.assert_allclose(resid[:, :-1] + attention, middle, atol=1e-5)


def test_a_mixer_fed_by_attention_is_no_attention(memory_path: Path) -> None:
    model = made(Block(), Hybrid(Attention()), Block())
    assert {"attn_out", "mixer_out", "mlp_out"} <= listed(model)
    store = actstore.capture(
        memory_path / "x.act", model, inputs(), sites=["resid", "attn_out", "mixer_out", "z"], progress=False
    )
    assert store["attn_out"].layers == [0, 2]
    assert store["z"].layers == [0, 2]
    assert store["mixer_out"].layers == [1]
    resid = store["resid"].read()
    np.testing.assert_allclose(resid[:, 1] + store["mixer_out"].read()[:, 0], resid[:, 2], atol=1e-5)


def test_a_mixer_and_attention_in_one_block(memory_path: Path) -> None:
    store = sums(memory_path / "x.act", made(Both(), Both()), ["mixer_out", "attn_out", "mlp_out"])
    for site in ("mixer", "attention", "mlp"):
        told = store[site.replace("attention", "attn") + "_out"].about["layers"]["0"]["module"]
        assert told.startswith(f"blocks.0.{site}")


def test_blocks_that_are_not_understood_are_not_taken_for_others() -> None:
    """A scaled stream is none of ours; a head made of blocks does not stand for it."""
    assert "resid" not in listed(made(Block(scale=0.5), Block(scale=0.5)))
    odd = made(Block(scale=0.5), Block(scale=0.5), head=nn.Sequential(Block(), Block()))
    assert not any(site.endswith(("resid", "attn_out")) for site in listed(odd))
    usual = made(*(Block() for _ in range(12)), head=nn.Sequential(Block()))
    assert "resid" in listed(usual)


def test_a_star_stands_for_a_part_of_a_path(memory_path: Path) -> None:
    store = actstore.capture(
        memory_path / "x.act", made(Block(), Block()), inputs(), sites=["blocks.*", "*.up"], progress=False
    )
    assert {name: store[name].layers for name in store.sites} == {"blocks.*": [0, 1], "*.up": [0, 1]}


def test_layers_that_rotate_and_layers_that_do_not(memory_path: Path) -> None:
    """SmolLM3 leaves the rotation out of every other layer: each says so."""
    config = transformers.SmolLM3Config(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        no_rope_layers=[1, 0, 1, 0],
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stirred(transformers.SmolLM3ForCausalLM(config))
    store = actstore.capture(
        memory_path / "x.act", model, batch("llama"), sites=["q", "q_rot"], progress=False
    )
    told = store["q"].about
    assert "rotary" not in told
    rotary = [told["layers"][str(i)]["rotary"] for i in range(4)]
    assert rotary == ["before", "none", "before", "none"]
    assert {told["layers"][str(i)]["n_heads"] for i in range(4)} == {4}
    assert store["q_rot"].layers == [0, 2]
    assert store["q_rot"].about["rotary"] == "after"


def test_no_weights_are_kept_while_a_model_is_looked_at() -> None:
    """Offloaded ones are there for a moment only: all of them together may be too many."""
    refs: list[Any] = []
    most = 0

    class Brought(nn.Module):
        """A linear map whose weight is made anew each time, as accelerate brings one."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal most
            gc.collect()
            most = max(most, sum(ref() is not None for ref in refs))
            weight = torch.ones(WIDTH, WIDTH)
            refs.append(weakref.ref(weight))
            return functional.linear(x, weight)

    class Holder(Block):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Brought()

    listed(made(*(Holder() for _ in range(6))))
    assert len(refs) >= 6
    assert most <= 1


def test_a_row_for_an_example_of_which_no_token_is_kept(memory_path: Path) -> None:
    """The pooler's does not depend on which tokens are kept."""
    model, given = bert(), texts(30)
    arguments = of_text(model, texts=given, sites=["resid", "pooler"])
    masks = [np.full(len(tokenizer()(text)["input_ids"]), i % 3 == 0) for i, text in enumerate(given)]
    whole = actstore.capture(memory_path / "whole.act", **arguments)
    some = actstore.capture(memory_path / "some.act", **arguments, keep=masks)
    np.testing.assert_allclose(some["pooler"].read(), whole["pooler"].read(), atol=1e-5)
    assert np.diff(some.tokens.offsets)[1:3].tolist() == [0, 0]


def test_examples_without_tokens_and_a_row_for_each(memory_path: Path) -> None:
    model = gpt2()
    ready = [{"input_ids": [[5, 6], [7, 0]], "attention_mask": [[1, 1], [0, 0]]}]
    head = nn.Linear(16, 3)

    class Headed(nn.Module):
        """The mean of the states, and a head on it."""

        def __init__(self) -> None:
            super().__init__()
            self.model, self.head = model.transformer, head

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return self.head(states[:, 0])

    with pytest.raises(actstore.InvalidInputError, match="example '1' has no tokens, but site"):
        actstore.capture(memory_path / "x.act", Headed(), ready, sites=["head"], progress=False)
    store = actstore.capture(
        memory_path / "y.act", Headed(), ready, sites=["head"], progress=False, on_empty="zero"
    )
    assert store["head"].read()[1].tolist() == [[0, 0, 0]]
    assert (store["head"].read()[0] != 0).all()


def test_an_axis_without_rows(memory_path: Path) -> None:
    """A decoder that has nothing but its start, which is special."""
    for i, more in enumerate(({}, {"pool": "mean", "on_empty": "zero"}, {"pool": "max", "on_empty": "zero"})):
        arguments = of_text(t5(), texts=texts(20), keep="no-special", **more)
        store = actstore.capture(memory_path / f"{i}.act", **arguments)
        assert len(store["decoder.resid"]) == (20 if more else 0)
        assert not store["decoder.resid"].read().any()
        assert np.isfinite(store["encoder.resid"].read()).all()


def test_tensors_are_made_where_they_belong(memory_path: Path) -> None:
    """Whatever the default device is."""
    torch.set_default_device("meta")
    try:
        for i, more in enumerate(({}, {"pool": "mean"}, {"pool": "weighted"})):
            actstore.capture(
                memory_path / f"{i}.act", **of_text(bert_on_the_cpu(), texts=texts(9), **more)
            ).close()
    finally:
        torch.set_default_device(None)


def bert_on_the_cpu() -> Any:
    with torch.device("cpu"):
        return bert()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_another_model(memory_path: Path) -> None:
    """Which is active, and how strong, is not in the weights alone."""
    peft = pytest.importorskip("peft")
    config = {"r": 2, "target_modules": ["query"], "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(bert(), peft.LoraConfig(**config, lora_alpha=2))
        model.add_adapter("other", peft.LoraConfig(**config, lora_alpha=8))
    arguments = of_text(model.eval(), texts=texts(10))
    path = memory_path / "x.act"
    assert actstore.capture(path, **arguments).identity["model"]["name_or_path"] is None
    more = arguments | {"texts": texts(12), "resume": True}
    model.set_adapter("other")
    with pytest.raises(actstore.InvalidInputError, match=r"model\.adapters"):
        actstore.capture(path, **more)
    model.set_adapter("default")
    with model.disable_adapter(), pytest.raises(actstore.InvalidInputError, match=r"model\.adapters"):
        actstore.capture(path, **more)
    assert actstore.capture(path, **more).n_examples == 12


def test_names_of_transformer_lens_that_mean_another_tensor(memory_path: Path) -> None:
    """What BERT's block gives is hook_normalized_resid_post; hook_resid_post is the sum before that norm."""
    model, given = built("bert"), batch("bert")
    store = actstore.capture(
        memory_path / "x.act", model, given, sites=["blocks.1.hook_normalized_resid_post"], progress=False
    )
    assert store["resid"].layers == [2]
    with pytest.raises(actstore.InvalidInputError, match="hook_normalized_resid_post"):
        actstore.capture(
            memory_path / "y.act", model, given, sites=["blocks.1.hook_resid_post"], progress=False
        )
    with pytest.raises(actstore.ActstoreError):  # An RMSNorm has it before the weights.
        actstore.capture(
            memory_path / "y.act",
            built("llama"),
            batch("llama"),
            sites=["ln_final.hook_normalized"],
            progress=False,
        )
