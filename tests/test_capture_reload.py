"""Reloading a store's model: `recompute` and `embed` for every kind of captured store."""

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
    """Capture, and recompute the examples with the same model object."""
    store = actstore.capture(path, model, progress=False, **arguments)
    return actstore.recompute(store, n=100, model=arguments.get("again", model))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep": "no-special"},
        {"keep": "last"},
        {"keep": 0.3, "seed": 4},
        {"max_length": 9},
        {"max_length": 9, "stride": 3},
        {"max_length": 9, "stride": 3, "keep": 0.5},
        {"pool": "mean"},
        {"pool": "max", "keep": "no-special"},
        {"pool": "weighted", "max_length": 9, "stride": 3},
        {"prompt": "the "},
        {"dtype": "bfloat16"},
        {"sites": ["mlp_out", "q"], "layers": [1]},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::actstore.CaptureWarning")
@pytest.mark.parametrize("store_text", [True, False])
def test_every_option(options: dict[str, Any], store_text: bool, memory_path: Path) -> None:
    """With stored texts always; without them, only if the store has all tokens."""
    store = actstore.capture(
        memory_path / "x.act", **of_text(bert(), texts=texts(20), store_text=store_text), **options
    )
    given = (bert(), tokenizer())
    if not store_text and not {"pool", "keep", "stride"}.isdisjoint(options):
        with pytest.raises(actstore.InvalidInputError, match="store_text"):
            actstore.recompute(store, model=loaded(*given))
        return
    found = actstore.recompute(store, n=7, model=loaded(*given))
    assert found.ok
    assert len(found.examples) == 7
    assert all(of["min_cosine"] > 0.9999 for site in found.sites.values() for of in site.values())


def loaded(model: Any, tokenizer: Any = None) -> Any:
    from actstore.capturing.model.loading import load

    return load(model, tokenizer)


def test_masks(memory_path: Path) -> None:
    lengths = [len(tokenizer()(text)["input_ids"]) for text in texts(20)]
    masks = [np.arange(n) % 3 == 1 for n in lengths]
    store = actstore.capture(
        memory_path / "x.act", **of_text(bert(), texts=texts(20), keep=masks, store_text=True)
    )
    assert actstore.recompute(store, n=20, model=loaded(bert(), tokenizer())).ok


def test_chats(memory_path: Path) -> None:
    """Chats are rebuilt from token ids, because the stored text is the rendered template."""
    model, of_chat = built("gpt2"), trained_tokenizers.chat()
    given = [{"messages": messages} for messages in CHATS]
    more = {"tokenizer": of_chat, "chat": True, "store_text": True, "progress": False}
    store = actstore.capture(memory_path / "x.act", model, given, **more)
    assert "be brief" in store.examples["text"][1]
    assert actstore.recompute(store, model=loaded(model, of_chat)).ok
    store = actstore.capture(memory_path / "y.act", model, given, **more, keep="last")
    with pytest.raises(actstore.InvalidInputError, match="chats"):
        actstore.recompute(store, model=loaded(model, of_chat))


def test_ready_batches_with_more_than_ids(memory_path: Path) -> None:
    """Other inputs per token are stored as columns, and passed to the model again."""
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


