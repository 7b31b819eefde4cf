"""Numbers in place of what linear maps give, so that it can be seen where each of their elements goes.

Each sequence of the batch is given another number for an element: one first, then the digits of which element
it is. What only moves and scales elements leaves the ratios to the first sequence as they are, so the digits
can be read off further on, in any dtype; at the first position, where a rotation does nothing. All positions
are given the same: where they come out different there is a rotation.
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
"""Digits that bfloat16 tells apart after it has been scaled."""
_DIGITS = 3
N_SEQUENCES = 1 + _DIGITS
"""That the batch must have."""


@contextmanager
def coded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """While the context lasts, these give codes ``[N_SEQUENCES, ..., F]`` in this thread."""
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
    """Which of `n` coded elements each of ``[N_SEQUENCES, heads, T, d]`` is, and whether it is rotated.

    Heads that are repeated for groups of others count once. The elements are None where they were not only
    moved and scaled, as by a norm.
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
    columns = np.array(heads, np.int64)
    repeats = len(numbers) // len(heads)
    distinct = len(np.unique(columns)) == columns.size
    if not distinct or not np.array_equal(np.repeat(columns, repeats, axis=0), numbers):
        return None, rotated
    return columns.reshape(-1), rotated
