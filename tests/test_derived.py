"""Sites derived from others, written beside them: what they cover, and that they are never silently short."""

import json
import pickle
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.artifacts.pooled import Compute, write_pooled
from actstore.site import Site
from actstore.updating import update
from builders import (
    Corpus,
    assert_same,
    files_of_record,
    files_on_disk,
    newest_record,
    put,
    records,
    rows_in_metadata,
    rows_in_record,
    small_columns,
    twin,
)
from interposed import KILL_AFTER, TEAR, Nurseries, Nursery, Order, spread
from numpy.typing import NDArray
from pooled import CORPUS, RECIPE, build, more, plan, pool, truth


def attributes(path: Path, name: str = "resid_mean") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / name / "zarr.json").read_text())["attributes"]
    return found


# ---- What is written ----


def test_a_derived_site_is_a_site(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5, 4)
    store = actstore.open(path)
    made = pool(store["resid"])
    expected = truth(CORPUS, 9)
    assert (made.name, made.axis, made.layers) == ("resid_mean", "examples", [0, 6, 12])
    assert_same(made.read(), expected)
    assert "resid_mean" not in store  # A view stays what it is.
    assert store.refresh()
    assert store.sites == [*CORPUS.sites, "resid_mean"]
    derived = store["resid_mean"]
    assert_same(derived.read(), expected)
    assert_same(derived[2:5, 6], expected[2:5, 1])
    assert_same(derived.select(examples=["ex-8", "ex-1"], layers=12).read(), expected[[8, 1], 2:])
    assert store.info()["sites"]["resid_mean"]["shape"] == [9, 3, 8]
    assert CORPUS.check(store) == 9
    assert store.verify(strict=True).damaged == store.verify(strict=True).leftovers == []
    assert files_on_disk(path) == files_of_record(path)
    assert rows_in_record(path) == rows_in_metadata(path)
    again: Site = pickle.loads(pickle.dumps(derived))
    assert_same(again.read(), expected)


def test_the_recipe_is_in_the_attributes(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 3)
    store = actstore.open(path)
    weights = [0.1, 1 / 3]
    site = store["resid"].select(layers=[12, 0])

    def weighted(source: Site) -> Compute:
        compute = plan(source)
        return lambda start, stop, progress: np.ascontiguousarray(compute(start, stop, progress)[:, :1])

    write_pooled(site, "mixed", RECIPE | {"mix": weights}, [0], 8, weighted)
    recipe = {
        "operation": "pool",
        "version": 1,
        "source": "resid",
        "layers": [12, 0],
        **RECIPE,
        "mix": weights,
    }
    assert attributes(path, "mixed") == {"actstore": {"derived": recipe, "axis": "examples", "labels": [0]}}
    store = actstore.open(path)
    assert store.snapshot.recipe("mixed") == recipe
    assert store.snapshot.recipe("resid") is None
    assert store.snapshot.derived_info()["mixed"] == {
        "recipe": recipe,
        "axis": "examples",
        "layers": [0],
        "dim": 8,
        "covers": 3,
        "n_rows": 3,
        "complete": True,
    }
    assert store["mixed"].layers == [0]


def test_other_readers_see_an_array(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 6)
    store = actstore.open(path)
    pool(store["resid"])
    expected = truth(CORPUS, 6)
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="r")
    assert_same(np.asarray(group["resid_mean"][:]), expected)
    assert group["resid_mean"].metadata.dimension_names == ("example", "layer", "dim")
    assert group["resid_mean"].attrs["actstore"]["derived"]["kind"] == "mean"
    CORPUS.check_with_zarr(path)
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "resid_mean")}}
    assert_same(tensorstore.open(spec).result().read().result(), expected)


def test_raw_stores_have_raw_derived_sites(memory_path: Path) -> None:
    corpus = Corpus(codec="raw")
    path = build(memory_path / "x.act", 6, corpus=corpus)
    pool(actstore.open(path)["resid"])
    info = actstore.open(path).info()["sites"]["resid_mean"]
    assert info["codec"] == "raw"


