"""Norms of rows after an affine map, which cosine and l2 search under a whitener need.

They are computed once per map and backend, or read from the store if `Whitener.save` stored them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..artifacts import whiteners
from ..base.progress import Progress
from ..errors import NotFoundError
from ..rows.view import View


@dataclass(frozen=True, eq=False)
class AffineMap:
    """For each layer x -> matrix (x - mean).

    Attributes
    ----------
    layers : sequence of int
        Labels ``[L]``.
    mean : array
        float64 ``[L, D]``.
    matrix : array
        float64 ``[L, R, D]``.
    digest : str
        Equal for equal maps: the key of stored norms.
    """

    layers: Sequence[int]
    mean: NDArray[np.float64]
    matrix: NDArray[np.float64]
    digest: str

    def positions(self, labels: Sequence[int]) -> list[int]:
        """The positions of these layers in the map; NotFoundError for a layer that it lacks."""
        at = {label: i for i, label in enumerate(self.layers)}
        for label in labels:
            if label not in at:
                raise NotFoundError(
                    f"the whitener has no layer {label}, it has: {', '.join(map(str, self.layers))}",
                    hint="fit a whitener to these layers",
                )
        return [at[label] for label in labels]

    def of_layers(self, labels: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means ``[L, D]`` and matrices ``[L, R, D]`` of these layers."""
        at = self.positions(labels)
        if at == list(range(len(self.layers))):
            return self.mean, self.matrix
        return np.ascontiguousarray(self.mean[at]), np.ascontiguousarray(self.matrix[at])


def compute_norms(
    view: View, mapping: AffineMap, threads: int = 0, progress: Progress | None = None
) -> NDArray[np.float64]:
    """The norm of each mapped row of a view, ||matrix (x - mean)||, float64 ``[n, L]``."""
    mean, matrix = mapping.of_layers(view.layers)
    return _native.mapped_norms(*view.source, mean, matrix, threads=threads, progress=progress)


def mapped_norms(
    view: View, mapping: AffineMap, threads: int = 0, progress: Progress | None = None
) -> NDArray[np.float64]:
    """As `compute_norms`, but read from the store or from the cache of an earlier call where possible."""
    backend, digest = view.backend, mapping.digest
    at = mapping.positions(view.layers)
    all_layers = at == list(range(len(mapping.layers)))
    if digest not in backend.norms:
        stored = whiteners.stored_norms(backend, digest, len(mapping.layers))
        if stored is not None:
            backend.norms[digest] = stored
    kept = backend.norms.get(digest)
    rows = view.rowset.rows
    if kept is not None:
        some = kept[rows.start : rows.stop] if isinstance(rows, range) else kept[rows]
        return np.ascontiguousarray(some if all_layers else some[:, at])
    norms = compute_norms(view, mapping, threads, progress)
    if all_layers and isinstance(rows, range) and rows == range(backend.array.shape[0]):
        backend.norms[digest] = norms
    return norms
