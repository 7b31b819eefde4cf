"""The configuration of a SentenceTransformer: its pooling, maximum length and prompts.

The folder's JSON files are read directly, so that sentence-transformers need not be installed.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidInputError

_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_KINDS = {"mean": "mean", "cls": "first", "max": "max", "weightedmean": "weighted", "lasttoken": "last"}
"""Pooling modes of sentence-transformers, and the names that `Site.pool` uses."""
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

ReadJson = Callable[[str], Any]
"""Reads a JSON file of the model by name; None if the file does not exist."""


@dataclass(frozen=True)
class SentenceConfig:
    """The configuration of a SentenceTransformer around its transformer.

    Attributes
    ----------
    folder : str
        Subfolder of the transformer; empty for the model's own folder.
    max_length : int or None
        Maximum number of tokens of a text, including special tokens.
    prompts : dict
        Prompts by name.
    prompt : str or None
        The default prompt, prepended to every text.
    pool : str or None
        Pooling, as `Site.pool` names it. None for several modes, or one that `Site.pool` lacks.
    normalize : bool
        Whether pooled vectors are scaled to norm 1.
    lower_case : bool
        Whether texts are lowercased before they reach the tokenizer.
    """

    folder: str = ""
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None
    pool: str | None = None
    normalize: bool = False
    lower_case: bool = False


def sentence_config(read: ReadJson, name: str) -> SentenceConfig | None:
    """Read the configuration from a model's files. Returns None if it is not a SentenceTransformer.

    Raises
    ------
    InvalidInputError
        If its first module is not a transformer.
    """
    modules = read("modules.json")
    if not isinstance(modules, list) or not modules or not all(isinstance(m, Mapping) for m in modules):
        return None
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    folders = [str(module.get("path", "")).strip("/") for module in modules]
    if kinds[0] != "Transformer":
        raise InvalidInputError(
            f"{name}: the first module of the SentenceTransformer is of type {kinds[0]!r}, not a Transformer"
        )
    prefix = f"{folders[0]}/" if folders[0] else ""
    settings = next((content for file in _CONFIGS if isinstance(content := read(prefix + file), dict)), {})
    pool = None
    if "Pooling" in kinds:
        pool = _pooling(read(f"{folders[kinds.index('Pooling')]}/config.json"))
    model_settings = read("config_sentence_transformers.json")
    prompts, prompt = _prompts(model_settings if isinstance(model_settings, dict) else {})
    return SentenceConfig(
        folder=folders[0],
        max_length=_length(settings.get("max_seq_length")),
        prompts=prompts,
        prompt=prompt,
        pool=pool,
        normalize="Normalize" in kinds,
        lower_case=settings.get("do_lower_case") is True,
    )


def is_sentence_transformer(model: object) -> bool:
    """Whether an object is a SentenceTransformer, without importing it: an instance implies the import."""
    module = sys.modules.get("sentence_transformers")
    return module is not None and isinstance(model, getattr(module, "SentenceTransformer", ()))


def split_sentence_transformer(model: Any) -> tuple[Any, Any, SentenceConfig]:
    """Split a SentenceTransformer into its transformer, its tokenizer and its configuration.

    Raises
    ------
    InvalidInputError
        If its first module is not a transformer.
    """
    modules = list(model)
    transformer = getattr(modules[0], "auto_model", None) if modules else None
    if transformer is None:
        kind = type(modules[0]).__name__ if modules else "nothing"
        raise InvalidInputError(
            f"the first module of the SentenceTransformer is of type {kind!r}, not a Transformer"
        )
    pooling = next((module for module in modules if type(module).__name__ == "Pooling"), None)
    settings = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
    prompts, prompt = _prompts(settings)
    config = SentenceConfig(
        max_length=_length(modules[0].max_seq_length),
        prompts=prompts,
        prompt=prompt,
        pool=None if pooling is None else _pooling(vars(pooling)),
        normalize=any(type(module).__name__ == "Normalize" for module in modules),
    )
    return transformer, modules[0].tokenizer, config


def _pooling(settings: Any) -> str | None:
    if not isinstance(settings, Mapping):
        return None
    modes = settings.get("pooling_mode")
    if modes is None:  # Before version 6 there was a flag for each mode.
        modes = [mode for flag, mode in _LEGACY.items() if settings.get(flag) is True]
    modes = [modes] if isinstance(modes, str) else list(modes)
    return _KINDS.get(modes[0]) if len(modes) == 1 else None


def _prompts(settings: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """All prompts by name, and the default prompt."""
    by_name = settings.get("prompts")
    items = by_name.items() if isinstance(by_name, Mapping) else ()
    prompts = {str(name): text for name, text in items if isinstance(text, str) and text}
    return prompts, prompts.get(str(settings.get("default_prompt_name")))


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 1_000_000_000 else None
