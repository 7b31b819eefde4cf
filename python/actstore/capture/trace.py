"""One forward pass, watched: which modules were called, on which tensors, and which operations made these.

`anatomy` reads from it what a model is made of, whatever its modules are called. Tensors go by keys: two
tensors of one key hold the same numbers, be they views, casts or copies of one another.
"""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

Key = tuple[int, int, int, int]
"""Of a tensor: which storage it has, its offset there, its elements, how often it was written to."""
Place = int | str | None
"""Which argument of a call, by position or name; which element of a result; None: the result itself."""

_COPIES = frozenset({"aten::_to_copy", "aten::clone", "aten::contiguous", "aten::alias", "aten::detach"})
PRODUCTS = frozenset({"aten::bmm", "aten::matmul", "aten::baddbmm"})
"""Of two tensors that are computed, as queries and keys."""


class Form(NamedTuple):
    """What is kept of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        """Of axes."""
        return len(self.shape)


def is_attention(name: str) -> bool:
    """Whether an operation is attention as a whole."""
    return any(part in name for part in ("scaled_dot_product", "flash_attn", "flex_attention"))


@dataclass(frozen=True)
class Op:
    """An operation: its name, what it took and what it gave."""

    name: str
    ins: tuple[Key, ...]
    outs: tuple[Key, ...]
    forms: tuple[Form, ...]
    """Of what it took."""
    tensors: tuple[torch.Tensor, ...]
    """What it took, as it was; of attention and the products in it, of others nothing."""


@dataclass(eq=False)
class Call:
    """A call of a module."""

    path: str
    module: nn.Module
    parent: "Call | None"
    start: int
    """Operations before it."""
    number: int
    """Of the calls of its module, from 0."""
    ins: list[tuple[Place, Key, Form]]
    outs: list[tuple[Place, Key, Form]] = field(default_factory=list)
    end: int = 0
    children: int = 0

    @property
    def leaf(self) -> bool:
        """Whether it called no other module."""
        return self.children == 0

    def within(self, other: "Call") -> bool:
        """Whether it is one of those that the other made, be it through others."""
        above = self.parent
        while above is not None and above is not other:
            above = above.parent
        return above is other


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which this thread runs a model.

    No tensor is kept alive but those of attention: weights may be there for a moment only.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        """In the order in which they returned."""
        self.producer: dict[Key, int] = {}
        """The operation that made a tensor."""
        self._model = model
        self._stack: list[Call] = []
        self._storages: dict[int, tuple[int, StorageWeakRef]] = {}
        self._n_storages = 0
        self._writes: dict[int, int] = {}
        self._numbers: dict[str, int] = {}
        self._same: dict[Key, Key] = {}
        self._handles: list[Any] = []
        self._thread = threading.get_ident()

    def key(self, tensor: torch.Tensor) -> Key:
        """The tensor's key as of now."""
        serial = self._serial(tensor)
        start = int(tensor.storage_offset()) * tensor.element_size()
        key = (serial, start, tensor.numel(), self._writes.get(serial, 0))
        return self._same.get(key, key)

    def _serial(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage: where one lay before, another may lie later."""
        storage = tensor.untyped_storage()
        at = storage._cdata
        known = self._storages.get(at)
        if known is None or known[1].expired():  # type: ignore[no-untyped-call]
            self._n_storages += 1
            known = self._storages[at] = self._n_storages, StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        return known[0]

    def __enter__(self) -> "Trace":
        for path, module in self._model.named_modules():
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
            given = self._keyed((*enumerate(args), *kwargs.items()))
            call = Call(path, module, parent, len(self.ops), number, given)
            self._stack.append(call)

        return hook

    def _exit(self, module: nn.Module, args: Any, result: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        call = self._stack.pop()
        call.end = len(self.ops)
        call.outs = self._keyed(places(result))
        self.calls.append(call)

    def _keyed(self, items: Any) -> list[tuple[Place, Key, Form]]:
        found = [(at, value) for at, value in items if isinstance(value, torch.Tensor)]
        return [(at, self.key(value), _form(value)) for at, value in found]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        tensors = tuple(tensors_in((args, kwargs)))
        ins = tuple(map(self.key, tensors))
        result = func(*args, **(kwargs or {}))
        made = list(tensors_in(result))
        if func._schema.is_mutable:
            for serial in {self._serial(tensor) for tensor in made}:
                self._writes[serial] = self._writes.get(serial, 0) + 1
        if name in _COPIES and len(ins) == 1 and made[0].numel() == tensors[0].numel():
            own = self.key(made[0])
            if own != ins[0]:
                self._same[own] = ins[0]
            return result
        outs = tuple(key for key in map(self.key, made) if key not in ins)
        if outs:
            self.producer |= dict.fromkeys(outs, len(self.ops))
            kept = tensors if is_attention(name) or name in PRODUCTS else ()
            self.ops.append(Op(name, ins, outs, tuple(map(_form, tensors)), kept))
        return result


def _form(tensor: torch.Tensor) -> Form:
    return Form(tuple(tensor.shape), tensor.dtype)


def places(result: Any) -> Iterator[tuple[Place, Any]]:
    """What a module returned, by place."""
    if isinstance(result, Mapping):
        yield from result.items()
    elif isinstance(result, tuple | list):
        yield from enumerate(result)
    else:
        yield None, result


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors of nested tuples, lists and mappings."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
