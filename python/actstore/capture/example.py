"""What goes into the model and what is stored of it: examples made of pieces."""

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
        Keyword arguments of ``forward`` for this row alone. Per token, int64 ``[T]``: ``input_ids``,
        ``token_type_ids``, ``decoder_input_ids`` and so on; whole, ``pixel_values`` float32 ``[C, H, W]``.
    rows
        By axis, the positions within this sequence whose rows are stored, ascending. None (images): all
        the rows that come out.
    """

    inputs: dict[str, NDArray[Any]]
    rows: dict[str, NDArray[np.int64]] | None


@dataclass
class Example:
    """One input, ready for the model.

    Attributes
    ----------
    id
        The example's name in the store.
    text
        The text as the user gave it, of messages what the template makes of them; None when there was none
        (images, ready batches).
    columns
        The user's own values, one for each column.
    pieces
        One sequence, or several when a long input was cut into windows; their kept rows follow one another.
        An example without tokens has none; the session leaves out those that need not be run.
    tokens
        By axis and by column, over all kept rows: ``id`` int32, ``position`` int32, ``special`` bool.
        Empty for images.
    n_cut
        Tokens that did not fit into the model's length and were left out.
    """

    id: str
    text: str | None
    columns: dict[str, Any]
    pieces: list[Piece]
    tokens: dict[str, dict[str, NDArray[Any]]]
    n_cut: int
