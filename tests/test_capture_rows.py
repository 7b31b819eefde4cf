"""Which rows are stored: policies leave them as they are, pooling at the source is `Site.pool`."""

import warnings
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import trained_tokenizers
from capture_cases import CASES
from capture_models import N_LAYERS, batch, built, fresh

TOKENIZERS = {"gpt2": "gpt2", "llama": "llama", "bert": "wordpiece", "t5": "t5", "mamba": "gpt2"}
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
KINDS = ("mean", "max", "first", "last", "weighted")


def tokenizer(name: str) -> Any:
    return trained_tokenizers.ALL[TOKENIZERS[name]]()


def texts(n: int = 14, most: int = 50) -> list[str]:
    words = " ".join(trained_tokenizers.docstrings())
    return [words[131 * i : 131 * i + 1 + (17 * i) % most] for i in range(n)]


def capture(path: Path, name: str, source: Any, **options: Any) -> actstore.Store:
    options = {"batch_tokens": 64, "window": 2, "progress": False, "tokenizer": tokenizer(name)} | options
    return actstore.capture(path, built(name), source, **options)


def by_example(store: actstore.Store, site: str) -> list[np.ndarray]:
    return [store[site].example(i) for i in range(store.n_examples)]


def sites(name: str) -> list[str]:
    return ["resid", "mixer_out"] if name == "mamba" else ["resid", "attn_out"]


def masks_of(store: actstore.Store, how: Any) -> dict[str, np.ndarray]:
    """By axis, which rows of a store of all a policy keeps."""
    out = {}
    for axis, columns in store.axes.items():
        last = np.zeros(columns.n_rows, bool)
        last[columns.offsets[1:][np.diff(columns.offsets) > 0] - 1] = True
        out[axis] = {"no-special": ~columns["special"], "last": last, "all": np.ones(columns.n_rows, bool)}[
            how
        ]
    return out


@pytest.mark.parametrize("how", ["all", "no-special", "last"])
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_policies_leave_rows_as_they_are(name: str, how: str, memory_path: Path) -> None:
    """The same bits, the same columns, no row more or less."""
    every = capture(memory_path / "all", name, texts(), sites=sites(name))
    some = capture(memory_path / "some", name, texts(), sites=sites(name), keep=how)
    masks = masks_of(every, how)
    assert some.n_examples == every.n_examples
    for site in every.sites:
        axis = every[site].axis
        np.testing.assert_array_equal(some[site].read(), every[site].read()[masks[axis]])
    for axis, mask in masks.items():
        lengths = np.add.reduceat(np.append(mask, False).astype(int), every.axes[axis].offsets[:-1])
        lengths[np.diff(every.axes[axis].offsets) == 0] = 0
        assert np.diff(some.axes[axis].offsets).tolist() == lengths.tolist()
        for column in ("id", "position", "special"):
            np.testing.assert_array_equal(some.axes[axis][column], every.axes[axis][column][mask])


def test_special_tokens_are_those_that_the_tokenizer_added(memory_path: Path) -> None:
    for name in ("bert", "llama", "gpt2"):
        store = capture(memory_path / name, name, texts(6))
        for i, text in enumerate(texts(6)):
            wanted = tokenizer(name)(text, return_special_tokens_mask=True)["special_tokens_mask"]
            at = slice(*store.tokens.offsets[i : i + 2])
            assert store.tokens["special"][at].astype(int).tolist() == wanted


def test_a_share_is_drawn_whatever_the_batches(memory_path: Path) -> None:
    every = capture(memory_path / "all", "bert", texts(40))
    drawn = []
    for i, options in enumerate(({}, {"batch_tokens": 300, "window": 16}, {"batch_tokens": 1, "window": 1})):
        drawn.append(capture(memory_path / str(i), "bert", texts(40), keep=0.3, seed=5, **options))
    for store in drawn[1:]:
        for column in ("id", "position"):
            np.testing.assert_array_equal(store.tokens[column], drawn[0].tokens[column])
        np.testing.assert_array_equal(store.tokens.offsets, drawn[0].tokens.offsets)
        np.testing.assert_allclose(store["resid"].read(), drawn[0]["resid"].read(), **NEAR)
    for i in range(40):
        at = slice(*drawn[0].tokens.offsets[i : i + 2])
        chosen = every["resid"].example(i)[drawn[0].tokens["position"][at]]
        np.testing.assert_allclose(drawn[0]["resid"].example(i), chosen, **NEAR)
    share = drawn[0].n_tokens / every.n_tokens
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / every.n_tokens)
    other = capture(memory_path / "seed", "bert", texts(40), keep=0.3, seed=6)
    assert other.tokens["position"].tolist() != drawn[0].tokens["position"].tolist()


