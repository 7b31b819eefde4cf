"""The parts of an open store, each at one commit."""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import _native
from ..base.lazy import lazy
from ..errors import InvalidInputError, NotFoundError, StorageError
from .added import Coverage
from .columns import Columns
from .layout import EXAMPLES, SiteLayout
from .location import find_parts
from .parts import Part, agree, in_order, read_part
from .recipe import Derived


class Handle:
    """Records whether the store is open; shared by all its snapshots and their sites."""

    closed = False


@dataclass(frozen=True)
class DerivedCoverage(Coverage):
    """A derived site over all parts."""

    site: Derived
    """The description in the first part that has it."""


class Snapshot:
    """Parts that agree, each at one commit. It never changes.

    Parameters
    ----------
    source : str or list of str
        The path or paths that were opened, for messages and for opening them again.
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
        """All derived sites, including those that are short."""
        ready = {
            name: SiteLayout(coverage.site.axis, coverage.site.labels)
            for name, coverage in self.derived.items()
            if coverage.usable
        }
        first = parts[0].layout
        self.layout = replace(first, sites=first.sites | ready)
        self.axes = {axis: Columns(self.parts, axis) for axis in self.layout.axes}
        self.examples = Columns(self.parts, EXAMPLES)
        self._arrays: dict[str, _native.Array] = {}

    @property
    def name(self) -> str:
        """The store's name in messages."""
        return self.source if isinstance(self.source, str) else f"{self.source[0]} (+{len(self.source) - 1})"

    @property
    def version(self) -> list[tuple[Any, ...]]:
        """A value that changes with every commit."""
        return [(part.path, part.reader.record, part.rows, part.derived) for part in self.parts]

    def check_open(self) -> None:
        """Raise StorageError (kind ``closed``) if the store was closed."""
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

    def _coverage(self, name: str) -> DerivedCoverage:
        holders = [part for part in self.parts if name in part.derived]
        site = holders[0].derived[name]
        conflict = None
        for part in holders[1:]:
            differs = site.difference(part.derived[name])
            if differs is not None:
                what, ours, theirs = differs
                conflict = f"{what} is {ours!r} in {holders[0].path} and {theirs!r} in {part.path}"
        covers = sum(part.derived[name].rows for part in holders)
        n_rows = sum(part.rows.get(site.axis, 0) for part in self.parts)
        return DerivedCoverage(covers, n_rows, conflict, site)

    def recipe(self, name: str) -> dict[str, Any] | None:
        """The recipe of a derived site; None for a site whose rows were appended."""
        coverage = self.derived.get(name)
        return None if coverage is None else copy.deepcopy(coverage.site.recipe)

    def derived_info(self) -> dict[str, dict[str, Any]]:
        """All derived sites, including those that are short, as JSON can hold them."""
        return {
            name: {
                "recipe": self.recipe(name),
                "axis": coverage.site.axis,
                "layers": list(coverage.site.labels),
                "dim": coverage.site.dim,
                "covers": coverage.covers,
                "n_rows": coverage.n_rows,
                "complete": coverage.usable,
            }
            for name, coverage in self.derived.items()
        }

    def short_columns(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By axis, the added columns that are not available because rows are missing or parts disagree."""
        return {
            columns.axis: {
                name: {
                    "dtype": coverage.dtype,
                    "covers": coverage.covers,
                    "n_rows": coverage.n_rows,
                    "conflict": coverage.conflict,
                }
                for name, coverage in columns.short.items()
            }
            for columns in (*self.axes.values(), self.examples)
            if columns.short
        }

    def unknown(self) -> dict[str, str]:
        """The sites and derived arrays that only a later actstore can read, and why."""
        return {name: str(error) for part in self.parts for name, error in part.unknown.items()}

    def explain_absence(self, name: str) -> None:
        """Raise an error that says why an array cannot be used; do nothing if there is no such array."""
        for part in self.parts:
            if name in part.unknown:
                raise part.unknown[name]
        coverage = self.derived.get(name)
        if coverage is not None and coverage.conflict is not None:
            raise InvalidInputError(f"parts differ in the derived site {name!r}: {coverage.conflict}")
        if coverage is not None and not coverage.usable:
            foreign = any(part.foreign for part in self.parts)
            unit = "examples" if coverage.site.axis == EXAMPLES else f"rows of axis {coverage.site.axis!r}"
            raise NotFoundError(
                f"derived site {name!r} of {self.name} covers {coverage.covers} of {coverage.n_rows} {unit}: "
                "the others were appended later, or its computation was interrupted",
                hint="import the group into a store, and compute it there"
                if foreign
                else "actstore.update computes the rest, on the command line 'actstore pool STORE --update'",
            )
        for part in self.parts:  # The native reader may have refused to read it.
            with contextlib.suppress(NotFoundError):
                part.reader.array(name)

    @lazy
    def _positions(self) -> dict[str, int]:
        """Example numbers by id; -1 for an id that several examples have."""
        positions: dict[str, int] = {}
        for i, name in enumerate(self.examples["id"]):
            if positions.setdefault(name, i) != i:
                positions[name] = -1
        return positions

    def example_number(self, name: str) -> int:
        """The number of the example with this id.

        Raises
        ------
        NotFoundError
            When no example has it.
        InvalidInputError
            When several do, which can happen with parts that were not written together.
        """
        number = self._positions.get(name)
        if number is None:
            raise NotFoundError(f"{self.name} has no example {name!r}", hint=self._id_hint(name))
        if number < 0:
            raise InvalidInputError(
                f"{self.name} has several examples {name!r}", hint="give its position instead"
            )
        return number

    def _id_hint(self, name: str) -> str | None:
        if not self._positions:
            return "it has no examples"
        first = next(iter(self._positions))
        return f"its ids look like {first!r}; a position is an int" if name.isdecimal() else None


def load(source: str | list[str], verify: str, handle: Handle, before: Snapshot | None = None) -> Snapshot:
    """Open the newest commit of every part.

    Parameters
    ----------
    before : Snapshot, optional
        An earlier snapshot of the same store, whose readers are refreshed.

    Raises
    ------
    NotFoundError, InvalidInputError, FormatError
        See `find_parts`, `read_part` and `agree`.
    """
    readers = {part.path: part.reader for part in before.parts} if before else {}
    paths = find_parts(source)
    parts = [
        read_part(readers[path].refresh() if path in readers else _native.Reader(path, verify))
        for path in paths
    ]
    if isinstance(source, str):  # The caller chose the order of a list.
        parts = in_order(parts)
    return Snapshot(source, parts, verify, handle)
