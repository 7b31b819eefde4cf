"""Building a usearch index from the rows of one layer."""

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.checks import at_least, one_of
from ..base.progress import Progress
from ..base.selection import rows_array
from ..errors import InvalidInputError
from ..ops.scoring import metric_name
from ..ops.whiten import Whitener
from .index_rows import IndexRows, call_library, import_library, output_path, write_atomically

_FLOAT16_OVERFLOW = 65_520.0
"""The smallest float that rounds to infinity in float16."""
_METRICS = {"dot": "ip", "cos": "cos", "l2": "l2sq"}
_DTYPES = ("f32", "f16", "bf16", "i8")


def to_usearch(
    site: Any,
    *,
    metric: str = "cos",
    dtype: Literal["f32", "f16", "bf16", "i8"] = "f32",
    connectivity: int = 16,
    expansion_add: int = 128,
    transform: Whitener | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Build a usearch index from the rows of one layer.

    The index finds candidates, and `rerank` computes their exact scores. The index's own distances are
    approximate, lower is better: 1 - dot, 1 - cos, or the squared distance.

    Parameters
    ----------
    site : Site or array ``[n, D]``
        Rows of one layer. They are read in blocks of 64 MiB.
    metric : {"cos", "dot", "l2"}
        usearch's metrics ``"ip"``, ``"cos"`` and ``"l2sq"``.
    dtype : {"f32", "f16", "bf16", "i8"}
        The dtype of the vectors in the index. i8 drops the norms, so it supports only cos.
    connectivity, expansion_add : int
        Links per node, and candidates considered for them. Larger values are slower and improve recall.
    transform : Whitener, optional
        See `to_faiss`.
    out : path, optional
        Also write the index to this file, for ``usearch.index.Index.restore``. An existing file is replaced.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called as ``progress(done, total)`` in rows.

    Returns
    -------
    usearch.index.Index
        Its keys are row ids as in `Site.rows`: row numbers in the whole store; for a pooled site, example
        numbers.

    Raises
    ------
    InvalidInputError
        When usearch is not installed or cannot build such an index; when there are several layers, repeated
        rows, NaN, infinities, or values that overflow float16; or when an argument is invalid.
    StorageError
        When `out` cannot be written.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> index = actstore.to_usearch(rows, metric="cos", dtype="i8")
    >>> matches = index.search(rows[:5], 50)
    >>> actstore.rerank(rows, rows[:5], matches, k=1, metric="cos").rows.T
    array([[0, 1, 2, 3, 4]])
    """
    usearch = import_library("usearch.index", "usearch")
    path = output_path(out, "to_usearch")
    one_of(dtype, _DTYPES, "to_usearch: dtype")
    metric = metric_name(metric, "to_usearch")
    rows = IndexRows(site, metric, transform, threads, "to_usearch", normalize=False)
    if dtype == "i8" and metric != "cos":
        raise InvalidInputError(
            f"to_usearch: dtype 'i8' drops the norms, which metric {metric!r} needs", hint="dtype='bf16'"
        )
    connectivity = at_least(2, connectivity, "to_usearch: connectivity")
    expansion_add = at_least(1, expansion_add, "to_usearch: expansion_add")

    def make() -> Any:
        return usearch.Index(
            ndim=rows.dim,
            metric=_METRICS[metric],
            dtype=dtype,
            connectivity=connectivity,
            expansion_add=expansion_add,
        )

    def add(row_ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        index.add(row_ids.astype(np.uint64), values, threads=rows.threads)

    index = call_library("to_usearch", make)
    for start, values in rows.blocks():
        row_ids = rows_array(rows.row_ids[start : start + len(values)])
        if dtype == "f16":
            overflows = np.abs(values).max(1) >= _FLOAT16_OVERFLOW
            if overflows.any():
                row = int(row_ids[overflows.argmax()])
                raise InvalidInputError(
                    f"to_usearch: row {row} has values that overflow f16", hint="dtype='bf16'"
                )
        call_library("to_usearch", add, row_ids, values)
        if progress is not None:
            progress(start + len(values), len(rows))
    if path is not None:
        write_atomically(path, index.save)
    return index