@pytest.mark.parametrize("as_masks", [True, False])
def test_rows_of_ones_own_choice(as_masks: bool, memory_path: Path) -> None:
    """Every third token; of some examples none, which keep their place."""
    every = capture(memory_path / "all", "bert", texts())
    lengths = np.diff(every.tokens.offsets)
    masks = [np.arange(n) % 3 == 1 if i % 4 else np.zeros(n, bool) for i, n in enumerate(lengths)]

    def choose(example: Any) -> Any:
        return masks[int(example.id)]

    some = capture(memory_path / "some", "bert", texts(), keep=masks if as_masks else choose)
    assert np.diff(some.tokens.offsets).tolist() == [int(mask.sum()) for mask in masks]
    for i, mask in enumerate(masks):
        np.testing.assert_allclose(some["resid"].example(i), every["resid"].example(i)[mask], **NEAR)
    np.testing.assert_array_equal(some.tokens["id"], every.tokens["id"][np.concatenate(masks)])


def test_a_mask_of_another_length_names_the_example(memory_path: Path) -> None:
    masks = [np.ones(len(tokenizer("bert")(text)["input_ids"]), bool) for text in texts(4)]
    masks[2] = masks[2][1:]
    with pytest.raises(actstore.ShapeError, match="'2'"):
        capture(memory_path / "run.act", "bert", texts(4), keep=masks)


# ---- windows ----


def windows_by_hand(
    whole: list[int], head: int, tail: int, most: int, stride: int
) -> list[tuple[list[int], dict[int, int]]]:
    """Sequences for the model; of the rows that are stored, by position in the whole, the position there.

    Content is what lies between head and tail. A token belongs to the first window that has it, the head to
    the first, the tail to the last.
    """
    content, room = whole[head : len(whole) - tail], most - head - tail
    out: list[tuple[list[int], dict[int, int]]] = []
    seen: set[int] = set()
    start = 0
    while True:
        part = content[start : start + room]
        sequence = whole[:head] + part + whole[len(whole) - tail :]
        rows = {head + start + j: head + j for j in range(len(part)) if head + start + j not in seen}
        ends = start + room >= len(content)
        if start == 0:
            rows |= {j: j for j in range(head)}
        if ends:
            rows |= {len(whole) - tail + j: head + len(part) + j for j in range(tail)}
        seen |= set(rows)
        out.append((sequence, rows))
        if ends:
            return out
        start += stride


@pytest.mark.parametrize(("stride", "most"), [(1, 8), (4, 12), (7, 16), (6, 8), (10, 12)])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_rows_of_windows(name: str, stride: int, most: int, memory_path: Path) -> None:
    """Each row is that of its window by itself; each token is stored once, in order."""
    head, tail = {"bert": (1, 1), "gpt2": (0, 0), "llama": (1, 0)}[name]
    stride = min(stride, most - head - tail)
    many = [text for text in texts(8, 90) if text.strip()]
    store = capture(memory_path / "run.act", name, many, stride=stride, max_length=most)
    assert not store.examples["n_cut"].any()
    for i, text in enumerate(many):
        whole = tokenizer(name)(text)["input_ids"]
        at = slice(*store.tokens.offsets[i : i + 2])
        assert store.tokens["id"][at].tolist() == whole
        assert store.tokens["position"][at].tolist() == list(range(len(whole)))
        rows = store["resid"].example(i)
        windows = [(whole, {j: j for j in range(len(whole))})]
        if len(whole) > most:
            windows = windows_by_hand(whole, head, tail, most, stride)
        assert sorted(j for _, of in windows for j in of) == list(range(len(whole)))
        for sequence, of in windows:
            assert len(sequence) <= most
            with torch.no_grad():
                states = built(name)(torch.tensor([sequence]), output_hidden_states=True).hidden_states
            layers = torch.stack(states, 2)[0].numpy()
            n = N_LAYERS if name != "bert" else N_LAYERS + 1  # The last of the others is normed.
            np.testing.assert_allclose(
                rows[list(of)][:, :n], layers[list(of.values())][:, :n], err_msg=f"{i}", **NEAR
            )


@pytest.mark.parametrize("how", ["no-special", "last", 0.4])
def test_policies_of_windows(how: Any, memory_path: Path) -> None:
    many = texts(8, 90)
    options = {"stride": 5, "max_length": 12}
    every = capture(memory_path / "all", "bert", many, **options)
    some = capture(memory_path / "some", "bert", many, keep=how, **options)
    for i in range(len(many)):
        at = slice(*some.tokens.offsets[i : i + 2])
        positions = some.tokens["position"][at]
        np.testing.assert_allclose(some["resid"].example(i), every["resid"].example(i)[positions], **NEAR)
        length = len(every["resid"].example(i))
        if how == "last":
            assert positions.tolist() == [length - 1]
        elif how == "no-special":
            assert positions.tolist() == list(range(1, length - 1))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_cut_inputs_are_counted_and_warned_of(name: str, memory_path: Path) -> None:
    many = texts(9, 90)
    with pytest.warns(actstore.CaptureWarning, match="12 tokens"):
        store = capture(memory_path / "run.act", name, many, max_length=12)
    wholes = [len(tokenizer(name)(text)["input_ids"]) for text in many]
    cut = [len(tokenizer(name)(text, truncation=True, max_length=12)["input_ids"]) for text in many]
    axis = "encoder" if name == "t5" else "tokens"
    assert np.diff(store.axes[axis].offsets).tolist() == cut
    assert store.examples["n_cut"].tolist() == [a - b for a, b in zip(wholes, cut, strict=True)]
    for i, text in enumerate(many):
        ids = tokenizer(name)(text, truncation=True, max_length=12)["input_ids"]
        assert store.axes[axis]["id"][slice(*store.axes[axis].offsets[i : i + 2])].tolist() == ids


