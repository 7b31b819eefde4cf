"""A model's files, in a folder, on the hub or within a package: weights, tokenizer, image processor.

A model is of the class that its checkpoint names where that gives logits (``...ForCausalLM``,
``...ForConditionalGeneration``), else the bare one of `AutoModel`. Weights that a checkpoint lacks are
made up by transformers: activations of such a model would mean nothing, so they are refused, but for the
pooler, which most checkpoints lack and no canonical site depends on.
"""

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ActstoreError, InvalidInputError, NotFoundError
from .libraries import first_line, seeded

if TYPE_CHECKING:
    import torch

PACKAGE = "package:"
_TOKENIZER_FILES = re.compile(
    r"tokenizer(_config)?\.json|vocab\.(txt|json)|merges\.txt|.*\.(model|tiktoken|spm)", re.ASCII
)
_HUB_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
_WITH_LOGITS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@dataclass(frozen=True)
class Options:
    """How a model is to be loaded; `class_name` by which class of transformers, when that is known."""

    dtype: Any
    device: Any
    revision: str | None
    trust_remote_code: bool
    class_name: str | None = None

    def hub(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        told: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        return told if self.revision is None else told | {"revision": self.revision}


def place_of(name: str) -> tuple[str, str]:
    """Where transformers finds a model, and its name to be recorded.

    Raises
    ------
    NotFoundError, InvalidInputError
        When there can be no model of this name.
    """
    if name.startswith(PACKAGE):
        return _package_folder(name.removeprefix(PACKAGE)), name
    if os.path.isdir(name):
        place = os.path.abspath(name)
        return place, place
    if os.path.exists(name):
        raise InvalidInputError(f"{name} is a file: a model is a folder, a name or package:NAME")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        raise NotFoundError(f"there is no model {name!r}: no such folder, and no name of a model either")
    return name, name


def holds_model(folder: str) -> bool:
    """Whether a folder has a model's config."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in ("modules.json", "config.json"))


def _package_folder(name: str) -> str:
    """The folder of an installed package that holds a model; the package's code is not run."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise InvalidInputError(f"{PACKAGE}{name}: {name!r} is no name of a Python package")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(
            f"{PACKAGE}{name}: the Python package {name!r} is not installed",
            hint=f"pip install {name.replace('_', '-')}",
        )
    roots = list(spec.submodule_search_locations)
    below = [os.path.join(root, entry) for root in roots for entry in sorted(os.listdir(root))]
    for folder in (*roots, *filter(os.path.isdir, below)):
        if holds_model(folder):
            return folder
    raise NotFoundError(f"{PACKAGE}{name}: there is no model in {roots[0]}: no folder with a config.json")


def read_json(place: str, options: Options, file: str) -> Any:
    """A JSON file of a model, None when it is not there.

    Raises
    ------
    InvalidInputError
        When it is no JSON.
    """
    path = file_of(place, options, file)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as opened:
            return json.load(opened)
    except ValueError as error:
        raise InvalidInputError(f"{path} is no JSON: {error}") from error


def file_of(place: str, options: Options, file: str) -> str | None:
    """The path of a model's file by name, from the hub if need be; None when there is none."""
    if os.path.isdir(place):
        path = os.path.join(place, *file.split("/"))
        return path if os.path.isfile(path) else None
    told = {} if options.revision is None else {"revision": options.revision}
    try:
        found = importlib.import_module("transformers.utils").cached_file(
            place,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **told,
        )
    except OSError:  # No such model on the hub: looking for its config will say so.
        return None
    return None if found is None else str(found)