def test_another_model_is_refused(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    with pytest.raises(actstore.InvalidInputError, match="not the model of the store"):
        actstore.recompute(store, model=bert(seed=1))
    with pytest.raises(actstore.NotFoundError, match="record a name"):
        actstore.recompute(store)


def test_stores_that_cannot_be_recomputed(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", vit(), images(3), progress=False)
    with pytest.raises(actstore.InvalidInputError, match="stores neither"):
        actstore.recompute(store, model=vit())
    spec = actstore.SiteSpec(2, 4, "float32")
    with actstore.create(memory_path / "y.act", {"resid": spec}) as writer:
        writer.append({"resid": np.zeros((2, 2, 4), np.float32)}, [2])
    with pytest.raises(actstore.InvalidInputError, match="capture did not write it"):
        actstore.recompute(actstore.open(memory_path / "y.act"), model=bert())
    for n in (0, -1, "a", 1.5):
        with pytest.raises(actstore.InvalidInputError, match="n:"):
            actstore.recompute(store, n=n, model=vit())


@pytest.mark.parametrize("pool", [None, "mean", "last", "max"])
@pytest.mark.parametrize("options", [{}, {"keep": "no-special"}, {"pool": "mean"}], ids=str)
def test_embedding_a_text_of_the_store_is_its_row(
    pool: str | None, options: dict[str, Any], memory_path: Path
) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(gpt2(), texts=texts(300)), **options)
    if "pool" in options:
        pool = None
        rows = store["resid"].read()
    else:
        rows = store["resid"].pool(pool or "mean").read()  # type: ignore[arg-type]
    vectors = actstore.embed(store, texts(300), pool=pool, model=loaded(gpt2(), tokenizer()))
    np.testing.assert_allclose(vectors.read(), rows, atol=1e-5)
    one = actstore.embed(store, texts(300)[7:8], pool=pool, layers=1, model=loaded(gpt2(), tokenizer()))
    np.testing.assert_allclose(one.read(), rows[7:8, 1:2], atol=1e-5)


def test_invalid_arguments_of_embed(memory_path: Path) -> None:
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
    message = "1 of 2 texts are longer than 32 tokens and were truncated"
    with pytest.warns(actstore.CaptureWarning, match=message):
        actstore.embed(store, ["a cat", "a dog " * 40], model=model)
    with torch.inference_mode():
        assert actstore.embed(store, ["a cat"], model=model).dtype == np.float32


def test_embeddings_are_sites(memory_path: Path) -> None:
    """With the layer labels and ids that a search of the store's site needs."""
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    model = loaded(bert(), tokenizer())
    vectors = actstore.embed(store, [("a", "a cat"), ("b", "a dog")], model=model, layers=[1, 2])
    assert isinstance(vectors, actstore.Site)
    assert (vectors.axis, vectors.layers, list(vectors.ids)) == ("examples", [1, 2], ["a", "b"])
    assert list(actstore.embed(store, ["a cat", "a dog"], model=model).ids) == ["0", "1"]
    hits = store["resid"].select(layers=[1, 2]).pool("mean").search(vectors, k=1, metric="dot", combine="sum")
    assert len(hits.ids) == 2


@pytest.mark.parametrize("special", [True, False])
def test_token_embeddings_are_sites(special: bool, memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    tokens = actstore.embed_tokens(store, texts(8)[:2], model=loaded(bert(), tokenizer()), special=special)
    ids = [tokenizer()(text)["input_ids"][slice(None) if special else slice(1, -1)] for text in texts(8)[:2]]
    assert (tokens.axis, tokens.layers, list(tokens.ids)) == ("tokens", store["resid"].layers, ["0", "1"])
    assert tokens.offsets.tolist() == [0, len(ids[0]), len(ids[0]) + len(ids[1])]
    assert tokens.column("id").tolist() == ids[0] + ids[1]
    assert tokens.column("position")[0] == (0 if special else 1)
    assert tokens.column("special").any() == special
    rows = store["resid"].example(1)[slice(None) if special else slice(1, -1)]
    np.testing.assert_allclose(tokens.example(1), rows, atol=1e-5)
    assert store["resid"].maxsim(tokens, k=1, metric="dot", combine="sum").ids[1] == ["1"] or not special


def test_a_loaded_model_is_compared_with_the_store(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loaded it; its weights are hashed once, and again after they change."""
    from actstore.capturing.model import loading

    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(8)))
    with pytest.raises(actstore.InvalidInputError, match="not the model of the store"):
        actstore.embed(store, ["a cat"], model=loaded(bert(seed=3), tokenizer()))
    with pytest.raises(actstore.InvalidInputError, match="not the model of the store"):
        actstore.recompute(store, model=loaded(bert(seed=3), tokenizer()))
    n_hashed = 0

    def counted(*args: Any, **keywords: Any) -> str:
        nonlocal n_hashed
        n_hashed += 1
        return weights_hash(*args, **keywords)

    weights_hash = loading.weights_hash
    monkeypatch.setattr(loading, "weights_hash", counted)
    model = loaded(bert(), tokenizer())
    for _ in range(3):
        actstore.embed(store, ["a cat"], model=model)
    assert n_hashed == 1
    with torch.no_grad():
        next(model.model.parameters()).add_(1)
    with pytest.raises(actstore.InvalidInputError, match="not the model of the store"):
        actstore.embed(store, ["a cat"], model=model)


@pytest.mark.parametrize("source", [list, iter])
def test_each_text_is_tokenized_once(source: Any, memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the dry run, the estimate and the capture together."""
    tokenized: list[str] = []
    own = tokenizer()
    call = type(own).__call__

    def counting(self: Any, *args: Any, **keywords: Any) -> Any:
        tokenized.extend(keywords["text"])
        return call(self, *args, **keywords)

    monkeypatch.setattr(type(own), "__call__", counting)
    many = texts(700)
    arguments = of_text(bert(), texts=source(many)) | {"tokenizer": own}
    store = actstore.capture(memory_path / "x.act", **arguments)
    assert sorted(tokenized) == sorted(many)
    assert store.n_examples == 700
    tokenized.clear()
    actstore.embed(store, many[:300], model=loaded(bert(), own))
    assert sorted(tokenized) == sorted(many[:300])


@pytest.mark.parametrize("name", ["embed", "embed_tokens", "recompute"])
@pytest.mark.parametrize("store", ["run.act", Path("run.act"), 5, None], ids=str)
def test_what_is_no_store(name: str, store: Any) -> None:
    arguments = () if name == "recompute" else (["a cat"],)
    with pytest.raises(actstore.InvalidInputError, match="expected an open Store, got") as caught:
        getattr(actstore, name)(store, *arguments)
    assert (caught.value.hint == "actstore.open(path)") == isinstance(store, str | Path)


def test_a_pooling_is_checked_before_a_model_is_loaded(memory_path: Path) -> None:
    store = actstore.capture(memory_path / "x.act", **of_text(bert(), texts=texts(3)), pool="cls")
    assert store.identity["pool"] == "first"
    for pool in ("", "modes", 0):
        with pytest.raises(actstore.InvalidInputError, match="pool"):
            actstore.embed(store, ["a cat"], pool=pool, model="/no/such/model")
    first, mean = (
        actstore.embed(store, ["a cat"], pool=pool, model=loaded(bert(), tokenizer())).read()
        for pool in (None, "mean")
    )
    assert not np.allclose(first, mean)