# ---- pooled at the source ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_pooling_is_that_of_the_site(name: str, kind: str, memory_path: Path) -> None:
    many = [text for text in texts() if tokenizer(name)(text)["input_ids"]]
    every = capture(memory_path / "all", name, many, sites=sites(name))
    pooled = capture(memory_path / "pooled", name, many, sites=sites(name), pool=kind)
    assert pooled.n_examples == len(many)
    assert not pooled.axes
    for site in every.sites:
        assert (pooled[site].axis, pooled[site].dtype.name) == ("examples", "float32")
        assert pooled[site].about["pool"] == kind
        wanted = every[site].pool(kind).read()
        np.testing.assert_allclose(pooled[site].read(), wanted, rtol=1e-6, atol=1e-6)
    assert pooled.examples["id"].tolist() == every.examples["id"].tolist()


@pytest.mark.parametrize("tokens", ["all", "no-special", 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_pooling_of_windows(kind: str, tokens: Any, memory_path: Path) -> None:
    """The rows of all of an example's windows, that the policy leaves."""
    many = [text for text in texts(8, 90) if text.strip()]
    options = {"stride": 4, "max_length": 12, "keep": tokens, "seed": 3}
    every = capture(memory_path / "all", "bert", many, **options)
    assert np.diff(every.tokens.offsets).min() > 0
    pooled = capture(memory_path / "pooled", "bert", many, pool=kind, **options)
    wanted = every["resid"].pool(kind).read()
    np.testing.assert_allclose(pooled["resid"].read(), wanted, rtol=1e-5, atol=2e-6)


def test_pooled_in_another_dtype(memory_path: Path) -> None:
    many = texts(6)
    wide = capture(memory_path / "wide", "bert", many, pool="mean")
    narrow = capture(memory_path / "narrow", "bert", many, pool="mean", dtype="float16")
    np.testing.assert_allclose(narrow["resid"].read("float32"), wide["resid"].read(), rtol=2**-10, atol=1e-6)
    half = fresh("bert").to(torch.bfloat16)
    rounded = actstore.capture(
        memory_path / "half", half, many, tokenizer=tokenizer("bert"), pool="mean", progress=False
    )
    rows = actstore.capture(memory_path / "rows", half, many, tokenizer=tokenizer("bert"), progress=False)
    assert rounded["resid"].dtype.name == "float32"
    np.testing.assert_allclose(
        rounded["resid"].read(), rows["resid"].pool("mean").read(), rtol=1e-6, atol=1e-6
    )


def test_an_example_without_rows_cannot_be_pooled(memory_path: Path) -> None:
    many = ["one", "", "two"]
    with pytest.raises(actstore.InvalidInputError, match="'1'"):
        capture(memory_path / "run.act", "gpt2", many, pool="mean")
    for kind in ("mean", "max", "weighted", "first", "last"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="index_reduce")
            store = capture(memory_path / kind, "gpt2", many, pool=kind, on_empty="zero")
        rows = store["resid"].read()
        assert not rows[1].any()
        assert np.isfinite(rows).all()
        assert rows[0].any()


def test_pooled_ready_batches_padded_on_the_left(memory_path: Path) -> None:
    """Not the vector of a padding token: the last is the last of the sequence, the first the first."""
    for side in ("left", "right", "holes"):
        inputs = batch("gpt2", side=side)
        every = actstore.capture(memory_path / f"{side}-all", built("gpt2"), inputs, progress=False)
        for kind in ("first", "last", "mean"):
            pooled = actstore.capture(
                memory_path / f"{side}-{kind}", built("gpt2"), inputs, pool=kind, progress=False
            )
            wanted = every["resid"].pool(kind).read()
            np.testing.assert_allclose(pooled["resid"].read(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("more", [{}, {"dtype": "float16"}, {"pool": "max"}, {"pool": "mean"}])
@pytest.mark.parametrize("case", CASES)
def test_long_runs_of_rows_and_short_ones(
    case: str, more: dict[str, Any], memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long pieces are copied as they lie, short ones gathered: which it is does not show."""
    from actstore.capturing.forward import row_buffer as window

    found = []
    for longest in (0, 1 << 30):
        monkeypatch.setattr(window, "_LONG_RUN", longest)
        store = actstore.capture(memory_path / f"{longest}.act", **CASES[case](40) | more, on_empty="zero")
        found.append({name: store[name].read() for name in store.sites})
    assert found[0].keys() == found[1].keys()
    for name, rows in found[0].items():
        if "pool" in more or case in ("mean", "stride weighted"):
            np.testing.assert_allclose(rows, found[1][name], rtol=1e-6, atol=1e-7)
        else:
            np.testing.assert_array_equal(rows, found[1][name])
