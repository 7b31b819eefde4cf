"""Whatever a batch looks like, each token's row is that of its sequence alone: ragged, or padded anywhere."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import trained_tokenizers
from capture_models import FAMILIES, REQUIRED, batch, built, fresh, pad_id, padded, sequences
from capture_oracle import STREAMS, truth

TEXTED = [name for name in STREAMS if FAMILIES[name].kind != "images"]
TOKENIZERS = {
    "bert": "wordpiece",
    "distilbert": "wordpiece",
    "deberta": "wordpiece",
    "t5": "t5",
    "llama": "llama",
}
TOKENIZERS |= dict.fromkeys(("mistral", "qwen3", "gemma", "mixtral"), "llama")
TOKENIZERS |= dict.fromkeys(("roberta", "mpnet", "bart", "modernbert"), "roberta")
SITES = ("resid", "attn_out", "mlp_out", "mixer_out", "q", "k_rot", "z", "final", "logits")
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def sites_of(name: str) -> list[str]:
    """Some sites of each kind."""
    out = []
    for stream, where in STREAMS[name].items():
        there = {
            "resid",
            *where.parts,
            *(["final"] if where.norm else []),
            *(["logits"] if where.logits else []),
        }
        out += [f"{stream}.{s}" if stream and s != "logits" else s for s in SITES if s in there]
    return out


def texts(n: int = 24) -> list[str]:
    """Of many lengths, long and short in turn, no two alike."""
    words = " ".join(trained_tokenizers.docstrings())
    lengths = [(7 * i) % 23 * 3 + 1 for i in range(n)]
    return [words[97 * i : 97 * i + length] for i, length in enumerate(lengths)]


def alone(name: str, ids: Any, decoder: Any = None, **others: Any) -> dict[str, np.ndarray]:
    """By site, the rows ``[T, L, D]`` of one sequence by itself."""
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]}
    if decoder is not None:
        inputs |= {"decoder_input_ids": decoder[None]}
    inputs |= {key: value[None] for key, value in others.items()}
    layers = truth(name, built(name), inputs)
    return {site: torch.stack([t[0] for t in of.values()], 1).numpy() for site, of in layers.items()}


def assert_rows(store: actstore.Store, i: int | str, expected: dict[str, np.ndarray], **near: Any) -> None:
    for site in store.sites:
        np.testing.assert_allclose(
            store[site].example(i), expected[site], err_msg=f"{site} of {i}", **(near or NEAR)
        )


@pytest.mark.parametrize("name", TEXTED)
def test_ragged_texts_are_as_each_alone(name: str, memory_path: Path) -> None:
    tokenizer = trained_tokenizers.ALL[TOKENIZERS.get(name, "gpt2")]()
    many, model = texts(), built(name)
    inputs: list[Any] = [(f"text {i}", text) for i, text in enumerate(many)]
    if "decoder" in STREAMS[name]:
        inputs = [
            {"id": f"text {i}", "text": text, "target": other}
            for i, (text, other) in enumerate(zip(many, many[::-1], strict=True))
        ]
    store = actstore.capture(
        memory_path / "run.act",
        model,
        inputs,
        tokenizer=tokenizer,
        sites=sites_of(name),
        batch_tokens=90,
        window=2,
        progress=False,
    )
    assert list(store.examples["id"]) == [f"text {i}" for i in range(len(many))]
    for i, text in enumerate(many):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        decoder = None
        if "decoder" in STREAMS[name]:
            labels = torch.tensor([tokenizer(text_target=many[-1 - i])["input_ids"]])
            decoder = shifted(model, labels)[0]
            assert store.axes["decoder"]["id"][slice(*span(store, "decoder", i))].tolist() == decoder.tolist()
        axis = "encoder" if "decoder" in STREAMS[name] else "tokens"
        assert store.axes[axis]["id"][slice(*span(store, axis, i))].tolist() == ids.tolist()
        assert_rows(store, i, alone(name, ids, decoder))


def shifted(model: Any, labels: Any) -> Any:
    """What transformers makes a decoder's input of labels."""
    if hasattr(model, "_shift_right"):
        return model._shift_right(labels)
    return model.prepare_decoder_input_ids_from_labels(labels)


def span(store: actstore.Store, axis: str, i: int) -> tuple[int, int]:
    offset = store.axes[axis].offsets
    return int(offset[i]), int(offset[i + 1])


