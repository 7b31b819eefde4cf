"""Batching examples: pieces of similar length together, padded on the right."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...errors import InvalidInputError
from .example import Example, Piece
from .sizes import DECODER, axis_of, lengths, n_tokens


@dataclass
class Batch:
    """Pieces that go through the model together.

    Attributes
    ----------
    pieces
        The sequences.
    origins
        For each piece, the number of its example in the row buffer, and the piece's number in the example.
    pad_to
        For each axis, a length to pad to, if it exceeds the longest piece.
    """

    pieces: list[Piece]
    origins: list[tuple[int, int]]
    pad_to: dict[str, int] | None = None


def batches(
    examples: Sequence[Example],
    batch_tokens: int,
    cost: Callable[[Piece], int] = n_tokens,
    padding: bool = True,
) -> list[Batch]:
    """Split examples into batches of at most `batch_tokens` tokens, padding included; the longest first.

    Parameters
    ----------
    examples : sequence of Example
    batch_tokens : int
        A longer piece forms a batch by itself.
    cost : callable
        The number of tokens that a piece counts for.
    padding : bool
        Whether a batch may mix pieces of different lengths. It must not for a model without attention mask.
    """
    pieces = [
        (cost(piece), e, p) for e, example in enumerate(examples) for p, piece in enumerate(example.pieces)
    ]
    pieces.sort(
        key=lambda item: (-item[0], [] if padding else _sizes(examples[item[1]].pieces[item[2]]), *item[1:])
    )
    out: list[Batch] = []
    longest = 0
    sizes: list[int] = []
    for n, e, p in pieces:
        own = [] if padding else _sizes(examples[e].pieces[p])
        if not out or (len(out[-1].pieces) + 1) * longest > batch_tokens or own != sizes:
            out.append(Batch([], []))
            longest, sizes = n, own
        out[-1].pieces.append(examples[e].pieces[p])
        out[-1].origins.append((e, p))
    return out


def _sizes(piece: Piece) -> list[int]:
    return [len(value) for key, value in piece.inputs.items() if key.endswith("input_ids")]


class Collator:
    """Pads the pieces of a batch and builds the keyword arguments of ``forward``.

    Parameters
    ----------
    model : Module
    pad_id : int
        Token id for padding, which the attention mask marks too.
    encoder_decoder : bool
    device : device
        Device of the inputs.
    """

    def __init__(self, model: nn.Module, pad_id: int, encoder_decoder: bool, device: torch.device) -> None:
        self._pad_id, self._encoder_decoder, self._device = pad_id, encoder_decoder, device
        parameters = inspect.signature(model.forward).parameters
        self._takes_any = (
            any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and "input_ids" not in parameters
        )
        self._names = frozenset(parameters)
        # Without a type vocabulary, GPT-2 would add token embeddings for token_type_ids.
        n_types = getattr(getattr(model, "config", None), "type_vocab_size", 0)
        self._has_types = isinstance(n_types, int) and n_types > 0

    def __call__(self, batch: Batch) -> tuple[dict[str, torch.Tensor | bool], dict[str, int]]:
        """The keyword arguments of ``forward``, and the padded length by axis."""
        each = [lengths(piece, self._encoder_decoder) for piece in batch.pieces]
        padded = {axis: max(sizes[axis] for sizes in each) for axis in each[0]}
        padded = {axis: max(n, (batch.pad_to or {}).get(axis, 0)) for axis, n in padded.items()}
        arrays: dict[str, NDArray[Any]] = {}
        for key in batch.pieces[0].inputs:
            if not self._takes(key):
                continue
            values = [piece.inputs[key] for piece in batch.pieces]
            axis = axis_of(key, self._encoder_decoder)
            if axis in padded and all(
                v.ndim == 1 and len(v) == n[axis] for v, n in zip(values, each, strict=True)
            ):
                fill = self._pad_id if key.endswith("input_ids") else 0
                array = np.full((len(values), padded[axis]), fill, values[0].dtype)
                for row, value in zip(array, values, strict=True):
                    row[: len(value)] = value
            else:
                shapes = sorted({value.shape for value in values})
                if len(shapes) > 1:
                    raise InvalidInputError(
                        f"{key}: several shapes: {', '.join(str(list(shape)) for shape in shapes)}",
                        hint="all images must have the same size",
                    )
                array = np.stack(values)
            arrays[key] = array
        for axis, length in padded.items():
            key = "decoder_attention_mask" if axis == DECODER else "attention_mask"
            if self._takes(key):
                ends = np.array([sizes[axis] for sizes in each])
                arrays[key] = (np.arange(length) < ends[:, None]).astype(np.int64)
        inputs: dict[str, torch.Tensor | bool] = {
            key: torch.from_numpy(array).to(self._device, non_blocking=True) for key, array in arrays.items()
        }
        if "use_cache" in self._names:
            inputs["use_cache"] = False
        return inputs, padded

    @property
    def masks(self) -> bool:
        """Whether the model takes an attention mask."""
        return self._takes("attention_mask")

    def _takes(self, key: str) -> bool:
        if key == "token_type_ids" and not self._has_types:
            return False
        return self._takes_any or key in self._names
