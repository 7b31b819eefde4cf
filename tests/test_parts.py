"""Stores of several parts: which are meant, whether they fit together, and one count over all of them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.errors import FormatError, InvalidInputError, NotFoundError
from builders import assert_same

N_PARTS = 4
SITES = {
    "resid": actstore.SiteSpec(2, 4, "float32", labels=[3, 9], chunk_rows=2, shard_rows=4),
    "cross": actstore.SiteSpec(1, 3, "float16", axis="decoder", chunk_rows=2, shard_rows=2),
    "pooled": actstore.SiteSpec(1, 2, "bfloat16", axis="examples"),
}
LENGTHS = {"tokens": [[2, 0, 3], [], [5], [0, 1]], "decoder": [[1, 1, 0], [], [0], [7, 2]]}
"""By part; the second has no examples."""


def rows_of(part: int, name: str) -> np.ndarray[Any, Any]:
    """Each row is full of a number of its own: 50 times the part, and its place there."""
    spec = SITES[name]
    n = len(LENGTHS["tokens"][part]) if spec.axis == "examples" else sum(LENGTHS[spec.axis][part])
    rows = np.arange(n)[:, None, None] + 50 * part + np.zeros((1, spec.n_layers, spec.dim))
    return rows.astype(np.float32)


def fill(writer: actstore.StoreWriter, part: int) -> None:
    lengths = {axis: sizes[part] for axis, sizes in LENGTHS.items()}
    n = len(lengths["tokens"])
    writer.append(
        {name: rows_of(part, name) for name in SITES},
        lengths,
        ids=[f"{part}-{i}" for i in range(n)],
        token_columns={axis: {"id": np.arange(sum(sizes)) + 1000 * part} for axis, sizes in lengths.items()},
        columns={"label": [f"p{part}"] * n, "score": np.arange(n) + part / 8},
        cast=True,
    )


def make(path: Path, content: int, **keywords: Any) -> Path:
    with actstore.create(path, SITES, **keywords) as writer:
        fill(writer, content)
    return path


@pytest.fixture(scope="module")
def folder(memory_folder: Path) -> Path:
    """Parts whose names say nothing of their order."""
    folder = memory_folder / "parts"
    folder.mkdir()
    for index, name in enumerate(["d.act", "a.act", "c.act", "b.act"]):
        make(folder / name, index, part=(index, N_PARTS), identity={"model": "toy"})
    # What else lies about is no part.
    (folder / "notes.txt").write_text("")
    (folder / "logs").mkdir()
    shutil.copytree(folder / "a.act", folder / ".a.act.old-123")
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[actstore.Store]:
    with actstore.open(folder) as store:
        yield store


def whole(name: str, parts: Any = range(N_PARTS)) -> np.ndarray[Any, Any]:
    return np.concatenate([rows_of(part, name) for part in parts])


def ids_of(parts: Any = range(N_PARTS)) -> list[str]:
    return [f"{part}-{i}" for part in parts for i in range(len(LENGTHS["tokens"][part]))]


def check(store: actstore.Store, parts: Any = range(N_PARTS)) -> None:
    """The parts follow one another, in rows, offsets and columns alike."""
    for name in SITES:
        assert store[name].shape == whole(name, parts).shape
        assert_same(store[name].read("float32"), whole(name, parts))
    assert store.examples["id"].tolist() == ids_of(parts)
    assert store.examples["label"].tolist() == [f"p{name[0]}" for name in ids_of(parts)]
    assert store.examples["score"].tolist() == [int(i[2:]) + int(i[0]) / 8 for i in ids_of(parts)]
    for axis, by_part in LENGTHS.items():
        lengths = [length for part in parts for length in by_part[part]]
        assert store.axes[axis].offsets.tolist() == [0, *np.cumsum(lengths).tolist()]
        assert store.axes[axis].n_rows == sum(lengths)
        numbers = [1000 * part + i for part in parts for i in range(sum(by_part[part]))]
        assert store.axes[axis]["id"].tolist() == numbers
    assert store.n_examples == len(ids_of(parts))
    assert store.n_tokens == sum(sum(LENGTHS["tokens"][part]) for part in parts)


# ---- Which ----


def test_a_folder_goes_by_part_index(store: actstore.Store) -> None:
    check(store)
    assert store.identity == {"model": "toy"}
    assert [(p["index"], p["count"]) for p in store.info()["parts"]] == [(i, N_PARTS) for i in range(N_PARTS)]


def test_a_list_goes_by_its_order(folder: Path) -> None:
    names = ["b.act", "d.act", "a.act"]  # Indices 3, 0 and 1.
    with actstore.open([folder / name for name in names]) as store:
        check(store, [3, 0, 1])
        assert store.path == [str(folder / name) for name in names]
    with actstore.open([str(folder / "c.act")]) as store:
        check(store, [2])


def test_a_folder_without_indices_goes_by_name(memory_path: Path) -> None:
    """Numbers in names count as numbers."""
    for part, name in [(3, "run-10.act"), (0, "run-2.act"), (2, "run-9.act")]:
        make(memory_path / name, part)
    with actstore.open(memory_path) as store:
        check(store, [0, 2, 3])


def test_some_of_the_parts(folder: Path, memory_path: Path) -> None:
    """The others may be still to come, or on another disk."""
    for name in ("b.act", "d.act"):
        shutil.copytree(folder / name, memory_path / name)
    with actstore.open(memory_path) as store:
        check(store, [0, 3])


def test_links_to_parts(folder: Path, memory_path: Path) -> None:
    os.symlink(folder / "c.act", memory_path / "x")
    os.symlink(folder / "d.act", memory_path / "y")
    with actstore.open(memory_path) as store:
        check(store, [0, 2])
    os.symlink(folder / "c.act", memory_path / "z")
    with pytest.raises(InvalidInputError, match="twice"):
        actstore.open(memory_path)


def test_a_part_twice(folder: Path, memory_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="twice"):
        actstore.open([folder / "c.act", folder / "d.act", folder / "logs" / ".." / "c.act"])
    # A copy is another directory, but the same part.
    shutil.copytree(folder / "c.act", memory_path / "one")
    shutil.copytree(folder / "c.act", memory_path / "two")
    with pytest.raises(InvalidInputError, match="both part 2") as caught:
        actstore.open(memory_path)
    assert str(memory_path / "one") in str(caught.value)
    assert str(memory_path / "two") in str(caught.value)
    # In a list, the caller has said which.
    with actstore.open([memory_path / "one", memory_path / "two"]) as store:
        check(store, [2, 2])


def test_what_is_no_folder_of_parts(folder: Path, memory_path: Path) -> None:
    (memory_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="not a store"):
        actstore.open(memory_path / "empty")
    with pytest.raises(NotFoundError, match="missing"):
        actstore.open([folder / "c.act", folder / "missing"])
    with pytest.raises(NotFoundError, match="logs"):
        actstore.open([folder / "c.act", folder / "logs"])
    for wrong in ([], [3], 3, None, {"a": 1}, b"x", [folder / "c.act", None], "", ["a\0b"]):
        with pytest.raises((InvalidInputError, NotFoundError)):
            actstore.open(wrong)  # type: ignore[arg-type]


# ---- Whether they fit ----

RESID = {"resid": actstore.SiteSpec(2, 4, "float32", labels=[3, 9])}
DISAGREEING: dict[str, tuple[str, Any]] = {
    "sites": ("sites", {"mlp": RESID["resid"]}),
    "more sites": ("sites", RESID | {"mlp": RESID["resid"]}),
    "the axis": ("axis of site 'resid'", {"resid": actstore.SiteSpec(2, 4, "float32", [3, 9], "encoder")}),
    "labels": ("layers of site 'resid'", {"resid": actstore.SiteSpec(2, 4, "float32", labels=[3, 8])}),
    "the order of labels": ("layers of site", {"resid": actstore.SiteSpec(2, 4, "float32", labels=[9, 3])}),
    "the number of layers": ("layers of site", {"resid": actstore.SiteSpec(1, 4, "float32", labels=[3])}),
    "dim": ("dim of site 'resid'", {"resid": actstore.SiteSpec(2, 5, "float32", labels=[3, 9])}),
    "dtype": ("dtype of site 'resid'", {"resid": actstore.SiteSpec(2, 4, "float16", labels=[3, 9])}),
}


@pytest.mark.parametrize("what", DISAGREEING)
def test_disagreements_are_named(memory_path: Path, what: str) -> None:
    words, sites = DISAGREEING[what]
    actstore.create(memory_path / "one", RESID, part=(0, 2)).close()
    actstore.create(memory_path / "two", sites, part=(1, 2)).close()
    for source in (memory_path, [memory_path / "one", memory_path / "two"]):
        with pytest.raises(InvalidInputError, match=words) as caught:
            actstore.open(source)
        assert str(memory_path / "one") in str(caught.value)
        assert str(memory_path / "two") in str(caught.value)


@pytest.mark.parametrize(
    ("more", "axis"),
    [
        ({"token_columns": {"position": [0, 1]}}, "tokens"),
        ({"token_columns": {"id": np.zeros(2, np.int32)}}, "tokens"),
        ({"token_columns": None}, "tokens"),
        ({"columns": {"label": ["x"], "score": [1.0]}}, "examples"),
        ({"columns": {"label": [1]}}, "examples"),
        ({"columns": None}, "examples"),
    ],
)
def test_columns_that_disagree_are_named(memory_path: Path, more: dict[str, Any], axis: str) -> None:
    usual: dict[str, Any] = {"token_columns": {"id": [0, 1]}, "columns": {"label": ["x"]}}
    for name, given in (("one", usual), ("two", usual | more)):
        with actstore.create(memory_path / name, RESID) as writer:
            writer.append({"resid": np.zeros((2, 2, 4), np.float32)}, [2], **given)
    with pytest.raises(InvalidInputError, match=f"columns of '{axis}'"):
        actstore.open(memory_path)


def test_what_need_not_agree(memory_path: Path) -> None:
    """How a part lies on disk is its own affair."""
    coarse = {"resid": actstore.SiteSpec(2, 4, "float32", [3, 9], "tokens", 8, 16)}
    rows = np.arange(96, dtype=np.float32).reshape(12, 2, 4)
    fine = {"resid": SITES["resid"]}
    with actstore.create(memory_path / "1", fine, codec="raw", identity={"device": "cpu"}) as writer:
        writer.append({"resid": rows[:5]}, [5], ids=["a"])
    with actstore.create(memory_path / "2", coarse) as writer:
        writer.append({"resid": rows[5:]}, [3, 4], ids=["b", "c"])
    with actstore.open(memory_path) as store:
        assert_same(store["resid"].read(), rows)
        assert_same(store["resid"][[11, 0, 5, 4], 9], rows[[11, 0, 5, 4], 1])
        assert store.verify().ok


def test_a_damaged_part_is_named(folder: Path, memory_path: Path) -> None:
    for name in ("c.act", "d.act"):
        shutil.copytree(folder / name, memory_path / name)
    shard = memory_path / "c.act/resid/c/0/0/0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    with actstore.open(memory_path) as store:
        assert {damage.part for damage in store.verify().damaged} == {str(memory_path / "c.act")}
        with pytest.raises(FormatError, match=r"c\.act"):
            store["resid"].read()
        assert_same(store["resid"][:5], whole("resid", [0]))  # The other part is whole.
    (memory_path / "d.act/zarr.json").write_text("{")
    with pytest.raises(FormatError, match=r"d\.act"):
        actstore.open(memory_path)


# ---- One count over all ----


def test_rows_across_parts(store: actstore.Store) -> None:
    rows = whole("resid")  # Parts of 5, 0, 5 and 1 rows.
    site = store["resid"]
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            assert_same(site[start:stop], rows[start:stop])
    for row in range(-len(rows), len(rows)):
        assert_same(site[row], rows[row])
    picked = [10, 4, 5, 5, 0, -1, 9]
    assert_same(site[picked, 9], rows[picked, 1])
    assert_same(site[::-3, [9, 3]], rows[::-3][:, ::-1])
    mask = np.arange(len(rows)) % 3 == 1
    assert_same(site[mask], rows[mask])
    with pytest.raises(InvalidInputError, match="there are 11"):
        site[11]


def test_examples_across_parts(store: actstore.Store) -> None:
    site, offset = store["resid"], store.tokens.offsets.tolist()
    for number, name in enumerate(ids_of()):
        expected = whole("resid")[offset[number] : offset[number + 1]]
        assert_same(site.example(number), expected)
        assert_same(site.example(name), expected)
        assert_same(site.example(number - store.n_examples), expected)
        assert_same(store["pooled"].example(name).astype(np.float32), whole("pooled")[number : number + 1])


def test_selections_across_parts(store: actstore.Store) -> None:
    view = store["resid"].select(layers=9, examples=["3-1", "0-2", 3, "0-1"])
    assert view.rows.tolist() == [10, 2, 3, 4, 5, 6, 7, 8, 9]  # As they count in the whole store.
    assert_same(view.read(), whole("resid")[view.rows, 1:])
    assert_same(view.example("2-0"), whole("resid")[5:10, 1:])
    fewer = view.select(rows=[0, 4])
    assert fewer.rows.tolist() == [10, 5]
    assert_same(fewer.read(), whole("resid")[[10, 5], 1:])
    by_column = store["resid"].select(rows=store.tokens["id"] >= 2003)
    assert by_column.rows.tolist() == [8, 9, 10]
    sliced = store["cross"].select(examples=slice(2, 5))
    assert sliced.rows.tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert_same(sliced.read("float32"), whole("cross")[2:9])


def test_ids_that_several_parts_have(memory_path: Path) -> None:
    """Parts that were not written together; positions still say which."""
    for name, value in (("1", 1), ("2", 2)):
        with actstore.create(memory_path / name, RESID) as writer:
            writer.append({"resid": np.full((2, 2, 4), value, np.float32)}, [1, 1], ids=["a", name])
    with actstore.open(memory_path) as store:
        assert store.examples["id"].tolist() == ["a", "1", "a", "2"]
        assert store["resid"].example("2")[0, 0, 0] == 2
        assert store["resid"].example(2)[0, 0, 0] == 2
        with pytest.raises(InvalidInputError, match="several examples 'a'"):
            store["resid"].example("a")


def test_parts_without_examples(memory_path: Path) -> None:
    """No rows, no columns, and no say in which columns there are; first, between and last."""
    for index, part in enumerate([1, 0, 1, 3, 1]):
        with actstore.create(memory_path / str(index), SITES, part=(index, 5)) as writer:
            if part != 1:
                fill(writer, part)
    with actstore.open(memory_path) as store:
        check(store, [0, 3])
        assert store.tokens.dtypes == {"id": "int64"}
        assert store.examples.dtypes == {"id": "str", "label": "str", "score": "float64"}
    with actstore.open([memory_path / name for name in "024"]) as store:
        assert (store.n_examples, store.n_tokens, store["resid"].shape) == (0, 0, (0, 2, 4))
        assert store.tokens.offsets.tolist() == [0]


# ---- While somebody writes ----


def test_refresh_with_a_growing_part(memory_path: Path) -> None:
    for part in (0, 2):
        make(memory_path / f"{part}", part, part=(part, 5))
    with actstore.open(memory_path) as store, actstore.open([memory_path / "2", memory_path / "0"]) as listed:
        before = store["resid"]
        check(store, [0, 2])
        assert not store.refresh()
        # The first part grows, so that all rows behind it move.
        with actstore.append(memory_path / "0") as writer:
            fill(writer, 3)
            assert not store.refresh()
            writer.commit()
            check(store, [0, 2])
            assert store.refresh()
            check(store, [0, 3, 2])
            assert not store.refresh()
        assert store["resid"].example("2-0").tolist() == rows_of(2, "resid").tolist()
        assert before.shape == (10, 2, 4)
        assert_same(before.read(), whole("resid", [0, 2]))
        assert listed.refresh()
        check(listed, [2, 0, 3])


def test_refresh_finds_new_parts_of_a_folder(folder: Path, memory_path: Path) -> None:
    shutil.copytree(folder / "c.act", memory_path / "c")
    with actstore.open(memory_path) as store, actstore.open([memory_path / "c"]) as listed:
        shutil.copytree(folder / "d.act", memory_path / "x")
        assert store.refresh()
        check(store, [0, 2])  # By index, in front of what was there.
        assert not listed.refresh()
        check(listed, [2])
        shutil.copytree(folder / "d.act", memory_path / "y")
        with pytest.raises(InvalidInputError, match="both part 0"):
            store.refresh()
        check(store, [0, 2])  # A failed refresh keeps the view.


def test_refresh_when_a_part_is_gone(folder: Path, memory_path: Path) -> None:
    for name in ("c.act", "d.act"):
        shutil.copytree(folder / name, memory_path / name)
    with actstore.open([memory_path / "c.act", memory_path / "d.act"]) as store:
        shutil.rmtree(memory_path / "d.act")
        with pytest.raises(NotFoundError, match=r"d\.act"):
            store.refresh()
