"""The hits of a search with their texts, one line each."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...disk.parts import STRINGS
from ...ops.hits import Hit
from ...site import Site
from ...store import Store
from .formatting import one_line, shorten
from .texts import stored_tokenizer

_CONTEXT_TOKENS = 12
"""Tokens to show on either side of a hit's token."""
_MAX_TOKENS = 256
"""Tokens to decode where the text of an example is not stored."""


class TokenInContext(NamedTuple):
    """A token and the text on either side of it, spaces included."""

    before: str
    token: str
    after: str


@dataclass(frozen=True)
class HitWithText:
    """One hit with the text of its example, or, if rows were ranked, its token in context."""

    rank: int
    score: float
    id: str
    example: int
    position: int | None
    layer: int | None
    text: str | None
    context: TokenInContext | None = None

    def json(self) -> dict[str, Any]:
        """This hit as a JSON object."""
        values = dataclasses.asdict(self)
        del values["context"]
        context = self.context
        if context is None:
            return {**values, "token": None}
        text = f"{context.before}«{context.token}»{context.after}"
        return {**values, "text": text, "token": context.token}


def with_texts(
    store: Store, site: Site, hits: Sequence[Hit], tokens: bool, tokenizer: Any = None
) -> list[HitWithText]:
    """The hits of one query with their texts.

    Parameters
    ----------
    store : Store
    site : Site
        The site that was searched.
    hits : sequence of Hit
    tokens : bool
        Whether the hits are rows, one per token; otherwise they are examples.
    tokenizer : optional
        The model's tokenizer, if it is loaded; otherwise it is loaded when needed.
    """
    texts = _TextLookup(store, site.axis if tokens else None, tokenizer)
    return [
        HitWithText(
            rank=rank,
            score=hit.score,
            id=hit.id,
            example=hit.example,
            position=hit.position if tokens else None,
            layer=None if hit.layer < 0 else hit.layer,
            text=None if tokens else texts.text(hit.example),
            context=texts.context(hit) if tokens else None,
        )
        for rank, hit in enumerate(hits, 1)
    ]


class _TextLookup:
    """The texts of examples: the stored column, else their decoded tokens."""

    def __init__(self, store: Store, axis: str | None, tokenizer: Any) -> None:
        self._store = store
        axes = [name for name, columns in store.axes.items() if "id" in columns]
        self._axis = axis if axis in axes else next(iter(axes), None)
        self._tokenizer = tokenizer
        self._tokenizer_loaded = tokenizer is not None

    def text(self, example: int) -> str | None:
        """The text of an example."""
        if self._store.examples.dtypes.get("text") == STRINGS:
            return self._store.examples.text("text", example)
        if self._axis is None:
            return None
        return self._decode(self._token_ids(example)[:_MAX_TOKENS], skip_special=True)

    def context(self, hit: Hit) -> TokenInContext | None:
        """The token of a row and the text around it."""
        if self._axis is None:
            return None
        ids, at = self._token_ids(hit.example), hit.position
        start, stop = max(0, at - _CONTEXT_TOKENS), at + 1 + _CONTEXT_TOKENS
        before, through_token, whole = (self._decode(ids[start:end]) for end in (at, at + 1, stop))
        if before is None or through_token is None or whole is None:
            return None
        if whole.startswith(through_token) and through_token.startswith(before):
            token, after = through_token[len(before) :], whole[len(through_token) :]
        else:  # The tokenizer writes tokens differently when others follow: decode each piece alone.
            token, after = (self._decode(piece) or "" for piece in (ids[at : at + 1], ids[at + 1 : stop]))
            before, after = f"{before} ", f" {after}"
        n_spaces = len(token) - len(token.lstrip())
        return TokenInContext(before + token[:n_spaces], token.strip(), after)

    def _token_ids(self, example: int) -> list[int]:
        assert self._axis is not None
        columns = self._store.axes[self._axis]
        start, stop = (int(bound) for bound in columns.offsets[example : example + 2])
        ids: list[int] = columns.read("id", start, stop).tolist()
        return ids

    def _decode(self, ids: Sequence[int], skip_special: bool = False) -> str | None:
        if not self._tokenizer_loaded:
            self._tokenizer, self._tokenizer_loaded = stored_tokenizer(self._store.identity), True
        if self._tokenizer is None:
            return None
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return str(text)


def hit_lines(hits: Sequence[HitWithText], width: int, unicode: bool) -> Iterator[str]:
    """One line per hit, at most `width` characters wide: rank, score, id and text."""
    if not hits:
        return
    scores = [_score(hit.score) for hit in hits]
    names = [one_line(hit.id) for hit in hits]
    score_width = max(map(len, scores))
    name_width = min(max(map(len, names)), max(12, width * 2 // 5))
    for hit, score, name in zip(hits, scores, names, strict=True):
        name = shorten(name, name_width, unicode)
        line = f"{hit.rank:>{len(str(len(hits)))}}  {score:>{score_width}}  {name:<{name_width}}"
        left = width - len(line) - 2
        if (hit.text or hit.context) and left > 8:
            line += "  " + _text(hit, left, unicode)
        yield line.rstrip()


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 10 else f"{score:.1f}"


def _text(hit: HitWithText, width: int, unicode: bool) -> str:
    if hit.context is None:
        # The id is on the line already: do not repeat it if the text begins with it.
        return shorten(one_line((hit.text or "").removeprefix(hit.id)), width, unicode)
    marks, ellipsis = ("«»", "…") if unicode else ("><", "...")
    before, after = hit.context.before, hit.context.after
    token = f"{marks[0]}{one_line(hit.context.token)}{marks[1]}"
    after = (" " if after[:1].isspace() else "") + one_line(after)
    before = one_line(before) + (" " if before[-1:].isspace() else "")
    # Keep the token visible: the text before it gets half of the width, or more if what follows is short.
    room = max((width - len(token)) // 2, width - len(token) - len(after))
    if len(before) > room:
        before = ellipsis + before[len(before) - max(0, room - len(ellipsis)) :]
    return shorten(before + token + after, width, unicode)
