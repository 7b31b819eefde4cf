"""What can be done to arrays that are in no store: as to a site of them."""

from collections.abc import Sequence
from typing import Any, Literal

from .hits import Hits
from .memory import array_origin
from .moments import CrossMoments, MomentsResult
from .neighbors import Neighbors
from .site import Site
from .view import Progress
from .whiten import Whitener


def search(
    array: Any,
    queries: Any,
    k: int = 10,
    *,
    metric: Literal["dot", "cos", "l2"] = "dot",
    combine: Literal["sum", "max"] = "sum",
    weights: Sequence[float] | None = None,
    transform: Whitener | None = None,
    min_score: float | None = None,
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Hits:
    """The `k` rows of an array that score best for each query, as `Site.search` finds them.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        numpy, ml_dtypes, a memory map or a torch tensor, of bfloat16, float16, float32 or float64 (rounded to
        float32). It is searched where it lies if it is C-contiguous, else a copy is. Each row is an example,
        its id its position.
    queries, k, metric, combine, weights, transform, min_score, on_nan, threads, progress
        As `Site.search` has them.

    Returns
    -------
    Hits
        ``scores``, ``rows`` and ``layers`` ``[nq, k]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.search`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, -2.0]], np.float32)
    >>> hits = actstore.search(rows, np.array([[0.0, 1.0]]), k=2, metric="cos")
    >>> hits.rows.tolist(), hits.scores.round(3).tolist()
    ([[1, 0]], [[0.800000011920929, 0.0]])
    """
    return Site(array_origin(array)).search(
        queries,
        k,
        metric=metric,
        combine=combine,
        weights=weights,
        transform=transform,
        min_score=min_score,
        on_nan=on_nan,
        threads=threads,
        progress=progress,
    )


def scan(
    array: Any,
    reducers: Sequence[Any],
    *,
    offset: Any = None,
    threads: int = 0,
    progress: Progress | None = None,
    partial: bool = False,
) -> list[Any]:
    """Run reducers over an array, all in one pass, as `Site.scan` does.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        As `search` has it.
    reducers, threads, progress, partial
        As `Site.scan` has them.
    offset : sequence of int, optional
        Where each example begins, ``[n_examples + 1]``; `Pool` needs it.

    Returns
    -------
    list
        For each reducer its result, or state.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.scan`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> [summary] = actstore.scan(np.array([[1.0, 2.0], [3.0, 2.0]]), [actstore.Summary()])
    >>> summary.mean, summary.var
    (array([[2., 2.]]), array([[1., 0.]]))
    """
    site = Site(array_origin(array, offset))
    return site.scan(reducers, threads=threads, progress=progress, partial=partial)


def pool(
    array: Any,
    offset: Any,
    kind: Literal["mean", "max", "first", "last", "weighted"],
    *,
    mix: Literal["mean", "sum", "concat"] | Sequence[float] | None = None,
    on_empty: Literal["raise", "zero"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Site:
    """One row for each example of an array, as `Site.pool` makes them.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        As `search` has it.
    offset : sequence of int
        Where each example begins, ``[n_examples + 1]``, from 0 to n.
    kind, mix, on_empty, threads, progress
        As `Site.pool` has them.

    Returns
    -------
    Site
        float32 ``[n_examples, L', D']``, in memory.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.pool`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> actstore.pool(rows, [0, 2, 3], "mean").read().tolist()
    [[[2.0, 3.0]], [[5.0, 6.0]]]
    """
    site = Site(array_origin(array, offset))
    return site.pool(kind, mix=mix, on_empty=on_empty, threads=threads, progress=progress)


def moments(
    array: Any,
    cov: bool = True,
    *,
    by: Any = None,
    precision: Literal["float64", "float32"] = "float64",
    offset: Any = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> MomentsResult:
    """The mean and the covariance of an array's rows, as `Site.moments` computes them.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        As `search` has it.
    cov, by, precision, threads, progress
        As `Site.moments` has them.
    offset : sequence of int, optional
        Where each example begins, ``[n_examples + 1]``, for ``by="position"`` and ``by="example"``.

    Returns
    -------
    MomentsResult
        ``n``, ``mean`` ``[L, D]``, ``var`` ``[L, D]`` and ``cov`` ``[L, D, D]``, ddof 0.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.moments`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.moments(np.array([[1.0, 2.0], [3.0, 6.0]])).cov.tolist()
    [[[1.0, 2.0], [2.0, 4.0]]]
    """
    site = Site(array_origin(array, offset))
    return site.moments(cov, by=by, precision=precision, threads=threads, progress=progress)


def cross_moments(
    array: Any,
    other: Any,
    *,
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    progress: Progress | None = None,
) -> CrossMoments:
    """The mean products of the dims of two arrays, row by row, as `Site.cross_moments` computes them.

    Parameters
    ----------
    array, other : array ``[n, D]`` or ``[n, L, D]``
        As `search` has them; as many rows.
    precision, threads, progress
        As `Site.cross_moments` has them.

    Returns
    -------
    CrossMoments
        ``n``, ``mean`` ``[L, D]``, ``other_mean`` ``[M, E]`` and ``cov`` ``[L, M, D, E]``, ddof 0.

    Raises
    ------
    ShapeError, InvalidInputError
        When an array is none of these, or as `Site.cross_moments`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.cross_moments(np.array([[1.0], [3.0]]), np.array([[2.0], [8.0]])).cov.tolist()
    [[[[3.0]]]]
    """
    site = Site(array_origin(array))
    return site.cross_moments(other, precision=precision, threads=threads, progress=progress)


def maxsim(
    array: Any,
    offset: Any,
    queries: Any,
    k: int = 10,
    *,
    metric: Literal["dot", "cos", "l2"] = "dot",
    combine: Literal["sum", "max"] = "sum",
    weights: Sequence[float] | None = None,
    transform: Whitener | None = None,
    min_score: float | None = None,
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Hits:
    """The `k` examples of an array that score best by late interaction, as `Site.maxsim` finds them.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        As `search` has it.
    offset : sequence of int
        Where each example begins, ``[n_examples + 1]``, from 0 to n.
    queries, k, metric, combine, weights, transform, min_score, on_nan, threads, progress
        As `Site.maxsim` has them.

    Returns
    -------
    Hits
        ``scores`` and ``rows``, the numbers of examples, ``[nq, k]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.maxsim`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.0, -1.0], [-3.0, -3.0]])
    >>> hits = actstore.maxsim(rows, [0, 2, 3], [np.array([[1.0, 1.0], [0.0, 1.0]])], k=2)
    >>> hits.rows.tolist(), hits.scores.tolist()
    ([[0, 1]], [[1.0, -9.0]])
    """
    return Site(array_origin(array, offset)).maxsim(
        queries,
        k,
        metric=metric,
        combine=combine,
        weights=weights,
        transform=transform,
        min_score=min_score,
        on_nan=on_nan,
        threads=threads,
        progress=progress,
    )


def neighbors(
    array: Any,
    k: int = 10,
    *,
    metric: Literal["l2", "cos"] = "l2",
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Neighbors:
    """The `k` nearest other rows of each row of an array, as `Site.neighbors` finds them.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        As `search` has it.
    k, metric, on_nan, threads, progress
        As `Site.neighbors` has them.

    Returns
    -------
    Neighbors
        ``distances`` and ``rows`` ``[n, k]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When the array is none of these, or as `Site.neighbors`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.neighbors(np.array([[0.0], [1.0], [5.0]]), k=1).rows.tolist()
    [[1], [0], [1]]
    """
    site = Site(array_origin(array))
    return site.neighbors(k, metric=metric, on_nan=on_nan, threads=threads, progress=progress)
