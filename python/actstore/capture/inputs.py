"""Texts, dicts, images or ready batches, from a list or any iterable, become a stream of inputs.

Several processes share one input: of a sequence each takes a run of it, from an iterable each takes
every ``world``-th item. Positions, and the ids that default to them, are those in the whole input.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InvalidInputError, ShapeError
from .forms import Input, absent, as_input, check_name, form_of, is_image, is_pil, is_ready, scalar
from .ready import ReadyBatch, batch_size, ready_batch
from .seen import Seen

__all__ = ["Input", "Inputs", "inputs"]

_MOST_AHEAD = 64
"""Items of an iterator that are waited for to have a sample."""
_MOST_BATCHES = 16
"""Ready batches of a sample."""
_MOST_PASSED = 100_000
"""Items of a file that are read to take a sample of them."""


def inputs(
    source: Any,
    *,
    columns: Mapping[str, Sequence[Any]] | Collection[str] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Inputs:
    """What this process is to capture.

    Parameters
    ----------
    source : iterable
        Of str, of (id, str), of dicts (``text``, ``messages`` or ``image``; ``id``, ``target``; every other
        key is a column), of images, or of ready batches: dicts of ``input_ids`` ``[B, T]`` or
        ``pixel_values`` ``[B, C, H, W]``. All of one form. A single ready batch may stand for a list of one.
    columns : mapping of str to sequence ``[n]``, or collection of str, optional
        Values for each input by column; or which of the dicts' keys to keep. None: all of them.
    rank, world : int
        This process and how many there are.

    Raises
    ------
    InvalidInputError
        For a source that is none of these; while iterating, naming the position of what cannot be used.
    ShapeError
        For columns of another length than the input.

    Examples
    --------
    >>> [(i.id, i.text, i.columns) for i in inputs([{"text": "a", "label": 1}, {"text": "b", "label": 0}])]
    [('0', 'a', {'label': 1}), ('1', 'b', {'label': 0})]
    >>> [i.id for i in inputs(["a", "b", "c", "d", "e"], rank=1, world=2)]
    ['2', '3', '4']
    """
    return Inputs(source, columns=columns, rank=rank, world=world)


class Inputs(Iterable["Input | ReadyBatch"]):
    """The inputs of one process, in order; see `inputs`.

    Iterating begins anew each time, except over an iterator, which can be gone through once.

    Attributes
    ----------
    ready
        Whether the items are ready batches (`ReadyBatch`) rather than `Input`.
    n
        How many examples this process has; None when only reading them would tell.
    """

    def __init__(
        self,
        source: Any,
        *,
        columns: Mapping[str, Sequence[Any]] | Collection[str] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise InvalidInputError(f"texts: rank {rank} of {world} processes")
        self._rank, self._world = rank, world
        self._source = _iterable(source)
        self._what = getattr(source, "title", None) or "texts"
        self._keep, self._given = _columns(columns)
        self._once: Iterator[Any] | None = None
        self._gone = False
        iterator = iter(self._source)
        first = list(itertools.islice(iterator, 1))
        if iterator is self._source:
            self._once = itertools.chain(first, iterator)
        self._first = first
        self._batch_keys: set[str] | None = None
        self._form = form_of(first[0]) if first else "a text"
        self.ready = bool(first) and is_ready(first[0])
        self._total, self.n = self._counts()
        self._check_columns(self._total)

    def __iter__(self) -> Iterator[Input | ReadyBatch]:
        if self._once is not None:
            if self._gone:
                raise InvalidInputError(
                    f"{self._what}: an iterator can be gone through once only", hint="give a list"
                )
            self._gone = True
        return self._ready() if self.ready else self._inputs()

    # ---- one by one ----

    def _inputs(self) -> Iterator[Input]:
        seen, kinds = Seen(), _Kinds()
        start, items = self._own()
        step = 1 if self._by_range else self._world
        named = " id " in f" {self._form} " or self._form == "(id, text)"
        for position, item in zip(itertools.count(start, step), items, strict=False):
            if form_of(item) != self._form:
                raise InvalidInputError(
                    f"input {position} is {form_of(item)}, the first is {self._form}",
                    hint="give all inputs in one form",
                )
            one = as_input(item, position, self._keep)
            if named and (first := seen.before(one.id, position)) is not None:
                raise InvalidInputError(
                    f"{self._what}: inputs {first} and {position} have the same id {one.id!r}"
                )
            if self._given:
                if clash := sorted(self._given.keys() & one.columns.keys()):
                    raise InvalidInputError(
                        f"column {clash[0]!r} is both in columns= and in input {position}"
                    )
                given = {name: self._value(name, position) for name in self._given}
                one = replace(one, columns={**one.columns, **given})
            yield replace(one, columns=kinds.settle(one.columns, position))

    def _batch(self, item: Any, number: int) -> Mapping[str, Any]:
        """The item, which must be a ready batch of the first one's kind."""
        if not is_ready(item):
            raise InvalidInputError(
                f"item {number} is {form_of(item)}, the first is a ready batch", hint="give only batches"
            )
        if ("input_ids" in item) != ("input_ids" in self._first[0]):
            raise InvalidInputError(
                f"ready batch {number} has {', '.join(map(str, item))}, the first has "
                f"{', '.join(map(str, self._first[0]))}",
                hint="capture texts and images apart",
            )
        batch: Mapping[str, Any] = item
        return batch

    # ---- some of them ----

    def sample(self, n: int) -> list[Input] | list[ReadyBatch]:
        """At most `n` of this process' items, evenly from all of them where that is quick, else the first.

        Nothing is lost by it: an iterator gives what was looked at once more.
        """
        picked = self._picked(n)
        if self.ready:
            return [ready_batch(self._batch(item, number), position) for number, position, item in picked]
        return [as_input(item, position, self._keep) for _, position, item in picked]

    def first(self) -> Input | ReadyBatch | None:
        """The first item of the whole input, be it another process'; None when there is none."""
        if not self._first:
            return None
        item = self._first[0]
        return ready_batch(item, 0) if self.ready else as_input(item, 0, self._keep)

    def _picked(self, n: int) -> list[tuple[int, int, Any]]:
        """Number, position of the first example, and item."""
        if self.ready or self._once is not None:
            n = min(n, _MOST_BATCHES if self.ready else _MOST_AHEAD)
        if self._by_range:
            first, stop = self._range()
            some = np.random.default_rng(0).permutation(stop - first)[:n] + first
            numbers = sorted(some.tolist())
            positions = numbers
            if self.ready:
                sizes = [batch_size(self._batch(item, number)) for number, item in enumerate(self._items())]
                starts = [0, *itertools.accumulate(sizes)]
                positions = [starts[number] for number in numbers]
            return [
                (number, position, self._source[number])
                for number, position in zip(numbers, positions, strict=True)
            ]
        step = 1
        if self._once is not None:
            items: Iterable[Any] = list(itertools.islice(self._once, n * self._world))
            self._once = itertools.chain(items, self._once)
        else:
            most = n * self._world
            if self._total is not None and not self.ready:
                step = max(1, min(self._total, _MOST_PASSED) // most)
                most *= step
            items = itertools.islice(iter(self._source), most)
        out, position = [], 0
        for number, item in enumerate(items):
            if number % self._world == self._rank and number // self._world % step == 0:
                out.append((number, position, item))
            position += batch_size(self._batch(item, number)) if self.ready else 1
        return out

    def _own(self) -> tuple[int, Iterator[Any]]:
        """The position of the first of this process' items, and these items."""
        if self._by_range:
            first, stop = self._range()
            return first, (self._source[i] for i in range(first, stop))
        return self._rank, itertools.islice(self._fresh(), self._rank, None, self._world)

    def _fresh(self) -> Iterator[Any]:
        """All items; at their end, the columns must have ended too."""
        n = 0
        for item in self._items():
            yield item
            n += 1
        if not self.ready:
            self._check_lengths(n)

    def _items(self) -> Iterator[Any]:
        if self._once is not None:
            return self._once
        source = self._source
        return (source[i] for i in range(len(source))) if self._by_range else iter(source)

    # ---- batches ----

    def _ready(self) -> Iterator[ReadyBatch]:
        position, seen, kinds = 0, Seen(), _Kinds()
        mine = range(*self._range()) if self._by_range else None
        for number, item in enumerate(self._fresh()):
            batch = ready_batch(self._batch(item, number), position)
            position += batch.n
            for i, name in enumerate(batch.ids or (), batch.position):
                if (first := seen.before(name, i)) is not None:
                    raise InvalidInputError(f"texts: examples {first} and {i} have the same id {name!r}")
            own = number in mine if mine is not None else number % self._world == self._rank
            if not own:
                continue
            keys = batch.tokens.keys() | batch.masks.keys()
            if keys != (there := self._batch_keys or keys):
                odd = sorted(keys ^ there)[0]
                raise InvalidInputError(
                    f"ready batches differ: {odd!r} is not in all of them, see that at example "
                    f"{batch.position}",
                    hint="give the same keys in each",
                )
            self._batch_keys = there
            if self._given:
                given = {
                    name: [self._value(name, i) for i in range(batch.position, position)]
                    for name in self._given
                }
                if clash := sorted(given.keys() & batch.columns.keys()):
                    raise InvalidInputError(f"column {clash[0]!r} is both in columns= and in a ready batch")
                batch = replace(batch, columns={**batch.columns, **given})
            yield kinds.settled(batch)
        self._check_lengths(position)

    # ---- how many ----

    @property
    def _by_range(self) -> bool:
        return (
            self._once is None and hasattr(self._source, "__len__") and hasattr(self._source, "__getitem__")
        )

    def _range(self) -> tuple[int, int]:
        n = len(self._source)
        return n * self._rank // self._world, n * (self._rank + 1) // self._world

    def _counts(self) -> tuple[int | None, int | None]:
        """Examples in the whole input, and those of this process."""
        if self.ready:
            if not self._by_range:
                return None, None
            sizes = [batch_size(self._batch(item, number)) for number, item in enumerate(self._items())]
            return sum(sizes), sum(sizes[slice(*self._range())])
        if self._by_range:
            first, stop = self._range()
            return len(self._source), stop - first
        # A file may know without being a sequence.
        known = (
            len(self._source)
            if hasattr(self._source, "__len__")
            else getattr(self._source, "n_examples", None)
        )
        if not isinstance(known, int):
            return None, None
        return known, len(range(self._rank, known, self._world))

    # ---- columns ----

    def _check_columns(self, total: int | None) -> None:
        if self.ready and self._keep is not None:
            raise InvalidInputError(
                f"columns: ready batches have no keys to keep, got {sorted(self._keep)}",
                hint="columns={name: values} gives values for each example",
            )
        if total is not None:
            self._check_lengths(total)

    def _check_lengths(self, n: int) -> None:
        for name, values in self._given.items():
            if len(values) != n:
                raise ShapeError(f"column {name!r}: expected {n} values, one per input, got {len(values)}")

    def _value(self, name: str, position: int) -> str | int | float | bool:
        values = self._given[name]
        if position >= len(values):
            raise ShapeError(f"column {name!r} has {len(values)} values and none for input {position}")
        return scalar(values[position], name, position)


class _Kinds:
    """A column's values are all of one type, and each input has the same columns."""

    def __init__(self) -> None:
        self._kinds: dict[str, type] | None = None

    def settle(self, columns: dict[str, Any], position: int) -> dict[str, Any]:
        """The columns of an input, ints among floats made floats."""
        if self._kinds is None:
            self._kinds = {name: type(value) for name, value in columns.items()}
            return columns
        for name in self._kinds.keys() ^ columns.keys():
            if name in self._kinds:
                raise absent(name, position, columns)
            raise InvalidInputError(
                f"input {position} has a column {name!r}, which those before it have not",
                hint="columns=[...] says which keys to keep",
            )
        out = dict(columns)
        for name, value in columns.items():
            kind = self._kinds[name]
            if kind is float and type(value) is int:
                out[name] = float(value)
            elif type(value) is not kind:
                raise InvalidInputError(
                    f"column {name!r} is {kind.__name__} so far, input {position} has {value!r}",
                    hint="make them floats" if {kind, type(value)} == {int, float} else None,
                )
        return out

    def settled(self, batch: ReadyBatch) -> ReadyBatch:
        """The batch with the columns of each example settled."""
        each = [
            self.settle({name: values[i] for name, values in batch.columns.items()}, batch.position + i)
            for i in range(batch.n)
        ]
        columns = {name: [one[name] for one in each] for name in (each[0] if each else ())}
        return replace(batch, columns=columns)


def _columns(
    columns: Mapping[str, Sequence[Any]] | Collection[str] | None,
) -> tuple[list[str] | None, dict[str, Sequence[Any]]]:
    """Which keys to keep (None: all), and values given for each input."""
    if columns is None:
        return None, {}
    if isinstance(columns, Mapping):
        for name, values in columns.items():
            check_name(name)
            if isinstance(values, str | bytes) or not (
                hasattr(values, "__len__") and hasattr(values, "__getitem__")
            ):
                raise InvalidInputError(
                    f"column {name!r}: expected a sequence of values, got a {type(values).__name__}"
                )
        return None, {name: _plain(values) for name, values in columns.items()}
    if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
        raise InvalidInputError(f"columns: expected a mapping or a list of names, got {columns!r}")
    return list(dict.fromkeys(columns)), {}


def _plain(values: Any) -> Any:
    """A table's column without its index: ``series[3]`` goes by label."""
    return values.tolist() if hasattr(values, "iloc") else values


def _iterable(source: Any) -> Any:
    """The source, as something that gives inputs when iterated.

    Raises
    ------
    InvalidInputError
        When iterating would give something else: characters, keys, column names.
    """
    if is_ready(source):
        return [source]
    kind = type(source).__name__
    hints = {
        str: "[text] for one text; the command line reads files",
        bytes: "[text.decode()]",
        set: "a set has no order: sorted(texts)",
        frozenset: "a set has no order: sorted(texts)",
        Mapping: "a list of dicts, one for each input",
    }
    for wrong, hint in hints.items():
        if isinstance(source, wrong):
            raise InvalidInputError(f"texts: got a single {kind}, not a list of inputs", hint=hint)
    if hasattr(source, "iloc") and getattr(source, "ndim", 1) == 2:
        raise InvalidInputError(f"texts: got a {kind}", hint='frame.to_dict("records") gives a list of dicts')
    if is_pil(source) or (is_image(source) and len(source.shape) not in (1, 4)):
        two = getattr(source, "ndim", 3) == 2
        raise InvalidInputError(
            f"texts: got {_shape(source)}, not a list of inputs",
            hint='{"input_ids": ...} for token ids' if two else "[image] for one image",
        )
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise InvalidInputError(f"texts: {kind} cannot be iterated over")
    return _plain(source)


def _shape(source: Any) -> str:
    return "a single image" if is_pil(source) else f"an array of shape {list(source.shape)}"