@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("name", TEXTED)
def test_padding_anywhere_leaves_no_trace(name: str, side: str, memory_path: Path) -> None:
    """Also where the model counts positions from the first column of the batch, as GPT-2 does."""
    lengths = (9, 1, 12, 5)
    rows, others = sequences(lengths), sequences([n + 1 for n in lengths[::-1]], 1)
    ids, mask = padded(rows, pad_id(built(name)), side, 14)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if "decoder" in STREAMS[name]:
        pair = padded(others, pad_id(built(name)), side, 15)
        inputs |= dict(zip(("decoder_input_ids", "decoder_attention_mask"), pair, strict=True))
    store = actstore.capture(
        memory_path / "run.act", built(name), inputs, sites=sites_of(name), progress=False
    )
    for i, row in enumerate(rows):
        assert_rows(store, i, alone(name, row, others[i] if "decoder" in STREAMS[name] else None))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "roberta", "mamba", "opt"])
def test_a_token_may_have_the_paddings_id(name: str, memory_path: Path) -> None:
    """As in GPT-2 and Llama, whose padding is the end of text; at either end and within."""
    pad = pad_id(built(name))
    rows = [torch.tensor(row) for row in ([7, 8, pad], [9, pad, pad, 11, 12, 13], [pad, 5], [pad])]
    ids, mask = padded(rows, pad, "left")
    inputs = {"input_ids": ids, "attention_mask": mask}
    store = actstore.capture(memory_path / "run.act", built(name), inputs, sites=["resid"], progress=False)
    assert np.diff(store.tokens.offsets).tolist() == [3, 6, 2, 1]
    for i, row in enumerate(rows):
        assert_rows(store, i, alone(name, row))


def test_the_padding_id_does_not_matter(memory_path: Path) -> None:
    """The tokenizer's, the config's, none at all: right of the last token it is not seen."""
    stores = []
    for pad in (None, 0, 13):
        model = fresh("llama", pad_token_id=pad)
        batches = [batch("llama", side="left")]
        stores.append(
            actstore.capture(memory_path / f"{pad}", model, batches, progress=False)["resid"].read()
        )
    np.testing.assert_array_equal(stores[0], stores[1])
    np.testing.assert_array_equal(stores[0], stores[2])


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_side_a_tokenizer_pads_does_not_matter(name: str, memory_path: Path) -> None:
    tokenizer = trained_tokenizers.ALL[TOKENIZERS.get(name, "gpt2")]()
    before = tokenizer.padding_side
    stores = []
    try:
        for side in ("left", "right"):
            tokenizer.padding_side = side
            stores.append(
                actstore.capture(
                    memory_path / side, built(name), texts(6), tokenizer=tokenizer, progress=False
                )
            )
            assert tokenizer.padding_side == side
    finally:
        tokenizer.padding_side = before
    np.testing.assert_array_equal(stores[0]["resid"].read(), stores[1]["resid"].read())
    assert stores[0].tokens["id"].tolist() == stores[1].tokens["id"].tolist()


def test_token_types_are_for_models_that_have_them(memory_path: Path) -> None:
    """GPT-2 would add the embedding of token 0 or 1 to each."""
    rows = sequences([6, 3])
    types = [torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([1, 0, 0])]
    ids, mask = padded(rows, 0, "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": padded(types, 0, "left")[0]}
    for name in ("gpt2", "bert"):
        store = actstore.capture(memory_path / name, built(name), inputs, progress=False)
        for i, row in enumerate(rows):
            assert_rows(store, i, alone(name, row, **{"token_type_ids": types[i]} if name == "bert" else {}))
    tokenizer = trained_tokenizers.gpt2()
    before = tokenizer.model_input_names
    try:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
        assert "token_type_ids" in tokenizer("one")
        store = actstore.capture(
            memory_path / "text", built("gpt2"), texts(4), tokenizer=tokenizer, progress=False
        )
    finally:
        tokenizer.model_input_names = before
    for i, text in enumerate(texts(4)):
        assert_rows(store, i, alone("gpt2", torch.tensor(tokenizer(text)["input_ids"])))


