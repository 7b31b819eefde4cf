"""Calling the tokenizer: many texts at once, with a mask of the tokens that it adds to the text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stride import StrideWindow


@dataclass(frozen=True)
class Tokenized:
    """The tokens of one text.

    Attributes
    ----------
    inputs
        Per token, int64 ``[T]``: ``input_ids``, and ``token_type_ids`` if the tokenizer returns them.
    added : bool ``[T]``
        Tokens that the tokenizer added to the text.
    special : bool ``[T]``
        Special tokens: the added ones, or in a chat the control tokens that the template wrote.
    """

    inputs: dict[str, NDArray[np.int64]]
    added: NDArray[np.bool_]
    special: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.special)

    @property
    def ends(self) -> tuple[int, int]:
        """The number of tokens added before the text, and after it."""
        content = np.flatnonzero(~self.added)
        return (int(content[0]), len(self) - 1 - int(content[-1])) if len(content) else (len(self), 0)

    def take(self, window: StrideWindow) -> Tokenized:
        """The tokens of a window."""
        if len(window.tokens) == len(self):
            return self
        inputs = {key: values[window.tokens] for key, values in self.inputs.items()}
        return Tokenized(inputs, self.added[window.tokens], self.special[window.tokens])

    def shifted_right(self, start: int) -> Tokenized:
        """The decoder's inputs for these labels: shifted right by its start token."""
        ids = np.concatenate([np.array([start]), self.inputs["input_ids"][:-1]])
        special = np.concatenate([np.ones(1, bool), self.special[:-1]])
        return Tokenized({"input_ids": ids}, special, special)


def tokenize(
    tokenizer: Any,
    texts: list[str],
    *,
    target: bool = False,
    add_special: bool = True,
    control_ids: NDArray[np.int64] | None = None,
) -> list[Tokenized]:
    """Encode texts without truncation.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers.
    texts
        The texts to encode.
    target
        Whether the texts are for a decoder. Some tokenizers encode those differently.
    add_special
        Whether the tokenizer adds special tokens.
    control_ids
        Ids that count as special anywhere. None: the tokens that the tokenizer adds are the special ones.
    """
    key = "text_target" if target else "text"
    out = tokenizer(
        **{key: texts},
        add_special_tokens=add_special,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    ids = out["input_ids"]
    ends = [0, *itertools.accumulate(map(len, ids))]
    flat = {"input_ids": _flat(ids, ends[-1])}
    if "token_type_ids" in out and not target:
        flat["token_type_ids"] = _flat(out["token_type_ids"], ends[-1])
    masks = out.get("special_tokens_mask", [])
    if list(map(len, masks)) == list(map(len, ids)):
        added = _flat(masks, ends[-1]).astype(bool)
    else:
        plain = tokenizer(**{key: texts}, add_special_tokens=False, verbose=False)["input_ids"]
        added = np.concatenate([_added(*pair) for pair in zip(ids, plain, strict=True)])
    special = added if control_ids is None else np.isin(flat["input_ids"], control_ids)
    return [
        Tokenized({key: values[a:b] for key, values in flat.items()}, added[a:b], special[a:b])
        for a, b in itertools.pairwise(ends)
    ]


def control_tokens(tokenizer: Any) -> NDArray[np.int64]:
    """The ids of control tokens such as ``<|im_start|>``: all special tokens except unk and mask.

    Those two stand for a part of the text. GPT-2's unk is also its end of text, and so a control token.
    """
    if tokenizer is None:
        return np.zeros(0, np.int64)
    names = ("bos", "eos", "cls", "sep")
    ends = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    in_text = {getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "mask")} - ends
    # Llama 3 marks its chat tokens as special, but all_special_ids does not list them.
    marked = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return np.array(sorted((set(tokenizer.all_special_ids) | marked) - in_text), np.int64)


def _flat(rows: Sequence[Iterable[int]], n: int) -> NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, n)


def _added(ids: list[int], content: list[int]) -> NDArray[np.bool_]:
    """The mask of added tokens for a tokenizer that returns none: everything around the content."""
    n = len(content)
    at = next((i for i in range(len(ids) - n + 1) if ids[i : i + n] == content), None)
    added = np.ones(len(ids), bool)
    added[slice(None) if at is None else slice(at, at + n)] = False
    return added
