"""The arrays and tensors that batches are assembled in."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import new_array
from ..errors import InvalidInputError


class BatchContainer(Protocol):
    """Allocates the memory of batches, and converts filled batches to the form the consumer gets."""

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype in which to read a site of dtype `stored`."""

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        """An uninitialized batch of shape ``[b, L, D]``, and a view of its bytes ``[b, bytes per row]``."""

    def finish(self, batch: Any) -> Any:
        """Convert a filled batch to the consumer's form; called in the consumer's thread."""


@dataclass(frozen=True)
class NumpyContainer:
    """Batches as numpy arrays of the given dtype; None is the site's own dtype."""

    dtype: np.dtype[Any] | None

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        return self.dtype or stored

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        batch = new_array(shape, self.read_dtype(stored), "a batch")
        return batch, as_bytes(batch)

    def finish(self, batch: Any) -> Any:
        return batch


@dataclass(frozen=True)
class TorchContainer:
    """Batches as torch tensors on a device.

    A batch is filled in the stored dtype in CPU memory (pinned for CUDA), then moved to the device and
    converted there.
    """

    dtype: np.dtype[Any] | None
    device: str

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        return stored

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        torch = import_torch()
        dtype = getattr(torch, stored.name)
        tensor = torch.empty(shape, dtype=dtype, pin_memory=self._cuda)
        row_bytes = shape[1] * shape[2] * stored.itemsize
        return tensor, tensor.view(torch.uint8).numpy().reshape(shape[0], row_bytes)

    def finish(self, batch: Any) -> Any:
        dtype = batch.dtype if self.dtype is None else getattr(import_torch(), self.dtype.name)
        # The copy runs on the consumer's current stream, so the consumer's next operations wait for it.
        return batch.to(device=self.device, dtype=dtype, non_blocking=self._cuda)


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """View a C-contiguous array ``[n, ...]`` as bytes ``[n, bytes per row]``, which numpy copies fastest."""
    row_bytes = array.itemsize * int(np.prod(array.shape[1:]))
    return array.reshape(-1).view(np.uint8).reshape(array.shape[0], row_bytes)


def import_torch() -> Any:
    """The module ``torch``.

    Raises
    ------
    InvalidInputError
        When torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InvalidInputError(
            f"torch cannot be imported: {error}", hint='pip install "actstore[torch]"'
        ) from error
    return torch


def torch_device(device: Any) -> str:
    """The name of a torch device, such as ``"cuda:0"``.

    Raises
    ------
    InvalidInputError
        When `device` is not a device or is not available, or torch is not installed.
    """
    torch = import_torch()
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device {device!r}: {error}") from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device {device!r}: torch sees no CUDA device on this machine")
    return str(parsed)
