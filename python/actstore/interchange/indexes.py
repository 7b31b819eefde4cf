"""To approximate indexes of other libraries, and their candidates back to exact scores.

An index is fed block by block, whatever the size of the site, and knows rows by the numbers that hits
have. What it finds is approximate: `rerank` scores its candidates as `Site.search` would.
"""

import contextlib
import importlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy, new_array
from ..errors import InvalidInputError, ShapeError, StorageError
from ..feed import at_least
from ..hits import Asked, Certificate, Hits
from ..memory import MemoryOrigin, Positions, array_origin
from ..search import best_rows, check_k, no_hits, query_vectors, scoring
from ..selection import Rows, compact_rows, rows_array, take
from ..view import Progress, View, one_of
from ..whiten import Whitener
from .files import as_path, storage_errors

BLOCK_BYTES = 64 << 20
TRAIN_ROWS = 65_536
_F16_LIMIT = 65_520.0
"""From here on a float rounds to infinity in float16."""
_USEARCH_METRICS = {"dot": "ip", "cos": "cos", "l2": "l2sq"}
_USEARCH_DTYPES = ("f32", "f16", "bf16", "i8")


def to_faiss(
    site: Any,
    index: Any = "Flat",
    *,
    metric: Literal["dot", "cos", "l2"] = "dot",
    transform: Whitener | None = None,
    train_rows: int | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Any:
    """The rows of one layer as an index of faiss.

    What the index finds goes to `rerank` for exact scores. Its own are approximate: inner products for dot
    and cos, squared distances (lower is better) for l2.

    Parameters
    ----------
    site : Site or array ``[n, D]``
        Rows of one layer; they are read in blocks of 64 MiB.
    index : str or faiss.Index
        A string for ``faiss.index_factory``, as ``"HNSW32,Flat"`` or ``"IVF256,PQ32"``, or an index,
        trained or not. A given index keeps what it has, and after an error what was added before it.
    metric : {"dot", "cos", "l2"}
        For cos the rows are scaled to unit norm; so must queries be (``faiss.normalize_L2``).
    transform : Whitener, optional
        Add the rows whitened by it, of as many dims as it keeps. Queries must be whitened too:
        ``transform.select(layer).transform(queries)``.
    train_rows : int, optional
        How many rows to train with, where the index needs it: a random sample, the same each time, held in
        memory as float32. By default 256 for each list of an IVF index, and at least 65,536, which is as
        many as faiss uses for 256 centroids.
    out : path, optional
        Also write it there, for ``faiss.read_index``. A file that is there is replaced.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the rows done, and in all; those to train with are counted too.

    Returns
    -------
    faiss.Index
        Labels are the numbers of `Site.rows`: rows as they count in the whole store, of pooled sites example
        numbers. Where these are not 0, 1, 2, ... and the index has no ids of its own (IVF has), it comes in
        an ``IndexIDMap2``.

    Raises
    ------
    InvalidInputError
        When faiss is not installed, or cannot make such an index or take these rows; for several layers,
        rows selected twice, NaN and infinities, or an argument that cannot be.
    ShapeError
        When a given index is of another dim.
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
    faiss = _library("faiss", "faiss-cpu")
    target = _target(out, "to_faiss")
    source = _Source(site, metric, transform, threads, "to_faiss")
    if train_rows is not None:
        train_rows = at_least(1, train_rows, "to_faiss: train_rows")
    index = _faiss_index(faiss, index, source.dim, metric)
    with _faiss_threads(faiss, source.threads):
        n = n_all = len(source)
        if not index.is_trained:
            n_train = min(n, train_rows or max(TRAIN_ROWS, 256 * _n_lists(faiss, index)))
            n_all += n_train
            sample = source.sample(n_train, progress, n_all)
            _ask("to_faiss", index.train, sample)
            del sample
        index, add = _adder(faiss, index, source.numbers)
        for start, values in source.blocks():
            _ask("to_faiss", add, values, rows_array(source.numbers[start : start + len(values)]))
            if progress is not None:
                progress(n_all - n + start + len(values), n_all)
    if target is not None:
        _write(target, lambda path: faiss.write_index(index, path))
    return index


def to_usearch(
    site: Any,
    *,
    metric: Literal["dot", "cos", "l2"] = "dot",
    dtype: Literal["f32", "f16", "bf16", "i8"] = "f32",
    connectivity: int = 16,
    expansion_add: int = 128,
    transform: Whitener | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Any:
    """The rows of one layer as an index of usearch.

    What the index finds goes to `rerank` for exact scores. Its own are approximate distances, lower is
    better: 1 - dot, 1 - cos, or the squared distance.

    Parameters
    ----------
    site : Site or array ``[n, D]``
        Rows of one layer; they are read in blocks of 64 MiB.
    metric : {"dot", "cos", "l2"}
        usearch calls them ``"ip"``, ``"cos"`` and ``"l2sq"``.
    dtype : {"f32", "f16", "bf16", "i8"}
        What the index keeps. i8 keeps directions and no norms, so it is for cos alone.
    connectivity, expansion_add : int
        Links of a node, and candidates for them: more is slower and finds more.
    transform : Whitener, optional
        As `to_faiss` has it.
    out : path, optional
        Also write it there, for ``usearch.index.Index.restore``. A file that is there is replaced.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the rows done, and in all.

    Returns
    -------
    usearch.index.Index
        Keys are the numbers of `Site.rows`: rows as they count in the whole store, of pooled sites example
        numbers.

    Raises
    ------
    InvalidInputError
        When usearch is not installed or cannot make such an index; for several layers, rows selected twice,
        NaN and infinities, values too large for float16, or an argument that cannot be.
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
    usearch = _library("usearch.index", "usearch")
    target = _target(out, "to_usearch")
    one_of(dtype, _USEARCH_DTYPES, "to_usearch: dtype")
    source = _Source(site, metric, transform, threads, "to_usearch", unit=False)
    if dtype == "i8" and metric != "cos":
        raise InvalidInputError(
            f"to_usearch: dtype 'i8' keeps no norms, which metric {metric!r} needs", hint="dtype='bf16'"
        )
    connectivity = at_least(2, connectivity, "to_usearch: connectivity")
    expansion_add = at_least(1, expansion_add, "to_usearch: expansion_add")

    def make() -> Any:
        return usearch.Index(
            ndim=source.dim,
            metric=_USEARCH_METRICS[metric],
            dtype=dtype,
            connectivity=connectivity,
            expansion_add=expansion_add,
        )

    def add(numbers: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        index.add(numbers.astype(np.uint64), values, threads=source.threads)

    index = _ask("to_usearch", make)
    for start, values in source.blocks():
        numbers = rows_array(source.numbers[start : start + len(values)])
        if dtype == "f16":
            large = np.abs(values).max(1) >= _F16_LIMIT
            if large.any():
                row = int(numbers[large.argmax()])
                raise InvalidInputError(
                    f"to_usearch: row {row} has values too large for f16", hint="dtype='bf16'"
                )
        _ask("to_usearch", add, numbers, values)
        if progress is not None:
            progress(start + len(values), len(source))
    if target is not None:
        _write(target, index.save)
    return index


def rerank(
    site: Any,
    queries: Any,
    candidates: Any,
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
    """The `k` best of each query's candidates, with the scores that `Site.search` gives them.

    Parameters
    ----------
    site : Site, or array ``[n, D]`` or ``[n, L, D]``
        What the candidates are of. Its layers need not be those of the index.
    queries : array ``[nq, D]``, ``[nq, L, D]`` or ``[D]``, or Site
        As `Site.search` has them: as they are, neither scaled nor whitened.
    candidates : array ``[nq, m]``, or what an index of usearch has found
        Numbers of rows, as `Site.rows` has them; negative where there are fewer. (The keys that usearch gives
        are 0 there, so hand over its matches, which know how many there are.)
    k, metric, combine, weights, transform, min_score, on_nan, threads
        As `Site.search` has them.
    progress : callable, optional
        Called with the queries done, and in all.

    Returns
    -------
    Hits
        ``scores``, ``rows`` and ``layers`` ``[nq, k]``. Its certificate is not exact: a row that is no
        candidate is no hit.

    Raises
    ------
    ShapeError
        When there are not as many lists of candidates as queries, or as `Site.search`.
    InvalidInputError
        When a candidate is no row of the site, or as `Site.search`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], np.float32)
    >>> hits = actstore.rerank(rows, np.array([[0.0, 1.0]]), [[0, 1, -1]], k=2)
    >>> hits.rows.tolist(), hits.scores.round(3).tolist()
    ([[1, 0]], [[0.800000011920929, 0.0]])
    """
    view = site if isinstance(site, View) else View(array_origin(site))
    how = scoring(view, metric, combine, weights, transform, min_score, on_nan, "rerank")
    k = check_k(k, "rerank")
    vectors = query_vectors(queries, view, "rerank: queries")
    asked = _candidate_rows(candidates, len(vectors))
    view._origin.check_open()
    numbers, places = _by_number(view)
    scores, rows, layers = no_hits(len(vectors), k)
    n_rescored, called = 0, (view.name, view._what, view._origin.title)
    row_bytes = view.shape[1] * view.shape[2] * view.dtype.itemsize
    step = max(1, BLOCK_BYTES // max(1, asked.shape[1] * row_bytes))
    for start in range(0, len(vectors), step):
        # What several queries ask for is read once, and each chunk decoded once for all of them.
        some = asked[start : start + step]
        union = np.unique(some[some >= 0])
        values = view._read(take(places, _where(numbers, union, view)), view._layers, view.dtype, threads)
        for q, found in enumerate(some, start):
            own = np.unique(found[found >= 0])
            picked = values[np.searchsorted(union, own)]
            part = View(MemoryOrigin(picked, view.layers, Positions(0), compact_rows(own), called=called))
            # One thread: a search this small is over before others have begun.
            best = best_rows(part, vectors[q : q + 1], k, how, 1, None)
            scores[q], rows[q], layers[q] = (array[0] for array in best[:3])
            n_rescored += best[3]
        if progress is not None:
            progress(min(start + step, len(vectors)), len(vectors))
    certificate = Certificate(False, len(np.unique(asked[asked >= 0])), n_rescored)
    return Hits(scores, rows, layers, certificate, view._origin, asked=Asked(view, vectors, how))


class _Source:
    """The rows of one layer by ascending number, as an index takes them: float32, finite.

    Attributes
    ----------
    dim : int
        Of the rows as they are given: whitened, if they are.
    numbers : range or array
        What they are called, ``[n]``, ascending.
    threads : int
        0 means all cores.
    """

    def __init__(
        self,
        site: Any,
        metric: str,
        transform: Whitener | None,
        threads: int,
        verb: str,
        unit: bool = True,
    ) -> None:
        self._view = view = site if isinstance(site, View) else View(array_origin(site))
        self._verb, self.threads = verb, at_least(0, threads, f"{verb}: threads")
        scoring(view, metric, "sum", None, transform, None, "raise", verb)
        if len(view.layers) != 1:
            raise InvalidInputError(
                f"{verb}: an index has rows of one layer, {view._what} has layers "
                f"{', '.join(map(str, view.layers))}",
                hint="select(layers=...) one of them",
            )
        self._unit = unit and metric == "cos"
        self._whitener = None if transform is None else transform.select(view.layers)
        self.dim = view.shape[2]
        if self._whitener is not None and self._whitener.kind == "pca":
            self.dim = self._whitener.components.shape[1]
        view._origin.check_open()
        self.numbers, self._rows = _by_number(view)
        if not isinstance(self.numbers, range):
            twice = np.flatnonzero(np.diff(self.numbers) == 0)
            if twice.size:
                raise InvalidInputError(f"{verb}: row {self.numbers[twice[0]]} is selected more than once")

    def __len__(self) -> int:
        return len(self._rows)

    def blocks(self, at: Rows | None = None) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Where each block begins, and its rows ``[b, dim]``: of all, or of those at these places.

        A block is good until the next one is asked for.
        """
        for start, values in self._read(self._rows if at is None else take(self._rows, at)):
            if not np.isfinite(values).all():
                self._refuse()
            yield start, values

    def sample(self, n: int, progress: Progress | None, n_all: int) -> NDArray[np.float32]:
        """A random sample ``[n, dim]``, the same each time."""
        if not n:
            raise InvalidInputError(f"{self._verb}: {self._view._what}: there are no rows to train with")
        at = np.random.default_rng(0).choice(len(self), n, replace=False, shuffle=False)
        at.sort()
        what = f"{self._verb}: {n} rows to train with (train_rows takes fewer)"
        out = new_array((n, self.dim), np.dtype(np.float32), what)
        for start, values in self.blocks(compact_rows(at)):
            out[start : start + len(values)] = values
            if progress is not None:
                progress(start + len(values), n_all)
        return out

    def _read(self, rows: Rows) -> Iterator[tuple[int, NDArray[np.float32]]]:
        dim = self._view.shape[2]
        step = max(1, BLOCK_BYTES // max(1, 4 * max(dim, self.dim)))
        buffer = np.empty((min(step, len(rows)), 1, dim), np.float32)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            block = buffer[: len(some)]
            self._view._read_into(some, self._view._layers, block, self.threads)
            # What is not finite is told by `blocks`.
            with np.errstate(all="ignore"):
                values = block[:, 0] if self._whitener is None else self._whitener.transform(block[:, 0])
                if self._unit:
                    norms = np.sqrt(np.einsum("nd,nd->n", values, values, dtype=np.float64))
                    norms[norms == 0] = 1.0
                    np.divide(values, norms[:, None], out=values, casting="same_kind")
            yield start, values

    def _refuse(self) -> None:
        bad = []
        for start, values in self._read(self._rows):
            found = np.flatnonzero(~np.isfinite(values).all(1))
            bad += rows_array(self.numbers[start : start + len(values)])[found].tolist()
        raise InvalidInputError(
            f"{self._verb}: {len(bad)} {'row has' if len(bad) == 1 else 'rows have'} NaN or infinities, "
            f"the first is row {bad[0]}",
            hint="select(tokens=...) the others",
        )


def _by_number(view: View) -> tuple[Rows, Rows]:
    """What the rows of a view are called, ascending, and where in the array they are."""
    rows, known = view._view.rows, view._origin.numbers
    if known is None and isinstance(rows, range):
        return rows, rows
    numbers = view.rows
    order = np.argsort(numbers, kind="stable")
    return compact_rows(numbers[order]), compact_rows(rows_array(rows)[order])


def _where(numbers: Rows, wanted: NDArray[np.int64], view: View) -> Rows:
    """The places of numbers among those of a view, ascending."""
    if isinstance(numbers, range):
        at = wanted - numbers.start
        absent = (at < 0) | (at >= len(numbers))
    else:
        at = np.searchsorted(numbers, wanted).astype(np.int64)
        absent = numbers[np.minimum(at, len(numbers) - 1)] != wanted
    if absent.any():
        raise InvalidInputError(
            f"rerank: candidate {wanted[absent][0]} is no row of {view._what}, or not of this view",
            hint="search an index that was made of it",
        )
    return compact_rows(at)


def _candidate_rows(candidates: Any, nq: int) -> NDArray[np.int64]:
    """Candidates as int64 ``[nq, m]``, negative where there are fewer."""
    what = "rerank: candidates"
    counts = getattr(candidates, "counts", None)
    array = as_numpy(candidates.keys if hasattr(candidates, "distances") else candidates, what)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != nq:
        raise ShapeError(f"{what}: expected [{nq}, m], a list for each query, got {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: expected row numbers, got {array.dtype}")
    rows: NDArray[np.int64] = array.astype(np.int64)
    if counts is not None:
        rows[np.arange(rows.shape[1]) >= np.asarray(counts)[:, None]] = -1
    return rows


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise InvalidInputError(
            f"{name} cannot be imported: {error}", hint=f"pip install {package}"
        ) from error


def _ask(verb: str, call: Callable[..., Any], *arguments: Any) -> Any:
    """What a library's function gives; what it complains of, without the place in its source."""
    try:
        return call(*arguments)
    except RuntimeError as error:
        reason = re.sub(r"^Error in .* at \S+:\d+: ", "", str(error))
        raise InvalidInputError(f"{verb}: {reason}") from error


def _faiss_index(faiss: Any, index: Any, dim: int, metric: str) -> Any:
    """The index to fill, of this dim and metric."""
    wanted = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if isinstance(index, str):
        index = _ask(f"to_faiss: index {index!r}", faiss.index_factory, dim, index, wanted)
    elif not isinstance(index, faiss.Index):
        raise InvalidInputError(
            f"to_faiss: index is a {type(index).__name__}, not a string for index_factory or a faiss.Index"
        )
    if index.d != dim:
        raise ShapeError(f"to_faiss: the index is of dim {index.d}, the rows of {dim}")
    if index.metric_type != wanted:
        known = {faiss.METRIC_L2: "METRIC_L2", faiss.METRIC_INNER_PRODUCT: "METRIC_INNER_PRODUCT"}
        found = known.get(index.metric_type, f"metric {index.metric_type}")
        raise InvalidInputError(f"to_faiss: metric {metric!r} is {known[wanted]}, the index is of {found}")
    return index


def _n_lists(faiss: Any, index: Any) -> int:
    ivf = faiss.try_extract_index_ivf(index)
    return 0 if ivf is None else int(ivf.nlist)


def _takes_ids(faiss: Any, index: Any) -> bool:
    """Whether ``add_with_ids`` is of the index itself."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return _takes_ids(faiss, index.index)
    return isinstance(index, faiss.IndexIVF | faiss.IndexIDMap)


def _adder(faiss: Any, index: Any, numbers: Rows) -> tuple[Any, Callable[..., None]]:
    """The index, in an IndexIDMap2 where it must be, and what adds rows and their numbers to it."""
    if _takes_ids(faiss, index):
        return index, index.add_with_ids
    n = int(index.ntotal)
    if not len(numbers) or (isinstance(numbers, range) and numbers.start == n):
        return index, lambda values, _: index.add(values)
    if n:
        raise InvalidInputError(
            f"to_faiss: the index numbers rows as they come, from {n}; these begin with {numbers[0]}",
            hint="give it in a faiss.IndexIDMap2 from the start",
        )
    index = faiss.IndexIDMap2(index)
    return index, index.add_with_ids


@contextlib.contextmanager
def _faiss_threads(faiss: Any, threads: int) -> Iterator[None]:
    """faiss takes the number of threads from OpenMP alone."""
    before = faiss.omp_get_max_threads()
    if threads:
        faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _target(out: Any, verb: str) -> str | None:
    """Where to write, if anywhere; found out before the work begins."""
    if out is None:
        return None
    path = os.path.abspath(as_path(out, f"{verb}: out"))
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        raise StorageError(f"{path} is a directory", kind="exists", hint="name a file")
    if not os.path.isdir(parent):
        raise StorageError(f"{parent} is no directory", kind="io", hint=f"mkdir -p {parent}")
    return path


def _write(path: str, write: Callable[[str], object]) -> None:
    """The file appears when it is complete."""
    import tempfile

    with storage_errors(path):
        own = tempfile.mkdtemp(prefix=f".{os.path.basename(path)}.partial-", dir=os.path.dirname(path))
    partial = os.path.join(own, os.path.basename(path))
    try:
        with storage_errors(path):
            try:
                write(partial)
            except RuntimeError as error:
                raise StorageError(f"{path}: {error}", kind="io") from error
            os.replace(partial, path)
    finally:
        shutil.rmtree(own, ignore_errors=True)
