"""Reading and encoding the inputs of a capture in groups, with a running hash of the inputs."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...base.arrays import as_numpy
from ..inputs.example import Example
from ..inputs.forms import Input, is_pil
from ..inputs.ready import ReadyBatch
from ..inputs.sample import Sample
from ..inputs.sizes import axis_of
from ..session import Session

WINDOW_BYTES = 1 << 30
"""Limit on the memory of a window's rows."""
_CHUNK = 256
"""Number of inputs per tokenizer call."""
START = bytes(16)
"""The running hash before the first input."""


@dataclass(frozen=True)
class InputGroup:
    """Examples that stay together in a batch: a single one, or those of a ready batch.

    Attributes
    ----------
    examples : list of Example
    hashes : list of bytes
        For each example, a hash of its input before encoding.
    n_tokens : int
        Cost in a window.
    n_bytes : int
        Memory of its rows.
    padded : dict or None
        For a ready batch, its padded length by axis.
    """

    examples: list[Example]
    hashes: list[bytes]
    n_tokens: int
    n_bytes: int
    padded: dict[str, int] | None = None


class GroupStream(Iterator[InputGroup]):
    """The groups of an input stream.

    Parameters
    ----------
    session : Session
    items : iterable of Input or ReadyBatch
    sample : Sample
        Examples that are encoded already.
    """

    def __init__(self, session: Session, items: Iterable[Input | ReadyBatch], sample: Sample) -> None:
        self._session, self._sample = session, sample
        self._items = iter(items)
        self._next: Iterator[InputGroup] = iter(())

    def skip(self, n: int, digest: bytes) -> tuple[int, bytes]:
        """Skip `n` examples.

        They are not encoded, unless masks select their rows: the hash then includes the rows.

        Parameters
        ----------
        n : int
        digest : bytes
            The running hash.

        Returns
        -------
        n_skipped : int
            Less than `n` at the end of the stream.
        digest : bytes
            The running hash after them.
        """
        n_skipped = 0
        while n_skipped < n:
            if self._session.encoder.filters_by_mask:
                group = next(self, None)
                hashes = group.hashes if group is not None else []
            else:
                item = next(self._items, None)
                hashes = _input_hashes(item) if item is not None else []
            if not hashes:
                break
            digest = chained(digest, hashes)
            n_skipped += len(hashes)
        return n_skipped, digest

    def __next__(self) -> InputGroup:
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

    def _encoded(self, items: Sequence[Any]) -> Iterator[InputGroup]:
        session = self._session
        if isinstance(items[0], ReadyBatch):
            examples = [session.finalize(example) for example in session.encoder.ready(items[0])]
            yield self._group(examples, _input_hashes(items[0]), _padded(items[0], session))
            return
        for item, example in zip(items, self._sample.encode(items), strict=True):
            yield self._group([session.finalize(example)], _input_hashes(item))

    def _group(
        self, examples: list[Example], hashes: list[bytes], padded: dict[str, int] | None = None
    ) -> InputGroup:
        session = self._session
        if session.encoder.filters_by_mask:
            hashes = [_with_rows(*pair) for pair in zip(hashes, examples, strict=True)]
        n = sum(sum(map(session.cost, example.pieces)) or 1 for example in examples)
        return InputGroup(examples, hashes, n, sum(map(session.bytes_of, examples)), padded)

    def window(self, n_tokens: int) -> list[InputGroup]:
        """The groups of the next window: at least `n_tokens` tokens, unless memory or the inputs run out."""
        out: list[InputGroup] = []
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


def chained(digest: bytes, hashes: Sequence[bytes]) -> bytes:
    """The running hash after more inputs, given their hashes."""
    for one in hashes:
        digest = hashlib.blake2b(digest + one, digest_size=16).digest()
    return digest


def _input_hashes(item: Input | ReadyBatch) -> list[bytes]:
    """For each example, a hash of everything that determines its rows."""
    if isinstance(item, Input):
        fields = [item.id, item.text, item.target, item.messages]
        return [_hash(json.dumps(fields, ensure_ascii=False), item.image)]
    keys = sorted(item.tokens)
    masks = sorted(item.masks)
    return [
        _hash(
            item.ids[i] if item.ids else str(item.position + i),
            *(part for key in keys for part in (key, item.tokens[key][i])),
            *(part for key in masks for part in (key, item.masks[key][i])),
            item.images[i] if item.images else None,
        )
        for i in range(item.n)
    ]


def _with_rows(input_hash: bytes, example: Example) -> bytes:
    return _hash(input_hash.hex(), *(columns["position"] for columns in example.tokens.values()))


def _hash(*parts: Any) -> bytes:
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
