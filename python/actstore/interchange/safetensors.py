"""Writing safetensors files in blocks, and reading them in slices.

A file consists of the header's length (8 bytes, little endian), a JSON header padded with spaces, and the
tensors' bytes without gaps. The safetensors library can write only whole tensors from memory, so this module
writes files itself.
"""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import COLUMN_DTYPES
from ..errors import FormatError, InvalidInputError, NotFoundError
from .files import storage_errors

_SHORT_NAMES = {"bfloat16": "BF16", "bool": "BOOL"} | {
    name: f"{name[0].upper()}{np.dtype(name).itemsize * 8}"
    for name in COLUMN_DTYPES
    if name not in ("bfloat16", "bool")
}
_DTYPES = {short: name for name, short in _SHORT_NAMES.items()}


class TensorsWriter:
    """A new safetensors file whose tensors are written in blocks of rows, each from its first row on.

    Parameters
    ----------
    path : str
        The file to create.
    tensors : mapping of str to (str, tuple of int)
        The dtype name and the shape of each tensor.

    Raises
    ------
    StorageError
        When the file exists or cannot be created.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.safetensors"
    >>> with TensorsWriter(path, {"x": ("float32", (3, 2))}) as file:
    ...     file.write("x", np.zeros((2, 2), np.float32))
    ...     file.write("x", np.ones((1, 2), np.float32))
    >>> TensorsReader(path).read("x", 1, 3)
    array([[0., 0.],
           [1., 1.]], dtype=float32)
    """

    def __init__(self, path: str, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        # Wide dtypes first, so that every tensor is aligned to its dtype.
        order = sorted(tensors, key=lambda name: (-COLUMN_DTYPES[tensors[name][0]].itemsize, name))
        header: dict[str, Any] = {}
        self._next: dict[str, int] = {}
        self._end: dict[str, int] = {}
        offset = 0
        for name in order:
            dtype, shape = tensors[name]
            size = COLUMN_DTYPES[dtype].itemsize
            for length in shape:
                size *= length
            header[name] = {
                "dtype": _SHORT_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            self._next[name], self._end[name] = offset, offset + size
            offset += size
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self._start = 8 + len(raw)
        self._path = path
        with storage_errors(path):
            self._file = open(path, "xb")  # noqa: SIM115 - __exit__ closes it
            self._file.write(len(raw).to_bytes(8, "little") + raw)

    def write(self, name: str, block: NDArray[Any]) -> None:
        """Write the next rows of a tensor.

        Raises
        ------
        StorageError
            When the disk fails or is full.
        """
        data = np.ascontiguousarray(block).view(np.uint8).reshape(-1)
        with storage_errors(self._path):
            self._file.seek(self._start + self._next[name])
            self._file.write(data.data)
        self._next[name] += data.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with storage_errors(self._path):
            self._file.close()
        if kind is None:
            assert self._next == self._end, "a tensor is incomplete"


class TensorsReader:
    """A safetensors file whose tensors are read in slices of rows.

    Attributes
    ----------
    path : str
    tensors : dict of str to (str, tuple of int)
        The dtype name and the shape of each tensor. A dtype that numpy lacks keeps its safetensors name.

    Raises
    ------
    NotFoundError
        When there is no such file.
    FormatError
        When it is not a safetensors file.
    InvalidInputError
        When the package safetensors is not installed.
    """

    def __init__(self, path: str) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise InvalidInputError(
                f"{path}: reading this file needs the package safetensors", hint="pip install safetensors"
            ) from error
        try:
            file: Any = safe_open(path, "np")
        except FileNotFoundError as error:
            raise NotFoundError(f"{path} does not exist") from error
        except SafetensorError as error:
            raise FormatError(f"{path} is not a safetensors file: {error}", kind="metadata") from error
        self._file = file
        self.path = path
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            dtype = part.get_dtype()
            self.tensors[name] = (_DTYPES.get(dtype, dtype), tuple(part.get_shape()))

    def read(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` of a tensor."""
        with storage_errors(self.path):
            dtype, shape = self.tensors[name]
            if start >= stop:  # The library rejects empty slices.
                return np.empty((0, *shape[1:]), COLUMN_DTYPES[dtype])
            array: NDArray[Any] = self._file.get_slice(name)[start:stop]
            return array
