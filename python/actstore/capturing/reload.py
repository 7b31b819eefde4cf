"""Reloading a store's model and encoder from its identity, and checking that they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError
from .inputs.encoder import Encoder
from .inputs.token_filter import NAMES
from .model.loading import Loaded, check_same_model, load, load_from_identity
from .session import Session, encoder_for


def reload_model(
    identity: Mapping[str, Any], model: Any = None, *, device: Any = None, trust_remote_code: bool = False
) -> Loaded:
    """The model of a store: loaded by its recorded name, or the caller's, if it is the same.

    Raises
    ------
    NotFoundError
        If the caller passes no model, and the recorded one is not found.
    InvalidInputError
        If the model or the tokenizer differs from the store's.
    """
    if model is None:
        return load_from_identity(identity, device=device, trust_remote_code=trust_remote_code)
    loaded = load(model, device=device, trust_remote_code=trust_remote_code)
    check_same_model(loaded, identity, loaded.name or type(loaded.model).__name__)
    return loaded


def reload_encoder(
    loaded: Loaded, identity: Mapping[str, Any], *, keep: Any = None, prompt: str | None = None
) -> Encoder:
    """An encoder with the settings of a store.

    Parameters
    ----------
    loaded : Loaded
    identity : mapping
        `Store.identity`.
    keep : optional
        The token filter. By default the store's if it applies to any text, else all tokens.
    prompt : str, optional
        By default the store's.

    Raises
    ------
    InvalidInputError
        If the tokenizer's chat template has changed.
    """
    template, truncation = identity_section(identity, "template"), identity_section(identity, "truncation")
    if keep is None:
        stored_filter = identity.get("keep")
        keep = stored_filter if stored_filter in NAMES else "all"
    # The identity records the caller's template itself, but of the tokenizer's own only the hash.
    chat = template.get("chat")
    encoder = encoder_for(
        loaded,
        max_length=truncation.get("max_length"),
        stride=truncation.get("stride"),
        keep=keep,
        chat=chat,
        prompt=None if chat else (template.get("prompt") or "") if prompt is None else prompt,
    )
    stored, own = template.get("chat_template"), encoder.template["chat_template"]
    if stored != own:
        raise InvalidInputError(
            f"the tokenizer's chat template has changed: the store was captured with {stored}, this is {own}",
            hint="pass the tokenizer that the store was captured with",
        )
    return encoder


def identity_section(identity: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section of an identity.

    Raises
    ------
    InvalidInputError
        If `capture` did not write the store.
    """
    section = identity.get(key)
    if not isinstance(section, Mapping):
        raise InvalidInputError(f"the store's identity has no {key!r}: capture did not write it")
    return section


def check_modules(session: Session, identity: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if a site's layers are outputs of other modules than in the store."""
    sites = identity_section(identity, "sites")
    for site in session.sites:
        stored = sites.get(site.name)
        if not isinstance(stored, Mapping):
            continue
        modules = dict(zip(stored.get("layers") or (), stored.get("modules") or (), strict=False))
        for label, point in zip(site.labels, site.hook_points, strict=True):
            if modules.get(label) != point.module:
                raise InvalidInputError(
                    f"site {site.name!r}, layer {label} is now at module {point.module!r}, the store has it "
                    f"from {modules.get(label)!r}",
                    hint="use the version of transformers that the store was captured with: see its identity",
                )
