"""What a search has found, with its text, a line each."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..hits import Hit
from ..parts import STRINGS
from ..site import Site
from ..store import Store
from .examples import stored_tokenizer
from .picture import shown

_AROUND = 12
"""Tokens shown on either side of one."""
_MOST_TOKENS = 256
"""Of an example whose text is made of its tokens."""


@dataclass(frozen=True)
class Found:
    """One hit, and the text of its example where that is known; of a row, what stands around its token."""

    rank: int
    score: float
    id: str
    example: int
    position: int | None
    layer: int | None
    text: str | None
    around: "Around | None" = None

    def json(self) -> dict[str, Any]:
        """Ready for JSON."""
        told = dataclasses.asdict(self)
        del told["around"]
        around = self.around
        if around is None:
            return {**told, "token": None}
        return {**told, "text": f"{around.before}«{around.token}»{around.after}", "token": around.token}


class Around(NamedTuple):
    """A token and the text on either side of it, spaces included."""

    before: str
    token: str
    after: str


def found_hits(
    store: Store, site: Site, hits: Sequence[Hit], tokens: bool, tokenizer: Any = None
) -> list[Found]:
    """Hits of one query with their text.

    Parameters
    ----------
    store : Store
    site : Site
        What was searched.
    hits : sequence of Hit
    tokens : bool
        Whether each is a row of a token.
    tokenizer : optional
        The model's, where it is at hand; else it is looked for when it is needed.
    """
    texts = _Texts(store, site.axis if tokens else None, tokenizer)
    return [
        Found(
            rank=rank,
            score=hit.score,
            id=hit.id,
            example=hit.example,
            position=hit.position if tokens else None,
            layer=None if hit.layer < 0 else hit.layer,
            text=None if tokens else texts.whole(hit.example),
            around=texts.around(hit) if tokens else None,
        )
        for rank, hit in enumerate(hits, 1)
    ]


class _Texts:
    """The texts of examples: the column, or what their tokens say."""

    def __init__(self, store: Store, axis: str | None, tokenizer: Any) -> None:
        self._store = store
        axes = [name for name, columns in store.axes.items() if "id" in columns]
        self._axis = axis if axis in axes else next(iter(axes), None)
        self._tokenizer = tokenizer
        self._looked = tokenizer is not None

    def whole(self, example: int) -> str | None:
        """Of an example."""
        if self._store.examples.dtypes.get("text") == STRINGS:
            return self._store.examples.text("text", example)
        if self._axis is None:
            return None
        ids = self._ids(example)[:_MOST_TOKENS]
        return self._decoded(ids, skip_special=True)

    def around(self, hit: Hit) -> Around | None:
        """Of a row: its token, and what stands around it."""
        if self._axis is None:
            return None
        ids, at = self._ids(hit.example), hit.position
        start, stop = max(0, at - _AROUND), at + 1 + _AROUND
        before, upto, every = (self._decoded(ids[start:end]) for end in (at, at + 1, stop))
        if before is None or upto is None or every is None:
            return None
        if every.startswith(upto) and upto.startswith(before):
            token, after = upto[len(before) :], every[len(upto) :]
        else:  # Tokens are written otherwise when others follow.
            token, after = (self._decoded(part) or "" for part in (ids[at : at + 1], ids[at + 1 : stop]))
            before, after = f"{before} ", f" {after}"
        gap = len(token) - len(token.lstrip())
        return Around(before + token[:gap], token.strip(), after)

    def _ids(self, example: int) -> list[int]:
        assert self._axis is not None
        columns = self._store.axes[self._axis]
        start, stop = (int(bound) for bound in columns.offset[example : example + 2])
        ids: list[int] = columns.read("id", start, stop).tolist()
        return ids

    def _decoded(self, ids: Sequence[int], skip_special: bool = False) -> str | None:
        if not self._looked:
            self._tokenizer, self._looked = stored_tokenizer(self._store.identity), True
        if self._tokenizer is None:
            return None
        text = self._tokenizer.decode(
            list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return str(text)


def hit_lines(found: Sequence[Found], width: int, unicode: bool) -> Iterator[str]:
    """A line for each hit, no wider than so many columns: rank, score, id and text."""
    if not found:
        return
    scores = [_score(hit.score) for hit in found]
    names = [shown(hit.id) for hit in found]
    room = max(map(len, scores))
    longest = min(max(map(len, names)), max(12, width * 2 // 5))
    for hit, score, name in zip(found, scores, names, strict=True):
        name = cut(name, longest, unicode)
        line = f"{hit.rank:>{len(str(len(found)))}}  {score:>{room}}  {name:<{longest}}"
        left = width - len(line) - 2
        if (hit.text or hit.around) and left > 8:
            line += "  " + _text(hit, left, unicode)
        yield line.rstrip()


def _score(score: float) -> str:
    return f"{score:.3f}" if abs(score) < 10 else f"{score:.1f}"


def _text(hit: Found, width: int, unicode: bool) -> str:
    if hit.around is None:
        # An id that the text begins with is there already.
        return cut(shown((hit.text or "").removeprefix(hit.id)), width, unicode)
    marks, more = ("«»", "…") if unicode else ("><", "...")
    before, after = hit.around.before, hit.around.after
    token = f"{marks[0]}{shown(hit.around.token)}{marks[1]}"
    after = (" " if after[:1].isspace() else "") + shown(after)
    left = shown(before) + (" " if before[-1:].isspace() else "")
    # The token stays in sight: what is before it has half of the room, or what is after it leaves.
    room = max((width - len(token)) // 2, width - len(token) - len(after))
    if len(left) > room:
        left = more + left[len(left) - max(0, room - len(more)) :]
    return cut(left + token + after, width, unicode)


def cut(text: str, width: int, unicode: bool) -> str:
    """Text of at most so many characters; where some are left out, the end says so."""
    if len(text) <= width:
        return text
    more = "…" if unicode else "..."
    return text[: max(0, width - len(more))].rstrip() + more
