"""Every site of every family against hooks set by hand and transformers' own hidden states, to the bit."""

import functools
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.capturing import available

pytest.importorskip("transformers")

import torch
import transformers
from capture_models import (
    REQUIRED,
    VOCABULARY,
    WIDTH,
    batch,
    built,
    fresh,
    pad_id,
    padded,
    real,
    sequences,
    stirred,
)
from capture_oracle import STREAMS, Stream, Watch, gave, took, truth
from torch.nn.attention import SDPBackend, sdpa_kernel

OTHERS = [name for name in STREAMS if name not in REQUIRED]
SUMS = [name for name, streams in STREAMS.items() if all(where.sums for where in streams.values())]


def mask_of(site: str, inputs: dict[str, Any]) -> Any:
    """Which of a batch's tokens a site has rows of."""
    if "decoder_input_ids" in inputs and (site.startswith("decoder.") or site == "logits"):
        return inputs.get("decoder_attention_mask")
    return inputs.get("attention_mask")


def prefixed(stream: str, site: str) -> str:
    return f"{stream}.{site}" if stream else site


def check(
    path: Path, expected: dict[str, dict[int, Any]], model: Any, inputs: dict[str, Any]
) -> actstore.Store:
    """Capture these sites, and compare each layer with what the hooks saw; no layer loses a bit."""
    store = actstore.capture(path, model, inputs, sites=list(expected), progress=False)
    assert set(store.sites) == set(expected)
    for site, layers in expected.items():
        assert store[site].layers == list(layers), site
        dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in layers.values()))
        assert store[site].dtype.name == str(dtype).removeprefix("torch."), site
        for label, tensor in layers.items():
            wanted = real(tensor, mask_of(site, inputs)).float().numpy()
            got = store[site].select(layers=[label]).read("float32")[:, 0]
            np.testing.assert_array_equal(got, wanted, err_msg=f"{site} {label}")
    return store


@pytest.mark.parametrize("name", [*REQUIRED, *OTHERS])
def test_sites_are_what_plain_hooks_see(name: str, memory_path: Path) -> None:
    inputs = batch(name)
    store = check(memory_path / "run.act", truth(name, built(name), inputs), built(name), inputs)
    for stream, where in STREAMS[name].items():
        for site, (n_heads, head_dim, rotary) in where.heads.items():
            about = store[prefixed(stream, site)].about
            told = about["n_heads"], about["head_dim"], about["rotary"]
            assert told == (n_heads, head_dim, rotary), (stream, site)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_all_sites_are_listed(name: str) -> None:
    listed = {one["site"]: (one["layers"], one["dim"]) for one in available(built(name), sample=batch(name))}
    expected = truth(name, built(name), batch(name))
    assert listed == {
        site: (list(layers), next(iter(layers.values())).shape[-1]) for site, layers in expected.items()
    }


def test_models_without_a_stream_are_listed_too() -> None:
    """Albert runs one module again and again: none of our sites is there, which is no error."""
    assert "resid" not in {one["site"] for one in available(built("albert"), sample=batch("albert"))}


