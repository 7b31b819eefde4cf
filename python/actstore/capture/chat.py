"""Chats become texts by the tokenizer's template, or by the user's."""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import InvalidInputError
from .forms import Input

GENERATE = "generate"


class Chat:
    """A chat template.

    Parameters
    ----------
    tokenizer
        Whose template it is, unless `chat` is one.
    chat : True or str
        True: the tokenizer's own; ``"generate"``: with the beginning of the reply after it; else a
        template's name among the tokenizer's, or a template.

    Raises
    ------
    InvalidInputError
        When there is no such template.
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
                hint='a template is like "{% for m in messages %}{{ m.content }}{% endfor %}"',
            )
        try:
            self.template: str = tokenizer.get_chat_template(None if own else chat)
        except (AttributeError, ValueError) as error:
            raise InvalidInputError(
                f"chat: {type(tokenizer).__name__} has no chat template"
                + (f"; it has several: {', '.join(map(repr, named))}" if named else ""),
                hint="chat=template gives one" if not named else f"chat={next(iter(named))!r}",
            ) from error

    @property
    def hash(self) -> str:
        """Of the template's text."""
        return "blake2b:" + hashlib.blake2b(self.template.encode(), digest_size=16).hexdigest()

    def render(self, one: Input) -> str:
        """The chat of an input, or its text as a user's turn, with all control tokens written out.

        Raises
        ------
        InvalidInputError
            When the template cannot make a text of it.
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
        # A template may raise anything: it is a program.
        except Exception as error:
            raise InvalidInputError(f"chat: the template fails on example {one.id!r}: {error}") from error
        assert isinstance(text, str)
        return text
