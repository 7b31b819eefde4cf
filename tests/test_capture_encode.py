"""Texts become tokens as the tokenizer itself makes them; which rows of them are kept."""

import itertools
from typing import Any

import numpy as np
import pytest
from actstore.errors import InvalidInputError, ShapeError

pytest.importorskip("transformers")

from actstore.capturing.inputs.encoder import Encoder
from actstore.capturing.inputs.example import Example
from actstore.capturing.inputs.forms import Input
from actstore.capturing.inputs.stream import InputStream
from actstore.capturing.inputs.stride import strided, truncated
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import ALL, CHATML, chat, docstrings, gpt2, llama, minilm, slow_untold, t5, wordpiece

NAMES = [*ALL]
HARD = [
    "",
    " ",
    "\n",
    "a",
    "[SEP] in the text [MASK]",
    "<|endoftext|> hello <|endoftext|>",
    "<s>a</s><pad>",
    "naïve — 日本語 🤖 e\u0301",
    "x\0y",
    "word " * 200,
    "\u2028line\u2029",
]
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(HARD), max_size=5)


def given_texts(*all_texts: str, **more: Any) -> list[Input]:
    """Inputs of texts."""
    return list(InputStream([{"text": text, **more} for text in all_texts]))


def encoder(tokenizer: Any, **options: Any) -> Encoder:
    return Encoder(tokenizer, **{"model_max_length": None, **options})


def ids_of(example: Example, axis: str = "tokens") -> list[int]:
    return example.tokens[axis]["id"].tolist()


def check(example: Example) -> None:
    """What holds of every example with one stream of tokens."""
    columns = example.tokens["tokens"]
    assert {name: values.dtype.name for name, values in columns.items()} == {
        "id": "int32",
        "position": "int32",
        "special": "bool",
    }
    kept: list[int] = []
    for piece in example.pieces:
        assert piece.rows is not None
        rows = piece.rows["tokens"]
        n = len(piece.inputs["input_ids"])
        assert len(rows) > 0
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows.min() <= rows.max() < n
        for key, values in piece.inputs.items():
            assert values.dtype == np.int64, key
            assert values.shape == (n,), key
        kept += piece.inputs["input_ids"][rows].tolist()
    assert kept == columns["id"].tolist()
    assert len({len(values) for values in columns.values()}) == 1
    assert (np.diff(columns["position"]) > 0).all()


# ---- whole, cut, in windows: as the tokenizer says ----


@pytest.mark.parametrize("name", NAMES)
def test_what_fits_is_as_the_tokenizer_has_it(name: str) -> None:
    tokenizer = ALL[name]()
    many = [*HARD, *docstrings()[:20]]
    for text, example in zip(many, encoder(tokenizer).encode(given_texts(*many)), strict=True):
        check(example)
        alone = tokenizer(text, return_special_tokens_mask=True)
        assert ids_of(example) == alone["input_ids"]
        assert example.n_cut == 0
        assert example.text == text
        assert example.tokens["tokens"]["position"].tolist() == list(range(len(alone["input_ids"])))
        assert len(example.pieces) == (1 if alone["input_ids"] else 0)
        for piece in example.pieces:
            assert set(piece.inputs) == set(alone) & {"input_ids", "token_type_ids"}
            for key, values in piece.inputs.items():
                assert values.tolist() == alone[key]
        if name != "slow_untold":
            assert example.tokens["tokens"]["special"].tolist() == [
                bool(x) for x in alone["special_tokens_mask"]
            ]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(many=texts, max_length=st.integers(3, 12))
