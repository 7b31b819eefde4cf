"""Ready batches: the caller's own token ids or pixel values. The attention mask marks padding for removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.arrays import as_numpy
from ...errors import InvalidInputError, ShapeError
from .example import Example, Piece
from .forms import as_id, check_name, scalar
from .pixels import pixel_values
from .sizes import axis_of

_MASKS = ("attention_mask", "decoder_attention_mask", "special_tokens_mask")


@dataclass(frozen=True)
class ReadyBatch:
    """A ready batch, split into its `n` examples.

    Attributes
    ----------
    position
        Position of its first example in the whole input.
    n
        Number of examples.
    tokens
        By key, int64 ``[T_i]`` for each example, padding included; also ``labels``, if the batch has them.
    masks
        By key, bool ``[T_i]`` for each example.
    images
        ``[C, H, W]`` for each example; empty for tokens.
    ids, texts
        One for each example, or None.
    columns
        By column, one value for each example.
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
    """The number of examples in a ready batch."""
    main_key = _main_key(batch)
    value = batch[main_key]
    if not hasattr(value, "__len__") or isinstance(value, str | bytes):
        raise InvalidInputError(f"ready batch: {main_key} is {value!r:.60}, not an array [B, ...]")
    return 1 if _is_single(value, main_key) else len(value)


def ready_batch(batch: Mapping[str, Any], position: int) -> ReadyBatch:
    """Split a dict of arrays, tensors or lists into examples.

    The shape of a value determines its role: ``[B, T]`` is per token, ``[B]`` is a column (``id`` and
    ``text`` are ids and texts). Without the axis B the batch is a single example.

    Raises
    ------
    InvalidInputError, ShapeError
        If a value does not fit. The message names its key.
    """
    main_key = _main_key(batch)
    what = f"ready batch at example {position}"
    if batch_size(batch) == 0:
        raise InvalidInputError(f"{what} has no examples", hint="leave it out")
    single = _is_single(batch[main_key], main_key)
    rows_by_key = {
        key: _rows([value] if single else value, f"{what}: {key}")
        for key, value in batch.items()
        if value is not None
    }
    out = ReadyBatch(position, len(rows_by_key[main_key]), {}, {}, [], None, None, {})
    for key, rows in rows_by_key.items():
        name = f"{what}: {key}"
        if len(rows) != out.n:
            raise ShapeError(f"{name} has {len(rows)} rows, {main_key} has {out.n}")
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
    """The examples of a batch, without padding and with all rows stored.

    Parameters
    ----------
    batch
        The batch.
    control_ids
        Ids of special tokens, for a batch without ``special_tokens_mask``.
    decoder_start
        Returns the decoder's start token, for an encoder-decoder. Called only if the batch has no
        ``decoder_input_ids``. None for other models.
    max_length
        Maximum number of tokens of an example.

    Raises
    ------
    InvalidInputError
        For an example longer than `max_length`, and for decoder inputs of a model without a decoder.
    """
    return [
        _image(batch, i) if batch.images else _example(batch, i, control_ids, decoder_start, max_length)
        for i in range(batch.n)
    ]


