"""Reading .npy files."""

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ...disk.layout import TOKENS
from ...errors import FormatError, InvalidInputError, NotFoundError
from .source import ImportSource, site_spec


def from_npy(path: str, site: str, labels: Sequence[int] | None, to: str | None) -> ImportSource:
    """A memory-mapped .npy file as one site named `site`."""
    array = load_npy(path)
    # numpy saves bfloat16 as raw 2-byte values (dtype kind V) and loses the name of the dtype.
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        if to != "bfloat16":
            raise InvalidInputError(
                f"{path} holds 2-byte values of a dtype unknown to numpy",
                hint="dtype='bfloat16' if they are bfloat16",
            )
        array = array.view(ml_dtypes.bfloat16)
    spec = site_spec(path, array.shape, array.dtype.name, labels, to)
    rows = array[:, None, :] if array.ndim == 2 else array
    return ImportSource({site: spec}, {site: lambda start, stop: rows[start:stop]}, {TOKENS: array.shape[0]})


def load_npy(path: str) -> NDArray[Any]:
    """Memory-map an .npy file, without unpickling.

    Raises
    ------
    NotFoundError
        When there is no such file.
    FormatError
        When it is not an .npy file of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except (ValueError, EOFError, OSError) as error:
        # numpy's own message would suggest unpickling the file.
        raise FormatError(f"{path} is not an .npy file of numbers", kind="metadata") from error
    if not isinstance(array, np.ndarray):
        raise FormatError(f"{path} is an .npz archive, not an .npy file", kind="metadata")
    return array
