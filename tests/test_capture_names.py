"""Which tensor a name and a layer mean: ours, TransformerLens's, transformers' and paths of modules."""

from pathlib import Path
from typing import Any

import actstore
import ml_dtypes
import numpy as np
import pytest
from actstore.capturing import available

pytest.importorskip("transformers")

import torch
from capture_models import N_LAYERS, WIDTH, batch, built, fresh, real
from capture_oracle import Watch, truth


def captured(path: Path, name: str, sites: Any, **options: Any) -> actstore.Store:
    return actstore.capture(
        path / "run.act", built(name), batch(name), sites=sites, progress=False, **options
    )


def rows(name: str, site: str, labels: list[int]) -> Any:
    inputs = batch(name)
    layers = truth(name, built(name), inputs)[site]
    return np.stack([real(layers[label], inputs["attention_mask"]).numpy() for label in labels], 1)


@pytest.mark.parametrize(
    ("layers", "labels"),
    [
        (None, [0, 1, 2, 3]),
        (0, [0]),
        (-1, [3]),
        ([2, 0], [0, 2]),
        ([-1, 0], [0, 3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(2, None), [2, 3]),
        (range(2), [0, 1]),
        (np.array([1, 3]), [1, 3]),
        ({"resid": [1]}, [1]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_layers(layers: Any, labels: list[int], memory_path: Path) -> None:
    store = captured(memory_path, "gpt2", ["resid"], layers=layers)
    assert store["resid"].layers == labels
    np.testing.assert_array_equal(store["resid"].read(), rows("gpt2", "resid", labels))


def test_layers_of_each_site(memory_path: Path) -> None:
    store = captured(memory_path, "gpt2", {"resid": [0, -1], "attn_out": 1, "mlp_out": None})
    assert {name: store[name].layers for name in store.sites} == {
        "resid": [0, 3],
        "attn_out": [1],
        "mlp_out": [0, 1, 2],
    }
    np.testing.assert_array_equal(store["attn_out"].read(), rows("gpt2", "attn_out", [1]))


def test_layers_are_of_sites_that_have_several(memory_path: Path) -> None:
    """`final` and `logits` have the one label L, which `layers` need not name."""
    store = captured(memory_path, "gpt2", ["resid", "final", "logits"], layers=[1, 2])
    assert {name: store[name].layers for name in store.sites} == {
        "resid": [1, 2],
        "final": [3],
        "logits": [3],
    }


@pytest.mark.parametrize(
    ("sites", "layers", "error", "words"),
    [
        (["resid"], 4, "NotFoundError", ["4", "0", "3"]),
        (["resid"], [0, 9], "NotFoundError", ["9", "3"]),
        (["attn_out"], 3, "NotFoundError", ["3", "2"]),
        (["resid"], -5, "NotFoundError", ["-5"]),
        (["resid"], {"attn_out": 0}, "InvalidInputError", ["attn_out", "resid"]),
        ({"resid": 0}, 0, "InvalidInputError", ["sites"]),
        ({"logits": 1}, None, "NotFoundError", ["1", "3"]),
        (["nothing"], None, "NotFoundError", ["nothing", "resid", "attn_out", "mlp_act", "logits"]),
        (["rseid"], None, "NotFoundError", ["rseid", "resid"]),
        (["q_rot"], None, "NotFoundError", ["q_rot"]),
        (["transformer.h.7.mlp"], None, "NotFoundError", ["transformer.h.7.mlp"]),
        (["blocks.3.hook_resid_pre.x"], None, "NotFoundError", ["blocks.3"]),
        (["blocks.3.hook_resid_post"], None, "NotFoundError", ["blocks.3.hook_resid_post", "3"]),
        (["hidden_states[4]"], None, "NotFoundError", ["hidden_states[4]", "3"]),
        (["blocks.0.attn.hook_pattern"], None, "InvalidInputError", ["pattern", "token"]),
        (["blocks.*.attn.hook_pattern"], None, "InvalidInputError", ["pattern"]),
        (["mlp"], None, "InvalidInputError", ["mlp", "transformer.h.0.mlp", "3 in total"]),
        ([], None, "InvalidInputError", ["at least one"]),
        ([""], None, "InvalidInputError", ["not a name"]),
        ([3], None, "InvalidInputError", ["3"]),
        (3, None, "InvalidInputError", ["sites"]),
        (["transformer.wpe"], None, "InvalidInputError", ["transformer.wpe"]),
    ],
)
def test_what_is_not_there(sites: Any, layers: Any, error: str, words: list[str], memory_path: Path) -> None:
    with pytest.raises(getattr(actstore, error)) as caught:
        captured(memory_path, "gpt2", sites, layers=layers)
    assert type(caught.value).__name__ == error
    message = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert all(word in message for word in words), message
    assert not (memory_path / "run.act").exists()


@pytest.mark.parametrize(
    ("name", "alias", "site", "labels"),
    [
        ("gpt2", "blocks.1.hook_resid_pre", "resid", [1]),
        ("gpt2", "blocks.1.hook_resid_post", "resid", [2]),
        ("gpt2", "blocks.2.hook_resid_post", "resid", [3]),
        ("gpt2", "blocks.*.hook_resid_post", "resid", [1, 2, 3]),
        ("gpt2", "blocks.*.hook_resid_pre", "resid", [0, 1, 2]),
        ("gpt2", "blocks.1.hook_resid_mid", "resid_mid", [1]),
        ("gpt2", "blocks.*.hook_attn_out", "attn_out", [0, 1, 2]),
        ("gpt2", "blocks.0.hook_mlp_out", "mlp_out", [0]),
        ("gpt2", "blocks.2.mlp.hook_post", "mlp_act", [2]),
        ("gpt2", "blocks.2.attn.hook_q", "q", [2]),
        ("gpt2", "blocks.1.attn.hook_k", "k", [1]),
        ("gpt2", "blocks.*.attn.hook_v", "v", [0, 1, 2]),
        ("gpt2", "blocks.0.attn.hook_z", "z", [0]),
        ("llama", "blocks.*.attn.hook_rot_q", "q_rot", [0, 1, 2]),
        ("llama", "blocks.1.attn.hook_rot_k", "k_rot", [1]),
        ("gpt2", "resid[2]", "resid", [2]),
        ("gpt2", "resid[-1]", "resid", [3]),
        ("gpt2", "hidden_states[0]", "hidden_states", [0]),
        ("gpt2", "hidden_states[-1]", "hidden_states", [3]),
        ("bert", "hidden_states[3]", "hidden_states", [3]),
    ],
)
def test_names_of_others(name: str, alias: str, site: str, labels: list[int], memory_path: Path) -> None:
    store = captured(memory_path, name, [alias])
    assert store.sites == [site]
    assert store[site].layers == labels
    np.testing.assert_array_equal(store[site].read(), rows(name, site, labels))


def test_names_of_one_site_are_joined(memory_path: Path) -> None:
    store = captured(memory_path, "gpt2", ["blocks.2.hook_resid_post", "resid[0]", "hidden_states[1]"])
    assert {name: store[name].layers for name in store.sites} == {"resid": [0, 3], "hidden_states": [1]}


def test_streams_by_name(memory_path: Path) -> None:
    inputs = batch("t5")
    store = actstore.capture(
        memory_path / "both", built("t5"), inputs, sites=["resid", "cross_attn_out"], progress=False
    )
    assert set(store.sites) == {"encoder.resid", "decoder.resid", "decoder.cross_attn_out"}
    assert {name: store[name].axis for name in store.sites} == {
        "encoder.resid": "encoder",
        "decoder.resid": "decoder",
        "decoder.cross_attn_out": "decoder",
    }
    one = actstore.capture(
        memory_path / "one", built("t5"), inputs, sites=["decoder.hidden_states[-1]"], progress=False
    )
    wanted = truth("t5", built("t5"), inputs)["decoder.hidden_states"][N_LAYERS]
    mask = inputs["decoder_attention_mask"]
    np.testing.assert_array_equal(one["decoder.hidden_states"].read()[:, 0], real(wanted, mask).numpy())
    assert list(one.axes) == ["decoder"]


LENS = {
    "hook_resid_pre": lambda watch, i: watch.took[f"transformer.h.{i}"][0],
    "hook_resid_mid": lambda watch, i: watch.took[f"transformer.h.{i}.ln_2"][0],
    "hook_resid_post": lambda watch, i: watch.gave[f"transformer.h.{i}"][0],
    "hook_attn_out": lambda watch, i: watch.gave[f"transformer.h.{i}.attn"][0],
    "hook_mlp_out": lambda watch, i: watch.gave[f"transformer.h.{i}.mlp"][0],
    "mlp.hook_post": lambda watch, i: watch.gave[f"transformer.h.{i}.mlp.act"][0],
    "attn.hook_q": lambda watch, i: watch.gave[f"transformer.h.{i}.attn.c_attn"][0][..., :WIDTH],
    "attn.hook_k": lambda watch, i: watch.gave[f"transformer.h.{i}.attn.c_attn"][0][..., WIDTH : 2 * WIDTH],
    "attn.hook_v": lambda watch, i: watch.gave[f"transformer.h.{i}.attn.c_attn"][0][..., 2 * WIDTH :],
    "attn.hook_z": lambda watch, i: watch.took[f"transformer.h.{i}.attn.c_proj"][0],
}
"""What TransformerLens's names mean of GPT-2."""


def test_what_a_layer_is_in_transformer_lens_is_true(memory_path: Path) -> None:
    inputs = batch("gpt2")
    watch = Watch(built("gpt2"), inputs)
    sites = [one["site"] for one in available(built("gpt2"), sample=inputs)]
    store = captured(memory_path, "gpt2", sites)
    seen = set()
    for site in sites:
        for label, about in store[site].about["layers"].items():
            name = about.get("transformer_lens")
            if name is None or not name.startswith("blocks."):
                continue
            _, block, hook = name.split(".", 2)
            wanted = real(LENS[hook](watch, int(block)), inputs["attention_mask"]).numpy()
            got = store[site].select(layers=[int(label)]).read()[:, 0]
            np.testing.assert_array_equal(got, wanted, err_msg=f"{site} {label}: {name}")
            seen.add(hook)
    assert seen == set(LENS)


@pytest.mark.parametrize(
    ("name", "asked", "paths"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc", {1: "transformer.h.1.mlp.c_fc"}),
        ("gpt2", "transformer.h.*.mlp", {i: f"transformer.h.{i}.mlp" for i in range(3)}),
        ("gpt2", "transformer.h.*.attn.c_attn", {i: f"transformer.h.{i}.attn.c_attn" for i in range(3)}),
        ("gpt2", "*.ln_1", {i: f"transformer.h.{i}.ln_1" for i in range(3)}),
        ("gpt2", "transformer.h.[01].ln_2", {i: f"transformer.h.{i}.ln_2" for i in range(2)}),
        ("gpt2", "transformer.ln_f", {0: "transformer.ln_f"}),
        ("gpt2", "lm_head", {0: "lm_head"}),
        ("gpt2", "transformer", {0: "transformer"}),
        ("llama", "layers.1", {1: "model.layers.1"}),
        ("llama", "layers.2.self_attn", {2: "model.layers.2.self_attn"}),
        (
            "llama",
            "model.layers.*.self_attn.k_proj",
            {i: f"model.layers.{i}.self_attn.k_proj" for i in range(3)},
        ),
        ("bert", "encoder.layer.?.output", {i: f"encoder.layer.{i}.output" for i in range(3)}),
        ("bert", "embeddings", {0: "embeddings"}),
        (
            "mamba",
            "backbone.layers.*.mixer.in_proj",
            {i: f"backbone.layers.{i}.mixer.in_proj" for i in range(3)},
        ),
    ],
)
def test_modules_by_path(name: str, asked: str, paths: dict[int, str], memory_path: Path) -> None:
    inputs = batch(name)
    watch = Watch(built(name), inputs)
    store = captured(memory_path, name, [asked])
    (site,) = store.sites
    assert store[site].layers == list(paths)
    for label, path in paths.items():
        wanted = real(watch.gave[path][0], inputs["attention_mask"]).numpy()
        np.testing.assert_array_equal(store[site].select(layers=[label]).read()[:, 0], wanted, err_msg=path)
        assert store[site].about["layers"][str(label)]["module"] == path


def test_modules_keep_their_name(memory_path: Path) -> None:
    store = captured(memory_path, "gpt2", ["transformer.h.*.mlp", "transformer.h.1.mlp.c_fc", "resid"])
    assert set(store.sites) == {"transformer.h.*.mlp", "transformer.h.1.mlp.c_fc", "resid"}


def test_a_pattern_for_widths_that_differ(memory_path: Path) -> None:
    """Each by itself, or by width; nothing is lost."""
    inputs = batch("gpt2")
    watch = Watch(built("gpt2"), inputs)
    store = captured(memory_path, "gpt2", ["transformer.h.*.mlp.*"])
    found = {}
    for site in store.sites:
        for label in store[site].layers:
            path = store[site].about["layers"][str(label)]["module"]
            found[path] = store[site].select(layers=[label]).read()[:, 0]
    wanted = [path for path in watch.gave if ".mlp." in path]
    assert sorted(found) == sorted(wanted)
    for path in wanted:
        np.testing.assert_array_equal(
            found[path], real(watch.gave[path][0], inputs["attention_mask"]).numpy()
        )


def test_a_module_that_is_run_several_times(memory_path: Path) -> None:
    """Albert's one group of layers: a layer for each time."""
    model, inputs = built("albert"), batch("albert")
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    for path in ("encoder.albert_layer_groups.0", "encoder.albert_layer_groups.0.albert_layers.0"):
        store = actstore.capture(memory_path / path, model, inputs, sites=[path], progress=False)
        assert store[path].layers == [0, 1, 2]
        wanted = torch.stack([real(state, inputs["attention_mask"]) for state in states[1:]], 1)
        np.testing.assert_array_equal(store[path].read(), wanted.numpy())
        two = actstore.capture(
            memory_path / f"{path}-last", model, inputs, sites=[path], layers=-1, progress=False
        )
        np.testing.assert_array_equal(two[path].read(), wanted[:, -1:].numpy())


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_row_for_each_example(name: str, memory_path: Path) -> None:
    """What a model gives once for each sequence is on the axis of examples."""
    inputs = batch(name)
    with torch.no_grad():
        wanted = built(name)(**inputs).pooler_output.numpy()
    store = captured(memory_path, name, ["pooler", "resid"])
    assert store["pooler"].axis == "examples"
    np.testing.assert_array_equal(store["pooler"].read()[:, 0], wanted)
    alone = actstore.capture(
        memory_path / "alone", built(name), inputs, sites=["pooler"], keep="last", progress=False
    )
    np.testing.assert_array_equal(alone["pooler"].read()[:, 0], wanted)


@pytest.mark.parametrize(("model", "stored"), [("float32", "float16"), ("float32", "bfloat16")])
@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_another_dtype_is_rounded_to_the_nearest(
    name: str, model: str, stored: str, memory_path: Path
) -> None:
    dtype = ml_dtypes.bfloat16 if stored == "bfloat16" else np.float16
    wanted = rows(name, "resid", [0, 1, 2, 3]).astype(dtype)
    for i, asked in enumerate((stored, getattr(torch, stored), np.dtype(dtype))):
        store = actstore.capture(memory_path / str(i), built(name), batch(name), dtype=asked, progress=False)
        assert store["resid"].dtype == dtype
        np.testing.assert_array_equal(store["resid"].read().view(np.uint16), wanted.view(np.uint16))


def test_a_wider_dtype_is_exact(memory_path: Path) -> None:
    model = fresh("llama").to(torch.bfloat16)
    narrow = actstore.capture(memory_path / "narrow", model, batch("llama"), progress=False)
    wide = actstore.capture(memory_path / "wide", model, batch("llama"), dtype="float32", progress=False)
    assert (narrow["resid"].dtype.name, wide["resid"].dtype.name) == ("bfloat16", "float32")
    np.testing.assert_array_equal(narrow["resid"].read("float32"), wide["resid"].read())


def test_dtypes_that_cannot_be_stored(memory_path: Path) -> None:
    model = fresh("gpt2").double()
    with pytest.raises(actstore.InvalidInputError, match="float64"):
        actstore.capture(memory_path / "run.act", model, batch("gpt2"), progress=False)
    store = actstore.capture(memory_path / "run.act", model, batch("gpt2"), dtype="float32", progress=False)
    with torch.no_grad():
        state = model(**batch("gpt2"), output_hidden_states=True).hidden_states[1]
    wanted = real(state, batch("gpt2")["attention_mask"]).float().numpy()
    np.testing.assert_array_equal(store["resid"].select(layers=[1]).read()[:, 0], wanted)
    for dtype in ("float64", "int8", "nothing"):
        with pytest.raises(actstore.InvalidInputError, match="dtype"):
            captured(memory_path, "gpt2", ["resid"], dtype=dtype, overwrite=True)
