"""Five minutes of a careless user: an error of ours that helps, and nothing in the way of the next try."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from capture_cases import bert, gpt2, of_text, t5, texts, tokenizer, vit
from tiny_models import WORDS, write_tokenizer

N = 6


def good(**more: Any) -> dict[str, Any]:
    """What works."""
    return of_text(bert(), texts=texts(N)) | more


def ids(*rows: Any) -> dict[str, Any]:
    """A ready batch."""
    return {"input_ids": list(rows)}


def masks(n: int) -> list[Any]:
    return [np.ones(n, bool)] * N


def many_words() -> Any:
    """A tokenizer whose ids the model does not have."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return write_tokenizer(Path(folder), words=" ".join([*(f"w{i}" for i in range(300)), *WORDS.split()]))


BAD: dict[str, list[Any]] = {
    "model": [
        5,
        None,
        [],
        b"x",
        "/no/such/model",
        "no such model",
        "package:nothing",
        lambda x: x,
        torch.nn.Linear(4, 4),
    ],
    "texts": [
        None,
        5,
        "a text",
        b"bytes",
        {"a": 1},
        [None],
        [b"a"],
        [5],
        [["a", "b"]],
        [("a",)],
        [("a", "b", "c")],
        [{}],
        [{"txt": "a"}],
        [{"text": 5}],
        ["a", {"text": "b"}],
        ["a", None],
        ["a", ("1", "b")],
        {"a cat", "a dog"},
        [("same", "a"), ("same", "b")],
        [{"text": "a", "x": object()}],
        [{"text": "a", "x": 1}, {"text": "b"}],
        [{"text": "a", "x": 1}, {"text": "b", "x": "y"}],
        [{"text": "a", "target": "b"}],
        [{"messages": [{"role": "user", "content": "a"}]}],
        [{"text": "a", "n_cut": 3}],
        np.zeros((2, 3)),
        [np.zeros((3, 16, 16), np.float32)],
        "a\ud800",
        ["a\ud800"],
        ids([500, 1]),
        ids([-1, 2]),
        ids([1.5, 2.0]),
        ids(),
        {"input_ids": "abc"},
        {"input_ids": 5},
        {"input_ids": None},
        ids([2] * 100),
        {"attention_mask": [[1]], "input_ids": [[2, 3]]},
        {"input_ids": [[2, 3]], "attention_mask": [[1, 7]]},
        {"input_ids": [[2, 3]], "token_type_ids": [[0, 9]]},
        {"input_ids": [[2, 3]], "id": ["a", "b"]},
        {"pixel_values": np.zeros((1, 3, 16, 16), np.float32)},
        {"inputs_embeds": np.zeros((1, 2, 16), np.float32)},
        [ids([2, 3]), "a text"],
        [ids([2, 3]), {"pixel_values": np.zeros((1, 3, 16, 16), np.float32)}],
        [ids([2, 3]) | {"label": [1]}, ids([2, 3])],
        [ids([2, 3]), ids([2, 3]) | {"label": [1]}],
        [ids([2, 3]) | {"label": [1]}, ids([2, 3]) | {"label": ["a"]}],
        [ids([2, 3]) | {"id": ["a"]}, ids([2, 3]) | {"id": ["a"]}],
        ids([2, 3]) | {"decoder_input_ids": [[2, 3]]},
        ids([2, 3]) | {"labels": object()},
    ],
    "tokenizer": [5, "/no/such/tokenizer", lambda text: [1, 2], object(), many_words],
    "sites": [
        5,
        None,
        [],
        ["nothing"],
        [5],
        [None],
        {"resid": "x"},
        {"resid": [99]},
        {"nothing": [0]},
        [""],
        ["encoder.*.nothing"],
        "nothing",
        ["cross_attn_out"],
        ["resid", 5],
        {5: [0]},
        [["resid"]],
    ],
    "layers": [
        "all",
        99,
        -99,
        [99],
        [],
        1.5,
        [1.5],
        {"nothing": [0]},
        slice("a", "b"),
        [None],
        {"resid": "x"},
        object(),
        {0: [1]},
    ],
    "dtype": [
        "int8",
        "nothing",
        5,
        object(),
        np.int32,
        torch.int8,
        "float64",
        torch.float64,
        "",
        [],
        torch.complex64,
    ],
    "keep": [
        "some",
        0,
        1,
        1.5,
        -0.5,
        None,
        True,
        {},
        {"keep": 1},
        [],
        lambda example: 5,
        lambda example: np.zeros(2, bool),
        lambda example: None,
        masks(2),
        masks(2)[:3],
        [5] * N,
        float("nan"),
        object(),
    ],
    "pool": ["average", 5, True, ["mean"], ""],
    "max_length": [0, -1, "8", 1.5, 100_000, 2, True, [8]],
    "stride": [0, -1, "x", 1000, 1.5, True],
    "batch_tokens": [0, -1, "8", 1.5, None, True, float("inf")],
    "window": [0, -1, "8", 1.5, None, True],
    "columns": [
        5,
        "label",
        {"a": [1]},
        {"a": 5},
        {"a": "x" * N},
        ["nothing"],
        {"id": texts(N)},
        {"text": texts(N)},
        {5: list(range(N))},
        {"a": [object()] * N},
        {"a": [None] * N},
        {"a/b": list(range(N))},
        {"": list(range(N))},
        {"a": [1, "x", 2, 3, 4, 5]},
        [5],
        {"a": [2**70] * N},
    ],
    "chat": [5, "{{ broken", "{% for %}", True, ["a"], "{{ 1 / 0 }}"],
    "prompt": [5, ["a"], b"x"],
    "seed": ["x", 1.5, None, [1]],
    "on_nan": ["x", 5, None, ["count"]],
    "on_empty": ["x", 5, None],
    "codec": ["zip", 5, None, ["blosc"]],
    "max_bytes": ["1GB", [], object()],
    "part": [
        5,
        "01",
        (0,),
        (2, 2),
        (-1, 2),
        ("0", "2"),
        (0.5, 2),
        (0, 0),
        (0, 1, 2),
        [None, None],
        (True, None),
    ],
    "device": ["nothing", "cuda:99", 5.5, object()],
    "threads": [-1, "x", 1.5, None, 2**70],
}

