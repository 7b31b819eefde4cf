"""Searches that are drawn from a seed: values of every character, and what may be asked of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from search_oracle import Ask

F32 = np.float32
Rng = np.random.Generator
Shape = tuple[int, ...]

DIMS = [1, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 255, 256, 257, 384, 385, 513, 1000, 1025, 4096, 4099]
ROWS = [0, 1, 2, 5, 6, 7, 12, 13, 29, 64, 100, 333, 1200]
QUERIES = [1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 33, 50]
DTYPES: list[Any] = [F32, F32, F32, ml_dtypes.bfloat16, np.float16, np.float64]


def normal(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.normal(size=shape)


def outliers(rng: Rng, shape: Shape) -> NDArray[Any]:
    """A few channels hundreds of times the others, as hidden states have them."""
    channels = np.where(rng.random(shape[-1]) < 0.02, 300.0, 1.0)
    channels[rng.integers(shape[-1])] = -500.0
    return rng.normal(size=shape) * channels


def few_integers(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Exact in any order, with many ties."""
    return rng.integers(-1, 2, shape).astype(F32)


def duplicates(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.normal(size=(3, *shape[1:]))[rng.integers(0, 3, shape[0])]


def one_row(rng: Rng, shape: Shape) -> NDArray[Any]:
    return np.broadcast_to(rng.normal(size=shape[1:]), shape)


def one_layer(rng: Rng, shape: Shape) -> NDArray[Any]:
    """All layers alike, so that they tie."""
    return np.broadcast_to(rng.normal(size=(shape[0], *(1 for _ in shape[1:-1]), shape[-1])), shape)


def negative(rng: Rng, shape: Shape) -> NDArray[Any]:
    return -np.abs(rng.normal(size=shape)) - 0.1


def zeros(rng: Rng, shape: Shape) -> NDArray[Any]:
    return np.where(rng.random(shape) < 0.5, 0.0, -0.0)


def some_zero_rows(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.normal(size=shape) * (rng.random((*shape[:-1], 1)) < 0.5)


def denormal(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.integers(-2000, 2001, shape) * 1e-45


def some_denormal(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Whole rows of them among usual ones."""
    return np.where(rng.random((*shape[:-1], 1)) < 0.4, denormal(rng, shape), rng.normal(size=shape))


def tiny(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.normal(size=shape) * 1e-30


def large(rng: Rng, shape: Shape) -> NDArray[Any]:
    return rng.normal(size=shape) * 1e20


def greatest(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Scores that float32 has no number for."""
    return rng.choice([3e38, -3e38, 1e38, 1.0], shape)


def any_magnitude(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Each row of its own, past both ends of what quick products are trusted with."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-40, 38, (*shape[:-1], 1))


def edges(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Rows whose norms are close to where quick products stop being trusted."""
    rows = rng.normal(size=shape)
    rows /= np.maximum(np.sqrt((rows * rows).sum(-1, keepdims=True)), 1e-9)
    norms = np.array([1e-15, 1e-12, 1e15, 1e17, 1.0]) * (1 + rng.integers(-3, 4, 5) * 1e-7)
    return rows * rng.choice(norms, (*shape[:-1], 1))


def any_element(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Elements of all magnitudes within one row."""
    return rng.normal(size=shape) * 10.0 ** rng.uniform(-44, 20, shape)


def cancelling(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Sums of 1e8, -1e8 and very little, of which float32 knows nothing."""
    rows = rng.normal(size=shape) * 1e-3
    half = shape[-1] // 2
    rows[..., :half] += 1e4
    rows[..., half : 2 * half] -= 1e4
    return rows


def close(rng: Rng, shape: Shape) -> NDArray[Any]:
    """One row and its neighbors of a few units in the last place."""
    row = rng.normal(size=shape[1:]).astype(F32)
    return row + np.spacing(row) * (rng.integers(-1, 2, shape) * (rng.random(shape) < 2 / shape[-1]))


def shuffled(rng: Rng, shape: Shape) -> NDArray[Any]:
    """The same elements in other orders."""
    row = rng.normal(size=shape[1:]).astype(F32)
    return rng.permuted(np.broadcast_to(row, shape), axis=-1)


def infinities(rng: Rng, shape: Shape) -> NDArray[Any]:
    rows = rng.normal(size=shape)
    rows[rng.random(shape) < 1 / shape[-1] / 4] = np.inf
    rows[rng.random(shape) < 1 / shape[-1] / 4] = -np.inf
    return rows


def nans(rng: Rng, shape: Shape) -> NDArray[Any]:
    rows = infinities(rng, shape)
    rows[rng.random(shape) < 1 / shape[-1] / 8] = np.nan
    return rows


def bits(rng: Rng, shape: Shape) -> NDArray[Any]:
    """Any bits of float32; no NaN, for that would be nearly every row."""
    rows = rng.integers(0, 1 << 32, shape, np.uint64).astype(np.uint32).view(F32)
    return np.where(np.isfinite(rows), rows, F32(0))


Kind = Callable[[Rng, Shape], NDArray[Any]]
OF_QUERIES: list[Kind] = [
    *(normal, outliers, few_integers, duplicates, one_row, one_layer, negative, zeros, some_zero_rows),
    *(denormal, some_denormal, tiny, large, greatest, any_magnitude, edges, any_element, cancelling),
    *(close, shuffled, infinities, bits),
]
OF_ROWS: list[Kind] = [*OF_QUERIES, nans]
COMBINATIONS: list[tuple[Any, Any]] = [
    (metric, combine) for metric in ("dot", "cos", "l2") for combine in ("sum", "max")
]


@dataclass(frozen=True)
class Case:
    """A search: the values as they are given, and what is asked of them."""

    values: NDArray[Any]
    ask: Ask
    what: str


def rounded(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """Of a float dtype, C-contiguous."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(values.astype(F32).astype(dtype))


def draw(seed: int, work: int = 1_000_000) -> Case:
    """Any search whose products are about `work` at most."""
    rng = np.random.default_rng([seed, 41])
    kind = OF_ROWS[seed % len(OF_ROWS)]
    metric, combine = COMBINATIONS[seed // len(OF_ROWS) % len(COMBINATIONS)]
    n_layers = int(rng.choice([1, 1, 1, 2, 3, 5]))
    dim = int(rng.choice(DIMS))
    nq = int(rng.choice(QUERIES))
    n = int(rng.choice([n for n in ROWS if n * n_layers * dim * nq <= work]))
    dtype = DTYPES[rng.integers(len(DTYPES))]
    values = rounded(kind(rng, (n, n_layers, dim)), dtype)

    picked = None
    if rng.random() < 0.4:
        picked = rng.integers(0, n_layers, rng.integers(1, n_layers + 2)).tolist()
    across = n_layers if picked is None else len(picked)
    queries = query_values(rng, values, picked, (nq, int(rng.choice([1, across])), dim), kind)
    weights = None
    if combine == "sum" and rng.random() < 0.5:
        weights = rng.choice([1.0, 0.5, 1 / 3, 0.0, -1.0, -0.7, 99.5, 101.0, 1e-13, 1e9], across).tolist()
    rows: tuple[int, int] | NDArray[np.int64] | None = None
    if rng.random() < 0.4 and n:
        start, stop = sorted(int(end) for end in rng.integers(0, n + 1, 2))
        listed = rng.integers(0, n, rng.integers(0, 2 * n))
        rows = (start, stop) if rng.random() < 0.5 else listed
    numbers = None
    if rng.random() < 0.3:
        numbers = rng.permutation(n) * 3 + int(rng.integers(0, 1 << 40))
    k = int(rng.choice([1, 2, 3, 10, max(1, n - 1), max(1, n), n + 1, 2 * n + 5]))
    ask = Ask(queries, k, metric, combine, weights, None, rows, picked, numbers)
    return Case(values, ask, f"seed {seed}: {kind.__name__} {values.shape} {values.dtype}")


def query_values(
    rng: Rng, values: NDArray[Any], picked: list[int] | None, shape: Shape, kind: Kind
) -> NDArray[np.float32]:
    """Queries of the rows' own kind, of another, or rows themselves."""
    chance = rng.random()
    if len(values) and chance < 0.4:
        some = values if picked is None else values[:, picked]
        taken: NDArray[np.float32] = rounded(some[rng.integers(0, len(some), shape[0])][:, : shape[1]], F32)
        return np.nan_to_num(taken, nan=1.0, posinf=np.inf, neginf=-np.inf)
    if chance < 0.7 and kind is not nans:
        return rounded(kind(rng, shape), F32)
    # Every query may be of its own kind.
    kinds = rng.integers(0, len(OF_QUERIES), shape[0])
    drawn = [OF_QUERIES[i](rng, (1, *shape[1:])) for i in kinds]
    return rounded(np.concatenate(drawn) if drawn else np.zeros(shape), F32)
