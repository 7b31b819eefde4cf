"""Texts in any form become inputs with ids, positions and columns; what is unclear is refused by position."""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from actstore.capturing.inputs.forms import Input
from actstore.capturing.inputs.ready import ReadyBatch
from actstore.capturing.inputs.seen_ids import SeenIds
from actstore.capturing.inputs.stream import InputStream
from actstore.errors import InvalidInputError, ShapeError
from hypothesis import given
from hypothesis import strategies as st

TEXTS = ["a", "", "naïve\u2028", "d", "e", "f", "g"]


def all_of(source: Any, **options: Any) -> list[Input]:
    out = list(InputStream(source, **options))
    assert all(isinstance(one, Input) for one in out)
    return out


def batches_of(source: Any, **options: Any) -> list[ReadyBatch]:
    out = list(InputStream(source, **options))
    assert all(isinstance(one, ReadyBatch) for one in out)
    return out


class Sized:
    """Has a length and can be iterated over again, but not indexed, as a data loader."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Indexed:
    """Has a length and can be indexed, without an end, as a data set."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i % len(self.items)]


# ---- forms ----


def test_texts() -> None:
    assert all_of(TEXTS[:2]) == [
        Input(0, "0", "a", None, None, None, {}),
        Input(1, "1", "", None, None, None, {}),
    ]


def test_pairs_and_dicts() -> None:
    assert [(i.id, i.text) for i in all_of([("x", "a"), ("y", "b")])] == [("x", "a"), ("y", "b")]
    (one,) = all_of(
        [{"id": 7, "text": "a", "target": "b", "title": "t", "n": np.int64(3), "w": np.float32(0.5)}]
    )
    assert (one.id, one.text, one.target) == ("7", "a", "b")
    assert one.columns == {"title": "t", "n": 3, "w": 0.5}
    assert [type(value) for value in one.columns.values()] == [str, int, float]
    messages = [{"role": "user", "content": "hi"}]
    (one,) = all_of([{"messages": messages, "flag": True}])
    assert (one.text, one.messages, one.columns) == (None, messages, {"flag": True})


def test_images() -> None:
    array = np.zeros((3, 2, 2), np.float32)
    assert [one.image is array for one in all_of([array, array])] == [True, True]
    assert [one.image.shape for one in all_of(np.zeros((2, 3, 4, 5)))] == [(3, 4, 5)] * 2
    assert all_of([{"image": "cat.png", "label": 1}])[0].image == "cat.png"
    pil = pytest.importorskip("PIL.Image")
    assert all_of([pil.new("RGB", (2, 2))])[0].image.size == (2, 2)