def test_positions_of_a_ready_batch_are_its_own(memory_path: Path) -> None:
    rows = sequences([6, 3])
    positions = [torch.tensor([5, 6, 7, 8, 9, 10]), torch.tensor([0, 2, 4])]
    ids, mask = padded(rows, 0, "left")
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": padded(positions, 0, "left")[0]}
    store = actstore.capture(memory_path / "run.act", built("gpt2"), inputs, progress=False)
    for i, row in enumerate(rows):
        assert_rows(store, i, alone("gpt2", row, position_ids=positions[i]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_ragged_texts_in_half_precision(name: str, dtype: str, memory_path: Path) -> None:
    """As each alone, but for the rounding of the model itself."""
    tokenizer = trained_tokenizers.ALL[TOKENIZERS.get(name, "gpt2")]()
    model, many = fresh(name).to(getattr(torch, dtype)), texts()
    store = actstore.capture(
        memory_path / "run.act", model, many, tokenizer=tokenizer, batch_tokens=90, window=2, progress=False
    )
    assert store["resid"].dtype.name == dtype
    exact = built(name)
    for i, text in enumerate(many):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = exact(input_ids=ids, output_hidden_states=True).hidden_states
        got = store["resid"].example(i)
        wanted = torch.stack([state[0] for state in states], 1).numpy()
        last = -1 if name != "bert" else None  # The last of the others is after the final norm.
        error = np.abs(got.astype(np.float32)[:, :last] - wanted[:, :last]).max()
        assert error < (0.15 if dtype == "bfloat16" else 0.02)


def test_examples_without_tokens_keep_their_place(memory_path: Path) -> None:
    tokenizer = trained_tokenizers.gpt2()
    many = ["", "one two", "", "", "three", ""]
    store = actstore.capture(
        memory_path / "run.act", built("gpt2"), many, tokenizer=tokenizer, batch_tokens=2, progress=False
    )
    lengths = [len(tokenizer(text)["input_ids"]) for text in many]
    assert np.diff(store.tokens.offsets).tolist() == lengths
    assert lengths[0] == 0
    for i in (1, 4):
        assert_rows(store, i, alone("gpt2", torch.tensor(tokenizer(many[i])["input_ids"])))


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5"])
def test_several_ready_batches(name: str, memory_path: Path) -> None:
    """They stay as they are: each has the bits of a pass of its own."""
    shapes = [(9, 4, 7), (3,), (12, 12), (1, 2, 3, 4)]
    batches = [batch(name, [n + 2 for n in lengths]) for lengths in shapes]
    site = "decoder.resid" if name == "t5" else "resid"
    store = actstore.capture(
        memory_path / "run.act", built(name), batches, sites=[site], batch_tokens=8, window=1, progress=False
    )
    wanted = []
    for one in batches:
        mask = one["decoder_attention_mask" if name == "t5" else "attention_mask"].bool()
        layers = truth(name, built(name), one)[site]
        wanted.append(torch.stack([tensor[mask] for tensor in layers.values()], 1))
    np.testing.assert_array_equal(store[site].read(), torch.cat(wanted).numpy())
    assert store.n_examples == sum(map(len, shapes))


def test_a_decoder_without_a_target_has_its_start(memory_path: Path) -> None:
    tokenizer, many = trained_tokenizers.t5(), texts(5)
    store = actstore.capture(
        memory_path / "run.act", built("t5"), many, tokenizer=tokenizer, sites=sites_of("t5"), progress=False
    )
    for i, text in enumerate(many):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        assert_rows(store, i, alone("t5", ids, torch.tensor([0])))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REQUIRED if FAMILIES[name].kind == "decoder"])
def test_many_shapes_of_batches(name: str, memory_path: Path) -> None:
    """Any size of batches and windows gives the same rows."""
    tokenizer, many = trained_tokenizers.gpt2(), texts(60)
    reference = None
    for batch_tokens, window in ((1, 1), (1, 16), (33, 3), (64, 1), (300, 2), (8192, 16)):
        store = actstore.capture(
            memory_path / f"{batch_tokens}-{window}",
            built(name),
            many,
            tokenizer=tokenizer,
            sites=["resid", "logits"],
            batch_tokens=batch_tokens,
            window=window,
            progress=False,
        )
        rows = {site: store[site].read() for site in store.sites}
        reference = reference or rows
        for site in rows:
            np.testing.assert_allclose(rows[site], reference[site], **NEAR)
