"""The report of `Store.verify`."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Damage:
    """One damaged store, array, shard or chunk.

    Attributes
    ----------
    part : str
        The directory of the store, or of the part.
    array : str
        The array's path in the store; empty when the store itself cannot be read.
    shard : int or None
        The shard's number along the rows, if known.
    chunk : list of int or None
        The chunk's position in the array's grid of chunks, if known.
    kind, message : str
        Kind and message of the error that reading it raises.
    """

    part: str
    array: str
    shard: int | None
    chunk: list[int] | None
    kind: str
    message: str


@dataclass(frozen=True)
class Report:
    """The result of `Store.verify`.

    Attributes
    ----------
    damaged : list of Damage
        Everything with a wrong checksum, length or metadata.
    leftovers : list of str
        Files that an interrupted write left, listed with ``strict=True``. They are harmless.
    chunks, bytes : int
        The amount that was checked.
    """

    damaged: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    chunks: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged
