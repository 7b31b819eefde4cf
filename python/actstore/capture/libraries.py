"""torch and transformers, imported when they are needed: devices, dtypes, what they say in passing."""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError

if TYPE_CHECKING:
    import torch

_INSTALL = "pip install 'actstore[capture]'"


def library(name: str) -> Any:
    """torch or transformers.

    Raises
    ------
    InvalidInputError
        When it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError(
            f"capturing needs {name}, which cannot be imported: {error}", hint=_INSTALL
        ) from error


def has_cuda() -> bool:
    """Whether there is a GPU."""
    return bool(library("torch").cuda.is_available())


def device_named(device: Any) -> Any:
    """A torch device that works.

    Raises
    ------
    InvalidInputError
        When there is no such device here.
    """
    torch = library("torch")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # Each backend has its own.
        raise InvalidInputError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    return found


def dtype_named(dtype: Any) -> Any:
    """A float dtype of torch; None for None.

    Raises
    ------
    InvalidInputError
        When there is no such dtype.
    """
    if dtype is None:
        return None
    torch = library("torch")
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InvalidInputError(f"{dtype!r} is no dtype for weights, as 'bfloat16' or torch.bfloat16")
    return found


def dtype_name(dtype: Any) -> str:
    """A torch dtype by its name alone."""
    return str(dtype).removeprefix("torch.")


def weights_torch_dtype(model: Any) -> Any | None:
    """That of the first parameter of floats."""
    return next((p.dtype for p in model.parameters() if p.dtype.is_floating_point), None)


def weights_dtype(model: "torch.nn.Module") -> str | None:
    """The dtype of a model's weights by name; None when it has none of floats."""
    found = weights_torch_dtype(model)
    return None if found is None else dtype_name(found)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """What the CPU draws within is the same each time, and nothing outside is disturbed."""
    torch = library("torch")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of transformers, and its bars but those of downloads: what matters is an error."""
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
    """The first line of what a library says."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
