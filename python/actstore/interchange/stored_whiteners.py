"""The whiteners of a store that is exported or imported."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..artifacts import whiteners
from ..errors import ActstoreWarning
from ..store import Store


def stored_whiteners(store: Store, stacklevel: int) -> dict[str, Mapping[str, Any]]:
    """The metadata of a store's whiteners, by name. Warns of each whitener that cannot be read.

    Parameters
    ----------
    store : Store
    stacklevel : int
        The frame that the warnings refer to, as in `warnings.warn` called from here.
    """
    readable = {}
    for name, metadata in whiteners.describe(store.snapshot.parts, keys=None).items():
        if "error" in metadata:
            warnings.warn(f"left out: {metadata['error']}", ActstoreWarning, stacklevel)
        else:
            readable[name] = metadata
    return readable


def site_norms(store: Store, metadata: Mapping[str, Any]) -> Callable[[int, int], NDArray[np.float64]] | None:
    """A function that reads norms ``[stop - start, L]`` of the whitened rows of a whitener's site.

    None if the norm of any row is missing.
    """
    backend = store[metadata["site"]].backend
    return whiteners.norms_reader(backend, metadata["digest"], len(metadata["layers"]))
