"""Derived sites in several parts, in groups of others and in other formats."""

import json
import shutil
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import Corpus, assert_same, newest_record, put, small_columns
from pooled import CORPUS, build, more, pool, truth

# ---- Several parts ----


def parts(folder: Path, *sizes: int) -> Path:
    """Each part holds the first examples of the same corpus."""
    (folder / "parts").mkdir()
    for i, n in enumerate(sizes):
        with small_columns(), CORPUS.create(folder / f"parts/{i}", part=(i, len(sizes))) as writer:
            if n:
                CORPUS.append(writer, n)
    return folder / "parts"


def test_parts(memory_path: Path) -> None:
    path = parts(memory_path, 4, 0, 3)
    store = actstore.open(path)
    expected = np.concatenate([truth(CORPUS, 4), truth(CORPUS, 3)])
    seen: list[tuple[int, int]] = []
    made = pool(store["resid"], progress=lambda *n: seen.append(n))
    assert_same(made.read(), expected)
    total = 3 * sum(CORPUS.n_rows("tokens", n) for n in (4, 3))
    assert seen[-1] == (total, total)
    store.refresh()
    assert_same(store["resid_mean"].read(), expected)
    assert_same(actstore.open(path / "2")["resid_mean"].read(), expected[4:])

    more(path / "0", 2)
    store.refresh()
    with pytest.raises(actstore.NotFoundError, match="covers 7 of 9 examples"):
        store["resid_mean"]
    assert actstore.open(path / "2")["resid_mean"].shape == (3, 3, 8)
    before = newest_record(path / "2")["number"]
    assert pool(store["resid"]).shape == (9, 3, 8)
    assert newest_record(path / "2")["number"] == before


def test_a_part_without(memory_path: Path) -> None:
    path = parts(memory_path, 4, 3)
    pool(actstore.open(path / "0")["resid"])
    store = actstore.open(path)
    assert "resid_mean" not in store
    with pytest.raises(actstore.NotFoundError, match="covers 4 of 7 examples"):
        store["resid_mean"]
    assert pool(store["resid"]).shape == (7, 3, 8)


def test_an_empty_part_without(memory_path: Path) -> None:
    path = parts(memory_path, 4, 0)
    pool(actstore.open(path / "0")["resid"])
    assert actstore.open(path)["resid_mean"].shape == (4, 3, 8)


def test_parts_that_differ(memory_path: Path) -> None:
    path = parts(memory_path, 4, 3)
    pool(actstore.open(path / "0")["resid"])
    pool(actstore.open(path / "1")["resid"], recipe={"kind": "last"})
    store = actstore.open(path)
    assert "resid_mean" not in store
    with pytest.raises(actstore.InvalidInputError, match=r"parts differ in .* 'resid_mean': kind is"):
        store["resid_mean"]
    with pytest.raises(actstore.InvalidInputError, match="kind = 'last', this call has 'mean'"):
        pool(store["resid"])
    assert store["resid"].shape[1:] == (3, 8)


# ---- Groups of others ----


def foreign(path: Path, to: Path, keep: bool = True) -> Path:
    """A store's arrays and attributes, without its commits."""
    shutil.copytree(path, to)
    shutil.rmtree(to / "commits")
    root = json.loads((to / "zarr.json").read_text())
    del root["consolidated_metadata"]
    if keep:
        root["attributes"]["actstore"]["commits"] = None
    else:
        root["attributes"] = {}
    put(to / "zarr.json", json.dumps(root))
    return to


@pytest.mark.parametrize("keep", [True, False])
def test_foreign_groups(memory_path: Path, keep: bool) -> None:
    corpus = Corpus()
    path = build(memory_path / "x.act", 5, corpus=corpus)
    pool(actstore.open(path)["resid"])
    group = actstore.open(foreign(path, memory_path / "g.zarr", keep))
    assert group.sites == ["resid", "resid_mean"]
    assert_same(group["resid_mean"].read(), truth(corpus, 5))
    with pytest.raises(actstore.FormatError, match="without commits") as caught:
        pool(group["resid"], "more")
    assert caught.value.kind == "unsupported"
    more(path, 2, corpus)
    group = actstore.open(foreign(path, memory_path / "h.zarr", keep))
    assert group.sites == ["resid"]
    with pytest.raises(actstore.NotFoundError, match="covers 5 of 7") as error:
        group["resid_mean"]
    assert "import" in (error.value.hint or "")


