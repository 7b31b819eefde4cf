"""What activations are of: equal for equal models, and what differs is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from actstore.capturing.identity import config_hash, difference, identity
from actstore.capturing.model.hashes import tokenizer_hash, weights_hash
from actstore.capturing.model.loading import Loaded, load
from tiny_models import write_bert, write_gpt2, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Asked:
    """What `identity` takes of an encoder."""

    def __init__(self) -> None:
        self.template: dict[str, Any] = {"chat": None, "prompt": None}
        self.truncation: dict[str, Any] = {"max_length": 32, "stride": None}


def told(loaded: Loaded, **keywords: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "sites": {"resid": {"layers": [0, 1, 2], "axis": "tokens"}},
        "dtype": "bfloat16",
        "keep": "all",
        "pool": None,
        "seed": 0,
        "run": {"device": "cpu", "batch_tokens": 8192},
    }
    return identity(loaded, keywords.pop("encoder", Asked()), **(options | keywords))


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return load(write_bert(tmp_path / "bert"))


def named(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    found = difference(a, b)
    if found is None:
        return None
    assert found[1] != found[2]
    return found[0]


# ---- What it holds ----


def test_it_is_json(loaded: Loaded) -> None:
    found = told(loaded)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        "model",
        "tokenizer",
        "image_processor",
        "template",
        "truncation",
        "keep",
        "seed",
        "dtype",
        "pool",
        "sites",
        "run",
    }
    assert found["model"]["class"] == "BertModel"
    assert found["model"]["weights"].startswith("blake2b:")
    assert found["dtype"] == "bfloat16"
    assert {"device", "batch_tokens", "torch", "transformers", "actstore"} == set(found["run"])


def test_policies(loaded: Loaded) -> None:
    assert told(loaded, keep=0.25, seed=7)["keep"] == 0.25
    assert told(loaded, keep=0.25, seed=7)["seed"] == 7
    assert told(loaded, keep="last", seed=7)["seed"] is None  # nothing is drawn
    assert told(loaded, keep=lambda example: [True])["keep"] == "mask"
    assert told(loaded, keep=[np.ones(3, bool)])["keep"] == "mask"


# ---- What counts ----


def test_the_same_from_elsewhere_is_the_same(tmp_path: Path, loaded: Loaded) -> None:
    elsewhere = told(load(write_bert(tmp_path / "other")), run={"device": "cuda:0", "batch_tokens": 1})
    assert elsewhere["model"]["name_or_path"] != told(loaded)["model"]["name_or_path"]
    assert elsewhere["run"] != told(loaded)["run"]
    assert difference(told(loaded), elsewhere) is None


def test_a_weight(loaded: Loaded) -> None:
    before = told(loaded)
    with torch.no_grad():
        loaded.model.get_parameter("encoder.layer.1.attention.self.key.bias")[3] += 1e-6
    found = difference(before, told(loaded))
    assert found is not None
    assert found == ("model.weights", before["model"]["weights"], told(loaded)["model"]["weights"])


def test_a_buffer_that_is_saved(loaded: Loaded) -> None:
    loaded.model.register_buffer("scale", torch.ones(3))
    loaded.model.register_buffer("passing", torch.ones(3), persistent=False)
    before = told(loaded)
    loaded.model.passing[1] = 2  # what follows from the config
    assert named(before, told(loaded)) is None
    loaded.model.scale[1] = 2
    assert named(before, told(loaded)) == "model.weights"


@pytest.mark.parametrize(
    ("key", "value", "counts"),
    [
        ("hidden_act", "relu", True),
        ("layer_norm_eps", 1e-5, True),
        ("position_embedding_type", "relative_key", True),
        ("_name_or_path", "elsewhere", False),
        ("transformers_version", "4.0.0", False),
        ("use_cache", False, False),
        ("output_hidden_states", True, False),
    ],
)
def test_the_config(loaded: Loaded, key: str, value: Any, counts: bool) -> None:
    before = told(loaded)
    setattr(loaded.model.config, key, value)
    assert named(before, told(loaded)) == ("model.config" if counts else None)


def test_the_tokenizer(tmp_path: Path, loaded: Loaded) -> None:
    before = told(loaded)
    loaded.tokenizer = write_tokenizer(tmp_path / "cased", lower=False)
    assert named(before, told(loaded)) == "tokenizer.hash"
    loaded.tokenizer = None
    assert named(before, told(loaded)) == "tokenizer"


def test_asking_the_tokenizer_does_not_change_it(loaded: Loaded) -> None:
    before = tokenizer_hash(loaded.tokenizer)
    loaded.tokenizer(["the cat", "a"], truncation=True, max_length=3, padding=True)
    assert tokenizer_hash(loaded.tokenizer) == before
    loaded.tokenizer.add_tokens(["newword"])
    assert tokenizer_hash(loaded.tokenizer) != before


def test_a_slow_tokenizer(tmp_path: Path) -> None:
    from transformers import CanineTokenizer

    one, two = CanineTokenizer(), CanineTokenizer()
    assert tokenizer_hash(one) == tokenizer_hash(two)
    two.add_tokens(["newword"])
    assert tokenizer_hash(one) != tokenizer_hash(two)


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"dtype": "float32"}, "dtype"),
        ({"keep": "last"}, "keep"),
        ({"pool": "mean"}, "pool"),
        ({"sites": {"resid": {"layers": [0, 1], "axis": "tokens"}}}, "sites.resid.layers"),
        ({"sites": {"resid": {"layers": [0, 1, 2], "axis": "tokens"}, "q": {}}}, "sites.q"),
        ({"seed": 1}, None),
    ],
)
def test_how_it_was_asked(loaded: Loaded, keywords: dict[str, Any], name: str | None) -> None:
    assert named(told(loaded), told(loaded, **keywords)) == name


def test_template_and_truncation(loaded: Loaded) -> None:
    asked = Asked()
    asked.template = {"chat": None, "prompt": "query: "}
    assert named(told(loaded), told(loaded, encoder=asked)) == "template.prompt"
    asked = Asked()
    asked.truncation = {"max_length": 16, "stride": None}
    assert difference(told(loaded), told(loaded, encoder=asked)) == ("truncation.max_length", 32, 16)


def test_the_seed_counts_where_rows_are_drawn(loaded: Loaded) -> None:
    assert named(told(loaded, keep=0.5), told(loaded, keep=0.5, seed=1)) == "seed"


# ---- The hash of weights ----


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_any_dtype(dtype: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(33, 7).to(getattr(torch, dtype))
    before = weights_hash(model)
    assert before == weights_hash(model)
    assert before != weights_hash(model.float())
    assert before == weights_hash(model.to(getattr(torch, dtype)))


def test_tied_weights_count_once(tmp_path: Path) -> None:
    model: Any = load(write_gpt2(tmp_path)).model
    assert model.lm_head.weight is model.transformer.wte.weight
    before = weights_hash(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert weights_hash(model) != before  # a parameter more


def test_shapes_names_and_order_count() -> None:
    def module(**tensors: Any) -> Any:
        model = torch.nn.Module()
        for name, tensor in tensors.items():
            model.register_parameter(name, torch.nn.Parameter(tensor))
        return model

    a, b = torch.arange(6.0), torch.ones(2)
    found = {
        weights_hash(model)
        for model in (
            module(a=a, b=b),
            module(a=a.reshape(2, 3), b=b),
            module(a=a, c=b),
            module(a=b, b=a),
            module(a=a),
            module(),
        )
    }
    assert len(found) == 6
    assert weights_hash(module(a=a.reshape(2, 3).T)) == weights_hash(module(a=a.reshape(2, 3).T.contiguous()))


def test_large_and_small_tensors() -> None:
    """Of several chunks, of one value, of none."""
    model = torch.nn.Module()
    model.large = torch.nn.Parameter(torch.zeros((9 << 20) + 3))
    model.one = torch.nn.Parameter(torch.tensor(1.0))
    model.none = torch.nn.Parameter(torch.zeros(0, 4))
    before = weights_hash(model)
    with torch.no_grad():
        model.large[-1] = 1
    assert weights_hash(model) != before


def test_configs_within_configs() -> None:
    config = transformers.CLIPConfig()
    before = config_hash(config)
    config.text_config.transformers_version = "4.0.0"
    config.text_config._name_or_path = "elsewhere"
    assert config_hash(config) == before
    config.text_config.hidden_size = 48
    assert config_hash(config) != before
    assert config_hash(None) is None