def test_many_runs_and_commits(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, the rows are the same."""
    path = build(memory_path / "x.act", 40)
    monkeypatch.setattr("actstore.artifacts.pooled._RUN_BYTES", 1)
    monkeypatch.setattr("actstore.artifacts.pooled._RUN_CHUNKS", 0)
    monkeypatch.setattr("actstore.artifacts.protocol._COMMIT_SECONDS", 0)
    before = len(records(path))
    seen: list[tuple[int, int]] = []
    made = pool(actstore.open(path)["resid"], progress=lambda done, total: seen.append((done, total)))
    assert len(records(path)) > before + 5 or newest_record(path)["number"] > before + 5
    assert_same(made.read(), truth(CORPUS, 40))
    total = 3 * CORPUS.n_rows("tokens", 40)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_an_empty_store(memory_path: Path) -> None:
    path = memory_path / "x.act"
    with small_columns():
        CORPUS.create(path).close()
    assert pool(actstore.open(path)["resid"]).shape == (0, 3, 8)
    assert actstore.open(path)["resid_mean"].shape == (0, 3, 8)
    with small_columns():
        more(path, 4)
    assert CORPUS.check(actstore.open(path)) == 4
    with pytest.raises(actstore.NotFoundError, match="covers 0 of 4 examples"):
        actstore.open(path)["resid_mean"]
    pool(actstore.open(path)["resid"])
    assert_same(actstore.open(path)["resid_mean"].read(), truth(CORPUS, 4))


# ---- Examples that come later ----


def test_stale_and_up_to_date_again(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    store = actstore.open(path)
    kept = pool(store["resid"])
    store.refresh()
    more(path, 3)
    # Who had it open before keeps it.
    assert store["resid_mean"].shape == kept.shape == (5, 3, 8)
    store.refresh()
    assert CORPUS.check(store) == 8
    assert store.sites == list(CORPUS.sites)
    assert "resid_mean" not in store
    with pytest.raises(actstore.NotFoundError, match=r"'resid_mean' of .* covers 5 of 8") as caught:
        store["resid_mean"]
    assert "--update" in (caught.value.hint or "")
    assert store.snapshot.derived_info()["resid_mean"]["complete"] is False
    assert repr(store)
    assert store.info()["sites"].keys() == CORPUS.sites.keys()
    assert store.verify(strict=True).ok

    computed: list[tuple[int, int]] = []

    def watched(source: Site) -> Compute:
        compute = plan(source)
        return lambda start, stop, progress: (
            computed.append((start, stop)) or compute(start, stop, progress)  # type: ignore[func-returns-value]
        )

    assert_same(pool(store["resid"], make=watched).read(), truth(CORPUS, 8))
    assert computed == [(5, 8)]
    assert_same(actstore.open(path)["resid_mean"].read(), truth(CORPUS, 8))
    assert_same(kept.read(), truth(CORPUS, 5))
    assert files_on_disk(path) == files_of_record(path)


def test_an_old_view_of_the_source_will_do(memory_path: Path) -> None:
    """What is written is of the newest commit."""
    path = build(memory_path / "x.act", 5)
    site = actstore.open(path)["resid"]
    more(path, 3)
    assert pool(site).shape == (8, 3, 8)


def test_up_to_date_needs_no_lock(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    before = newest_record(path)["number"]
    with actstore.append(path):
        assert pool(actstore.open(path)["resid"], make=forbidden).shape == (5, 3, 8)
        with pytest.raises(actstore.StorageError) as caught:
            pool(actstore.open(path)["resid"], "another")
        assert caught.value.kind == "locked"
    assert newest_record(path)["number"] == before


def forbidden(source: Site) -> Compute:
    raise AssertionError("nothing was to be computed")


def test_another_recipe_is_refused(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    site = actstore.open(path)["resid"]
    pool(site)
    for recipe, words in [
        ({"kind": "max"}, "kind = 'mean', this call has 'max'"),
        ({"special": False}, "special = True, this call has False"),
    ]:
        with pytest.raises(actstore.InvalidInputError, match=words):
            pool(site, recipe=recipe, make=forbidden)
    with pytest.raises(actstore.InvalidInputError, match=r"layers = \[0, 6, 12\], this call has \[6\]"):
        pool(site.select(layers=6), make=forbidden)
    with pytest.raises(actstore.InvalidInputError, match="source = 'resid', this call has 'mlp_out'"):
        pool(actstore.open(path)["mlp_out"], make=forbidden)


@pytest.mark.parametrize(
    "select",
    [
        {"examples": slice(0, 3)},
        {"examples": [4, 3, 2, 1, 0]},
        {"rows": slice(1, None)},
        {"rows": [0]},
    ],
)
def test_only_whole_sites(memory_path: Path, select: dict[str, Any]) -> None:
    path = build(memory_path / "x.act", 5)
    with pytest.raises(actstore.InvalidInputError, match="needs the whole site"):
        pool(actstore.open(path)["resid"].select(**select), make=forbidden)


def test_all_of_it_by_other_words_is_whole(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    site = actstore.open(path)["resid"]
    assert pool(site.select(examples=slice(None), rows=slice(None))).shape == (5, 3, 8)


@pytest.mark.parametrize(
    "name", ["resid", "mlp_out", "tokens", "decoder", "examples", "commits", "a/b", "", ".x", "c", None, 3]
)
def test_names(memory_path: Path, name: Any) -> None:
    path = build(memory_path / "x.act", 2)
    with pytest.raises(actstore.InvalidInputError):
        pool(actstore.open(path)["resid"], name, make=forbidden)


def test_layers_twice(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 2)
    with pytest.raises(actstore.InvalidInputError, match="distinct layers"):
        pool(actstore.open(path)["resid"].select(layers=[6, 6]), make=forbidden)


def test_what_somebody_put_there_stays(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 2)
    (path / "resid_mean").mkdir()
    (path / "resid_mean/zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
    with pytest.raises(actstore.StorageError, match="does not belong to the store") as caught:
        pool(actstore.open(path)["resid"])
    assert caught.value.kind == "exists"
    assert (path / "resid_mean/zarr.json").exists()


def test_a_plan_that_refuses_changes_nothing(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    before = files_on_disk(path)

    def refuse(source: Site) -> Compute:
        raise actstore.InvalidInputError("example 3 is empty")

    with pytest.raises(actstore.InvalidInputError, match="example 3 is empty"):
        pool(actstore.open(path)["resid"], make=refuse)
    assert files_on_disk(path) == before


def test_wrong_rows_are_refused(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)

    def wrong(source: Site) -> Compute:
        return lambda start, stop, progress: np.zeros((stop - start, 3, 7), np.float32)

    with pytest.raises(actstore.ShapeError, match=r"\[5, 3, 8\]"):
        pool(actstore.open(path)["resid"], make=wrong)
    assert "resid_mean" not in newest_record(path)["arrays"]


def test_what_was_computed_before_an_error_is_kept(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build(memory_path / "x.act", 30)
    monkeypatch.setattr("actstore.artifacts.pooled._OUT_BYTES", 7 * 3 * 8 * 4)

    def interrupted(source: Site) -> Compute:
        compute = plan(source)

        def until(start: int, stop: int, progress: Any) -> NDArray[np.float32]:
            if start >= 14:
                raise KeyboardInterrupt
            return compute(start, stop, progress)

        return until

    with pytest.raises(KeyboardInterrupt):
        pool(actstore.open(path)["resid"], make=interrupted)
    assert rows_in_record(path)["resid_mean"] == 14
    with pytest.raises(actstore.NotFoundError, match="covers 14 of 30"):
        actstore.open(path)["resid_mean"]
    starts = []

    def watched(source: Site) -> Compute:
        compute = plan(source)
        return lambda start, stop, progress: starts.append(start) or compute(start, stop, progress)  # type: ignore[func-returns-value]

    assert_same(pool(actstore.open(path)["resid"], make=watched).read(), truth(CORPUS, 30))
    assert starts == [14, 21, 28]


def test_compacted(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(memory_path / "x.act", 5)
    for n in (3, 1, 2):
        pool(actstore.open(path)["resid"])
        more(path, n)
    view = pool(actstore.open(path)["resid"])
    assert actstore.open(path).info()["hole_bytes"] > 0
    actstore.compact(path)
    assert actstore.open(path).info()["hole_bytes"] == 0
    expected = truth(CORPUS, 11)
    assert_same(actstore.open(path)["resid_mean"].read(), expected)
    with pytest.raises(actstore.FormatError) as caught:
        view.read()
    assert caught.value.kind == "compacted"
    more(path, 1)
    actstore.compact(path)
    pool(actstore.open(path)["resid"])
    assert_same(actstore.open(path)["resid_mean"].read(), truth(CORPUS, 12))
    assert files_on_disk(path) == files_of_record(path)


def test_derived_of_derived(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    made = pool(actstore.open(path)["resid_mean"], "again")
    assert_same(made.read(), truth(CORPUS, 5))
    more(path, 1)
    # Its source is short now, and cannot be had.
    with pytest.raises(actstore.NotFoundError, match="covers 5 of 6"):
        pool(made, "third")
    pool(actstore.open(path)["resid"])
    assert pool(actstore.open(path)["resid_mean"], "again").shape == (6, 3, 8)


# ---- As `Site.pool` does it ----


@pytest.mark.parametrize(
    "how",
    [
        {"kind": "mean"},
        {"kind": "max", "layers": [12, 0]},
        {"kind": "first", "layers": 6, "mix": "mean"},
        {"kind": "last", "mix": "concat"},
        {"kind": "weighted", "mix": [0.1, 1 / 3, -2.5]},
    ],
)
def test_pool_writes_what_it_gives(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    monkeypatch.setattr("actstore.artifacts.pooled._OUT_BYTES", 3 * 3 * 8 * 4)
    path = build(memory_path / "x.act", 9)
    how = {"on_empty": "zero", **how}
    kind = how.pop("kind")
    written = actstore.open(path)["resid"].pool(kind, out="docs", **how)
    assert_same(written.read(), actstore.open(path)["resid"].pool(kind, **how).read())
    more(path, 4)
    assert update(path) == ["docs"]
    assert update(path) == []
    site = actstore.open(path)["docs"]
    assert_same(site.read(), actstore.open(path)["resid"].pool(kind, **how).read())
    assert site.recipe is not None
    assert (site.recipe["kind"], site.recipe["source"]) == (kind, "resid")


def test_an_empty_example_stops_it_before_anything_is_written(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 9)
    before = files_on_disk(path)
    with pytest.raises(actstore.InvalidInputError, match="no rows"):
        actstore.open(path)["resid"].pool("mean", out="docs")
    assert files_on_disk(path) == before


def test_update_names(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 3)
    site = actstore.open(path)["resid"]
    for kind in ("mean", "max"):
        site.pool(kind, on_empty="zero", out=kind)
    more(path, 2)
    with pytest.raises(actstore.NotFoundError, match=r"no artifact 'resid' .*derived sites: max, mean"):
        update(path, ["resid"])
    assert update(path, ["max"]) == ["max"]
    assert actstore.open(path).sites == [*CORPUS.sites, "max"]
    seen: list[tuple[int, int]] = []
    assert update(path, progress=lambda *n: seen.append(n)) == ["mean"]
    assert seen[-1][0] == seen[-1][1] > 0
    with pytest.raises(actstore.InvalidInputError, match="a list"):
        update(path, "mean")  # type: ignore[arg-type]


# ---- Damage ----


def test_damage_is_found(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    shard = path / "resid_mean/c/0/0/0"
    raw = bytearray(shard.read_bytes())
    raw[30] ^= 1
    put(shard, raw)
    (found,) = actstore.open(path).verify().damaged
    assert found.array == "resid_mean"
    with pytest.raises(actstore.FormatError):
        actstore.open(path)["resid_mean"].read()
    assert CORPUS.check(actstore.open(path)) == 5


def test_another_recipe_in_its_metadata_is_damage(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    node = path / "resid_mean/zarr.json"
    put(node, node.read_text().replace('"kind":"mean"', '"kind":"last"'))
    with pytest.raises(actstore.FormatError, match="resid_mean"):
        actstore.open(path)


# ---- Kills ----


@pytest.mark.parametrize("codec", ["blosc", "raw"])
def test_killed_at_some_calls(nurseries: Nurseries, memory_path: Path, codec: Any) -> None:
    kill_everywhere(nurseries, memory_path, Corpus(codec=codec), KILL_AFTER, 29)


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "mode"), [("blosc", KILL_AFTER), ("raw", TEAR)])
def test_killed_at_each_call(nurseries: Nurseries, memory_path: Path, codec: Any, mode: int) -> None:
    kill_everywhere(nurseries, memory_path, Corpus(codec=codec), mode, 1)


def kill_everywhere(nurseries: Nurseries, folder: Path, corpus: Corpus, mode: int, every: int) -> None:
    """What is there of a derived site is right, and the next run goes on from it."""
    base = build(folder / "base.act", 9, 4, corpus=corpus)

    def copy(name: str) -> Path:
        return twin(base, folder / name)

    n_calls = nurseries[0].run("derive", corpus, copy("0.act"), Order()).calls
    found: set[int | None] = set()

    def kill_at(nursery: Nursery, name: str, at: int) -> None:
        path = copy(name)
        outcome = nursery.run("derive", corpus, path, Order(mode, at))
        assert outcome.killed or at > 0.9 * n_calls
        found.add(examine(corpus, path))

    spread(nurseries, range(n_calls, 0, -every), kill_at)
    assert None in found
    assert len(found) > 2


def examine(corpus: Corpus, path: Path) -> int | None:
    """Asserts all that holds after a kill; the examples that the derived site covered."""
    with actstore.open(path) as store:
        assert corpus.check(store) == 13
        assert store.verify(strict=True).damaged == []
        told = store.snapshot.derived_info().get("resid_mean")
    covers = None if told is None else told["covers"]
    if covers is not None:
        reader = store.snapshot.parts[0].reader.refresh()
        rows = np.empty((covers, 2, 8), np.float32)
        reader.array("resid_mean").read((0, covers), None, rows)
        assert_same(rows, truth(corpus, covers))
    assert covers == rows_in_record(path).get("resid_mean")
    actstore.append(path).close()
    assert files_on_disk(path) == files_of_record(path)
    assert_same(pool(actstore.open(path)["resid"]).read(), truth(corpus, 13))
    more(path, 2, corpus)
    assert_same(pool(actstore.open(path)["resid"]).read(), truth(corpus, 15))
    report = actstore.open(path).verify(strict=True)
    assert report.damaged == report.leftovers == []
    assert files_on_disk(path) == files_of_record(path)
    return covers
