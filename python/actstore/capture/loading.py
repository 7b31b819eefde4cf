"""From a name, a path, ``package:NAME`` or an object to a model that is ready to be captured from."""

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ActstoreError, InvalidInputError, NotFoundError
from .checkpoint import (
    Options,
    holds_model,
    image_processor_of,
    lower_case,
    place_of,
    pretrained,
    read_json,
    tokenizer_of,
)
from .identity import tokenizer_hash
from .libraries import (
    device_named,
    dtype_name,
    dtype_named,
    first_line,
    has_cuda,
    library,
    quiet,
    weights_torch_dtype,
)
from .sentence import Sentence, is_sentence_transformer, sentence_of_files, sentence_of_object
from .weights import weights_hash

if TYPE_CHECKING:
    import torch

_NO_LIMIT = 1_000_000_000
"""Tokenizers say that they know of no greatest length by a number above this one."""


@dataclass
class Loaded:
    """A model, what prepares its inputs, and what is known of both.

    Attributes
    ----------
    model : torch.nn.Module
        The module whose ``forward`` is called; of a SentenceTransformer its transformer.
    tokenizer, image_processor : object or None
        Those of transformers, where the model has them.
    name : str
        By which it can be loaded again: a name, an absolute path or ``package:NAME``; empty when unknown.
    max_length : int or None
        Tokens of a text by default; None when nothing says so.
    max_positions : int or None
        Tokens of a text at most, where the model has a table of positions.
    prompt : str or None
        What a SentenceTransformer puts before every text.
    prompts : dict
        Its prompts by name.
    pool : str or None
        How it pools, as `Site.pool` calls it.
    normalize : bool
        Whether it scales what it has pooled to norm 1.
    revision : str or None
        Of a model of the hub: the commit, or what was asked for.
    tokenizer_name : str
        As `name`, of the tokenizer.
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


def load(
    model: Any,
    tokenizer: Any = None,
    *,
    dtype: Any = None,
    device: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a model, or take one that is there.

    Parameters
    ----------
    model : str, path, torch.nn.Module, SentenceTransformer or Loaded
        A folder, a name on the Hugging Face hub, ``package:NAME`` (the model files within an installed
        Python package), or an object. Folders of SentenceTransformers are read without that library.
    tokenizer : str or tokenizer, optional
        By default the model's own: that of its folder or, of an object, of where it was loaded from.
    dtype : str or torch.dtype, optional
        Of the weights; by default as the checkpoint has them. Objects are not cast.
    device : str or torch.device, optional
        By default, of what is loaded, ``cuda`` where there is one, else ``cpu``; objects stay where they are.
    revision : str, optional
        Of a model of the hub.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Returns
    -------
    Loaded
        What is loaded is in eval mode; objects stay as they are.

    Raises
    ------
    NotFoundError
        When there is no such folder, package or model.
    InvalidInputError
        When it is no model, its checkpoint is damaged or lacks weights, there is no such device or dtype, or
        torch or transformers is not installed.

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
            options = Options(dtype_named(dtype), device, revision, trust_remote_code)
            return _by_name(name, tokenizer, options)
    if not isinstance(model, torch.nn.Module):
        raise InvalidInputError(f"a model is a name, a path or a torch module, got {type(model).__name__}")
    return _of_object(model, tokenizer, dtype_named(dtype), device)


def found_again(
    identity: Mapping[str, Any], *, device: Any = None, trust_remote_code: bool = False
) -> Loaded:
    """Load the model and the tokenizer that a store was captured with.

    Parameters
    ----------
    identity : mapping
        `Store.identity`.
    device : str or torch.device, optional
        As `load` has it.
    trust_remote_code : bool
        Whether code that comes with the model may run.

    Returns
    -------
    Loaded

    Raises
    ------
    NotFoundError
        When the identity names no model, or it is not there any more.
    InvalidInputError
        When what is found is another model or tokenizer: their hashes differ.
    """
    told, name = _told(identity, "model"), _named(identity, "model")
    if name is None:
        raise NotFoundError(
            "the store does not say by which name its model can be loaded",
            hint="it was captured from an object without a name: give that model",
        )
    options = Options(
        dtype_named(told.get("dtype")), device, told.get("revision"), trust_remote_code, told.get("class")
    )
    loaded = _by_name(name, _tokenizer_again(identity, name), options)
    check_same(loaded, identity, name)
    return loaded


def check_same(loaded: Loaded, identity: Mapping[str, Any], name: str) -> None:
    """Raise InvalidInputError when a model or its tokenizer is not that of a store, by their hashes."""
    told = _told(identity, "model")
    found = weights_hash(loaded.model, pooler=bool(told.get("pooler")))
    if found != told.get("weights"):
        raise InvalidInputError(
            f"{name} is another model by now: the store was captured with weights {told.get('weights')}, "
            f"these are {found}",
            hint="give the model that the store was captured with",
        )
    recorded = _told(identity, "tokenizer").get("hash")
    if recorded is not None and (hashed := tokenizer_hash(loaded.tokenizer)) != recorded:
        raise InvalidInputError(
            f"{name} has another tokenizer by now: the store was captured with {recorded}, this is {hashed}",
            hint="give the tokenizer that the store was captured with",
        )


def _told(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = identity.get(key)
    return found if isinstance(found, Mapping) else {}


def _named(identity: Mapping[str, Any], key: str) -> str | None:
    found = _told(identity, key).get("name_or_path")
    return found if isinstance(found, str) and found else None


def _tokenizer_again(identity: Mapping[str, Any], model: str) -> str | None:
    """Where the tokenizer is, when it is not the model's own."""
    name = _named(identity, "tokenizer")
    return None if name == model else name


