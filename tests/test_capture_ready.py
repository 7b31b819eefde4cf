"""Ready batches: padding goes, wherever it is, and everything per token is cut alike."""

from typing import Any

import numpy as np
import pytest
from actstore.errors import InvalidInputError, ShapeError

pytest.importorskip("transformers")
pytest.importorskip("torch")

import torch
from actstore.capturing.inputs.encoder import Encoder
from actstore.capturing.inputs.stream import InputStream
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import docstrings, gpt2, llama, minilm, t5


def encoder(tokenizer: Any = None, **options: Any) -> Encoder:
    return Encoder(tokenizer, **{"model_max_length": None, **options})


def ids_of(example: Any, axis: str = "tokens") -> list[int]:
    return example.tokens[axis]["id"].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_batches_of_a_tokenizer(side: str, tensors: str | None) -> None:
    many = ["", "a", *docstrings()[:6]]
    for make in (minilm, llama, gpt2):
        tokenizer = make()
        batch = tokenizer(
            many, padding=True, padding_side=side, return_tensors=tensors, truncation=True, max_length=40
        )
        plain = tokenizer(many, truncation=True, max_length=40)
        (first,) = InputStream(batch)
        for examples in (encoder(tokenizer).ready(batch, 5), encoder(tokenizer).ready(first)):
            for i, example in enumerate(examples):
                (piece,) = example.pieces or [None]
                assert ids_of(example) == plain["input_ids"][i]
                assert example.tokens["tokens"]["position"].tolist() == list(
                    range(len(plain["input_ids"][i]))
                )
                if piece is None:
                    assert plain["input_ids"][i] == []
                    continue
                assert set(piece.inputs) == set(batch) - {"attention_mask"}
                for key in piece.inputs:
                    assert piece.inputs[key].tolist() == plain[key][i]
                    assert piece.inputs[key].dtype == np.int64
        assert [e.id for e in encoder(tokenizer).ready(batch, 5)] == [str(i) for i in range(5, 5 + len(many))]


def test_lists_of_unlike_lengths() -> None:
    many = ["a", *docstrings()[:3]]
    examples = encoder(minilm()).ready(minilm()(many))
    assert [ids_of(e) for e in examples] == minilm()(many)["input_ids"]


@settings(deadline=None)
@given(st.data())
def test_padding_anywhere(data: st.DataObject) -> None:
    n, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
    numbers = st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=n, max_size=n)
    ids, positions = np.array(data.draw(numbers)), np.array(data.draw(numbers))
    mask = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=n, max_size=n))
    )
    kind = data.draw(st.sampled_from([np.bool_, np.int64, np.float32]))
    batch = {"input_ids": ids, "attention_mask": mask.astype(kind), "position_ids": positions}
    if data.draw(st.booleans()):
        batch = {key: torch.from_numpy(value) for key, value in batch.items()}
    for i, example in enumerate(encoder().ready(batch)):
        assert ids_of(example) == ids[i][mask[i]].tolist()
        assert len(example.pieces) == (1 if mask[i].any() else 0)
        for piece in example.pieces:
            assert piece.inputs["position_ids"].tolist() == positions[i][mask[i]].tolist()
            assert piece.rows is not None
            assert piece.rows["tokens"].tolist() == list(range(mask[i].sum()))


def test_a_real_token_with_pads_id_stays() -> None:
    pad = gpt2().pad_token_id
    (example,) = encoder(gpt2()).ready({"input_ids": [[5, pad, pad]], "attention_mask": [[1, 1, 0]]})
    assert ids_of(example) == [5, pad]
    (example,) = encoder(gpt2()).ready({"input_ids": [[5, pad, pad]]})
    assert ids_of(example) == [5, pad, pad]


