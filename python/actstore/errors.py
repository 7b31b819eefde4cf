"""Exceptions and warnings, to be caught by class or told apart by ``kind``.

Each class also derives from the matching builtin exception, so that ``except LookupError`` works. ``kind`` is
stable across releases; messages are not.
"""

from typing import ClassVar


class ActstoreError(Exception):
    """The root of all errors raised by actstore.

    Parameters
    ----------
    message : str
        The request, and why it failed.
    kind : str, optional
        A stable snake_case word; by default that of the class.
    hint : str, optional
        How to fix it; tracebacks and the command line show it below the message.

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
    """An array of the wrong shape; the message names the expected and the actual shape."""

    default_kind = "shape"


class FormatError(ActstoreError):
    """The files are damaged, cut short, of another version, or no store at all."""

    default_kind = "metadata"


class StorageError(ActstoreError, OSError):
    """The file system or the lock prevents it: I/O error, full disk, another writer, existing file."""

    default_kind = "io"


class NumericalError(ActstoreError, ArithmeticError):
    """The computation has no result for these numbers: a singular covariance."""

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
"""Every kind and its class; the native core uses the same kinds."""


class ActstoreWarning(UserWarning):
    """The root of all warnings of actstore. The operation continues, but the user should know of this."""