ALONG: dict[str, dict[str, Any]] = {
    "stride": {"max_length": 8},
    "seed": {"keep": 0.5},
}


def refuse(path: Path, arguments: dict[str, Any]) -> str | None:
    """What is wrong with how these are refused; None when nothing is."""
    try:
        actstore.capture(path, **arguments).close()
    except actstore.ActstoreError as error:
        text = str(error)
        if len(text) < 12 or re.search(r"Traceback|index out of range in self|unexpected keyword", text):
            return f"unhelpful: {text!r}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "taken"


@pytest.mark.parametrize("name", BAD)
def test_bad_values(memory_path: Path, name: str) -> None:
    """And the next try, with what is right, goes through."""
    wrong = []
    for i, value in enumerate(BAD[name]):
        path = memory_path / f"{i}.act"
        given = value() if value is many_words else value
        problem = refuse(path, good(**ALONG.get(name, {})) | {name: given})
        if problem is not None:
            wrong.append(f"{name}={value!r}: {problem}"[:260])
            continue
        if path.exists():
            try:
                actstore.capture(path, **good()).close()
            except actstore.ActstoreError as error:
                wrong.append(f"{name}={value!r}: the next try: {error}"[:260])
    assert not wrong, "\n".join(wrong)


PATHS: list[Any] = [None, 5, b"x", "", "a\0b", ["a"], object()]


def test_bad_paths(memory_path: Path) -> None:
    (memory_path / "file").write_text("mine")
    (memory_path / "folder").mkdir()
    (memory_path / "folder" / "mine.txt").write_text("mine")
    paths = [
        *PATHS,
        memory_path / "file",
        memory_path / "file" / "x.act",
        memory_path / "folder",
        "/proc/nothing/x.act",
    ]
    problems = {str(path): refuse(path, good(**more)) for path in paths for more in ({}, {"overwrite": True})}
    assert {path: problem for path, problem in problems.items() if problem} == {}
    assert (memory_path / "file").read_text() == "mine"
    assert (memory_path / "folder" / "mine.txt").read_text() == "mine"