def test_special_tokens_of_a_batch() -> None:
    tokenizer = minilm()
    batch = tokenizer(
        ["hi [SEP] [MASK]", "x"], padding=True, return_tensors="pt", return_special_tokens_mask=True
    )
    told = encoder(tokenizer).ready(batch)
    assert told[0].tokens["tokens"]["special"].tolist() == [True, False, False, False, True]
    assert told[1].tokens["tokens"]["special"].tolist() == [True, False, True]
    del batch["special_tokens_mask"]
    guessed = encoder(tokenizer).ready(batch)
    assert guessed[0].tokens["tokens"]["special"].tolist() == [True, False, True, False, True]
    untold = encoder(None).ready(batch)
    assert not untold[0].tokens["tokens"]["special"].any()
    kept = encoder(tokenizer, keep="no-special").ready(batch)
    assert [len(ids_of(e)) for e in kept] == [2, 1]


def test_policies_go_by_position() -> None:
    texts = list(docstrings()[:6])
    whole = encoder(gpt2(), keep=0.5, seed=3).encode(list(InputStream(texts)))
    ready = encoder(gpt2(), keep=0.5, seed=3).ready(gpt2()(texts[2:], padding=True), 2)
    assert [ids_of(e) for e in ready] == [ids_of(e) for e in whole[2:]]


def test_ids_texts_and_columns_of_a_batch() -> None:
    batch = {
        "input_ids": [[1, 2], [3, 4]],
        "id": ["x", "y"],
        "text": ["a", "b"],
        "label": torch.tensor([0, 1]),
    }
    one, two = encoder().ready(batch)
    assert (one.id, one.text, one.columns) == ("x", "a", {"label": 0})
    assert (two.id, two.text, two.columns) == ("y", "b", {"label": 1})


def test_one_example_without_the_axis_of_examples() -> None:
    (example,) = encoder().ready({"input_ids": [1, 2, 3], "attention_mask": [0, 1, 1], "label": 4, "id": "x"})
    assert (ids_of(example), example.id, example.columns) == ([2, 3], "x", {"label": 4})
    (example,) = encoder().ready({"input_ids": torch.tensor([1, 2, 3])}, 9)
    assert (ids_of(example), example.id) == ([1, 2, 3], "9")


def test_decoders() -> None:
    one = encoder(t5(), encoder_decoder=True, decoder_start=0)
    mask = {"attention_mask": [[1, 1, 0]], "decoder_attention_mask": [[0, 1]]}
    (example,) = one.ready({"input_ids": [[5, 6, 7]], "decoder_input_ids": [[0, 8]], **mask})
    assert (ids_of(example, "encoder"), ids_of(example, "decoder")) == ([5, 6], [8])
    (example,) = one.ready({"input_ids": [[5, 6, 1]]})
    assert ids_of(example, "decoder") == [0]
    assert example.tokens["encoder"]["special"].tolist() == [False, False, True]
    (example,) = one.ready({"input_ids": [[5, 6, 1]], "labels": [[8, 9, 1, -100]]})
    assert ids_of(example, "decoder") == [0, 8, 9]
    assert set(example.pieces[0].inputs) == {"input_ids", "decoder_input_ids"}
    (example,) = one.ready({"input_ids": [[5]], "attention_mask": [[0]], "decoder_input_ids": [[0, 8]]})
    assert (ids_of(example, "decoder"), example.pieces) == ([], [])
    with pytest.raises(InvalidInputError, match="no decoder_start_token_id"):
        encoder(t5(), encoder_decoder=True).ready({"input_ids": [[5]]})
    with pytest.raises(InvalidInputError, match="the model is not an encoder-decoder"):
        encoder(t5()).ready({"input_ids": [[5]], "decoder_input_ids": [[0]]})


def test_labels_are_no_input() -> None:
    (example,) = encoder().ready({"input_ids": [[1, 2]], "labels": [[1, 2]]})
    assert set(example.pieces[0].inputs) == {"input_ids"}


