"""Images: patches and feature maps, where each row lies in its image, and maps of several sizes."""

from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import transformers
from capture_models import batch, built, fresh, real, stirred
from capture_oracle import Watch, truth
from torch import nn


class Convolutions(nn.Module):
    """Two convolutions, a mean over the map, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 5, 3, padding=1)
        self.two = nn.Conv2d(5, 7, 3, stride=2)
        self.head = nn.Linear(7, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(pixel_values)))).mean((2, 3)))


def images(n: int, height: int = 9, width: int = 13) -> torch.Tensor:
    return torch.randn((n, 3, height, width), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("form", ["batch", "batches", "list"])
def test_feature_maps(form: str, memory_path: Path) -> None:
    """A row for each place of the map, from the top left, row by row."""
    model, pixels = stirred(Convolutions()), images(5)
    source: Any = {
        "batch": {"pixel_values": pixels},
        "batches": [{"pixel_values": pixels[:3]}, {"pixel_values": pixels[3:]}],
        "list": list(pixels.numpy()),
    }[form]
    store = actstore.capture(
        memory_path / "run.act", model, source, sites=["one", "two", "head"], progress=False, batch_tokens=300
    )
    watch = Watch(model, {"pixel_values": pixels})
    assert store["head"].axis == "examples"
    assert store["one"].axis != store["two"].axis
    np.testing.assert_allclose(store["head"].read()[:, 0], watch.gave["head"][0].numpy(), atol=1e-6)
    for site, (height, width) in {"one": (9, 13), "two": (4, 6)}.items():
        there = store[site]
        assert there.about["grid"] == [height, width]
        columns = store.axes[there.axis]
        assert columns.offsets.tolist() == [i * height * width for i in range(6)]
        maps = watch.gave[site][0].numpy()
        for i in range(5):
            rows = there.example(i)[:, 0]
            at = slice(columns.offsets[i], columns.offsets[i + 1])
            placed = maps[i, :, columns["row"][at], columns["column"][at]]
            np.testing.assert_allclose(rows, placed, atol=1e-6)
        assert sorted(set(columns["row"].tolist())) == list(range(height))
        assert columns["column"][: width + 1].tolist() == [*range(width), 0]
        assert not columns["special"].any()


def test_feature_maps_of_one_size_are_the_axis_tokens(memory_path: Path) -> None:
    model = stirred(Convolutions())
    store = actstore.capture(
        memory_path / "run.act", model, {"pixel_values": images(2)}, sites=["two"], progress=False
    )
    assert store["two"].axis == "tokens"
    assert store["two"].shape == (2 * 4 * 6, 1, 7)
    assert store.tokens.offsets.tolist() == [0, 24, 48]


def test_resnet(memory_path: Path) -> None:
    """Stages of other widths and sizes are sites of their own; its hidden states are maps."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], layer_type="basic"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = stirred(transformers.ResNetModel(config))
    pixels = images(3, 64, 48)
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
    sites = ["encoder.stages.*", "embedder", "encoder.stages.1.layers.*"]
    store = actstore.capture(
        memory_path / "run.act", model, {"pixel_values": pixels}, sites=sites, progress=False
    )
    by_module = {
        store[site].about["layers"][str(label)]["module"]: store[site].select(layers=[label])
        for site in store.sites
        for label in store[site].layers
    }
    for path, state in zip(["embedder", *(f"encoder.stages.{i}" for i in range(3))], states, strict=True):
        np.testing.assert_array_equal(by_module[path].read()[:, 0], real(state, None).numpy(), err_msg=path)
    watch = Watch(model, {"pixel_values": pixels})
    for path in ("encoder.stages.1.layers.0", "encoder.stages.1.layers.1"):
        np.testing.assert_array_equal(by_module[path].read()[:, 0], real(watch.gave[path][0], None).numpy())


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip_vision"])
def test_patches(name: str, memory_path: Path) -> None:
    """The class token first, then the patches, row by row."""
    store = actstore.capture(memory_path / "run.act", built(name), batch(name), progress=False)
    assert store["resid"].about["grid"] == [3, 3]
    tokens = store.tokens
    for i in range(3):
        at = slice(tokens.offsets[i], tokens.offsets[i + 1])
        assert tokens["row"][at].tolist() == [-1, 0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert tokens["column"][at].tolist() == [-1, 0, 1, 2, 0, 1, 2, 0, 1, 2]
        assert tokens["special"][at].tolist() == [True] + [False] * 9


def test_the_patch_in_a_place_decides_its_row(memory_path: Path) -> None:
    """What a patch is embedded as, changed in one place of the image alone."""
    model, pixels = fresh("vit"), batch("vit")["pixel_values"][:1]
    changed = pixels.clone()
    changed[:, :, 8:16, 16:24] += 1  # Patch (1, 2).
    store = actstore.capture(
        memory_path / "run.act",
        model,
        {"pixel_values": torch.cat([pixels, changed])},
        layers=0,
        progress=False,
    )
    one, two = (store["resid"].example(i)[:, 0] for i in range(2))
    (moved,) = np.flatnonzero((one != two).any(1))
    assert (store.tokens["row"][moved], store.tokens["column"][moved]) == (1, 2)


def test_images_that_are_not_square(memory_path: Path) -> None:
    model = fresh("vit", image_size=[16, 32])
    pixels = images(2, 16, 32)
    store = actstore.capture(memory_path / "run.act", model, {"pixel_values": pixels}, progress=False)
    assert store["resid"].about["grid"] == [2, 4]
    assert store.tokens["row"][:9].tolist() == [-1, 0, 0, 0, 0, 1, 1, 1, 1]
    assert store.tokens["column"][:9].tolist() == [-1, 0, 1, 2, 3, 0, 1, 2, 3]
    expected = truth("vit", model, {"pixel_values": pixels})["resid"]
    wanted = torch.stack([real(tensor, None) for tensor in expected.values()], 1)
    np.testing.assert_array_equal(store["resid"].read(), wanted.numpy())


def test_a_list_of_images_in_small_batches(memory_path: Path) -> None:
    """Each as it is alone."""
    pixels = torch.randn((7, 3, 24, 24), generator=torch.Generator().manual_seed(5))
    store = actstore.capture(
        memory_path / "run.act", built("vit"), list(pixels), batch_tokens=25, window=1, progress=False
    )
    for i in range(7):
        expected = truth("vit", built("vit"), {"pixel_values": pixels[i : i + 1]})["resid"]
        wanted = torch.stack([tensor[0] for tensor in expected.values()], 1).numpy()
        np.testing.assert_allclose(store["resid"].example(i), wanted, atol=1e-5)


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last"])
def test_pooled_images(pool: str, memory_path: Path) -> None:
    store = actstore.capture(
        memory_path / "run.act", built("vit"), batch("vit"), sites=["resid"], pool=pool, progress=False
    )
    expected = truth("vit", built("vit"), batch("vit"))["resid"]
    layers = torch.stack(list(expected.values()), 2).double()
    wanted = {
        "mean": layers.mean(1),
        "max": layers.amax(1),
        "first": layers[:, 0],
        "last": layers[:, -1],
    }[pool]
    np.testing.assert_allclose(store["resid"].read(), wanted.numpy(), atol=1e-6)


def test_images_of_other_sizes(memory_path: Path) -> None:
    """Their maps would be of other sizes: refused in words, and nothing is stored."""
    model = stirred(Convolutions())
    sizes = [torch.zeros(3, 9, 13), torch.zeros(3, 11, 13)]
    for source in (sizes, [{"pixel_values": size[None]} for size in sizes]):
        with pytest.raises(actstore.InvalidInputError):
            actstore.capture(
                memory_path / "run.act", model, source, sites=["one"], progress=False, overwrite=True
            )
