"""A writer's progress: the number of examples and rows that it has received, and their digest."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_EMPTY_DIGEST = bytes(16)


@dataclass(frozen=True)
class AppendState:
    """The progress of a writer, including examples that are not committed yet."""

    n_examples: int
    rows: dict[str, int]
    """The number of rows of each axis."""
    digest: bytes
    """Digest of the ids and lengths of all examples (docs/format.md, "Records")."""
    ends: dict[str, int]
    """The last offset of each string column, once it is known."""
    note: dict[str, Any]
    """The caller's note for the process that resumes."""

    @staticmethod
    def of(state: Mapping[str, Any], n_examples: int, rows: dict[str, int]) -> "AppendState":
        """Parse the state in the newest commit record."""
        digest = bytes.fromhex(state.get("digest") or _EMPTY_DIGEST.hex())
        return AppendState(n_examples, rows, digest, {}, dict(state.get("note") or {}))

    def after(
        self,
        names: Sequence[str],
        lengths: Mapping[str, NDArray[np.int64]],
        ends: Mapping[str, int],
        note: dict[str, Any],
    ) -> "AppendState":
        """The state after appending examples with these ids, and these lengths on each axis."""
        return AppendState(
            n_examples=self.n_examples + len(names),
            rows={axis: count + int(lengths[axis].sum()) for axis, count in self.rows.items()},
            digest=_extend_digest(self.digest, names, [lengths[axis] for axis in sorted(lengths)]),
            ends=self.ends | dict(ends),
            note=note,
        )

    def to_json(self) -> str:
        """The state for a commit record."""
        state: dict[str, Any] = {
            "n_examples": self.n_examples,
            "axes": self.rows,
            "digest": self.digest.hex(),
        }
        if self.note:
            state["note"] = self.note
        return json.dumps(state)


EMPTY_STATE = AppendState(0, {}, _EMPTY_DIGEST, {}, {}).to_json()


def _extend_digest(digest: bytes, names: Iterable[str], lengths: Sequence[NDArray[np.int64]]) -> bytes:
    """The digest after more examples. It does not depend on how they were divided into appends."""
    table = np.stack([size.astype("<i8") for size in lengths], axis=1) if lengths else None
    for i, name in enumerate(names):
        text = name.encode()
        row = b"" if table is None else table[i].tobytes()
        digest = hashlib.blake2b(
            digest + len(text).to_bytes(8, "little") + text + row, digest_size=16
        ).digest()
    return digest