def test_what_is_cut_is_as_the_tokenizer_cuts_it(name: str, many: list[str], max_length: int) -> None:
    if name == "slow":  # ByT5 leaves out its end of text where the text, once it is cut, ends in one.
        many = [text for text in many if "</s>" not in text]
    tokenizer = ALL[name]()
    examples = encoder(tokenizer, max_length=max_length).encode(given_texts(*many))
    assert len(examples) == len(many)
    for text, example in zip(many, examples, strict=True):
        check(example)
        same = tokenizer(text, truncation=True, max_length=max_length)
        assert ids_of(example) == same["input_ids"]
        assert example.n_cut == len(tokenizer(text, verbose=False)["input_ids"]) - len(same["input_ids"])
        for piece in example.pieces:
            if "token_type_ids" in piece.inputs:
                assert piece.inputs["token_type_ids"].tolist() == same["token_type_ids"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(many=texts, max_length=st.integers(4, 12), data=st.data())
def test_windows_store_each_token_once(
    name: str, many: list[str], max_length: int, data: st.DataObject
) -> None:
    tokenizer = ALL[name]()
    n_added = tokenizer.num_special_tokens_to_add(pair=False)
    stride = data.draw(st.integers(1, max_length - n_added))
    examples = encoder(tokenizer, max_length=max_length, stride=stride).encode(given_texts(*many))
    for text, example in zip(many, examples, strict=True):
        check(example)
        whole = tokenizer(text, verbose=False)["input_ids"]
        content = tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"]
        assert ids_of(example) == whole
        assert example.tokens["tokens"]["position"].tolist() == list(range(len(whole)))
        assert example.n_cut == 0
        room = max_length - n_added
        long = len(whole) > max_length
        n_windows = 1 + max(0, -(-(len(content) - room) // stride)) if long else min(1, len(whole))
        assert len(example.pieces) == n_windows
        for i, piece in enumerate(example.pieces if long else []):
            window = content[i * stride : i * stride + room]
            assert piece.inputs["input_ids"].tolist() == _as_added(whole, content, window)
            assert len(piece.inputs["input_ids"]) <= max_length


def _as_added(whole: list[int], content: list[int], window: list[int]) -> list[int]:
    """A window with what the tokenizer adds to the whole."""
    head = next(i for i in range(len(whole)) if whole[i : i + len(content)] == content)
    return whole[:head] + window + whole[head + len(content) :]


@given(
    n_content=st.integers(1, 40),
    head=st.integers(0, 2),
    tail=st.integers(0, 2),
    room=st.integers(1, 9),
    data=st.data(),
)
def test_a_token_is_stored_from_the_window_with_most_to_its_left(
    n_content: int, head: int, tail: int, room: int, data: st.DataObject
) -> None:
    n, max_length = head + n_content + tail, head + room + tail
    stride = data.draw(st.integers(1, room))
    windows = strided(n, head, tail, max_length, stride)
    owner = {int(t): i for i, w in enumerate(windows) for t in w.tokens[w.rows]}
    assert [int(t) for w in windows for t in w.tokens[w.rows]] == list(range(n))
    for token in range(head, n - tail):
        assert owner[token] == min(i for i, w in enumerate(windows) if token in w.tokens)
    assert all(owner[token] == 0 for token in range(head))
    assert all(owner[token] == len(windows) - 1 for token in range(n - tail, n))
    for window in windows:
        assert window.tokens[:head].tolist() == list(range(head))
        assert window.tokens[len(window.tokens) - tail :].tolist() == list(range(n - tail, n))
        assert len(window.tokens) <= max_length


def test_a_cut_keeps_both_ends() -> None:
    assert truncated(9, 1, 2, 6, "right").tokens.tolist() == [0, 1, 2, 3, 7, 8]
    assert truncated(9, 1, 2, 6, "left").tokens.tolist() == [0, 4, 5, 6, 7, 8]


def test_truncation_at_the_left_is_the_tokenizers_word() -> None:
    tokenizer = wordpiece()
    (example,) = encoder(tokenizer, max_length=6).encode(given_texts(docstrings()[0]))
    whole = tokenizer(docstrings()[0], verbose=False)["input_ids"]
    assert ids_of(example) == [whole[0], *whole[-5:]]
    assert encoder(tokenizer).truncation == {"max_length": None, "stride": None, "side": "left"}


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = minilm()
    before = tokenizer("a b", padding="max_length", truncation=True, max_length=7)
    encoder(tokenizer, max_length=4).encode(given_texts(*HARD))
    assert dict(tokenizer("a b", padding="max_length", truncation=True, max_length=7)) == dict(before)


# ---- special tokens ----


def test_text_that_looks_like_a_special_token_is_text() -> None:
    (example,) = encoder(minilm()).encode(given_texts("[CLS] hello [SEP] [MASK] [UNK]"))
    assert example.tokens["tokens"]["special"].tolist() == [True, *[False] * 5, True]


def test_tokens_added_by_a_tokenizer_that_does_not_say_so() -> None:
    tokenizer = slow_untold()
    (example, empty) = encoder(tokenizer).encode(given_texts("hi", ""))
    assert example.tokens["tokens"]["special"].tolist() == [True, False, False, True]
    assert ids_of(empty) == [1, 1]


def test_control_tokens_of_a_chat() -> None:
    tokenizer = chat()
    (example,) = encoder(tokenizer, chat=True).encode(given_texts("hi"))
    names = tokenizer.convert_ids_to_tokens(ids_of(example))
    special = example.tokens["tokens"]["special"]
    assert [n for n, s in zip(names, special, strict=True) if s] == ["<|im_start|>", "<|im_end|>"]


def test_control_tokens_that_all_special_ids_leaves_out() -> None:
    tokenizer = llama()
    header = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    assert header not in tokenizer.all_special_ids
    (example,) = encoder(tokenizer, chat="<|start_header_id|>{{ messages[0].content }}").encode(
        given_texts("hi")
    )
    assert example.tokens["tokens"]["special"].tolist()[0]
    assert not example.tokens["tokens"]["special"][1:].any()


def test_unk_and_mask_stand_for_text_even_in_a_chat() -> None:
    (example,) = encoder(minilm(), chat="[CLS]{{ messages[0].content }}[SEP]").encode(
        given_texts("[MASK] \u2603\u16a0")
    )
    assert example.tokens["tokens"]["special"].tolist() == [True, *[False] * (len(ids_of(example)) - 2), True]
    assert minilm().mask_token_id in ids_of(example)


# ---- prompts and chats ----


def test_a_prompt_stands_before_each_text() -> None:
    one = encoder(minilm(), prompt="query: ")
    (example,) = one.encode(given_texts("hello"))
    assert ids_of(example) == minilm()("query: hello")["input_ids"]
    assert example.text == "hello"
    assert one.template == {
        "chat": None,
        "prompt": "query: ",
        "add_special_tokens": True,
        "chat_template": None,
    }


MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("how", "generate"), [(True, False), ("generate", True), (CHATML, False)])
def test_a_chat_is_as_the_template_has_it(how: Any, generate: bool) -> None:
    tokenizer = chat()
    one = encoder(tokenizer, chat=how)
    (example,) = one.encode(list(InputStream([{"messages": MESSAGES}])))
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=generate, return_dict=True)
    assert ids_of(example) == expected["input_ids"]
    assert example.text == tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=generate, tokenize=False
    )
    assert one.template["add_special_tokens"] is False
    assert one.template["chat"] == how
    assert one.template["chat_template"].startswith("blake2b:")
    (of_text,) = one.encode(given_texts("hi"))
    alone = tokenizer.apply_chat_template(MESSAGES[1:], add_generation_prompt=generate, return_dict=True)
    assert ids_of(of_text) == alone["input_ids"]
    assert of_text.text == "hi"


