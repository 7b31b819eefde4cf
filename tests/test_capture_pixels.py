"""Images: read, given to the image processor, or taken as the pixel values they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from actstore.errors import InvalidInputError, NotFoundError

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytest.importorskip("PIL.Image")

import torch
from actstore.capturing.inputs.encoder import Encoder
from actstore.capturing.inputs.stream import InputStream
from PIL import Image


def processor() -> Any:
    from transformers.models.vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 8, "width": 8})


def picture(width: int, height: int, mode: str = "RGB") -> Any:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoder(image_processor: Any = None, **options: Any) -> Encoder:
    return Encoder(None, model_max_length=None, image_processor=image_processor, **options)


def test_images_go_through_the_image_processor(tmp_path: Path) -> None:
    one, two = picture(12, 9), picture(5, 16)
    two.save(tmp_path / "two.png")
    items = [{"id": "a", "image": one, "label": 1}, {"id": "b", "image": tmp_path / "two.png", "label": 2}]
    examples = encoder(processor()).encode(list(InputStream(items)))
    expected = processor()(images=[one, two], return_tensors="np")["pixel_values"]
    for example, values, item in zip(examples, expected, items, strict=True):
        (piece,) = example.pieces
        assert piece.rows is None
        assert piece.inputs["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal(piece.inputs["pixel_values"], values)
        assert (example.id, example.text, example.columns) == (item["id"], None, {"label": item["label"]})
        assert (example.tokens, example.n_cut) == ({}, 0)


def test_gray_images_become_rgb() -> None:
    (example,) = encoder(processor()).encode(list(InputStream([picture(9, 9, "L")])))
    assert example.pieces[0].inputs["pixel_values"].shape == (3, 8, 8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_pixel_values_are_taken_as_they_are(dtype: str) -> None:
    values = torch.arange(12).reshape(3, 2, 2).to(getattr(torch, dtype))
    (example,) = encoder(processor()).encode(list(InputStream([values])))
    assert example.pieces[0].inputs["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(example.pieces[0].inputs["pixel_values"], np.arange(12).reshape(3, 2, 2))


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    def encode(item: Any, image_processor: Any = None, **options: Any) -> Any:
        return encoder(image_processor, **options).encode(list(InputStream([item])))

    with pytest.raises(InvalidInputError, match="example '0' is an image, and the model has no image proc"):
        encode(picture(4, 4))
    with pytest.raises(
        InvalidInputError, match=r"image of example '0' is uint8 \[4, 4, 3\], not pixel values: floats"
    ):
        encode(np.zeros((4, 4, 3), np.uint8), processor())
    picture(4, 4).save(tmp_path / "cat.png")
    with pytest.raises(NotFoundError, match="no such image file") as caught:
        encode({"image": tmp_path / "cta.png"}, processor())
    assert caught.value.hint == f"there is {tmp_path / 'cat.png'}"
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(InvalidInputError, match=r"no\.png cannot be read as an image"):
        encode({"image": str(tmp_path / "no.png")}, processor())
    with pytest.raises(InvalidInputError, match='only "all" is possible'):
        encode(picture(4, 4), processor(), keep="last")
    with pytest.raises(
        InvalidInputError, match="dict does not return pixel values for each image, but patches"
    ):
        encode(picture(4, 4), type("dict", (), {"__call__": lambda self, images: {"patches": 1}})())
