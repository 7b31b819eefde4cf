"""NaN and infinities: stored as they are, counted by layer and by example, told of, or refused."""

import warnings
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from capture_models import fresh, padded, sequences

ROWS = sequences([6, 3, 8, 5])


def planted(value: float, where: str) -> Any:
    """A model with one bad number: in a bias, or in the embedding of a token that the third sequence has."""
    model = fresh("gpt2")
    with torch.no_grad():
        if where == "bias":
            model.transformer.h[1].mlp.c_proj.bias[3] = value
        else:
            model.transformer.wte.weight[int(ROWS[2][4]), 7] = value
    return model


def inputs() -> list[dict[str, torch.Tensor]]:
    ids, mask = padded(ROWS, 0)
    half = [slice(0, 2), slice(2, 4)]
    return [{"input_ids": ids[of], "attention_mask": mask[of]} for of in half]


def capture(path: Path, model: Any, **options: Any) -> tuple[actstore.Store, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = {"sites": ["resid"], "progress": False} | options
        store = actstore.capture(path, model, inputs(), **options)
    of_ours = [str(one.message) for one in caught if issubclass(one.category, actstore.CaptureWarning)]
    return store, of_ours


def bad(store: actstore.Store, site: str = "resid") -> tuple[np.ndarray, np.ndarray]:
    """NaN and infinities, by row and layer, as they are in the store."""
    rows = store[site].read("float32")
    return np.isnan(rows).sum(2), np.isinf(rows).sum(2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["bias", "token"])
def test_bad_values_are_counted(value: float, where: str, memory_path: Path) -> None:
    store, told = capture(memory_path / "run.act", planted(value, where))
    n_nan, n_inf = bad(store)
    offset = store.tokens.offsets
    by_example = np.add.reduceat((n_nan + n_inf).sum(1), offset[:-1])
    assert store.examples["n_nonfinite"].tolist() == by_example.tolist()
    if where == "bias":  # Of each token, after block 1.
        assert not (n_nan + n_inf)[:, :2].any()
        one = (n_nan if np.isnan(value) else n_inf)[:, 2]
        assert (one == 1).all()
        assert (by_example > 0).all()
    else:  # It leaks into no other example.
        assert by_example.tolist()[:2] + by_example.tolist()[3:] == [0, 0, 0]
        assert np.flatnonzero((n_nan + n_inf)[:, 0]).tolist() == [int(offset[2]) + 4]
    layers = [label for label in range(4) if (n_nan + n_inf)[:, label].any()]
    assert len(told) == len(layers)
    for label, message in zip(layers, told, strict=True):
        assert f"resid, layer {label}: " in message
        assert f"{n_nan[:, label].sum():,} NaN" in message
        assert f"{n_inf[:, label].sum():,} infinite" in message
        assert repr("0" if where == "bias" else "2") in message


def test_what_is_finite_is_not_told_of(memory_path: Path) -> None:
    store, told = capture(memory_path / "run.act", fresh("gpt2"))
    assert not told
    assert store.examples["n_nonfinite"].tolist() == [0, 0, 0, 0]


def test_large_values_are_finite(memory_path: Path) -> None:
    """Their sum is not."""
    model = fresh("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[:, :2] = 3e38
    store, told = capture(memory_path / "run.act", model, layers=0)
    assert not told
    assert not store.examples["n_nonfinite"].any()
    assert np.isfinite(store["resid"].read()).all()


@pytest.mark.parametrize("where", ["bias", "token"])
@pytest.mark.parametrize("pool", [None, "mean"])
def test_they_may_be_refused(where: str, pool: str | None, memory_path: Path) -> None:
    with pytest.raises(actstore.InvalidInputError) as caught:
        capture(memory_path / "run.act", planted(float("nan"), where), on_nan="raise", pool=pool)
    example = "'0'" if where == "bias" else "'2'"
    assert "resid, layer" in str(caught.value)
    assert "NaN" in str(caught.value)
    assert example in str(caught.value)
    with actstore.open(memory_path / "run.act") as store:
        assert store.n_examples <= 2
        assert np.isfinite(store["resid"].read("float32")).all()


def test_a_capture_without_them_is_not_refused(memory_path: Path) -> None:
    store, _ = capture(memory_path / "run.act", planted(float("nan"), "bias"), on_nan="raise", layers=[0, 1])
    assert store.n_examples == 4


@pytest.mark.parametrize("pool", ["mean", "max", "first", "last", "weighted"])
@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_pooled_rows_have_them_too(pool: str, memory_path: Path) -> None:
    """As `Site.pool` of the rows has them."""
    model = planted(float("nan"), "token")
    rows, _ = capture(memory_path / "rows", model)
    pooled, told = capture(memory_path / "pooled", model, pool=pool)
    np.testing.assert_allclose(pooled["resid"].read(), rows["resid"].pool(pool).read(), rtol=1e-6, atol=1e-6)
    n_nan = bad(pooled)[0]
    assert (pooled.examples["n_nonfinite"] > 0).tolist() == n_nan.any(1).tolist()
    assert bool(told) == bool(n_nan.any())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_overflows_when_it_is_rounded_is_counted(dtype: str, memory_path: Path) -> None:
    model = fresh("gpt2")
    with torch.no_grad():
        model.transformer.wte.weight[int(ROWS[1][0]), 5] = 1e5 if dtype == "float16" else 3.4e38
    store, told = capture(memory_path / "run.act", model, dtype=dtype, layers=0)
    n_nan, n_inf = bad(store)
    assert n_inf.sum() >= 1
    assert not n_nan.any()
    counted = np.add.reduceat(n_inf.sum(1), store.tokens.offsets[:-1])
    assert store.examples["n_nonfinite"].tolist() == counted.tolist()
    assert len(told) == 1


def test_they_are_counted_in_half_precision(memory_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = planted(float("inf"), "bias").to(dtype)
        store, told = capture(memory_path / str(dtype), model, sites=["resid", "mlp_out"])
        for site in store.sites:
            n_nan, n_inf = bad(store, site)
            assert (n_nan + n_inf).any()
        total = sum(sum(of.sum() for of in bad(store, site)) for site in store.sites)
        assert store.examples["n_nonfinite"].sum() == total
        assert any(message.startswith("mlp_out, layer 1: ") for message in told)
