"""What `verify` found."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Damage:
    """One damaged thing: the part's path, the array, its shard and chunk (where known), and how."""

    part: str
    array: str
    shard: str | None
    chunk: str | None
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
