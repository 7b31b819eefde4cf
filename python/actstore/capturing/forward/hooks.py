"""Reading tensors from a forward pass by hooks, and ending the pass after the last of them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...errors import InvalidInputError
from ..discover.anatomy import HookPoint
from ..discover.trace import slots

Sink = Callable[[int, torch.Tensor], None]
"""Called with the number of a hook point and its tensor, which it must copy."""


class _PassEnded(Exception):
    """All hook points were read, so the rest of the forward pass is not needed."""


class ForwardHooks:
    """Hooks on a model while in the context. They ignore forward passes other than those of `run`.

    Parameters
    ----------
    model : Module
    hook_points : sequence of HookPoint
        The sink gets each of them once per forward pass.
    """

    def __init__(self, model: nn.Module, hook_points: Sequence[HookPoint]) -> None:
        self._model, self._hook_points = model, hook_points
        self._modules = dict(model.named_modules())
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}
        self._missing: set[int] = set()
        self._sink: Sink | None = None
        self._thread = 0
        self._attention = _AttentionHooks(self._take) if self._attention_points() else None

    def _attention_points(self) -> list[tuple[int, HookPoint]]:
        return [(i, point) for i, point in enumerate(self._hook_points) if point.side in ("query", "key")]

    def __enter__(self) -> Self:
        by_call: dict[tuple[str, str], list[tuple[int, HookPoint]]] = {}
        for i, point in enumerate(self._hook_points):
            by_call.setdefault((point.module, point.side), []).append((i, point))
        for (path, side), hook_points in by_call.items():
            module = self._modules[path]
            if side == "input":
                hook = self._before(path, hook_points)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            elif side == "output":
                self._handles.append(module.register_forward_hook(self._after(path, hook_points)))
        if self._attention is not None:
            for path in {point.module for _, point in self._attention_points()}:
                hook_points = [(i, point) for i, point in self._attention_points() if point.module == path]
                self._handles += self._attention.watch(
                    self._modules[path], hook_points, lambda: self._is_running
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def run(self, inputs: Mapping[str, Any], sink: Sink) -> None:
        """One forward pass.

        Raises
        ------
        InvalidInputError
            If a hook point was not reached, because the pass differs from the dry run.
        """
        self._thread = threading.get_ident()
        self._sink, self._missing = sink, set(range(len(self._hook_points)))
        self._calls.clear()
        try:
            with torch.inference_mode():
                if self._attention is None:
                    self._model(**inputs)
                else:
                    with self._attention:
                        self._model(**inputs)
        except _PassEnded:
            pass
        finally:
            self._sink = None
        if self._missing:
            point = self._hook_points[min(self._missing)]
            raise InvalidInputError(
                f"module {point.module!r} did not run as in the dry run, so its {point.side} is missing for "
                "these inputs"
            )

    def _before(self, path: str, hook_points: Sequence[tuple[int, HookPoint]]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            call = self._count(path, "input")
            for i, point in hook_points:
                if point.call == call:
                    tensor = args[point.slot] if isinstance(point.slot, int) else kwargs[str(point.slot)]
                    self._take(i, tensor)

        return hook

    def _after(self, path: str, hook_points: Sequence[tuple[int, HookPoint]]) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            call = self._count(path, "output")
            for i, point in hook_points:
                if point.call == call:
                    self._take(i, next(tensor for slot, tensor in slots(result) if slot == point.slot))

        return hook

    def _count(self, path: str, side: str) -> int:
        if not self._is_running:
            return -1
        key = f"{side} {path}"
        self._calls[key] = self._calls.get(key, -1) + 1
        return self._calls[key]

    @property
    def _is_running(self) -> bool:
        """Whether this call belongs to `run`, rather than to another thread that uses the model."""
        return self._sink is not None and threading.get_ident() == self._thread

    def _take(self, i: int, tensor: torch.Tensor) -> None:
        if self._sink is None or i not in self._missing:
            return
        features = self._hook_points[i].features
        if features is not None:
            tensor = tensor[..., torch.from_numpy(features).to(tensor.device)]
        self._sink(i, tensor)
        self._missing.discard(i)
        if not self._missing:
            raise _PassEnded


class _AttentionHooks(TorchFunctionMode):
    """Reads the queries and keys that enter the first attention operation of each watched block."""

    def __init__(self, take: Sink) -> None:
        super().__init__()
        self._take = take
        self._pending: Sequence[tuple[int, HookPoint]] | None = None

    def watch(
        self, block: nn.Module, hook_points: Sequence[tuple[int, HookPoint]], is_running: Callable[[], bool]
    ) -> list[Any]:
        """Register hooks that note when a block starts and ends."""

        def enter(module: nn.Module, args: Any) -> None:
            if is_running():
                self._pending = hook_points

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            if is_running():
                self._pending = None

        return [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and self._pending is not None:
            hook_points, self._pending = self._pending, None
            operands = dict(zip(("query", "key"), args[:2], strict=False)) | (kwargs or {})
            for i, point in hook_points:
                entering = operands[point.side].transpose(1, 2)  # [batch, token, head, dim]
                width = entering.shape[2] * entering.shape[3]
                # Grouped-query attention repeats keys: take each once.
                entering = entering[:, :, :: width // point.shape[-1]]
                self._take(i, entering.reshape(*entering.shape[:2], -1))
        return func(*args, **(kwargs or {}))
