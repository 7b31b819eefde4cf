"""A model's anatomy, read from a traced forward pass: its residual streams, and what each block adds to them.

The model runs once on a few tokens. The *blocks* are the items of a module list that pass a tensor of one
shape from one to the next. From a block's output, the reader follows additions back to the block's input. The
other terms of these additions are the block's *contributions*, each the output of one of its modules:

- `attn_out` depends on attention, `cross_attn_out` on attention to another stream;
- `mlp_out` is the contribution after it;
- `mixer_out` is the first contribution of a block without attention.

A norm of a sum continues the stream if the block ends there or adds to it (post-norm, as in BERT). A norm of
anything else is part of a contribution (as in Gemma 2). The input of the last linear map before a
contribution is `z` for attention and `mlp_act` for an MLP.

Queries, keys and values are traced back from the attention operation to their projections. A second pass
replaces each projection's output by an identifying code, which shows which features form q, k and v and
whether a rotation is applied (:mod:`actstore.capturing.discover.codes`).

This file has more than 400 lines because the reader of a trace is one algorithm with shared state.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .codes import N_SEQUENCES, coded, decoded
from .trace import PRODUCTS, Call, Op, Slot, TensorKey, TensorSpec, Trace, is_attention

_ADDS = frozenset({"aten::add", "aten::add_"})
_CLAMPS = frozenset({"aten::clamp", "aten::clamp_"})
"""T5 clamps the stream in half precision."""
_MIXES = frozenset({"aten::convolution", "aten::_fft_r2c"})
"""Operations other than attention that mix tokens, such as a state-space model's convolution."""


@dataclass(frozen=True, eq=False)
class HookPoint:
    """A tensor of the forward pass that a hook can read: an argument or a result of a module call."""

    module: str
    side: Literal["input", "output", "query", "key"]
    """`query` and `key` are those that enter the attention operation inside the module."""
    slot: Slot
    shape: tuple[int, ...]
    """In the dry run."""
    dtype: torch.dtype
    features: NDArray[np.int64] | None = None
    """Features of the last dimension to take; None takes all."""
    call: int = 0
    """Number of the call, for a module that is called several times."""


@dataclass
class Heads:
    """The heads of queries, keys or values: their number, their dimension and the rotary state."""

    n_heads: int
    head_dim: int
    rotary: str
    """``none``, or ``before`` or ``after`` the rotation."""


@dataclass
class ModelBlock:
    """One block of a residual stream."""

    path: str
    input: HookPoint
    output: HookPoint
    parts: dict[str, HookPoint] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)
    post_norm: bool = False


@dataclass
class ResidualStream:
    """A residual stream and its blocks."""

    name: str
    """``encoder``, ``decoder``, ...; empty if the model has only one stream."""
    blocks: list[ModelBlock]
    final: HookPoint | None = None
    """The output of the norm that follows the last block."""
    final_bias: bool = False
    """Whether that norm is a LayerNorm with a bias."""
    states: list[int | None] = field(default_factory=list)
    """For each of transformers' `hidden_states`, the number of blocks after which the stream equals it, or
    None for the stream after the final norm. Empty if the model returns none, or other tensors."""


@dataclass
class Anatomy:
    """The structure of a model."""

    streams: list[ResidualStream]
    """In the order in which they run."""
    results: dict[str, list[HookPoint]]
    """For each module that ran, the first floating-point tensor of its result, once per call."""
    logits: HookPoint | None


def anatomy(model: nn.Module, call: Callable[[], Any], encoder_decoder: bool = False) -> Anatomy:
    """Trace a model and read its structure.

    Parameters
    ----------
    model : Module
    call : callable
        Runs the model on one batch and returns its result, with `hidden_states` if possible.
    encoder_decoder : bool
        Whether the first stream belongs to an encoder and the second to a decoder.
    """
    with torch.no_grad(), Trace(model) as trace:
        result = call()
    results: dict[str, list[HookPoint]] = {}
    for module_call in trace.calls:
        floats = [out for out in module_call.outs if out[2].dtype.is_floating_point]
        if floats:
            results.setdefault(module_call.path, []).append(_hook_point(module_call, "output", floats[0]))
    (root,) = (module_call for module_call in trace.calls if module_call.parent is None)
    logits = next((_hook_point(root, "output", out) for out in root.outs if out[0] == "logits"), None)
    reader = _TraceReader(trace)
    streams = reader.streams(encoder_decoder, result)
    if reader.attentions and root.ins and root.ins[0][2].shape[:1] == (N_SEQUENCES,):
        projections = {
            source.path: source.module for block in reader.attentions for _, source in block.projections
        }
        with torch.no_grad(), coded(projections.values()), Trace(model) as coded_trace:
            call()
        reader.read_heads(coded_trace)
    return Anatomy(streams, results, logits)


