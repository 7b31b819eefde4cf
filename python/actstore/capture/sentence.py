"""What a SentenceTransformer says besides its transformer: how it pools, how long a text may be, its prompts.

Its folder is read as JSON, so that sentence-transformers need not be installed.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidInputError

_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_KINDS = {"mean": "mean", "cls": "first", "max": "max", "weightedmean": "weighted", "lasttoken": "last"}
"""Its names of ways to pool, and those of `Site.pool`."""
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

ReadJson = Callable[[str], Any]
"""A file of the model by name: what its JSON holds, None when it is not there."""


@dataclass(frozen=True)
class Sentence:
    """What surrounds the transformer.

    Attributes
    ----------
    folder : str
        Where the transformer lies in the model's folder; empty for the folder itself.
    max_length : int or None
        Tokens of a text, special ones included.
    prompts : dict
        By name; `prompt` is the one that is put before every text, if any.
    pool : str or None
        As `Site.pool` names it; None for a way it does not have, or several.
    normalize : bool
        Whether what is pooled is scaled to norm 1.
    lower_case : bool
        Whether texts are lower-cased, whatever the tokenizer does.
    """

    folder: str = ""
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None
    pool: str | None = None
    normalize: bool = False
    lower_case: bool = False


def sentence_of_files(read: ReadJson, name: str) -> Sentence | None:
    """What the files of a model say; None when it is no SentenceTransformer.

    Raises
    ------
    InvalidInputError
        When its first module is no transformer.
    """
    modules = read("modules.json")
    if not isinstance(modules, list) or not modules or not all(isinstance(m, Mapping) for m in modules):
        return None
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    folders = [str(module.get("path", "")).strip("/") for module in modules]
    if kinds[0] != "Transformer":
        raise InvalidInputError(f"{name}: the first module is a {kinds[0] or 'nameless one'}, no transformer")
    within = f"{folders[0]}/" if folders[0] else ""
    told = next((found for file in _CONFIGS if isinstance(found := read(within + file), dict)), {})
    pool = None
    if "Pooling" in kinds:
        pool = _kind(read(f"{folders[kinds.index('Pooling')]}/config.json"))
    around = read("config_sentence_transformers.json")
    prompts, prompt = _prompts(around if isinstance(around, dict) else {})
    return Sentence(
        folder=folders[0],
        max_length=_length(told.get("max_seq_length")),
        prompts=prompts,
        prompt=prompt,
        pool=pool,
        normalize="Normalize" in kinds,
        lower_case=told.get("do_lower_case") is True,
    )


def is_sentence_transformer(model: object) -> bool:
    """Whether it is one; imports nothing, for whoever has one has imported its class."""
    module = sys.modules.get("sentence_transformers")
    return module is not None and isinstance(model, getattr(module, "SentenceTransformer", ()))


def sentence_of_object(model: Any) -> tuple[Any, Any, Sentence]:
    """A SentenceTransformer's transformer, its tokenizer, and the rest.

    Raises
    ------
    InvalidInputError
        When its first module is no transformer.
    """
    modules = list(model)
    transformer = getattr(modules[0], "auto_model", None) if modules else None
    if transformer is None:
        kind = type(modules[0]).__name__ if modules else "nothing"
        raise InvalidInputError(f"the first module of the SentenceTransformer is {kind}, no transformer")
    pooling = next((module for module in modules if type(module).__name__ == "Pooling"), None)
    told = {"prompts": model.prompts, "default_prompt_name": model.default_prompt_name}
    prompts, prompt = _prompts(told)
    sentence = Sentence(
        max_length=_length(modules[0].max_seq_length),
        prompts=prompts,
        prompt=prompt,
        pool=None if pooling is None else _kind(vars(pooling)),
        normalize=any(type(module).__name__ == "Normalize" for module in modules),
    )
    return transformer, modules[0].tokenizer, sentence


def _kind(told: Any) -> str | None:
    if not isinstance(told, Mapping):
        return None
    modes = told.get("pooling_mode")
    if modes is None:  # before version 6, a flag for each
        modes = [mode for flag, mode in _LEGACY.items() if told.get(flag) is True]
    modes = [modes] if isinstance(modes, str) else list(modes)
    return _KINDS.get(modes[0]) if len(modes) == 1 else None


def _prompts(told: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    """All of them, and the one that goes before every text."""
    found = told.get("prompts")
    items = found.items() if isinstance(found, Mapping) else ()
    prompts = {str(name): text for name, text in items if isinstance(text, str) and text}
    return prompts, prompts.get(str(told.get("default_prompt_name")))


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 1_000_000_000 else None
