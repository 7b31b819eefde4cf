"""Whatever the number of threads, every result has the same bits."""

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from limited import Tell, in_child

THREADS = (1, 2, 3, 5, 8, 16)
LAYERS, DIM = 2, 48
ROWS = 42_000
"""16 MB of float64 a layer: two windows of a pass on two threads, one on eight."""
SPEC = actstore.SiteSpec(LAYERS, DIM, "bfloat16", (3, 7), chunk_rows=512, shard_rows=8192)


def drifting(n: int, seed: int) -> Any:
    """Rows whose mean wanders, so that every order of adding them up rounds in another way."""
    rng = np.random.default_rng(seed)
    away = np.cumsum(rng.standard_normal((n, 1, 1), np.float32) / 16, axis=0)
    return (rng.standard_normal((n, LAYERS, DIM), np.float32) + away).astype(ml_dtypes.bfloat16)


def lengths_of(n: int) -> Any:
    """Ragged examples, one of them over several chunks."""
    lengths = [2000, *(np.arange(n // 7) % 13 + 1).tolist()]
    ends = np.minimum(np.cumsum(lengths), n)
    return np.diff(np.concatenate([[0], ends, [n]]))


def build(
    path: Path, rows: Any, codec: Any = "blosc", part: tuple[int, int] | None = None, threads: int = 2
) -> Path:
    lengths = lengths_of(len(rows))
    first = 0 if part is None else part[0] * 100_000
    with actstore.create(path, {"resid": SPEC}, codec=codec, part=part, threads=threads) as writer:
        writer.append({"resid": rows}, lengths, [str(first + i) for i in range(len(lengths))])
    return path


@pytest.fixture(scope="module")
def rows() -> Any:
    return drifting(ROWS, 0)


@pytest.fixture(scope="module")
def folder(memory_folder: Path, rows: Any) -> Iterator[Path]:
    folder = memory_folder / "threads"
    build(folder / "blosc.act", rows)
    build(folder / "raw.act", rows, "raw")
    for i, part in enumerate((rows[:15_000], rows[15_000:])):
        build(folder / "parts" / f"{i}.act", part, part=(i, 2))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=["blosc", "raw", "parts", "picked"])
def site(folder: Path, request: pytest.FixtureRequest) -> actstore.Site:
    if request.param == "parts":
        return actstore.open(folder / "parts")["resid"]
    if request.param == "picked":
        picked = np.sort(np.random.default_rng(5).choice(ROWS, 30_000, replace=False))
        return actstore.open(folder / "blosc.act")["resid"].select(rows=picked)
    return actstore.open(folder / f"{request.param}.act")["resid"]


def flat(value: Any) -> list[Any]:
    """All that a result holds, arrays as their dtype, shape and bytes."""
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, value.tobytes()]
    if isinstance(value, actstore.Site):
        return flat(value.read())
    if isinstance(value, actstore.Hits):
        return flat([value.scores, value.rows, value.layers])
    if isinstance(value, actstore.Neighbors):
        return flat([value.distances, value.rows])
    if isinstance(value, Mapping):
        return [item for key in value for item in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [item for one in value for item in flat(one)]
    if is_dataclass(value) and not isinstance(value, type):
        return flat([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, float | int | str | bool | bytes | np.generic) or value is None:
        return [value if value == value else "nan"]
    found = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    found = {name: one for name, one in found.items() if not callable(one)}
    assert found, f"nothing to compare in {type(value)}"
    return flat(found)


def same(work: Callable[[int], Any], threads: tuple[int, ...] = THREADS) -> None:
    first = flat(work(threads[0]))
    assert first
    for n in threads[1:]:
        assert flat(work(n)) == first, f"{n} threads"


class Sum(actstore.Reducer):
    """A reducer of the user's."""

    def new(self) -> dict[int, Any]:
        return {}

    def update(self, state: dict[int, Any], block: actstore.Block) -> dict[int, Any]:
        state[block.layer] = state.get(block.layer, 0) + block.values.sum(axis=0, dtype=np.float64)
        return state

    def merge(self, a: dict[int, Any], b: dict[int, Any]) -> dict[int, Any]:
        return {layer: a.get(layer, 0) + b.get(layer, 0) for layer in sorted(a | b)}

    def finish(self, state: dict[int, Any]) -> dict[int, Any]:
        return state


def queries(n: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal((n, DIM), np.float32)


def whitener(site: actstore.Site) -> actstore.Whitener:
    return actstore.Whitener(n_components=24, eps=0.001).fit(site, threads=1)


def cut(site: actstore.Site) -> Any:
    return site.read("float32", threads=1)


def by_label(site: actstore.Site) -> Any:
    return np.arange(len(site)) % 3


def offset_of(n: int) -> Any:
    return np.concatenate([[0], np.cumsum(lengths_of(n))])


def first_batches(batches: Any) -> list[Any]:
    """Three batches as arrays."""
    found = []
    for batch in batches:
        found.append([np.asarray(one) for one in (batch.values() if isinstance(batch, dict) else [batch])])
        if len(found) == 3:
            break
    return found


CASES: dict[str, list[Callable[[actstore.Site, int], Any]]] = {
    "Site.read": [
        lambda site, n: site.read(threads=n),
        lambda site, n: site.read("float64", threads=n),
    ],
    "Site.scan": [
        lambda site, n: site.scan([actstore.Summary(), actstore.Histogram(), Sum()], threads=n),
        lambda site, n: site.scan(
            [actstore.Moments(), actstore.Summary(), actstore.Pool("mean", on_empty="zero")], threads=n
        ),
    ],
    "Site.map_blocks": [lambda site, n: site.map_blocks(lambda block: block.values.sum(), threads=n)],
    "Site.moments": [
        lambda site, n: site.moments(threads=n),
        lambda site, n: site.moments(cov=False, threads=n),
        lambda site, n: site.moments(precision="float32", threads=n),
        lambda site, n: site.moments(by=by_label(site), threads=n),
        lambda site, n: site.moments(by="position", cov=False, threads=n),
    ],
    "Site.cross_moments": [
        lambda site, n: site.select(layers=3).cross_moments(site.select(layers=7), threads=n),
        lambda site, n: site.cross_moments(site, precision="float32", threads=n),
    ],
    "Site.pool": [
        lambda site, n, kind=kind: site.pool(kind, on_empty="zero", threads=n)  # type: ignore[misc]
        for kind in ("mean", "max", "first", "last", "weighted")
    ]
    + [lambda site, n: site.pool("mean", mix=[0.3, 0.7], on_empty="zero", threads=n)],
    "Site.search": [
        lambda site, n, metric=metric: site.search(queries(33), k=7, metric=metric, threads=n, combine="sum")  # type: ignore[misc]
        for metric in ("dot", "cos", "l2")
    ]
    + [
        lambda site, n: site.search(queries(3), k=9, combine="max", threads=n, metric="dot"),
        lambda site, n: site.search(
            queries(3), k=9, metric="cos", transform=whitener(site), threads=n, combine="sum"
        ),
        lambda site, n: site.search(queries(1), k=500, weights=[0.2, 0.9], threads=n, metric="dot"),
    ],
    "Site.maxsim": [
        lambda site, n: site.maxsim(
            [queries(64), queries(5, 2)], k=6, threads=n, metric="dot", combine="sum"
        ),
        lambda site, n: site.maxsim([queries(9)], k=6, metric="cos", combine="max", threads=n),
    ],
    "Site.neighbors": [
        lambda site, n, metric=metric: site.select(  # type: ignore[misc]
            layers=7, rows=slice(0, 1500)
        ).neighbors(3, metric=metric, threads=n)
        for metric in ("l2", "cos")
    ],
    "Site.batches": [
        lambda site, n: first_batches(site.batches(700, shuffle=True, seed=3, threads=n)),
        lambda site, n: first_batches(site.batches(700, shuffle="full", seed=3, threads=n)),
        lambda site, n: first_batches(site.batches(700, threads=n)),
    ],
    "Whitener.fit": [lambda site, n: list(whitened(actstore.Whitener(eps=0.001).fit(site, threads=n)))],
    "Site.to_torch": [
        lambda site, n: site.select(layers=site.layers[0]).to_torch("float32", threads=n).numpy()
    ],
    "rerank": [
        lambda site, n: actstore.rerank(
            site,
            queries(4),
            site.rows[np.arange(400).reshape(4, 100) * 37],
            k=9,
            threads=n,
            metric="dot",
            combine="sum",
        )
    ],
    # ---- over arrays ----
    "scan": [lambda site, n: actstore.scan(cut(site), [actstore.Moments(), actstore.Summary()], threads=n)],
    "moments": [lambda site, n: actstore.moments(cut(site), threads=n)],
    "cross_moments": [lambda site, n: actstore.cross_moments(cut(site), cut(site), threads=n)],
    "search": [
        lambda site, n: actstore.search(
            cut(site)[:, 0], queries(40), 9, metric="cos", threads=n, combine="sum"
        )
    ],
    "neighbors": [lambda site, n: actstore.neighbors(cut(site)[:1500, 0], 3, threads=n)],
    "pool": [
        lambda site, n: actstore.pool(cut(site), offset_of(len(site)), "mean", on_empty="zero", threads=n)
    ],
    "maxsim": [
        lambda site, n: actstore.maxsim(
            cut(site)[:, 0], offset_of(len(site)), [queries(16)], 4, threads=n, metric="dot", combine="sum"
        )
    ],
    "Store.verify": [lambda site, n: _store(site).verify(strict=True, threads=n)],
}
OF_FILES = {
    "create",
    "append",
    "compact",
    "export",
    "import_",
    "update",
    "Whitener.save",
    "StoreWriter.__init__",
}
"""What writes: tested below by what it has written."""
ELSEWHERE = {
    "Site.read_rows": "Site.read is made of it",
    "Site.read_rows_into": "Site.read is made of it",
    "capture": "its threads compress, as those of create do",
    "to_faiss": "the index is faiss's",
    "to_usearch": "the graph is usearch's, and depends on its threads",
    "Site.torch_dataset": "test_torch_dataset; it reads as batches do",
    "Store.torch_dataset": "test_torch_dataset; it reads as batches do",
}


def whitened(fitted: actstore.Whitener) -> Iterator[Any]:
    yield from (
        fitted.mean_,
        fitted.components_,
        fitted.explained_variance_,
        fitted.transform(queries(5)[:, None].repeat(2, 1)),
    )


def _store(site: actstore.Site) -> actstore.Store:
    return actstore.open(site.backend.snapshot.source)  # type: ignore[attr-defined]


def test_every_verb_with_threads_is_here() -> None:
    there = set()
    for name in actstore.__all__:
        value = getattr(actstore, name)
        if inspect.isclass(value):
            for member, method in inspect.getmembers(value, callable):
                if (not member.startswith("_") or member == "__init__") and _has_threads(method):
                    there.add(f"{name}.{member}")
        elif _has_threads(value):
            there.add(name)
    assert there == CASES.keys() | OF_FILES | ELSEWHERE.keys()


def _has_threads(value: Any) -> bool:
    try:
        return "threads" in inspect.signature(value).parameters
    except (TypeError, ValueError):
        return False


@pytest.mark.parametrize("verb", CASES)
def test_the_same_bits_for_any_number_of_threads(site: actstore.Site, verb: str) -> None:
    for case in CASES[verb]:
        if verb == "Site.neighbors" and len(site) < 1500:
            continue
        same(lambda n, case=case: case(site, n))  # type: ignore[misc]


@pytest.mark.parametrize("verb", ["Site.search", "Site.maxsim", "Site.neighbors", "Site.moments"])
def test_the_same_bits_for_any_codec(folder: Path, verb: str) -> None:
    sites = [actstore.open(folder / name)["resid"] for name in ("blosc.act", "raw.act")]
    for case in CASES[verb]:
        one, other = (flat(case(site, 2)) for site in sites)
        assert one == other


def files_of(path: Path) -> dict[str, bytes]:
    """What a store is, but for its uuid and the number of its process."""
    found = {}
    for one in sorted(path.rglob("*")):
        name = str(one.relative_to(path))
        if one.is_file() and "commits" not in name and one.name != "zarr.json":
            found[name] = one.read_bytes()
    return found


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_the_same_files_for_any_number_of_threads(memory_path: Path, rows: Any, codec: Any) -> None:
    few = rows[:9000]
    norms = actstore.Whitener(eps=0.001).fit(
        actstore.open(build(memory_path / "one.act", few))["resid"], threads=1
    )

    def written(n: int) -> dict[str, bytes]:
        path = build(memory_path / f"{n}.act", few, codec, threads=n)
        with actstore.append(path, threads=n) as writer:
            writer.append({"resid": few[:77]}, [77], ["more"])
            writer.commit()
            writer.append({"resid": few[:5]}, [5], ["and more"])
        actstore.open(path)["resid"].pool("mean", out="mean", on_empty="zero", threads=n)
        norms.save(path, "white", "resid", threads=n)
        with actstore.append(path, threads=n) as writer:
            writer.append({"resid": few[:9]}, [9], ["the last"])
        actstore.update(path, threads=n)
        actstore.compact(path, threads=n)
        actstore.export(path, memory_path / f"{n}.out", threads=n)
        actstore.import_(memory_path / f"{n}.out", memory_path / f"{n}.back.act", codec=codec, threads=n)
        found = {
            f"{name}/{one}": data for name in (f"{n}.act", f"{n}.back.act") for one, data in _of(name).items()
        }
        out = {
            one: data for one, data in files_of(memory_path / f"{n}.out").items() if one != "actstore.json"
        }
        return {name.split(".", 1)[1]: data for name, data in found.items()} | out

    def _of(name: str) -> dict[str, bytes]:
        return files_of(memory_path / name)

    first = written(1)
    assert len(first) > 20
    for n in (2, 5, 16):
        assert written(n) == first, f"{n} threads"


def search_with_a_map(tell: Tell, path: str) -> list[Any]:
    site = actstore.open(path)["resid"]
    fitted = whitener(site)
    found = []
    for n in (8, 1, 8, 3):
        tell(f"maxsim on {n} threads")
        found.append(
            flat(
                site.maxsim(
                    [queries(64, i) for i in range(6)],
                    k=5,
                    transform=fitted,
                    threads=n,
                    metric="dot",
                    combine="sum",
                )
            )
        )
    return found


def test_maxsim_with_a_map_ends(folder: Path) -> None:
    """It used to wait for ever: queries were prepared, by all threads, within a once-cell."""
    found = in_child(search_with_a_map, str(folder / "raw.act"), seconds=120, room=4 << 30)
    assert all(one == found[0] for one in found)
