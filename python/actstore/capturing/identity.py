"""The identity of a capture: hashes of the model, the tokenizer and all settings that determine the rows.

Two captures with equal identities have equal rows, whatever the device and the batches. Names, paths and
revisions are recorded so that the model can be loaded again, but only hashes are compared.
"""

import contextlib
import importlib
import json
import numbers
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .model.checkpoint import is_pooler
from .model.hashes import json_hash, tokenizer_hash, weights_hash
from .model.libraries import weights_dtype
from .model.loading import Loaded

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
"""Keys of a config that do not affect what the model computes, or that the weights determine."""
_UNCOMPARED = frozenset(
    {"run", "model.name_or_path", "model.revision", "model.pool", "model.normalize"}
    | {"tokenizer.name_or_path", "tokenizer.class", "image_processor.class"}
)


def identity(
    loaded: Loaded,
    encoder: Any,
    *,
    sites: Mapping[str, Any],
    dtype: Any,
    keep: Any,
    pool: str | None,
    seed: int,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """The identity for a store's attributes, as JSON.

    Parameters
    ----------
    loaded : Loaded
        The model and its tokenizer.
    encoder : Encoder
        Supplies ``template`` and ``truncation``.
    sites : mapping
        The definition of each site.
    dtype : str or mapping of site to str
        The stored dtype.
    keep : str, float, callable or masks
        The token filter, as in `capture`.
    pool : str or None
        Pooling during capture.
    seed : int
        Recorded if `keep` is a fraction.
    run : mapping
        Settings that do not affect the rows: device, batch size. Library versions are added.

    Returns
    -------
    dict

    Raises
    ------
    InvalidInputError
        If weights are on the device ``meta``, so not in memory.
    """
    pooler = any(is_pooler(name) for name in _strings(sites))
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
    content = {
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
        "keep": _keep_setting(keep),
        "seed": seed if isinstance(_keep_setting(keep), float) else None,
        "dtype": dtype,
        "pool": pool,
        "sites": dict(sites),
        "run": {**run, **_versions()},
    }
    as_json: dict[str, Any] = json.loads(json.dumps(content))
    return as_json


def difference(stored: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first relevant difference between two identities.

    Parameters
    ----------
    stored, ours : mapping
        The identity of a store, and that of a capture about to be added to it.

    Returns
    -------
    tuple of (str, Any, Any) or None
        A dotted key such as ``model.weights``, and both values; None if both have the same rows.

    Examples
    --------
    >>> stored = {"model": {"name_or_path": "a", "weights": "blake2b:01"}, "dtype": "bfloat16"}
    >>> difference(stored, {"model": {"name_or_path": "b", "weights": "blake2b:01"}, "dtype": "bfloat16"})
    >>> difference(stored, {"model": {"name_or_path": "a", "weights": "blake2b:02"}, "dtype": "bfloat16"})
    ('model.weights', 'blake2b:01', 'blake2b:02')
    """
    return next(_differences(stored, ours, ""), None)


def _differences(
    stored: Mapping[str, Any], ours: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in (*stored, *(key for key in ours if key not in stored)):
        name = f"{prefix}{key}"
        a, b = stored.get(key), ours.get(key)
        if name in _UNCOMPARED or a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{name}.")
        else:
            yield name, a, b


def config_hash(config: Any) -> str | None:
    """A hash of the keys of a config that affect the values; None without a config.

    Only differences from the class's defaults count, so that a later transformers with more keys gives the
    same hash.
    """
    if config is None:
        return None
    settings = config.to_diff_dict() if hasattr(config, "to_diff_dict") else vars(config)
    return json_hash(_stable(settings))


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _stable(item) for key, item in value.items() if key not in _VOLATILE}
    if isinstance(value, list | tuple):
        return [_stable(item) for item in value]
    return value


def adapters_hash(model: Any) -> str | None:
    """A hash of the configs of a model's PEFT adapters and of which are active; None without adapters."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        return None
    active = getattr(model, "active_adapters", None)
    if callable(active):  # A method in transformers, a property in PEFT.
        with contextlib.suppress(ValueError):
            active = active()
    disabled = any(getattr(module, "disable_adapters", None) is True for module in model.modules())
    by_name = {str(name): config.to_dict() for name, config in configs.items() if hasattr(config, "to_dict")}
    return json_hash([by_name, active if isinstance(active, list | str) else None, disabled])


def _processor_hash(processor: Any) -> str:
    settings = processor.to_dict() if hasattr(processor, "to_dict") else vars(processor)
    relevant = {
        key: value for key, value in settings.items() if not key.endswith(("_processor_type", "_class"))
    }
    return json_hash(_stable(relevant))


def _keep_setting(keep: Any) -> str | float:
    """The token filter as JSON; a function or masks become ``"mask"``."""
    if isinstance(keep, numbers.Real):
        return float(keep)
    return keep if isinstance(keep, str) else "mask"


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "transformers", "actstore"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            module = sys.modules.get(name) or importlib.import_module(name)
            versions[name] = str(getattr(module, "__version__", "unknown"))
    return versions


def _strings(value: Any) -> Iterator[str]:
    """All strings in nested lists and mappings, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
