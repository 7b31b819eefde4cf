"""Identifying codes: which features of a projection form q, k or v, and whether a rotation is applied.

The output of each projection is replaced by codes: in the first sequence of the batch every feature is 1, in
the others it holds one digit of its index. Moving and scaling features preserves the ratio to the first
sequence, so the digits can be read where attention starts, in any dtype. They are read at position 0, where a
rotation is the identity. All positions hold the same codes, so positions that differ reveal a rotation.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

_BASE = 64
"""Number of digits that bfloat16 distinguishes after scaling."""
_DIGITS = 3
N_SEQUENCES = 1 + _DIGITS
"""Batch size that the codes need."""


@contextmanager
def coded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In this context and thread, replace the outputs of modules by codes ``[N_SEQUENCES, ..., F]``."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: Any, result: Any) -> Any:
        return _substitute(result) if threading.get_ident() == thread else result

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _substitute(result: Any) -> Any:
    if not isinstance(result, torch.Tensor) or result.shape[0] != N_SEQUENCES:
        return result
    codes = torch.from_numpy(_codes(result.shape[-1])).to(result)
    return codes.reshape(N_SEQUENCES, *(1,) * (result.ndim - 2), -1).expand_as(result).contiguous()


def _codes(n: int) -> NDArray[np.float32]:
    numbers = np.arange(n)
    digits = [numbers // _BASE**i % _BASE + 1 for i in range(_DIGITS)]
    return np.stack([np.ones(n), *digits]).astype(np.float32)


def decoded(entering: torch.Tensor, n: int) -> tuple[NDArray[np.int64] | None, bool]:
    """Decode which features enter attention.

    Parameters
    ----------
    entering : tensor ``[N_SEQUENCES, heads, T, d]``
        Queries, keys or values as they enter attention.
    n : int
        Number of features of the projection.

    Returns
    -------
    features : int64 ``[heads * d]`` or None
        The index of each feature. Heads repeated for grouped queries count once. None if the features were
        not only moved and scaled, for example by a norm.
    rotated : bool
        Whether a rotation is applied.
    """
    values = entering.detach().double().cpu().numpy()
    rotated = not np.allclose(values, values[:, :, :1], rtol=2e-2, atol=1e-6)
    first = values[:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = first[1:] / first[:1]
    digits = np.rint(ratios)
    if not (np.isfinite(ratios).all() and (abs(ratios - digits) < 0.4).all()):
        return None, rotated
    numbers = sum((digits[i].astype(np.int64) - 1) * _BASE**i for i in range(_DIGITS))
    numbers = np.asarray(numbers)
    if numbers.min() < 0 or numbers.max() >= n:
        return None, rotated
    heads = list(dict.fromkeys(map(tuple, numbers.tolist())))
    features = np.array(heads, np.int64)
    repeats = len(numbers) // len(heads)
    distinct = len(np.unique(features)) == features.size
    if not distinct or not np.array_equal(np.repeat(features, repeats, axis=0), numbers):
        return None, rotated
    return features.reshape(-1), rotated
