"""Building a faiss index from the rows of one layer."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from ..base.checks import at_least
from ..base.progress import Progress
from ..base.selection import Rows, rows_array
from ..errors import InvalidInputError, ShapeError
from ..ops.scoring import metric_name
from ..ops.whiten import Whitener
from .index_rows import IndexRows, call_library, import_library, output_path, write_atomically

TRAIN_ROWS = 65_536
"""The default number of training rows, if the index has no more than 256 inverted lists."""


def to_faiss(
    site: Any,
    index: Any = "Flat",
    *,
    metric: str = "cos",
    transform: Whitener | None = None,
    train_rows: int | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Build a faiss index from the rows of one layer.

    The index finds candidates, and `rerank` computes their exact scores. The index's own scores are
    approximate: inner products for dot and cos, squared distances (lower is better) for l2.

    Parameters
    ----------
    site : Site or array ``[n, D]``
        Rows of one layer. They are read in blocks of 64 MiB.
    index : str or faiss.Index
        A string for ``faiss.index_factory``, such as ``"HNSW32,Flat"`` or ``"IVF256,PQ32"``, or an index,
        trained or untrained. An existing index keeps its content; after an error, it also keeps the blocks
        that were already added.
    metric : {"cos", "dot", "l2"}
        For cos, the rows are scaled to unit norm. Scale the queries too (``faiss.normalize_L2``).
    transform : Whitener, optional
        Add whitened rows, with the dimension of the whitener's output. Whiten the queries too:
        ``transform.select(layer).transform(queries)``.
    train_rows : int, optional
        Number of training rows, if the index needs training. They are a random sample, the same at each call,
        and are held in memory as float32. The default is 256 for each list of an IVF index, and at least
        65,536, the most that faiss uses for 256 centroids.
    out : path, optional
        Also write the index to this file, for ``faiss.read_index``. An existing file is replaced.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called as ``progress(done, total)`` in rows, including the training rows.

    Returns
    -------
    faiss.Index
        Its labels are row ids as in `Site.rows`: row numbers in the whole store; for a pooled site, example
        numbers. If these are not 0, 1, 2, ... and the index cannot store ids (IVF indexes can), it is wrapped
        in an ``IndexIDMap2``.

    Raises
    ------
    InvalidInputError
        When faiss is not installed, or cannot build this index or add these rows; when there are several
        layers, repeated rows, NaN or infinities; or when an argument is invalid.
    ShapeError
        When an existing index has another dimension.
    StorageError
        When `out` cannot be written.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    >>> index = actstore.to_faiss(rows, "HNSW16,Flat")
    >>> scores, candidates = index.search(rows[:5], 50)
    >>> candidates.shape
    (5, 50)
    >>> actstore.rerank(rows, rows[:5], candidates, k=10).scores.shape
    (5, 10)
    """
    faiss = import_library("faiss", "faiss-cpu")
    path = output_path(out, "to_faiss")
    metric = metric_name(metric, "to_faiss")
    rows = IndexRows(site, metric, transform, threads, "to_faiss")
    if train_rows is not None:
        train_rows = at_least(1, train_rows, "to_faiss: train_rows")
    index = _check_index(faiss, index, rows.dim, metric)
    with _omp_threads(faiss, rows.threads):
        n = total = len(rows)
        if not index.is_trained:
            n_train = min(n, train_rows or max(TRAIN_ROWS, 256 * _n_lists(faiss, index)))
            total += n_train
            sample = rows.sample(n_train, progress, total)
            call_library("to_faiss", index.train, sample)
            del sample
        index, add = _index_and_add(faiss, index, rows.row_ids)
        for start, values in rows.blocks():
            row_ids = rows_array(rows.row_ids[start : start + len(values)])
            call_library("to_faiss", add, values, row_ids)
            if progress is not None:
                progress(total - n + start + len(values), total)
    if path is not None:
        write_atomically(path, lambda partial: faiss.write_index(index, partial))
    return index


def _check_index(faiss: Any, index: Any, dim: int, metric: str) -> Any:
    """The index to fill, with the given dimension and metric."""
    wanted = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if isinstance(index, str):
        index = call_library(f"to_faiss: index {index!r}", faiss.index_factory, dim, index, wanted)
    elif not isinstance(index, faiss.Index):
        raise InvalidInputError(
            f"to_faiss: index has type {type(index).__name__}, expected a string or a faiss.Index"
        )
    if index.d != dim:
        raise ShapeError(f"to_faiss: the index has dim {index.d}, the rows have dim {dim}")
    if index.metric_type != wanted:
        names = {faiss.METRIC_L2: "METRIC_L2", faiss.METRIC_INNER_PRODUCT: "METRIC_INNER_PRODUCT"}
        actual = names.get(index.metric_type, f"metric {index.metric_type}")
        raise InvalidInputError(
            f"to_faiss: metric {metric!r} needs an index with {names[wanted]}, this one has {actual}"
        )
    return index


def _n_lists(faiss: Any, index: Any) -> int:
    """The number of inverted lists; 0 for other kinds of indexes."""
    ivf = faiss.try_extract_index_ivf(index)
    return 0 if ivf is None else int(ivf.nlist)


def _stores_ids(faiss: Any, index: Any) -> bool:
    """Whether the index itself supports ``add_with_ids``."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _stores_ids(faiss, index.index)
    return isinstance(index, faiss.IndexIVF | faiss.IndexIDMap)


def _index_and_add(faiss: Any, index: Any, row_ids: Rows) -> tuple[Any, Callable[..., None]]:
    """The index, wrapped in an IndexIDMap2 if it must be, and a function that adds values and row ids."""
    if _stores_ids(faiss, index):
        return index, index.add_with_ids
    n = int(index.ntotal)
    if not len(row_ids) or (isinstance(row_ids, range) and row_ids.start == n):
        return index, lambda values, _: index.add(values)
    if n:
        raise InvalidInputError(
            f"to_faiss: the index numbers new rows from {n}, but these begin with row {row_ids[0]}",
            hint="wrap the empty index in a faiss.IndexIDMap2 before adding any rows",
        )
    index = faiss.IndexIDMap2(index)
    return index, index.add_with_ids


@contextlib.contextmanager
def _omp_threads(faiss: Any, threads: int) -> Iterator[None]:
    """Set the number of OpenMP threads and restore it at the end. faiss has only this global setting."""
    before = faiss.omp_get_max_threads()
    if threads:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
