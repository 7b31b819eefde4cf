"""Batches that were made elsewhere: padding is taken off each row, wherever the attention mask says it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import as_numpy
from ..errors import InvalidInputError, ShapeError
from .example import Example, Piece
from .forms import as_id, check_name, scalar
from .pixels import pixel_values
from .sizes import axis_of

_MASKS = ("attention_mask", "decoder_attention_mask", "special_tokens_mask")


@dataclass(frozen=True)
class ReadyBatch:
    """A ready batch, taken apart into its `n` examples.

    Attributes
    ----------
    position
        Of its first example, in the whole input.
    n
        How many examples it has.
    tokens
        By key, int64 ``[T_i]`` for each example, padding and all; ``labels`` among them where given.
    masks
        By key, bool ``[T_i]`` for each example.
    images
        ``[C, H, W]`` for each example; empty for tokens.
    ids, texts
        One for each example, or None.
    columns
        One value for each example, by column.
    """

    position: int
    n: int
    tokens: dict[str, list[NDArray[np.int64]]]
    masks: dict[str, list[NDArray[np.bool_]]]
    images: list[NDArray[Any]]
    ids: list[str] | None
    texts: list[str] | None
    columns: dict[str, list[Any]]


def batch_size(batch: Mapping[str, Any]) -> int:
    """How many examples a ready batch has."""
    lead = _lead(batch)
    value = batch[lead]
    if not hasattr(value, "__len__") or isinstance(value, str | bytes):
        raise InvalidInputError(f"ready batch: {lead} is {value!r:.60}, not an array [B, ...]")
    return 1 if _is_single(value, lead) else len(value)


def ready_batch(batch: Mapping[str, Any], position: int) -> ReadyBatch:
    """A dict of arrays, tensors or lists, taken apart.

    Keys are told apart by their shapes: ``[B, T]`` is per token, ``[B]`` a column (``id`` and ``text`` the
    ids and texts). Without the first axis it is one example.

    Raises
    ------
    InvalidInputError, ShapeError
        Naming the key that does not fit.
    """
    lead = _lead(batch)
    what = f"ready batch at example {position}"
    if batch_size(batch) == 0:
        raise InvalidInputError(f"{what} has no examples", hint="leave it out")
    single = _is_single(batch[lead], lead)
    given = {
        key: _rows([value] if single else value, f"{what}: {key}")
        for key, value in batch.items()
        if value is not None
    }
    out = ReadyBatch(position, len(given[lead]), {}, {}, [], None, None, {})
    for key, rows in given.items():
        name = f"{what}: {key}"
        if len(rows) != out.n:
            raise ShapeError(f"{name} has {len(rows)} rows, {lead} has {out.n}")
        if key == "pixel_values":
            out.images.extend(pixel_values(row, f"{name}[{i}]") for i, row in enumerate(rows))
        elif key == "id":
            out = replace(out, ids=[as_id(_value(row), position + i) for i, row in enumerate(rows)])
        elif key == "text":
            out = replace(out, texts=[str(row) for row in _strings(rows, name)])
        elif all(isinstance(row, str) or row.ndim == 0 for row in rows):
            check_name(key)
            out.columns[key] = [scalar(_value(row), key, position + i) for i, row in enumerate(rows)]
        elif key in _MASKS:
            out.masks[key] = [_mask(row, name) for row in rows]
        else:
            out.tokens[key] = [_integers(row, name) for row in rows]
    _check_lengths(out, what)
    return out


def examples_of(
    batch: ReadyBatch,
    *,
    control_ids: NDArray[np.int64],
    decoder_start: Callable[[], int] | None,
    max_length: int | None,
) -> list[Example]:
    """The examples of a batch, each without padding and with all its rows.

    Parameters
    ----------
    batch
        Taken apart.
    control_ids
        Which ids are special where the batch has no ``special_tokens_mask``.
    decoder_start
        Of an encoder-decoder; asked for only when the batch has no ``decoder_input_ids``.
    max_length
        What the model takes.

    Raises
    ------
    InvalidInputError
        For an example longer than that, and for decoder inputs of a model without a decoder.
    """
    return [
        _image(batch, i) if batch.images else _example(batch, i, control_ids, decoder_start, max_length)
        for i in range(batch.n)
    ]


def _image(batch: ReadyBatch, i: int) -> Example:
    return Example(
        _id(batch, i), None, _own(batch, i), [Piece({"pixel_values": batch.images[i]}, None)], {}, 0
    )


def _example(
    batch: ReadyBatch,
    i: int,
    control_ids: NDArray[np.int64],
    decoder_start: Callable[[], int] | None,
    max_length: int | None,
) -> Example:
    name = _id(batch, i)
    tokens = {key: rows[i] for key, rows in batch.tokens.items()}
    labels = tokens.pop("labels", None)
    inputs = {}
    real = _real(batch, "attention_mask", i)
    special = {}
    for key, values in tokens.items():
        of_decoder = key.startswith("decoder_")
        keep = _real(batch, "decoder_attention_mask", i) if of_decoder else real
        inputs[key] = np.ascontiguousarray(values if keep is None else values[keep])
    ids = {"tokens": inputs["input_ids"]}
    if "special_tokens_mask" in batch.masks:
        given = batch.masks["special_tokens_mask"][i]
        special["tokens"] = given if real is None else given[real]
    if decoder_start is not None:
        if "decoder_input_ids" not in inputs:
            # As the model makes them of labels, in which -100 is padding.
            after = np.zeros(0, np.int64) if labels is None else labels[labels != -100][:-1]
            inputs["decoder_input_ids"] = np.concatenate([np.array([decoder_start()]), after])
        if not len(inputs["input_ids"]):  # A decoder without an encoder's output has no rows either.
            inputs["decoder_input_ids"] = np.zeros(0, np.int64)
        ids = {"encoder": inputs["input_ids"], "decoder": inputs["decoder_input_ids"]}
        special = {"encoder": special["tokens"]} if special else {}
    elif any(key.startswith("decoder_") for key in inputs):
        raise InvalidInputError("ready batch with decoder inputs: the model is no encoder-decoder")
    for axis, values in ids.items():
        if max_length is not None and len(values) > max_length:
            raise InvalidInputError(
                f"example {name!r} of a ready batch has {len(values)} {axis}, the limit is {max_length}",
                hint="truncate where the batch is made, or give texts",
            )
        if (values < 0).any():
            raise InvalidInputError(f"example {name!r} of a ready batch has a negative token id")
    columns = {
        axis: {
            "id": values.astype(np.int32),
            "position": np.arange(len(values), dtype=np.int32),
            "special": special[axis] if axis in special else np.isin(values, control_ids),
        }
        for axis, values in ids.items()
    }
    for key, values in inputs.items():  # What else the model was given of each token is kept too.
        axis = axis_of(key, len(ids) > 1)
        if not key.endswith("input_ids") and values.ndim == 1 and len(values) == len(ids[axis]):
            columns[axis][key] = values
    rows = {axis: np.arange(len(values)) for axis, values in ids.items()}
    pieces = [Piece(inputs, rows)] if any(map(len, rows.values())) else []
    return Example(name, batch.texts[i] if batch.texts else None, _own(batch, i), pieces, columns, 0)


def _id(batch: ReadyBatch, i: int) -> str:
    return batch.ids[i] if batch.ids else str(batch.position + i)


def _own(batch: ReadyBatch, i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in batch.columns.items()}


def _real(batch: ReadyBatch, key: str, i: int) -> NDArray[np.bool_] | None:
    return batch.masks[key][i] if key in batch.masks else None


# ---- taking apart ----


def _lead(batch: Mapping[str, Any]) -> str:
    if "inputs_embeds" in batch:
        raise InvalidInputError(
            "ready batch: inputs_embeds are vectors, and a store keeps which tokens its rows are of",
            hint="give input_ids; the model looks the vectors up",
        )
    if "input_ids" in batch and "pixel_values" in batch:
        raise InvalidInputError(
            "ready batch: it has both input_ids and pixel_values", hint="capture texts and images apart"
        )
    return "input_ids" if "input_ids" in batch else "pixel_values"


def _is_single(value: Any, lead: str) -> bool:
    """Whether the axis of examples is missing."""
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], int | np.integer)
    return len(getattr(value, "shape", ())) == {"input_ids": 1, "pixel_values": 3}[lead]


def _rows(value: Any, what: str) -> list[Any]:
    """Each example's own: arrays of any number of axes, or strings."""
    if isinstance(value, str | bytes | Mapping):
        raise InvalidInputError(f"{what} is a {type(value).__name__}", hint="leave it out of the batch")
    if isinstance(value, list | tuple):
        return [row if isinstance(row, str) else as_numpy(row, what) for row in value]
    array = as_numpy(value, what)
    if array.ndim == 0:
        raise InvalidInputError(f"{what} is a single number", hint="leave it out of the batch")
    return [str(row) for row in array] if array.dtype.kind == "U" else [as_numpy(row, what) for row in array]


