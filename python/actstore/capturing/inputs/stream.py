"""The input stream: texts, dicts, images or ready batches from a list or any iterable, checked one by one.

Several processes share one input. Each takes a contiguous range of a sequence, or every ``world``-th item of
an iterable. Positions, and the ids that default to them, refer to the whole input.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...base.text import type_name
from ...errors import InvalidInputError, ShapeError
from .column_types import ColumnTypes
from .forms import Input, as_input, check_name, form_of, is_image, is_pil, is_ready, scalar
from .ready import ReadyBatch, batch_size, ready_batch
from .seen_ids import SeenIds

_SAMPLE_AHEAD = 64
"""Limit on the items of an iterator that are read ahead for a sample."""
_SAMPLE_BATCHES = 16
"""Limit on the ready batches in a sample."""
_SAMPLE_SCAN = 100_000
"""Limit on the items of a re-iterable source that are read to spread a sample over it."""


class InputStream(Iterable["Input | ReadyBatch"]):
    """The inputs of one process, in order.

    Each iteration starts over, except over an iterator, which can be consumed only once.

    Parameters
    ----------
    source : iterable
        Of str, of (id, str), of dicts (``text``, ``messages`` or ``image``; ``id``, ``target``; every other
        key is a column), of images, or of ready batches: dicts of ``input_ids`` ``[B, T]`` or
        ``pixel_values`` ``[B, C, H, W]``. All items have the same form. A single ready batch stands for a
        list of one.
    columns : mapping of str to sequence ``[n]``, or collection of str, optional
        Values for each input by column; or the dicts' keys to keep. None keeps all of them.
    rank, world : int
        The rank of this process and the number of processes.

    Attributes
    ----------
    ready
        Whether the items are ready batches (`ReadyBatch`) rather than `Input`.
    n
        The number of examples of this process; None if it is unknown before they are read.

    Raises
    ------
    InvalidInputError
        For a source of another kind; during iteration, with the position of an invalid input.
    ShapeError
        For columns of another length than the input.

    Examples
    --------
    >>> stream = InputStream([{"text": "a", "label": 1}, {"text": "b", "label": 0}])
    >>> [(one.id, one.text, one.columns) for one in stream]
    [('0', 'a', {'label': 1}), ('1', 'b', {'label': 0})]
    >>> [one.id for one in InputStream(["a", "b", "c", "d", "e"], rank=1, world=2)]
    ['2', '3', '4']
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
        self._column_names, self._column_values = _columns(columns)
        self._once: Iterator[Any] | None = None
        self._consumed = False
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
            if self._consumed:
                raise InvalidInputError(
                    f"{self._what}: the iterator is already consumed", hint="pass a list to read it again"
                )
            self._consumed = True
        return self._ready() if self.ready else self._inputs()

    # ---- one by one ----

    def _inputs(self) -> Iterator[Input]:
        seen_ids, types = SeenIds(), ColumnTypes()
        start, items = self._own_items()
        step = 1 if self._by_range else self._world
        has_ids = " id " in f" {self._form} " or self._form == "(id, text)"
        for position, item in zip(itertools.count(start, step), items, strict=False):
            if form_of(item) != self._form:
                raise InvalidInputError(
                    f"input {position} is {form_of(item)}, the first is {self._form}",
                    hint="all inputs must have the same form",
                )
            one = as_input(item, position, self._column_names)
            if has_ids and (first := seen_ids.add(one.id, position)) is not None:
                raise InvalidInputError(
                    f"{self._what}: inputs {first} and {position} have the same id {one.id!r}"
                )
            if self._column_values:
                if clash := sorted(self._column_values.keys() & one.columns.keys()):
                    raise InvalidInputError(
                        f"column {clash[0]!r} is both in columns= and in input {position}"
                    )
                values = {name: self._value(name, position) for name in self._column_values}
                one = replace(one, columns={**one.columns, **values})
            yield replace(one, columns=types.unify(one.columns, position))

    def _batch(self, item: Any, number: int) -> Mapping[str, Any]:
        """The item, checked to be a ready batch of the same kind as the first."""
        if not is_ready(item):
            raise InvalidInputError(
                f"item {number} is {form_of(item)}, the first is a ready batch",
                hint="all inputs must have the same form",
            )
        if ("input_ids" in item) != ("input_ids" in self._first[0]):
            raise InvalidInputError(
                f"ready batch {number} has {', '.join(map(str, item))}, the first has "
                f"{', '.join(map(str, self._first[0]))}",
                hint="capture texts and images separately",
            )
        batch: Mapping[str, Any] = item
        return batch

    # ---- sampling ----

    def sample(self, n: int) -> list[Input] | list[ReadyBatch]:
        """At most `n` of this process's items: spread over all of them if that is cheap, else the first ones.

        Sampling consumes nothing: a later iteration over an iterator yields the sampled items again.
        """
        drawn = self._draw(n)
        if self.ready:
            return [ready_batch(self._batch(item, number), position) for number, position, item in drawn]
        return [as_input(item, position, self._column_names) for _, position, item in drawn]

    def first(self) -> Input | ReadyBatch | None:
        """The first item of the whole input, even if another process captures it; None if it is empty."""
        if not self._first:
            return None
        item = self._first[0]
        return ready_batch(item, 0) if self.ready else as_input(item, 0, self._column_names)

    def _draw(self, n: int) -> list[tuple[int, int, Any]]:
        """For each drawn item: its number, the position of its first example, and the item."""
        if self.ready or self._once is not None:
            n = min(n, _SAMPLE_BATCHES if self.ready else _SAMPLE_AHEAD)
        if self._by_range:
            first, stop = self._range()
            drawn = np.random.default_rng(0).permutation(stop - first)[:n] + first
            numbers = sorted(drawn.tolist())
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
            n_read = n * self._world
            if self._total is not None and not self.ready:
                step = max(1, min(self._total, _SAMPLE_SCAN) // n_read)
                n_read *= step
            items = itertools.islice(iter(self._source), n_read)
        out, position = [], 0
        for number, item in enumerate(items):
            if number % self._world == self._rank and number // self._world % step == 0:
                out.append((number, position, item))
            position += batch_size(self._batch(item, number)) if self.ready else 1
        return out

    def _own_items(self) -> tuple[int, Iterator[Any]]:
        """The position of this process's first item, and its items."""
        if self._by_range:
            first, stop = self._range()
            return first, (self._source[i] for i in range(first, stop))
        return self._rank, itertools.islice(self._all_items(), self._rank, None, self._world)

    def _all_items(self) -> Iterator[Any]:
        """All items of the source. At the end, check that the columns have as many values."""
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
        position, seen_ids, types = 0, SeenIds(), ColumnTypes()
        own_range = range(*self._range()) if self._by_range else None
        for number, item in enumerate(self._all_items()):
            batch = ready_batch(self._batch(item, number), position)
            position += batch.n
            for i, name in enumerate(batch.ids or (), batch.position):
                if (first := seen_ids.add(name, i)) is not None:
                    raise InvalidInputError(f"texts: examples {first} and {i} have the same id {name!r}")
            own = number in own_range if own_range is not None else number % self._world == self._rank
            if not own:
                continue
            keys = batch.tokens.keys() | batch.masks.keys()
            if keys != (expected := self._batch_keys or keys):
                unshared = sorted(keys ^ expected)[0]
                raise InvalidInputError(
                    f"ready batches differ: not all of them have {unshared!r}, for instance the batch at "
                    f"example {batch.position}",
                    hint="all batches must have the same keys",
                )
            self._batch_keys = expected
            if self._column_values:
                values = {
                    name: [self._value(name, i) for i in range(batch.position, position)]
                    for name in self._column_values
                }
                if clash := sorted(values.keys() & batch.columns.keys()):
                    raise InvalidInputError(f"column {clash[0]!r} is both in columns= and in a ready batch")
                batch = replace(batch, columns={**batch.columns, **values})
            yield types.unify_batch(batch)
        self._check_lengths(position)

    # ---- counts ----

    @property
    def _by_range(self) -> bool:
        return (
            self._once is None and hasattr(self._source, "__len__") and hasattr(self._source, "__getitem__")
        )

    def _range(self) -> tuple[int, int]:
        n = len(self._source)
        return n * self._rank // self._world, n * (self._rank + 1) // self._world

    def _counts(self) -> tuple[int | None, int | None]:
        """The number of examples in the whole input, and of this process."""
        if self.ready:
            if not self._by_range:
                return None, None
            sizes = [batch_size(self._batch(item, number)) for number, item in enumerate(self._items())]
            return sum(sizes), sum(sizes[slice(*self._range())])
        if self._by_range:
            first, stop = self._range()
            return len(self._source), stop - first
        # A text file of the command line is not a sequence, but has a length.
        total = (
            len(self._source)
            if hasattr(self._source, "__len__")
            else getattr(self._source, "n_examples", None)
        )
        if not isinstance(total, int):
            return None, None
        return total, len(range(self._rank, total, self._world))

    # ---- columns ----

    def _check_columns(self, total: int | None) -> None:
        if self.ready and self._column_names is not None:
            raise InvalidInputError(
                f"columns: {sorted(self._column_names)} cannot select keys of ready batches",
                hint="columns={name: values} adds values for each example",
            )
        if total is not None:
            self._check_lengths(total)

    def _check_lengths(self, n: int) -> None:
        for name, values in self._column_values.items():
            if len(values) != n:
                raise ShapeError(f"column {name!r}: expected {n} values, one per input, got {len(values)}")

    def _value(self, name: str, position: int) -> str | int | float | bool:
        values = self._column_values[name]
        if position >= len(values):
            raise ShapeError(f"column {name!r} has {len(values)} values, but none for input {position}")
        return scalar(values[position], name, position)


def _columns(
    columns: Mapping[str, Sequence[Any]] | Collection[str] | None,
) -> tuple[list[str] | None, dict[str, Sequence[Any]]]:
    """The names of the keys to keep (None: all), and the caller's values for each input."""
    if columns is None:
        return None, {}
    if isinstance(columns, Mapping):
        for name, values in columns.items():
            check_name(name)
            if isinstance(values, str | bytes) or not (
                hasattr(values, "__len__") and hasattr(values, "__getitem__")
            ):
                raise InvalidInputError(
                    f"column {name!r}: expected a sequence of values, got {type(values).__name__}"
                )
        return None, {name: _plain(values) for name, values in columns.items()}
    if isinstance(columns, str | bytes) or not isinstance(columns, Iterable):
        raise InvalidInputError(f"columns: expected a mapping or a list of names, got {columns!r}")
    return list(dict.fromkeys(columns)), {}


def _plain(values: Any) -> Any:
    """A pandas Series as a list, since ``series[3]`` looks up a label rather than a position."""
    return values.tolist() if hasattr(values, "iloc") else values


def _iterable(source: Any) -> Any:
    """The source as an iterable of inputs.

    Raises
    ------
    InvalidInputError
        If iteration would yield something else: characters, keys, column names.
    """
    if is_ready(source):
        return [source]
    kind = type(source).__name__
    hints = {
        str: "[text] for one text; the command line reads files",
        bytes: "[text.decode()]",
        set: "a set has no order: sorted(texts)",
        frozenset: "a set has no order: sorted(texts)",
        Mapping: "pass a list of dicts, one for each input",
    }
    for wrong, hint in hints.items():
        if isinstance(source, wrong):
            raise InvalidInputError(f"texts: got a single {kind}, not a list of inputs", hint=hint)
    if hasattr(source, "iloc") and getattr(source, "ndim", 1) == 2:
        raise InvalidInputError(
            f"texts: got {type_name(source)}", hint='frame.to_dict("records") gives a list of dicts'
        )
    if is_pil(source) or (is_image(source) and len(source.shape) not in (1, 4)):
        two = getattr(source, "ndim", 3) == 2
        raise InvalidInputError(
            f"texts: got {_shape(source)}, not a list of inputs",
            hint='{"input_ids": ...} for token ids' if two else "[image] for one image",
        )
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise InvalidInputError(f"texts: {type_name(source)} is not iterable")
    return _plain(source)


def _shape(source: Any) -> str:
    return "a single image" if is_pil(source) else f"an array of shape {list(source.shape)}"
