"""What one input may look like: a text, (id, text), a dict, an image, a ready batch; brought to one form.

All inputs of a capture have the same form: a dict without an ``id`` among others with one is a mistake
in the data more often than not, and so is a string among dicts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..layout import check_column

CONTENT = ("text", "messages", "image")
"""Keys of a dict that say what goes into the model; each has one of them."""

_KEYS = ("id", "target", *CONTENT)
_OURS = ("id", "text", "n_cut", "n_nonfinite", "n_rows")
"""Columns that capture writes itself."""
_READY = ("input_ids", "pixel_values", "inputs_embeds")


@dataclass(frozen=True)
class Input:
    """One input, in the one form that all become.

    Attributes
    ----------
    position
        In the whole input, over all processes, from 0.
    id
        By default the position as text.
    text, messages, image
        What goes into the model: one of them. `image` is a PIL image, a path, or pixel values ``[C, H, W]``.
    target
        What an encoder-decoder's decoder is given.
    columns
        The user's own values.
    """

    position: int
    id: str
    text: str | None
    target: str | None
    messages: list[dict[str, Any]] | None
    image: Any | None
    columns: dict[str, Any]


def is_ready(item: object) -> bool:
    """Whether this is a batch that a tokenizer or an image processor has made already."""
    return isinstance(item, Mapping) and any(key in item for key in _READY)


def form_of(item: object) -> str:
    """What an item is, in words, for telling forms apart and for messages."""
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
    return f"a {type(item).__name__}"


def is_image(item: object) -> bool:
    """A PIL image, or an array or tensor, whose shape is looked at later."""
    return is_pil(item) or (hasattr(item, "shape") and hasattr(item, "dtype") and len(item.shape) > 0)


def is_pil(item: object) -> bool:
    """A PIL image, known by its class, so that PIL need not be imported."""
    return any(base.__module__ == "PIL.Image" and base.__name__ == "Image" for base in type(item).__mro__)


def as_input(item: Any, position: int, keep: Collection[str] | None) -> Input:
    """An item that is no ready batch, checked.

    Parameters
    ----------
    item
        As the user gave it.
    position
        Its place in the whole input.
    keep
        Which of a dict's other keys become columns; None for all.

    Raises
    ------
    InvalidInputError
        Naming the position and what is wrong.
    """
    if isinstance(item, str):
        item = {"text": item}
    elif isinstance(item, tuple):
        if len(item) != 2 or not isinstance(item[1], str):
            found = ", ".join(type(part).__name__ for part in item) or "nothing"
            raise InvalidInputError(f"input {position} is a tuple of {found}", hint="a tuple is (id, text)")
        item = {"id": item[0], "text": item[1]}
    elif not isinstance(item, Mapping):
        if not is_image(item):
            raise InvalidInputError(f"input {position} is {_shown(item)}", hint=_WHAT_THERE_IS)
        item = {"image": item}
    there = [key for key in CONTENT if key in item]
    if len(there) != 1:
        found = " and ".join(there) if there else f"only the keys {', '.join(map(repr, item)) or '(none)'}"
        raise InvalidInputError(
            f"input {position} is a dict with {found}", hint=f"it needs one of the keys {', '.join(CONTENT)}"
        )
    return Input(
        position,
        as_id(item["id"], position) if "id" in item else str(position),
        _text(item["text"], position, "text") if "text" in item else None,
        _text(item["target"], position, "target") if "target" in item else None,
        _messages(item["messages"], position) if "messages" in item else None,
        _image(item["image"], position) if "image" in item else None,
        _columns(item, position, keep),
    )


_WHAT_THERE_IS = (
    "inputs are texts, (id, text), dicts with a text, messages or an image, images, or ready batches"
)


def _shown(item: object) -> str:
    text = "None" if item is None else f"a {type(item).__name__}, {item!r}"
    return text if len(text) < 80 else text[:77] + "..."


def as_id(name: Any, position: int) -> str:
    """An id, a str or an int, as a str.

    Raises
    ------
    InvalidInputError
        When it is something else.
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
    fine = isinstance(messages, list | tuple) and all(isinstance(message, Mapping) for message in messages)
    if not fine or not messages:
        raise InvalidInputError(
            f"input {position}: its messages are {_shown(messages)}",
            hint="messages are a list of dicts such as {'role': 'user', 'content': 'hello'}",
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
            hint="an image is a PIL image, a path, or pixel values [C, H, W]",
        )
    return image


def _columns(item: Mapping[str, Any], position: int, keep: Collection[str] | None) -> dict[str, Any]:
    names = [key for key in item if key not in _KEYS] if keep is None else keep
    out = {}
    for name in names:
        if name not in item:
            raise absent(name, position, item)
        check_name(name)
        out[name] = scalar(item[name], name, position)
    return out


def absent(name: str, position: int, item: Collection[str]) -> InvalidInputError:
    """The error for an input that lacks a column."""
    return InvalidInputError(
        f"input {position} has no {name!r}, it has {', '.join(map(repr, item)) or 'nothing'}",
        hint="columns=[...] says which keys to keep; they must be in every input",
    )


def check_name(name: object) -> None:
    """Raise InvalidInputError when there can be no column of this name."""
    if check_column(name, "column") in _OURS:
        raise InvalidInputError(
            f"column {name!r} is one that capture writes itself", hint="give it another name"
        )


def scalar(value: Any, name: str, position: int) -> str | int | float | bool:
    """The value of a column as Python's own type.

    Raises
    ------
    InvalidInputError
        When it is neither a str, an int, a float nor a bool.
    """
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "shape", None) == ()):
        value = value.item()
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return _text(value, position, f"column {name!r}") if kind is str else kind(value)
    raise InvalidInputError(
        f"input {position}: its column {name!r} is {_shown(value)}, neither a str, a number nor a bool",
        hint="columns=[...] says which keys to keep",
    )
