"""Zarr arrays as other programs write them: their metadata by hand, and writers that open those.

The metadata are written out here so that each form of them is said in full, and both writers open
the same ones; what is read is compared with what the writer itself reads back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import zarr
from hypothesis import HealthCheck, settings
from oracle import DTYPES, assert_same, open_tensorstore

RELAXED = settings(deadline=None, suppress_health_check=list(HealthCheck))
LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}


def blosc(
    cname: str = "zstd",
    shuffle: str = "shuffle",
    typesize: int = 2,
    clevel: int = 5,
    blocksize: int = 0,
) -> dict[str, Any]:
    names = {"cname": cname, "shuffle": shuffle, "typesize": typesize, "clevel": clevel}
    return {"name": "blosc", "configuration": {**names, "blocksize": blocksize}}


def metadata(
    shape: list[int],
    dtype: str,
    chunk: list[int],
    codecs: list[dict[str, Any]],
    *,
    shard: list[int] | None = None,
    index_codecs: list[dict[str, Any]] | None = None,
    index_location: str = "end",
    fill: Any = 0,
    keys: tuple[str, str] = ("default", "/"),
) -> dict[str, Any]:
    """An array's ``zarr.json``."""
    if shard is not None:
        configuration = {
            "chunk_shape": chunk,
            "codecs": codecs,
            "index_codecs": [LITTLE, CRC] if index_codecs is None else index_codecs,
            "index_location": index_location,
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shard or chunk}},
        "chunk_key_encoding": {"name": keys[0], "configuration": {"separator": keys[1]}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
    }


def put(path: Path, node: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "zarr.json").write_text(json.dumps(node))


def put_group(path: Path, attributes: dict[str, Any] | None = None) -> None:
    put(path, {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}})


def with_zarr(path: Path) -> Any:
    return zarr.open_array(store=path, mode="r+")


Opener = Callable[[Path], Any]
WRITERS: dict[str, Opener] = {"zarr-python": with_zarr, "tensorstore": open_tensorstore}


def written(
    path: Path, node: dict[str, Any], boxes: list[tuple[tuple[slice, ...], np.ndarray]], by: str
) -> Any:
    """Writes an array in some boxes, and gives back what its writer reads then."""
    put(path, node)
    array = WRITERS[by](path)
    for box, content in boxes:
        array[box] = content
    return np.asarray(WRITERS[by](path)[...])


def smooth(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Values that every shuffle and compressor gains on, with a stretch in which none does."""
    rng = np.random.default_rng(seed)
    n = int(np.prod(shape))
    out = np.round(np.cumsum(rng.normal(size=n)), 1).astype(DTYPES[dtype])
    out[n // 2 : n // 2 + n // 5] = rng.normal(size=n // 5).astype(DTYPES[dtype])
    return out.reshape(shape)


def reads_the_same(path: Path, name: str, want: np.ndarray, seed: int = 0) -> None:
    """The site as a whole and by every other way that chunks are walked."""
    rng = np.random.default_rng(seed)
    with actstore.open(path) as store:
        site = store[name]
        assert_same(site.read(), want, name)
        rows, layers, _ = want.shape
        if not want.size:
            return
        picked = rng.integers(-rows, rows, 2 * rows)
        assert_same(site[picked], want[picked])
        assert_same(site[::-1], want[::-1])
        layer = int(rng.integers(layers))
        assert_same(site[rows // 3 :, layer], want[rows // 3 :, layer])
        assert_same(site[int(picked[0]), layer], want[picked[0], layer])
        some = rng.permutation(layers)[: max(1, layers - 1)].tolist()
        assert_same(site[1:, some], want[1:, some])
        wide = site.select(rows=picked).read("float64")
        with np.errstate(all="ignore"):  # Signalling NaNs.
            np.testing.assert_array_equal(wide, want[picked].astype(np.float64))


FILLS = ["NaN", 0, 0.0, -0.0, 1.5, -2, "Infinity", "-Infinity"]


def plain(path: Path, name: str, array: np.ndarray, **options: Any) -> None:
    """An array as `zarr.create_array` makes it by default."""
    group = zarr.open_group(path, mode="r+")
    group.create_array(name, data=array, **options)