def test_pixel_values() -> None:
    values = torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 2, 2)
    one, two = encoder().ready({"pixel_values": values, "label": [0, 1]}, 3)
    assert (one.id, two.id, two.columns) == ("3", "4", {"label": 1})
    assert one.pieces[0].rows is None
    assert one.tokens == {}
    assert two.pieces[0].inputs["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(two.pieces[0].inputs["pixel_values"], np.arange(12, 24).reshape(3, 2, 2))
    (alone,) = encoder().ready({"pixel_values": values[0]})
    assert alone.pieces[0].inputs["pixel_values"].shape == (3, 2, 2)
    with pytest.raises(InvalidInputError, match='only "all" is possible'):
        encoder(keep="last").ready({"pixel_values": values})


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            {"inputs_embeds": torch.zeros(1, 2, 3, dtype=torch.bfloat16)},
            InvalidInputError,
            "inputs_embeds are not supported",
        ),
        (
            {"input_ids": [[1]], "inputs_embeds": np.zeros((1, 1, 3))},
            InvalidInputError,
            "inputs_embeds are not supported",
        ),
        (
            {"input_ids": [[1]], "pixel_values": np.zeros((1, 3, 2, 2))},
            InvalidInputError,
            "both input_ids and pixel",
        ),
        ({"input_ids": np.zeros((1, 2))}, InvalidInputError, "input_ids is float64 with 2 axes"),
        ({"input_ids": np.zeros((1, 2, 3), int)}, InvalidInputError, "input_ids is int64 with 3 axes"),
        ({"input_ids": [["a", "b"]]}, InvalidInputError, "input_ids is <U1 with 2 axes"),
        ({"input_ids": [[-1, 2]]}, InvalidInputError, "example '4' of a ready batch has a negative token id"),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[1]]},
            ShapeError,
            "attention_mask of row 0 has 1 tokens",
        ),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, InvalidInputError, "values other than 0 and 1"),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[0, -1e9]]},
            InvalidInputError,
            "values other than 0 and 1",
        ),
        (
            {"input_ids": [[1, 2]], "attention_mask": np.ones((1, 1, 2, 2))},
            ShapeError,
            r"attention_mask: expected \[B, T\]",
        ),
        (
            {"input_ids": [[1, 2]], "attention_mask": [[1, 1], [1, 1]]},
            ShapeError,
            "has 2 rows, input_ids has 1",
        ),
        ({"input_ids": [[1, 2]], "position_ids": [[0]]}, ShapeError, "position_ids of row 0 has 1 tokens"),
        ({"input_ids": [[1, 2]], "scores": [[0.5, 0.5]]}, InvalidInputError, "scores is float64 with 2 axes"),
        (
            {"input_ids": [[1, 2]], "offset_mapping": np.zeros((1, 2, 2), int)},
            InvalidInputError,
            "offset_mapping is",
        ),
        ({"input_ids": [[1, 2]], "meta": {"a": 1}}, InvalidInputError, "meta has type dict"),
        ({"input_ids": [[1, 2]], "use_cache": False}, InvalidInputError, "use_cache is a single number"),
        (
            {"input_ids": [[1, 2]], "n_cut": [1]},
            InvalidInputError,
            "column 'n_cut' is reserved: capture writes",
        ),
        ({"input_ids": [[1, 2]], "id": [0.5]}, InvalidInputError, "its id is a float"),
        ({"input_ids": [[1, 2]], "text": [3]}, InvalidInputError, "text is not a list of str"),
        (
            {"input_ids": [[1, 2]], "decoder_attention_mask": [[1]]},
            InvalidInputError,
            "without decoder_input_ids",
        ),
        (
            {"pixel_values": np.zeros((1, 3, 2, 2), np.uint8)},
            InvalidInputError,
            r"pixel_values\[0\] is uint8 \[3, 2, 2\]",
        ),
    ],
)
def test_batches_that_cannot_be_used(batch: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder().ready(batch, 4)


def test_a_batch_longer_than_the_model() -> None:
    with pytest.raises(InvalidInputError, match="example '0' of a ready batch has 3 tokens, the limit is 2"):
        encoder(model_max_length=2).ready({"input_ids": [[1, 2, 3]]})
    (example,) = encoder(model_max_length=2).ready({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 0]]})
    assert ids_of(example) == [1, 2]


@pytest.mark.parametrize(
    "options", [{"prompt": "x"}, {"stride": 2, "max_length": 8}, {"chat": "{{ messages }}"}]
)
def test_what_a_ready_batch_is_past(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="do not apply to ready batches"):
        encoder(minilm(), **options).ready({"input_ids": [[1]]})
