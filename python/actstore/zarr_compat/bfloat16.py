"""A bfloat16 data type for zarr-python 3, which does not include one. Importing this module imports zarr.

The metadata reads ``"data_type": "bfloat16"``, the same as in arrays from tensorstore and zarrs. The class
must derive from `HasEndianness`: otherwise zarr-python omits ``endian`` from the bytes codec, and tensorstore
rejects the array.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeGuard

import ml_dtypes
import numpy as np
from zarr.core.dtype import data_type_registry
from zarr.core.dtype.common import DataTypeValidationError, HasEndianness, HasItemSize
from zarr.core.dtype.npy.common import check_json_float_v3, float_from_json_v3
from zarr.core.dtype.wrapper import ZDType

_NATIVE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(ZDType[Any, Any], HasEndianness, HasItemSize):
    """The bfloat16 data type, `ml_dtypes.bfloat16` in memory. It supports only little endian and Zarr v3."""

    dtype_cls: ClassVar[type[Any]] = type(_NATIVE)
    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """The data type for `ml_dtypes.bfloat16`; DataTypeValidationError for any other dtype."""
        if dtype == _NATIVE:
            return cls()
        raise DataTypeValidationError(f"{dtype} is not bfloat16")

    def to_native_dtype(self) -> Any:
        """The numpy dtype `ml_dtypes.bfloat16`."""
        if self.endianness != "little":
            # numpy cannot represent a byte-swapped ml_dtypes type, so the values would be read wrong.
            raise ValueError("bfloat16 is supported in little endian only")
        return _NATIVE

    @classmethod
    def _check_json_v2(cls, data: Any) -> TypeGuard[Any]:
        return False

    @classmethod
    def _check_json_v3(cls, data: Any) -> TypeGuard[Any]:
        return bool(data == cls._zarr_v3_name)

    @classmethod
    def _from_json_v2(cls, data: Any) -> Self:
        raise DataTypeValidationError("Zarr v2 has no bfloat16")

    @classmethod
    def _from_json_v3(cls, data: Any) -> Self:
        if data == cls._zarr_v3_name or (
            isinstance(data, Mapping) and dict(data) == {"name": cls._zarr_v3_name}
        ):
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name!r}")

    def to_json(self, zarr_format: Any) -> Any:
        """The bare name: tensorstore rejects a mapping here."""
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError("Zarr v2 has no bfloat16: use zarr_format=3")

    @property
    def item_size(self) -> int:
        """Bytes per value."""
        return 2

    def _check_scalar(self, data: object) -> bool:
        try:
            self._cast_scalar_unchecked(data)
        except (TypeError, ValueError):
            return False
        return True

    def _cast_scalar_unchecked(self, data: Any) -> Any:
        # ml_dtypes crashes on text, so text is parsed first. zarr's own float types accept "NaN" as well.
        return _NATIVE.type(float(data) if isinstance(data, str | bytes) else data)

    def cast_scalar(self, data: object) -> Any:
        """`data` as a bfloat16 scalar; TypeError when it is not a number."""
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number")
        return self._cast_scalar_unchecked(data)

    def default_scalar(self) -> Any:
        """Zero."""
        return _NATIVE.type(0)

    def from_json_scalar(self, data: Any, *, zarr_format: Any) -> Any:
        """Parse a fill value: a number, "NaN", "Infinity", "-Infinity", or the bits in hex ("0x7fc0")."""
        if isinstance(data, str) and data.startswith("0x"):
            return np.array(int(data, 16), np.uint16).view(_NATIVE)[()]
        if isinstance(data, bool) or not (isinstance(data, int | float) or check_json_float_v3(data)):
            raise TypeError(f"{data!r} is not a bfloat16 value")
        return _NATIVE.type(float_from_json_v3(data) if isinstance(data, str) else data)

    def to_json_scalar(self, data: object, *, zarr_format: Any) -> float | str:
        """The JSON form of a fill value: a number, "NaN", "Infinity" or "-Infinity"."""
        value = float(self.cast_scalar(data))
        if value != value:
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "-Infinity"
        return value


def register() -> None:
    """Register the data type with zarr, unless one of that name is already registered."""
    if BFloat16._zarr_v3_name not in data_type_registry.contents:
        data_type_registry.register(BFloat16._zarr_v3_name, BFloat16)
