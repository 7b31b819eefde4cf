"""The store as its directory describes it: names, paths, the attributes of groups and derived arrays.

Everything read here may be hostile: a name is a path component, a label an index.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .arrays import FLOAT_DTYPES
from .errors import FormatError, InvalidInputError

FORMAT = 1
EXAMPLES = "examples"
"""The axis of pooled sites, one row per example, and the group of the examples' columns."""
TOKENS = "tokens"
IDS = f"{EXAMPLES}/id"
OPERATIONS = frozenset({"pool"})
"""By which derived sites are made."""
RECIPE_VERSION = 1
"""Of the recipes that are understood here."""

_RESERVED = frozenset({"c", "zarr.json", "commits"})


def name_problem(name: object, *, reserved: Iterable[str] = ()) -> str | None:
    """Why `name` cannot name a site, an axis or a column; None when it can."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, not a str"
    if not name:
        return "is empty"
    if any(mark in name for mark in "/\\\0"):
        return "contains a slash, a backslash or NUL"
    if name.startswith((".", "__")):
        return "starts with '.' or '__'"
    if name in _RESERVED or name in reserved:
        return "is reserved"
    try:
        too_long = len(name.encode()) > 255
    except UnicodeEncodeError:
        return "is not valid unicode"
    return "is longer than 255 bytes" if too_long else None


def check_name(name: object, what: str, *, reserved: Iterable[str] = ()) -> str:
    """`name`, if it is fit to be a path component.

    Raises
    ------
    InvalidInputError
        When it is not, with the reason.
    """
    problem = name_problem(name, reserved=reserved)
    if problem is not None:
        raise InvalidInputError(f"{what} {name!r} {problem}")
    assert isinstance(name, str)
    return name


def check_column(name: object, what: str) -> str:
    """As `check_name`, for columns, beside which the offsets lie."""
    return check_name(name, what, reserved=("offset",))


def plain_json(value: Mapping[str, Any], what: str) -> dict[str, Any]:
    """A mapping as it will be read again from JSON.

    Raises
    ------
    InvalidInputError
        When JSON cannot hold it.
    """
    try:
        told: dict[str, Any] = json.loads(json.dumps(dict(value), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} is not JSON: {error}") from error
    return told


@dataclass(frozen=True)
class SiteLayout:
    """Where a site's rows and layers stand: its axis, and one label per layer."""

    axis: str
    labels: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict)
    """What the writer says of it, for whoever reads it."""


@dataclass(frozen=True)
class Layout:
    """``attributes["actstore"]`` of the root group."""

    sites: dict[str, SiteLayout]
    axes: tuple[str, ...]
    """Axes of tokens; `examples` is always there and not among them."""
    identity: dict[str, Any] = field(default_factory=dict)
    uuid: str | None = None
    part: tuple[int, int] | None = None
    """Index and count of the parts of one capture."""

    def to_json(self) -> str:
        """The root group's attributes, the whole of them."""
        part = None if self.part is None else {"index": self.part[0], "count": self.part[1]}
        own: dict[str, Any] = {
            "format": FORMAT,
            "uuid": self.uuid,
            "identity": self.identity,
            "axes": {axis: {} for axis in self.axes},
            "sites": {
                name: {"axis": site.axis, "labels": list(site.labels)}
                | ({"about": site.about} if site.about else {})
                for name, site in self.sites.items()
            },
            "part": part,
            "commits": "commits",
        }
        return json.dumps({"actstore": own}, allow_nan=False)


@dataclass(frozen=True)
class Derived:
    """A site that was computed from another one of the same store: a row for each example so far."""

    recipe: dict[str, Any]
    """How, as JSON has it: `operation`, `version`, `source`, `layers`, and what the operation takes."""
    labels: tuple[int, ...]
    rows: int
    dim: int
    dtype: str
    codec: str

    def attributes(self) -> dict[str, Any]:
        """Those of its array, the whole of them."""
        return {"actstore": {"derived": self.recipe, "labels": list(self.labels)}}

    def difference(self, other: "Derived") -> tuple[str, Any, Any] | None:
        """The first thing in which two derived sites differ, whatever they cover: its name, ours, theirs."""
        ours, theirs = self._told(), other._told()
        for key in (*ours, *(key for key in theirs if key not in ours)):
            if ours.get(key) != theirs.get(key):
                return key, ours.get(key), theirs.get(key)
        return None

    def _told(self) -> dict[str, Any]:
        return self.recipe | {"labels": list(self.labels), "dim": self.dim, "dtype": self.dtype}


def is_derived(attributes: str) -> bool:
    """Whether the attributes of an array say that it is a derived one."""
    root = json.loads(attributes)
    own = root.get("actstore") if isinstance(root, dict) else None
    return isinstance(own, dict) and "derived" in own


