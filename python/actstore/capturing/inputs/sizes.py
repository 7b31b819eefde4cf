"""The lengths of pieces by axis, and their cost in a token budget."""

import numpy as np
from numpy.typing import NDArray

from ...disk.layout import TOKENS
from .example import Piece

DECODER = "decoder"


def axis_of(key: str, encoder_decoder: bool) -> str:
    """The token axis of an argument of ``forward``."""
    if not encoder_decoder:
        return TOKENS
    return DECODER if key.startswith("decoder_") else "encoder"


def lengths(piece: Piece, encoder_decoder: bool) -> dict[str, int]:
    """The number of tokens of a piece by axis; empty for images."""
    return {
        axis_of(key, encoder_decoder): len(value)
        for key, value in piece.inputs.items()
        if key.endswith("input_ids")
    }


def stored_rows(piece: Piece) -> dict[str, NDArray[np.int64]]:
    """The positions of a piece's stored rows by axis. For an image, only after `Session.finalize`."""
    assert piece.rows is not None, "the session has not determined the rows of this image"
    return piece.rows


def n_tokens(piece: Piece) -> int:
    """The cost of a piece in a token budget, at least 1."""
    return max(sum(len(value) for key, value in piece.inputs.items() if key.endswith("input_ids")), 1)
