"""How long pieces are, on which axis, and what they count for."""

import numpy as np
from numpy.typing import NDArray

from ..layout import TOKENS
from .example import Piece

DECODER = "decoder"


def axis_of(key: str, encoder_decoder: bool) -> str:
    """Whose tokens an argument of the model has."""
    if not encoder_decoder:
        return TOKENS
    return DECODER if key.startswith("decoder_") else "encoder"


def lengths(piece: Piece, encoder_decoder: bool) -> dict[str, int]:
    """By axis, how many tokens a piece has; empty for images."""
    return {
        axis_of(key, encoder_decoder): len(value)
        for key, value in piece.inputs.items()
        if key.endswith("input_ids")
    }


def rows_of(piece: Piece) -> dict[str, NDArray[np.int64]]:
    """By axis, which rows of a piece are stored; of images, once that is settled."""
    assert piece.rows is not None, "an image's rows are settled by the session"
    return piece.rows


def n_tokens(piece: Piece) -> int:
    """What a piece counts for in a budget of tokens: one at least."""
    return max(sum(len(value) for key, value in piece.inputs.items() if key.endswith("input_ids")), 1)
