"""Once more as a store was captured: the same model, asked in the same way, as its identity says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError
from .encode import Encoder
from .kept import NAMES
from .loading import Loaded, check_same, found_again, load
from .session import Session, encoder_for


def model_of(
    identity: Mapping[str, Any], model: Any = None, *, device: Any = None, trust_remote_code: bool = False
) -> Loaded:
    """The model of a store, found again by its name, or a given one that is the same.

    Raises
    ------
    NotFoundError
        When it is not given and not to be found.
    InvalidInputError
        When it is another one.
    """
    if model is None:
        return found_again(identity, device=device, trust_remote_code=trust_remote_code)
    if isinstance(model, Loaded):  # Whoever has one has looked at it.
        return model
    loaded = load(model, device=device, trust_remote_code=trust_remote_code)
    check_same(loaded, identity, loaded.name or type(loaded.model).__name__)
    return loaded


def encoder_of(
    loaded: Loaded, identity: Mapping[str, Any], *, tokens: Any = None, prompt: str | None = None
) -> Encoder:
    """Makes examples as those of the store were made.

    Parameters
    ----------
    loaded : Loaded
    identity : mapping
        `Store.identity`.
    tokens : optional
        Which rows; by default the store's policy if that goes for any text, else all.
    prompt : str, optional
        By default the store's.
    """
    template, truncation = told(identity, "template"), told(identity, "truncation")
    if tokens is None:
        policy = identity.get("tokens")
        tokens = policy if policy in NAMES else "all"
    # A template that was given is kept as it was given; of the tokenizer's own only the hash is.
    chat = template.get("chat")
    encoder = encoder_for(
        loaded,
        max_length=truncation.get("max_length"),
        stride=truncation.get("stride"),
        tokens=tokens,
        chat=chat,
        prompt=None if chat else (template.get("prompt") or "") if prompt is None else prompt,
    )
    stored, ours = template.get("chat_template"), encoder.template["chat_template"]
    if stored != ours:
        raise InvalidInputError(
            f"the tokenizer has another chat template by now: the store was captured with {stored}, "
            f"this is {ours}",
            hint="give the tokenizer that the store was captured with",
        )
    return encoder


def told(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A part of an identity.

    Raises
    ------
    InvalidInputError
        When the store was not written by a capture.
    """
    found = identity.get(key)
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"the store's identity has no {key!r}: it was not written by capture")
    return found


def check_modules(session: Session, identity: Mapping[str, Any]) -> None:
    """Raise InvalidInputError when a site's name leads to other tensors than those that were stored."""
    sites = told(identity, "sites")
    for site in session.sites:
        stored = sites.get(site.name)
        if not isinstance(stored, Mapping):
            continue
        modules = dict(zip(stored.get("layers") or (), stored.get("modules") or (), strict=False))
        for label, tap in zip(site.labels, site.taps, strict=True):
            if modules.get(label) != tap.module:
                raise InvalidInputError(
                    f"site {site.name!r}, layer {label} is of {tap.module!r} by now, the store has it of "
                    f"{modules.get(label)!r}",
                    hint="the version of transformers that the store was captured with: see its identity",
                )
