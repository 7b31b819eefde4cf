"""The inputs of a capture, encoded in runs, with a running hash of what they were."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import as_numpy
from .example import Example
from .forms import Input, is_pil
from .ready import ReadyBatch
from .session import Session
from .sizes import axis_of

WINDOW_BYTES = 1 << 30
"""That the rows of a window may take."""
_CHUNK = 256
"""Inputs that the tokenizer is given at once."""
START = bytes(16)
"""The hash of no inputs."""


@dataclass(frozen=True)
class Group:
    """Examples that stay together: one, or those of a ready batch."""

    examples: list[Example]
    prints: list[bytes]
    """Of what each was, before it was encoded."""
    n_tokens: int
    """What it counts for in a window."""
    n_bytes: int
    """What its rows take in memory."""
    padded: dict[str, int] | None = None
    """Of a ready batch: by axis, the length at which it was made."""


class Groups(Iterator[Group]):
    """Groups of a stream of inputs, one after the other."""

    def __init__(self, session: Session, items: Iterable[Input | ReadyBatch]) -> None:
        self._session = session
        self._items = iter(items)
        self._next: Iterator[Group] = iter(())
        self._ended = False

    def skip(self, n: int, digest: bytes) -> tuple[int, bytes]:
        """Pass over so many examples: how many there were, and the hash after them.

        They are not encoded, unless it is only their rows that say which were chosen.
        """
        passed = 0
        while passed < n:
            if self._session.encoder.rows_by_choice:
                group = next(self, None)
                prints = group.prints if group is not None else []
            else:
                item = next(self._items, None)
                prints = _prints(item) if item is not None else []
            if not prints:
                break
            digest = chained(digest, prints)
            passed += len(prints)
        return passed, digest

    def __next__(self) -> Group:
        group = next(self._next, None)
        while group is None:
            items = list(itertools.islice(self._items, 1))
            if not items:
                raise StopIteration
            if not isinstance(items[0], ReadyBatch):
                items += itertools.islice(self._items, _CHUNK - 1)
            self._next = self._encoded(items)
            group = next(self._next, None)
        return group

    def _encoded(self, items: Sequence[Any]) -> Iterator[Group]:
        session = self._session
        if isinstance(items[0], ReadyBatch):
            examples = [session.settle(example) for example in session.encoder.ready(items[0])]
            yield self._group(examples, _prints(items[0]), _padded(items[0], session))
            return
        for item, example in zip(items, session.encoder.encode(items), strict=True):
            yield self._group([session.settle(example)], _prints(item))

    def _group(
        self, examples: list[Example], prints: list[bytes], padded: dict[str, int] | None = None
    ) -> Group:
        session = self._session
        if session.encoder.rows_by_choice:
            prints = [_with_rows(*pair) for pair in zip(prints, examples, strict=True)]
        n = sum(sum(map(session.cost, example.pieces)) or 1 for example in examples)
        return Group(examples, prints, n, sum(map(session.bytes_of, examples)), padded)

    def window(self, n_tokens: int) -> list[Group]:
        """Groups of so many tokens in all, or as many as memory has room for, or what is left."""
        out: list[Group] = []
        total = n_bytes = 0
        while total < n_tokens:
            group = next(self, None)
            if group is None:
                break
            if out and n_bytes + group.n_bytes > WINDOW_BYTES:
                self._next = itertools.chain([group], self._next)
                break
            out.append(group)
            total, n_bytes = total + group.n_tokens, n_bytes + group.n_bytes
        return out


def _padded(batch: ReadyBatch, session: Session) -> dict[str, int]:
    return {
        axis_of(key, session.encoder_decoder): len(rows[0])
        for key, rows in batch.tokens.items()
        if key.endswith("input_ids") and rows
    }


def chained(digest: bytes, prints: Sequence[bytes]) -> bytes:
    """The running hash after more inputs."""
    for one in prints:
        digest = hashlib.blake2b(digest + one, digest_size=16).digest()
    return digest


def _prints(item: Input | ReadyBatch) -> list[bytes]:
    """A hash of each example, of all that decides its rows."""
    if isinstance(item, Input):
        told = [item.id, item.text, item.target, item.messages]
        return [_hashed(json.dumps(told, ensure_ascii=False), item.image)]
    keys = sorted(item.tokens)
    masks = sorted(item.masks)
    return [
        _hashed(
            item.ids[i] if item.ids else str(item.position + i),
            *(part for key in keys for part in (key, item.tokens[key][i])),
            *(part for key in masks for part in (key, item.masks[key][i])),
            item.images[i] if item.images else None,
        )
        for i in range(item.n)
    ]


def _with_rows(print_: bytes, example: Example) -> bytes:
    return _hashed(print_.hex(), *(columns["position"] for columns in example.tokens.values()))


def _hashed(*parts: Any) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if part is None:
            continue
        if isinstance(part, str):
            raw = part.encode(errors="surrogatepass")
        elif isinstance(part, os.PathLike):
            raw = os.fsencode(part)
        else:
            array = np.asarray(part) if is_pil(part) else as_numpy(part, "an input")
            raw = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        state.update(len(raw).to_bytes(8, "little") + raw)
    return state.digest()