def pretrained(
    place: str, name: str, within: dict[str, str], sentence: bool, options: Options
) -> "torch.nn.Module":
    """The model with its weights, on the CPU; `sentence`: as SentenceTransformers have it, without a head.

    Raises
    ------
    NotFoundError
        When the hub does not have it.
    InvalidInputError
        When it cannot be loaded, or its checkpoint lacks weights.
    """
    transformers = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(place, **within, **options.hub())
    except Exception as error:
        if not os.path.isdir(place) and isinstance(error, OSError):
            raise NotFoundError(
                f"there is no model {name!r}: no such folder, nor on the hub ({first_line(error)})",
                hint="a model is a folder, a name on the Hugging Face hub, or package:NAME",
            ) from error
        raise _unusable(name, error) from error
    made_up: set[str] = set()
    for kind in _kinds(config, sentence, options):
        try:
            # What a checkpoint lacks is drawn at random: at least always the same.
            with seeded():
                model, info = kind.from_pretrained(
                    place,
                    dtype="auto" if options.dtype is None else options.dtype,
                    output_loading_info=True,
                    **within,
                    **options.hub(),
                )
        except MemoryError:
            raise
        except Exception as error:
            raise _unusable(name, error) from error
        made_up = {key for key in info["missing_keys"] if not of_pooler(key)}
        if not made_up:
            return model  # type: ignore[no-any-return]
    listed = ", ".join(sorted(made_up)[:3])
    raise InvalidInputError(
        f"{name}: the checkpoint lacks {len(made_up)} of the weights that a {type(model).__name__} has, "
        f"as {listed}: they would be made up",
        hint="load the model as you mean it, and give the object",
    )


def _kinds(config: Any, sentence: bool, options: Options) -> Iterator[Any]:
    """Classes to load with, the best first."""
    transformers = importlib.import_module("transformers")
    remote = getattr(config, "auto_map", None) or {}
    if options.class_name is not None:  # from a store: nothing but a model's class will do
        found = getattr(transformers, options.class_name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            yield found
            return
    for named in () if sentence else getattr(config, "architectures", None) or ():
        found = getattr(transformers, named, None)
        if not named.endswith(_WITH_LOGITS):
            continue
        if isinstance(found, type):
            yield found
        elif "AutoModelForCausalLM" in remote:
            yield transformers.AutoModelForCausalLM
    yield transformers.AutoModel


def of_pooler(name: str) -> bool:
    """Whether a parameter is of a pooler, which AutoModel gives to models whose checkpoints have none."""
    return "pooler" in name.split(".")


def tokenizer_of(place: str, within: dict[str, str], options: Options) -> Any | None:
    """The tokenizer that lies with a model; None when there is none."""
    # Without its files, transformers would make an empty one from the config.
    if os.path.isdir(place):
        there = any(map(_TOKENIZER_FILES.fullmatch, os.listdir(os.path.join(place, *within.values()))))
    else:
        folder = "".join(f"{part}/" for part in within.values())
        there = any(file_of(place, options, folder + file) for file in _HUB_TOKENIZER_FILES)
    if not there:
        return None
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(place, **within, **options.hub())
    except Exception as error:
        raise _unusable(f"the tokenizer of {place}", error) from error


def lower_case(tokenizer: Any) -> None:
    """As SentenceTransformers do it for ``do_lower_case``."""
    if not getattr(tokenizer, "is_fast", False):
        tokenizer.do_lower_case = True
        return
    normalizers = importlib.import_module("tokenizers.normalizers")
    backend = tokenizer.backend_tokenizer
    steps = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def image_processor_of(place: str, model: Any, options: Options) -> Any | None:
    """What prepares the images of a model that takes some; None when there is none."""
    if getattr(model, "main_input_name", None) != "pixel_values":
        return None
    if file_of(place, options, "preprocessor_config.json") is None:
        return None
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoImageProcessor.from_pretrained(place, **options.hub())
    except Exception as error:
        raise _unusable(f"the image processor of {place}", error) from error


def _unusable(name: str, error: Exception) -> ActstoreError:
    if isinstance(error, ActstoreError):
        return error
    return InvalidInputError(f"{name} cannot be loaded: {first_line(error)}")
