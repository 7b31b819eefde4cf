"""The contents of the golden stores (tests/golden/format1), computed from formulas.

`tests/golden/make.py` wrote the stores from these values, and `tests/test_golden.py` reads them back.
Nothing here may change: the stores are never written again.
"""

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

IDS = ["first", "zweites", "ü", "", "fifth"]
"""The ids of the examples; parts and commits continue where the one before ended."""
LENGTHS = {"tokens": [3, 0, 5, 1, 4], "decoder": [1, 2, 0, 3, 2]}
LABELS = {"resid": [0, 6, 12], "mlp_out": [3], "cross": [1, 2], "pooled": [0]}
AXES = {"resid": "tokens", "mlp_out": "tokens", "cross": "decoder", "pooled": "examples"}
DIMS = {"resid": 8, "mlp_out": 4, "cross": 5, "pooled": 6}
DTYPES = {"resid": "bfloat16", "mlp_out": "float32", "cross": "float16", "pooled": "float32"}
IDENTITY = {"model": "toy", "weights": "sha256:1234"}
ABOUT = {"hook": "residual stream"}
COLUMN_DTYPES = ["bool", "int8", "uint16", "int32", "uint64", "bfloat16", "float16", "float32", "float64"]


def dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def n_rows(axis: str, start: int, stop: int) -> int:
    """The rows of examples `start` to `stop`."""
    return stop - start if axis == "examples" else sum(LENGTHS[axis][start:stop])


def site(name: str, start: int = 0, stop: int = 5) -> NDArray[Any]:
    """The rows of a site: small multiples of 1/8, which every dtype holds exactly, and two special values."""
    axis, dim, layers = AXES[name], DIMS[name], LABELS[name]
    first = n_rows(axis, 0, start)
    row, layer, at = np.ogrid[first : first + n_rows(axis, start, stop), : len(layers), :dim]
    out = ((row * 7 + layer * 5 + at * 3) % 31 - 15) / 8 + 0 * at
    if first == 0 and len(out):
        out[0, 0, :2] = [np.inf, -0.0]
    return out.astype(dtype(DTYPES[name]))


def numbers(name: str, n: int) -> NDArray[Any]:
    """A numeric column of each dtype."""
    i = np.arange(n)
    if name == "bool":
        return i % 3 == 0
    kind = dtype(name)
    if kind.kind in "iu":
        return np.array(
            [np.iinfo(kind).max - k if k % 2 else np.iinfo(kind).min + k for k in i.tolist()], kind
        )
    return (i / 4 - 1).astype(kind)


def labels(n: int) -> list[str]:
    """A string column."""
    return ["", "a", "ß🙂", "x" * 40, "last"][:n]


def mean(rows: NDArray[Any], lengths: list[int]) -> NDArray[np.float32]:
    """The mean of each example's rows, in float64, rounded once; zeros for an example without rows."""
    out = np.zeros((len(lengths), *rows.shape[1:]), np.float32)
    start = 0
    for i, n in enumerate(lengths):
        if n:
            out[i] = rows[start : start + n].astype(np.float64).mean(0)
        start += n
    return out


WHITENER = {
    "mean": np.arange(4, dtype=np.float64) / 8,
    "components": np.eye(4)[:2].ravel(),
    "variance": np.array([4.0, 0.25]),
    "norm": np.arange(13, dtype=np.float64) / 2,
}
TOKENS = ["<s>", "the", "Ġcat", "🙂", ""]
"""A vocabulary."""