@pytest.mark.parametrize("make", [list, tuple, np.array, Sized, Indexed, iter, lambda t: (x for x in t)])
def test_sources_that_give_texts(make: Any) -> None:
    assert [i.text for i in all_of(make(TEXTS))] == TEXTS


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([None], "input 0 is None"),
        (["a", None], "input 1 is None, the first is a text"),
        ([b"a"], "input 0 is a bytes, b'a'"),
        ([3], "input 0 is an int, 3"),
        ([["a", "b"]], "input 0 is a list"),
        (["a", ("x", "b")], r"input 1 is \(id, text\), the first is a text"),
        (["a", {"text": "b"}], "input 1 is a dict with text, the first is a text"),
        (
            [{"text": "a"}, {"id": "x", "text": "b"}],
            "input 1 is a dict with id and text, the first is a dict with text",
        ),
        ([{"text": "a"}, {"messages": [{}]}], "input 1 is a dict with messages"),
        ([("x",)], "input 0 is a tuple of str"),
        ([()], "input 0 is a tuple of nothing"),
        ([("x", b"a")], "input 0 is a tuple of str, bytes"),
        ([(None, "a")], "input 0: its id is None, not a str"),
        ([{"id": True, "text": "a"}], "its id is a bool"),
        ([{"text": 3}], "input 0: its text is an int, 3, not a str"),
        ([{"text": None}], "input 0: its text is None, not a str"),
        ([{"text": "a", "target": 3}], "its target is an int"),
        ([{"title": "a"}], "is a dict with only the keys 'title'"),
        ([{}], r"only the keys \(none\)"),
        ([{"text": "a", "messages": []}], "is a dict with text and messages"),
        ([{"messages": []}], r"its messages are a list, \[\]"),
        ([{"messages": "hi"}], "its messages are a str"),
        ([{"messages": ["hi"]}], "its messages are a list"),
        ([{"image": 3}], "its image is an int"),
        (["\ud800"], "input 0: its text is not valid unicode"),
        ([("\ud800", "a")], "its id is not valid unicode"),
        ([{"text": "a", "k": "\ud800"}], "its column 'k' is not valid unicode"),
        ([("x", "a"), ("y", "b"), ("x", "c")], "inputs 0 and 2 have the same id 'x'"),
        ([{"text": "a", "k": [1]}], "its column 'k' is a list, .1., neither a str, a number nor a bool"),
        ([{"text": "a", "k": None}], "its column 'k' is None"),
        ([{"text": "a", "k": 1}, {"text": "b"}], "input 1 has no key 'k', only nothing"),
        ([{"text": "a"}, {"text": "b", "k": 1}], "input 1 has a column 'k', which earlier inputs lack"),
        ([{"text": "a", "k": 1}, {"text": "b", "k": "x"}], "column 'k' has type int, input 1 has 'x'"),
        ([{"text": "a", "k": 1}, {"text": "b", "k": 0.5}], "column 'k' has type int, input 1 has 0.5"),
        ([{"text": "a", "k": 1}, {"text": "b", "k": True}], "column 'k' has type int, input 1 has True"),
        ([{"text": "a", "n_cut": 1}], "column 'n_cut' is reserved: capture writes it itself"),
        ([{"text": "a", "offset": 1}], "column 'offset' is reserved"),
        ([{"text": "a", "a/b": 1}], "column 'a/b' contains a slash"),
        ([{"text": "a", 3: 1}], "column 3 is an int, not a str"),
    ],
)
def test_items_that_cannot_be_used(items: list[Any], message: str) -> None:
    for source in (items, iter(items)):
        with pytest.raises(InvalidInputError, match=message):
            all_of(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a text", "texts: got a single str"),
        (b"a text", "texts: got a single bytes"),
        ({"a", "b"}, "texts: got a single set"),
        ({"text": ["a", "b"]}, "texts: got a single dict"),
        (3, "texts: an int is not iterable"),
        (None, "texts: None is not iterable"),
        (np.zeros((3, 2, 2)), r"an array of shape \[3, 2, 2\]"),
        (np.zeros((3, 2), int), r"an array of shape \[3, 2\]"),
    ],
)
def test_sources_that_cannot_be_used(source: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        InputStream(source)


def test_nothing_is_an_input_too() -> None:
    for source in ([], iter([]), Sized([])):
        empty = InputStream(source)
        assert list(empty) == []
        assert not empty.ready


# ---- once or again, ranks, skipping ----


def test_again_and_again() -> None:
    for source in (TEXTS, Sized(TEXTS)):
        many = InputStream(source)
        assert list(many) == list(many)
    once = InputStream(iter(TEXTS))
    assert len(list(once)) == 7
    with pytest.raises(InvalidInputError, match="the iterator is already consumed"):
        list(once)


def test_how_many_where_it_is_known() -> None:
    assert InputStream(TEXTS).n == InputStream(Sized(TEXTS)).n == 7
    assert InputStream(iter(TEXTS)).n is None
    assert [InputStream(TEXTS, rank=r, world=3).n for r in range(3)] == [2, 2, 3]
    assert [InputStream(Sized(TEXTS), rank=r, world=3).n for r in range(3)] == [3, 2, 2]


@given(
    n=st.integers(0, 20),
    world=st.integers(1, 6),
    some=st.integers(1, 25),
    form=st.sampled_from([list, Sized, iter]),
)
def test_ranks_share_the_input(n: int, world: int, some: int, form: Any) -> None:
    items = [f"text {i}" for i in range(n)]
    parts = [list(InputStream(form(items), rank=r, world=world)) for r in range(world)]
    assert sorted(i.position for part in parts for i in part) == list(range(n))
    for rank, part in enumerate(parts):
        for one in part:
            assert isinstance(one, Input)
            assert (one.id, one.text) == (str(one.position), items[one.position])
        whole = InputStream(form(items), rank=rank, world=world)
        assert whole.n in (len(part), None)
        # Of a sample nothing is lost.
        sample = whole.sample(some)
        assert len(sample) == min(some, len(part))
        assert [one for one in part if one in sample] == sample
        assert list(whole) == part
    if form is list:
        assert [i.position for part in parts for i in part] == list(range(n))
        assert [len(part) for part in parts] == [n * (r + 1) // world - n * r // world for r in range(world)]


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0)])
def test_ranks_that_are_not(rank: int, world: int) -> None:
    with pytest.raises(InvalidInputError, match="processes"):
        InputStream(TEXTS, rank=rank, world=world)


