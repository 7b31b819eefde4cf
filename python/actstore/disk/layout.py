"""The store as its directory describes it: names, paths, and the attributes of the root group.

Everything read here may be hostile: a name becomes a path component, and a label is compared with the
layers of an array.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ..base.checks import name_problem
from ..errors import FormatError

FORMAT = 1
EXAMPLES = "examples"
"""The axis with one row per example, and the group of the examples' columns."""
TOKENS = "tokens"
IDS = f"{EXAMPLES}/id"
ARTIFACTS = "artifacts"
"""The group of artifacts, which are stored beside the sites: whiteners, vocabularies, probes."""
ENCODINGS = "encodings"
"""The group of the scales of encoded sites."""
RESERVED = frozenset({EXAMPLES, ARTIFACTS, ENCODINGS})
"""Groups of the root whose names no site and no axis of tokens can have."""


@dataclass(frozen=True)
class SiteEncoding:
    """How the numbers of an array encode its rows."""

    name: str
    version: int


@dataclass(frozen=True)
class SiteLayout:
    """A site's axis, and one label per layer."""

    axis: str
    labels: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict)
    """The writer's description of the site and its layers."""
    encoding: SiteEncoding | None = None
    """None when the array holds the rows themselves."""


@dataclass(frozen=True)
class Layout:
    """``attributes["actstore"]`` of the root group."""

    sites: dict[str, SiteLayout]
    """The sites whose arrays hold the rows themselves."""
    axes: tuple[str, ...]
    """Axes of tokens. `examples` always exists and is not listed."""
    identity: dict[str, Any] = field(default_factory=dict)
    uuid: str | None = None
    part: tuple[int, int] | None = None
    """This part's index and the number of parts, for a capture by several processes."""
    encoded: dict[str, SiteLayout] = field(default_factory=dict)
    """The sites with an encoding, which this version cannot read."""

    def to_json(self) -> str:
        """The root group's attributes as JSON."""
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


def column_array(name: str, dtype: str) -> dict[str, Any]:
    """The native writer's specification of a 1-D array."""
    group, _, rest = name.partition("/")
    # The lengths of offsets and of string bytes do not count rows, so these dimensions have other names.
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
    """Parse the root group's attributes.

    Returns
    -------
    Layout or None
        None when there is no key `actstore`, as in the groups of other programs.

    Raises
    ------
    FormatError
        kind ``version`` for a later format, ``metadata`` for anything malformed.
    """
    own = own_attributes(attributes)
    if own is None:
        return None
    own = parse_mapping(own, path, "actstore")
    version = own.get("format")
    if not is_int(version):
        raise malformed(path, "format", version)
    if version > FORMAT:
        raise later_version(f"{path} has format {version}, this actstore reads formats up to {FORMAT}")
    axes = tuple(parse_mapping(own.get("axes", {}), path, "axes"))
    for name in axes:
        if name_problem(name, reserved=RESERVED) is not None:
            raise malformed(path, "axes", name)
    sites: dict[str, SiteLayout] = {}
    for name, entry in parse_mapping(own.get("sites"), path, "sites").items():
        site = parse_mapping(entry, path, f"sites.{name}")
        if name_problem(name, reserved=RESERVED) is not None or name in axes:
            raise malformed(path, "sites", name)
        about = dict(parse_mapping(site.get("about") or {}, path, f"sites.{name}.about"))
        sites[name] = SiteLayout(
            parse_axis(site.get("axis"), axes, path, f"sites.{name}.axis"),
            parse_labels(site.get("labels"), path, f"sites.{name}.labels"),
            about,
            parse_encoding(site, path, f"sites.{name}.encoding"),
        )
    uuid = own.get("uuid")
    if uuid is not None and not isinstance(uuid, str):
        raise malformed(path, "uuid", uuid)
    return Layout(
        {name: site for name, site in sites.items() if site.encoding is None},
        axes,
        dict(parse_mapping(own.get("identity") or {}, path, "identity")),
        uuid,
        _parse_part(own.get("part"), path),
        {name: site for name, site in sites.items() if site.encoding is not None},
    )


def own_attributes(attributes: str) -> object:
    """The value of the key `actstore` in a node's attributes; None when there is none."""
    root = json.loads(attributes)
    return root.get("actstore") if isinstance(root, dict) else None


def parse_axis(axis: Any, axes: tuple[str, ...], path: str, what: str) -> str:
    if not isinstance(axis, str) or (axis != EXAMPLES and axis not in axes):
        raise malformed(path, what, axis)
    return axis


def parse_labels(labels: Any, path: str, what: str) -> tuple[int, ...]:
    if not isinstance(labels, list) or not all(is_int(label) and 0 <= label < 1 << 63 for label in labels):
        raise malformed(path, what, labels)
    if len(set(labels)) != len(labels):
        raise malformed(path, what, labels)
    return tuple(labels)


def parse_encoding(entry: Mapping[str, Any], path: str, what: str) -> SiteEncoding | None:
    """The encoding that a site's entry or a derived array's attributes name; None without the key."""
    if "encoding" not in entry:
        return None
    encoding = parse_mapping(entry["encoding"], path, what)
    name, version = encoding.get("name"), encoding.get("version")
    if not isinstance(name, str) or not is_int(version):
        raise malformed(path, what, encoding)
    return SiteEncoding(name, version)


def _parse_part(part: Any, path: str) -> tuple[int, int] | None:
    if part is None:
        return None
    part = parse_mapping(part, path, "part")
    index, count = part.get("index"), part.get("count")
    if not (is_int(index) and is_int(count) and 0 <= index < count):
        raise malformed(path, "part", part)
    return index, count


def parse_mapping(value: Any, path: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise malformed(path, what, value)
    return value


def is_int(value: object) -> TypeGuard[int]:
    """Whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def malformed(path: str, what: str, value: object) -> FormatError:
    """The error for an attribute that has a wrong value."""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return FormatError(f"{path}: attributes: {what} is malformed: {shown}", kind="metadata")


def later_version(message: str) -> FormatError:
    """The error for something that only a later actstore can read."""
    return FormatError(message, kind="version", hint="pip install -U actstore")


def unknown_encoding(path: str, site: str, encoding: SiteEncoding) -> FormatError:
    """The error for a site that cannot be decoded."""
    return later_version(
        f"{path}: site {site!r} has encoding {encoding.name!r}, version {encoding.version}, "
        "which this actstore cannot decode"
    )
