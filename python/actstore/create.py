"""Making a store, and going on with one."""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal

from . import _native
from .arrays import integers
from .errors import InvalidInputError
from .layout import EXAMPLES, IDS, Layout, SiteLayout, check_name, column_array, plain_json
from .parts import as_path
from .site_spec import SiteSpec
from .writer import EMPTY_STATE, StoreWriter


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
    """Make an empty store and hold its lock.

    Parameters
    ----------
    path : path
        The directory to make.
    sites : mapping of str to SiteSpec
        What is to be stored, by name.
    codec : {"blosc", "raw"}
        Compressed without loss, or as it is in memory and searched in place.
    overwrite : bool
        Replace a store that is there; anything else there is never replaced, nor a store in whose folder
        something else lies.
    identity : mapping, optional
        What the activations are of (weights, tokenizer, ...), as JSON can hold it.
    part : tuple of int, optional
        Index and count, when several processes write a part each.
    threads : int
        For compressing; 0 means all cores.

    Returns
    -------
    StoreWriter
        Use it in a ``with`` block: a clean exit commits, an exception discards.

    Raises
    ------
    InvalidInputError
        When a name, spec, codec or identity cannot be used.
    StorageError
        When it exists already (kind ``exists``), another writer has it (``locked``), or the disk fails.

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
    """As `create`; `overwrite` tells which stores that are there are replaced."""
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
    """Go on writing a store, from its last commit.

    Raises
    ------
    NotFoundError
        When there is no store at `path`.
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
    import uuid  # slow to import

    if not isinstance(sites, Mapping) or not sites:
        raise InvalidInputError("sites: expected a mapping of at least one name to a SiteSpec")
    layouts: dict[str, SiteLayout] = {}
    for name, spec in sites.items():
        check_name(name, "site", reserved=(EXAMPLES,))
        if not isinstance(spec, SiteSpec):
            raise InvalidInputError(f"site {name!r}: expected a SiteSpec, got {type(spec).__name__}")
        about = plain_json(spec.about or {}, f"site {name!r}: about")
        layouts[name] = SiteLayout(spec.axis, tuple(spec.labels or ()), about)
    axes = tuple(dict.fromkeys(site.axis for site in layouts.values() if site.axis != EXAMPLES))
    for axis in axes:
        if axis in layouts:
            raise InvalidInputError(f"{axis!r} is both a site and an axis")
    if part is not None:
        numbers = integers(part, "part").tolist()
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1]:
            raise InvalidInputError(f"part {part!r} is no (index, count)")
        part = numbers[0], numbers[1]
    return Layout(layouts, axes, plain_json(identity or {}, "identity"), str(uuid.uuid4()), part)