def test_a_chat_is_cut_like_a_text() -> None:
    tokenizer = chat()
    (example,) = encoder(tokenizer, chat=True, max_length=5).encode(given_texts("hi there all"))
    messages = [{"role": "user", "content": "hi there all"}]
    whole = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids_of(example) == whole[:5]
    assert example.n_cut == len(whole) - 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat": True}, "has no chat template"),
        ({"chat": "generate"}, "has no chat template"),
        ({"chat": "chatml"}, "'chatml' is neither True, 'generate' nor a template"),
        ({"chat": CHATML, "prompt": "x"}, "a chat takes no prompt"),
        ({"prompt": 3}, "prompt: 3 is not a str"),
        ({"max_length": 0}, "max_length: 0 is not a positive"),
        ({"max_length": True}, "max_length: True is not a positive"),
        ({"max_length": 513, "model_max_length": 512}, "max_length: 513 tokens, the model takes 512"),
        ({"max_length": 2}, "2 leaves no room for text, the tokenizer adds 2"),
        ({"max_length": 8, "stride": 0}, r"stride: 0 is not in 1\.\.6"),
        ({"max_length": 8, "stride": 7}, r"stride: 7 is not in 1\.\.6"),
        ({"stride": 4}, "stride: the model has no maximum length"),
        ({"max_length": 8, "stride": 4, "encoder_decoder": True}, "not supported for an encoder-decoder"),
        ({"keep": "first"}, "'first' is none of all, no-special, last"),
        ({"keep": 1.0}, "1.0 is not a fraction"),
        ({"keep": 0}, "0 is not a fraction"),
        ({"keep": float("nan")}, "nan is not a fraction"),
        ({"keep": True}, "True selects no rows"),
        ({"keep": None}, "None selects no rows"),
        ({"keep": {"tokens": []}}, "keep: got dict"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        encoder(minilm(), **options)


def test_a_template_that_fails_names_the_example() -> None:
    one = encoder(minilm(), chat="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidInputError, match=r"example '0': roles must alternate"):
        one.encode(given_texts("hi"))


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(InvalidInputError, match="example '0' has messages"):
        encoder(chat()).encode(list(InputStream([{"messages": MESSAGES}])))
    with pytest.raises(InvalidInputError, match="example '0' has a target"):
        encoder(minilm()).encode(given_texts("a", target="b"))
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        encoder(None).encode(given_texts("a"))
    assert encoder(None).encode([]) == []


# ---- encoder-decoders ----


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.sampled_from(HARD), st.sampled_from(HARD)), max_size=4),
    with_target=st.booleans(),
)
def test_two_streams(pairs: list[tuple[str, str]], with_target: bool) -> None:
    tokenizer, max_length, start = t5(), 9, 0
    one = encoder(tokenizer, encoder_decoder=True, decoder_start=start, max_length=max_length)
    items = [{"text": text, **({"target": target} if with_target else {})} for text, target in pairs]
    for item, example in zip(items, one.encode(list(InputStream(items))), strict=True):
        source = tokenizer(item["text"], truncation=True, max_length=max_length)["input_ids"]
        labels = (
            tokenizer(text_target=item["target"], truncation=True, max_length=max_length)["input_ids"]
            if with_target
            else [1]
        )
        n_all = len(tokenizer(item["text"], verbose=False)["input_ids"])
        n_all += len(tokenizer(item["target"], verbose=False)["input_ids"]) if with_target else 1
        (piece,) = example.pieces
        assert ids_of(example, "encoder") == source == piece.inputs["input_ids"].tolist()
        decoder = [start, *labels[:-1]]
        assert ids_of(example, "decoder") == decoder == piece.inputs["decoder_input_ids"].tolist()
        assert example.tokens["decoder"]["special"].tolist() == [True, *[False] * (len(decoder) - 1)]
        assert example.tokens["decoder"]["position"].tolist() == list(range(len(decoder)))
        assert piece.rows is not None
        assert {axis: len(rows) for axis, rows in piece.rows.items()} == {
            "encoder": len(source),
            "decoder": len(decoder),
        }
        assert example.n_cut == n_all - len(source) - len(labels)
    assert one.axes == ("encoder", "decoder")


