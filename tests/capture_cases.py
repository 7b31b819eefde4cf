"""What is captured in the tests of runs: small models with random weights, and stores compared to the bit."""

import functools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import transformers
from tiny_models import WORDS, write_tokenizer


@functools.cache
def tokenizer() -> Any:
    """Words as tokens, [CLS] in front and [SEP] behind; at most 32."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tokenizer(Path(folder))


def texts(n: int, seed: int = 0, most: int = 24) -> list[str]:
    """Sentences of 1 to `most` words, all different."""
    rng = random.Random(seed)
    words = WORDS.split()
    return [" ".join([str(words[i % 40]), *rng.choices(words, k=rng.randrange(most))]) for i in range(n)]


def bert(seed: int = 0, dim: int = 16, n_layers: int = 2) -> Any:
    """A BERT."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=80,
        hidden_size=dim,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=64,
    )
    return transformers.BertModel(config).eval()


def gpt2(seed: int = 0) -> Any:
    """A GPT-2 with its head."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=80, n_embd=16, n_layer=2, n_head=2, n_positions=48, bos_token_id=2, eos_token_id=3
    )
    return transformers.GPT2LMHeadModel(config).eval()


def llama(seed: int = 0) -> Any:
    """A Llama in bfloat16."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()


def t5(seed: int = 0) -> Any:
    """A T5: two streams of tokens."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=80,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def vit(seed: int = 0) -> Any:
    """A ViT of 16 patches and a class token."""
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
    )
    return transformers.ViTModel(config).eval()


def with_columns(n: int) -> list[dict[str, Any]]:
    """Inputs with ids and a column of each kind."""
    return [
        {
            "id": f"ex-{i}",
            "text": text,
            "label": text.split()[0],
            "score": i / 7,
            "n": i * i,
            "even": i % 2 == 0,
        }
        for i, text in enumerate(texts(n))
    ]


def ready_batches(n: int) -> list[dict[str, Any]]:
    """Batches of one to five, padded on the left, with ids and a column."""
    rng = random.Random(3)
    encoded = [tokenizer()(text)["input_ids"] for text in texts(n)]
    out = []
    start = 0
    while start < n:
        some = encoded[start : start + rng.randrange(1, 6)]
        width = max(map(len, some)) + rng.randrange(3)
        out.append(
            {
                "input_ids": np.array([[3] * (width - len(ids)) + ids for ids in some]),
                "attention_mask": np.array([[0] * (width - len(ids)) + [1] * len(ids) for ids in some]),
                "id": [f"ready-{start + i}" for i in range(len(some))],
                "length": np.array([len(ids) for ids in some]),
            }
        )
        start += len(some)
    return out


def images(n: int, seed: int = 0) -> list[Any]:
    """Pixel values."""
    rng = np.random.default_rng(seed)
    return list(rng.standard_normal((n, 3, 16, 16)).astype(np.float32))


SMALL: dict[str, Any] = {"batch_tokens": 64, "window": 2, "progress": False}
"""Many windows of few batches."""


def of_text(model: Any, **more: Any) -> dict[str, Any]:
    """Arguments for `capture` of a model that reads texts."""
    return {"model": model, "tokenizer": tokenizer(), **SMALL, **more}


CASES: dict[str, Callable[[int], dict[str, Any]]] = {
    "tokens": lambda n: of_text(
        bert(), texts=with_columns(n), sites=["resid", "mlp_out", "q"], store_text=True
    ),
    "mean": lambda n: of_text(gpt2(), texts=texts(n), pool="mean"),
    "stride": lambda n: of_text(bert(), texts=texts(n), max_length=12, stride=4),
    "stride weighted": lambda n: of_text(
        bert(), texts=texts(n), max_length=12, stride=4, pool="weighted", keep="no-special"
    ),
    "ready": lambda n: of_text(gpt2(), texts=ready_batches(n)) | {"tokenizer": None},
    "two axes": lambda n: of_text(
        t5(), texts=[{"text": a, "target": b} for a, b in zip(texts(n), texts(n, 1), strict=True)]
    ),
    "share": lambda n: of_text(llama(), texts=texts(n), keep=0.4, seed=5, sites=["resid", "logits"]),
    "images": lambda n: {"model": vit(), "texts": images(n), **SMALL},
}


def contents(path: Any) -> dict[str, Any]:
    """All that a store holds, by name, to be compared with ``==``."""
    with actstore.open(path) as store:
        out: dict[str, Any] = {"n_examples": store.n_examples}
        for name in store.sites:
            site = store[name]
            rows = site.read()
            out[name] = (rows.shape, rows.dtype.name, site.layers, rows.tobytes())
        axes = {**store.axes, "examples": store.examples}
        for axis, columns in axes.items():
            if axis != "examples":
                out[f"{axis}/offset"] = columns.offsets.tolist()
            for column in columns:
                values = columns[column]
                out[f"{axis}/{column}"] = (values.dtype.kind, values.tolist())
        return out


def assert_same(path: Any, expected: Any) -> None:
    """Asserts that two stores hold the same, to the bit; says where they do not."""
    ours, theirs = contents(path), contents(expected)
    assert sorted(ours) == sorted(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def assert_beginning(path: Any, expected: Any) -> int:
    """Asserts that a store holds the first examples of another; how many."""
    with actstore.open(path) as store, actstore.open(expected) as whole:
        n = store.n_examples
        assert n <= whole.n_examples
        assert store.sites == whole.sites
        for axis in store.axes:
            offset = store.axes[axis].offsets
            assert (offset == whole.axes[axis].offsets[: n + 1]).all()
            for column in store.axes[axis]:
                assert (store.axes[axis][column] == whole.axes[axis][column][: offset[-1]]).all()
        for column in store.examples:
            assert store.examples[column].tolist() == whole.examples[column][:n].tolist()
        for name in store.sites:
            rows = store[name].read()
            assert rows.tobytes() == whole[name][: len(rows)].tobytes()
        report = store.verify()
        assert report.damaged == []
        return n


def files_of(path: Path) -> dict[str, bytes]:
    """All files of a store, but the lock's."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != "lock"
    }
