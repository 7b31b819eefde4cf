"""Tracing a forward pass: the module calls, the operations, and the tensors that connect them.

`anatomy` reads a model's structure from the trace, whatever its modules are called. Tensors are identified by
keys: two tensors with the same key hold the same values, even if one is a view, a cast or a copy of the
other.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

TensorKey = tuple[int, int, int, int]
"""Identifies a tensor: number of its storage, byte offset, number of elements, number of in-place writes."""
Slot = int | str | None
"""An argument of a call by position or name, or an element of its result; None for the result itself."""

_COPIES = frozenset({"aten::_to_copy", "aten::clone", "aten::contiguous", "aten::alias", "aten::detach"})
PRODUCTS = frozenset({"aten::bmm", "aten::matmul", "aten::baddbmm"})
"""Matrix products of two activations, such as queries and keys."""


class TensorSpec(NamedTuple):
    """The shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


def is_attention(name: str) -> bool:
    """Whether an operation computes attention as a whole."""
    return any(part in name for part in ("scaled_dot_product", "flash_attn", "flex_attention"))


@dataclass(frozen=True)
class Op:
    """An operation: its name, its input tensors and its output tensors."""

    name: str
    ins: tuple[TensorKey, ...]
    outs: tuple[TensorKey, ...]
    specs: tuple[TensorSpec, ...]
    """Shapes and dtypes of the inputs."""
    tensors: tuple[torch.Tensor, ...]
    """The inputs themselves, for attention and matrix products; empty for other operations."""


@dataclass(eq=False)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    parent: "Call | None"
    start: int
    """Number of operations that ran before it."""
    number: int
    """Number among the calls of its module, from 0."""
    ins: list[tuple[Slot, TensorKey, TensorSpec]]
    outs: list[tuple[Slot, TensorKey, TensorSpec]] = field(default_factory=list)
    end: int = 0
    children: int = 0

    @property
    def leaf(self) -> bool:
        """Whether the call made no other module calls."""
        return self.children == 0

    def within(self, other: "Call") -> bool:
        """Whether the call happened inside another call, at any depth."""
        ancestor = self.parent
        while ancestor is not None and ancestor is not other:
            ancestor = ancestor.parent
        return ancestor is other


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that records the forward pass that this thread runs in it.

    Only the inputs of attention are kept alive, since offloaded weights exist only while they are used.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        """In the order in which they returned."""
        self.producer: dict[TensorKey, int] = {}
        """The number of the operation that computed a tensor."""
        self._stack: list[Call] = []
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}
        self._n_storages = 0
        self._writes: dict[int, int] = {}
        self._numbers: dict[str, int] = {}
        self._same: dict[TensorKey, TensorKey] = {}
        self._handles: list[Any] = []
        self._thread = threading.get_ident()

    def key(self, tensor: torch.Tensor) -> TensorKey:
        """The tensor's current key."""
        serial = self._serial(tensor)
        start = int(tensor.storage_offset()) * tensor.element_size()
        key = (serial, start, tensor.numel(), self._writes.get(serial, 0))
        return self._same.get(key, key)

    def _serial(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage. An address does not identify it, since addresses are reused."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        known = self._storages.get(address)
        if known is None or known[1].expired():  # type: ignore[no-untyped-call]
            self._n_storages += 1
            known = self._storages[address] = self._n_storages, StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        return known[0]

    def __enter__(self) -> "Trace":
        for path, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._exit, always_call=False))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def _enter(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if threading.get_ident() != self._thread:
                return
            parent = self._stack[-1] if self._stack else None
            if parent is not None:
                parent.children += 1
            number = self._numbers[path] = self._numbers.get(path, -1) + 1
            ins = self._keyed((*enumerate(args), *kwargs.items()))
            call = Call(path, module, parent, len(self.ops), number, ins)
            self._stack.append(call)

        return hook

    def _exit(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        call = self._stack.pop()
        call.end = len(self.ops)
        call.outs = self._keyed(slots(result))
        self.calls.append(call)

    def _keyed(self, items: Any) -> list[tuple[Slot, TensorKey, TensorSpec]]:
        return [
            (slot, self.key(value), _spec(value)) for slot, value in items if isinstance(value, torch.Tensor)
        ]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        tensors = tuple(tensors_in((args, kwargs)))
        ins = tuple(map(self.key, tensors))
        result = func(*args, **(kwargs or {}))
        outputs = list(tensors_in(result))
        if func._schema.is_mutable:
            for serial in {self._serial(tensor) for tensor in outputs}:
                self._writes[serial] = self._writes.get(serial, 0) + 1
        if name in _COPIES and len(ins) == 1 and outputs[0].numel() == tensors[0].numel():
            own = self.key(outputs[0])
            if own != ins[0]:
                self._same[own] = ins[0]
            return result
        outs = tuple(key for key in map(self.key, outputs) if key not in ins)
        if outs:
            self.producer |= dict.fromkeys(outs, len(self.ops))
            alive = tensors if is_attention(name) or name in PRODUCTS else ()
            self.ops.append(Op(name, ins, outs, tuple(map(_spec, tensors)), alive))
        return result


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def slots(result: Any) -> Iterator[tuple[Slot, Any]]:
    """The elements of a module's result, by slot."""
    if isinstance(result, Mapping):
        yield from result.items()
    elif isinstance(result, tuple | list):
        yield from enumerate(result)
    else:
        yield None, result


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