def test_nothing_for_the_encoder_is_no_row_of_the_decoder() -> None:
    one = encoder(gpt2(), encoder_decoder=True, decoder_start=0)
    empty, full = one.encode(given_texts("", "a"))
    assert empty.pieces == []
    assert ids_of(empty, "decoder") == []
    assert ids_of(full, "decoder") == [0]


def test_a_decoder_without_a_start() -> None:
    with pytest.raises(InvalidInputError, match="no decoder_start_token_id"):
        encoder(t5(), encoder_decoder=True).encode(given_texts("a"))


# ---- which rows ----


def test_no_special_and_last() -> None:
    tokenizer = minilm()
    (example,) = encoder(tokenizer, keep="no-special").encode(given_texts("hello world"))
    check(example)
    assert ids_of(example) == tokenizer("hello world", add_special_tokens=False)["input_ids"]
    assert example.tokens["tokens"]["position"].tolist() == [1, 2]
    assert len(example.pieces[0].inputs["input_ids"]) == 4
    (example,) = encoder(tokenizer, keep="last").encode(given_texts("hello world"))
    assert ids_of(example) == [tokenizer.sep_token_id]
    (nothing,) = encoder(tokenizer, keep="no-special").encode(given_texts(""))
    assert [len(piece.rows["tokens"]) for piece in nothing.pieces if piece.rows is not None] == [0]
    empty = encoder(gpt2(), keep="last").encode(given_texts(""))[0]
    assert ids_of(empty) == []
    assert empty.pieces == []


