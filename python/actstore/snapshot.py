"""What an open store sees: its parts at one commit each."""

import contextlib
from collections.abc import Sequence
from functools import cached_property

from . import _native
from .columns import Columns
from .errors import InvalidInputError, NotFoundError, StorageError
from .layout import EXAMPLES
from .parts import Part, agree, find_parts, in_order, read_part


class Handle:
    """Whether the store is still open: shared by all its snapshots and their sites."""

    closed = False


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
        self.layout = parts[0].layout
        self.handle = handle
        self.axes = {axis: Columns(self.parts, axis) for axis in self.layout.axes}
        self.examples = Columns(self.parts, EXAMPLES)
        self._arrays: dict[str, _native.Array] = {}

    @property
    def name(self) -> str:
        """The store in messages."""
        return self.source if isinstance(self.source, str) else f"{self.source[0]} (+{len(self.source) - 1})"

    @property
    def version(self) -> list[tuple[str, int | None, dict[str, int]]]:
        """Differs when there is something new."""
        return [(part.path, part.reader.record, part.rows) for part in self.parts]

    def check_open(self) -> None:
        """Raise StorageError (kind ``closed``) when the store was closed."""
        if self.handle.closed:
            raise StorageError(f"{self.name} is closed", kind="closed")

    def array(self, name: str) -> _native.Array:
        """The rows of a site in all parts."""
        self.check_open()
        if name not in self._arrays:
            self._arrays[name] = _native.concat([part.reader.array(name) for part in self.parts])
        return self._arrays[name]

    def explain_absence(self, name: str) -> None:
        """Raise FormatError when `name` is an array that cannot be read, rather than one not there."""
        for part in self.parts:
            if part.foreign:
                with contextlib.suppress(NotFoundError):
                    part.reader.array(name)

    @cached_property
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
