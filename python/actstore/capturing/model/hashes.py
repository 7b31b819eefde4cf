"""Hashes of a model's weights and of its tokenizer."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInputError
from .checkpoint import is_pooler

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 32 << 20


def weights_hash(model: "torch.nn.Module", *, pooler: bool = True) -> str:
    """A hash of a model's parameters and persistent buffers.

    The hash covers names, shapes, dtypes and bytes, and does not depend on the device. Tied weights count
    once. Non-persistent buffers are left out: they follow from the config, and rounding differs between
    devices.

    Parameters
    ----------
    model : torch.nn.Module
        Its weights must be in memory, or offloaded by accelerate.
    pooler : bool
        Whether to include the pooler. Many checkpoints lack one, and transformers then initializes it at
        random on each load; the residual stream does not depend on it.

    Returns
    -------
    str
        ``blake2b:`` and 32 hexadecimal digits.

    Raises
    ------
    InvalidInputError
        If weights are on the device ``meta``, so not in memory.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> before = weights_hash(model)
    >>> _ = model.bias.data.add_(1)
    >>> before == weights_hash(model)
    False
    """
    from concurrent.futures import ThreadPoolExecutor  # Slow to import.

    total = hashlib.blake2b(digest_size=16)
    named = [(name, tensor) for name, tensor in _weights(model) if pooler or not is_pooler(name)]
    for name, tensor in named:
        if tensor.is_meta:
            raise _not_in_memory(model, name)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        pieces = [[pool.submit(_chunk_digest, chunk) for chunk in _chunks(tensor)] for _, tensor in named]
        for (name, tensor), digests in zip(named, pieces, strict=True):
            head = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            total.update(json.dumps(head).encode())
            for digest in digests:
                total.update(digest.result())
    return labeled_digest(total)


def check_present(model: "torch.nn.Module") -> None:
    """Raise InvalidInputError if weights are neither in memory nor offloaded by accelerate."""
    for name, tensor in model.named_parameters():
        if tensor.is_meta and _offloaded(model, name) is None:
            raise _not_in_memory(model, name)


def _not_in_memory(model: "torch.nn.Module", name: str) -> InvalidInputError:
    return InvalidInputError(
        f"the weights of {type(model).__name__} are not in memory: {name} is on the device 'meta'",
        hint="load the model's weights",
    )


def _offloaded(model: "torch.nn.Module", name: str) -> "torch.Tensor | None":
    """A weight that accelerate's ``device_map`` has offloaded to host memory or disk, or None."""
    path, _, own = name.rpartition(".")
    hook = getattr(model.get_submodule(path), "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        weights = getattr(one, "weights_map", None)
        if weights is not None:
            with contextlib.suppress(KeyError):
                weight: torch.Tensor = weights[own]
                return weight
    return None


def _weights(model: "torch.nn.Module") -> Iterator[tuple[str, "torch.Tensor"]]:
    for name, parameter in model.named_parameters():  # Yields a tied tensor once.
        offloaded = _offloaded(model, name) if parameter.is_meta else None
        yield name, parameter if offloaded is None else offloaded
    non_persistent = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name not in non_persistent)


def _chunks(tensor: "torch.Tensor") -> Iterator["torch.Tensor"]:
    """Chunks of a flattened tensor. A contiguous tensor is not copied."""
    flat = tensor.detach().reshape(-1)
    n = max(1, _CHUNK_BYTES // tensor.element_size())
    yield from (flat[start : start + n] for start in range(0, len(flat), n))


def _chunk_digest(chunk: "torch.Tensor") -> bytes:
    torch = sys.modules["torch"]
    raw: Any = chunk.cpu().contiguous().view(torch.uint8).numpy()
    return hashlib.blake2b(raw, digest_size=16).digest()


def tokenizer_hash(tokenizer: Any) -> str | None:
    """A hash of everything that determines a tokenizer's ids. None for no tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        # The caller of the tokenizer sets truncation and padding; they are left over from the last call.
        state.pop("truncation", None)
        state.pop("padding", None)
        return json_hash(state)
    with tempfile.TemporaryDirectory() as folder:
        names = tokenizer.save_vocabulary(folder) or ()
        files = {}
        for name in sorted(names):
            with open(name, "rb") as opened:
                files[os.path.basename(name)] = hashlib.blake2b(opened.read(), digest_size=16).hexdigest()
    options = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int)}
    added = {str(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    options.pop("model_max_length", None)
    return json_hash([type(tokenizer).__name__, files, options, added, tokenizer.all_special_ids])


def json_hash(value: Any) -> str:
    """A hash of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return labeled_digest(hashlib.blake2b(text.encode(), digest_size=16))


def weights_state(model: "torch.nn.Module") -> tuple[tuple[int, int], ...]:
    """A cheap fingerprint of which tensors a model has and how often each was modified in place.

    It shows whether a hash taken earlier may still be used. Writes through ``tensor.data`` go unnoticed.
    """
    tensors = (*model.parameters(), *model.buffers())
    # Inference tensors have no version counter.
    return tuple((id(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)


def labeled_digest(state: Any) -> str:
    """A hashlib object's digest with the name of the hash function: ``blake2b:...``."""
    return f"blake2b:{state.hexdigest()}"