def test_of_windows_only_the_last_has_the_last_row() -> None:
    (example,) = encoder(gpt2(), keep="last", max_length=8, stride=4).encode(given_texts(docstrings()[0]))
    rows = [len(piece.rows["tokens"]) for piece in example.pieces if piece.rows is not None]
    assert rows == [0] * (len(rows) - 1) + [1]
    assert len(rows) > 1


def test_a_share_is_drawn_by_seed_and_position_alone() -> None:
    many = given_texts(*docstrings()[:60])
    one = encoder(gpt2(), keep=0.25, seed=7)
    together = one.encode(many)
    for example in together:
        check(example)
    apart = [encoder(gpt2(), keep=0.25, seed=7).encode([each])[0] for each in many[30:]]
    assert [ids_of(e) for e in apart] == [ids_of(e) for e in together[30:]]
    positions = [e.tokens["tokens"]["position"].tolist() for e in together]
    other = [e.tokens["tokens"]["position"].tolist() for e in encoder(gpt2(), keep=0.25, seed=8).encode(many)]
    assert positions != other
    n = sum(map(len, positions))
    total = sum(len(ids_of(e)) for e in encoder(gpt2()).encode(many))
    assert abs(n - total / 4) < 4 * (total * 0.25 * 0.75) ** 0.5
    # Rows of examples that are alike are drawn apart.
    same = one.encode(given_texts(*[docstrings()[0]] * 8))
    assert len({tuple(e.tokens["tokens"]["position"].tolist()) for e in same}) == 8


def test_a_share_is_the_same_in_every_version() -> None:
    """A store is resumed by another version of numpy, or of this library."""
    (example,) = encoder(gpt2(), keep=0.1, seed=3).encode(given_texts("x" * 80))
    assert example.tokens["tokens"]["position"].tolist() == [10, 32, 34, 35, 36, 49, 57, 67, 75]


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_shares_near_the_ends(share: float) -> None:
    (whole,) = encoder(gpt2()).encode(given_texts("x " * 1000))
    (example,) = encoder(gpt2(), keep=share).encode(given_texts("x " * 1000))
    assert abs(len(ids_of(example)) / len(ids_of(whole)) - share) < 0.06


