"""Choosing the importer for a path."""

import contextlib
import os
from collections.abc import Iterator, Sequence

from ...disk.location import find_parts
from ...errors import InvalidInputError, NotFoundError
from ...store import open as open_store
from ..export_layout import MANIFEST
from .exports import from_export
from .npy import from_npy
from .source import ImportSource
from .stores import from_store, group_around, is_zarr_array
from .tensors import from_safetensors


@contextlib.contextmanager
def open_source(
    path: str, site: str, sites: Sequence[str] | None, labels: Sequence[int] | None, to: str | None
) -> Iterator[ImportSource]:
    """Open a file or directory of any supported format; see `actstore.import_` for the arguments.

    Raises
    ------
    NotFoundError
        When `path` does not exist, or is a directory of no supported format.
    InvalidInputError
        When it is a file of no supported format, or `labels` are given for an export.
    """
    if not os.path.exists(path):
        raise NotFoundError(f"{path} does not exist")
    if os.path.isfile(path):
        if path.endswith(".safetensors"):
            yield from_safetensors(path, sites, labels, to)
        elif path.endswith(".npy"):
            yield from_npy(path, site, labels, to)
        else:
            raise InvalidInputError(
                f"{path} has no format that can be imported",
                hint="import an .npy file, a .safetensors file, a Zarr group or an export",
            )
    elif os.path.isfile(os.path.join(path, MANIFEST)):
        if labels is not None:
            raise InvalidInputError(f"labels: the export {path} has its own layer labels")
        yield from_export(path, sites, to)
    else:
        with contextlib.ExitStack() as stack:
            group = path
            if is_zarr_array(path):
                group = stack.enter_context(group_around(path))
            elif not os.path.exists(os.path.join(path, "zarr.json")) and not _has_parts(path):
                raise NotFoundError(
                    f"{path} has neither zarr.json nor {MANIFEST}", hint="name a file or a Zarr group"
                )
            yield from_store(stack.enter_context(open_store(group)), path, sites, labels, to)


def _has_parts(path: str) -> bool:
    try:
        return bool(find_parts(path))
    except NotFoundError:
        return False