TOGETHER: dict[str, dict[str, Any]] = {
    "resume and overwrite": {"resume": True, "overwrite": True},
    "chat and prompt": {"chat": "{{ messages[0]['content'] }}", "prompt": "a "},
    "a stride without a length": {"stride": 4, "tokenizer": None, "texts": ids([2, 3])},
    "text of images": {
        "model": vit,
        "texts": [np.zeros((3, 16, 16), np.float32)],
        "store_text": True,
        "tokenizer": None,
    },
    "tokens of images": {
        "model": vit,
        "texts": [np.zeros((3, 16, 16), np.float32)],
        "keep": "last",
        "tokenizer": None,
    },
    "an image of another size": {
        "model": vit,
        "texts": [np.zeros((3, 99, 7), np.float32)],
        "tokenizer": None,
    },
    "texts for images": {"model": vit, "tokenizer": None},
    "a target for no decoder": {"model": gpt2, "texts": [{"text": "a", "target": "b"}]},
    "stride with two axes": {"model": t5, "stride": 4, "max_length": 8},
    "an empty example, pooled": {"texts": [*texts(5), ""], "pool": "mean", "keep": "no-special"},
    "texts without a tokenizer": {"tokenizer": None},
    "a column of ours": {"columns": {"n_rows": list(range(N))}, "pool": "mean"},
    "ids that json does not know": {
        "texts": [{"messages": [{"role": "user", "content": b"x"}]}],
        "chat": "{{ messages[0]['content'] }}",
    },
    "too many for the model": {"model": gpt2, "texts": ids([3] * 49), "tokenizer": None},
    "a site of another width each time": {"sites": {"resid": [0, 1.5]}},
}


@pytest.mark.parametrize("what", TOGETHER)
def test_bad_together(memory_path: Path, what: str) -> None:
    more = dict(TOGETHER[what])
    if "model" in more:
        more["model"] = more["model"]()
    path = memory_path / "x.act"
    assert refuse(path, good() | more) is None
    actstore.capture(path, **good()).close()


def late(value: Any) -> list[Any]:
    """Inputs of which the last cannot be used, far beyond what is looked at first."""
    return [*texts(200), value]


def raising() -> Iterator[str]:
    """Inputs that end in an error of the user's."""
    yield from texts(200)
    raise ZeroDivisionError("mine")


@pytest.mark.parametrize("value", [None, 5, b"x", ("1", "a"), {"text": "a"}])
def test_inputs_that_are_wrong_later(memory_path: Path, value: Any) -> None:
    """When nothing has been committed nothing is in the way; the error says which input it was."""
    path = memory_path / "x.act"
    with pytest.raises(actstore.InvalidInputError, match="input 200"):
        actstore.capture(path, **good(texts=late(value)))
    with actstore.capture(path, **good()) as store:
        assert store.n_examples == N


def test_errors_of_the_users_own(memory_path: Path) -> None:
    """They come through as they are."""
    path = memory_path / "x.act"
    with pytest.raises(ZeroDivisionError, match="mine"):
        actstore.capture(path, **good(texts=raising()))
    with pytest.raises(ZeroDivisionError):
        actstore.capture(path, **good(keep=lambda example: 1 / 0))
    model, count = bert(), 0

    def fail(module: Any, args: Any) -> None:
        nonlocal count
        count += 1
        if count > 3:
            raise ZeroDivisionError("mine too")

    model.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="mine too"):
        actstore.capture(path, **good(model=model))
    with actstore.capture(path, **good()) as store:
        assert store.n_examples == N


def test_nan_is_refused_if_asked(memory_path: Path) -> None:
    path = memory_path / "x.act"
    model = bert()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[0] = torch.nan
    with pytest.raises(actstore.InvalidInputError, match=r"resid, layer 2: .* NaN .* example '0'"):
        actstore.capture(path, **good(model=model), on_nan="raise")
    with pytest.warns(actstore.CaptureWarning, match="NaN"):
        store = actstore.capture(path, **good(model=model))
    assert (store.examples["n_nonfinite"] > 0).all()
    store.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("texts", 5), ("sites", ["nothing"]), ("layers", [99]), ("dtype", "int8"), ("pool", "most"),
     ("batch_tokens", "8"), ("path", 5), ("keep", "some"), ("seed", "x"), ("max_length", -1),
     ("columns", 5), ("model", None)],
)  # fmt: skip
def test_plans_refuse_the_same(name: str, value: Any) -> None:
    more = {"keep": 0.5} if name == "seed" else {}
    arguments = {"model": bert(), "texts": texts(N), "tokenizer": tokenizer()} | more | {name: value}
    with pytest.raises(actstore.ActstoreError):
        actstore.plan(**arguments)
