"""What `verify` found."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Damage:
    """One damaged thing.

    Attributes
    ----------
    part : str
        The directory of the store, or of the part.
    array : str
        The array's path in it; empty when the store itself cannot be read.
    shard : int or None
        The shard along the rows, where it is known.
    chunk : list of int or None
        The chunk within the array's grid of chunks, where it is known.
    kind, message : str
        As those of the error that reading it raises.
    """

    part: str
    array: str
    shard: int | None
    chunk: list[int] | None
    kind: str
    message: str


@dataclass(frozen=True)
class Report:
    """The outcome of `Store.verify`.

    Attributes
    ----------
    damaged : list of Damage
        Everything whose checksum, length or metadata is wrong.
    leftovers : list of str
        Files an interrupted write left behind, when ``strict`` asked for them; they do no harm.
    chunks, bytes : int
        How much was checked.
    """

    damaged: list[Damage] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    chunks: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged
