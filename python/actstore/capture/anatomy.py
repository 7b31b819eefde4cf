"""What a model is made of, by structure: where its residual stream runs and what each block adds to it.

A model is run once, on a few tokens, and the operations are read backwards from the end of each block. The
*blocks* are the items of a list of modules that pass a tensor of one shape on to one another. From a block's
result we follow the additions back to its input: what was added on the way are its *contributions*, each the
result of one of its modules. A contribution that came about by attention is `attn_out`, by attention to
another stream `cross_attn_out`, the one after it `mlp_out`; where a block has no attention the first is
`mixer_out`. A norm of a sum carries the stream on when a block ends there or adds to it (post-norm, as in
BERT); a norm of anything else is part of a contribution (as in Gemma 2). What goes into the last linear map
before a contribution is `z` for attention and `mlp_act` for the MLP. Queries, keys and values are followed
back from the attention operation to the linear maps that they come from. Which elements of such a map they
are, and whether they are rotated on the way, a second run shows, in which these maps give numbers that say
which element each is (:mod:`actstore.capture.codes`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .codes import N_SEQUENCES, coded, decoded
from .trace import PRODUCTS, Call, Form, Key, Op, Place, Trace, is_attention

_ADDS = frozenset({"aten::add", "aten::add_"})
_CLAMPS = frozenset({"aten::clamp", "aten::clamp_"})
"""T5 does so in half precision."""
_MIXES = frozenset({"aten::convolution", "aten::_fft_r2c"})
"""What reaches over tokens without being attention: a state-space model's convolution and the like."""


@dataclass(frozen=True, eq=False)
class Tap:
    """A tensor of the forward pass: an argument or the result of a module's call."""

    module: str
    side: Literal["input", "output", "query", "key"]
    """`query` and `key`: as they enter the attention operation within the module."""
    at: Place
    shape: tuple[int, ...]
    """When it was watched."""
    dtype: torch.dtype
    columns: NDArray[np.int64] | None = None
    """Which elements of the last dimension; None: all."""
    call: int = 0
    """Of a module that is called several times: which one."""


@dataclass
class Heads:
    """Of queries, keys or values: how many heads of what dimension, and whether rotated."""

    n_heads: int
    head_dim: int
    rotary: str
    """`none`, `before` or `after` the rotation."""


@dataclass
class Block:
    """One block of a stream."""

    path: str
    enters: Tap
    leaves: Tap
    parts: dict[str, Tap] = field(default_factory=dict)
    heads: dict[str, Heads] = field(default_factory=dict)
    post_norm: bool = False


@dataclass
class Stream:
    """The blocks that pass one residual stream on."""

    name: str
    """`encoder`, `decoder`, ...; empty where there is only one."""
    blocks: list[Block]
    final: Tap | None = None
    """After the norm that follows the last block."""
    final_bias: bool = False
    """Whether that norm is a LayerNorm with a bias."""
    states: list[int | None] = field(default_factory=list)
    """Of each of transformers' `hidden_states`: after how many blocks the stream is that, None: after the
    final norm. Empty where the model gives none, or others."""


@dataclass
class Anatomy:
    """What was found."""

    streams: list[Stream]
    """In the order in which they run."""
    results: dict[str, list[Tap]]
    """Of each module that was called, its first result that is a tensor of floats, once for each call."""
    logits: Tap | None


