"""The operations of a site as functions of plain arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import ArrayLike

from .base.progress import Progress
from .ops.cross_moments import CrossMoments
from .ops.hits import Hits
from .ops.moments import MomentsResult
from .ops.neighbors import Neighbors
from .ops.whiten import Whitener
from .rows.memory import array_backend
from .site import Site


def from_array(
    array: Any,
    offsets: ArrayLike | None = None,
    ids: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    columns: Mapping[str, Any] | None = None,
    token_columns: Mapping[str, Any] | None = None,
) -> Site:
    """A site over a plain array, on which every operation works.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        A numpy array, memory map or torch tensor of a float dtype. A C-contiguous array is used in place,
        any other is copied.
    offsets : sequence of int, optional
        Where each example starts, ``[n_examples + 1]``, from 0 to n; by default each row is an example.
    ids : sequence of str, optional
        Ids of the examples; by default their positions as text.
    labels : sequence of int, optional
        Labels of the layers ``[L]``; by default 0, 1, ...
    columns : mapping of str to array ``[n_examples]``, optional
        Columns over the examples.
    token_columns : mapping of str to array ``[n]``, optional
        Columns over the rows.

    Returns
    -------
    Site

    Raises
    ------
    ShapeError, InvalidInputError
        When the array has another shape or dtype, or an argument does not match it.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> site = actstore.from_array(np.arange(6.0).reshape(3, 2), [0, 2, 3], ids=["a", "b"])
    >>> site.example("b").tolist(), site.pool("mean").read()[0].tolist()
    ([[[4.0, 5.0]]], [[1.0, 2.0]])
    """
    return Site(
        array_backend(array, offsets, ids=ids, labels=labels, columns=columns, token_columns=token_columns)
    )


def search(
    array: Any,
    queries: Any,
    k: int = 10,
    *,
    metric: str = "cos",
    combine: Literal["sum", "max"] | None = None,
    weights: Sequence[float] | None = None,
    transform: Whitener | None = None,
    min_score: float | None = None,
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Hits:
    """The `k` rows of an array that score best for each query; see `Site.search`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`; each row is an example.
    queries, k, metric, combine, weights, transform, min_score, on_nan, threads, progress
        As in `Site.search`.

    Returns
    -------
    Hits

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.search`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.search(np.eye(3), np.array([0.0, 2.0, 1.0]), k=2).rows.tolist()
    [[1, 2]]
    """
    return _site(array).search(
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


def maxsim(
    array: Any,
    offsets: ArrayLike | None,
    queries: Any,
    k: int = 10,
    *,
    metric: str = "cos",
    combine: Literal["sum", "max"] | None = None,
    weights: Sequence[float] | None = None,
    transform: Whitener | None = None,
    min_score: float | None = None,
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Hits:
    """The `k` examples of an array that score best by late interaction; see `Site.maxsim`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`.
    offsets : sequence of int, or None
        Where each example starts, ``[n_examples + 1]``; None for a Site.
    queries, k, metric, combine, weights, transform, min_score, on_nan, threads, progress
        As in `Site.maxsim`.

    Returns
    -------
    Hits
        ``rows`` are the numbers of examples.

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.maxsim`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.0, -1.0], [-3.0, -3.0]])
    >>> hits = actstore.maxsim(rows, [0, 2, 3], [np.array([[1.0, 1.0], [0.0, 1.0]])], k=2, metric="dot")
    >>> hits.rows.tolist(), hits.scores.tolist()
    ([[0, 1]], [[1.0, -9.0]])
    """
    return _site(array, offsets).maxsim(
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
    metric: str = "l2",
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Neighbors:
    """The `k` nearest other rows of each row of an array; see `Site.neighbors`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`.
    k, metric, on_nan, threads, progress
        As in `Site.neighbors`.

    Returns
    -------
    Neighbors

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.neighbors`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.neighbors(np.array([[0.0], [1.0], [5.0]]), k=1).rows.tolist()
    [[1], [0], [1]]
    """
    return _site(array).neighbors(k, metric=metric, on_nan=on_nan, threads=threads, progress=progress)


def scan(
    array: Any,
    reducers: Any,
    *,
    offsets: ArrayLike | None = None,
    threads: int = 0,
    progress: Progress | None = None,
    partial: bool = False,
) -> Any:
    """Run reducers over an array, all in one pass; see `Site.scan`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`.
    reducers, threads, progress, partial
        As in `Site.scan`.
    offsets : sequence of int, optional
        Where each example starts, ``[n_examples + 1]``; by default each row is an example.

    Returns
    -------
    result, or list, tuple or dict of results
        In the form of `reducers`.

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.scan`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.scan(np.array([[1.0, 2.0], [3.0, 6.0]]), actstore.Summary()).mean.tolist()
    [[2.0, 4.0]]
    """
    return _site(array, offsets).scan(reducers, threads=threads, progress=progress, partial=partial)


def pool(
    array: Any,
    offsets: ArrayLike | None,
    kind: str,
    *,
    mix: Literal["mean", "sum", "concat"] | Sequence[float] | None = None,
    skip_first: int = 0,
    on_empty: Literal["raise", "zero"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Site:
    """One row per example of an array; see `Site.pool`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`.
    offsets : sequence of int, or None
        Where each example starts, ``[n_examples + 1]``; None for a Site.
    kind, mix, skip_first, on_empty, threads, progress
        As in `Site.pool`.

    Returns
    -------
    Site
        float32 ``[n_examples, L', D']``, in memory.

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.pool`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    >>> actstore.pool(rows, [0, 2, 3], "mean").read().tolist()
    [[[2.0, 3.0]], [[5.0, 6.0]]]
    """
    site = _site(array, offsets)
    return site.pool(
        kind, mix=mix, skip_first=skip_first, on_empty=on_empty, threads=threads, progress=progress
    )


def moments(
    array: Any,
    cov: bool = True,
    *,
    by: Any = None,
    precision: Literal["float64", "float32"] = "float64",
    offsets: ArrayLike | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> MomentsResult:
    """The mean and the covariance of an array's rows; see `Site.moments`.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``, or Site
        See `from_array`.
    cov, by, precision, threads, progress
        As in `Site.moments`.
    offsets : sequence of int, optional
        Where each example starts, ``[n_examples + 1]``, for ``by="position"`` and ``by="example"``.

    Returns
    -------
    MomentsResult
        ``n``, ``mean`` ``[L, D]``, ``var`` ``[L, D]`` and ``cov`` ``[L, D, D]``, ddof 0.

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.moments`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.moments(np.array([[1.0, 2.0], [3.0, 6.0]])).cov.tolist()
    [[[1.0, 2.0], [2.0, 4.0]]]
    """
    site = _site(array, offsets)
    return site.moments(cov, by=by, precision=precision, threads=threads, progress=progress)


def cross_moments(
    array: Any,
    other: Any,
    *,
    lag: int = 0,
    precision: Literal["float64", "float32"] = "float64",
    offsets: ArrayLike | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> CrossMoments:
    """Covariances between the dims of two arrays, over pairs of rows; see `Site.cross_moments`.

    Parameters
    ----------
    array, other : array ``[n, D]`` or ``[n, L, D]``, or Site
        Two with equal numbers of rows.
    lag, precision, threads, progress
        As in `Site.cross_moments`.
    offsets : sequence of int, optional
        Where each example starts, ``[n_examples + 1]``, for `lag`.

    Returns
    -------
    CrossMoments
        ``n``, ``mean`` ``[L, D]``, ``other_mean`` ``[M, E]`` and ``cov`` ``[L, M, D, E]``, ddof 0.

    Raises
    ------
    ShapeError, InvalidInputError
        As `from_array` and `Site.cross_moments`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> actstore.cross_moments(np.array([[1.0], [3.0]]), np.array([[2.0], [8.0]])).cov.tolist()
    [[[[3.0]]]]
    """
    site = _site(array, offsets)
    return site.cross_moments(other, lag=lag, precision=precision, threads=threads, progress=progress)


def _site(array: Any, offsets: ArrayLike | None = None) -> Site:
    """The site itself, or a site over an array."""
    if isinstance(array, Site) and offsets is None:
        return array
    return from_array(array, offsets)
