"""What can go wrong, by class for ``except`` and by ``kind`` for programs.

Each class is also the builtin one would look for, so that ``except LookupError`` works
without knowing actstore. ``kind`` is stable across releases; messages are not.
"""

from typing import ClassVar


class ActstoreError(Exception):
    """The root of all errors raised by actstore.

    Parameters
    ----------
    message : str
        What was asked, what was found.
    kind : str, optional
        A stable snake_case word; by default the class's own.
    hint : str, optional
        What to do; shown below the message in tracebacks and by the command line.

    Examples
    --------
    >>> import actstore
    >>> try:
    ...     actstore.open("no/such.act")
    ... except LookupError as error:
    ...     print(type(error).__name__, error.kind)
    NotFoundError not_found
    """

    default_kind: ClassVar[str] = "error"
    kind: str
    hint: str | None

    def __init__(self, message: str = "", *, kind: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind = self.default_kind if kind is None else kind
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")


class NotFoundError(ActstoreError, LookupError):
    """There is no such store, site, layer, column or example."""

    default_kind = "not_found"


class InvalidInputError(ActstoreError, ValueError):
    """An argument that cannot be used: a dtype, a selection, a name."""

    default_kind = "invalid_input"


class ShapeError(InvalidInputError):
    """An array of the wrong shape; the message has the expected one and the one got."""

    default_kind = "shape"


class FormatError(ActstoreError):
    """The files are damaged, cut short, of another version, or no store at all."""

    default_kind = "metadata"


class StorageError(ActstoreError, OSError):
    """The file system or the lock said no: I/O, disk full, held by another writer, exists already."""

    default_kind = "io"


class NumericalError(ActstoreError, ArithmeticError):
    """The numbers do not allow it: a singular covariance."""

    default_kind = "singular"


KINDS: dict[str, type[ActstoreError]] = {
    "not_found": NotFoundError,
    "invalid_input": InvalidInputError,
    "shape": ShapeError,
    "checksum": FormatError,
    "missing_shard": FormatError,
    "truncated": FormatError,
    "metadata": FormatError,
    "version": FormatError,
    "unsupported": FormatError,
    "compacted": FormatError,
    "io": StorageError,
    "locked": StorageError,
    "exists": StorageError,
    "disk_full": StorageError,
    "forked": StorageError,
    "closed": StorageError,
    "singular": NumericalError,
}
"""Every kind and its class; the native core uses the same."""


class ActstoreWarning(UserWarning):
    """The root of all warnings of actstore: something that one should know, of what was done all the same."""
