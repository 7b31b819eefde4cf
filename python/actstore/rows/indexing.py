"""The positions that example ids, row ids and the keys of ``site[...]`` stand for."""

from typing import Any

import numpy as np

from ..base.arrays import integers
from ..base.selection import Rows, compact_rows, index_positions, is_int
from ..errors import InvalidInputError, NotFoundError
from .backend import Backend
from .rowset import RowSet


def example_positions(backend: Backend, rowset: RowSet, key: Any, full_name: str) -> Rows:
    """Positions among the examples of a row set, given positions, ids, a slice or a mask."""
    what = f"{full_name}: examples"
    if isinstance(key, str) or is_int(key):
        key = [key]
    if isinstance(key, list | tuple) or (isinstance(key, np.ndarray) and key.dtype.kind in "OUT"):
        if any(isinstance(item, str) for item in key):
            at = _positions_by_number(rowset)
            key = [
                _example_position(backend, rowset, item, at, full_name) if isinstance(item, str) else item
                for item in key
            ]
        mask = all(isinstance(item, bool | np.bool_) for item in key)
        if not (mask or all(is_int(item) for item in key)):
            raise InvalidInputError(f"{what}: an example is an int or a str, got {key!r:.80}")
    return index_positions(key, len(rowset.examples), what)


def _positions_by_number(rowset: RowSet) -> dict[int, int] | None:
    """Positions of examples by their numbers; None when these are a range, which needs no table."""
    if isinstance(rowset.examples, range):
        return None
    numbers = rowset.examples.tolist()
    return dict(zip(reversed(numbers), range(len(numbers) - 1, -1, -1), strict=True))


def _example_position(
    backend: Backend, rowset: RowSet, name: str, positions: dict[int, int] | None, full_name: str
) -> int:
    number = backend.example_number(name)
    if positions is not None:
        at = positions.get(number)
    else:
        examples = rowset.examples
        at = examples.index(number) if isinstance(examples, range) and number in examples else None
    if at is None:
        raise NotFoundError(f"{full_name}: example {name!r} is not in this view")
    return at


def row_positions(backend: Backend, rowset: RowSet, row_ids: Any, full_name: str) -> Rows:
    """Positions in a row set of the rows with these ids; NotFoundError for a row that it lacks."""
    wanted = integers([row_ids] if is_int(row_ids) else row_ids, f"{full_name}: row_ids")
    known = backend.numbers_of(rowset.rows)
    order = np.argsort(known, kind="stable")
    at = np.searchsorted(known[order], wanted)
    present = at < len(known)
    present[present] = known[order[at[present]]] == wanted[present]
    if not present.all():
        absent = wanted[~present]
        raise NotFoundError(
            f"{full_name}: row {absent[0]} is not in this view",
            hint="missing hits have row -1: leave them out" if (absent == -1).any() else None,
        )
    return compact_rows(order[at])


def split_key(key: Any, what: str) -> tuple[Any, Any, Any]:
    """A key for each axis, with ``...`` expanded."""
    keys = list(key) if isinstance(key, tuple) else [key]
    dots = [i for i, item in enumerate(keys) if item is Ellipsis]
    if len(dots) > 1:
        raise InvalidInputError(f"{what}: more than one '...'")
    if len(keys) - len(dots) > 3:
        raise InvalidInputError(f"{what}: {len(keys)} indices, there are 3 axes: token, layer, dim")
    at = dots[0] if dots else len(keys)
    keys[at : at + 1] = [slice(None)] * (3 - len(keys) + len(dots))
    if any(item is None for item in keys):
        raise InvalidInputError(f"{what}: None cannot add an axis")
    return keys[0], keys[1], keys[2]
