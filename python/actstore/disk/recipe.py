"""Derived arrays: sites that were computed from another site, and the recipes in their attributes."""

from dataclasses import dataclass
from typing import Any

from .. import _native
from ..base.arrays import FLOAT_DTYPES
from ..base.checks import name_problem
from ..errors import FormatError
from .layout import (
    EXAMPLES,
    RESERVED,
    Layout,
    is_int,
    later_version,
    malformed,
    own_attributes,
    parse_axis,
    parse_encoding,
    parse_labels,
    parse_mapping,
    unknown_encoding,
)

OPERATIONS = frozenset({"pool"})
"""The operations that make derived sites."""
RECIPE_VERSION = 1
"""The newest version of a recipe that this actstore can read."""


@dataclass(frozen=True)
class Derived:
    """A site that was computed from another site of the same store.

    Row i belongs to row i of its axis. An array with fewer rows than its axis is short: the missing rows have
    not been computed yet.
    """

    recipe: dict[str, Any]
    """`operation`, `version`, `source`, `layers`, and the operation's parameters, as in the attributes."""
    labels: tuple[int, ...]
    rows: int
    dim: int
    dtype: str
    codec: str
    axis: str = EXAMPLES

    def attributes(self) -> dict[str, Any]:
        """The attributes of its array."""
        return {"actstore": {"derived": self.recipe, "axis": self.axis, "labels": list(self.labels)}}

    def difference(self, other: "Derived") -> tuple[str, Any, Any] | None:
        """The first property, besides the number of rows, in which two derived sites differ.

        Returns
        -------
        tuple or None
            The property's name, this site's value and the other's; None when they agree.
        """
        ours, theirs = self._properties(), other._properties()
        for key in (*ours, *(key for key in theirs if key not in ours)):
            if ours.get(key) != theirs.get(key):
                return key, ours.get(key), theirs.get(key)
        return None

    def _properties(self) -> dict[str, Any]:
        own = {"axis": self.axis, "labels": list(self.labels), "dim": self.dim, "dtype": self.dtype}
        return self.recipe | own


def is_derived(attributes: str) -> bool:
    """Whether a node's attributes describe a derived array or group."""
    own = own_attributes(attributes)
    return isinstance(own, dict) and "derived" in own


def find_derived(
    reader: _native.Reader, layout: Layout, rows: dict[str, int]
) -> tuple[dict[str, Derived], dict[str, FormatError]]:
    """The derived arrays and groups of the root.

    Parameters
    ----------
    rows : dict of str to int
        The number of rows of each axis.

    Returns
    -------
    derived : dict of str to Derived
    unknown : dict of str to FormatError
        Those that only a later actstore can read, with the error to raise when they are accessed.

    Raises
    ------
    FormatError
        kind ``metadata`` for anything malformed.
    """
    derived: dict[str, Derived] = {}
    unknown: dict[str, FormatError] = {}
    nodes = {name: reader.array(name) for name in reader.arrays if "/" not in name}
    attributes = {name: array.attributes for name, array in nodes.items()}
    attributes |= {name: group for name, group in reader.groups.items() if "/" not in name}
    in_use = {*layout.sites, *layout.encoded, *layout.axes, *RESERVED}
    for name, text in attributes.items():
        if name in in_use or not is_derived(text) or name_problem(name) is not None:
            continue
        where = f"{reader.path}: {name}"
        if name not in nodes:
            unknown[name] = _unknown_group(text, where)
            continue
        array = nodes[name]
        try:
            one = parse_derived(text, array.shape, array.dtype, array.codec, where, layout.axes)
        except FormatError as error:
            if error.kind != "version":
                raise
            unknown[name] = error
            continue
        n_axis_rows = rows.get(one.axis, 0)
        if one.rows > n_axis_rows:
            raise FormatError(
                f"{where} has {one.rows} rows, axis {one.axis!r} has {n_axis_rows}", kind="metadata"
            )
        derived[name] = one
    return derived, unknown


def _unknown_group(attributes: str, where: str) -> FormatError:
    own = own_attributes(attributes)
    layout = own.get("layout") if isinstance(own, dict) else None
    return later_version(f"{where} is a derived group of layout {layout!r}, which this actstore cannot read")


def parse_derived(
    attributes: str, shape: tuple[int, ...], dtype: str, codec: str, path: str, axes: tuple[str, ...] = ()
) -> Derived:
    """Parse the attributes of a derived array.

    Parameters
    ----------
    attributes : str
        JSON.
    shape : tuple of int ``(rows, layers, dim)``
    dtype, codec : str
    path : str
        The array, for messages.
    axes : tuple of str
        The store's axes of tokens.

    Raises
    ------
    FormatError
        kind ``version`` when only a later actstore can read it, ``metadata`` for anything malformed.
    """
    own = parse_mapping(own_attributes(attributes), path, "actstore")
    recipe = dict(parse_mapping(own["derived"], path, "derived"))
    operation, version = recipe.get("operation"), recipe.get("version")
    if not isinstance(operation, str) or not is_int(version):
        raise malformed(path, "derived", recipe)
    if operation not in OPERATIONS or version > RECIPE_VERSION:
        raise later_version(
            f"{path} was computed by operation {operation!r}, version {version}, "
            "which this actstore does not know"
        )
    if "layout" in own:
        raise later_version(
            f"{path} is a derived array of layout {own['layout']!r}, which this actstore cannot read"
        )
    encoding = parse_encoding(own, path, "encoding")
    if encoding is not None:
        raise unknown_encoding(*path.rpartition(": ")[::2], encoding)
    source = recipe.get("source")
    if name_problem(source) is not None:
        raise malformed(path, "derived.source", source)
    parse_labels(recipe.get("layers"), path, "derived.layers")
    axis = parse_axis(own.get("axis"), axes, path, "axis")
    labels = parse_labels(own.get("labels"), path, "labels")
    if len(shape) != 3 or shape[1] != len(labels) or dtype not in FLOAT_DTYPES:
        raise FormatError(
            f"{path}: the array of a derived site of {len(labels)} layers is {dtype} {list(shape)}",
            kind="metadata",
        )
    return Derived(recipe, labels, shape[0], shape[2], dtype, codec, axis)
