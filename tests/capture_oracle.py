"""What each site of each family is, by hand: the paths of modules in transformers, and plain hooks on them.

Most of it is one table, `STREAMS`, which is longer than a file should be and would be no clearer in pieces.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from capture_models import N_HEADS, N_LAYERS, WIDTH
from torch import nn

HEAD = WIDTH // N_HEADS


class Watch:
    """One forward pass of a model as it is: what each module took and gave, and what entered attention."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any], **told: Any) -> None:
        self.took: dict[str, list[torch.Tensor]] = {}
        self.gave: dict[str, list[torch.Tensor]] = {}
        self.entered: list[tuple[torch.Tensor, torch.Tensor]] = []
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(path)))
        attend = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = self._attention(attend)
        try:
            with torch.no_grad():
                self.result = model(**inputs, **told)
        finally:
            torch.nn.functional.scaled_dot_product_attention = attend
            for handle in handles:
                handle.remove()

    def _before(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            given = args[0] if args else kwargs.get("hidden_states")
            if isinstance(given, torch.Tensor):
                self.took.setdefault(path, []).append(given.clone())

        return hook

    def _after(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            first = result if isinstance(result, torch.Tensor) else next(iter(_values(result)), None)
            if isinstance(first, torch.Tensor):
                self.gave.setdefault(path, []).append(first.clone())

        return hook

    def _attention(self, attend: Any) -> Any:
        def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.entered.append((query.clone(), key.clone()))
            return attend(query, key, *args, **kwargs)

        return spy


def _values(result: Any) -> Any:
    return result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple) else ()


Read = Callable[[Watch, int], torch.Tensor]
"""From a forward pass, what a block has at a site."""


def took(path: str, columns: Any = ...) -> Read:
    """What a module of the block took."""
    return lambda watch, i: watch.took[path.format(i)][0][..., columns]


def gave(path: str, columns: Any = ...) -> Read:
    """What a module of the block gave."""
    return lambda watch, i: watch.gave[path.format(i)][0][..., columns]


def entered(which: int, repeats: int = 1) -> Read:
    """Queries (0) or keys (1) as they entered the block's attention, heads side by side."""

    def read(watch: Watch, i: int) -> torch.Tensor:
        heads = watch.entered[i][which]
        if which == 1 and heads.shape[1] == N_HEADS:
            heads = heads[:, ::repeats]
        return heads.transpose(1, 2).flatten(2)

    return read


@dataclass(frozen=True)
class Stream:
    """Where one residual stream runs: the blocks, what each has, and the norm after the last."""

    blocks: str
    parts: dict[str, Read]
    norm: str | None = None
    states: str = "hidden_states"
    """The model's list of hidden states."""
    n_layers: int = N_LAYERS
    logits: bool = False
    heads: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Of q, k, v and the rotated: how many heads, of what dimension, and whether rotated."""
    sums: bool = True
    """Whether a block adds its contributions to the stream and does nothing else."""

    def truth(self, watch: Watch, rotated: bool = True) -> dict[str, dict[int, torch.Tensor]]:
        """By site and label, what is to be captured: ``[B, T, D]``."""
        n = self.n_layers
        resid = {i: watch.took[self.blocks.format(i)][0] for i in range(n)}
        resid[n] = watch.gave[self.blocks.format(n - 1)][0]
        out = {"resid": resid, "hidden_states": dict(enumerate(getattr(watch.result, self.states)))}
        shape = resid[0].shape[:2]
        for site, read in self.parts.items():
            if (rotated and watch.entered) or not site.endswith("_rot"):
                # OPT's MLP has all tokens of the batch on one axis.
                out[site] = {i: read(watch, i).reshape(*shape, -1) for i in range(n)}
        if self.norm is not None:
            out["final"] = {n: watch.gave[self.norm][-1]}
        if self.logits:
            out["logits"] = {n: watch.result.logits}
        return out


def _heads(n: int, n_keys: int, dim: int, rotary: bool, seen: bool = True) -> dict[str, tuple[int, int, str]]:
    before = "before" if rotary else "none"
    out = {"q": (n, dim, before), "k": (n_keys, dim, before), "v": (n_keys, dim, "none")}
    return out | ({"q_rot": (n, dim, "after"), "k_rot": (n_keys, dim, "after")} if rotary and seen else {})


def _llama(block: str = "model.layers.{}", **others: Read | None) -> dict[str, Read]:
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    parts: dict[str, Read | None] = {
        "attn_out": gave(attention),
        "mlp_out": gave(mlp),
        "mlp_act": took(f"{mlp}.down_proj"),
        "q": gave(f"{attention}.q_proj"),
        "k": gave(f"{attention}.k_proj"),
        "v": gave(f"{attention}.v_proj"),
        "q_rot": entered(0),
        "k_rot": entered(1, 2),
        "z": took(f"{attention}.o_proj"),
        "resid_mid": took(f"{block}.post_attention_layernorm"),
    }
    return {site: read for site, read in (parts | others).items() if read is not None}


def _causal(parts: dict[str, Read], dim: int = 8, seen: bool = True, **others: Any) -> Stream:
    """Llama's way, with half as many heads for keys."""
    heads = _heads(N_HEADS, 2, dim, True, seen)
    return Stream("model.layers.{}", parts, "model.norm", logits=True, heads=heads, **others)


def _bert(block: str, **paths: str) -> dict[str, Read]:
    """Post-norm: by the paths of its linear maps."""
    return {
        "attn_out": gave(f"{block}.{paths['o']}"),
        "mlp_out": gave(f"{block}.{paths['down']}"),
        "mlp_act": took(f"{block}.{paths['down']}"),
        "q": gave(f"{block}.{paths['q']}"),
        "k": gave(f"{block}.{paths['k']}"),
        "v": gave(f"{block}.{paths['v']}"),
        "z": took(f"{block}.{paths['o']}"),
    }


def _fused(which: int, n: int = 3) -> list[int]:
    """Columns of a map to ``[head, n, dim]``."""
    return [(head * n + which) * HEAD + i for head in range(N_HEADS) for i in range(HEAD)]


def _third(which: int) -> slice:
    return slice(which * WIDTH, (which + 1) * WIDTH)


def _neox(middle: bool) -> dict[str, Read]:
    block = "gpt_neox.layers.{}"
    fused = f"{block}.attention.query_key_value"
    parts = {
        "attn_out": gave(f"{block}.attention"),
        "mlp_out": gave(f"{block}.mlp"),
        "mlp_act": took(f"{block}.mlp.dense_4h_to_h"),
        "q": gave(fused, _fused(0)),
        "k": gave(fused, _fused(1)),
        "v": gave(fused, _fused(2)),
        "q_rot": entered(0),
        "k_rot": entered(1),
        "z": took(f"{block}.attention.dense"),
    }
    return parts | ({"resid_mid": took(f"{block}.post_attention_layernorm")} if middle else {})


def _t5(stream: str) -> dict[str, Read]:
    attention = f"{stream}.block.{{}}.layer.0.SelfAttention"
    last = 2 if stream == "decoder" else 1
    mlp = f"{stream}.block.{{}}.layer.{last}"
    parts = {
        "attn_out": gave(attention),
        "mlp_out": gave(f"{mlp}.DenseReluDense"),
        "mlp_act": took(f"{mlp}.DenseReluDense.wo"),
        "q": gave(f"{attention}.q"),
        "k": gave(f"{attention}.k"),
        "v": gave(f"{attention}.v"),
        "z": took(f"{attention}.o"),
        "resid_mid": took(f"{mlp}.layer_norm"),
    }
    cross = {"cross_attn_out": gave("decoder.block.{}.layer.1.EncDecAttention")}
    return parts | (cross if stream == "decoder" else {})


def _bart(stream: str) -> dict[str, Read]:
    block = f"model.{stream}.layers.{{}}"
    attention = "self_attn"
    paths = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    parts = _bert(block, **{key: f"{attention}.{path}" for key, path in paths.items()}, down="fc2")
    cross = {"cross_attn_out": gave(f"{block}.encoder_attn.out_proj")}
    return parts | (cross if stream == "decoder" else {})


def _vit(block: str, **others: Read | None) -> dict[str, Read]:
    attention = f"{block}.attention"
    parts: dict[str, Read | None] = {
        "attn_out": gave(attention),
        "mlp_out": gave(f"{block}.mlp"),
        "mlp_act": took(f"{block}.mlp.fc2"),
        "q": gave(f"{attention}.q_proj"),
        "k": gave(f"{attention}.k_proj"),
        "v": gave(f"{attention}.v_proj"),
        "z": took(f"{attention}.o_proj"),
        "resid_mid": took(f"{block}.layernorm_after"),
    }
    return {site: read for site, read in (parts | others).items() if read is not None}


_CLIP = _llama(
    "encoder.layers.{}",
    mlp_act=took("encoder.layers.{}.mlp.fc2"),
    z=took("encoder.layers.{}.self_attn.out_proj"),
    resid_mid=took("encoder.layers.{}.layer_norm2"),
    q_rot=None,
    k_rot=None,
)
_BERT_PATHS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "down": "output.dense",
}
_PLAIN_HEADS = _heads(N_HEADS, N_HEADS, HEAD, False)
_TURNED_HEADS = _heads(N_HEADS, N_HEADS, HEAD, True)
_GEMMA2 = {
    "attn_out": gave("model.layers.{}.post_attention_layernorm"),
    "mlp_out": gave("model.layers.{}.post_feedforward_layernorm"),
    "resid_mid": took("model.layers.{}.pre_feedforward_layernorm"),
}
_H = "transformer.h.{}"