# ---- By name ----


def _by_name(name: str, tokenizer: Any, options: Options) -> Loaded:
    device = device_named("cuda" if options.device is None and has_cuda() else options.device or "cpu")
    library("transformers")
    place, name = place_of(name)
    if os.path.isdir(place) and not holds_model(place):
        raise InvalidInputError(
            f"{name} is a folder without a model: it has no config.json",
            hint="a model's folder is what save_pretrained writes",
        )
    read = functools.partial(read_json, place, options)
    with quiet():
        sentence = sentence_of_files(read, name)
        around = sentence or Sentence()
        within = {"subfolder": around.folder} if around.folder else {}
        model = pretrained(place, name, within, sentence is not None, options)
        if tokenizer is None:
            tokenizer, named = tokenizer_of(place, within, options), name
        else:
            tokenizer, named = _given_tokenizer(tokenizer, options)
        processor = image_processor_of(place, model, options)
    if around.lower_case and tokenizer is not None:
        lower_case(tokenizer)
    revision = getattr(model.config, "_commit_hash", None) or options.revision
    return _loaded(_moved(model, device), tokenizer, named, processor, name, around, revision)


def _given_tokenizer(tokenizer: Any, options: Options) -> tuple[Any, str]:
    """A tokenizer that is not the model's own, by name or as it is, and its name."""
    if not isinstance(tokenizer, str | os.PathLike):
        if not callable(tokenizer) or not hasattr(tokenizer, "num_special_tokens_to_add"):
            raise InvalidInputError(
                f"tokenizer: {tokenizer!r:.60} is no tokenizer of transformers, and no name of one"
            )
        named = str(getattr(tokenizer, "name_or_path", None) or "")
        return tokenizer, os.path.abspath(named) if os.path.isdir(named) else named
    library("transformers")
    place, named = place_of(os.fspath(tokenizer))
    found = tokenizer_of(place, {}, Options(None, None, None, options.trust_remote_code))
    if found is None:
        raise NotFoundError(f"there is no tokenizer in {named}")
    return found, named


# ---- Objects ----


def _of_object(model: Any, tokenizer: Any, dtype: Any, device: Any) -> Loaded:
    sentence = Sentence()
    if is_sentence_transformer(model):
        model, own, sentence = sentence_of_object(model)
        tokenizer = own if tokenizer is None else tokenizer
    # Compiled and data-parallel models hide the modules that hooks are to be put on.
    while type(model).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        model = getattr(model, "_orig_mod", None) or model.module
    config = getattr(model, "config", None)
    name = str(getattr(config, "_name_or_path", None) or "")
    found = weights_torch_dtype(model)
    if dtype is not None and found is not None and dtype != found:
        raise InvalidInputError(
            f"the model's weights are {dtype_name(found)}, asked for is {dtype_name(dtype)}",
            hint="an object is captured from as it is: cast it before",
        )
    options = Options(None, None, None, False)
    processor, named = None, ""
    if os.path.isdir(name):
        name = os.path.abspath(name)
    with quiet():
        if tokenizer is not None:
            tokenizer, named = _given_tokenizer(tokenizer, options)
        if name and config is not None:
            with contextlib.suppress(ActstoreError):  # It is gone, and the user may need none.
                place, _ = place_of(name)
                if tokenizer is None:
                    tokenizer, named = tokenizer_of(place, {}, options), name
                processor = image_processor_of(place, model, options)
    if device is not None:
        model = _moved(model, device_named(device))
    revision = getattr(config, "_commit_hash", None)
    if isinstance(getattr(model, "peft_config", None), Mapping):
        name = ""  # With adapters it is another model than the one of that name.
    return _loaded(model, tokenizer, named, processor, name, sentence, revision)


def _loaded(
    model: "torch.nn.Module",
    tokenizer: Any,
    tokenizer_name: str,
    processor: Any,
    name: str,
    sentence: Sentence,
    revision: str | None,
) -> Loaded:
    most = _max_positions(model)
    length = sentence.max_length
    if length is None:
        told = getattr(tokenizer, "model_max_length", None)
        length = told if isinstance(told, int) and 0 < told < _NO_LIMIT else None
    lengths = [n for n in (length, most) if n is not None]
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        image_processor=processor,
        name=name,
        max_length=min(lengths, default=None),
        max_positions=most,
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
    except RuntimeError as error:  # out of memory, or weights that are not there to be moved
        raise InvalidInputError(f"the model cannot be moved to {device}: {first_line(error)}") from error


def _max_positions(model: Any) -> int | None:
    """Positions that a model has."""
    config = getattr(model, "config", None)
    for told in (config, getattr(config, "text_config", None)):
        n = getattr(told, "max_position_embeddings", None)
        if isinstance(n, int) and 0 < n < _NO_LIMIT:
            return n - _first_position(model)
    return None


def _first_position(model: Any) -> int:
    """The row of the table of positions that the first token takes: RoBERTa's begin after the padding's."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