def test_rows_by_function_and_by_masks() -> None:
    many = given_texts("a b c d", "", "e f")
    wholes = encoder(minilm()).encode(many)
    odd = [e.tokens["tokens"]["position"] % 2 == 1 for e in wholes]
    by_function = encoder(minilm(), keep=lambda e: e.tokens["tokens"]["position"] % 2 == 1).encode(many)
    by_masks = encoder(minilm(), keep=odd).encode(many)
    by_lists = encoder(minilm(), keep=[m.tolist() for m in odd]).encode(many)
    for whole, *kept in zip(wholes, by_function, by_masks, by_lists, strict=True):
        for example in kept:
            check(example)
            assert ids_of(example) == ids_of(whole)[1::2]
    assert ids_of(encoder(gpt2(), keep=[[]]).encode(given_texts(""))[0]) == []


def test_masks_go_by_the_position_in_the_whole_input() -> None:
    masks = [[True, False], [False, True]]
    mine = list(InputStream(["a", "b"], rank=1, world=2))
    (example,) = encoder(gpt2(), keep=[np.array([True]), np.array([False])]).encode(mine)
    assert ids_of(example) == []
    with pytest.raises(
        ShapeError, match=r"mask of example '1' has shape \[2\], axis 'tokens' has rows \[1\]"
    ):
        encoder(gpt2(), keep=masks).encode(mine)


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([np.ones(3, bool)], ShapeError, r"mask of example '0' has shape \[3\]"),
        ([np.ones((4, 1), bool)], ShapeError, r"has shape \[4, 1\]"),
        ([np.ones(4, int)], InvalidInputError, "is int64, not bool"),
        ([], ShapeError, "0 masks, but none for example '0', which is input 0"),
        (lambda e: None, InvalidInputError, "mask of example '0'"),
        (
            [{"decoder": np.ones(4, bool)}],
            InvalidInputError,
            r"has the axes \['decoder'\], the example has \['tokens'\]",
        ),
    ],
)
def test_masks_that_do_not_fit(tokens: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder(minilm(), keep=tokens).encode(given_texts("a b"))


def test_masks_of_two_streams_are_by_axis() -> None:
    options = {"encoder_decoder": True, "decoder_start": 0}
    (whole,) = encoder(t5(), **options).encode(given_texts("abc", target="de"))
    keep = {axis: columns["position"] > 0 for axis, columns in whole.tokens.items()}
    (example,) = encoder(t5(), keep=[keep], **options).encode(given_texts("abc", target="de"))
    for axis in ("encoder", "decoder"):
        assert ids_of(example, axis) == ids_of(whole, axis)[1:]
        assert example.pieces[0].rows is not None
        assert example.pieces[0].rows[axis].tolist() == list(range(1, len(ids_of(whole, axis))))
    with pytest.raises(InvalidInputError, match="names no axis"):
        encoder(t5(), keep=[keep["encoder"]], **options).encode(given_texts("abc", target="de"))


def test_pieces_do_not_share_what_they_may_change() -> None:
    one, two = encoder(minilm()).encode(given_texts("a b", "c d"))
    one.pieces[0].inputs["input_ids"][:] = 0
    one.tokens["tokens"]["position"][:] = 9
    assert ids_of(two) == minilm()("c d")["input_ids"]
    assert two.tokens["tokens"]["position"].tolist() == [0, 1, 2, 3]
    assert ids_of(one) == minilm()("a b")["input_ids"]


def test_columns_and_ids_are_passed_on() -> None:
    many = list(InputStream([{"id": "x", "text": "a", "n": 1}, {"id": "y", "text": "b", "n": 2}]))
    examples = encoder(minilm()).encode(many)
    assert [(e.id, e.columns) for e in examples] == [("x", {"n": 1}), ("y", {"n": 2})]


def test_many_at_once_are_as_each_alone() -> None:
    many = given_texts(*docstrings()[:50])
    one = encoder(minilm(), max_length=16, stride=5)
    alone = list(itertools.chain.from_iterable(one.encode([each]) for each in many))
    for a, b in zip(one.encode(many), alone, strict=True):
        assert ids_of(a) == ids_of(b)
        assert [p.inputs["input_ids"].tolist() for p in a.pieces] == [
            p.inputs["input_ids"].tolist() for p in b.pieces
        ]
