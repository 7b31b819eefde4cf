"""Small models of many families, with weights drawn at random, norms and biases too.

What a real checkpoint hides behind its size shows here: no two elements of a row are alike, no bias is zero,
no norm is one, and as many tokens are looked at as a head has elements.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn

WIDTH, N_LAYERS, N_HEADS, INNER, VOCABULARY = 32, 3, 4, 48, 704
_COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": INNER,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 96,
}
_NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
_DECODER = _COMMON | _NO_ENDS
_GROUPED = _DECODER | {"num_key_value_heads": 2}
_PATCHES = {key: _COMMON[key] for key in list(_COMMON)[:4]} | {"image_size": 24, "patch_size": 8}
_GPT2 = _NO_ENDS | {
    "n_embd": WIDTH,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "vocab_size": VOCABULARY,
    "n_positions": 96,
}

Kind = Literal["decoder", "encoder", "seq2seq", "images"]


@dataclass(frozen=True)
class Family:
    """An architecture: the model's class, its config's class and what the config says."""

    model: str
    config: str
    told: dict[str, Any]
    kind: Kind = "decoder"


FAMILIES = {
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", _GPT2),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _GROUPED),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 12}),
    "mistral": Family("MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 4}),
    "gemma": Family("GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 8, "pad_token_id": 0}),
    "neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER),
    "bert": Family("BertModel", "BertConfig", _COMMON, "encoder"),
    "t5": Family(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": INNER,
            "num_layers": N_LAYERS,
            "num_heads": N_HEADS,
            "vocab_size": VOCABULARY,
            "decoder_start_token_id": 0,
        },
        "seq2seq",
    ),
    "vit": Family("ViTModel", "ViTConfig", _PATCHES, "images"),
    "mamba": Family(
        "MambaForCausalLM",
        "MambaConfig",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": N_LAYERS,
            "vocab_size": VOCABULARY,
            "state_size": 4,
            "use_mambapy": False,
            **_NO_ENDS,
        },
    ),
    # The others.
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GROUPED | {"head_dim": 8, "sliding_window": 4, "pad_token_id": 0},
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _GROUPED | {"head_dim": 12, "sliding_window": 4, "pad_token_id": 0},
    ),
    "neox_sequential": Family(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER | {"use_parallel_residual": False}
    ),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", _GROUPED | {"pad_token_id": 0}),
    "mixtral": Family(
        "MixtralForCausalLM", "MixtralConfig", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**_DECODER, "ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "intermediate_size": None},
    ),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {
            "hidden_size": WIDTH,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "vocab_size": VOCABULARY,
            **_NO_ENDS,
        },
    ),
    "falcon": Family("FalconForCausalLM", "FalconConfig", _DECODER),
    "gptj": Family("GPTJForCausalLM", "GPTJConfig", _GPT2 | {"rotary_dim": 4}),
    "mamba2": Family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": N_LAYERS,
            "vocab_size": VOCABULARY,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 4,
            "n_groups": 2,
            "chunk_size": 16,
            **_NO_ENDS,
        },
    ),
    "roberta": Family("RobertaModel", "RobertaConfig", _COMMON | {"pad_token_id": 1}, "encoder"),
    "mpnet": Family("MPNetModel", "MPNetConfig", _COMMON | {"pad_token_id": 1}, "encoder"),
    "distilbert": Family(
        "DistilBertModel",
        "DistilBertConfig",
        {
            "dim": WIDTH,
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "hidden_dim": INNER,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 96,
        },
        "encoder",
    ),
    "modernbert": Family(
        "ModernBertModel",
        "ModernBertConfig",
        _COMMON
        | {
            "global_attn_every_n_layers": 2,
            "local_attention": 4,
            "pad_token_id": 0,
            "cls_token_id": 2,
            "sep_token_id": 3,
            **_NO_ENDS,
        },
        "encoder",
    ),
    "deberta": Family("DebertaV2Model", "DebertaV2Config", _COMMON | {"relative_attention": True}, "encoder"),
    "albert": Family("AlbertModel", "AlbertConfig", _COMMON | {"embedding_size": 16}, "encoder"),
    "clip_text": Family(
        "CLIPTextModel", "CLIPTextConfig", _COMMON | {"bos_token_id": 2, "eos_token_id": 3}, "encoder"
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": WIDTH,
            "encoder_layers": N_LAYERS,
            "decoder_layers": 2,
            "encoder_attention_heads": N_HEADS,
            "decoder_attention_heads": N_HEADS,
            "encoder_ffn_dim": INNER,
            "decoder_ffn_dim": INNER,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 96,
        },
        "seq2seq",
    ),
    "dinov2": Family(
        "Dinov2Model",
        "Dinov2Config",
        {**_PATCHES, "mlp_ratio": 2, "intermediate_size": None},
        "images",
    ),
    "clip_vision": Family("CLIPVisionModel", "CLIPVisionConfig", _PATCHES, "images"),
}
REQUIRED = ("gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma", "neox", "bert", "t5", "vit", "mamba")


def fresh(name: str, **told: Any) -> Any:
    """A model of its own, for a test that changes it; `told` goes over what the family's config says."""
    family = FAMILIES[name]
    implementation = told.pop("attn_implementation", None)
    config = getattr(transformers, family.config)(
        **{key: value for key, value in (family.told | told).items() if value is not None or key in _NO_ENDS}
    )
    if implementation is not None:
        config._attn_implementation = implementation
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, family.model)(config)
        return stirred(model)


