"""A snapshot of public names, parameters and defaults: a change of the interface is made on purpose.

``python tests/test_signatures.py --write`` writes the snapshot anew.
"""

import inspect
import sys
from pathlib import Path

import actstore

SNAPSHOT = Path(__file__).parent / "signatures.txt"


def signature(name: str, function: object) -> str:
    try:
        whole = inspect.signature(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in whole.parameters.values()]
    return name + str(inspect.Signature(plain))


def members(name: str, kind: type) -> list[str]:
    """The public methods and properties of a class."""
    lines = [signature(name, kind) if "__init__" in vars(kind) else name]
    for member, value in sorted(inspect.getmembers(kind)):
        if member.startswith("_"):
            continue
        if callable(value) and str(getattr(value, "__module__", "")).startswith("actstore"):
            lines.append("  " + signature(f"{name}.{member}", value))
        elif isinstance(inspect.getattr_static(kind, member), property):
            lines.append(f"  {name}.{member}")
    return lines


def public() -> str:
    lines: list[str] = []
    for name in actstore.__all__:
        value = getattr(actstore, name)
        lines += members(name, value) if isinstance(value, type) else [signature(name, value)]
    return "\n".join(lines) + "\n"


def test_signatures() -> None:
    assert public() == SNAPSHOT.read_text(), "if that is intended: python tests/test_signatures.py --write"


def test_all_names_are_there() -> None:
    assert sorted(actstore.__all__) == actstore.__all__
    assert set(actstore.__all__) <= set(dir(actstore))
    for name in actstore.__all__:
        assert getattr(actstore, name) is getattr(actstore, name)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    SNAPSHOT.write_text(public())
