"""Taking tensors out of a forward pass, and ending it when the last one is taken."""

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InvalidInputError
from .anatomy import Tap
from .trace import places

Sink = Callable[[int, torch.Tensor], None]
"""Called with the number of a tap and its tensor, which must not be kept as it is."""


class _Done(Exception):
    """All taps were passed; what the model would compute from here on is of no use."""


class Taps:
    """Hooks on a model, for as long as the context lasts; they see what `run` does and nothing beside it.

    Parameters
    ----------
    model : Module
    taps : sequence of Tap
        Each is given to the sink once in a forward pass.
    """

    def __init__(self, model: nn.Module, taps: Sequence[Tap]) -> None:
        self._model, self._taps = model, taps
        self._modules = dict(model.named_modules())
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}
        self._missing: set[int] = set()
        self._sink: Sink | None = None
        self._thread = 0
        self._attention = _Attention(self._take) if self._inner() else None

    def _inner(self) -> list[tuple[int, Tap]]:
        return [(i, tap) for i, tap in enumerate(self._taps) if tap.side in ("query", "key")]

    def __enter__(self) -> Self:
        by_call: dict[tuple[str, str], list[tuple[int, Tap]]] = {}
        for i, tap in enumerate(self._taps):
            by_call.setdefault((tap.module, tap.side), []).append((i, tap))
        for (path, side), taps in by_call.items():
            module = self._modules[path]
            if side == "input":
                hook = self._before(path, taps)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            elif side == "output":
                self._handles.append(module.register_forward_hook(self._after(path, taps)))
        if self._attention is not None:
            for path in {tap.module for _, tap in self._inner()}:
                taps = [(i, tap) for i, tap in self._inner() if tap.module == path]
                self._handles += self._attention.watch(self._modules[path], taps, lambda: self._ours)
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
            When a tap was not passed: the model took another way than when it was watched.
        """
        self._thread = threading.get_ident()
        self._sink, self._missing = sink, set(range(len(self._taps)))
        self._calls.clear()
        try:
            with torch.inference_mode():
                if self._attention is None:
                    self._model(**inputs)
                else:
                    with self._attention:
                        self._model(**inputs)
        except _Done:
            pass
        finally:
            self._sink = None
        if self._missing:
            tap = self._taps[min(self._missing)]
            raise InvalidInputError(
                f"module {tap.module!r} was not run as it was when the model was looked at, so its "
                f"{tap.side} is missing for these inputs"
            )

    def _before(self, path: str, taps: Sequence[tuple[int, Tap]]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            call = self._count(path, "input")
            for i, tap in taps:
                if tap.call == call:
                    given = args[tap.at] if isinstance(tap.at, int) else kwargs[str(tap.at)]
                    self._take(i, given)

        return hook

    def _after(self, path: str, taps: Sequence[tuple[int, Tap]]) -> Any:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            call = self._count(path, "output")
            for i, tap in taps:
                if tap.call == call:
                    self._take(i, next(tensor for place, tensor in places(result) if place == tap.at))

        return hook

    def _count(self, path: str, side: str) -> int:
        if not self._ours:
            return -1
        key = f"{side} {path}"
        self._calls[key] = self._calls.get(key, -1) + 1
        return self._calls[key]

    @property
    def _ours(self) -> bool:
        """Whether the model runs for `run`, and not for somebody else who has it in another thread."""
        return self._sink is not None and threading.get_ident() == self._thread

    def _take(self, i: int, tensor: torch.Tensor) -> None:
        if self._sink is None or i not in self._missing:
            return
        columns = self._taps[i].columns
        if columns is not None:
            tensor = tensor[..., torch.from_numpy(columns).to(tensor.device)]
        self._sink(i, tensor)
        self._missing.discard(i)
        if not self._missing:
            raise _Done


class _Attention(TorchFunctionMode):
    """Sees what enters the first attention operation of the blocks that it watches."""

    def __init__(self, take: Sink) -> None:
        super().__init__()
        self._take = take
        self._within: Sequence[tuple[int, Tap]] | None = None

    def watch(self, block: nn.Module, taps: Sequence[tuple[int, Tap]], ours: Callable[[], bool]) -> list[Any]:
        """Hooks that say when a block is run."""

        def enter(module: nn.Module, args: Any) -> None:
            if ours():
                self._within = taps

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            if ours():
                self._within = None

        return [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and self._within is not None:
            taps, self._within = self._within, None
            named = dict(zip(("query", "key"), args[:2], strict=False)) | (kwargs or {})
            for i, tap in taps:
                entering = named[tap.side].transpose(1, 2)  # [batch, token, head, dim]
                width = entering.shape[2] * entering.shape[3]
                # Keys that were repeated for groups of queries count once.
                entering = entering[:, :, :: width // tap.shape[-1]]
                self._take(i, entering.reshape(*entering.shape[:2], -1))
        return func(*args, **(kwargs or {}))
