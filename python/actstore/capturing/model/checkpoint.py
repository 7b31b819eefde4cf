"""Loading weights, tokenizer and image processor from a folder, the Hugging Face hub or a Python package.

If the class named in the checkpoint returns logits (``...ForCausalLM``, ``...ForConditionalGeneration``),
the model is loaded as that class; otherwise it is loaded with `AutoModel`. transformers initializes weights
that the checkpoint lacks at random. Activations of such a model are meaningless, so it is refused. The one
exception is the pooler: most checkpoints lack it, and no canonical site depends on it.
"""

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ActstoreError, InvalidInputError, NotFoundError
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
class LoadOptions:
    """How to load a model. `class_name` names the class of transformers, when it is known from a store."""

    dtype: Any
    device: Any
    revision: str | None
    trust_remote_code: bool
    class_name: str | None = None

    def hub(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained`` call."""
        arguments: dict[str, Any] = {"trust_remote_code": self.trust_remote_code}
        return arguments if self.revision is None else arguments | {"revision": self.revision}


def resolve_location(name: str) -> tuple[str, str]:
    """Resolve a model's name to the location that transformers loads from and the name to record.

    Raises
    ------
    NotFoundError, InvalidInputError
        If the name is not that of a folder, a package or a model on the hub.
    """
    if name.startswith(PACKAGE):
        return _package_folder(name.removeprefix(PACKAGE)), name
    if os.path.isdir(name):
        folder = os.path.abspath(name)
        return folder, folder
    if os.path.exists(name):
        raise InvalidInputError(
            f"{name} is a file", hint="a model is a folder, a name on the Hugging Face hub, or package:NAME"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        raise NotFoundError(f"there is no model {name!r}: it is neither a folder nor a valid model name")
    return name, name


def holds_model(folder: str) -> bool:
    """Whether a folder has a model config."""
    return any(os.path.isfile(os.path.join(folder, file)) for file in ("modules.json", "config.json"))


def _package_folder(name: str) -> str:
    """Find the folder with a model in an installed package, without running the package's code."""
    module = name.replace("-", "_")
    if not module.isidentifier():
        raise InvalidInputError(f"{PACKAGE}{name}: {name!r} is not a valid Python package name")
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
    raise NotFoundError(f"{PACKAGE}{name}: {roots[0]} has no folder with a config.json, so no model")


def read_json(location: str, options: LoadOptions, file: str) -> Any:
    """Read a JSON file of a model. Returns None if the file does not exist.

    Raises
    ------
    InvalidInputError
        If the file is not valid JSON.
    """
    path = model_file(location, options, file)
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as opened:
            return json.load(opened)
    except ValueError as error:
        raise InvalidInputError(f"{path} is not valid JSON: {error}") from error


def model_file(location: str, options: LoadOptions, file: str) -> str | None:
    """The local path of a model's file, downloaded from the hub if necessary. None if there is none."""
    if os.path.isdir(location):
        path = os.path.join(location, *file.split("/"))
        return path if os.path.isfile(path) else None
    revision = {} if options.revision is None else {"revision": options.revision}
    try:
        path = importlib.import_module("transformers.utils").cached_file(
            location,
            file,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **revision,
        )
    except OSError:  # The hub does not have the model; loading its config raises the error.
        return None
    return None if path is None else str(path)


def load_pretrained(
    location: str, name: str, subfolder: dict[str, str], sentence: bool, options: LoadOptions
) -> "torch.nn.Module":
    """Load a model and its weights on the CPU.

    Parameters
    ----------
    location, name : str
        As `resolve_location` returns them.
    subfolder : dict
        The keyword argument ``subfolder`` of ``from_pretrained``, or nothing.
    sentence : bool
        Whether the model is part of a SentenceTransformer: then it is loaded without a head.
    options : LoadOptions

    Raises
    ------
    NotFoundError
        If the hub does not have the model.
    InvalidInputError
        If the model cannot be loaded, or its checkpoint lacks weights.
    """
    transformers = importlib.import_module("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(location, **subfolder, **options.hub())
    except Exception as error:
        if not os.path.isdir(location) and isinstance(error, OSError):
            raise NotFoundError(
                f"there is no model {name!r}, neither a folder nor on the hub ({first_line(error)})",
                hint="a model is a folder, a name on the Hugging Face hub, or package:NAME",
            ) from error
        raise _unusable(name, error) from error
    missing: set[str] = set()
    for model_class in _model_classes(config, sentence, options):
        try:
            # transformers draws missing weights at random; the seed makes them reproducible at least.
            with seeded():
                model, info = model_class.from_pretrained(
                    location,
                    dtype="auto" if options.dtype is None else options.dtype,
                    output_loading_info=True,
                    **subfolder,
                    **options.hub(),
                )
        except MemoryError:
            raise
        except Exception as error:
            raise _unusable(name, error) from error
        missing = {key for key in info["missing_keys"] if not is_pooler(key)}
        if not missing:
            return model  # type: ignore[no-any-return]
    listed = ", ".join(sorted(missing)[:3])
    raise InvalidInputError(
        f"{name}: the checkpoint lacks {len(missing)} of the weights of a {type(model).__name__} "
        f"({listed}, ...), which would be initialized at random",
        hint="load the model yourself, and pass the object",
    )


def _model_classes(config: Any, sentence: bool, options: LoadOptions) -> Iterator[Any]:
    """Classes to load the model with, in order of preference."""
    transformers = importlib.import_module("transformers")
    remote = getattr(config, "auto_map", None) or {}
    if options.class_name is not None:  # The name comes from a store: accept only the class of a model.
        named = getattr(transformers, options.class_name, None)
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            yield named
            return
    for architecture in () if sentence else getattr(config, "architectures", None) or ():
        named = getattr(transformers, architecture, None)
        if not architecture.endswith(_WITH_LOGITS):
            continue
        if isinstance(named, type):
            yield named
        elif "AutoModelForCausalLM" in remote:
            yield transformers.AutoModelForCausalLM
    yield transformers.AutoModel


def is_pooler(name: str) -> bool:
    """Whether a parameter belongs to a pooler, which AutoModel adds even if the checkpoint has none."""
    return "pooler" in name.split(".")


def load_tokenizer(location: str, subfolder: dict[str, str], options: LoadOptions) -> Any | None:
    """Load the tokenizer saved with a model. Returns None if there is none."""
    # Without tokenizer files, transformers would build an empty tokenizer from the config.
    if os.path.isdir(location):
        names = os.listdir(os.path.join(location, *subfolder.values()))
        exists = any(map(_TOKENIZER_FILES.fullmatch, names))
    else:
        folder = "".join(f"{part}/" for part in subfolder.values())
        exists = any(model_file(location, options, folder + file) for file in _HUB_TOKENIZER_FILES)
    if not exists:
        return None
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(location, **subfolder, **options.hub())
    except Exception as error:
        raise _unusable(f"the tokenizer of {location}", error) from error


def lower_case(tokenizer: Any) -> None:
    """Make a tokenizer lowercase its input, as SentenceTransformers does for ``do_lower_case``."""
    if not getattr(tokenizer, "is_fast", False):
        tokenizer.do_lower_case = True
        return
    normalizers = importlib.import_module("tokenizers.normalizers")
    backend = tokenizer.backend_tokenizer
    steps = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def load_image_processor(location: str, model: Any, options: LoadOptions) -> Any | None:
    """Load the image processor of a vision model. Returns None if the model takes no images or has none."""
    if getattr(model, "main_input_name", None) != "pixel_values":
        return None
    if model_file(location, options, "preprocessor_config.json") is None:
        return None
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoImageProcessor.from_pretrained(location, **options.hub())
    except Exception as error:
        raise _unusable(f"the image processor of {location}", error) from error


def _unusable(name: str, error: Exception) -> ActstoreError:
    if isinstance(error, ActstoreError):
        return error
    return InvalidInputError(f"{name} cannot be loaded: {first_line(error)}")
