"""Creating a store, and opening one to append to it."""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from .. import _native
from ..base.arrays import integers
from ..base.checks import as_path, check_name, plain_json
from ..errors import InvalidInputError
from .append_state import EMPTY_STATE
from .layout import EXAMPLES, IDS, RESERVED, Layout, SiteLayout, column_array
from .spec import SiteSpec
from .writer import StoreWriter


def create(
    path: str | os.PathLike[str],
    sites: Mapping[str, SiteSpec],
    *,
    codec: Literal["blosc", "raw"] = "blosc",
    overwrite: bool = False,
    identity: Mapping[str, Any] | None = None,
    part: tuple[int, int] | None = None,
    threads: int = 0,
) -> StoreWriter:
    """Create an empty store and take its lock.

    Parameters
    ----------
    path : path
        The directory to create.
    sites : mapping of str to SiteSpec
        The sites of the store, by name.
    codec : {"blosc", "raw"}
        Lossless compression, or uncompressed chunks, which are searched in place.
    overwrite : bool
        Replace a store at `path`. Anything else, or a store whose folder holds other files, is an error.
    identity : mapping, optional
        The origin of the activations (weights, tokenizer, ...), as JSON can hold it.
    part : tuple of int, optional
        ``(index, count)``, when several processes write one part each.
    threads : int
        For compression; 0 means all cores.

    Returns
    -------
    StoreWriter
        Use it in a ``with`` block: a clean exit commits, an exception discards.

    Raises
    ------
    InvalidInputError
        When a name, spec, codec or identity is invalid.
    StorageError
        When `path` exists (kind ``exists``), another process writes it (``locked``), or the disk fails.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> spec = actstore.SiteSpec(n_layers=1, dim=4, dtype="float32")
    >>> with actstore.create(path, sites={"resid": spec}) as w:
    ...     w.append({"resid": np.ones((3, 1, 4), np.float32)}, lengths=[1, 2])
    >>> w.n_examples, w.n_tokens
    (2, 3)
    """
    which: Literal["never", "always"] = "always" if overwrite else "never"
    return create_where(path, sites, which, codec=codec, identity=identity, part=part, threads=threads)


def create_where(
    path: str | os.PathLike[str],
    sites: Mapping[str, SiteSpec],
    overwrite: Literal["never", "empty", "always"],
    *,
    codec: Literal["blosc", "raw"],
    identity: Mapping[str, Any] | None,
    part: tuple[int, int] | None,
    threads: int,
) -> StoreWriter:
    """Like `create`, but `overwrite` specifies which existing stores may be replaced."""
    if codec not in ("blosc", "raw"):
        raise InvalidInputError(f"codec {codec!r} is neither 'blosc' nor 'raw'")
    layout = _new_layout(sites, identity, part)
    arrays: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": [spec.n_layers, spec.dim],
            "dtype": spec.dtype,
            "codec": codec,
            "chunk_rows": spec.chunk_rows,
            "shard_rows": spec.shard_rows,
            "dimension_names": ["example" if spec.axis == EXAMPLES else "token", "layer", "dim"],
            "attributes": {},
        }
        for name, spec in sites.items()
    ]
    arrays += [column_array(f"{axis}/offset", "int64") for axis in layout.axes]
    arrays += [column_array(f"{IDS}/bytes", "uint8"), column_array(f"{IDS}/offset", "int64")]
    attributes = layout.to_json()
    native = _native.Writer.create(
        as_path(path), attributes, json.dumps(arrays), EMPTY_STATE, overwrite, threads
    )
    return StoreWriter(native, threads)


def append(path: str | os.PathLike[str], *, threads: int = 0) -> StoreWriter:
    """Open a store to append to its last commit.

    Parameters
    ----------
    path : path
        The store's directory.
    threads : int
        For compression; 0 means all cores.

    Raises
    ------
    NotFoundError
        When there is no store at `path`.
    FormatError
        When the store is damaged, or has sites that only a later actstore can write (kind ``version``).
    StorageError
        kind ``locked`` when another process writes it.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}).close()
    >>> with actstore.append(path) as w:
    ...     w.append({"resid": np.ones((3, 1, 4), np.float32)}, lengths=[3], ids=["a"])
    >>> actstore.open(path).n_examples
    1
    """
    return StoreWriter(_native.Writer.append_to(as_path(path), threads), threads)


def _new_layout(
    sites: Mapping[str, SiteSpec], identity: Mapping[str, Any] | None, part: tuple[int, int] | None
) -> Layout:
    import uuid  # Slow to import.

    if not isinstance(sites, Mapping) or not sites:
        raise InvalidInputError("sites: expected a mapping of at least one name to a SiteSpec")
    layouts: dict[str, SiteLayout] = {}
    for name, spec in sites.items():
        check_name(name, "site", reserved=RESERVED)
        if not isinstance(spec, SiteSpec):
            raise InvalidInputError(f"site {name!r}: expected a SiteSpec, got {type(spec).__name__}")
        about = plain_json(spec.about or {}, f"site {name!r}: about")
        layouts[name] = SiteLayout(spec.axis, tuple(spec.labels or ()), about)
    axes = tuple(dict.fromkeys(site.axis for site in layouts.values() if site.axis != EXAMPLES))
    for axis in axes:
        check_name(axis, "axis", reserved=RESERVED)
        if axis in layouts:
            raise InvalidInputError(f"{axis!r} is both a site and an axis")
    if part is not None:
        numbers = integers(part, "part").tolist()
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
            raise InvalidInputError(f"part {part!r} is not (index, count) with 0 <= index < count")
        part = numbers[0], numbers[1]
    return Layout(layouts, axes, plain_json(identity or {}, "identity"), str(uuid.uuid4()), part)