@dataclass(frozen=True)
class _Term:
    """A contribution to the stream."""

    key: TensorKey
    at: int
    """Number of the operation that computed it."""
    point: HookPoint | None
    linear: Call | None
    """The last linear map before it."""


@dataclass(frozen=True)
class _AttentionSources:
    """A block with attention, and the projections that its queries, keys and values come from."""

    block: ModelBlock
    projections: list[tuple[str, Call]]


class _TraceReader:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.attentions: list[_AttentionSources] = []
        self._by_out: dict[TensorKey, list[Call]] = {}
        for call in trace.calls:
            for _, key, _ in call.outs:
                self._by_out.setdefault(key, []).append(call)
        self._by_path: dict[str, list[Call]] = {}
        for call in trace.calls:
            self._by_path.setdefault(call.path, []).append(call)

    # ---- streams ----

    def streams(self, encoder_decoder: bool, result: Any) -> list[ResidualStream]:
        found: list[tuple[str, list[Call]]] = []
        for path, module in self._trace.model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential) and not any(
                path.startswith(f"{other}.") for other, _ in found
            ):
                calls = self._chain(path, module)
                if calls:
                    found.append((path, calls))
        found = self._main_chains(found)
        found.sort(key=lambda item: item[1][0].start)
        names = _names([path for path, _ in found], encoder_decoder)
        return [self._stream(name, calls, result) for name, (_, calls) in zip(names, found, strict=True)]

    def _main_chains(self, found: list[tuple[str, list[Call]]]) -> list[tuple[str, list[Call]]]:
        """The chains that do most of the model's attention or, without attention, most of its linear maps.

        A head may consist of blocks as well. Returns nothing if most of the work happens outside the chains,
        since then the reader does not understand the model's blocks.
        """
        work = [at for at, op in enumerate(self._trace.ops) if _computes_attention(op)]
        work = work or [call.start for call in self._trace.calls if _is_linear_like(call)]
        shares = [sum(calls[0].start <= at < calls[-1].end for at in work) for _, calls in found]
        if not work or not found:
            return found
        main = [(chain, n) for chain, n in zip(found, shares, strict=True) if 10 * n >= max(shares)]
        return [chain for chain, _ in main] if 2 * sum(n for _, n in main) > len(work) else []

    def _chain(self, path: str, module: nn.Module) -> list[Call] | None:
        """The calls of a list's items, if each runs once, in order, and continues a stream."""
        items = []
        for name, child in module.named_children():
            calls = self._by_path.get(f"{path}.{name}" if path else name, [])
            if not calls and isinstance(child, nn.Identity):
                continue
            if len(calls) != 1:
                return None
            items += calls
        for call in items:
            ends = _input_and_output(call)
            if ends is None or not self._is_stream(call, ends[1][1], ends[0][1]):
                return None
        starts = [call.start for call in items]
        return items if items and starts == sorted(starts) else None

    def _stream(self, name: str, calls: list[Call], result: Any) -> ResidualStream:
        stream = ResidualStream(name, [self._block(call) for call in calls])
        all_ends = [ends for call in calls if (ends := _input_and_output(call)) is not None]
        last = all_ends[-1][1][1]
        known: dict[TensorKey, int | None] = {entry[1]: i for i, (entry, _) in enumerate(all_ends)}
        known[last] = len(calls)
        for call in self._trace.calls:
            if call.start >= calls[-1].end and _is_norm_like(call) and call.ins[0][1] == last:
                stream.final = _hook_point(call, "output", call.outs[0])
                stream.final_bias = getattr(call.module, "bias", None) is not None
                known[call.outs[0][1]] = None
                break
        prefix = f"{name}_" if name in ("encoder", "decoder") else ""
        states = getattr(result, f"{prefix}hidden_states", None)
        if isinstance(states, tuple | list) and all(isinstance(state, torch.Tensor) for state in states):
            keys = [self._trace.key(state) for state in states]
            if all(key in known for key in keys):
                stream.states = [known[key] for key in keys]
        return stream

    # ---- the stream within a block ----

    def _is_stream(self, block: Call, key: TensorKey, entry: TensorKey, depth: int = 0) -> bool:
        """Whether a tensor is the stream: the block's input, a sum with it, or a norm of such a sum."""
        if key == entry:
            return depth > 0  # A module that returns its input unchanged is not a block.
        op = self._producing_op(block, key)
        if op is not None and op.name in _ADDS:
            return any(self._is_stream(block, part, entry, depth + 1) for part in op.ins)
        if op is not None and op.name in _CLAMPS:
            return self._is_stream(block, op.ins[0], entry, depth)
        source = self._norm_input(block, key)
        if source is None:
            return False
        op = self._producing_op(block, source)
        return op is not None and op.name in _ADDS and self._is_stream(block, source, entry, depth + 1)

    def _terms(self, block: Call, key: TensorKey, entry: TensorKey) -> list[_Term]:
        """The contributions to the stream up to `key`."""
        if key == entry:
            return []
        op = self._producing_op(block, key)
        if op is not None and op.name in _CLAMPS:
            return self._terms(block, op.ins[0], entry)
        if op is None or op.name not in _ADDS:
            source = self._norm_input(block, key)
            return self._terms(block, source, entry) if source is not None else []
        out: list[_Term] = []
        for part in op.ins:
            if self._is_stream(block, part, entry, 1):
                out += self._terms(block, part, entry)
            else:
                out += self._summands(block, part)
        return out

    def _summands(self, block: Call, key: TensorKey) -> list[_Term]:
        """A contribution, or several that are summed before they are added to the stream."""
        op = self._producing_op(block, key)
        if op is None:
            return []  # A constant, or a parameter.
        point = self._producing_module(block, key)
        if point is None and op.name in _ADDS:
            return [term for part in op.ins for term in self._summands(block, part)]
        return [_Term(key, self._trace.producer[key], point, self._last_linear(block, key))]

    def _producing_op(self, block: Call, key: TensorKey) -> Op | None:
        """The operation within a block that computed a tensor; None if none did."""
        at = self._trace.producer.get(key)
        return self._trace.ops[at] if at is not None and block.start <= at < block.end else None

    def _producing_calls(self, block: Call, key: TensorKey) -> list[Call]:
        """The module calls within a block that returned a tensor."""
        return [call for call in self._by_out.get(key, []) if call.within(block)]

    def _producing_module(self, block: Call, key: TensorKey) -> HookPoint | None:
        """The module that computed a tensor, preferably as ``[batch, token, dim]``."""
        found = [
            (call, next(out for out in call.outs if out[1] == key))
            for call in self._producing_calls(block, key)
            if all(input_key != key for _, input_key, _ in call.ins)
        ]
        found.sort(key=lambda pair: pair[1][2].ndim != 3)  # Some modules flatten the batch inside.
        return _hook_point(found[0][0], "output", found[0][1]) if found else None

    def _norm_input(self, block: Call, key: TensorKey) -> TensorKey | None:
        """The input of the norm that computed a tensor, or None if none did."""
        return next(
            (call.ins[0][1] for call in self._producing_calls(block, key) if _is_norm_like(call)), None
        )

    def _last_linear(self, block: Call, key: TensorKey) -> Call | None:
        """The last linear map before a tensor, with nothing but a few norms and scales in between."""
        for _ in range(4):  # Skip norms and scales in between.
            calls = self._producing_calls(block, key)
            found = next((call for call in calls if _is_linear_like(call)), None)
            if found is not None:
                return found
            source = self._norm_input(block, key)
            if source is None:
                return None
            key = source
        return None

    # ---- the parts of a block ----

    def _block(self, call: Call) -> ModelBlock:
        ends = _input_and_output(call)
        assert ends is not None
        entry, leaving = ends[0][1], ends[1][1]
        block = ModelBlock(
            call.path, _hook_point(call, "input", ends[0]), _hook_point(call, "output", ends[1])
        )
        block.post_norm = self._norm_input(call, leaving) is not None
        terms = sorted(self._terms(call, leaving, entry), key=lambda term: term.at)
        for term in terms:
            name = self._contribution_name(call, term, entry, block.parts)
            if name in block.parts:  # Only the first contribution of each kind has a name.
                continue
            if term.point is not None:
                block.parts[name] = term.point
            if term.linear is not None and name in ("attn_out", "mlp_out"):
                inner = "z" if name == "attn_out" else "mlp_act"
                block.parts[inner] = _hook_point(term.linear, "input", term.linear.ins[0])
            if name == "attn_out":
                self._find_projections(call, block)
        middle = self._mid_stream(call, leaving, entry)
        if middle is not None and len(terms) > 1 and not block.post_norm:
            block.parts["resid_mid"] = middle
        return block

    def _contribution_name(
        self, block: Call, term: _Term, entry: TensorKey, before: Mapping[str, Any]
    ) -> str:
        """The name of a contribution, by the operations between it and the stream."""
        between = list(self._ops_between(block, term.key, entry))
        if any(map(_computes_attention, between)):
            return "cross_attn_out" if "attn_out" in before else "attn_out"
        if any(op.name in _MIXES for op in between):
            return "mixer_out"
        return "mlp_out" if before or self._has_attention(block) else "mixer_out"

    def _ops_between(self, block: Call, key: TensorKey, entry: TensorKey) -> Iterator[Op]:
        """The operations that compute a tensor from the stream."""
        visited: set[TensorKey] = set()
        pending = [key]
        while pending:
            key = pending.pop()
            op = self._producing_op(block, key)
            if key in visited or op is None or (key != entry and self._is_stream(block, key, entry, 1)):
                continue
            visited.add(key)
            yield op
            pending += op.ins

    def _has_attention(self, block: Call) -> bool:
        return _first_attention(self._trace, block) is not None

    def _mid_stream(self, block: Call, key: TensorKey, entry: TensorKey) -> HookPoint | None:
        """The stream between the first addition and the second, as the input of a module."""
        op = self._producing_op(block, key)
        if op is not None and op.name in _CLAMPS:
            op = self._producing_op(block, op.ins[0])
        between = [part for part in op.ins if self._is_stream(block, part, entry, 1)] if op else []
        if len(between) != 1 or between[0] == entry:
            return None
        for call in self._trace.calls:
            if call.within(block) and call.ins and call.ins[0][1] == between[0]:
                return _hook_point(call, "input", call.ins[0])
        return None

    def _find_projections(self, call: Call, block: ModelBlock) -> None:
        """Find the projections of the queries, keys and values of a block's attention."""
        projections: list[tuple[str, Call]] = []
        for name, (key, _) in _attention_inputs(self._trace, call).items():
            roots = self._last_linears(call, key)
            if len(roots) == 1:
                projections.append((name, roots.pop()))
        if projections:
            self.attentions.append(_AttentionSources(block, projections))

    def read_heads(self, coded_trace: Trace) -> None:
        """Add q, k and v and their heads to the blocks, from a trace in which projections output codes."""
        calls = {call.path: call for call in coded_trace.calls}
        for attention in self.attentions:
            call, block = calls[attention.block.path], attention.block
            inputs = _attention_inputs(coded_trace, call)
            sources = [source for _, source in attention.projections]
            for name, source in attention.projections:
                spec = source.outs[0][2]
                tensor = inputs[name][1] if name in inputs else None
                if tensor is None or tensor.ndim != 4 or spec.ndim != 3 or tensor.shape[2] != spec.shape[1]:
                    continue
                features, rotated = decoded(tensor, spec.shape[-1])
                if features is None and (sources.count(source) > 1 or spec.shape[-1] % tensor.shape[-1]):
                    continue  # q, k and v share the projection, and the features of each are unknown.
                if features is not None and np.array_equal(features, np.arange(spec.shape[-1])):
                    features = None
                width = spec.shape[-1] if features is None else len(features)
                heads = Heads(width // tensor.shape[-1], tensor.shape[-1], "before" if rotated else "none")
                block.parts[name] = _hook_point(source, "output", source.outs[0], features)
                block.heads[name] = heads
                if rotated and name != "v" and _is_fused(coded_trace, call):
                    side: Literal["query", "key"] = "query" if name == "q" else "key"
                    shape = (*spec.shape[:-1], width)
                    block.parts[f"{name}_rot"] = HookPoint(call.path, side, None, shape, spec.dtype)
                    block.heads[f"{name}_rot"] = replace(heads, rotary="after")

    def _last_linears(self, block: Call, key: TensorKey) -> set[Call]:
        """The last linear maps of a block on the way to a tensor."""
        visited: set[TensorKey] = set()
        roots: set[Call] = set()
        pending = [key]
        while pending:
            key = pending.pop()
            if key in visited:
                continue
            visited.add(key)
            source = next((call for call in self._producing_calls(block, key) if _is_linear_like(call)), None)
            if source is not None:
                roots.add(source)
                continue
            op = self._producing_op(block, key)
            if op is not None:
                pending += op.ins
        return roots


_Item = tuple[Slot, TensorKey, TensorSpec]


def _hook_point(
    call: Call, side: Literal["input", "output"], item: _Item, features: NDArray[np.int64] | None = None
) -> HookPoint:
    slot, _, spec = item
    shape = spec.shape if features is None else (*spec.shape[:-1], len(features))
    return HookPoint(call.path, side, slot, shape, spec.dtype, features, call.number)


def _input_and_output(call: Call) -> tuple[_Item, _Item] | None:
    """A call's first input ``[batch, token, dim]``, and its first result of the same shape."""
    entry = next((item for item in call.ins if item[2].ndim == 3 and item[2].dtype.is_floating_point), None)
    if entry is None:
        return None
    leaving = next((item for item in call.outs if item[2].shape == entry[2].shape), None)
    return None if leaving is None else (entry, leaving)


def _is_norm_like(call: Call) -> bool:
    """Whether a call looks like a norm: it keeps the shape, and all its parameters are vectors."""
    if not call.leaf or not call.ins or not call.outs or call.ins[0][1] == call.outs[0][1]:
        return False
    parameters = list(call.module.parameters(recurse=False))
    named = "norm" in type(call.module).__name__.lower()
    vectors = bool(parameters) and all(parameter.ndim == 1 for parameter in parameters)
    return (vectors or (named and not parameters)) and call.ins[0][2].shape == call.outs[0][2].shape


def _is_linear_like(call: Call) -> bool:
    """Whether a call multiplies by a matrix: a linear map, or GPT-2's convolution of width 1."""
    if not call.leaf or not call.ins or not call.outs or not call.ins[0][2].dtype.is_floating_point:
        return False
    weight = getattr(call.module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and call.outs[0][2].ndim >= 2


def _computes_attention(op: Op) -> bool:
    softmax = op.name in ("aten::_softmax", "aten::_safe_softmax") and op.specs[0].ndim == 4
    return softmax or is_attention(op.name)


def _first_attention(trace: Trace, block: Call) -> int | None:
    return next((at for at in range(block.start, block.end) if _computes_attention(trace.ops[at])), None)


def _is_fused(trace: Trace, block: Call) -> bool:
    """Whether a block computes attention in one operation."""
    at = _first_attention(trace, block)
    return at is not None and "scaled_dot_product" in trace.ops[at].name


def _attention_inputs(trace: Trace, block: Call) -> dict[str, tuple[TensorKey, torch.Tensor]]:
    """The queries, keys and values ``[B, H, T, d]`` that enter a block's first attention.

    In eager attention they are the operands of the matrix products before and after the softmax.
    """
    at = _first_attention(trace, block)
    if at is None:
        return {}
    ops, op = trace.ops, trace.ops[at]
    if is_attention(op.name):
        return dict(zip("qkv", zip(op.ins, op.tensors, strict=True), strict=False))
    before = next((op for op in reversed(ops[block.start : at]) if op.name in PRODUCTS), None)
    after = next((op for op in ops[at : block.end] if op.name in PRODUCTS), None)
    if before is None or after is None:
        return {}
    heads = op.specs[0].shape[:2]
    query, key, value = (
        tensor.reshape(*heads, *tensor.shape[-2:]) for tensor in (*before.tensors[-2:], after.tensors[-1])
    )
    return {
        "q": (before.ins[-2], query),
        "k": (before.ins[-1], key.transpose(-1, -2)),
        "v": (after.ins[-1], value),
    }


def _names(paths: Sequence[str], encoder_decoder: bool) -> list[str]:
    """Names of the streams: empty for a single one, else the first part in which their paths differ."""
    if len(paths) <= 1:
        return [""] * len(paths)
    if encoder_decoder and len(paths) == 2:
        return ["encoder", "decoder"]
    split = [path.split(".") for path in paths]
    common = next((i for i, names in enumerate(zip(*split, strict=False)) if len(set(names)) > 1), None)
    short = [names[common] for names in split] if common is not None else []
    return short if len(set(short)) == len(paths) else list(paths)