def change(path: Path, **changes: Any) -> None:
    node = json.loads((path / "resid_mean/zarr.json").read_text())
    own = node["attributes"]["actstore"]
    for key, value in changes.items():
        (own if key in ("labels", "derived", "axis") else own["derived"])[key] = value
    put(path / "resid_mean/zarr.json", json.dumps(node))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [0, 0, 1]},
        {"labels": [0, 1, 2]},
        {"labels": "abc"},
        {"axis": None},
        {"axis": "nowhere"},
        {"derived": []},
        {"derived": None},
        {"version": "1"},
        {"version": True},
        {"operation": 3},
        {"source": "a/b"},
        {"source": None},
        {"layers": [-1]},
        {"layers": None},
    ],
)
def test_malformed_descriptions(memory_path: Path, changes: dict[str, Any]) -> None:
    path = build(memory_path / "x.act", 5, corpus=Corpus())
    pool(actstore.open(path)["resid"])
    group = foreign(path, memory_path / "g.zarr")
    change(group, **changes)
    with pytest.raises(actstore.FormatError) as caught:
        actstore.open(group)
    assert caught.value.kind == "metadata"


@pytest.mark.parametrize("changes", [{"version": 2}, {"operation": "weave", "labels": 3}])
def test_descriptions_of_later_versions(memory_path: Path, changes: dict[str, Any]) -> None:
    path = build(memory_path / "x.act", 5, corpus=Corpus())
    pool(actstore.open(path)["resid"])
    group = foreign(path, memory_path / "g.zarr")
    change(group, **changes)
    store = actstore.open(group)
    assert store.sites == ["resid"]
    with pytest.raises(actstore.FormatError) as caught:
        store["resid_mean"]
    assert caught.value.kind == "version"


def test_more_rows_than_examples(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5, corpus=Corpus())
    pool(actstore.open(path)["resid"])
    group = foreign(path, memory_path / "g.zarr")
    node = json.loads((group / "resid_mean/zarr.json").read_text())
    node["shape"][0] = 6
    put(group / "resid_mean/zarr.json", json.dumps(node))
    with pytest.raises(actstore.FormatError, match="has 6 rows, axis 'examples' has 5"):
        actstore.open(group)


# ---- Other formats ----


def test_export_and_import(memory_path: Path) -> None:
    """What is complete goes along, and stays derived if its source does too."""
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    expected = truth(CORPUS, 5)
    recipe = actstore.open(path).snapshot.recipe("resid_mean")
    actstore.export(path, memory_path / "e")
    actstore.import_(memory_path / "e", memory_path / "from_export.act", codec="raw")
    actstore.import_(path, memory_path / "from_store.act")
    for name in ("from_export", "from_store"):
        copy = memory_path / f"{name}.act"
        store = actstore.open(copy)
        assert store.sites == [*CORPUS.sites, "resid_mean"]
        assert store.snapshot.recipe("resid_mean") == recipe
        assert_same(store["resid_mean"].read(), expected)
        assert CORPUS.check(store) == 5
        more(copy, 1)
        pool(actstore.open(copy)["resid"])
        assert_same(actstore.open(copy)["resid_mean"].read(), truth(CORPUS, 6))
    assert actstore.open(memory_path / "from_export.act").info()["sites"]["resid_mean"]["codec"] == "raw"


@pytest.mark.parametrize("export", [True, False])
def test_import_without_the_source(memory_path: Path, export: bool) -> None:
    """It is a pooled site like any other then."""
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    if export:
        actstore.export(path, memory_path / "e")
        path = memory_path / "e"
    actstore.import_(path, memory_path / "alone.act", sites=["resid_mean"])
    actstore.import_(path, memory_path / "cast.act", sites=["resid", "resid_mean"], dtype="float32")
    for name in ("alone", "cast"):
        store = actstore.open(memory_path / f"{name}.act")
        assert store.snapshot.recipe("resid_mean") is None
        assert_same(store["resid_mean"].read(), truth(CORPUS, 5))


def test_export_and_import_while_it_is_short(memory_path: Path) -> None:
    path = build(memory_path / "x.act", 5)
    pool(actstore.open(path)["resid"])
    more(path, 1)
    actstore.export(path, memory_path / "short")
    actstore.import_(path, memory_path / "short.act")
    assert actstore.open(memory_path / "short.act").sites == list(CORPUS.sites)
    with pytest.raises(actstore.NotFoundError):
        actstore.export(path, memory_path / "asked", sites=["resid_mean"])


def test_import_with_other_examples(memory_path: Path) -> None:
    """One example cut into two: its mean is of no use."""
    spec = actstore.SiteSpec(3, 8, "float32")
    with actstore.create(memory_path / "x.act", {"resid": spec}) as writer:
        writer.append({"resid": np.ones((4, 3, 8), np.float32)}, [4])
    pool(actstore.open(memory_path / "x.act")["resid"])
    actstore.import_(memory_path / "x.act", memory_path / "y.act", lengths=[1, 3])
    assert actstore.open(memory_path / "y.act").sites == ["resid"]
