"""The forms an input may have (text, (id, text), dict, image), normalized to `Input`.

All inputs of a capture must have the same form. A dict without an ``id`` among dicts with one is usually a
mistake in the data, and so is a string among dicts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...base.checks import check_column
from ...base.text import type_name
from ...errors import InvalidInputError

CONTENT = ("text", "messages", "image")
"""Keys of a dict with the model's input; each dict has exactly one of them."""

_KEYS = ("id", "target", *CONTENT)
_OURS = ("id", "text", "n_cut", "n_nonfinite", "n_rows")
"""Columns that `capture` writes itself."""
_READY = ("input_ids", "pixel_values", "inputs_embeds")


@dataclass(frozen=True)
class Input:
    """One normalized input.

    Attributes
    ----------
    position
        Position in the whole input over all processes, from 0.
    id
        By default the position as text.
    text, messages, image
        The model's input; exactly one is not None. `image` is a PIL image, a path, or pixel values
        ``[C, H, W]``.
    target
        The text for the decoder of an encoder-decoder.
    columns
        The caller's values by column.
    """

    position: int
    id: str
    text: str | None
    target: str | None
    messages: list[dict[str, Any]] | None
    image: Any | None
    columns: dict[str, Any]


def is_ready(item: object) -> bool:
    """Whether an item is a ready batch: the output of a tokenizer or an image processor."""
    return isinstance(item, Mapping) and any(key in item for key in _READY)


def form_of(item: object) -> str:
    """The form of an item in words, for comparing forms and for messages."""
    if is_ready(item):
        return "a ready batch"
    if isinstance(item, str):
        return "a text"
    if isinstance(item, tuple):
        return "(id, text)"
    if isinstance(item, Mapping):
        return f"a dict with {' and '.join(key for key in _KEYS if key in item) or 'no text'}"
    if is_image(item):
        return "an image"
    return type_name(item)


def is_image(item: object) -> bool:
    """Whether an item is a PIL image, an array or a tensor. Its shape is checked later."""
    return is_pil(item) or (hasattr(item, "shape") and hasattr(item, "dtype") and len(item.shape) > 0)


def is_pil(item: object) -> bool:
    """Whether an item is a PIL image. Compares class names, so that PIL need not be imported."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(item).__mro__)


def as_input(item: Any, position: int, column_names: Collection[str] | None) -> Input:
    """Check and normalize an item other than a ready batch.

    Parameters
    ----------
    item
        An item of the caller's input.
    position
        Its position in the whole input.
    column_names
        The other keys of a dict that become columns; None for all.

    Raises
    ------
    InvalidInputError
        With the position and the reason.
    """
    if isinstance(item, str):
        item = {"text": item}
    elif isinstance(item, tuple):
        if len(item) != 2 or not isinstance(item[1], str):
            types = ", ".join(type(part).__name__ for part in item) or "nothing"
            raise InvalidInputError(f"input {position} is a tuple of {types}", hint="a tuple is (id, text)")
        item = {"id": item[0], "text": item[1]}
    elif not isinstance(item, Mapping):
        if not is_image(item):
            raise InvalidInputError(f"input {position} is {_shown(item)}", hint=_FORMS)
        item = {"image": item}
    content = [key for key in CONTENT if key in item]
    if len(content) != 1:
        keys = " and ".join(content) or f"only the keys {', '.join(map(repr, item)) or '(none)'}"
        raise InvalidInputError(
            f"input {position} is a dict with {keys}",
            hint=f"it needs exactly one of the keys {', '.join(CONTENT)}",
        )
    return Input(
        position,
        as_id(item["id"], position) if "id" in item else str(position),
        _text(item["text"], position, "text") if "text" in item else None,
        _text(item["target"], position, "target") if "target" in item else None,
        _messages(item["messages"], position) if "messages" in item else None,
        _image(item["image"], position) if "image" in item else None,
        _columns(item, position, column_names),
    )


_FORMS = "inputs are texts, (id, text), dicts with a text, messages or an image, images, or ready batches"


def _shown(item: object) -> str:
    text = "None" if item is None else f"{type_name(item)}, {item!r}"
    return text if len(text) < 80 else text[:77] + "..."


def as_id(name: Any, position: int) -> str:
    """An id, given as a str or an int, as a str.

    Raises
    ------
    InvalidInputError
        If it is something else.
    """
    if isinstance(name, int | np.integer) and not isinstance(name, bool):
        return str(int(name))
    return _text(name, position, "id")


def _text(text: Any, position: int, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"input {position}: its {what} is {_shown(text)}, not a str")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"input {position}: its {what} is not valid unicode: {error}") from error
    return str(text)


def _messages(messages: Any, position: int) -> list[dict[str, Any]]:
    valid = isinstance(messages, list | tuple) and all(isinstance(message, Mapping) for message in messages)
    if not valid or not messages:
        raise InvalidInputError(
            f"input {position}: its messages are {_shown(messages)}",
            hint="expected a list of dicts such as {'role': 'user', 'content': 'hello'}",
        )
    try:
        json.dumps(messages)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"input {position}: its messages are not JSON: {error}") from error
    return [dict(message) for message in messages]


def _image(image: Any, position: int) -> Any:
    if not is_image(image) and not isinstance(image, str | os.PathLike):
        raise InvalidInputError(
            f"input {position}: its image is {_shown(image)}",
            hint="expected a PIL image, a path, or pixel values [C, H, W]",
        )
    return image


def _columns(item: Mapping[str, Any], position: int, column_names: Collection[str] | None) -> dict[str, Any]:
    names = [key for key in item if key not in _KEYS] if column_names is None else column_names
    out = {}
    for name in names:
        if name not in item:
            raise missing_column(name, position, item)
        check_name(name)
        out[name] = scalar(item[name], name, position)
    return out


def missing_column(name: str, position: int, item: Collection[str]) -> InvalidInputError:
    """The error for an input that lacks a column."""
    return InvalidInputError(
        f"input {position} has no key {name!r}, only {', '.join(map(repr, item)) or 'nothing'}",
        hint="columns=[...] selects the keys to keep; every input must have them",
    )


def check_name(name: object) -> None:
    """Raise InvalidInputError if a column cannot have this name."""
    if check_column(name, "column") in _OURS:
        raise InvalidInputError(f"column {name!r} is reserved: capture writes it itself", hint="rename it")


def scalar(value: Any, name: str, position: int) -> str | int | float | bool:
    """A column's value as a built-in Python type.

    Raises
    ------
    InvalidInputError
        If it is neither a str, an int, a float nor a bool.
    """
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "shape", None) == ()):
        value = value.item()
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return _text(value, position, f"column {name!r}") if kind is str else kind(value)
    raise InvalidInputError(
        f"input {position}: its column {name!r} is {_shown(value)}, neither a str, a number nor a bool",
        hint="columns=[...] selects the keys to keep",
    )
