"""From inputs to examples: what the model is given, and which token each row is of.

One call of the tokenizer encodes many texts, whole. What does not fit is cut here, as the tokenizer
itself would cut it, so that how much was cut is known, and windows are made of the same encoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..lazy import lazy
from .chat import Chat
from .encoding import Encoding, control_tokens, encoded
from .example import Example, Piece
from .forms import Input
from .kept import Kept
from .pixels import image_examples
from .ready import ReadyBatch, examples_of, ready_batch
from .stride import Window, cut, strided


class Encoder:
    """Makes examples of inputs, the same way for a whole capture.

    Parameters
    ----------
    tokenizer
        Of transformers, fast or slow; None for images and ready batches.
    model_max_length : int or None
        The tokens that the model takes by default; None when it does not say.
    max_length : int, optional
        Cut to fewer.
    stride : int, optional
        Do not cut: long inputs become windows that begin so many content tokens apart. Each token is
        stored once, from the window in which it has most context to its left.
    tokens
        Which rows are stored; see `Kept`.
    seed : int
        For a share of the rows.
    chat : bool or str, optional
        Inputs are chats; see `Chat`.
    prompt : str, optional
        Put before each text.
    encoder_decoder : bool
        There are two streams of tokens.
    decoder_start : int, optional
        The token that a decoder begins with.
    image_processor
        Of transformers.
    max_positions : int, optional
        The tokens that the model can take, where that is not the default.

    Attributes
    ----------
    axes : tuple of str
        ``("tokens",)``, or ``("encoder", "decoder")``.
    template, truncation : dict
        What the identity keeps of how texts became tokens; JSON.

    Raises
    ------
    InvalidInputError
        For a length the model does not take, a stride longer than the room for content, a chat without
        a template, and rows to keep that mean nothing.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model_max_length: int | None,
        max_length: int | None = None,
        stride: int | None = None,
        tokens: Any = "all",
        seed: int = 0,
        chat: bool | str | None = None,
        prompt: str | None = None,
        encoder_decoder: bool = False,
        decoder_start: int | None = None,
        image_processor: Any | None = None,
        max_positions: int | None = None,
    ) -> None:
        if prompt is not None and not isinstance(prompt, str):
            raise InvalidInputError(f"prompt: {prompt!r} is no str")
        if chat and prompt:
            raise InvalidInputError("prompt: a chat has no place for one", hint="put it into the messages")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self._chat = Chat(self._needed(), chat) if chat else None
        self._prompt = prompt or ""
        self._kept = Kept(tokens, seed)
        self._encoder_decoder = encoder_decoder
        self._start = decoder_start
        self.axes: tuple[str, ...] = ("encoder", "decoder") if encoder_decoder else ("tokens",)
        most = max_positions or model_max_length
        self.max_length = _max_length(max_length, model_max_length, most)
        self._most = most if max_length is None else max_length
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
    def rows_by_choice(self) -> bool:
        """Whether which rows are stored is chosen example by example."""
        return self._kept.by_choice

    def encode(self, inputs: Sequence[Input]) -> list[Example]:
        """Examples of texts, chats or images, in order; quickest for some hundreds at a time.

        Raises
        ------
        InvalidInputError
            For inputs that the model cannot take: texts without a tokenizer, messages without ``chat``,
            targets without a decoder, images that cannot be read.
        ShapeError
            For a mask that does not fit its example.
        """
        if not inputs:
            return []
        if any(one.image is not None for one in inputs):
            if not self._kept.all:
                raise InvalidInputError(
                    'tokens: images have no tokens to choose from, only "all" is possible'
                )
            return image_examples(inputs, self.image_processor)
        texts = [self._text(one) for one in inputs]
        control = self._control if self._chat else None
        wholes = encoded(self._needed(), texts, add_special=self._chat is None, control_ids=control)
        if self._encoder_decoder:
            examples = self._two_streams(inputs, wholes)
        else:
            examples = [self._one_stream(*pair) for pair in zip(inputs, wholes, strict=True)]
        for one, text, example in zip(inputs, texts, examples, strict=True):
            example.text = one.text if one.text is not None else text
        return [self._kept.of(example, one.position) for one, example in zip(inputs, examples, strict=True)]

    def ready(self, batch: Mapping[str, Any] | ReadyBatch, first_position: int = 0) -> list[Example]:
        """Examples of a batch made elsewhere, each without its padding.

        Parameters
        ----------
        batch
            ``input_ids`` ``[B, T]`` with ``attention_mask`` ``[B, T]`` where there is padding, on either side
            or in between; other ints ``[B, T]`` are cut alike. Or ``pixel_values`` ``[B, C, H, W]``.
        first_position
            Of its first example; a `ReadyBatch` knows.

        Raises
        ------
        InvalidInputError, ShapeError
            Naming the key or the example that does not fit.
        """
        if self._chat or self._prompt or self.stride is not None:
            raise InvalidInputError(
                "a ready batch is of tokens already", hint="leave out chat, prompt and stride, or give texts"
            )
        if not isinstance(batch, ReadyBatch):
            batch = ready_batch(batch, first_position)
        if batch.images and not self._kept.all:
            raise InvalidInputError('tokens: images have no tokens to choose from, only "all" is possible')
        examples = examples_of(
            batch,
            control_ids=self._control,
            decoder_start=self._decoder_start if self._encoder_decoder else None,
            max_length=self._most,  # Whoever has made them had reasons.
        )
        return [self._kept.of(example, batch.position + i) for i, example in enumerate(examples)]

    # ---- texts ----

    def _text(self, one: Input) -> str:
        """What the tokenizer is given."""
        if one.target is not None and not self._encoder_decoder:
            raise InvalidInputError(
                f"example {one.id!r} has a target, and the model is no encoder-decoder",
                hint="put all of it into the text",
            )
        if self._chat:
            return self._chat.render(one)
        if one.text is None:
            raise InvalidInputError(f"example {one.id!r} has messages", hint="chat=True")
        return self._prompt + one.text

    def _needed(self) -> Any:
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
                "the model's config does not say what its decoder begins with",
                hint="ready batches may have decoder_input_ids",
            )
        return self._start

    # ---- examples ----

    def _one_stream(self, one: Input, whole: Encoding) -> Example:
        windows = self._windows(whole)
        pieces = [Piece(whole.of(w).inputs, {"tokens": w.rows}) for w in windows if len(w.rows)]
        # Windows together keep each token once and in order: their rows are those of the whole.
        kept = whole if len(windows) > 1 else whole.of(windows[0])
        return Example(
            one.id, one.text, one.columns, pieces, {"tokens": _columns(kept)}, len(whole) - len(kept)
        )

    def _two_streams(self, inputs: Sequence[Input], sources: list[Encoding]) -> list[Example]:
        texts = [one.target for one in inputs if one.target is not None]
        targets = iter(encoded(self._needed(), texts, target=True) if texts else ())
        nothing = np.zeros(0, np.int64)
        examples = []
        for one, whole in zip(inputs, sources, strict=True):
            target = Encoding({"input_ids": nothing}, nothing.astype(bool), nothing.astype(bool))
            if one.target is not None:
                target = next(targets)
            encoder, labels = self._cut(whole), self._cut(target)
            n_cut = len(whole) + len(target) - len(encoder) - len(labels)
            decoder = labels.after(self._decoder_start())
            if not len(encoder):  # A decoder without an encoder's output has no rows either.
                decoder = decoder.of(Window(nothing, nothing))
            streams = {"encoder": encoder, "decoder": decoder}
            given = {**encoder.inputs, "decoder_input_ids": decoder.inputs["input_ids"]}
            rows = {axis: np.arange(len(stream)) for axis, stream in streams.items()}
            pieces = [Piece(given, rows)] if len(encoder) else []
            columns = {axis: _columns(stream) for axis, stream in streams.items()}
            examples.append(Example(one.id, one.text, one.columns, pieces, columns, n_cut))
        return examples

    def _cut(self, whole: Encoding) -> Encoding:
        (window,) = self._windows(whole)
        return whole.of(window)

    def _windows(self, whole: Encoding) -> list[Window]:
        """The sequences for the model; only with a stride more than one."""
        if self.max_length is None or len(whole) <= self.max_length:
            every = np.arange(len(whole))
            return [Window(every, every)]
        head, tail = whole.ends
        if self.max_length <= head + tail:
            raise InvalidInputError(_no_room(self.max_length, head + tail))
        if self.stride is None:
            return [cut(len(whole), head, tail, self.max_length, self._side)]
        return strided(len(whole), head, tail, self.max_length, self.stride)

    # ---- checks ----

    @property
    def _side(self) -> str:
        return getattr(self.tokenizer, "truncation_side", "right")

    def _check_room(self) -> None:
        """Between the tokens that are always added something must fit, and at least a stride of it."""
        n_added = 0
        if self.tokenizer is not None and self._chat is None:
            n_added = self.tokenizer.num_special_tokens_to_add(pair=False)
        if self.max_length is not None and self.max_length <= n_added:
            raise InvalidInputError(_no_room(self.max_length, n_added))
        if self.stride is None:
            return
        if self._encoder_decoder:
            raise InvalidInputError(
                "stride: each window of an encoder-decoder would have a decoder of its own",
                hint="cut the texts into examples",
            )
        if self.max_length is None:
            raise InvalidInputError("stride: the model has no maximum length", hint="max_length=...")
        room = self.max_length - n_added
        if isinstance(self.stride, bool) or not isinstance(self.stride, int) or not 0 < self.stride <= room:
            raise InvalidInputError(
                f"stride: {self.stride!r} is not in 1..{room}",
                hint=f"windows of {self.max_length} tokens have room for {room} of the text",
            )


def _columns(encoding: Encoding) -> dict[str, NDArray[Any]]:
    """The columns of an axis on which every token of an encoding is a row."""
    return {
        "id": encoding.inputs["input_ids"].astype(np.int32),
        "position": np.arange(len(encoding), dtype=np.int32),
        "special": encoding.special,
    }


def _no_room(max_length: int, n_added: int) -> str:
    return f"max_length: {max_length} leaves no room for text, the tokenizer adds {n_added} tokens"


def _max_length(asked: int | None, default: int | None, most: int | None) -> int | None:
    """How many tokens go into the model at once.

    Raises
    ------
    InvalidInputError
        When more are asked for than it takes, or none.
    """
    if asked is None:
        return default
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise InvalidInputError(f"max_length: {asked!r} is no positive number of tokens")
    if most is not None and asked > most:
        raise InvalidInputError(
            f"max_length: {asked} tokens, the model takes {most}",
            hint="stride=... keeps all of a long text",
        )
    return asked