def anatomy(model: nn.Module, call: Callable[[], Any], encoder_decoder: bool = False) -> Anatomy:
    """Watch a model and say what it is made of.

    Parameters
    ----------
    model : Module
    call : callable
        Runs it on one batch and returns what it gave, with `hidden_states` where it can.
    encoder_decoder : bool
        Whether the first stream is an encoder's and the second a decoder's.
    """
    with torch.no_grad(), Trace(model) as trace:
        result = call()
    results: dict[str, list[Tap]] = {}
    for made in trace.calls:
        floats = [out for out in made.outs if out[2].dtype.is_floating_point]
        if floats:
            results.setdefault(made.path, []).append(_tap(made, "output", floats[0]))
    (whole,) = (made for made in trace.calls if made.parent is None)
    logits = next((_tap(whole, "output", out) for out in whole.outs if out[0] == "logits"), None)
    reader = _Reader(trace)
    streams = reader.streams(encoder_decoder, result)
    if reader.projected and whole.ins and all(of.shape[:1] == (N_SEQUENCES,) for _, _, of in whole.ins[:1]):
        sources = {source.path: source.module for found in reader.projected for _, source in found.sources}
        with torch.no_grad(), coded(sources.values()), Trace(model) as again:
            call()
        reader.heads(again)
    return Anatomy(streams, results, logits)


@dataclass(frozen=True)
class _Term:
    """A contribution: its tensor, the operations before it, the module that gave it."""

    key: Key
    at: int
    tap: Tap | None
    linear: Call | None
    """The last linear map before it."""


@dataclass(frozen=True)
class _Projected:
    """The attention of a block, and of queries, keys and values the linear map that they come from."""

    block: Block
    sources: list[tuple[str, Call]]


