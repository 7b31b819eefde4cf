"""Arrays from outside: which dtypes there are, and numpy views of what callers hand over.

torch is never imported: a tensor is known by its methods, and its module is reached through
``sys.modules``, where whoever made the tensor has put it.
"""

import contextlib
import functools
import os
import sys
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError, ShapeError

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)

SITE_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": BFLOAT16,
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
"""What a site may be stored as."""

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {**SITE_DTYPES, "float64": np.dtype(np.float64)}
"""What a site may be read as."""

COLUMN_DTYPES: dict[str, np.dtype[Any]] = {
    **FLOAT_DTYPES,
    "bool": np.dtype(np.bool_),
    **{f"{sign}int{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
"""What a column of numbers may be stored as."""


def dtype_named(dtype: object, among: dict[str, np.dtype[Any]], what: str) -> np.dtype[Any]:
    """The dtype meant by a name or by a numpy, ml_dtypes or torch dtype object.

    Raises
    ------
    InvalidInputError
        When it is not one of `among`.
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
            name = np.dtype(name).name if name is not None else name  # "f4" and "<f4" are names too
    if name not in among:
        raise InvalidInputError(f"{what}: dtype {dtype!r} is none of {', '.join(among)}")
    return among[name]


def as_numpy(value: object, what: str) -> NDArray[Any]:
    """`value` as a numpy array, without a copy wherever it lies in memory already.

    numpy arrays, torch tensors on any device, and whatever speaks numpy's array protocol.

    Raises
    ------
    InvalidInputError
        When it is no array, or one with a mask, which a store could not keep.
    """
    if type(value) is np.ndarray and value.dtype.isnative:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidInputError(
            f"{what} is a masked array: its mask would be lost", hint="leave the masked rows out"
        )
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        return _from_torch(value, what)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{what} is no array: {error}") from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _from_torch(tensor: Any, what: str) -> NDArray[Any]:
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            # numpy() refuses bfloat16, so the bits cross as integers.
            bits = tensor.contiguous().view(sys.modules["torch"].int16).numpy()
            array: NDArray[Any] = bits.view(BFLOAT16)
            return array
        plain: NDArray[Any] = tensor.numpy()
        return plain
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InvalidInputError(f"{what} cannot become a numpy array: {error}") from error


def cast_float(array: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """A float array as another float dtype, each value rounded once, to nearest even.

    Raises
    ------
    InvalidInputError
        When `array` is not of floats, or when a finite value would become infinite.
    """
    if array.dtype == dtype:
        return array
    if array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what}: cast=True casts floats only, got {array.dtype}")
    wide = array
    if array.dtype == np.float64 and dtype == BFLOAT16:
        wide = _float32_to_odd(array)
    with np.errstate(over="ignore"):
        out: NDArray[Any] = wide.astype(dtype)
    if dtype.itemsize < array.dtype.itemsize or dtype == np.float16:
        overflown = np.isinf(out) & np.isfinite(array)
        if overflown.any():
            raise InvalidInputError(
                f"{what}: {int(overflown.sum())} values overflow {dtype.name}, the largest is "
                f"{float(np.abs(array[overflown]).max()):g}",
                hint="store as float32" if dtype == BFLOAT16 else "store as bfloat16 or float32",
            )
    return out


def _float32_to_odd(array: NDArray[Any]) -> NDArray[np.float32]:
    """float64 to float32, rounded to odd, so that the next rounding gives what one would have given.

    ml_dtypes goes through float32 itself, to nearest, and so rounds twice (Boldo and Melquiond,
    "Emulation of FMA and correctly rounded sums", 2008).
    """
    with np.errstate(over="ignore"):
        out: NDArray[np.float32] = np.ascontiguousarray(array.astype(np.float32))
    back = out.astype(np.float64)
    inexact = (back != array) & ~np.isnan(array)
    bits = out.view(np.uint32)
    # One bit pattern less is one step towards zero, for either sign.
    bits -= (inexact & (np.abs(back) > np.abs(array))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return out


def integers(value: object, what: str) -> NDArray[np.int64]:
    """A 1-D array of whole numbers as int64 ``[n]``.

    Raises
    ------
    InvalidInputError, ShapeError
        When it is anything else; booleans and floats are not taken for numbers.
    """
    array = as_numpy(value, what)
    if array.ndim != 1:
        raise ShapeError(f"{what}: expected one axis, got shape {list(array.shape)}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: expected integers, got {array.dtype}")
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{what}: {array.max()} is out of range")
    return array.astype(np.int64, copy=False)


def human_bytes(n: float) -> str:
    """``1536`` as ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"


def new_array(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """An uninitialised array, if it can possibly fit.

    Raises
    ------
    InvalidInputError
        When it is larger than the machine's memory: better told than killed.
    """
    n_bytes = dtype.itemsize
    for size in shape:
        n_bytes *= size
    if n_bytes > _physical_memory():
        raise InvalidInputError(
            f"{what}: {list(shape)} of {dtype.name} is {human_bytes(n_bytes)}, "
            f"this machine has {human_bytes(_physical_memory())} of memory",
            hint="read it in slices",
        )
    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise InvalidInputError(
            f"{what}: no memory for {list(shape)} of {dtype.name}, {human_bytes(n_bytes)}",
            hint="read it in slices",
        ) from error


@functools.cache
def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return sys.maxsize