def parse_derived(attributes: str, shape: tuple[int, ...], dtype: str, codec: str, path: str) -> Derived:
    """What a derived array at `path` says of itself.

    Raises
    ------
    FormatError
        kind ``version`` when a later actstore made it, ``metadata`` for anything malformed.
    """
    own = json.loads(attributes)["actstore"]
    recipe = dict(_mapping(own["derived"], path, "derived"))
    operation, version = recipe.get("operation"), recipe.get("version")
    if not isinstance(operation, str) or not isinstance(version, int) or isinstance(version, bool):
        raise _malformed(path, "derived", recipe)
    if operation not in OPERATIONS or version > RECIPE_VERSION:
        raise FormatError(
            f"{path} was made by {operation!r}, version {version}, which this actstore does not know",
            kind="version",
            hint="pip install -U actstore",
        )
    source = recipe.get("source")
    if name_problem(source) is not None:
        raise _malformed(path, "derived.source", source)
    _labels(recipe.get("layers"), path, "derived.layers")
    labels = _labels(own.get("labels"), path, "labels")
    if len(shape) != 3 or shape[1] != len(labels) or dtype not in FLOAT_DTYPES:
        raise FormatError(
            f"{path}: a derived site of {len(labels)} layers is {dtype} {list(shape)}", kind="metadata"
        )
    return Derived(recipe, labels, shape[0], shape[2], dtype, codec)


def column_array(name: str, dtype: str) -> dict[str, Any]:
    """What the native writer is told of a 1-D array."""
    group, _, rest = name.partition("/")
    # Bytes and offsets of strings have lengths of their own, and so has an axis' offset.
    leaf = rest.rpartition("/")[2]
    plain = "/" not in rest and leaf != "offset"
    return {
        "name": name,
        "shape": [],
        "dtype": dtype,
        "codec": "blosc",
        "chunk_rows": None,
        "shard_rows": None,
        "dimension_names": [("example" if group == EXAMPLES else "token") if plain else leaf],
        "attributes": {},
    }


def parse_layout(attributes: str, path: str) -> Layout | None:
    """The layout in a group's attributes; None where there is none, as in foreign groups.

    Raises
    ------
    FormatError
        kind ``version`` for a newer format, ``metadata`` for anything malformed.
    """
    root = json.loads(attributes)
    own = root.get("actstore") if isinstance(root, dict) else None
    if own is None:
        return None
    own = _mapping(own, path, "actstore")
    version = own.get("format")
    if not isinstance(version, int) or isinstance(version, bool):
        raise _malformed(path, "format", version)
    if version > FORMAT:
        raise FormatError(
            f"{path} is of format {version}, this actstore reads up to {FORMAT}",
            kind="version",
            hint="pip install -U actstore",
        )
    axes = tuple(_mapping(own.get("axes", {}), path, "axes"))
    for name in axes:
        if name_problem(name, reserved=(EXAMPLES,)) is not None:
            raise _malformed(path, "axes", name)
    sites: dict[str, SiteLayout] = {}
    for name, entry in _mapping(own.get("sites"), path, "sites").items():
        site = _mapping(entry, path, f"sites.{name}")
        axis, labels = site.get("axis"), site.get("labels")
        if name_problem(name, reserved=(EXAMPLES,)) is not None or name in axes:
            raise _malformed(path, "sites", name)
        if not isinstance(axis, str) or (axis != EXAMPLES and axis not in axes):
            raise _malformed(path, f"sites.{name}.axis", axis)
        about = dict(_mapping(site.get("about") or {}, path, f"sites.{name}.about"))
        sites[name] = SiteLayout(axis, _labels(labels, path, f"sites.{name}.labels"), about)
    uuid = own.get("uuid")
    if uuid is not None and not isinstance(uuid, str):
        raise _malformed(path, "uuid", uuid)
    identity = dict(_mapping(own.get("identity") or {}, path, "identity"))
    return Layout(sites, axes, identity, uuid, _part(own.get("part"), path))


def _labels(labels: Any, path: str, what: str) -> tuple[int, ...]:
    if not isinstance(labels, list) or not all(_is_int(label) and 0 <= label < 1 << 63 for label in labels):
        raise _malformed(path, what, labels)
    if len(set(labels)) != len(labels):
        raise _malformed(path, what, labels)
    return tuple(labels)


def _part(part: Any, path: str) -> tuple[int, int] | None:
    if part is None:
        return None
    part = _mapping(part, path, "part")
    index, count = part.get("index"), part.get("count")
    if not (_is_int(index) and _is_int(count) and 0 <= index < count):
        raise _malformed(path, "part", part)
    return index, count


def _mapping(value: Any, path: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _malformed(path, what, value)
    return value


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _malformed(path: str, what: str, found: object) -> FormatError:
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return FormatError(f"{path}: attributes: {what} is malformed: {shown}", kind="metadata")
