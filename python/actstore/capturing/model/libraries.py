"""torch and transformers, imported on demand: devices, dtypes, seeds, and silencing their messages."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ...errors import InvalidInputError

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'actstore[capture]'"


def library(name: str) -> Any:
    """Import torch or transformers.

    Raises
    ------
    InvalidInputError
        If the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError(
            f"capturing needs {name}, which cannot be imported: {error}", hint=_INSTALL
        ) from error


def has_cuda() -> bool:
    """Whether torch can use a CUDA device."""
    return bool(library("torch").cuda.is_available())


def device_named(device: Any) -> Any:
    """A torch device, checked by allocating on it.

    Raises
    ------
    InvalidInputError
        If this machine has no such device.
    """
    torch = library("torch")
    try:
        torch_device = torch.device(device)
        torch.empty(0, device=torch_device)
    except Exception as error:  # Each backend raises its own type.
        raise InvalidInputError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    return torch_device


def torch_float_dtype(dtype: Any) -> Any:
    """The floating-point torch dtype for a name or a torch dtype; None for None.

    Raises
    ------
    InvalidInputError
        If there is no such dtype.
    """
    if dtype is None:
        return None
    torch = library("torch")
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise InvalidInputError(
            f"dtype: {dtype!r} is not a floating-point dtype", hint="for example 'bfloat16' or torch.bfloat16"
        )
    return torch_dtype


def dtype_name(dtype: Any) -> str:
    """The name of a torch dtype without the prefix ``torch.``."""
    return str(dtype).removeprefix("torch.")


def weights_torch_dtype(model: Any) -> Any | None:
    """The torch dtype of the first floating-point parameter, or None."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), None)


def weights_dtype(model: "torch.nn.Module") -> str | None:
    """The name of the dtype of a model's weights. None if it has no floating-point parameters."""
    torch_dtype = weights_torch_dtype(model)
    return None if torch_dtype is None else dtype_name(torch_dtype)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Seed the CPU's random numbers inside the context, and restore the generator afterward."""
    torch = library("torch")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and the progress bars of transformers, except those of downloads."""
    import warnings

    undo: list[Callable[[], Any]] = []
    if "transformers" in sys.modules:
        logging = importlib.import_module("transformers.utils.logging")
        hub = importlib.import_module("huggingface_hub.utils")
        undo.append(functools.partial(logging.set_verbosity, logging.get_verbosity()))
        logging.set_verbosity_error()
        if logging.is_progress_bar_enabled():
            undo.append(logging.enable_progress_bar)
            downloads = not hub.are_progress_bars_disabled()
            logging.disable_progress_bar()
            if downloads:
                hub.enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for step in undo:
            step()


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
