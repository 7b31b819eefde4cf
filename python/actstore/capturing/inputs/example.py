"""Examples and their pieces: the sequences that go through the model, and which of their rows are stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Piece:
    """One sequence for the model: a row of a batch, without padding.

    Attributes
    ----------
    inputs
        Keyword arguments of ``forward`` for this sequence. Per token, int64 ``[T]``: ``input_ids``,
        ``token_type_ids``, ``decoder_input_ids`` and so on. For an image, ``pixel_values`` float32 ``[C, H,
        W]``.
    rows
        For each axis, the ascending positions in this sequence whose rows are stored. None for an image until
        the session has determined how many rows the model gives.
    """

    inputs: dict[str, NDArray[Any]]
    rows: dict[str, NDArray[np.int64]] | None


@dataclass
class Example:
    """One input, ready for the model.

    Attributes
    ----------
    id
        The example's id in the store.
    text
        The caller's text, or for messages the text that the template rendered. None for images and ready
        batches without texts.
    columns
        The caller's values by column.
    pieces
        One sequence, or several if a stride splits a long input; their stored rows follow one another. An
        example without tokens has none. The session drops pieces that have no rows to store.
    tokens
        For each axis, the columns of all stored rows: ``id`` int32, ``position`` int32, ``special`` bool.
        Empty for images.
    n_cut
        Number of tokens that were truncated.
    """

    id: str
    text: str | None
    columns: dict[str, Any]
    pieces: list[Piece]
    tokens: dict[str, dict[str, NDArray[Any]]]
    n_cut: int
