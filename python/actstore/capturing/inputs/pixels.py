"""Images as pixel values: the output of the image processor, or arrays passed by the caller."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...base.arrays import as_numpy
from ...disk.location import near
from ...errors import InvalidInputError, NotFoundError
from .example import Example, Piece
from .forms import Input, is_pil


def pixel_values(image: Any, what: str) -> NDArray[np.float32]:
    """An array or tensor of pixel values as float32 ``[C, H, W]``.

    Raises
    ------
    InvalidInputError
        If it has other axes, or holds integers, which are colors that are not yet scaled.
    """
    array = as_numpy(image, what)
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if array.ndim != 3 or not floating:
        raise InvalidInputError(
            f"{what} is {array.dtype} {list(array.shape)}, not pixel values: floats [C, H, W]",
            hint="pass PIL.Image.fromarray(array), which the model's image processor scales",
        )
    return np.ascontiguousarray(array, np.float32)


def image_examples(inputs: Sequence[Input], image_processor: Any | None) -> list[Example]:
    """Examples of images, with all rows stored.

    Raises
    ------
    InvalidInputError
        If an image cannot be read, or the model has no image processor.
    NotFoundError
        If a path does not exist.
    """
    values: list[Any] = [_loaded(one) for one in inputs]
    raw = [i for i, value in enumerate(values) if is_pil(value)]
    if raw:
        if image_processor is None:
            raise InvalidInputError(
                f"example {inputs[raw[0]].id!r} is an image, and the model has no image processor",
                hint="load the model by name, or pass pixel values [C, H, W]",
            )
        processed = image_processor(images=[values[i] for i in raw])
        if "pixel_values" not in processed or len(processed["pixel_values"]) != len(raw):
            raise InvalidInputError(
                f"{type(image_processor).__name__} does not return pixel values for each image, but "
                f"{', '.join(processed) or 'nothing'}",
                hint="pass pixel values [C, H, W]",
            )
        for i, value in zip(raw, processed["pixel_values"], strict=True):
            values[i] = value
    return [
        Example(
            one.id,
            None,
            one.columns,
            [Piece({"pixel_values": pixel_values(value, f"the image of example {one.id!r}")}, None)],
            {},
            0,
        )
        for one, value in zip(inputs, values, strict=True)
    ]


def _loaded(one: Input) -> Any:
    """The image of an input, read if it is a path and converted to RGB."""
    image: Any = one.image
    if isinstance(image, str | os.PathLike):
        try:
            from PIL import Image
        except ImportError as error:
            raise InvalidInputError(f"PIL cannot be imported: {error}", hint="pip install pillow") from error
        path = os.fspath(image)
        try:
            with Image.open(path) as opened:
                return opened.convert("RGB")
        except FileNotFoundError:
            raise NotFoundError(f"example {one.id!r}: no such image file: {path}", hint=near(path)) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InvalidInputError(
                f"example {one.id!r}: {path} cannot be read as an image: {error}"
            ) from error
    return image.convert("RGB") if is_pil(image) and image.mode != "RGB" else image
