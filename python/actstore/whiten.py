"""Whitening: rows with as much variance in each direction, and search in that space over rows as they are."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native, whiteners
from .arrays import FLOAT_DTYPES, as_numpy, new_array
from .errors import FormatError, InvalidInputError, NotFoundError, NumericalError, ShapeError
from .lazy import lazy
from .memory import array_origin
from .moments import UNIT_ROUNDOFF, MomentsResult, moments_view
from .selection import is_int, layer_positions, native_rows
from .view import Progress, View, one_of
from .whiteners import KINDS

_BLOCK_BYTES = 64 << 20
_ARITHMETIC = 8 * UNIT_ROUNDOFF["float32"]
"""How far a model's own float32 arithmetic leaves values from what they should be. MiniLM's singular
directions have up to three times the variance that is allowed for one rounding, the next ones 1e11 times."""


class Whitener:
    """A linear map for each layer after which rows have mean 0 and covariance 1; made by `fit`.

    Attributes
    ----------
    layers : list of int
        The labels, ``[L]``.
    kind : {"pca", "zca"}
        ``"pca"`` gives coordinates along the principal directions, by decreasing variance; ``"zca"`` turns
        these back, so that dims stay what they were. Dot products, cosines and distances are the same.
    mean : array
        float64 ``[L, D]``.
    components : array
        float64 ``[L, R, D]``: the principal directions that are kept, unit rows; zeros past a layer's rank.
    variance : array
        float64 ``[L, R]``: the variance along each, after shrinkage, `eps` not added.
    rank : array
        int64 ``[L]``: how many directions a layer keeps; R is the largest.
    n : int
        Rows that it was fitted to.

    Notes
    -----
    WhiteningBERT (Huang et al. 2021, arXiv:2104.01767) whitens sentence embeddings by PCA. As scikit-learn's
    ``PCA(whiten=True)``, variances are those of ddof 1.

    Hidden states are singular: layer normalisation sees to it. A direction v is dropped when its eigenvalue
    is below 4 u^2 sum_d v_d^2 E[x_d^2]: what is left there is rounding. u is the unit roundoff of what the
    rows are stored as, and at least 8 roundings of float32, which is what the arithmetic of a layer leaves of
    such a direction. (Also below 4 2^-52 of the largest eigenvalue, which float64 cannot tell from 0.)

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) @ np.diag([1, 10, 100])
    >>> w = actstore.Whitener.fit(rows)
    >>> np.cov(w.transform(rows).T).round(4).tolist() == np.eye(3).tolist()
    True
    >>> hits = actstore.search(rows, rows[:1], k=1, metric="cos", transform=w)
    >>> hits.rows[0, 0], hits.scores[0, 0].round(3)
    (np.int64(0), np.float32(1.0))
    """

    def __init__(
        self,
        layers: Sequence[int],
        kind: str,
        mean: NDArray[np.float64],
        components: NDArray[np.float64],
        variance: NDArray[np.float64],
        rank: NDArray[np.int64],
        n: int,
        *,
        eps: float = 0.0,
        shrinkage: Sequence[float] = (),
        source: str | None = None,
    ) -> None:
        self.layers = list(layers)
        self.kind = kind
        self.mean, self.components, self.variance = mean, components, variance
        self.rank = rank
        self.n = n
        self.eps = eps
        self.shrinkage = list(shrinkage) or [0.0] * len(self.layers)
        self.source = source
        """The name of the site it was fitted to."""

    @classmethod
    def fit(
        cls,
        data: Any,
        dim: int | None = None,
        kind: str = "pca",
        *,
        eps: float = 0.0,
        shrinkage: float | str = 0.0,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> "Whitener":
        """Whiten these rows, each layer by itself.

        Parameters
        ----------
        data : Site, MomentsResult or array ``[n, D]`` or ``[n, L, D]``
            Rows, or their moments with covariances.
        dim : int, optional
            Keep at most so many directions, those of most variance.
        kind : {"pca", "zca"}
            See `Whitener`.
        eps : float
            Added to each variance before its root is divided by.
        shrinkage : float or "oas"
            Draw the variances of the directions that stay towards the mean variance, as (1 - s) C +
            s tr(C) / D I has them; from 0 to 1, or by the rule of Chen et al., "Shrinkage algorithms for MMSE
            covariance estimation" (2010).
        threads, progress
            As `Site.moments` has them.

        Returns
        -------
        Whitener

        Raises
        ------
        NumericalError
            When no direction of a layer has any variance.
        InvalidInputError, ShapeError
            When the moments are by group or without covariances, or an argument cannot be.
        """
        one_of(kind, KINDS, "whiten: kind")
        if dim is not None and (not is_int(dim) or dim < 1):
            raise InvalidInputError(f"whiten: dim is {dim!r}, not a positive int")
        eps = _number(eps, "eps", 0.0, np.inf)
        if not isinstance(shrinkage, str):
            shrinkage = _number(shrinkage, "shrinkage", 0.0, 1.0)
        elif shrinkage != "oas":
            raise InvalidInputError(f"whiten: shrinkage is {shrinkage!r}, not a number or 'oas'")
        source = None
        if isinstance(data, MomentsResult):
            moments = data
        else:
            view = data if isinstance(data, View) else View(array_origin(data))
            source = view.name
            moments = moments_view(view, True, None, "float64", threads, progress)
        if moments.cov is None:
            raise InvalidInputError("whiten: moments without covariances", hint="moments(cov=True)")
        if moments.groups is not None:
            raise InvalidInputError("whiten: moments by group; one set for all rows is needed")
        n_layers, n_dims = moments.mean.shape
        if dim is not None and dim > n_dims:
            raise InvalidInputError(f"whiten: dim is {dim}, the rows have {n_dims}")
        if moments.n < 2:
            raise NumericalError(f"whiten: {moments.n} rows have no covariance", hint="two are the least")
        fitted = [
            _fit_layer(moments, i, dim, shrinkage, f"layer {moments.layers[i]}") for i in range(n_layers)
        ]
        rank = np.array([len(variance) for variance, _, _ in fitted], np.int64)
        components = np.zeros((n_layers, int(rank.max()), n_dims))
        variance = np.zeros((n_layers, int(rank.max())))
        for i, (values, vectors, _) in enumerate(fitted):
            components[i, : len(values)], variance[i, : len(values)] = vectors, values
        amounts = [amount for _, _, amount in fitted]
        mean = moments.mean.copy()
        n = int(moments.n)
        return cls(
            moments.layers,
            kind,
            mean,
            components,
            variance,
            rank,
            n,
            eps=eps,
            shrinkage=amounts,
            source=source,
        )

    def select(self, layers: Any) -> "Whitener":
        """That of some layers, named as in `Site.select`."""
        at = layer_positions(layers, self.layers, "whitener")
        if not at:
            raise InvalidInputError("whitener: no layers are selected")
        return self._some(at)

    def _some(self, at: Sequence[int]) -> "Whitener":
        rank = self.rank[list(at)]
        most = int(rank.max(initial=0))
        return Whitener(
            [self.layers[i] for i in at],
            self.kind,
            self.mean[list(at)],
            self.components[list(at), :most],
            self.variance[list(at), :most],
            rank,
            self.n,
            eps=self.eps,
            shrinkage=[self.shrinkage[i] for i in at],
            source=self.source,
        )

    @lazy
    def map_rows(self) -> NDArray[np.float64]:
        """Rows of the map, ``[L, R, D]``: directions over the roots of their variances."""
        scale = np.zeros_like(self.variance)
        for i, rank in enumerate(self.rank.tolist()):
            scale[i, :rank] = 1.0 / np.sqrt(self.variance[i, :rank] + self.eps)
        return np.ascontiguousarray(self.components * scale[:, :, None])

    @lazy
    def digest(self) -> str:
        """Of all that decides norms: equal for equal whiteners."""
        found = hashlib.blake2b(digest_size=16)
        for array in (np.array(self.layers, np.int64), self.mean, self.map_rows):
            found.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def transform(self, rows: Any) -> NDArray[np.float32]:
        """Rows, whitened, computed in float64.

        Parameters
        ----------
        rows : array ``[n, D]`` or ``[n, L, D]``, or Site
            bfloat16, float16, float32 or float64; two axes for a whitener of one layer. A site's layers are
            found by their labels.

        Returns
        -------
        array
            float32 ``[n, R]`` or ``[n, L, R]``, R the largest rank, zeros past a layer's own; for ZCA, as
            wide as the rows.

        Raises
        ------
        ShapeError, InvalidInputError, NotFoundError
            When the rows are of other layers, dims or types.
        """
        if isinstance(rows, View):
            own = self._some(_places(self.layers, rows.layers))
            step = max(1, _BLOCK_BYTES // max(1, 8 * rows.shape[1] * rows.shape[2]))
            width = rows.shape[2] if self.kind == "zca" else own.components.shape[1]
            out = new_array((*rows.shape[:2], width), np.dtype(np.float32), "whiten")
            for start in range(0, len(rows), step):
                stop = min(start + step, len(rows))
                part = View(rows._origin, rows._layers, rows._view.take_rows(range(start, stop)))
                out[start:stop] = own.transform(part.read("float32"))
            return out
        array = as_numpy(rows, "whiten: rows")
        n_layers, dim = self.mean.shape
        flat = array.ndim == 2 and n_layers == 1
        if array.dtype.name not in FLOAT_DTYPES:
            raise InvalidInputError(f"whiten: rows are {array.dtype}, none of {', '.join(FLOAT_DTYPES)}")
        if (array.shape[1:] != (n_layers, dim) or array.ndim != 3) and not (flat and array.shape[1] == dim):
            wanted = f"[n, {dim}] or " if n_layers == 1 else ""
            raise ShapeError(
                f"whiten: rows: expected {wanted}[n, {n_layers}, {dim}], got {list(array.shape)}"
            )
        if flat:
            array = array[:, None]
        width = dim if self.kind == "zca" else self.components.shape[1]
        out = new_array((len(array), n_layers, width), np.dtype(np.float32), "whiten")
        step = max(1, _BLOCK_BYTES // (8 * dim))
        for start in range(0, len(array), step):
            for i in range(n_layers):
                away = array[start : start + step, i].astype(np.float64) - self.mean[i]
                whitened = away @ self.map_rows[i].T
                if self.kind == "zca":
                    whitened = whitened @ self.components[i]
                out[start : start + step, i] = whitened
        return out[:, 0] if flat else out

    def map_of(self, view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Means ``[L, D]`` and maps ``[L, R, D]`` of a view's layers; NotFoundError where it has none."""
        at = _places(self.layers, view.layers)
        if at == list(range(len(self.layers))):
            return self.mean, self.map_rows
        return np.ascontiguousarray(self.mean[at]), np.ascontiguousarray(self.map_rows[at])

    def norms(self, view: View, threads: int = 0, progress: Progress | None = None) -> NDArray[np.float64]:
        """The norm of each row of a view, whitened, float64 ``[n, L]``.

        Those of a whole site are kept with it, and taken from the store where `save` has put them.
        """
        origin, at = view._origin, _places(self.layers, view.layers)
        if self.digest not in origin.norms:
            stored = whiteners.stored_norms(origin, self.digest, len(self.layers))
            if stored is not None:
                origin.norms[self.digest] = stored
        kept = origin.norms.get(self.digest)
        if kept is not None:
            rows = view._view.rows
            some = kept[rows.start : rows.stop] if isinstance(rows, range) else kept[rows]
            return np.ascontiguousarray(some if at == list(range(len(self.layers))) else some[:, at])
        found = self.compute_norms(view, threads, progress)
        rows = view._view.rows
        whole = isinstance(rows, range) and rows == range(origin.array.shape[0])
        if whole and at == list(range(len(self.layers))):
            origin.norms[self.digest] = found
        return found

    def compute_norms(
        self, view: View, threads: int = 0, progress: Progress | None = None
    ) -> NDArray[np.float64]:
        """The same, from the rows."""
        mean, rows = self.map_of(view)
        view._origin.check_open()
        return _native.mapped_norms(
            view._origin.native,
            native_rows(view._view.rows),
            view._native_layers(),
            mean,
            rows,
            threads=threads,
            progress=progress,
        )

    def save(
        self,
        store: Any,
        name: str,
        site: str | None = None,
        *,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Put it into a store, and beside it the norm of each of a site's rows, for searches to come.

        Saved again after rows were appended, it adds what norms are missing.

        Parameters
        ----------
        store : path or list of paths
            As `actstore.open` takes it; nobody else may be writing to it.
        name : str
            What to call it.
        site : str, optional
            A site with these layers whose norms to keep, if any.
        threads, progress
            As everywhere; progress is in rows times layers.

        Raises
        ------
        StorageError
            When another whitener has the name (kind ``exists``), or the store is written to (``locked``).
        InvalidInputError, NotFoundError, ShapeError, FormatError
            When there is no such site, it lacks a layer or has another dim, or the store is not writable.
        """

        def norms_of(view: View, rows: range, threads: int, progress: Progress | None) -> NDArray[np.float64]:
            some = View(view._origin, view._layers, view._view.take_rows(rows))
            return self.compute_norms(some, threads, progress)

        whiteners.write(store, name, self._saved(site), norms_of, threads, progress)

    def _saved(self, site: str | None) -> whiteners.Saved:
        told = {
            "layers": self.layers,
            "dim": int(self.mean.shape[1]),
            "kind": self.kind,
            "rank": self.rank.tolist(),
            "n": self.n,
            "eps": self.eps,
            "shrinkage": self.shrinkage,
            "source": self.source,
            "site": site,
            "digest": self.digest,
        }
        arrays = {"mean": self.mean, "components": self.components, "variance": self.variance}
        return whiteners.Saved(told, arrays)

    @classmethod
    def _loaded(cls, saved: whiteners.Saved, where: str) -> "Whitener":
        told, arrays = saved.told, saved.arrays
        try:
            layers, dim, rank = list(told["layers"]), int(told["dim"]), np.array(told["rank"], np.int64)
            most = int(rank.max(initial=0))
            shape = (len(layers), most, dim)
            whitener = cls(
                [int(label) for label in layers],
                told["kind"],
                arrays["mean"].reshape(shape[0], dim),
                arrays["components"].reshape(shape),
                arrays["variance"].reshape(shape[:2]),
                rank,
                int(told["n"]),
                eps=float(told["eps"]),
                shrinkage=[float(amount) for amount in told["shrinkage"]],
                source=told["source"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"{where}: a malformed whitener: {error!r:.80}", kind="metadata") from error
        finite = all(np.isfinite(array).all() for array in arrays.values())
        amounts = [whitener.eps, *whitener.shrinkage]
        good = all(np.isfinite(amount) and amount >= 0 for amount in amounts)
        if not (finite and good and len(whitener.shrinkage) == len(layers) == len(set(layers))):
            raise FormatError(f"{where}: a malformed whitener", kind="metadata")
        return whitener

    def __repr__(self) -> str:
        n_layers, dim = self.mean.shape
        ranks = sorted(set(self.rank.tolist()))
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return f"Whitener({self.kind}, {n_layers} layers of dim {dim}, rank {rank}, fitted to {self.n} rows)"


def restore(
    store: str,
    name: str,
    saved: whiteners.Saved,
    site: str | None,
    norms: Callable[[int, int], NDArray[np.float64]] | None,
    threads: int,
    progress: Progress | None,
) -> None:
    """Put another store's whitener into this one, with the norms ``norms(start, stop)`` of a site's rows.

    Without them they are computed anew.

    Raises
    ------
    FormatError
        When it is none, or another one than it says.
    """
    whitener = Whitener._loaded(saved, f"whitener {name!r}")
    if whitener.digest != saved.told["digest"]:
        raise FormatError(f"whitener {name!r}: its digest is not that of its values", kind="metadata")
    if norms is None:
        whitener.save(store, name, site, threads=threads, progress=progress)
        return

    def norms_of(_: View, rows: range, *__: object) -> NDArray[np.float64]:
        found = norms(rows.start, rows.stop)
        if (found < 0).any():
            raise FormatError(f"whitener {name!r}: a norm is negative", kind="metadata")
        return found

    whiteners.write(store, name, whitener._saved(site), norms_of, threads, progress)


class Whiteners(Mapping[str, Whitener]):
    """The whiteners of a store by name, each read when it is asked for."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = tuple(parts)
        self._names = whiteners.names(self._parts)

    def __getitem__(self, name: str) -> Whitener:
        if name not in self._names:
            raise NotFoundError(
                f"{self._parts[0].path} has no whitener {name!r}, it has: {', '.join(self._names) or 'none'}",
                hint="actstore whiten makes one",
            )
        part = self._parts[0]
        return Whitener._loaded(whiteners.read(part, name), f"{part.path}: {name}")

    # Mapping would look for KeyError, which NotFoundError is not.
    def __contains__(self, name: object) -> bool:
        return name in self._names

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._names else default

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"Whiteners({', '.join(self._names) or 'none'})"


def _fit_layer(
    moments: MomentsResult, i: int, dim: int | None, shrinkage: float | str, what: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Variances ``[r]``, directions ``[r, D]`` and the shrinkage of a layer."""
    assert moments.cov is not None
    cov, mean, n = moments.cov[i], moments.mean[i], int(moments.n)
    values, vectors = np.linalg.eigh(cov)
    values, vectors = values[::-1], vectors.T[::-1]
    unit = max(UNIT_ROUNDOFF[moments.dtype], _ARITHMETIC)
    second = np.diagonal(cov) + mean**2
    least = np.maximum(4 * unit**2 * (vectors**2 @ second), 4 * 2.0**-52 * max(float(values[0]), 0.0))
    kept = (values >= least) & (values > 0)
    if not kept.any():
        raise NumericalError(f"whiten: {what} has no direction of any variance, beyond rounding")
    amount = shrinkage if not isinstance(shrinkage, str) else _oas(cov, n)
    middle = float(np.trace(cov)) / len(cov)
    values, vectors = values[kept][:dim], vectors[kept][:dim]
    values = (1 - amount) * values + amount * middle
    # The sign is of no meaning; it is to be the same on every machine.
    signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1))
    return values * (n / (n - 1)), np.ascontiguousarray(vectors * signs), float(amount)


def _oas(cov: NDArray[np.float64], n: int) -> float:
    """Chen et al. 2010, as scikit-learn's ``oas`` has it."""
    dim = len(cov)
    middle = float(np.trace(cov)) / dim
    square = float(np.mean(cov**2))
    top, bottom = square + middle**2, (n + 1) * (square - middle**2 / dim)
    return 1.0 if bottom == 0 else min(top / bottom, 1.0)


def _number(value: Any, name: str, low: float, high: float) -> float:
    good = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not good or not low <= float(value) <= high or not np.isfinite(value):
        raise InvalidInputError(f"whiten: {name} is {value!r}, not a number from {low:g} to {high:g}")
    return float(value)


def _places(labels: Sequence[int], asked: Sequence[int]) -> list[int]:
    at = {label: i for i, label in enumerate(labels)}
    for label in asked:
        if label not in at:
            raise NotFoundError(
                f"the whitener has no layer {label}, it has: {', '.join(map(str, labels))}",
                hint="fit one to these layers",
            )
    return [at[label] for label in asked]
