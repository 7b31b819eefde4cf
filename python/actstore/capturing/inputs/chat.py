"""Rendering chats as text, by the tokenizer's chat template or the caller's."""

from __future__ import annotations

import hashlib
from typing import Any

from ...errors import InvalidInputError
from .forms import Input

GENERATE = "generate"


class Chat:
    """A chat template, ready to render.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers.
    chat : True or str
        True for the tokenizer's own template, ``"generate"`` for the same followed by the generation prompt,
        the name of one of the tokenizer's templates, or a template in Jinja.

    Raises
    ------
    InvalidInputError
        If there is no such template.
    """

    def __init__(self, tokenizer: Any, chat: bool | str) -> None:
        self._tokenizer = tokenizer
        self._generate = chat == GENERATE
        named = tokenizer.chat_template if isinstance(getattr(tokenizer, "chat_template", None), dict) else {}
        own = chat is True or self._generate
        if not own and not (isinstance(chat, str) and (chat in named or "{{" in chat or "{%" in chat)):
            names = f"; the tokenizer's are {', '.join(map(repr, named))}" if named else ""
            raise InvalidInputError(
                f"chat: {chat!r} is neither True, {GENERATE!r} nor a template{names}",
                hint='example of a template: "{% for m in messages %}{{ m.content }}{% endfor %}"',
            )
        try:
            self.template: str = tokenizer.get_chat_template(None if own else chat)
        except (AttributeError, ValueError) as error:
            raise InvalidInputError(
                f"chat: {type(tokenizer).__name__} has no chat template"
                + (f"; it has several: {', '.join(map(repr, named))}" if named else ""),
                hint="chat=template passes one" if not named else f"chat={next(iter(named))!r}",
            ) from error

    @property
    def hash(self) -> str:
        """A hash of the template's text."""
        return "blake2b:" + hashlib.blake2b(self.template.encode(), digest_size=16).hexdigest()

    def render(self, one: Input) -> str:
        """Render an input's messages, or its text as a single user turn, with all control tokens.

        Raises
        ------
        InvalidInputError
            If the template fails on the messages.
        """
        messages = one.messages or [{"role": "user", "content": one.text}]
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=self._generate,
            )
        except ImportError as error:
            raise InvalidInputError(f"chat: {error}", hint="pip install jinja2") from error
        # A template is a program and may raise anything.
        except Exception as error:
            raise InvalidInputError(f"chat: the template fails on example {one.id!r}: {error}") from error
        assert isinstance(text, str)
        return text