def _image(batch: ReadyBatch, i: int) -> Example:
    return Example(
        _id(batch, i), None, _column_values(batch, i), [Piece({"pixel_values": batch.images[i]}, None)], {}, 0
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
    mask = _mask_of(batch, "attention_mask", i)
    special = {}
    for key, values in tokens.items():
        is_decoder = key.startswith("decoder_")
        key_mask = _mask_of(batch, "decoder_attention_mask", i) if is_decoder else mask
        inputs[key] = np.ascontiguousarray(values if key_mask is None else values[key_mask])
    ids = {"tokens": inputs["input_ids"]}
    if "special_tokens_mask" in batch.masks:
        special_mask = batch.masks["special_tokens_mask"][i]
        special["tokens"] = special_mask if mask is None else special_mask[mask]
    if decoder_start is not None:
        if "decoder_input_ids" not in inputs:
            # Shift the labels right as the model does. -100 marks padding in labels.
            shifted = np.zeros(0, np.int64) if labels is None else labels[labels != -100][:-1]
            inputs["decoder_input_ids"] = np.concatenate([np.array([decoder_start()]), shifted])
        if not len(inputs["input_ids"]):  # Without an encoder output the decoder has no rows either.
            inputs["decoder_input_ids"] = np.zeros(0, np.int64)
        ids = {"encoder": inputs["input_ids"], "decoder": inputs["decoder_input_ids"]}
        special = {"encoder": special["tokens"]} if special else {}
    elif any(key.startswith("decoder_") for key in inputs):
        raise InvalidInputError("ready batch with decoder inputs, but the model is not an encoder-decoder")
    for values in ids.values():
        if max_length is not None and len(values) > max_length:
            raise InvalidInputError(
                f"example {name!r} of a ready batch has {len(values)} tokens, the limit is {max_length}",
                hint="truncate the batch, or pass texts",
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
    for key, values in inputs.items():  # Other inputs per token become columns too.
        axis = axis_of(key, len(ids) > 1)
        if not key.endswith("input_ids") and values.ndim == 1 and len(values) == len(ids[axis]):
            columns[axis][key] = values
    rows = {axis: np.arange(len(values)) for axis, values in ids.items()}
    pieces = [Piece(inputs, rows)] if any(map(len, rows.values())) else []
    text = batch.texts[i] if batch.texts else None
    return Example(name, text, _column_values(batch, i), pieces, columns, 0)


def _id(batch: ReadyBatch, i: int) -> str:
    return batch.ids[i] if batch.ids else str(batch.position + i)


def _column_values(batch: ReadyBatch, i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in batch.columns.items()}


def _mask_of(batch: ReadyBatch, key: str, i: int) -> NDArray[np.bool_] | None:
    return batch.masks[key][i] if key in batch.masks else None


# ---- splitting a batch ----


def _main_key(batch: Mapping[str, Any]) -> str:
    """The key of the model's main input: token ids or pixel values."""
    if "inputs_embeds" in batch:
        raise InvalidInputError(
            "ready batch: inputs_embeds are not supported, since a store records the token id of each row",
            hint="pass input_ids",
        )
    if "input_ids" in batch and "pixel_values" in batch:
        raise InvalidInputError(
            "ready batch: it has both input_ids and pixel_values", hint="capture texts and images separately"
        )
    return "input_ids" if "input_ids" in batch else "pixel_values"


def _is_single(value: Any, main_key: str) -> bool:
    """Whether the batch axis is missing."""
    if isinstance(value, list | tuple):
        return bool(value) and isinstance(value[0], int | np.integer)
    return len(getattr(value, "shape", ())) == {"input_ids": 1, "pixel_values": 3}[main_key]


def _rows(value: Any, what: str) -> list[Any]:
    """The value of each example: an array with any number of axes, or a str."""
    if isinstance(value, str | bytes | Mapping):
        raise InvalidInputError(f"{what} has type {type(value).__name__}", hint="leave it out of the batch")
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
        raise InvalidInputError(f"{what} is not a list of str")
    return rows


def _mask(row: Any, what: str) -> NDArray[np.bool_]:
    if isinstance(row, str) or row.ndim != 1:
        raise ShapeError(f"{what}: expected [B, T], got another number of axes")
    mask: NDArray[np.bool_] = row.astype(bool)
    if not np.array_equal(mask, row):
        raise InvalidInputError(f"{what} has values other than 0 and 1")
    return mask


def _integers(row: Any, what: str) -> NDArray[np.int64]:
    if isinstance(row, str) or row.ndim != 1 or not (row.dtype.kind in "iu" or row.size == 0):
        got = "str" if isinstance(row, str) else f"{row.dtype} with {row.ndim + 1} axes"
        raise InvalidInputError(
            f"{what} is {got}, neither ints per token [B, T] nor a column [B]",
            hint="leave it out of the batch",
        )
    ids: NDArray[np.int64] = row.astype(np.int64)
    return ids


def _check_lengths(batch: ReadyBatch, what: str) -> None:
    for key, rows in (batch.tokens | batch.masks).items():
        if key == "labels":
            continue
        main_key = "decoder_input_ids" if key.startswith("decoder_") else "input_ids"
        for i, (row, first) in enumerate(zip(rows, batch.tokens.get(main_key, []), strict=False)):
            if len(row) != len(first):
                raise ShapeError(
                    f"{what}: {key} of row {i} has {len(row)} tokens, {main_key} has {len(first)}"
                )
        if rows and main_key not in batch.tokens:
            raise InvalidInputError(f"{what}: {key} without {main_key}")
