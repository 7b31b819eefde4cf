"""Loading a model by name, path, ``package:NAME`` or from an object, for capturing activations from it."""

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...errors import ActstoreError, InvalidInputError, NotFoundError
from .checkpoint import (
    LoadOptions,
    holds_model,
    load_image_processor,
    load_pretrained,
    load_tokenizer,
    lower_case,
    read_json,
    resolve_location,
)
from .hashes import tokenizer_hash, weights_hash, weights_state
from .libraries import (
    device_named,
    dtype_name,
    first_line,
    has_cuda,
    library,
    quiet,
    torch_float_dtype,
    weights_torch_dtype,
)
from .sentence import SentenceConfig, is_sentence_transformer, sentence_config, split_sentence_transformer

if TYPE_CHECKING:
    import torch

_NO_LIMIT = 1_000_000_000
"""Tokenizers without a maximum length report one above this number."""


@dataclass
class Loaded:
    """A model with its tokenizer or image processor, and their limits and defaults.

    Attributes
    ----------
    model : torch.nn.Module
        The module whose ``forward`` is called. For a SentenceTransformer, its transformer.
    tokenizer, image_processor : object or None
        Objects of transformers; None if the model has none.
    name : str
        A name, an absolute path or ``package:NAME`` that loads the model again. Empty if unknown.
    max_length : int or None
        Default maximum number of tokens of a text. None if nothing sets one.
    max_positions : int or None
        Upper limit on the number of tokens, if the model has a position table.
    prompt : str or None
        A SentenceTransformer's default prompt, prepended to every text.
    prompts : dict
        A SentenceTransformer's prompts by name.
    pool : str or None
        A SentenceTransformer's pooling, as `Site.pool` names it.
    normalize : bool
        Whether a SentenceTransformer scales pooled vectors to norm 1.
    revision : str or None
        For a model on the hub: its commit, or the revision that was requested.
    tokenizer_name : str
        Like `name`, for the tokenizer.
    verified : dict
        Identities that `check_same_model` has compared this model with, and its state at that time.
    """

    model: "torch.nn.Module"
    tokenizer: Any | None = None
    image_processor: Any | None = None
    name: str = ""
    max_length: int | None = None
    max_positions: int | None = None
    prompt: str | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    pool: str | None = None
    normalize: bool = False
    revision: str | None = None
    tokenizer_name: str = ""
    verified: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a model by name, or wrap a model object.

    Parameters
    ----------
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
        A folder, a name on the Hugging Face hub, ``package:NAME`` (model files in an installed Python
        package), or an object. Folders of SentenceTransformers are read without that library.
    tokenizer : str or tokenizer, optional
        By default the model's own, from its folder or from where an object was loaded.
    dtype : str or torch.dtype, optional
        Of the weights. By default that of the checkpoint. Objects are not cast.
    device : str or torch.device, optional
        By default ``cuda`` if available, else ``cpu``. Objects stay on their device by default.
    revision : str, optional
        Of a model on the hub.
    trust_remote_code : bool
        Whether to run code that comes with the model.

    Returns
    -------
    Loaded
        A model loaded by name is in eval mode. An object keeps its mode.

    Raises
    ------
    NotFoundError
        If there is no such folder, package or model.
    InvalidInputError
        If `model` is not a model, its checkpoint is damaged or lacks weights, the device or dtype does not
        exist, or torch or transformers is not installed.

    Examples
    --------
    >>> import torch
    >>> load(torch.nn.Linear(4, 4)).model
    Linear(in_features=4, out_features=4, bias=True)
    """
    if isinstance(model, Loaded):
        return model
    torch = library("torch")
    if isinstance(model, str | os.PathLike):
        name = os.fspath(model)
        if isinstance(name, str):
            options = LoadOptions(torch_float_dtype(dtype), device, revision, trust_remote_code)
            return _load_by_name(name, tokenizer, options)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInputError(
            f"model: expected a name, a path or a torch module, got {type(model).__name__}"
        )
    return _load_object(model, tokenizer, torch_float_dtype(dtype), device)


def load_from_identity(
    identity: Mapping[str, Any], *, device: Any = None, trust_remote_code: bool = False
) -> Loaded:
    """Load the model and the tokenizer that a store was captured with.

    Parameters
    ----------
    identity : mapping
        `Store.identity`.
    device : str or torch.device, optional
        As in `load`.
    trust_remote_code : bool
        Whether to run code that comes with the model.

    Returns
    -------
    Loaded

    Raises
    ------
    NotFoundError
        If the identity names no model, or the model no longer exists.
    InvalidInputError
        If the model or the tokenizer has changed since: its hash differs.
    """
    recorded, name = _section(identity, "model"), _recorded_name(identity, "model")
    if name is None:
        raise NotFoundError(
            "the store does not record a name to load its model by",
            hint="it was captured from a model object without a name: pass that model",
        )
    options = LoadOptions(
        torch_float_dtype(recorded.get("dtype")),
        device,
        recorded.get("revision"),
        trust_remote_code,
        recorded.get("class"),
    )
    tokenizer = _recorded_name(identity, "tokenizer")
    loaded = _load_by_name(name, None if tokenizer == name else tokenizer, options)
    check_same_model(loaded, identity, name)
    return loaded


def check_same_model(loaded: Loaded, identity: Mapping[str, Any], name: str) -> None:
    """Compare the hashes of a model and its tokenizer with those in a store's identity.

    Hashing reads all weights, so a successful comparison is remembered in ``loaded.verified`` until a weight
    is replaced or modified in place.

    Raises
    ------
    InvalidInputError
        If the model or the tokenizer differs from the store's.
    """
    recorded = _section(identity, "model")
    weights, pooler = recorded.get("weights"), bool(recorded.get("pooler"))
    tokenizer = _section(identity, "tokenizer").get("hash")
    state = (weights_state(loaded.model), id(loaded.tokenizer))
    if loaded.verified.get((weights, pooler, tokenizer)) == state:
        return
    own = weights_hash(loaded.model, pooler=pooler)
    if own != weights:
        raise InvalidInputError(
            f"{name} is not the model of the store: the store was captured with weights {weights}, "
            f"the model's are {own}",
            hint="pass the model that the store was captured with",
        )
    if tokenizer is not None and (own := tokenizer_hash(loaded.tokenizer) or "none") != tokenizer:
        raise InvalidInputError(
            f"{name} has another tokenizer than the store: the store was captured with {tokenizer}, "
            f"the model's is {own}",
            hint="pass the tokenizer that the store was captured with",
        )
    loaded.verified[weights, pooler, tokenizer] = state


def _section(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = identity.get(key)
    return section if isinstance(section, Mapping) else {}


def _recorded_name(identity: Mapping[str, Any], key: str) -> str | None:
    name = _section(identity, key).get("name_or_path")
    return name if isinstance(name, str) and name else None


# ---- by name ----


def _load_by_name(name: str, tokenizer: Any, options: LoadOptions) -> Loaded:
    device = device_named("cuda" if options.device is None and has_cuda() else options.device or "cpu")
    library("transformers")
    location, name = resolve_location(name)
    if os.path.isdir(location) and not holds_model(location):
        raise InvalidInputError(
            f"{name} is a folder without a model: it has no config.json",
            hint="save_pretrained writes the folder of a model",
        )
    with quiet():
        sentence = sentence_config(functools.partial(read_json, location, options), name)
        config = sentence or SentenceConfig()
        subfolder = {"subfolder": config.folder} if config.folder else {}
        model = load_pretrained(location, name, subfolder, sentence is not None, options)
        if tokenizer is None:
            tokenizer, tokenizer_name = load_tokenizer(location, subfolder, options), name
        else:
            tokenizer, tokenizer_name = _explicit_tokenizer(tokenizer, options)
        processor = load_image_processor(location, model, options)
    if config.lower_case and tokenizer is not None:
        lower_case(tokenizer)
    revision = getattr(model.config, "_commit_hash", None) or options.revision
    return _loaded(_moved(model, device), tokenizer, tokenizer_name, processor, name, config, revision)


def _explicit_tokenizer(tokenizer: Any, options: LoadOptions) -> tuple[Any, str]:
    """The tokenizer that the caller passes by name or as an object, and its name."""
    if not isinstance(tokenizer, str | os.PathLike):
        if not callable(tokenizer) or not hasattr(tokenizer, "num_special_tokens_to_add"):
            raise InvalidInputError(
                f"tokenizer: {tokenizer!r:.60} is neither a tokenizer of transformers nor the name of one"
            )
        name = str(getattr(tokenizer, "name_or_path", None) or "")
        return tokenizer, os.path.abspath(name) if os.path.isdir(name) else name
    library("transformers")
    location, name = resolve_location(os.fspath(tokenizer))
    loaded = load_tokenizer(location, {}, LoadOptions(None, None, None, options.trust_remote_code))
    if loaded is None:
        raise NotFoundError(f"there is no tokenizer in {name}")
    return loaded, name


# ---- objects ----


def _load_object(model: Any, tokenizer: Any, dtype: Any, device: Any) -> Loaded:
    sentence = SentenceConfig()
    if is_sentence_transformer(model):
        model, own, sentence = split_sentence_transformer(model)
        tokenizer = own if tokenizer is None else tokenizer
    # Compiled and data-parallel wrappers hide the modules that need hooks.
    while type(model).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        model = getattr(model, "_orig_mod", None) or model.module
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", None) or "")
    own_dtype = weights_torch_dtype(model)
    if dtype is not None and own_dtype is not None and dtype != own_dtype:
        raise InvalidInputError(
            f"dtype: the model's weights are {dtype_name(own_dtype)}, not {dtype_name(dtype)}",
            hint="a model object is not cast: cast it before the call",
        )
    options = LoadOptions(None, None, None, False)
    processor, tokenizer_name = None, ""
    if os.path.isdir(name):
        name = os.path.abspath(name)
    with quiet():
        if tokenizer is not None:
            tokenizer, tokenizer_name = _explicit_tokenizer(tokenizer, options)
        if name and config is not None:
            # The folder may be gone, and the caller may need neither tokenizer nor image processor.
            with contextlib.suppress(ActstoreError):
                location, _ = resolve_location(name)
                if tokenizer is None:
                    tokenizer, tokenizer_name = load_tokenizer(location, {}, options), name
                processor = load_image_processor(location, model, options)
    if device is not None:
        model = _moved(model, device_named(device))
    revision = getattr(config, "_commit_hash", None)
    if isinstance(getattr(model, "peft_config", None), Mapping):
        name = ""  # The name would load the base model without the adapters.
    return _loaded(model, tokenizer, tokenizer_name, processor, name, sentence, revision)


def _loaded(
    model: "torch.nn.Module",
    tokenizer: Any,
    tokenizer_name: str,
    processor: Any,
    name: str,
    sentence: SentenceConfig,
    revision: str | None,
) -> Loaded:
    max_positions = _max_positions(model)
    max_length = sentence.max_length
    if max_length is None:
        limit = getattr(tokenizer, "model_max_length", None)
        max_length = limit if isinstance(limit, int) and 0 < limit < _NO_LIMIT else None
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        image_processor=processor,
        name=name,
        max_length=min((n for n in (max_length, max_positions) if n is not None), default=None),
        max_positions=max_positions,
        prompt=sentence.prompt,
        prompts=sentence.prompts,
        pool=sentence.pool,
        normalize=sentence.normalize,
        revision=revision,
        tokenizer_name=tokenizer_name,
    )


def _moved(model: "torch.nn.Module", device: Any) -> "torch.nn.Module":
    try:
        return model.to(device)
    except RuntimeError as error:  # Out of memory, or weights on the device 'meta'.
        raise InvalidInputError(f"the model cannot be moved to {device}: {first_line(error)}") from error


def _max_positions(model: Any) -> int | None:
    """The number of tokens that a model's position table covers."""
    config = getattr(model, "config", None)
    for candidate in (config, getattr(config, "text_config", None)):
        n = getattr(candidate, "max_position_embeddings", None)
        if isinstance(n, int) and 0 < n < _NO_LIMIT:
            return n - _first_position(model)
    return None


def _first_position(model: Any) -> int:
    """The position table's row for the first token. In RoBERTa it follows the padding's row."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