@pytest.mark.parametrize("name", SUMS)
def test_the_stream_is_the_sum_of_what_is_added_to_it(name: str, memory_path: Path) -> None:
    for stream, where in STREAMS[name].items():
        added = [s for s in ("attn_out", "cross_attn_out", "mixer_out", "mlp_out") if s in where.parts]
        middle = ["resid_mid"] if "resid_mid" in where.parts else []
        sites = [prefixed(stream, site) for site in ("resid", *added, *middle)]
        path = memory_path / f"{stream}.act"
        store = actstore.capture(path, built(name), batch(name), sites=sites, progress=False)
        resid, *parts = (store[site].read("float32") for site in sites)
        if middle:
            np.testing.assert_allclose(parts.pop() + parts[-1], resid[:, 1:], atol=1e-5)
        np.testing.assert_allclose(resid[:, :-1] + sum(parts), resid[:, 1:], atol=2e-5)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_what_a_layer_is_in_transformers_is_true(name: str, memory_path: Path) -> None:
    """`about` says `hidden_states[i]` of what is that, and of all that is; its i for vLLM counts blocks."""
    inputs = batch(name)
    expected = truth(name, built(name), inputs)
    for stream, where in STREAMS[name].items():
        states = expected[prefixed(stream, "hidden_states")]
        sites = [s for s in ("resid", "final", "hidden_states") if prefixed(stream, s) in expected]
        path = memory_path / f"{stream}.act"
        store = actstore.capture(
            path, built(name), inputs, sites=[prefixed(stream, site) for site in sites], progress=False
        )
        named: dict[str, set[int]] = {site: set() for site in sites}
        for site in sites:
            there = store[prefixed(stream, site)]
            for label in there.layers:
                hf = there.about["layers"][str(label)].get("hf")
                if hf is None:
                    continue
                listed, index = hf[:-1].split("[")
                assert listed == where.states
                wanted = real(states[int(index)], mask_of(prefixed(stream, site), inputs)).numpy()
                np.testing.assert_array_equal(there.select(layers=[label]).read()[:, 0], wanted, err_msg=hf)
                named[site].add(int(index))
        assert named["hidden_states"] == set(states)
        assert named["resid"] | named.get("final", set()) == set(states)
        resid = store[prefixed(stream, "resid")]
        assert [resid.about["layers"][str(label)]["vllm"] for label in resid.layers] == resid.layers


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "bert", "neox", "t5", "phi3", "vit"])
def test_attention_written_out(name: str, memory_path: Path) -> None:
    """Without the fused operation there are the same sites, but for what only that shows."""
    model, inputs = fresh(name, attn_implementation="eager"), batch(name)
    expected = truth(name, model, inputs, rotated=False)
    check(memory_path / "run.act", expected, model, inputs)
    assert {one["site"] for one in available(model, sample=inputs)} == set(expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bert", "neox", "phi3", "t5"])
def test_the_fused_operation_in_plain_steps(name: str, memory_path: Path) -> None:
    """Where no kernel fits (values wider than keys, odd devices) torch itself takes it apart."""
    with sdpa_kernel(SDPBackend.MATH):
        expected = truth(name, built(name), batch(name), rotated=False)
        check(memory_path / "run.act", expected, built(name), batch(name))


def test_values_that_are_wider_than_keys(memory_path: Path) -> None:
    """DeepSeek's attention by a latent vector, whose first block has a plain MLP and the others experts."""
    config = transformers.DeepseekV3Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        n_shared_experts=1,
        first_k_dense_replace=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stirred(transformers.DeepseekV3ForCausalLM(config))
    inputs = batch("llama")
    block = "model.layers.{}"
    where = Stream(
        block,
        {
            "attn_out": gave(f"{block}.self_attn"),
            "mlp_out": gave(f"{block}.mlp"),
            "z": took(f"{block}.self_attn.o_proj"),
            "resid_mid": took(f"{block}.post_attention_layernorm"),
        },
        "model.norm",
        logits=True,
    )
    expected = where.truth(Watch(model, inputs, output_hidden_states=True, use_cache=False))
    check(memory_path / "run.act", expected, model, inputs)
    # What is not in every block is not without a word a site of some.
    with pytest.raises(actstore.NotFoundError, match="layer"):
        actstore.capture(memory_path / "none.act", model, inputs, sites=["mlp_act"], layers=1, progress=False)


def test_heads_that_were_pruned(memory_path: Path) -> None:
    """Zeros: elements of a row that are alike are no reason to miss the others."""
    model, inputs = fresh("gpt2"), batch("gpt2")
    with torch.no_grad():
        for i, block in enumerate(model.transformer.h):
            for which in range(3):
                columns = slice(which * WIDTH + 8 * i, which * WIDTH + 8 * (i + 1))
                block.attn.c_attn.weight[:, columns] = 0
                block.attn.c_attn.bias[columns] = 0
    check(memory_path / "run.act", truth("gpt2", model, inputs), model, inputs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma", "neox", "bert", "t5", "vit", "mamba", "phi3"])
def test_models_of_half_precision(name: str, dtype: str, memory_path: Path) -> None:
    """Elements of a row are often equal there, which is no reason to take one for another."""
    model, inputs = fresh(name).to(getattr(torch, dtype)), batch(name)
    cast = {
        key: value.to(getattr(torch, dtype)) if key == "pixel_values" else value
        for key, value in inputs.items()
    }
    check(memory_path / "run.act", truth(name, model, cast), model, inputs)


@pytest.mark.parametrize("first", [[7], [7] * 9, [7, 8], [7, 8, 9, 7, 8, 9, 7, 8]])
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox", "bert", "t5", "mamba"])
def test_the_first_input_does_not_decide_what_is_found(
    name: str, first: list[int], memory_path: Path
) -> None:
    """The model is looked at with its tokens, however few or alike."""
    rows = [torch.tensor(first), *sequences([5, 9])]
    ids, mask = padded(rows, pad_id(built(name)))
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "t5":  # As long as the encoder's, too.
        inputs |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    check(memory_path / "run.act", truth(name, built(name), inputs), built(name), inputs)


@pytest.mark.parametrize("length", [1, 2, 5, 8, 32])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_lengths_that_are_also_sizes_of_the_model(name: str, length: int, memory_path: Path) -> None:
    """As many tokens as a head or the stream has elements, or as the model is looked at with."""
    inputs = {"input_ids": torch.stack(sequences([length, length]))}
    if name == "t5":
        inputs["decoder_input_ids"] = torch.stack(sequences([length, length], 1))
    expected = truth(
        name, built(name), inputs | {"attention_mask": torch.ones((2, length), dtype=torch.int64)}
    )
    check(memory_path / "run.act", expected, built(name), inputs)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("opt", {"do_layer_norm_before": False}),
        ("gpt2", {"n_layer": 1}),
        ("gpt2", {"n_head": 1}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("llama", {"num_key_value_heads": 4}),
        ("llama", {"num_key_value_heads": 1}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
        ("neox", {"rotary_pct": 1.0}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"parallel_attn": False, "multi_query": False, "alibi": True}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_other_configs_of_a_family(name: str, told: dict[str, Any], memory_path: Path) -> None:
    """The stream and what is added to it are found there too."""
    model, inputs = fresh(name, **told), batch(name)
    expected = truth_of_the_stream(name, model, inputs)
    check(memory_path / "run.act", expected, model, inputs)


def truth_of_the_stream(name: str, model: Any, inputs: dict[str, Any]) -> dict[str, dict[int, Any]]:
    """The streams themselves, from transformers, and the logits: what no config changes the place of."""
    with torch.no_grad():
        result = model(**inputs, output_hidden_states=True, use_cache=False)
    out = {}
    for stream, where in STREAMS[name].items():
        out[prefixed(stream, "hidden_states")] = dict(enumerate(getattr(result, where.states)))
    if STREAMS[name].get("", where).logits:
        out["logits"] = {len(getattr(result, where.states)) - 1: result.logits}
    return out
