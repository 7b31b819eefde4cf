"""Going on with a capture: what is refused, by what name; what is not; nothing is lost either way."""

import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from capture_cases import (
    assert_beginning,
    assert_same,
    bert,
    contents,
    files_of,
    gpt2,
    of_text,
    ready_batches,
    texts,
    tokenizer,
    with_columns,
)
from tiny_models import write_tokenizer

N = 60


def asked(**more: Any) -> dict[str, Any]:
    """What the stores here were captured with."""
    return of_text(bert(), texts=with_columns(N), sites=["resid", "mlp_out"], max_length=28) | more


def capture(path: Path, **arguments: Any) -> None:
    """Captures and closes."""
    actstore.capture(path, **arguments).close()


def interrupted(path: Path, n_batches: int, after: int = 64, **arguments: Any) -> int:
    """Ctrl-C so many batches after `after` inputs have been read; how many examples there are."""
    count = 0
    model = arguments["model"]
    started = threading.Event()

    def watched(texts: Any) -> Iterator[Any]:
        for i, text in enumerate(texts):
            if i >= after:
                started.set()
            yield text

    def hook(module: Any, args: Any) -> None:
        nonlocal count
        count += started.is_set()
        if count == n_batches:
            signal.raise_signal(signal.SIGINT)

    handle = model.register_forward_pre_hook(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            capture(path, **arguments | {"texts": watched(arguments["texts"])})
    finally:
        handle.remove()
    with actstore.open(path) as store:
        return store.n_examples


@pytest.fixture(scope="module")
def finished(memory_folder: Path) -> Path:
    """A finished capture of 60 examples."""
    capture(memory_folder / "finished.act", **asked())
    return memory_folder / "finished.act"


@pytest.fixture
def path(finished: Path, memory_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(finished, memory_path / "x.act")


def other_weight() -> Any:
    model = bert()
    with torch.no_grad():
        model.encoder.layer[1].output.dense.weight[3, 2] += 1e-3
    return model


def other_tokenizer(folder: Path) -> Any:
    return write_tokenizer(
        folder, words="cat dog the a of to and in is it on for with as by at from this that be"
    )


MORE = with_columns(N + 20)

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a weight": ({"model": other_weight}, r"model\.weights"),
    "a class": ({"model": gpt2}, r"model\."),
    "dtype of the model": ({"model": lambda: bert().to(torch.bfloat16)}, r"model\.|dtype"),
    "max_length": ({"max_length": 12}, r"truncation\.max_length.* 28.* 12"),
    "stride": ({"stride": 4}, r"truncation\.stride.* null.* 4"),
    "keep": ({"keep": "no-special"}, r"keep.*all.*no-special"),
    "share": ({"keep": 0.5}, r"keep"),
    "dtype": ({"dtype": "float16"}, r"dtype.*float16"),
    "pool": ({"pool": "mean"}, r"pool.* null.*mean"),
    "sites": ({"sites": ["resid"]}, r"sites"),
    "other sites": ({"sites": ["resid", "attn_out"]}, r"sites"),
    "layers": ({"layers": {"resid": [0, 2], "mlp_out": [0]}}, r"sites"),
    "prompt": ({"prompt": "the "}, r"template\.prompt.*null.*the "),
    "chat": ({"chat": "{{ messages[0]['content'] }}"}, r"template\.chat"),
    "a text": ({"texts": [*MORE[:30], MORE[30] | {"text": "the cat"}, *MORE[31:]]}, "inputs.*differ"),
    "the last text": ({"texts": [*MORE[:59], MORE[59] | {"text": "the cat"}]}, "inputs.*differ"),
    "an id": ({"texts": [MORE[0] | {"id": "other"}, *MORE[1:]]}, "inputs.*differ"),
    "order": ({"texts": [*MORE[:10], MORE[11], MORE[10], *MORE[12:]]}, "inputs.*differ"),
    "fewer": ({"texts": MORE[: N - 1]}, "60.*59"),
    "none": ({"texts": []}, "60"),
    "another form": ({"texts": [one["text"] for one in MORE]}, "inputs.*differ|columns"),
    "fewer columns": ({"columns": ["label"]}, "columns"),
    "text as well": ({"store_text": True}, "columns"),
    "more columns": ({"columns": {"more": list(range(N + 20))}}, "columns"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(path: Path, what: str) -> None:
    """And nothing of the store is touched, nor is it locked afterward."""
    before = files_of(path)
    more, message = REFUSED[what]
    made = {"model": more["model"]()} if "model" in more else {}
    with pytest.raises(actstore.InvalidInputError, match=message) as raised:
        capture(path, **asked() | {"texts": MORE} | more | made, resume=True)
    assert str(path) in str(raised.value)
    assert files_of(path) == before
    with actstore.append(path) as writer:
        assert writer.n_examples == N


def test_another_tokenizer_is_refused(path: Path, tmp_path: Path) -> None:
    before = files_of(path)
    with pytest.raises(actstore.InvalidInputError, match=r"tokenizer\.hash"):
        capture(path, **asked(tokenizer=other_tokenizer(tmp_path)), resume=True)
    assert files_of(path) == before


def test_another_seed_or_mask_is_refused(memory_path: Path) -> None:
    path = memory_path / "share.act"
    capture(path, **asked(keep=0.5, seed=1))
    for more, what in (
        ({"seed": 2}, "seed"),
        ({"keep": 0.25}, "keep"),
        ({"keep": np.float32(0.25)}, "keep"),
    ):
        with pytest.raises(actstore.InvalidInputError, match=what):
            capture(path, **asked(texts=MORE, keep=0.5, seed=1) | more, resume=True)
    path = memory_path / "mask.act"
    lengths = [len(tokenizer()(one["text"])["input_ids"]) for one in MORE]
    masks = [np.arange(n) % 2 == 0 for n in lengths]
    capture(path, **asked(keep=masks))
    with pytest.raises(actstore.InvalidInputError, match="tokens"):
        capture(path, **asked(texts=MORE, keep=[~mask for mask in masks]), resume=True)
    capture(path, **asked(texts=MORE, keep=masks), resume=True)


def test_a_store_that_capture_did_not_write_is_refused(memory_path: Path) -> None:
    path = memory_path / "own.act"
    spec = actstore.SiteSpec(3, 16, "float32")
    with actstore.create(path, {"resid": spec}) as writer:
        writer.append({"resid": np.zeros((2, 3, 16), np.float32)}, [2])
    before = files_of(path)
    with pytest.raises(actstore.InvalidInputError, match="resume"):
        capture(path, **asked(sites=["resid"]), resume=True)
    assert files_of(path) == before


def test_resume_and_overwrite_are_one_or_the_other(path: Path) -> None:
    before = files_of(path)
    with pytest.raises(actstore.InvalidInputError, match="overwrite"):
        capture(path, **asked(), resume=True, overwrite=True)
    with pytest.raises(actstore.StorageError) as raised:
        capture(path, **asked())
    assert raised.value.kind == "exists"
    assert files_of(path) == before
    capture(path, **asked(texts=MORE[:5]), overwrite=True)
    assert contents(path)["n_examples"] == 5


# ---- accepted ----


def test_a_finished_capture_has_nothing_to_do(path: Path) -> None:
    before = files_of(path)
    n = 0

    def count(module: Any, args: Any) -> None:
        nonlocal n
        n += 1

    arguments = asked()
    arguments["model"].register_forward_pre_hook(count)
    capture(path, **arguments, resume=True)
    assert files_of(path) == before
    assert n <= 2, "the model need only be looked at"


def test_more_texts_after_the_old(path: Path) -> None:
    """From another batch size and as an iterator; ids and positions go on."""
    capture(path, **asked(texts=iter(MORE), batch_tokens=200, window=3), resume=True)
    found = contents(path)
    assert found["examples/id"][1] == [one["id"] for one in MORE]
    whole = path.with_name("whole.act")
    capture(whole, **asked(texts=MORE))
    expected = contents(whole)
    for name in expected:
        if name not in ("resid", "mlp_out"):
            assert found[name] == expected[name], name
    with actstore.open(path) as ours, actstore.open(whole) as theirs:
        for name in ours.sites:
            np.testing.assert_allclose(ours[name].read(), theirs[name].read(), atol=1e-5)


def test_a_path_that_does_not_exist(memory_path: Path) -> None:
    path = memory_path / "new" / "x.act"
    capture(path, **asked(), resume=True)
    assert contents(path)["n_examples"] == N


def test_other_names_and_layers_said_otherwise(path: Path) -> None:
    """What is the same is the same, whatever one calls it."""
    same = {"sites": ("resid", "mlp_out"), "layers": {"resid": slice(0, 3)}, "dtype": "float32"}
    capture(path, **asked(texts=MORE) | same, resume=True)
    assert contents(path)["n_examples"] == N + 20


@pytest.mark.parametrize("more", [{"batch_tokens": 16}, {"batch_tokens": 500}, {"window": 1}, {"window": 50}])
def test_another_batch_size_from_within_a_window(memory_path: Path, more: dict[str, int]) -> None:
    """However far the windows of before went."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    # The longest first, as batches go as well: so half of the batches are half of a window.
    arguments = of_text(bert(), texts=sorted(texts(150), key=len, reverse=True), window=16)
    capture(whole, **arguments)
    n = interrupted(path, 12, **arguments)
    with actstore.append(path) as writer:
        assert writer.note["window"] <= n - 12
    capture(path, **arguments | more, resume=True)
    found, expected = contents(path), contents(whole)
    assert found["examples/id"] == expected["examples/id"]
    assert found["tokens/id"] == expected["tokens/id"]
    with actstore.open(path) as ours, actstore.open(whole) as theirs:
        np.testing.assert_allclose(ours["resid"].read(), theirs["resid"].read(), atol=1e-5)


def test_within_a_ready_batch_with_columns(memory_path: Path) -> None:
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    arguments = of_text(gpt2(), texts=ready_batches(200)) | {"tokenizer": None}
    capture(whole, **arguments)
    interrupted(path, 3, 30, **arguments)
    assert 0 < assert_beginning(path, whole) < 200
    other = [dict(one) for one in ready_batches(200)]
    other[0]["input_ids"] = other[0]["input_ids"] + other[0]["attention_mask"]
    with pytest.raises(actstore.InvalidInputError, match="differ"):
        capture(path, **arguments | {"texts": other}, resume=True)
    capture(path, **arguments, resume=True)
    assert_same(path, whole)


def test_a_capture_stopped_again_and_again(memory_path: Path) -> None:
    """Ctrl-C after each few batches; once more than there is to do."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=with_columns(150), store_text=True, window=3)
    capture(whole, **arguments)
    found = interrupted(path, 3, **arguments)
    count = 0
    while found < 150 and count < 30:
        count += 1
        handle = arguments["model"].register_forward_pre_hook(_after(25))
        try:
            capture(path, **arguments, resume=True)
        except KeyboardInterrupt:
            now = assert_beginning(path, whole)
            assert now >= found
            found = now
        else:
            break
        finally:
            handle.remove()
    assert count > 1
    capture(path, **arguments, resume=True)
    assert_same(path, whole)


def _after(n: int) -> Any:
    count = 0

    def hook(module: Any, args: Any) -> None:
        nonlocal count
        count += 1
        if count == n:
            signal.raise_signal(signal.SIGINT)

    return hook


def test_no_examples_and_then_some(memory_path: Path) -> None:
    path = memory_path / "x.act"
    capture(path, **asked(texts=[]))
    assert contents(path)["n_examples"] == 0
    capture(path, **asked(), resume=True)
    capture(memory_path / "whole.act", **asked())
    assert_same(path, memory_path / "whole.act")


def test_a_locked_store(path: Path) -> None:
    with actstore.append(path), pytest.raises(actstore.StorageError) as raised:
        capture(path, **asked(texts=MORE), resume=True)
    assert raised.value.kind == "locked"
    capture(path, **asked(texts=MORE), resume=True)


def test_a_refused_overwrite_leaves_what_is_there(path: Path) -> None:
    """The old store goes when the new one has been found to be possible, not before."""
    before = files_of(path)
    for more in (
        {"max_bytes": 10},
        {"sites": ["nothing"]},
        {"layers": [99]},
        {"dtype": "int8"},
        {"texts": [None]},
    ):
        with pytest.raises(actstore.ActstoreError):
            capture(path, **asked() | more, overwrite=True)
        assert files_of(path) == before, more
