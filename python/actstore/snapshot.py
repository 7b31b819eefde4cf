"""What an open store sees: its parts at one commit each."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import _native
from .columns import Columns
from .errors import InvalidInputError, NotFoundError, StorageError
from .layout import EXAMPLES, Derived, SiteLayout
from .lazy import lazy
from .parts import Part, agree, find_parts, in_order, read_part


class Handle:
    """Whether the store is still open: shared by all its snapshots and their sites."""

    closed = False


@dataclass(frozen=True)
class Coverage:
    """A derived site over all parts: how it is made, and how far it has got."""

    site: Derived
    """As the first part that has it says."""
    covers: int
    n_examples: int
    conflict: str | None
    """In what the parts differ, if they do."""

    @property
    def usable(self) -> bool:
        """Whether it has a row for each example of all parts."""
        return self.conflict is None and self.covers == self.n_examples


class Snapshot:
    """Parts, agreeing, at one commit each; never changes.

    Parameters
    ----------
    source : str or list of str
        What was opened, for messages and for opening it again.
    parts : sequence of Part
        In the order of their rows.
    """

    def __init__(self, source: str | list[str], parts: Sequence[Part], verify: str, handle: Handle) -> None:
        agree(parts)
        self.source = source
        self.verify = verify
        self.parts = tuple(parts)
        self.handle = handle
        names = dict.fromkeys(name for part in parts for name in part.derived)
        self.derived = {name: self._coverage(name) for name in names}
        """Derived sites, those that cannot be used among them."""
        ready = {
            name: SiteLayout(EXAMPLES, found.site.labels)
            for name, found in self.derived.items()
            if found.usable
        }
        first = parts[0].layout
        self.layout = replace(first, sites=first.sites | ready)
        self.axes = {axis: Columns(self.parts, axis) for axis in self.layout.axes}
        self.examples = Columns(self.parts, EXAMPLES)
        self._arrays: dict[str, _native.Array] = {}

    @property
    def name(self) -> str:
        """The store in messages."""
        return self.source if isinstance(self.source, str) else f"{self.source[0]} (+{len(self.source) - 1})"

    @property
    def version(self) -> list[tuple[Any, ...]]:
        """Differs when there is something new."""
        return [(part.path, part.reader.record, part.rows, part.derived) for part in self.parts]

    def check_open(self) -> None:
        """Raise StorageError (kind ``closed``) when the store was closed."""
        if self.handle.closed:
            raise StorageError(f"{self.name} is closed", kind="closed")

    def array(self, name: str) -> _native.Array:
        """The rows of a site in all parts."""
        self.check_open()
        if name not in self._arrays:
            # A part without examples may lack a derived site.
            arrays = [
                part.reader.array(name)
                for part in self.parts
                if name in part.layout.sites or name in part.derived
            ]
            self._arrays[name] = _native.concat(arrays)
        return self._arrays[name]

    def _coverage(self, name: str) -> Coverage:
        there = [part for part in self.parts if name in part.derived]
        site = there[0].derived[name]
        conflict = None
        for part in there[1:]:
            differs = site.difference(part.derived[name])
            if differs is not None:
                what, ours, theirs = differs
                conflict = f"{what} is {ours!r} in {there[0].path} and {theirs!r} in {part.path}"
        covers = sum(part.derived[name].rows for part in there)
        return Coverage(site, covers, sum(part.n_examples for part in self.parts), conflict)

    def recipe(self, name: str) -> dict[str, Any] | None:
        """How a derived site is made; None for a site that was written."""
        found = self.derived.get(name)
        return None if found is None else copy.deepcopy(found.site.recipe)

    def derived_info(self) -> dict[str, dict[str, Any]]:
        """All derived sites, ready for JSON: those that are short of examples too."""
        return {
            name: {
                "recipe": self.recipe(name),
                "layers": list(found.site.labels),
                "dim": found.site.dim,
                "covers": found.covers,
                "n_examples": found.n_examples,
                "complete": found.usable,
            }
            for name, found in self.derived.items()
        }

    def explain_absence(self, name: str) -> None:
        """Raise what is to be said of an array that is there and cannot be used, if there is one."""
        for part in self.parts:
            if name in part.unknown:
                raise part.unknown[name]
        found = self.derived.get(name)
        if found is not None and found.conflict is not None:
            raise InvalidInputError(f"parts differ in the derived site {name!r}: {found.conflict}")
        if found is not None and not found.usable:
            foreign = any(part.foreign for part in self.parts)
            raise NotFoundError(
                f"derived site {name!r} of {self.name} covers {found.covers} of {found.n_examples} examples: "
                "the others came later, or its making was interrupted",
                hint="import the group into a store, and make it there"
                if foreign
                else "actstore.update computes the rest, on the command line 'actstore pool STORE --update'",
            )
        for part in self.parts:
            if part.foreign:
                with contextlib.suppress(NotFoundError):
                    part.reader.array(name)

    @lazy
    def _positions(self) -> dict[str, int]:
        """Ids to example numbers, -1 for an id that several examples have."""
        positions: dict[str, int] = {}
        for i, name in enumerate(self.examples["id"]):
            if positions.setdefault(name, i) != i:
                positions[name] = -1
        return positions

    def example_number(self, name: str) -> int:
        """The number of the example of this id.

        Raises
        ------
        NotFoundError
            When there is none.
        InvalidInputError
            When there are several, as parts that were not written together can have.
        """
        number = self._positions.get(name)
        if number is None:
            raise NotFoundError(f"{self.name} has no example {name!r}", hint=self._near(name))
        if number < 0:
            raise InvalidInputError(
                f"{self.name} has several examples {name!r}", hint="name it by its position"
            )
        return number

    def _near(self, name: str) -> str | None:
        if not self._positions:
            return "it has no examples"
        first = next(iter(self._positions))
        return f"its ids look like {first!r}; a position is an int" if name.isdecimal() else None


def load(source: str | list[str], verify: str, handle: Handle, before: Snapshot | None = None) -> Snapshot:
    """The newest commit of every part there is.

    Raises
    ------
    NotFoundError, InvalidInputError, FormatError
        As `find_parts`, `read_part` and `agree`.
    """
    readers = {part.path: part.reader for part in before.parts} if before else {}
    paths = find_parts(source)
    parts = [
        read_part(readers[path].refresh() if path in readers else _native.Reader(path, verify))
        for path in paths
    ]
    if isinstance(source, str):  # A list is in the caller's order.
        parts = in_order(parts)
    return Snapshot(source, parts, verify, handle)