def _value(row: Any) -> Any:
    return row if isinstance(row, str) else row.item()


def _strings(rows: list[Any], what: str) -> list[str]:
    if not all(isinstance(row, str) for row in rows):
        raise InvalidInputError(f"{what} is no list of str")
    return rows


def _mask(row: Any, what: str) -> NDArray[np.bool_]:
    if isinstance(row, str) or row.ndim != 1:
        raise ShapeError(f"{what}: expected [B, T], got one more or one less axis")
    mask: NDArray[np.bool_] = row.astype(bool)
    if not np.array_equal(mask, row):
        raise InvalidInputError(f"{what} has values other than 0 and 1")
    return mask


def _integers(row: Any, what: str) -> NDArray[np.int64]:
    if isinstance(row, str) or row.ndim != 1 or not (row.dtype.kind in "iu" or row.size == 0):
        got = "str" if isinstance(row, str) else f"{row.dtype} with {row.ndim + 1} axes"
        raise InvalidInputError(
            f"{what} is {got}; there may be ints [B, T] for tokens and values [B] for columns",
            hint="leave it out of the batch",
        )
    ids: NDArray[np.int64] = row.astype(np.int64)
    return ids


def _check_lengths(batch: ReadyBatch, what: str) -> None:
    for key, rows in (batch.tokens | batch.masks).items():
        if key == "labels":
            continue
        lead = "decoder_input_ids" if key.startswith("decoder_") else "input_ids"
        for i, (row, first) in enumerate(zip(rows, batch.tokens.get(lead, []), strict=False)):
            if len(row) != len(first):
                raise ShapeError(f"{what}: {key} of row {i} has {len(row)} tokens, {lead} has {len(first)}")
        if rows and lead not in batch.tokens:
            raise InvalidInputError(f"{what}: {key} without {lead}")
