"""The supported dtypes, and conversion of callers' arrays and tensors to numpy.

This module never imports torch. It recognizes a tensor by its methods and reaches the torch module through
``sys.modules``, where the caller's own import has put it.
"""

import contextlib
import functools
import os
import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, ShapeError
from .text import human_bytes

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

SITE_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
"""The dtypes that a site can be stored in, by name."""

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {**SITE_DTYPES, "float64": np.dtype(np.float64)}
"""The dtypes that a site can be read in, by name."""

COLUMN_DTYPES: dict[str, np.dtype[Any]] = {
    **FLOAT_DTYPES,
    "bool": np.dtype(np.bool_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""The dtypes that a numeric column can be stored in, by name."""


def dtype_named(dtype: object, among: dict[str, np.dtype[Any]], what: str) -> np.dtype[Any]:
    """The numpy dtype for a dtype name or a numpy, ml_dtypes or torch dtype object.

    Parameters
    ----------
    dtype : str or dtype
        A name, also in numpy's short forms such as ``"<f4"``, or a dtype object.
    among : dict of str to dtype
        The allowed dtypes.
    what : str
        What the dtype is for; error messages start with it.

    Raises
    ------
    InvalidInputError
        When `dtype` is not one of `among`.
    """
    name = dtype if isinstance(dtype, str) else None
    if name is None:
        if type(dtype).__module__.partition(".")[0] == "torch":
            name = str(dtype).removeprefix("torch.")
        else:
            try:
                name = np.dtype(dtype).name if dtype is not None else None  # type: ignore[call-overload]
            except TypeError:
                name = None
    if name not in among:
        with contextlib.suppress(TypeError):
            name = np.dtype(name).name if name is not None else name  # "f4" and "<f4" name a dtype too.
    if name not in among:
        raise InvalidInputError(f"{what}: dtype is {dtype!r}, not one of {', '.join(among)}")
    return among[name]


def as_numpy(value: object, what: str) -> NDArray[Any]:
    """Convert `value` to a numpy array, without a copy if it is in CPU memory and in native byte order.

    Parameters
    ----------
    value : array, tensor or array-like
        A numpy array, a torch tensor on any device, or any object that supports numpy's array protocol.
    what : str
        The argument's name; error messages start with it.

    Raises
    ------
    InvalidInputError
        When `value` cannot be converted, or is a masked array, whose mask would be lost.
    """
    if type(value) is np.ndarray and value.dtype.isnative:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidInputError(
            f"{what} is a masked array: its mask would be lost", hint="remove the masked rows"
        )
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _from_torch(value, what)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{what} is not an array: {error}") from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def tensor_view(tensor: Any, what: str) -> NDArray[Any]:
    """A numpy array that shares a CPU tensor's memory, so that writing to it fills the tensor.

    Raises
    ------
    InvalidInputError
        When `tensor` is not a tensor, is not on the CPU, or requires gradients.
    """
    if not (hasattr(tensor, "detach") and hasattr(tensor, "device")):
        raise InvalidInputError(
            f"{what} has type {type(tensor).__name__}, not a numpy array or a torch tensor"
        )
    if tensor.device.type != "cpu":
        raise InvalidInputError(f"{what} is on {tensor.device}, not on the CPU", hint="to_torch(device=...)")
    if tensor.requires_grad:
        raise InvalidInputError(f"{what} requires gradients", hint="tensor.detach()")
    if str(tensor.dtype) == "torch.bfloat16":
        bits: NDArray[Any] = tensor.view(sys.modules["torch"].int16).numpy()
        return bits.view(BFLOAT16)
    try:
        array: NDArray[Any] = tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise InvalidInputError(f"{what} cannot share its memory with a numpy array: {error}") from error
    return array


def _from_torch(tensor: Any, what: str) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            # Tensor.numpy() does not support bfloat16, so the bits are passed as int16.
            bits = tensor.contiguous().view(sys.modules["torch"].int16).numpy()
            array: NDArray[Any] = bits.view(BFLOAT16)
            return array
        plain: NDArray[Any] = tensor.numpy()
        return plain
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InvalidInputError(f"{what} cannot be converted to a numpy array: {error}") from error


def cast_float(array: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Cast a float array to another float dtype, rounding each value once, to nearest even.

    Raises
    ------
    InvalidInputError
        When `array` does not hold floats, or when a finite value would overflow to infinity.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what}: only floats can be cast, got {array.dtype}")
    wide = array
    if array.dtype == np.float64 and dtype == BFLOAT16:
        wide = _float32_to_odd(array)
    with np.errstate(over="ignore"):
        out: NDArray[Any] = wide.astype(dtype)
    if dtype.itemsize < array.dtype.itemsize or dtype == np.float16:
        overflowed = np.isinf(out) & np.isfinite(array)
        if overflowed.any():
            raise InvalidInputError(
                f"{what}: {int(overflowed.sum())} values overflow {dtype.name}, the largest magnitude is "
                f"{float(np.abs(array[overflowed]).max()):g}",
                hint="store as float32" if dtype == BFLOAT16 else "store as bfloat16 or float32",
            )
    return out


def _float32_to_odd(array: NDArray[Any]) -> NDArray[np.float32]:
    """Round float64 to float32 by round-to-odd, so that a second rounding to bfloat16 is correct.

    ml_dtypes converts float64 to bfloat16 through float32 and rounds to nearest both times, which can give
    a result that is off by one unit in the last place. Rounding to odd first avoids that (Boldo and
    Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd",
    2008).
    """
    with np.errstate(over="ignore"):
        out: NDArray[np.float32] = np.ascontiguousarray(array.astype(np.float32))
    back = out.astype(np.float64)
    inexact = (back != array) & ~np.isnan(array)
    bits = out.view(np.uint32)
    # Subtracting 1 from the bit pattern moves one step toward zero, for either sign.
    bits -= (inexact & (np.abs(back) > np.abs(array))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return out


def integers(value: object, what: str) -> NDArray[np.int64]:
    """Convert a 1-D array of integers to int64 ``[n]``.

    Raises
    ------
    ShapeError
        When it does not have exactly one axis.
    InvalidInputError
        When it does not hold integers (booleans and floats are rejected), or one exceeds int64.
    """
    array = as_numpy(value, what)
    if array.ndim != 1:
        raise ShapeError(f"{what}: expected shape [n], got {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: expected integers, got {array.dtype}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{what}: {array.max()} is out of range for int64")
    return array.astype(np.int64, copy=False)


def new_array(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Allocate an uninitialized array, unless it cannot fit in memory.

    Raises
    ------
    InvalidInputError
        When the array is larger than the machine's physical memory. Without this check, an overcommitting
        kernel would grant the memory and kill the process later.
    """
    n_bytes = dtype.itemsize
    for size in shape:
        n_bytes *= size
    if n_bytes > _physical_memory():
        raise InvalidInputError(
            f"{what}: {dtype.name} {list(shape)} takes {human_bytes(n_bytes)}, "
            f"this machine has {human_bytes(_physical_memory())} of memory",
            hint="read it in slices",
        )
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise InvalidInputError(
            f"{what}: not enough memory for {dtype.name} {list(shape)}, {human_bytes(n_bytes)}",
            hint="read it in slices",
        ) from error


@functools.cache
def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return sys.maxsize
