"""The artifacts of a part: the groups in ``artifacts/`` (docs/format.md, "Artifacts")."""

from collections.abc import Mapping
from typing import Any

from .. import _native
from ..disk.layout import ARTIFACTS, own_attributes


def artifacts(reader: _native.Reader) -> dict[str, Mapping[str, Any]]:
    """The description of each artifact of any kind, by name; `{}` for a malformed description."""
    described: dict[str, Mapping[str, Any]] = {}
    for path, attributes in reader.groups.items():
        group, _, name = path.partition("/")
        if group == ARTIFACTS and name and "/" not in name:
            own = own_attributes(attributes)
            artifact = own.get("artifact") if isinstance(own, dict) else None
            described[name] = artifact if isinstance(artifact, dict) else {}
    return described
