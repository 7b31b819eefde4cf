"""Search of what is stored: every dtype and codec, several parts, Zarr arrays of others, and views."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
import search_cases as cases
from actstore import _native
from numpy.typing import NDArray
from search_cases import COMBINATIONS, F32, rounded
from search_oracle import Ask, Found, check, expected, same

KINDS = [cases.outliers, cases.duplicates, cases.some_denormal, cases.nans, cases.few_integers]
SITES = {f"{kind.__name__} {layers}x{dim}": (kind, layers, dim) for kind, (layers, dim) in zip(
    KINDS, [(3, 24), (1, 1000), (2, 33), (3, 8), (1, 17)], strict=True
)}  # fmt: skip
LENGTHS = [11, 0, 30, 1, 18, 40]
N = sum(LENGTHS)
STORED = [(codec, dtype) for codec in ("blosc", "raw") for dtype in ("bfloat16", "float16", "float32")]


def contents(dtype: str, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Rows of every site, ``[N, L, D]``."""
    return {
        name: rounded(kind(np.random.default_rng(seed), (N, layers, dim)), np.dtype(specs(dtype)[name].dtype))
        for name, (kind, layers, dim) in SITES.items()
    }


def specs(dtype: str) -> dict[str, actstore.SiteSpec]:
    return {
        name: actstore.SiteSpec(
            layers, dim, dtype, [5 * i for i in range(layers)], chunk_rows=7, shard_rows=21
        )
        for name, (_, layers, dim) in SITES.items()
    }


