"""Numbers, layer labels and text as short strings."""

from collections.abc import Sequence

UNICODE_LEVELS, ASCII_LEVELS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
"""Nine characters of increasing height: index 0 is empty, 8 is full."""


def short_number(value: float | str | None) -> str:
    """A number in a few characters; None is ``"-"``.

    Examples
    --------
    >>> [short_number(x) for x in (12345.6, 1e-9, "-Infinity", None)]
    ['12346', '1.0e-9', '-inf', '-']
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace("Infinity", "inf")
    if value and not 1e-4 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(fraction: float) -> str:
    """A fraction as a percentage; one above zero is never shown as zero."""
    return "<0.1%" if 0 < fraction < 0.0005 else f"{fraction:.1%}"


def power_of_two(e: int) -> str:
    """``2**e``, written out if it has few digits."""
    return f"{2.0**e:g}" if -4 <= e <= 16 else f"2^{e}"


def level_chars(unicode: bool) -> str:
    """The characters to draw heights with; see `UNICODE_LEVELS`."""
    return UNICODE_LEVELS if unicode else ASCII_LEVELS


def sparkline(fractions: Sequence[float], unicode: bool) -> str:
    """One character per fraction, as high as the fraction; 0 is a space.

    Examples
    --------
    >>> sparkline([0, 0.1, 0.5, 1], unicode=True)
    ' ▁▄█'
    """
    chars = level_chars(unicode)
    return "".join(chars[max(1, round(8 * x))] if x > 0 else chars[0] for x in fractions)


def label_ranges(labels: Sequence[int]) -> str:
    """Layer labels, with each run of three or more as a range.

    Examples
    --------
    >>> label_ranges([0, 1, 2, 5, 6])
    '0-2, 5, 6'
    """
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def one_line(text: str) -> str:
    """Text on one line, without control characters that a terminal would act on."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shorten(text: str, width: int, unicode: bool) -> str:
    """Text of at most `width` characters; an ellipsis marks the cut."""
    if len(text) <= width:
        return text
    ellipsis = "…" if unicode else "..."
    return text[: max(0, width - len(ellipsis))].rstrip() + ellipsis
