"""Whitening: an affine map per layer that gives rows mean 0 and, on the kept directions, covariance I."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..artifacts import whiteners
from ..artifacts.protocol import complete
from ..base.arrays import FLOAT_DTYPES, as_numpy, new_array
from ..base.checks import one_of
from ..base.estimator import Estimator
from ..base.lazy import lazy
from ..base.progress import Progress
from ..base.selection import is_int, layer_positions
from ..errors import (
    ActstoreWarning,
    InvalidInputError,
    NumericalError,
    ShapeError,
)
from ..rows.memory import MappedBackend, array_backend
from ..rows.view import View
from .moments import UNIT_ROUNDOFF, MomentsResult, moments
from .norms import AffineMap, compute_norms

ON_SINGULAR = ("raise", "skip")
_BLOCK_BYTES = 64 << 20
_MODEL_ERROR = 8 * UNIT_ROUNDOFF["float32"]
"""The assumed relative error of a model's float32 arithmetic. In MiniLM, singular directions have up to three
times the variance that one rounding explains, and the next directions 1e11 times."""


class Whitener(Estimator):
    """An affine map per layer that gives rows mean 0 and covariance I.

    Parameters
    ----------
    n_components : int, optional
        Keep at most this many directions per layer, those of the largest variance.
    kind : {"pca", "zca"}
        ``"pca"`` gives coordinates along the principal directions, sorted by decreasing variance; ``"zca"``
        rotates these back to the original axes. Both give the same dot products, cosines and distances.
    eps : float
        Added to each variance before taking the square root.
    shrinkage : float or "oas"
        Shrink the covariance C to (1 - s) C + s tr(C) / D I on the kept directions, with s from 0 to 1;
        ``"oas"`` chooses s by Chen et al., "Shrinkage algorithms for MMSE covariance estimation" (2010).
    on_singular : {"raise", "skip"}
        Whether a layer without any variance raises NumericalError or gets rank 0, which maps it to zeros.

    Attributes
    ----------
    layers_ : list of int
        The layers' labels, ``[L]``.
    mean_ : array
        float64 ``[L, D]``.
    components_ : array
        float64 ``[L, R, D]``: the kept principal directions as unit rows; zeros past a layer's rank.
    explained_variance_ : array
        float64 ``[L, R]``: the variance along each (ddof 1), after shrinkage, without `eps`.
    rank_ : array
        int64 ``[L]``: the number of kept directions; R is the largest.
    shrinkage_ : list of float
        The shrinkage s of each layer, ``[L]``.
    n_samples_ : int
        The number of rows in the fit.
    n_features_in_ : int
        D.

    Notes
    -----
    With components V, mean m and variances s2 of a layer, ``"pca"`` maps x to
    z = V (x - m) / sqrt(s2 + eps), and ``"zca"`` to V^T z.

    WhiteningBERT (Huang et al. 2021, arXiv:2104.01767) whitens sentence embeddings by PCA. Variances have
    ddof 1, as in scikit-learn's ``PCA(whiten=True)``.

    Layer normalization makes the covariance of hidden states singular. A direction v is dropped when its
    eigenvalue is below 4 u^2 sum_d v_d^2 E[x_d^2], a bound on the variance that rounding alone causes; u is
    the unit roundoff of the stored dtype, but at least 8 times that of float32, since models compute in
    float32. It is also dropped when its eigenvalue is below 4 2^-52 times the largest, which float64 cannot
    distinguish from 0.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32) @ np.diag([1, 10, 100])
    >>> w = actstore.Whitener().fit(rows)
    >>> np.cov(w.transform(rows).T).round(4).tolist() == np.eye(3).tolist()
    True
    >>> np.allclose(w.inverse_transform(w.transform(rows)), rows, atol=1e-4)
    True
    >>> hits = actstore.search(rows, rows[:1], k=1, transform=w)
    >>> hits.rows[0, 0], hits.scores[0, 0].round(3)
    (np.int64(0), np.float32(1.0))
    """

    layers_: list[int]
    mean_: NDArray[np.float64]
    components_: NDArray[np.float64]
    explained_variance_: NDArray[np.float64]
    rank_: NDArray[np.int64]
    shrinkage_: list[float]
    n_samples_: int
    n_features_in_: int
    source_: str | None

    def __init__(
        self,
        n_components: int | None = None,
        kind: str = "pca",
        eps: float = 0.0,
        shrinkage: float | str = 0.0,
        on_singular: str = "raise",
    ) -> None:
        self.n_components = n_components
        self.kind = kind
        self.eps = eps
        self.shrinkage = shrinkage
        self.on_singular = on_singular

    def fit(self, X: Any, y: Any = None, *, threads: int = 0, progress: Progress | None = None) -> Self:
        """Fit each layer.

        Parameters
        ----------
        X : Site, MomentsResult or array ``[n, D]`` or ``[n, L, D]``
            Rows, or their moments with covariances.
        y : optional
            Ignored.
        threads, progress
            As in `Site.moments`.

        Returns
        -------
        Whitener
            This whitener.

        Raises
        ------
        NumericalError
            When there are fewer than two rows; with ``on_singular="raise"``, when a layer has no variance
            beyond rounding.
        InvalidInputError, ShapeError
            When a parameter is invalid, the moments are grouped or lack covariances, or rows have NaN or
            infinities.

        Warns
        -----
        ActstoreWarning
            When there are no more rows than dims, so that the covariance has less than full rank.
        """
        one_of(self.kind, whiteners.KINDS, "whiten: kind")
        one_of(self.on_singular, ON_SINGULAR, "whiten: on_singular")
        n_components = self.n_components
        if n_components is not None and (not is_int(n_components) or n_components < 1):
            raise InvalidInputError(f"whiten: n_components is {n_components!r}, not a positive int")
        _number(self.eps, "eps", 0.0, np.inf)
        shrinkage = self.shrinkage
        if not isinstance(shrinkage, str):
            shrinkage = _number(shrinkage, "shrinkage", 0.0, 1.0)
        elif shrinkage != "oas":
            raise InvalidInputError(f"whiten: shrinkage is {shrinkage!r}, not a number or 'oas'")
        source = None
        if isinstance(X, MomentsResult):
            fitted_to = X
        else:
            view = X if isinstance(X, View) else View(array_backend(X))
            source = view.name
            fitted_to = moments(view, threads=threads, progress=progress)
        if fitted_to.cov is None:
            raise InvalidInputError("whiten: moments without covariances", hint="moments(cov=True)")
        if fitted_to.groups is not None:
            raise InvalidInputError("whiten: the moments are grouped; fit needs those of all rows")
        n_layers, n_dims = fitted_to.mean.shape
        if n_components is not None and n_components > n_dims:
            raise InvalidInputError(f"whiten: n_components is {n_components}, the rows have {n_dims} dims")
        n = int(fitted_to.n)
        if n < 2:
            raise NumericalError(f"whiten: {n} rows have no covariance", hint="fit at least two rows")
        fits = [_fit_layer(fitted_to, i, n_components, shrinkage, self.on_singular) for i in range(n_layers)]
        if n <= n_dims:
            warnings.warn(
                f"whiten: {n} rows of {n_dims} dims: their covariance has at most rank {n - 1}; whitening "
                "amplifies sampling noise; fit more rows, or use n_components or shrinkage",
                ActstoreWarning,
                stacklevel=2,
            )
        self.set_fitted(
            fitted_to.layers,
            fitted_to.mean.copy(),
            [vectors for _, vectors, _ in fits],
            [values for values, _, _ in fits],
            n,
            [amount for _, _, amount in fits],
            source,
        )
        return self

    def set_fitted(
        self,
        layers: Sequence[int],
        mean: NDArray[np.float64],
        components: Sequence[NDArray[np.float64]],
        variances: Sequence[NDArray[np.float64]],
        n: int,
        shrinkage: Sequence[float],
        source: str | None,
    ) -> None:
        """Set the fitted attributes from the components ``[r, D]`` and variances ``[r]`` of each layer."""
        for name in ("mapping", "digest"):
            self.__dict__.pop(name, None)
        self.layers_, self.mean_, self.n_samples_ = list(layers), mean, n
        self.rank_ = np.array([len(values) for values in variances], np.int64)
        most = int(self.rank_.max(initial=0))
        self.components_ = np.zeros((len(mean), most, mean.shape[1]))
        self.explained_variance_ = np.zeros((len(mean), most))
        for i, rank in enumerate(self.rank_.tolist()):
            self.components_[i, :rank], self.explained_variance_[i, :rank] = components[i], variances[i]
        self.shrinkage_ = list(shrinkage)
        self.n_features_in_ = mean.shape[1]
        self.source_ = source

    def select(self, layers: Any) -> "Whitener":
        """A whitener of some of the layers, named as in `Site.select`.

        Raises
        ------
        NotFoundError, InvalidInputError
            When there is no such layer, no layer is selected, or this whitener is not fitted.
        """
        self.check_fitted()
        at = layer_positions(layers, self.layers_, "the whitener")
        if not at:
            raise InvalidInputError("the whitener: no layers are selected")
        return self._layers_at(at)

    def _layers_at(self, at: Sequence[int]) -> "Whitener":
        some = Whitener(**self.get_params())
        ranks = self.rank_.tolist()
        some.set_fitted(
            [self.layers_[i] for i in at],
            self.mean_[list(at)],
            [self.components_[i, : ranks[i]] for i in at],
            [self.explained_variance_[i, : ranks[i]] for i in at],
            self.n_samples_,
            [self.shrinkage_[i] for i in at],
            self.source_,
        )
        return some

    @lazy
    def mapping(self) -> AffineMap:
        """x -> components (x - mean) / sqrt(variance + eps): coordinates along the principal directions."""
        self.check_fitted()
        matrix = np.ascontiguousarray(self.components_ * self._scales()[:, :, None])
        digest = hashlib.blake2b(digest_size=16)
        for array in (np.array(self.layers_, np.int64), self.mean_, matrix):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return AffineMap(self.layers_, self.mean_, matrix, digest.hexdigest())

    @property
    def digest(self) -> str:
        """A hash of everything that determines the norms of whitened rows: layers, means and matrices."""
        return self.mapping.digest

    def _scales(self) -> NDArray[np.float64]:
        """1 / sqrt(variance + eps), ``[L, R]``; zeros past a layer's rank."""
        scales = np.zeros_like(self.explained_variance_)
        for i, rank in enumerate(self.rank_.tolist()):
            scales[i, :rank] = 1.0 / np.sqrt(self.explained_variance_[i, :rank] + self.eps)
        return scales

    def transform(self, X: Any) -> Any:
        """Whitened rows, computed in float64.

        Parameters
        ----------
        X : Site, or array ``[n, L, D]``, or ``[n, D]`` where one layer was fitted
            bfloat16, float16, float32 or float64. A Site's layers are matched by label.

        Returns
        -------
        Site or array
            float32 ``[n, L, R]`` or ``[n, R]`` with R the largest rank, zero-padded past a layer's own rank;
            for ZCA ``[n, L, D]`` or ``[n, D]``. A Site gives a Site in memory, with the same layers, rows and
            examples.

        Raises
        ------
        ShapeError, InvalidInputError, NotFoundError
            When the rows have other layers, dims or dtypes.
        """
        self.check_fitted()
        return self._apply(X, self.n_features_in_, self._n_features_out, Whitener._whiten)

    def inverse_transform(self, X: Any) -> Any:
        """Map whitened rows z back: mean + components^T (sqrt(variance + eps) z), without dropped directions.

        Parameters
        ----------
        X : Site, or array ``[n, L, R]``, or ``[n, R]`` where one layer was fitted
            As `transform` returns them.

        Returns
        -------
        Site or array
            float32 ``[n, L, D]`` or ``[n, D]``.

        Raises
        ------
        ShapeError, InvalidInputError, NotFoundError
            When the rows have other layers, dims or dtypes.
        """
        self.check_fitted()
        return self._apply(X, self._n_features_out, self.n_features_in_, Whitener._unwhiten)

    @property
    def _n_features_out(self) -> int:
        """The dim of whitened rows."""
        return self.n_features_in_ if self.kind == "zca" else int(self.components_.shape[1])

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """``fit(X).transform(X)``."""
        return self.fit(X).transform(X)

    def _whiten(self, i: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        mapping = self.mapping
        whitened: NDArray[np.float64] = (rows - mapping.mean[i]) @ mapping.matrix[i].T
        return whitened @ self.components_[i] if self.kind == "zca" else whitened

    def _unwhiten(self, i: int, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        rank = int(self.rank_[i])
        components = self.components_[i, :rank]
        coordinates = rows @ components.T if self.kind == "zca" else rows[:, :rank]
        scaled = coordinates * np.sqrt(self.explained_variance_[i, :rank] + self.eps)
        back: NDArray[np.float64] = scaled @ components + self.mean_[i]
        return back

    def _apply(
        self,
        X: Any,
        width: int,
        new_width: int,
        layer_map: "Callable[[Whitener, int, NDArray[np.float64]], NDArray[np.float64]]",
    ) -> Any:
        """Map each layer of the rows of `X`, which must have dim `width`."""
        if isinstance(X, View):
            if X.shape[2] != width:
                raise ShapeError(f"whiten: {X.full_name} has dim {X.shape[2]}, expected {width}")
            own = self._layers_at(self.mapping.positions(X.layers))
            out = new_array((*X.shape[:2], new_width), np.dtype(np.float32), "whiten")
            step = max(1, _BLOCK_BYTES // max(1, 8 * X.shape[1] * X.shape[2]))
            for start in range(0, len(X), step):
                stop = min(start + step, len(X))
                block = X.take(range(start, stop)).read()
                for i in range(block.shape[1]):
                    out[start:stop, i] = _fit_width(
                        layer_map(own, i, block[:, i].astype(np.float64)), new_width
                    )
            return type(X)(
                MappedBackend(X, out, f"{'whitened' if layer_map is Whitener._whiten else 'unwhitened'}")
            )
        array = as_numpy(X, "whiten: rows")
        n_layers = len(self.layers_)
        flat = array.ndim == 2 and n_layers == 1
        if array.dtype.name not in FLOAT_DTYPES:
            raise InvalidInputError(
                f"whiten: rows are {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
            )
        if (array.shape[1:] != (n_layers, width) or array.ndim != 3) and not (
            flat and array.shape[1] == width
        ):
            expected = f"[n, {width}] or " if n_layers == 1 else ""
            raise ShapeError(
                f"whiten: rows: expected {expected}[n, {n_layers}, {width}], got {list(array.shape)}"
            )
        if flat:
            array = array[:, None]
        out = new_array((len(array), n_layers, new_width), np.dtype(np.float32), "whiten")
        step = max(1, _BLOCK_BYTES // max(1, 8 * width))
        for start in range(0, len(array), step):
            for i in range(n_layers):
                out[start : start + step, i] = layer_map(
                    self, i, array[start : start + step, i].astype(np.float64)
                )
        return out[:, 0] if flat else out

    def save(
        self,
        store: Any,
        name: str,
        site: str | None = None,
        *,
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        """Save the whitener in a store and, for later searches, the norm of each whitened row of a site.

        Saving it again after rows were appended adds the missing norms; so does `actstore.update`.

        Parameters
        ----------
        store : path or list of paths
            As for `actstore.open`. No other process may be writing to it.
        name : str
            The name of the whitener in `Store.whiteners`.
        site : str, optional
            The site whose norms to store. It must have the whitener's layers.
        threads : int
            0 means all cores.
        progress : callable, optional
            Called with the work done and the total, in rows times layers.

        Raises
        ------
        StorageError
            When another artifact has the name (kind ``exists``), or the store is being written (``locked``).
        InvalidInputError
            When there is no such site, a layer occurs twice, or the whitener is not fitted.
        NotFoundError
            When there is no such store, or the site lacks a layer of the whitener.
        ShapeError
            When the site has another dim.
        FormatError
            When the store is damaged, or a foreign Zarr group (kind ``unsupported``).

        Examples
        --------
        >>> import actstore, numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/x.act"
        >>> rows = np.random.default_rng(0).normal(size=(50, 1, 3)).astype(np.float32)
        >>> with actstore.create(path, {"resid": actstore.SiteSpec(1, 3, "float32")}) as w:
        ...     w.append({"resid": rows}, lengths=[20, 30])
        >>> store = actstore.open(path)
        >>> actstore.Whitener().fit(store["resid"]).save(path, "white", "resid")
        >>> store.refresh(), list(store.whiteners)
        (True, ['white'])
        """
        self.check_fitted()
        artifact = whiteners.WhitenerArtifact(name, self.state(site), self._norms_of)
        complete(store, artifact, threads, progress)

    def _norms_of(
        self, view: View, rows: range, threads: int, progress: Progress | None
    ) -> NDArray[np.float64]:
        return compute_norms(view.take(rows), self.mapping, threads, progress)

    def state(self, site: str | None) -> whiteners.WhitenerState:
        """The stored form of this whitener; `site` names the site whose norms are stored with it."""
        attributes = {
            "layers": self.layers_,
            "dim": self.n_features_in_,
            "transform": self.kind,
            "rank": self.rank_.tolist(),
            "n": self.n_samples_,
            "eps": float(self.eps),
            "shrinkage": self.shrinkage_,
            "source": self.source_,
            "site": site,
            "digest": self.digest,
        }
        arrays = {"mean": self.mean_, "components": self.components_, "variance": self.explained_variance_}
        return whiteners.WhitenerState(attributes, arrays)


def _fit_width(rows: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Rows zero-padded to `width`: the largest rank of a selection of layers may be smaller."""
    return rows if rows.shape[1] == width else np.pad(rows, ((0, 0), (0, width - rows.shape[1])))


def _fit_layer(
    moments: MomentsResult,
    i: int,
    n_components: int | None,
    shrinkage: float | str,
    on_singular: str,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Variances ``[r]``, directions ``[r, D]`` and the shrinkage of a layer."""
    assert moments.cov is not None
    cov, mean, n = moments.cov[i], moments.mean[i], int(moments.n)
    values, vectors = np.linalg.eigh(cov)
    values, vectors = values[::-1], vectors.T[::-1]
    unit = max(UNIT_ROUNDOFF[moments.dtype], _MODEL_ERROR)
    second = np.diagonal(cov) + mean**2
    least = np.maximum(4 * unit**2 * (vectors**2 @ second), 4 * 2.0**-52 * max(float(values[0]), 0.0))
    kept = (values >= least) & (values > 0)
    if not kept.any() and on_singular == "raise":
        raise NumericalError(
            f"whiten: layer {moments.layers[i]} has no variance beyond rounding",
            hint="on_singular='skip' maps it to zeros",
        )
    amount = shrinkage if not isinstance(shrinkage, str) else _oas(cov, n)
    mean_variance = float(np.trace(cov)) / len(cov)
    values, vectors = values[kept][:n_components], vectors[kept][:n_components]
    values = (1 - amount) * values + amount * mean_variance
    # The sign of an eigenvector is arbitrary: make its largest entry positive on every machine.
    largest = np.abs(vectors).argmax(1)[:, None] if len(vectors) else np.zeros((0, 1), np.int64)
    signs = np.sign(np.take_along_axis(vectors, largest, 1))
    return values * (n / (n - 1)), np.ascontiguousarray(vectors * signs), float(amount)


def _oas(cov: NDArray[np.float64], n: int) -> float:
    """The OAS shrinkage of Chen et al. (2010), as scikit-learn's ``oas`` computes it."""
    dim = len(cov)
    mean_variance = float(np.trace(cov)) / dim
    square = float(np.mean(cov**2))
    top, bottom = square + mean_variance**2, (n + 1) * (square - mean_variance**2 / dim)
    return 1.0 if bottom == 0 else min(top / bottom, 1.0)


def _number(value: Any, name: str, low: float, high: float) -> float:
    valid = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not valid or not low <= float(value) <= high or not np.isfinite(value):
        raise InvalidInputError(f"whiten: {name} is {value!r}, not a number from {low:g} to {high:g}")
    return float(value)
