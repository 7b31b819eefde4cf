"""Verbs of a site that compare its rows: moments, late interaction, neighbours; `Site` has them."""

from collections.abc import Sequence
from typing import Any, Literal

from .hits import Hits
from .maxsim import check_tokens, maxsim_view
from .moments import CrossMoments, MomentsResult, cross_view, moments_view
from .neighbors import Neighbors, neighbors_view
from .search import scoring
from .view import Progress, View
from .whiten import Whitener


def moments(
    self: View,
    cov: bool = True,
    *,
    by: Any = None,
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    progress: Progress | None = None,
) -> MomentsResult:
    """The mean and the covariance of the rows of each layer, in one pass; merge them with ``+``.

    Parameters
    ----------
    cov : bool
        Whether to have covariances ``[L, D, D]``, or variances alone.
    by : str or array, optional
        Have moments for each group of rows: ``"position"`` (of a row in its example), ``"example"``, the
        name of a column of the rows' axis or of their examples, or an array ``[n_rows]`` of integers or
        strings.
    precision : {"float64", "float32"}
        Of products: of all, or float32 within some 256 rows, whose sums are added in float64; about twice as
        fast, to some six digits of what float32 can hold.
    threads : int
        0 means all cores. Results do not depend on it.
    progress : callable, optional
        Called with the rows times layers done, and in all.

    Returns
    -------
    MomentsResult
        ``n``, ``mean`` float64 ``[L, D]``, ``var`` ``[L, D]`` and ``cov`` ``[L, D, D]``, ddof 0; with groups
        one axis more, in front.

    Raises
    ------
    InvalidInputError
        When rows have NaN or infinities: the message says how many and which is the first; or when the
        result would not fit in memory.
    NotFoundError, ShapeError
        When there is no such column, or not one group for each row.

    Notes
    -----
    Pieces of rows lose their mean before they are multiplied and merge as in Chan, Golub and LeVeque,
    "Algorithms for computing the sample variance" (1983): to the last digits of float64, however far from
    zero the values are. The matrix is there once, whatever the number of threads.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[[1, 0]], [[3, 0]], [[5, 3]]], np.float32)
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 2, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[1, 2])
    >>> site = actstore.open(path)["resid"]
    >>> m = site.moments()
    >>> m.n, m.mean.tolist(), m.cov.round(3).tolist()
    (3, [[3.0, 1.0]], [[[2.667, 2.0], [2.0, 2.0]]])
    >>> site.moments(cov=False, by="position").mean[:, 0].tolist()
    [[2.0, 0.0], [5.0, 3.0]]
    """
    return moments_view(self, cov, by, precision, threads, progress)


def cross_moments(
    self: View,
    other: Any,
    *,
    offset: int = 0,
    precision: Literal["float64", "float32"] = "float64",
    threads: int = 0,
    progress: Progress | None = None,
) -> CrossMoments:
    """The mean products of the dims of this view with those of another one's, row by row.

    Parameters
    ----------
    other : Site or array ``[n, E]`` or ``[n, M, E]``
        As many rows, each of the same token (or example) as the one of this view. Of two sites the numbers
        of rows of each example are compared.
    offset : int
        Take each row of this view with the one so many places later in the same example; rows without
        one are left out.
    precision, threads, progress
        As `moments` has them.

    Returns
    -------
    CrossMoments
        ``n``, ``mean`` ``[L, D]``, ``other_mean`` ``[M, E]`` and ``cov`` float64 ``[L, M, D, E]``, ddof 0.

    Raises
    ------
    ShapeError, InvalidInputError
        When rows do not match, have NaN or infinities, or the result would not fit in memory.

    Notes
    -----
    What linear maps between layers are fitted from: "Jump to Conclusions" (Din et al. 2023,
    arXiv:2303.09435), with `offset` "Future Lens" (Pal et al. 2023, arXiv:2311.04897).

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[[1], [2]], [[3], [4]], [[5], [9]]], np.float32)
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 1, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[3])
    >>> site = actstore.open(path)["resid"]
    >>> site.select(layers=0).cross_moments(site.select(layers=1)).cov.round(3).tolist()
    [[[[4.667]]]]
    >>> site.cross_moments(site, offset=1).n
    2
    """
    return cross_view(self, other, offset, precision, threads, progress)


def maxsim(
    self: View,
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
    """The `k` examples that score best for each query by late interaction; exact.

    The score of an example is the sum, over the vectors of the query, of the best score that any of its rows
    in this view has (MaxSim: Khattab and Zaharia, "ColBERT", 2020, arXiv:2004.12832). Rows are scored as
    `search` scores them, several layers combined, in float64, and the sum is rounded once to float32.
    Nothing is padded: an example may have any number of rows, all of them may score below zero, and one
    without rows is never a hit. Which rows count is for `select` to say: ``examples=``, ``layers=``, and
    ``tokens=`` to leave special tokens out.

    Parameters
    ----------
    queries : list of array ``[Tq, D]`` or ``[Tq, L, D]``, or Site
        For each query its vectors; one query ``[Tq, D]`` may stand without the list. Of a site each example
        is one.
    k : int
        How many; where there are fewer, the rest is missing.
    metric, combine, weights, transform, min_score, on_nan, threads, progress
        As `search` has them; rows with NaN that are skipped leave the others of their example.

    Returns
    -------
    Hits
        ``scores`` ``[nq, k]``; ``rows`` are the numbers of examples.

    Raises
    ------
    ShapeError, InvalidInputError
        When a query has no vectors, or ones of another dim, number of layers or dtype; else as `search`.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)[:, None]
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 2, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[2, 0, 1], ids=["a", "empty", "b"])
    >>> hits = actstore.open(path)["resid"].maxsim([np.array([[1.0, 0.0], [0.0, 1.0]])], k=3)
    >>> hits.ids, hits.scores.round(2).tolist()
    ([['a', 'b', None]], [[2.0, 1.399999976158142, -inf]])
    >>> hits.explain(0, 1).shape
    (2, 1)
    """
    check_tokens(self)
    how = scoring(self, metric, combine, weights, transform, min_score, on_nan, "maxsim")
    return maxsim_view(self, queries, k, how, threads, progress)


def neighbors(
    self: View,
    k: int = 10,
    *,
    metric: Literal["l2", "cos"] = "l2",
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Neighbors:
    """The `k` nearest other rows of each row of this view; exact.

    A row is left out of its own neighbours by its number, so equal rows are neighbours at distance 0. Of
    several layers distances are those of all of them side by side (l2: the root of the sum of squares; cos:
    the sum of 1 - cos).

    Parameters
    ----------
    k : int
        How many; where there are fewer rows, the rest is missing.
    metric : {"l2", "cos"}
        The distance, not squared; or 1 - cos. Computed in float64 and rounded once to float32.
    on_nan : {"raise", "skip"}
        What to do with rows that have NaN; skipped, they are nobody's neighbours and have none.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done, and in all.

    Returns
    -------
    Neighbors
        ``distances`` float32 and ``rows`` int64, ``[n, k]``, by distance, then by row.

    Raises
    ------
    InvalidInputError
        When an argument cannot be, or rows have NaN.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[0, 0], [3, 4], [0, 1]], np.float32)[:, None]
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 2, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[3])
    >>> nn = actstore.open(path)["resid"].neighbors(k=1)
    >>> nn.rows[:, 0].tolist(), nn.distances[:, 0].tolist()
    ([2, 2, 0], [1.0, 4.242640495300293, 1.0])
    """
    return neighbors_view(self, k, metric, on_nan, threads, progress)