class _Reader:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self.projected: list[_Projected] = []
        self._by_out: dict[Key, list[Call]] = {}
        for call in trace.calls:
            for _, key, _ in call.outs:
                self._by_out.setdefault(key, []).append(call)
        self._by_path: dict[str, list[Call]] = {}
        for call in trace.calls:
            self._by_path.setdefault(call.path, []).append(call)

    # ---- streams ----

    def streams(self, encoder_decoder: bool, result: Any) -> list[Stream]:
        found: list[tuple[str, list[Call]]] = []
        for path, module in self._trace._model.named_modules():
            if isinstance(module, nn.ModuleList | nn.Sequential) and not any(
                path.startswith(f"{other}.") for other, _ in found
            ):
                calls = self._chain(path, module)
                if calls:
                    found.append((path, calls))
        found = self._main(found)
        found.sort(key=lambda item: item[1][0].start)
        names = _names([path for path, _ in found], encoder_decoder)
        return [self._stream(name, calls, result) for name, (_, calls) in zip(names, found, strict=True)]

    def _main(self, found: list[tuple[str, list[Call]]]) -> list[tuple[str, list[Call]]]:
        """Those in which the model's work is done: most of its attention or, without any, of its linear maps.

        A head may be made of blocks as well, and the blocks of some models are not understood.
        """
        work = [at for at, op in enumerate(self._trace.ops) if _attention(op)]
        work = work or [call.start for call in self._trace.calls if _linear_like(call)]
        done = [sum(calls[0].start <= at < calls[-1].end for at in work) for _, calls in found]
        if not work or not found:
            return found
        kept = [(one, n) for one, n in zip(found, done, strict=True) if 10 * n >= max(done)]
        return [one for one, _ in kept] if 2 * sum(n for _, n in kept) > len(work) else []

    def _chain(self, path: str, module: nn.Module) -> list[Call] | None:
        """The calls of a list's items, if each was called once, in turn, and passes a stream on."""
        items = []
        for name, child in module.named_children():
            calls = self._by_path.get(f"{path}.{name}" if path else name, [])
            if not calls and isinstance(child, nn.Identity):
                continue
            if len(calls) != 1:
                return None
            items += calls
        for call in items:
            ends = _ends(call)
            if ends is None or not self._carries(call, ends[1][1], ends[0][1]):
                return None
        starts = [call.start for call in items]
        return items if items and starts == sorted(starts) else None

    def _stream(self, name: str, calls: list[Call], result: Any) -> Stream:
        stream = Stream(name, [self._block(call) for call in calls])
        every = [ends for call in calls if (ends := _ends(call)) is not None]
        last = every[-1][1][1]
        known: dict[Key, int | None] = {entry[1]: i for i, (entry, _) in enumerate(every)}
        known[last] = len(calls)
        for call in self._trace.calls:
            if call.start >= calls[-1].end and _norm_like(call) and call.ins[0][1] == last:
                stream.final = _tap(call, "output", call.outs[0])
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

    def _carries(self, block: Call, key: Key, entry: Key, depth: int = 0) -> bool:
        """Whether a tensor is the stream: the block's input, a sum with it, or a norm of such a sum."""
        if key == entry:
            return depth > 0  # A block that returns its input does nothing.
        op = self._made(block, key)
        if op is not None and op.name in _ADDS:
            return any(self._carries(block, part, entry, depth + 1) for part in op.ins)
        if op is not None and op.name in _CLAMPS:
            return self._carries(block, op.ins[0], entry, depth)
        source = self._normed(block, key)
        if source is None:
            return False
        op = self._made(block, source)
        return op is not None and op.name in _ADDS and self._carries(block, source, entry, depth + 1)

    def _terms(self, block: Call, key: Key, entry: Key) -> list[_Term]:
        """The contributions to the stream up to `key`."""
        if key == entry:
            return []
        op = self._made(block, key)
        if op is not None and op.name in _CLAMPS:
            return self._terms(block, op.ins[0], entry)
        if op is None or op.name not in _ADDS:
            source = self._normed(block, key)
            return self._terms(block, source, entry) if source is not None else []
        out: list[_Term] = []
        for part in op.ins:
            if self._carries(block, part, entry, 1):
                out += self._terms(block, part, entry)
            else:
                out += self._split(block, part, op)
        return out

    def _split(self, block: Call, key: Key, of: Op) -> list[_Term]:
        """A contribution, or the several that were added up before they joined the stream."""
        made = self._made(block, key)
        if made is None:
            return []  # A constant, or a parameter.
        tap = self._giver(block, key)
        if tap is None and made.name in _ADDS:
            return [term for part in made.ins for term in self._split(block, part, made)]
        return [_Term(key, self._trace.producer[key], tap, self._linear(block, key))]

    def _made(self, block: Call, key: Key) -> Op | None:
        at = self._trace.producer.get(key)
        return self._trace.ops[at] if at is not None and block.start <= at < block.end else None

    def _calls(self, block: Call, key: Key) -> list[Call]:
        return [call for call in self._by_out.get(key, []) if call.within(block)]

    def _giver(self, block: Call, key: Key) -> Tap | None:
        """The module that made a tensor, not only passed it on; at best as ``[batch, token, dim]``."""
        found = [
            (call, next(out for out in call.outs if out[1] == key))
            for call in self._calls(block, key)
            if all(taken != key for _, taken, _ in call.ins)
        ]
        found.sort(key=lambda pair: pair[1][2].ndim != 3)  # Some flatten the batch within.
        return _tap(found[0][0], "output", found[0][1]) if found else None

    def _normed(self, block: Call, key: Key) -> Key | None:
        """What a norm took to give this."""
        return next((call.ins[0][1] for call in self._calls(block, key) if _norm_like(call)), None)

    def _linear(self, block: Call, key: Key) -> Call | None:
        for _ in range(4):  # Norms and scales in between.
            calls = self._calls(block, key)
            found = next((call for call in calls if _linear_like(call)), None)
            if found is not None:
                return found
            source = self._normed(block, key)
            if source is None:
                return None
            key = source
        return None

    # ---- the parts of a block ----

    def _block(self, call: Call) -> Block:
        ends = _ends(call)
        assert ends is not None
        entry, leaving = ends[0][1], ends[1][1]
        block = Block(call.path, _tap(call, "input", ends[0]), _tap(call, "output", ends[1]))
        block.post_norm = self._normed(call, leaving) is not None
        terms = sorted(self._terms(call, leaving, entry), key=lambda term: term.at)
        for term in terms:
            name = self._kind(call, term, entry, block.parts)
            if name in block.parts:  # More than we have names for.
                continue
            if term.tap is not None:
                block.parts[name] = term.tap
            if term.linear is not None and name in ("attn_out", "mlp_out"):
                inner = "z" if name == "attn_out" else "mlp_act"
                block.parts[inner] = _tap(term.linear, "input", term.linear.ins[0])
            if name == "attn_out":
                self._project(call, block)
        middle = self._middle(call, leaving, entry)
        if middle is not None and len(terms) > 1 and not block.post_norm:
            block.parts["resid_mid"] = middle
        return block

    def _kind(self, block: Call, term: _Term, entry: Key, before: Mapping[str, Any]) -> str:
        """What a contribution is, by the operations between it and the stream."""
        between = list(self._between(block, term.key, entry))
        if any(map(_attention, between)):
            return "cross_attn_out" if "attn_out" in before else "attn_out"
        if any(op.name in _MIXES for op in between):
            return "mixer_out"
        return "mlp_out" if before or self._attends(block) else "mixer_out"

    def _between(self, block: Call, key: Key, entry: Key) -> Iterator[Op]:
        """The operations of a block by which a tensor came of the stream."""
        seen: set[Key] = set()
        todo = [key]
        while todo:
            key = todo.pop()
            op = self._made(block, key)
            if key in seen or op is None or (key != entry and self._carries(block, key, entry, 1)):
                continue
            seen.add(key)
            yield op
            todo += op.ins

    def _attends(self, block: Call) -> bool:
        return _first_attention(self._trace, block) is not None

    def _middle(self, block: Call, key: Key, entry: Key) -> Tap | None:
        """The stream between the first addition and the second, where a module takes it."""
        op = self._made(block, key)
        if op is not None and op.name in _CLAMPS:
            op = self._made(block, op.ins[0])
        between = [part for part in op.ins if self._carries(block, part, entry, 1)] if op else []
        if len(between) != 1 or between[0] == entry:
            return None
        for call in self._trace.calls:
            if call.within(block) and call.ins and call.ins[0][1] == between[0]:
                return _tap(call, "input", call.ins[0])
        return None

    def _project(self, call: Call, block: Block) -> None:
        """Which linear maps the queries, keys and values of a block's attention come from."""
        sources: list[tuple[str, Call]] = []
        for name, (key, _) in _entering(self._trace, call).items():
            roots = self._roots(call, key)
            if len(roots) == 1:
                sources.append((name, roots.pop()))
        if sources:
            self.projected.append(_Projected(block, sources))

    def heads(self, again: Trace) -> None:
        """What a run with codes says of queries, keys and values."""
        calls = {call.path: call for call in again.calls}
        for found in self.projected:
            call, block = calls[found.block.path], found.block
            entering = _entering(again, call)
            shared = [source for _, source in found.sources]
            for name, source in found.sources:
                given = source.outs[0][2]
                tensor = entering[name][1] if name in entering else None
                if tensor is None or tensor.ndim != 4 or given.ndim != 3 or tensor.shape[2] != given.shape[1]:
                    continue
                columns, rotated = decoded(tensor, given.shape[-1])
                if columns is None and (shared.count(source) > 1 or given.shape[-1] % tensor.shape[-1]):
                    continue  # One map for several of them, and no telling which elements are whose.
                if columns is not None and np.array_equal(columns, np.arange(given.shape[-1])):
                    columns = None
                width = given.shape[-1] if columns is None else len(columns)
                heads = Heads(width // tensor.shape[-1], tensor.shape[-1], "before" if rotated else "none")
                block.parts[name] = _tap(source, "output", source.outs[0], columns)
                block.heads[name] = heads
                if rotated and name != "v" and _fused(again, call):
                    side: Literal["query", "key"] = "query" if name == "q" else "key"
                    shape = (*given.shape[:-1], width)
                    block.parts[f"{name}_rot"] = Tap(call.path, side, None, shape, given.dtype)
                    block.heads[f"{name}_rot"] = replace(heads, rotary="after")

    def _roots(self, block: Call, key: Key) -> set[Call]:
        """The linear maps of a block from which a tensor comes, without others in between."""
        seen: set[Key] = set()
        roots: set[Call] = set()
        todo = [key]
        while todo:
            key = todo.pop()
            if key in seen:
                continue
            seen.add(key)
            source = next((call for call in self._calls(block, key) if _linear_like(call)), None)
            if source is not None:
                roots.add(source)
                continue
            op = self._made(block, key)
            if op is not None:
                todo += op.ins
        return roots


_Item = tuple[Place, Key, Form]


def _tap(
    call: Call, side: Literal["input", "output"], item: _Item, columns: NDArray[np.int64] | None = None
) -> Tap:
    place, _, form = item
    shape = form.shape if columns is None else (*form.shape[:-1], len(columns))
    return Tap(call.path, side, place, shape, form.dtype, columns, call.number)


def _ends(call: Call) -> tuple[_Item, _Item] | None:
    """A call's first input ``[batch, token, dim]`` and its result of the same shape."""
    entry = next((item for item in call.ins if item[2].ndim == 3 and item[2].dtype.is_floating_point), None)
    if entry is None:
        return None
    leaving = next((item for item in call.outs if item[2].shape == entry[2].shape), None)
    return None if leaving is None else (entry, leaving)


def _norm_like(call: Call) -> bool:
    """A norm, or another map of each element by itself: one tensor, all parameters vectors."""
    if not call.leaf or not call.ins or not call.outs or call.ins[0][1] == call.outs[0][1]:
        return False
    parameters = list(call.module.parameters(recurse=False))
    named = "norm" in type(call.module).__name__.lower()
    vectors = bool(parameters) and all(parameter.ndim == 1 for parameter in parameters)
    return (vectors or (named and not parameters)) and call.ins[0][2].shape == call.outs[0][2].shape


def _linear_like(call: Call) -> bool:
    """A map by a matrix: linear, or GPT-2's convolution of width 1."""
    if not call.leaf or not call.ins or not call.outs or not call.ins[0][2].dtype.is_floating_point:
        return False
    weight = getattr(call.module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and call.outs[0][2].ndim >= 2


def _attention(op: Op) -> bool:
    softmax = op.name in ("aten::_softmax", "aten::_safe_softmax") and op.forms[0].ndim == 4
    return softmax or is_attention(op.name)


def _first_attention(trace: Trace, block: Call) -> int | None:
    return next((at for at in range(block.start, block.end) if _attention(trace.ops[at])), None)


def _fused(trace: Trace, block: Call) -> bool:
    """Whether a block's attention is one operation."""
    at = _first_attention(trace, block)
    return at is not None and "scaled_dot_product" in trace.ops[at].name


def _entering(trace: Trace, block: Call) -> dict[str, tuple[Key, torch.Tensor]]:
    """The queries, keys and values ``[B, H, T, d]`` of a block's first attention, as they enter it.

    Where it is written out they are those of the product before the softmax and of the one after it.
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
    heads = op.forms[0].shape[:2]
    query, key, value = (
        tensor.reshape(*heads, *tensor.shape[-2:]) for tensor in (*before.tensors[-2:], after.tensors[-1])
    )
    return {
        "q": (before.ins[-2], query),
        "k": (before.ins[-1], key.transpose(-1, -2)),
        "v": (after.ins[-1], value),
    }


def _names(paths: Sequence[str], encoder_decoder: bool) -> list[str]:
    """What to call the streams: nothing where there is one, else by what their paths differ in first."""
    if len(paths) <= 1:
        return [""] * len(paths)
    if encoder_decoder and len(paths) == 2:
        return ["encoder", "decoder"]
    split = [path.split(".") for path in paths]
    common = next((i for i, names in enumerate(zip(*split, strict=False)) if len(set(names)) > 1), None)
    short = [names[common] for names in split] if common is not None else []
    return short if len(set(short)) == len(paths) else list(paths)
