"""Numbers and types in words."""


def human_bytes(n: float) -> str:
    """Format a number of bytes with a binary unit: ``1536`` gives ``"1.5 KiB"``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(n) < 1024 or unit == "TiB":
            break
        n /= 1024
    return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: ``"1 query"``, ``"2 queries"``."""
    return f"{n} {noun}" if n == 1 else f"{n} {plural or noun + 's'}"


def type_name(value: object) -> str:
    """The type of `value` with its article: ``"an int"``; ``"None"`` for None."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