def write(path: Path, codec: Any, dtype: str, seed: int = 0, part: tuple[int, int] | None = None) -> None:
    with actstore.create(path, specs(dtype), codec=codec, part=part) as writer:
        writer.append(contents(dtype, seed), LENGTHS, [f"{seed}/{i}" for i in range(len(LENGTHS))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each dtype and codec, and one of three parts."""
    folder = tmp_path_factory.mktemp("search")
    for codec, dtype in STORED:
        write(folder / f"{codec}-{dtype}.act", codec, dtype)
    for i in range(3):
        write(folder / f"parts/{i}.act", "blosc", "bfloat16", i, (i, 3))
    return folder


def queries(values: NDArray[Any], nq: int, by_layer: bool = False) -> NDArray[np.float32]:
    """Some of the rows, and others."""
    n, layers, dim = values.shape
    rng = np.random.default_rng(nq)
    drawn = cases.outliers(rng, (nq, layers if by_layer else 1, dim))
    some = values[rng.integers(0, n, (nq + 1) // 2)].astype(F32)
    drawn[::2] = np.nan_to_num(some[:, : drawn.shape[1]], posinf=1.0, neginf=1.0)
    return drawn.astype(F32)


def check_all(native: Any, values: NDArray[Any], what: object) -> None:
    """Rows, layers, metrics and numbers of queries of one array."""
    n, layers, _ = values.shape
    rng = np.random.default_rng(0)
    lists = [
        (0, n),
        (3, n - 2),
        (n, n),
        np.arange(n)[::-1].copy(),
        rng.integers(0, n, 2 * n),
        np.array([n - 1, 0]),
    ]
    some = None if layers == 1 else [layers - 1, 0]
    for i, ((metric, combine), rows) in enumerate(product(COMBINATIONS, lists)):
        nq = (1, 4, 5, 20)[i % 4]
        ask = Ask(queries(values, nq, bool(i % 3)), 8, metric, combine, rows=rows)
        if some and i % 5 == 0:
            ask = replace(ask, queries=queries(values, nq), layers=some)
        check(native, values, ask, ((1,), (2, 3), (7,))[i % 3], what)


@pytest.mark.parametrize(("codec", "dtype"), STORED)
def test_stored(folder: Path, codec: str, dtype: str) -> None:
    for verify in ("first", "never"):
        reader = _native.Reader(str(folder / f"{codec}-{dtype}.act"), verify)
        for name, values in contents(dtype).items():
            if verify == "first":
                check_all(reader.array(name), values, name)
            else:
                check(reader.array(name), values, Ask(queries(values, 9), N), what=name)


def test_parts(folder: Path) -> None:
    store = actstore.open(folder / "parts")
    whole = [contents("bfloat16", i) for i in range(3)]
    for name in SITES:
        values = np.concatenate([part[name] for part in whole])
        check_all(store[name].backend.native, values, name)


def test_codecs_dtypes_and_memory_agree(folder: Path) -> None:
    """Values that all dtypes hold give the same bits from everywhere."""
    name = "few_integers 1x17"
    values = contents("float32")[name]
    ask = Ask(queries(values, 17), 30, "cos")
    for codec, dtype in STORED:
        check(_native.Reader(str(folder / f"{codec}-{dtype}.act")).array(name), values, ask, (1, 2))
        memory = contents(dtype)[name]
        check(memory, values, ask)
        check(memory.astype(np.float64), values, ask)


def test_an_empty_store(tmp_path: Path) -> None:
    with actstore.create(tmp_path / "x.act", specs("float16")):
        pass
    reader = _native.Reader(str(tmp_path / "x.act"))
    for name, (_, layers, dim) in SITES.items():
        check(reader.array(name), np.zeros((0, layers, dim), F32), Ask(np.ones((3, 1, dim), F32), 2), (1, 3))


# ---- Arrays that others wrote ----

FOREIGN: dict[str, dict[str, Any]] = {
    "chunks as ours": {"chunks": (7, 1, 24)},
    "all layers in a chunk": {"chunks": (10, 3, 24)},
    "dims cut": {"chunks": (9, 2, 10)},
    "shards": {"chunks": (5, 1, 24), "shards": (20, 3, 24)},
    "not compressed": {"chunks": (16, 1, 24), "compressors": None},
}


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_foreign_arrays(tmp_path: Path, layout: str, dtype: str) -> None:
    """Chunks of any form; where none was written the fill value stands for it."""
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(tmp_path / "x.zarr")
    values = cases.outliers(np.random.default_rng(0), (50, 3, 24)).astype(dtype)
    values[:10] *= 1e-40 if dtype == "float64" else 1
    for name, fill in (("zero", 0.0), ("more", 1.5), ("nan", np.nan)):
        array = group.create_array(name, shape=(100, 3, 24), dtype=dtype, fill_value=fill, **FOREIGN[layout])
        array[10:60] = values
    reader = _native.Reader(str(tmp_path / "x.zarr"))
    for name, fill in (("zero", 0.0), ("more", 1.5), ("nan", np.nan)):
        whole = np.full((100, 3, 24), fill, dtype)
        whole[10:60] = values
        check_all(reader.array(name), whole, name)


# ---- Views ----


def hits(found: actstore.Hits) -> Found:
    return found.scores, found.rows, found.layers


def labeled(wanted: Found, view: actstore.Site, combine: str) -> Found:
    """The layers' labels where the layer is known."""
    scores, rows, layers = wanted
    labels = np.array([*view.layers, -1])[layers]
    return scores, rows, labels if combine == "max" or len(view.layers) == 1 else np.full_like(layers, -1)


def test_views_of_sites(folder: Path) -> None:
    rng = np.random.default_rng(0)
    store = actstore.open(folder / "parts")
    whole = [contents("bfloat16", i) for i in range(3)]
    starts = np.cumsum([0, *LENGTHS * 3])
    for i, name in enumerate(SITES):
        site = store[name]
        values = np.concatenate([part[name] for part in whole])
        some = rng.permutation(len(LENGTHS) * 3)[:9]
        of_examples = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in some])
        listed = rng.integers(0, len(values), 80)
        last = len(site.layers) - 1
        for view, rows, layers in (
            (site, None, None),
            (site.select(rows=slice(40, 250)), (40, 250), None),
            (site.select(rows=listed), listed, None),
            (site.select(examples=some), of_examples, None),
            (site.select(layers=site.layers[last], rows=slice(9, 9)), (9, 9), [last]),
            (site.select(layers=[site.layers[last], site.layers[0]]), None, [last, 0]),
        ):
            metric, combine = COMBINATIONS[(i + len(view)) % 6]
            asked = queries(values, 6)
            found = view.search(asked, 12, metric=metric, combine=combine, on_nan="skip", threads=1 + i % 3)
            wanted, _ = expected(values, Ask(asked, 12, metric, combine, rows=rows, layers=layers))
            same(hits(found), labeled(wanted, view, combine), (name, metric, combine))


def test_pooled_rows_are_called_by_their_examples(folder: Path) -> None:
    site = actstore.open(folder / "raw-float32.act")["outliers 3x24"]
    some = [5, 0, 2, 3]
    docs = site.select(examples=some).pool("max")
    starts = np.cumsum([0, *LENGTHS])
    values = np.stack([contents("float32")["outliers 3x24"][starts[e] : starts[e + 1]].max(0) for e in some])
    asked = queries(values, 5)
    for (metric, combine), k in product(COMBINATIONS, (2, 10)):
        ask = Ask(asked, k, metric, combine, numbers=np.array(some))
        found = docs.search(asked, k, metric=metric, combine=combine)
        same(hits(found), labeled(expected(values, ask)[0], docs, combine), ask)
