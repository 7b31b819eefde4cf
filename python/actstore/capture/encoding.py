"""The tokenizer's part: many texts become ids in one call, and which of these it added is known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .stride import Window


@dataclass(frozen=True)
class Encoding:
    """The tokens of one text.

    Attributes
    ----------
    inputs
        Per token, int64 ``[T]``: ``input_ids``, and ``token_type_ids`` where the tokenizer gives them.
    added : bool ``[T]``
        Tokens that are not of the text.
    special : bool ``[T]``
        The same, but in a chat, where the template wrote the control tokens, these.
    """

    inputs: dict[str, NDArray[np.int64]]
    added: NDArray[np.bool_]
    special: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.special)

    @property
    def ends(self) -> tuple[int, int]:
        """How many tokens were added before the text and after it."""
        own = np.flatnonzero(~self.added)
        return (int(own[0]), len(self) - 1 - int(own[-1])) if len(own) else (len(self), 0)

    def of(self, window: Window) -> Encoding:
        """The tokens of a window."""
        if len(window.tokens) == len(self):
            return self
        inputs = {key: values[window.tokens] for key, values in self.inputs.items()}
        return Encoding(inputs, self.added[window.tokens], self.special[window.tokens])

    def after(self, start: int) -> Encoding:
        """What a decoder is given of these labels: moved to the right by a token that it begins with."""
        ids = np.concatenate([np.array([start]), self.inputs["input_ids"][:-1]])
        special = np.concatenate([np.ones(1, bool), self.special[:-1]])
        return Encoding({"input_ids": ids}, special, special)


def encoded(
    tokenizer: Any,
    texts: list[str],
    *,
    target: bool = False,
    add_special: bool = True,
    control_ids: NDArray[np.int64] | None = None,
) -> list[Encoding]:
    """The whole encodings of texts, not cut.

    Parameters
    ----------
    tokenizer
        Of transformers.
    texts
        To encode.
    target
        Texts for a decoder: some tokenizers write them in another way.
    add_special
        Whether the tokenizer adds its tokens.
    control_ids
        Ids that are special wherever they stand; None: tokens that the tokenizer added are.
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
        Encoding({key: values[a:b] for key, values in flat.items()}, added[a:b], special[a:b])
        for a, b in itertools.pairwise(ends)
    ]


def control_tokens(tokenizer: Any) -> NDArray[np.int64]:
    """The ids of control tokens, such as ``<|im_start|>``: all that are special, but unk and mask.

    Those two stand for something in the text. GPT-2's unk is its end of text as well, and that counts.
    """
    if tokenizer is None:
        return np.zeros(0, np.int64)
    names = ("bos", "eos", "cls", "sep")
    ends = {getattr(tokenizer, f"{name}_token_id", None) for name in names}
    in_text = {getattr(tokenizer, f"{name}_token_id", None) for name in ("unk", "mask")} - ends
    # Llama 3 marks its chat's tokens as special and does not list them among all_special_ids.
    marked = {i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    return np.array(sorted((set(tokenizer.all_special_ids) | marked) - in_text), np.int64)


def _flat(rows: Sequence[Iterable[int]], n: int) -> NDArray[np.int64]:
    return np.fromiter(itertools.chain.from_iterable(rows), np.int64, n)


def _added(ids: list[int], content: list[int]) -> NDArray[np.bool_]:
    """Which tokens were added, for tokenizers that do not say: all but the content, wherever that begins."""
    n = len(content)
    at = next((i for i in range(len(ids) - n + 1) if ids[i : i + n] == content), None)
    added = np.ones(len(ids), bool)
    added[slice(None) if at is None else slice(at, at + n)] = False
    return added