@functools.cache
def built(name: str) -> Any:
    """A model that the tests share and nobody changes."""
    return fresh(name)


def stirred(model: nn.Module) -> nn.Module:
    """The model in eval mode, each of its weights moved a little, so that none is at a round number."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model.eval()


def pad_id(model: Any) -> int:
    """What stands in the padding of a batch: what the config says, else 0."""
    return getattr(model.config, "pad_token_id", None) or 0


def sequences(lengths: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    """Random tokens, none of which is a special one of any family."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (n,), generator=generator) for n in lengths]


def padded(
    rows: Sequence[torch.Tensor], fill: int = 0, side: str = "right", length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as a batch: ids ``[B, T]`` and attention mask ``[B, T]``; holes are drawn at random."""
    length = max(map(len, rows)) if length is None else length
    ids = torch.full((len(rows), length), fill)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    generator = torch.Generator().manual_seed(2)
    for i, row in enumerate(rows):
        where = {
            "right": torch.arange(len(row)),
            "left": torch.arange(length - len(row), length),
            "holes": torch.randperm(length, generator=generator)[: len(row)].sort().values,
        }[side]
        ids[i, where] = row
        mask[i, where] = 1
    return ids, mask


def batch(name: str, lengths: Sequence[int] = (9, 4, 7), side: str = "right") -> dict[str, torch.Tensor]:
    """A batch that the model takes, padded; the decoder's sequences are two tokens shorter."""
    model = built(name)
    if FAMILIES[name].kind == "images":
        size = model.config.image_size
        generator = torch.Generator().manual_seed(3)
        return {"pixel_values": torch.randn((len(lengths), 3, size, size), generator=generator)}
    ids, mask = padded(sequences(lengths), pad_id(model), side)
    out = {"input_ids": ids, "attention_mask": mask}
    if FAMILIES[name].kind == "seq2seq":
        shorter = sequences([n - 2 for n in lengths], 1)
        out["decoder_input_ids"], out["decoder_attention_mask"] = padded(shorter, pad_id(model), side)
    return out


def real(tensor: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The rows ``[n, D]`` of a batch's tokens, without its padding; all of them of a map ``[B, C, H, W]``."""
    if tensor.ndim == 4:
        tensor = tensor.flatten(2).transpose(1, 2)
    return tensor.flatten(0, 1) if mask is None else tensor[mask.bool()]
