"""The weights of a model: a hash of them, wherever they are."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from .checkpoint import of_pooler

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 32 << 20


def weights_hash(model: "torch.nn.Module", *, pooler: bool = True) -> str:
    """A hash of a model's parameters and of the buffers that are saved with them.

    It takes names, shapes, dtypes and bytes, wherever these are; tied weights count once. Buffers that are
    not saved are left out: they follow from the config, and on another device by another rounding.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights are in memory.
    pooler : bool
        Whether the pooler's count. Many checkpoints have none, and each time it is loaded the model gets
        another, at random; the residual stream does not depend on it.

    Returns
    -------
    str
        ``blake2b:`` and 32 hexadecimal digits.

    Raises
    ------
    InvalidInputError
        When weights are not in memory, as those on the device ``meta``.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> before = weights_hash(model)
    >>> _ = model.bias.data.add_(1)
    >>> before == weights_hash(model)
    False
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import

    total = hashlib.blake2b(digest_size=16)
    named = [(name, tensor) for name, tensor in _weights(model) if pooler or not of_pooler(name)]
    for name, tensor in named:
        if tensor.is_meta:
            raise _absent(model, name)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        pieces = [[pool.submit(_chunk_digest, chunk) for chunk in _chunks(tensor)] for _, tensor in named]
        for (name, tensor), digests in zip(named, pieces, strict=True):
            head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            total.update(json.dumps(head).encode())
            for digest in digests:
                total.update(digest.result())
    return hashed(total)


def check_present(model: "torch.nn.Module") -> None:
    """Raise InvalidInputError when weights are neither in memory nor kept elsewhere by accelerate."""
    for name, tensor in model.named_parameters():
        if tensor.is_meta and _kept_elsewhere(model, name) is None:
            raise _absent(model, name)


def _absent(model: "torch.nn.Module", name: str) -> InvalidInputError:
    return InvalidInputError(
        f"the weights of {type(model).__name__} are not in memory: {name} is on the device 'meta'",
        hint="load the model's weights",
    )


def _kept_elsewhere(model: "torch.nn.Module", name: str) -> "torch.Tensor | None":
    """Where ``device_map`` has put a weight that has no room on the devices: in host memory or on disk."""
    path, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            with contextlib.suppress(KeyError):
                found: torch.Tensor = weights[own]
                return found
    return None


def _weights(model: "torch.nn.Module") -> Iterator[tuple[str, "torch.Tensor"]]:
    for name, parameter in model.named_parameters():  # each tensor once
        elsewhere = _kept_elsewhere(model, name) if parameter.is_meta else None
        yield name, parameter if elsewhere is None else elsewhere
    passing = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name not in passing)


def _chunks(tensor: "torch.Tensor") -> Iterator["torch.Tensor"]:
    """Pieces of a tensor's values, flat; a tensor that lies in order is not copied."""
    flat = tensor.detach().reshape(-1)
    n = max(1, _CHUNK_BYTES // tensor.element_size())
    yield from (flat[start : start + n] for start in range(0, len(flat), n))


def _chunk_digest(chunk: "torch.Tensor") -> bytes:
    torch = sys.modules["torch"]
    raw: Any = chunk.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()


def hashed(found: Any) -> str:
    """A digest as it is written: with the name of the function."""
    return f"blake2b:{found.hexdigest()}"
