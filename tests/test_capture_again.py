"""Once more as it was captured: `recompute` and `embed` from Python, of all that a store can hold."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import trained_tokenizers
from capture_cases import bert, gpt2, images, of_text, t5, texts, tokenizer, vit
from capture_models import built

CHATS = [
    [{"role": "user", "content": "hello there"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "what is a cat"}],
]


def recomputed(path: Path, model: Any, **arguments: Any) -> Any:
    """A capture, and what is found when its examples are computed again by the same object."""
    store = actstore.capture(path, model, progress=False, **arguments)
    return actstore.recompute(store, n=100, model=arguments.get("again", model))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"tokens": "no-special"},
        {"tokens": "last"},
        {"tokens": 0.3, "seed": 4},
        {"max_length": 9},
        {"max_length": 9, "stride": 3},
        {"max_length": 9, "stride": 3, "tokens": 0.5},
        {"pool": "mean"},
        {"pool": "max", "tokens": "no-special"},
        {"pool": "weighted", "max_length": 9, "stride": 3},
        {"prompt": "the "},
        {"dtype": "bfloat16"},
        {"sites": ["mlp_out", "q"], "layers": [1]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::actstore.CaptureWarning")
@pytest.mark.parametrize("store_text", [True, False])
def test_whatever_was_asked(how: dict[str, Any], store_text: bool, memory_path: Path) -> None:
    """All of it with the texts; without them, where all tokens are there."""
    store = actstore.capture(
        memory_path / "x.act", **of_text(bert(), texts=texts(20), store_text=store_text), **how
    )
    given = (bert(), tokenizer())
    if not store_text and not {"pool", "tokens", "stride"}.isdisjoint(how):
        with pytest.raises(actstore.InvalidInputError, match="store_text"):
            actstore.recompute(store, model=loaded(*given))
        return
    found = actstore.recompute(store, n=7, model=loaded(*given))
    assert found.ok
    assert len(found.examples) == 7
    assert all(of["min_cosine"] > 0.9999 for site in found.sites.values() for of in site.values())


def loaded(model: Any, tokenizer: Any = None) -> Any:
    from actstore.capture.loading import load

    return load(model, tokenizer)


def test_masks(memory_path: Path) -> None:
    lengths = [len(tokenizer()(text)["input_ids"]) for text in texts(20)]
    masks = [np.arange(n) % 3 == 1 for n in lengths]
    store = actstore.capture(
        memory_path / "x.act", **of_text(bert(), texts=texts(20), tokens=masks, store_text=True)
    )
    assert actstore.recompute(store, n=20, model=loaded(bert(), tokenizer())).ok


def test_chats(memory_path: Path) -> None:
    """By their tokens: what is stored of the text is what the template made of it."""
    model, of_chat = built("gpt2"), trained_tokenizers.chat()
    given = [{"messages": messages} for messages in CHATS]
    more = {"tokenizer": of_chat, "chat": True, "store_text": True, "progress": False}
    store = actstore.capture(memory_path / "x.act", model, given, **more)
    assert "be brief" in store.examples["text"][1]
    assert actstore.recompute(store, model=loaded(model, of_chat)).ok
    store = actstore.capture(memory_path / "y.act", model, given, **more, tokens="last")
    with pytest.raises(actstore.InvalidInputError, match="chats"):
        actstore.recompute(store, model=loaded(model, of_chat))


def test_ready_batches_with_more_than_ids(memory_path: Path) -> None:
    """What else the model was given of each token is kept, and given again."""
    batch = {
        "input_ids": [[2, 5, 6, 3, 7, 3], [2, 5, 3, 8, 3, 0]],
        "token_type_ids": [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]],
        "attention_mask": [[1] * 6, [1] * 5 + [0]],
    }
    model = bert()
    store = actstore.capture(memory_path / "x.act", model, batch, progress=False)
    assert store.tokens["token_type_ids"].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    assert actstore.recompute(store, model=loaded(model)).ok
    odd = [batch, {key: value for key, value in batch.items() if key != "token_type_ids"}]
    with pytest.raises(actstore.InvalidInputError, match="token_type_ids"):
        actstore.capture(memory_path / "y.act", model, odd, progress=False)


def test_two_streams(memory_path: Path) -> None:
    given = [{"text": a, "target": b} for a, b in zip(texts(8), texts(8, 1), strict=True)]
    store = actstore.capture(memory_path / "x.act", **of_text(t5(), texts=given, store_text=True))
    found = actstore.recompute(store, model=loaded(t5(), tokenizer()))
    assert found.ok
    assert {"encoder.resid", "decoder.resid"} <= set(found.sites)


def test_another_model_is_seen(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    with pytest.raises(actstore.InvalidInputError, match="another model"):
        actstore.recompute(store, model=bert(seed=1))
    with pytest.raises(actstore.NotFoundError, match="by which name"):
        actstore.recompute(store)


def test_what_cannot_be_computed_again(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", vit(), images(3), progress=False)
    with pytest.raises(actstore.InvalidInputError, match="does not hold"):
        actstore.recompute(store, model=vit())
    spec = actstore.SiteSpec(2, 4, "float32")
    with actstore.create(memory_path / "y.act", {"resid": spec}) as writer:
        writer.append({"resid": np.zeros((2, 2, 4), np.float32)}, [2])
    with pytest.raises(actstore.InvalidInputError, match="not written by capture"):
        actstore.recompute(actstore.open(memory_path / "y.act"), model=bert())
    for n in (0, -1, "a", 1.5):
        with pytest.raises(actstore.InvalidInputError, match="n:"):
            actstore.recompute(store, n=n, model=vit())


@pytest.mark.parametrize("pool", [None, "mean", "last", "max"])
@pytest.mark.parametrize("how", [{}, {"tokens": "no-special"}, {"pool": "mean"}], ids=str)
def test_embedding_a_text_of_the_store_is_its_row(
    pool: str | None, how: dict[str, Any], memory_path: Path
) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(gpt2(), texts=texts(300)), **how)
    if "pool" in how:
        pool = None
        rows = store["resid"].read()
    else:
        rows = store["resid"].pool(pool or "mean").read()  # type: ignore[arg-type]
    vectors = actstore.embed(store, texts(300), pool=pool, model=loaded(gpt2(), tokenizer()))
    np.testing.assert_allclose(vectors, rows, atol=1e-5)
    one = actstore.embed(store, texts(300)[7:8], pool=pool, layers=1, model=loaded(gpt2(), tokenizer()))
    np.testing.assert_allclose(one, rows[7:8, 1:2], atol=1e-5)


def test_what_cannot_be_embedded(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    model = loaded(bert(), tokenizer())
    assert actstore.embed(store, [], model=model).shape == (0, 3, 16)
    for wrong, error in (
        ({"texts": "one"}, actstore.InvalidInputError),
        ({"texts": [5]}, actstore.InvalidInputError),
        ({"site": "nothing"}, actstore.NotFoundError),
        ({"layers": 9}, actstore.NotFoundError),
        ({"pool": "median"}, actstore.InvalidInputError),
        ({"model": bert(seed=2)}, actstore.InvalidInputError),
    ):
        arguments = {"texts": ["a cat"], "model": model} | wrong
        with pytest.raises(error):
            actstore.embed(store, arguments.pop("texts"), **arguments)
    with pytest.warns(actstore.CaptureWarning, match="1 of 2 texts are longer than 32 tokens and were cut"):
        actstore.embed(store, ["a cat", "a dog " * 40], model=model)
    with torch.inference_mode():
        assert actstore.embed(store, ["a cat"], model=model).dtype == np.float32