def test_an_iterator_is_read_as_it_is_needed() -> None:
    taken = []

    def source() -> Iterator[str]:
        for i in itertools.count():
            taken.append(i)
            yield f"text {i}"

    assert [i.text for i in itertools.islice(InputStream(source()), 3)] == ["text 0", "text 1", "text 2"]
    assert len(taken) == 3


# ---- columns ----


def test_given_columns() -> None:
    many = all_of(TEXTS, columns={"n": range(7), "w": np.arange(7) / 2, "s": [*"abcdefg"], "b": [True] * 7})
    assert [i.columns for i in many] == [{"n": i, "w": i / 2, "s": "abcdefg"[i], "b": True} for i in range(7)]
    second = all_of(iter(TEXTS), columns={"n": range(7)}, rank=1, world=2)
    assert [i.columns["n"] for i in second] == [1, 3, 5]
    both = all_of([{"text": "a", "m": 1}], columns={"n": [2]})
    assert both[0].columns == {"m": 1, "n": 2}


def test_columns_to_keep() -> None:
    items = [{"text": "a", "n": 1, "junk": [1]}, {"text": "b", "n": 2}]
    assert [i.columns for i in all_of(items, columns=["n"])] == [{"n": 1}, {"n": 2}]
    assert [i.columns for i in all_of(items, columns=[])] == [{}, {}]
    with pytest.raises(InvalidInputError, match="input 1 has no key 'junk', only 'text', 'n'"):
        all_of([{"text": "a", "n": 1, "junk": 3}, items[1]], columns=["n", "junk"])


def test_ints_among_floats_are_floats() -> None:
    many = all_of([{"text": "a", "w": 0.5}, {"text": "b", "w": 1}])
    assert type(many[1].columns["w"]) is float


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"n": [1]}, ShapeError, "column 'n': expected 7 values, one per input, got 1"),
        ({"n": [1] * 8}, ShapeError, "expected 7 values, one per input, got 8"),
        ({"n": "abcdefg"}, InvalidInputError, "column 'n': expected a sequence of values, got str"),
        ({"n": 3}, InvalidInputError, "expected a sequence of values, got int"),
        ({"n": [{}] * 7}, InvalidInputError, "input 0: its column 'n' is a dict"),
        ({"n": [1, "a", *range(5)]}, InvalidInputError, "column 'n' has type int, input 1 has 'a'"),
        ({"id": [1] * 7}, InvalidInputError, "column 'id' is reserved: capture writes"),
        ({"a/b": [1] * 7}, InvalidInputError, "contains a slash"),
        ("n", InvalidInputError, "columns: expected a mapping or a list of names"),
        (3, InvalidInputError, "columns: expected a mapping or a list of names"),
    ],
)
def test_columns_that_cannot_be(columns: Any, error: type[Exception], message: str) -> None:
    for source in (TEXTS, iter(TEXTS)):
        with pytest.raises(
            error, match=message.replace("column 'n': expected 7 values, one per input, got 1", "column 'n'")
        ):
            all_of(source, columns=columns)
    with pytest.raises(error, match=message):
        all_of(TEXTS, columns=columns)