STREAMS: dict[str, dict[str, Stream]] = {
    "gpt2": {
        "": Stream(
            _H,
            {
                "attn_out": gave(f"{_H}.attn"),
                "mlp_out": gave(f"{_H}.mlp"),
                "mlp_act": took(f"{_H}.mlp.c_proj"),
                "q": gave(f"{_H}.attn.c_attn", _third(0)),
                "k": gave(f"{_H}.attn.c_attn", _third(1)),
                "v": gave(f"{_H}.attn.c_attn", _third(2)),
                "z": took(f"{_H}.attn.c_proj"),
                "resid_mid": took(f"{_H}.ln_2"),
            },
            "transformer.ln_f",
            logits=True,
            heads=_PLAIN_HEADS,
        )
    },
    "llama": {"": _causal(_llama())},
    "qwen2": {"": _causal(_llama())},
    "qwen3": {"": _causal(_llama(), 12)},
    "mistral": {"": _causal(_llama())},
    "gemma": {"": _causal(_llama())},
    "gemma2": {"": _causal(_llama(**_GEMMA2, q_rot=None, k_rot=None), seen=False)},
    "gemma3": {"": _causal(_llama(**_GEMMA2), 12)},
    "phi3": {
        "": _causal(
            _llama(
                q=gave("model.layers.{}.self_attn.qkv_proj", slice(0, 32)),
                k=gave("model.layers.{}.self_attn.qkv_proj", slice(32, 48)),
                v=gave("model.layers.{}.self_attn.qkv_proj", slice(48, 64)),
            )
        )
    },
    "mixtral": {"": _causal(_llama(mlp_act=None))},
    "neox": {
        "": Stream(
            "gpt_neox.layers.{}",
            _neox(False),
            "gpt_neox.final_layer_norm",
            logits=True,
            heads=_TURNED_HEADS,
        )
    },
    "neox_sequential": {
        "": Stream(
            "gpt_neox.layers.{}", _neox(True), "gpt_neox.final_layer_norm", logits=True, heads=_TURNED_HEADS
        )
    },
    "opt": {
        "": Stream(
            "model.decoder.layers.{}",
            _bert(
                "model.decoder.layers.{}",
                q="self_attn.q_proj",
                k="self_attn.k_proj",
                v="self_attn.v_proj",
                o="self_attn.out_proj",
                down="fc2",
            )
            | {"resid_mid": took("model.decoder.layers.{}.final_layer_norm")},
            "model.decoder.final_layer_norm",
            logits=True,
            heads=_PLAIN_HEADS,
        )
    },
    "bloom": {
        "": Stream(
            _H,
            {
                "attn_out": gave(f"{_H}.self_attention.dense"),
                "mlp_out": gave(f"{_H}.mlp.dense_4h_to_h"),
                "mlp_act": took(f"{_H}.mlp.dense_4h_to_h"),
                "q": gave(f"{_H}.self_attention.query_key_value", _fused(0)),
                "k": gave(f"{_H}.self_attention.query_key_value", _fused(1)),
                "v": gave(f"{_H}.self_attention.query_key_value", _fused(2)),
                "z": took(f"{_H}.self_attention.dense"),
                "resid_mid": took(f"{_H}.post_attention_layernorm"),
            },
            "transformer.ln_f",
            logits=True,
            heads=_PLAIN_HEADS,
        )
    },
    "falcon": {
        "": Stream(
            _H,
            {
                "attn_out": gave(f"{_H}.self_attention"),
                "mlp_out": gave(f"{_H}.mlp"),
                "mlp_act": took(f"{_H}.mlp.dense_4h_to_h"),
                "q": gave(f"{_H}.self_attention.query_key_value", slice(0, 32)),
                "k": gave(f"{_H}.self_attention.query_key_value", slice(32, 40)),
                "v": gave(f"{_H}.self_attention.query_key_value", slice(40, 48)),
                "q_rot": entered(0),
                "k_rot": entered(1, 4),
                "z": took(f"{_H}.self_attention.dense"),
            },
            "transformer.ln_f",
            logits=True,
            heads=_heads(N_HEADS, 1, HEAD, True),
        )
    },
    "gptj": {
        "": Stream(
            _H,
            {
                "attn_out": gave(f"{_H}.attn"),
                "mlp_out": gave(f"{_H}.mlp"),
                "mlp_act": took(f"{_H}.mlp.fc_out"),
                "q": gave(f"{_H}.attn.q_proj"),
                "k": gave(f"{_H}.attn.k_proj"),
                "v": gave(f"{_H}.attn.v_proj"),
                "q_rot": entered(0),
                "k_rot": entered(1),
                "z": took(f"{_H}.attn.out_proj"),
            },
            "transformer.ln_f",
            logits=True,
            heads=_heads(N_HEADS, N_HEADS, HEAD, True),
        )
    },
    "mamba": {
        "": Stream(
            "backbone.layers.{}",
            {"mixer_out": gave("backbone.layers.{}.mixer")},
            "backbone.norm_f",
            logits=True,
        )
    },
    "mamba2": {
        "": Stream(
            "backbone.layers.{}",
            {"mixer_out": gave("backbone.layers.{}.mixer")},
            "backbone.norm_f",
            logits=True,
        )
    },
    "bert": {
        "": Stream(
            "encoder.layer.{}", _bert("encoder.layer.{}", **_BERT_PATHS), heads=_PLAIN_HEADS, sums=False
        )
    },
    "roberta": {
        "": Stream(
            "encoder.layer.{}", _bert("encoder.layer.{}", **_BERT_PATHS), heads=_PLAIN_HEADS, sums=False
        )
    },
    "mpnet": {
        "": Stream(
            "encoder.layer.{}",
            _bert(
                "encoder.layer.{}",
                q="attention.attn.q",
                k="attention.attn.k",
                v="attention.attn.v",
                o="attention.attn.o",
                down="output.dense",
            ),
            heads=_PLAIN_HEADS,
            sums=False,
        )
    },
    "deberta": {
        "": Stream(
            "encoder.layer.{}",
            _bert(
                "encoder.layer.{}",
                q="attention.self.query_proj",
                k="attention.self.key_proj",
                v="attention.self.value_proj",
                o="attention.output.dense",
                down="output.dense",
            ),
            heads=_PLAIN_HEADS,
            sums=False,
        )
    },
    "distilbert": {
        "": Stream(
            "transformer.layer.{}",
            _bert(
                "transformer.layer.{}",
                q="attention.q_lin",
                k="attention.k_lin",
                v="attention.v_lin",
                o="attention.out_lin",
                down="ffn.lin2",
            ),
            heads=_PLAIN_HEADS,
            sums=False,
        )
    },
    "modernbert": {
        "": Stream(
            "layers.{}",
            {
                "attn_out": gave("layers.{}.attn"),
                "mlp_out": gave("layers.{}.mlp"),
                "mlp_act": took("layers.{}.mlp.Wo"),
                "q": gave("layers.{}.attn.Wqkv", _third(0)),
                "k": gave("layers.{}.attn.Wqkv", _third(1)),
                "v": gave("layers.{}.attn.Wqkv", _third(2)),
                "q_rot": entered(0),
                "k_rot": entered(1),
                "z": took("layers.{}.attn.Wo"),
                "resid_mid": took("layers.{}.mlp_norm"),
            },
            "final_norm",
            heads=_TURNED_HEADS,
        )
    },
    "clip_text": {"": Stream("encoder.layers.{}", _CLIP, "final_layer_norm", heads=_PLAIN_HEADS)},
    "clip_vision": {"": Stream("encoder.layers.{}", _CLIP, heads=_PLAIN_HEADS)},
    "vit": {"": Stream("layers.{}", _vit("layers.{}"), "layernorm", heads=_PLAIN_HEADS)},
    "dinov2": {
        "": Stream(
            "encoder.layer.{}",
            _vit(
                "encoder.layer.{}",
                attn_out=gave("encoder.layer.{}.layer_scale1"),
                mlp_out=gave("encoder.layer.{}.layer_scale2"),
                resid_mid=took("encoder.layer.{}.norm2"),
            ),
            "layernorm",
            heads=_PLAIN_HEADS,
        )
    },
    "t5": {
        "encoder": Stream(
            "encoder.block.{}",
            _t5("encoder"),
            "encoder.final_layer_norm",
            "encoder_hidden_states",
            heads=_PLAIN_HEADS,
        ),
        "decoder": Stream(
            "decoder.block.{}",
            _t5("decoder"),
            "decoder.final_layer_norm",
            "decoder_hidden_states",
            logits=True,
            heads=_PLAIN_HEADS,
        ),
    },
    "bart": {
        "encoder": Stream(
            "model.encoder.layers.{}",
            _bart("encoder"),
            None,
            "encoder_hidden_states",
            heads=_PLAIN_HEADS,
            sums=False,
        ),
        "decoder": Stream(
            "model.decoder.layers.{}",
            _bart("decoder"),
            None,
            "decoder_hidden_states",
            2,
            logits=True,
            heads=_PLAIN_HEADS,
            sums=False,
        ),
    },
}


def truth(
    name: str, model: nn.Module, inputs: Mapping[str, Any], rotated: bool = True
) -> dict[str, dict[int, torch.Tensor]]:
    """By site, with the stream's name in front, and by label: what is to be captured, padding and all.

    Without `rotated`, of a model that does not call the fused attention, which alone shows them.
    """
    takes = inspect.signature(model.forward).parameters
    watch = Watch(
        model, inputs, output_hidden_states=True, **{"use_cache": False} if "use_cache" in takes else {}
    )
    out = {}
    for stream, where in STREAMS[name].items():
        for site, layers in where.truth(watch, rotated).items():
            out[f"{stream}.{site}" if stream and site != "logits" else site] = layers
    return out
