"""Turning inputs into examples: the model's inputs, and the token of each row.

One call of the tokenizer encodes many texts without truncation. Truncation happens here, exactly as the
tokenizer would do it, so that the number of truncated tokens is known, and windows are cut from the same
encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.lazy import lazy
from ...errors import InvalidInputError
from .chat import Chat
from .example import Example, Piece
from .forms import Input
from .pixels import image_examples
from .ready import ReadyBatch, examples_of, ready_batch
from .stride import StrideWindow, strided, truncated
from .token_filter import TokenFilter
from .tokenize import Tokenized, control_tokens, tokenize


class Encoder:
    """Turns inputs into examples, the same way for a whole capture.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers, fast or slow; None for images and ready batches.
    model_max_length : int or None
        The model's default maximum number of tokens; None if it has none.
    max_length : int, optional
        Truncate to fewer tokens.
    stride : int, optional
        Instead of truncating, split long inputs into windows that start this many content tokens apart. Each
        token is stored once, from the window with the most left context.
    keep
        The token filter; see `TokenFilter`.
    seed : int
        For a fraction of the rows.
    chat : bool or str, optional
        Inputs are chats; see `Chat`.
    prompt : str, optional
        Prepended to each text.
    encoder_decoder : bool
        Whether the model has an encoder and a decoder.
    decoder_start : int, optional
        The start token of a decoder.
    image_processor
        An image processor of transformers.
    max_positions : int, optional
        The model's upper limit on tokens, if it differs from the default.

    Attributes
    ----------
    axes : tuple of str
        ``("tokens",)``, or ``("encoder", "decoder")``.
    template, truncation : dict
        The settings that turn texts into tokens, as the identity records them; JSON.

    Raises
    ------
    InvalidInputError
        For a length that the model does not support, a stride longer than the room for content, a chat
        without a template, or an invalid `keep`.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model_max_length: int | None,
        max_length: int | None = None,
        stride: int | None = None,
        keep: Any = "all",
        seed: int = 0,
        chat: bool | str | None = None,
        prompt: str | None = None,
        encoder_decoder: bool = False,
        decoder_start: int | None = None,
        image_processor: Any | None = None,
        max_positions: int | None = None,
    ) -> None:
        if prompt is not None and not isinstance(prompt, str):
            raise InvalidInputError(f"prompt: {prompt!r} is not a str")
        if chat and prompt:
            raise InvalidInputError("prompt: a chat takes no prompt", hint="add it to the messages")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self._chat = Chat(self._required_tokenizer(), chat) if chat else None
        self._prompt = prompt or ""
        self._filter = TokenFilter(keep, seed)
        self._encoder_decoder = encoder_decoder
        self._start = decoder_start
        self.axes: tuple[str, ...] = ("encoder", "decoder") if encoder_decoder else ("tokens",)
        limit = max_positions or model_max_length
        self.max_length = _max_length(max_length, model_max_length, limit)
        self._ready_limit = limit if max_length is None else max_length
        self.stride = stride
        self._check_room()
        self.template: dict[str, Any] = {
            "chat": chat or None,
            "prompt": prompt or None,
            "add_special_tokens": self._chat is None,
            "chat_template": self._chat.hash if self._chat else None,
        }
        self.truncation: dict[str, Any] = {
            "max_length": self.max_length,
            "stride": stride,
            "side": self._side,
        }

    @property
    def filters_by_mask(self) -> bool:
        """Whether a function or masks choose the rows of each example."""
        return self._filter.is_mask

    def encode(self, inputs: Sequence[Input]) -> list[Example]:
        """Encode texts, chats or images, in order; fastest for several hundred at once.

        Raises
        ------
        InvalidInputError
            For inputs that the model does not take: texts without a tokenizer, messages without ``chat``,
            targets without a decoder, images that cannot be read.
        ShapeError
            For a mask that does not fit its example.
        """
        if not inputs:
            return []
        if any(one.image is not None for one in inputs):
            if not self._filter.keeps_all:
                raise InvalidInputError('keep: images have no tokens to select, so only "all" is possible')
            return image_examples(inputs, self.image_processor)
        texts = [self._text(one) for one in inputs]
        control = self._control if self._chat else None
        encodings = tokenize(
            self._required_tokenizer(), texts, add_special=self._chat is None, control_ids=control
        )
        if self._encoder_decoder:
            examples = self._two_streams(inputs, encodings)
        else:
            examples = [self._one_stream(*pair) for pair in zip(inputs, encodings, strict=True)]
        for one, text, example in zip(inputs, texts, examples, strict=True):
            example.text = one.text if one.text is not None else text
        return [
            self._filter.apply(example, one.position) for one, example in zip(inputs, examples, strict=True)
        ]

    def ready(self, batch: Mapping[str, Any] | ReadyBatch, first_position: int = 0) -> list[Example]:
        """Split a ready batch into examples, without padding.

        Parameters
        ----------
        batch
            ``input_ids`` ``[B, T]`` with ``attention_mask`` ``[B, T]`` if there is padding, at any position;
            other ints ``[B, T]`` are stripped alike. Or ``pixel_values`` ``[B, C, H, W]``.
        first_position
            Position of its first example in the whole input, if `batch` is not a `ReadyBatch`.

        Raises
        ------
        InvalidInputError, ShapeError
            With the key or the example that does not fit.
        """
        if self._chat or self._prompt or self.stride is not None:
            raise InvalidInputError(
                "chat, prompt and stride do not apply to ready batches, which are tokenized already",
                hint="leave them out, or pass texts",
            )
        if not isinstance(batch, ReadyBatch):
            batch = ready_batch(batch, first_position)
        if batch.images and not self._filter.keeps_all:
            raise InvalidInputError('keep: images have no tokens to select, so only "all" is possible')
        examples = examples_of(
            batch,
            control_ids=self._control,
            decoder_start=self._decoder_start if self._encoder_decoder else None,
            # Whoever made the batch chose its length: only the model's upper limit counts.
            max_length=self._ready_limit,
        )
        return [self._filter.apply(example, batch.position + i) for i, example in enumerate(examples)]

    # ---- texts ----

    def _text(self, one: Input) -> str:
        """The text for the tokenizer."""
        if one.target is not None and not self._encoder_decoder:
            raise InvalidInputError(
                f"example {one.id!r} has a target, but the model is not an encoder-decoder",
                hint="put everything into the text",
            )
        if self._chat:
            return self._chat.render(one)
        if one.text is None:
            raise InvalidInputError(f"example {one.id!r} has messages", hint="chat=True renders them")
        return self._prompt + one.text

    def _required_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InvalidInputError(
                "there is no tokenizer to encode texts with", hint="tokenizer=..., or load the model by name"
            )
        return self.tokenizer

    @lazy
    def _control(self) -> NDArray[np.int64]:
        return control_tokens(self.tokenizer)

    def _decoder_start(self) -> int:
        if self._start is None:
            raise InvalidInputError(
                "the model's config has no decoder_start_token_id",
                hint="pass ready batches with decoder_input_ids",
            )
        return self._start

    # ---- examples ----

    def _one_stream(self, one: Input, tokenized: Tokenized) -> Example:
        windows = self._windows(tokenized)
        pieces = [Piece(tokenized.take(w).inputs, {"tokens": w.rows}) for w in windows if len(w.rows)]
        # Together, the windows of a stride store positions token once and in order.
        stored = tokenized if len(windows) > 1 else tokenized.take(windows[0])
        return Example(
            one.id, one.text, one.columns, pieces, {"tokens": _columns(stored)}, len(tokenized) - len(stored)
        )

    def _two_streams(self, inputs: Sequence[Input], sources: list[Tokenized]) -> list[Example]:
        texts = [one.target for one in inputs if one.target is not None]
        targets = iter(tokenize(self._required_tokenizer(), texts, target=True) if texts else ())
        nothing = np.zeros(0, np.int64)
        examples = []
        for one, tokenized in zip(inputs, sources, strict=True):
            target = Tokenized({"input_ids": nothing}, nothing.astype(bool), nothing.astype(bool))
            if one.target is not None:
                target = next(targets)
            encoder, labels = self._truncate(tokenized), self._truncate(target)
            n_cut = len(tokenized) + len(target) - len(encoder) - len(labels)
            decoder = labels.shifted_right(self._decoder_start())
            if not len(encoder):  # Without an encoder output the decoder has no rows either.
                decoder = decoder.take(StrideWindow(nothing, nothing))
            streams = {"encoder": encoder, "decoder": decoder}
            arguments = {**encoder.inputs, "decoder_input_ids": decoder.inputs["input_ids"]}
            rows = {axis: np.arange(len(stream)) for axis, stream in streams.items()}
            pieces = [Piece(arguments, rows)] if len(encoder) else []
            columns = {axis: _columns(stream) for axis, stream in streams.items()}
            examples.append(Example(one.id, one.text, one.columns, pieces, columns, n_cut))
        return examples

    def _truncate(self, tokenized: Tokenized) -> Tokenized:
        (window,) = self._windows(tokenized)
        return tokenized.take(window)

    def _windows(self, tokenized: Tokenized) -> list[StrideWindow]:
        """The sequences for the model; more than one only with a stride."""
        if self.max_length is None or len(tokenized) <= self.max_length:
            positions = np.arange(len(tokenized))
            return [StrideWindow(positions, positions)]
        head, tail = tokenized.ends
        if self.max_length <= head + tail:
            raise InvalidInputError(_no_room(self.max_length, head + tail))
        if self.stride is None:
            return [truncated(len(tokenized), head, tail, self.max_length, self._side)]
        return strided(len(tokenized), head, tail, self.max_length, self.stride)

    # ---- checks ----

    @property
    def _side(self) -> str:
        return getattr(self.tokenizer, "truncation_side", "right")

    def _check_room(self) -> None:
        """Check that besides the special tokens there is room for content, and for a stride of it."""
        n_added = 0
        if self.tokenizer is not None and self._chat is None:
            n_added = self.tokenizer.num_special_tokens_to_add(pair=False)
        if self.max_length is not None and self.max_length <= n_added:
            raise InvalidInputError(_no_room(self.max_length, n_added))
        if self.stride is None:
            return
        if self._encoder_decoder:
            raise InvalidInputError(
                "stride: not supported for an encoder-decoder, where each window would need its own decoder",
                hint="split the texts into examples",
            )
        if self.max_length is None:
            raise InvalidInputError("stride: the model has no maximum length", hint="max_length=...")
        room = self.max_length - n_added
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or not 0 < self.stride <= room:
            raise InvalidInputError(
                f"stride: {self.stride!r} is not in 1..{room}",
                hint=f"a window of {self.max_length} tokens has room for {room} tokens of the text",
            )


def _columns(encoding: Tokenized) -> dict[str, NDArray[Any]]:
    """The columns of an axis on which every token of an encoding has a row."""
    return {
        "id": encoding.inputs["input_ids"].astype(np.int32),
        "position": np.arange(len(encoding), dtype=np.int32),
        "special": encoding.special,
    }


def _no_room(max_length: int, n_added: int) -> str:
    return f"max_length: {max_length} leaves no room for text, the tokenizer adds {n_added} tokens"


def _max_length(requested: int | None, default: int | None, limit: int | None) -> int | None:
    """The maximum number of tokens of a sequence.

    Raises
    ------
    InvalidInputError
        If `requested` is not positive or exceeds the model's limit.
    """
    if requested is None:
        return default
    if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
        raise InvalidInputError(f"max_length: {requested!r} is not a positive int")
    if limit is not None and requested > limit:
        raise InvalidInputError(
            f"max_length: {requested} tokens, the model takes {limit}",
            hint="stride=... stores all of a long text",
        )
    return requested
