"""The destination of a capture: its path, whether a store may be written there, and the writer."""

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from ...base.checks import as_path
from ...base.selection import is_int
from ...disk.create import append, create_where
from ...disk.writer import StoreWriter
from ...errors import FormatError, InvalidInputError, StorageError
from ...store import open as open_store
from ..identity import difference
from ..session import Session


@dataclass(frozen=True)
class WriteOptions:
    """How to write the store; fields as the parameters of `capture`."""

    store_text: bool
    resume: bool
    on_nan: str
    on_empty: str
    overwrite: bool = False
    codec: Any = "blosc"
    threads: int = 0


def part_path(path: str | os.PathLike[str], part: tuple[int, int] | None) -> tuple[str, int, int]:
    """The path that this process writes to, its rank, and the number of processes.

    Raises
    ------
    InvalidInputError
        If the rank is out of range, or RANK and WORLD_SIZE are not ints.
    StorageError
        If `path` is a store, which cannot contain parts (kind ``exists``).
    """
    root = as_path(path)
    if part is None:
        env = os.environ
        try:
            rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise InvalidInputError(f"RANK and WORLD_SIZE: {error}") from None
        if world <= 1:
            return root, 0, 1
        if "RANK" not in env:  # Otherwise each process would take rank 0.
            raise InvalidInputError(
                f"WORLD_SIZE is {world}, but RANK is not set",
                hint="torchrun sets both; or pass part=(rank, n)",
            )
    else:
        if not isinstance(part, tuple) or len(part) != 2 or not all(map(is_int, part)):
            raise InvalidInputError(f"part is {part!r}, not (rank, number of processes)")
        rank, world = part
    if not 0 <= rank < world:
        raise InvalidInputError(f"part {rank} of {world}: ranks start at 0 and are less than {world}")
    if is_store(root):
        raise StorageError(
            f"{root} is a store, so it cannot contain parts", kind="exists", hint="choose another path"
        )
    return os.path.join(root, f"part-{rank:05d}-of-{world:05d}"), rank, world


def is_store(path: str) -> bool:
    """Whether a path looks like a store."""
    return os.path.exists(os.path.join(path, "zarr.json"))


def check_destination(path: str, options: WriteOptions) -> None:
    """Raise StorageError (kind ``exists``) if there is a store that is neither replaced nor resumed."""
    if options.resume or options.overwrite or not is_store(path):
        return
    with contextlib.suppress(FormatError), open_store(path) as store:
        if not store.n_examples and "model" in store.identity:
            return  # A capture that ended before its first example.
    raise StorageError(
        f"{path} already exists", kind="exists", hint="resume=True continues it, overwrite=True replaces it"
    )


def open_writer(
    path: str, session: Session, identity: dict[str, Any], part: tuple[int, int] | None, options: WriteOptions
) -> StoreWriter:
    """Create the store, or open it to resume. A store without examples is replaced.

    Raises
    ------
    InvalidInputError
        If the store to resume holds another capture, with the first difference.
    StorageError
        If a store exists (kind ``exists``).
    """
    if not (options.resume and is_store(path)):
        check_destination(path, options)  # Again, because loading the model took a while.
        return create_where(
            path,
            session.specs(),
            "always" if options.overwrite else "empty",
            codec=options.codec,
            identity=identity,
            part=part,
            threads=options.threads,
        )
    writer = append(path, threads=options.threads)
    try:
        mismatch = difference(writer.identity, identity)
        if mismatch is not None:
            key, stored, ours = mismatch
            raise InvalidInputError(
                f"resume: {path} was captured with {key} = {json.dumps(stored)}, "
                f"this run has {json.dumps(ours)}",
                hint="choose another path, or overwrite=True for a new capture",
            )
        if writer.n_examples and "inputs" not in writer.note:
            raise InvalidInputError(
                f"resume: {path} does not record which inputs it has: capture did not write it"
            )
    except BaseException:
        writer.abort()
        raise
    return writer
