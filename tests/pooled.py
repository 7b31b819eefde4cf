"""Means in numpy, written beside their site by the way that `Site.pool` takes."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import actstore
import numpy as np
from actstore.artifacts.pooled import Compute, write_pooled
from actstore.rows.view import View
from actstore.site import Site
from builders import Corpus
from numpy.typing import NDArray

CORPUS = Corpus(several=True)
RECIPE: dict[str, Any] = {"kind": "mean", "mix": None, "special": True, "skip_first": 0, "on_empty": "zero"}


def mean(rows: NDArray[Any], offset: NDArray[np.int64]) -> NDArray[np.float32]:
    """Means in float64, zeros for empty examples."""
    out = np.zeros((len(offset) - 1, *rows.shape[1:]), np.float32)
    for i, (start, stop) in enumerate(pairwise(offset)):
        if stop > start:
            out[i] = rows[start:stop].astype(np.float64).mean(0)
    return out


def plan(source: View) -> Compute:
    """As `Site.pool` would have it, in numpy."""
    offset = source.rowset.grouped()[1]

    def compute(start: int, stop: int, progress: Any) -> NDArray[np.float32]:
        rows = source.select(examples=slice(start, stop)).read("float32")
        return mean(rows, offset[start : stop + 1] - offset[start])

    return compute


def pool(
    site: Site, name: str = "resid_mean", make: Callable[[View], Compute] = plan, **keywords: Any
) -> Site:
    recipe = RECIPE | keywords.pop("recipe", {})
    return Site(write_pooled(site, name, recipe, site.layers, site.shape[2], make, **keywords))


def truth(corpus: Corpus, n: int) -> NDArray[np.float32]:
    """The means of the first examples."""
    rows = corpus.rows("resid", 0, corpus.n_rows("tokens", n))
    return mean(rows, corpus.offsets["tokens"][: n + 1])


def build(path: Path, *commits: int, corpus: Corpus = CORPUS) -> Path:
    return corpus.build(path, *commits)


def more(path: Path, n: int, corpus: Corpus = CORPUS) -> None:
    with actstore.append(path) as writer:
        corpus.append(writer, n)