def test_a_column_that_is_a_key_as_well() -> None:
    with pytest.raises(InvalidInputError, match="column 'n' is both in columns= and in input 0"):
        all_of([{"text": "a", "n": 1}], columns={"n": [2]})


# ---- ids seen ----


@given(st.lists(st.integers(0, 50), max_size=80), st.integers(1, 9))
def test_ids_are_found_again(numbers: list[int], fresh: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[SeenIds.__module__], "_FRESH", fresh)
        seen = SeenIds()
        for i, number in enumerate(numbers):
            first = numbers.index(number)
            assert seen.add(str(number), i) == (first if first < i else None)


def test_many_ids_are_quick() -> None:
    seen = SeenIds()
    assert all(seen.add(f"id {i}", i) is None for i in range(200_000))
    assert seen.add("id 3", 200_000) == 3


# ---- ready batches ----


def batch(n: int, start: int = 0) -> dict[str, Any]:
    return {
        "input_ids": np.arange(start, start + 2 * n).reshape(n, 2),
        "attention_mask": np.ones((n, 2), int),
    }


def test_ready_batches_are_recognized() -> None:
    for source in ([batch(2), batch(3)], iter([batch(2), batch(3)]), Sized([batch(2), batch(3)])):
        many = InputStream(source)
        assert many.ready
        assert [(b.position, b.n) for b in many] == [(0, 2), (2, 3)]
    assert InputStream([batch(2), batch(3)]).n == 5
    (alone,) = batches_of(batch(4))
    assert alone.n == 4


@given(
    sizes=st.lists(st.integers(1, 4), max_size=6),
    world=st.integers(1, 3),
    some=st.integers(1, 12),
    again=st.booleans(),
)
def test_ready_batches_by_rank(sizes: list[int], world: int, some: int, again: bool) -> None:
    starts = [0, *itertools.accumulate(sizes)]
    all_batches = [batch(n, 2 * start) for n, start in zip(sizes, starts, strict=False)]
    found = []
    for rank in range(world):
        source = all_batches if again else iter(all_batches)
        own = []
        for one in batches_of(source, rank=rank, world=world):
            for i in range(one.n):
                assert one.tokens["input_ids"][i].tolist() == [
                    2 * (one.position + i),
                    2 * (one.position + i) + 1,
                ]
            own += range(one.position, one.position + one.n)
        source = all_batches if again else iter(all_batches)
        whole = InputStream(source, rank=rank, world=world)
        sample = whole.sample(some)
        assert {b.position for b in sample} <= set(own)
        assert [i for b in whole for i in range(b.position, b.position + b.n)] == own
        found += own
    assert sorted(found) == list(range(sum(sizes)))


def test_columns_of_ready_batches() -> None:
    first, second = batches_of([batch(2), batch(1)], columns={"n": [5, 6, 7]})
    assert (first.columns, second.columns) == ({"n": [5, 6]}, {"n": [7]})
    with pytest.raises(ShapeError, match="column 'n': expected 3 values, one per input, got 2"):
        InputStream([batch(3)], columns={"n": [5, 6]})
    with pytest.raises(ShapeError, match="column 'n'"):
        batches_of(iter([batch(3)]), columns={"n": [5, 6, 7, 8]})
    with pytest.raises(InvalidInputError, match="cannot select keys of ready batches"):
        InputStream([batch(3)], columns=["n"])
    with pytest.raises(InvalidInputError, match="column 'n' is both"):
        batches_of([{**batch(1), "n": [1]}], columns={"n": [1]})


def test_ready_batches_among_others() -> None:
    with pytest.raises(InvalidInputError, match="item 1 is a text, the first is a ready batch"):
        batches_of([batch(1), "a"])
    with pytest.raises(InvalidInputError, match="input 1 is a ready batch, the first is a text"):
        all_of(["a", batch(1)])
    with pytest.raises(InvalidInputError, match="examples 0 and 2 have the same id 'x'"):
        batches_of([{**batch(2), "id": ["x", "y"]}, {**batch(1), "id": ["x"]}])


def test_inputs_is_a_class_too() -> None:
    assert isinstance(InputStream(TEXTS), InputStream)
