"""Small stores for loader tests: the same rows in several layouts, and helpers for the batches."""

import itertools
import threading
from pathlib import Path
from typing import Any

import actstore
import numpy as np
from actstore.loader.batches import Batches
from builders import values

MODES = [False, True, "full"]
N, LAYERS, DIM = 203, 3, 6


def write(path: Path, n: int = N, dtype: str = "bfloat16", part: Any = None, **keywords: Any) -> Path:
    """A store of `n` rows in several commits, whose values are a function of the row."""
    spec = actstore.SiteSpec(LAYERS, DIM, dtype, [0, 6, 12], chunk_rows=4, shard_rows=12)
    with actstore.create(path, {"resid": spec}, part=part, **keywords) as w:
        for start in range(0, n, 90):
            stop = min(start + 90, n)
            rows = values(1, start, stop, LAYERS, DIM, dtype)
            w.append(
                {"resid": rows}, [stop - start], [f"{path.name}-{start}"], {"id": np.arange(start, stop)}
            )
            w.commit()
    return path


def foreign(path: Path) -> Path:
    """A group written by zarr-python, with other chunks and another codec."""
    import zarr

    group = zarr.create_group(path)
    rows = values(1, 0, N, LAYERS, DIM, "float32")
    group.create_array("resid", data=rows, chunks=(7, 2, 4), compressors=[zarr.codecs.GzipCodec()])
    return path


def rows_of(loader: Batches) -> list[list[int]]:
    return [rows.tolist() for rows, _ in loader]


def flat(lists: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(lists))


def live() -> int:
    return sum(thread.name.startswith("actstore") for thread in threading.enumerate())
