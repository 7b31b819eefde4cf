"""What activations are of: the model, its tokenizer and how it was asked, as hashes that can be compared.

Two captures with equal identities give equal rows, whatever the device and the batches. Names, paths and
revisions are recorded, so that the model can be found again, but it is the hashes that are compared.
"""

import contextlib
import hashlib
import importlib
import json
import numbers
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .checkpoint import of_pooler
from .libraries import weights_dtype
from .weights import hashed, weights_hash

if TYPE_CHECKING:
    from .loading import Loaded

_VOLATILE = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation",
        "_name_or_path",
        "attn_implementation",
        "dtype",
        "gradient_checkpointing",
        "initializer_range",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)
"""Keys of a config that do not decide what the model computes, or that the weights say better."""
_UNCOMPARED = frozenset(
    {"run", "model.name_or_path", "model.revision", "model.pool", "model.normalize"}
    | {"tokenizer.name_or_path", "tokenizer.class", "image_processor.class"}
)


def identity(
    loaded: "Loaded",
    encoder: Any,
    *,
    sites: Mapping[str, Any],
    dtype: Any,
    tokens: Any,
    pool: str | None,
    seed: int,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """What goes into a store's attributes, ready for JSON.

    Parameters
    ----------
    loaded : Loaded
        The model and its tokenizer.
    encoder : Encoder
        Its ``template`` and ``truncation`` are taken.
    sites : mapping
        Each site's definition.
    dtype : str or mapping of site to str
        Of what is stored.
    tokens : str, float, callable or masks
        The policy, as `capture` takes it.
    pool : str or None
        How rows are pooled while captured.
    seed : int
        Counts when `tokens` is a fraction.
    run : mapping
        What does not decide the values: device, batch size. Versions of the libraries are added.

    Returns
    -------
    dict

    Raises
    ------
    InvalidInputError
        When weights are not in memory, as those on the device ``meta``.
    """
    pooler = any(of_pooler(name) for name in _strings(sites))
    model = {
        "name_or_path": loaded.name or None,
        "class": type(loaded.model).__name__,
        "revision": loaded.revision,
        "dtype": weights_dtype(loaded.model),
        "pooler": pooler,
        "weights": weights_hash(loaded.model, pooler=pooler),
        "config": config_hash(getattr(loaded.model, "config", None)),
        "adapters": adapters_hash(loaded.model),
        "pool": loaded.pool,
        "normalize": loaded.normalize,
    }
    told = {
        "model": model,
        "tokenizer": None
        if loaded.tokenizer is None
        else {
            "name_or_path": loaded.tokenizer_name or None,
            "class": type(loaded.tokenizer).__name__,
            "hash": tokenizer_hash(loaded.tokenizer),
        },
        "image_processor": None
        if loaded.image_processor is None
        else {
            "class": type(loaded.image_processor).__name__,
            "hash": _processor_hash(loaded.image_processor),
        },
        "template": encoder.template,
        "truncation": encoder.truncation,
        "tokens": _policy(tokens),
        "seed": seed if isinstance(_policy(tokens), float) else None,
        "dtype": dtype,
        "pool": pool,
        "sites": dict(sites),
        "run": {**run, **_versions()},
    }
    ready: dict[str, Any] = json.loads(json.dumps(told))
    return ready


def difference(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first thing that counts in which two identities differ.

    Parameters
    ----------
    stored, ours : mapping
        Of a store, and of what is about to be added to it.

    Returns
    -------
    tuple of (str, Any, Any) or None
        A dotted key, as ``model.weights``, and both values; None when activations of both are the same.

    Examples
    --------
    >>> stored = {"model": {"name_or_path": "a", "weights": "blake2b:01"}, "dtype": "bfloat16"}
    >>> difference(stored, {"model": {"name_or_path": "b", "weights": "blake2b:01"}, "dtype": "bfloat16"})
    >>> difference(stored, {"model": {"name_or_path": "a", "weights": "blake2b:02"}, "dtype": "bfloat16"})
    ('model.weights', 'blake2b:01', 'blake2b:02')
    """
    return next(_differences(stored, ours, ""), None)


def _differences(
    stored: Mapping[str, Any], ours: Mapping[str, Any], under: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in (*stored, *(key for key in ours if key not in stored)):
        name = f"{under}{key}"
        a, b = stored.get(key), ours.get(key)
        if name in _UNCOMPARED or a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{name}.")
        else:
            yield name, a, b


def config_hash(config: Any) -> str | None:
    """A hash of a model's config, of what in it decides the values; None when there is no config.

    Only what differs from the class's own defaults counts, so that a later transformers, whose configs have
    more keys, finds the same.
    """
    if config is None:
        return None
    told = config.to_diff_dict() if hasattr(config, "to_diff_dict") else vars(config)
    return _hash_json(_steady(told))


def _steady(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _steady(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_steady(item) for item in value]
    return value


def adapters_hash(model: Any) -> str | None:
    """A hash of the configs of a model's adapters (PEFT) and of which are active; None when it has none."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        return None
    active = getattr(model, "active_adapters", None)
    if callable(active):  # transformers has a method where PEFT has a property.
        with contextlib.suppress(ValueError):
            active = active()
    disabled = any(getattr(module, "disable_adapters", None) is True for module in model.modules())
    told = {str(name): config.to_dict() for name, config in configs.items() if hasattr(config, "to_dict")}
    return _hash_json([told, active if isinstance(active, list | str) else None, disabled])


def tokenizer_hash(tokenizer: Any) -> str | None:
    """A hash of what decides the ids that a tokenizer gives; None for no tokenizer."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        told = json.loads(backend.to_str())
        # How it was last asked to cut and pad, which whoever calls it decides.
        told.pop("truncation", None)
        told.pop("padding", None)
        return _hash_json(told)
    with tempfile.TemporaryDirectory() as folder:
        names = tokenizer.save_vocabulary(folder) or ()
        files = {}
        for name in sorted(names):
            with open(name, "rb") as opened:
                files[os.path.basename(name)] = hashlib.blake2b(opened.read(), digest_size=16).hexdigest()
    options = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, bool | int)}
    added = {str(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    options.pop("model_max_length", None)
    return _hash_json([type(tokenizer).__name__, files, options, added, tokenizer.all_special_ids])


def _processor_hash(processor: Any) -> str:
    told = processor.to_dict() if hasattr(processor, "to_dict") else vars(processor)
    kept = {key: value for key, value in told.items() if not key.endswith(("_processor_type", "_class"))}
    return _hash_json(_steady(kept))


def _policy(tokens: Any) -> str | float:
    """Which tokens are stored, as JSON can hold it."""
    if isinstance(tokens, numbers.Real):
        return float(tokens)
    return tokens if isinstance(tokens, str) else "mask"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "actstore"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            module = sys.modules.get(name) or importlib.import_module(name)
            found[name] = str(getattr(module, "__version__", "unknown"))
    return found


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested lists and mappings, keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _hash_json(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashed(hashlib.blake2b(text.encode(), digest_size=16))
