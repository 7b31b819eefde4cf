"""Drawing what `actstore inspect` found: tables, and bars of characters, in so many columns."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .output import table

_UNICODE_LEVELS, _ASCII_LEVELS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_PARTS = " ▏▎▍▌▋▊▉█"
_STEP = 4.0
"""One level down is so many times fewer."""
_MOST_MAGNITUDES = 24
_TEXT_LINES = 3


class Picture:
    """Lines of text no wider than a terminal.

    Parameters
    ----------
    width : int
        Columns there are.
    unicode : bool
        Whether bars may be of block characters.
    """

    def __init__(self, width: int, unicode: bool) -> None:
        self.width = width
        self._unicode = unicode
        self._levels = _UNICODE_LEVELS if unicode else _ASCII_LEVELS
        self._line = "│" if unicode else "|"
        self._times = "\N{MULTIPLICATION SIGN}" if unicode else "x"
        self._more = "…" if unicode else "..."

    def lines(self, told: Mapping[str, Any], histogram: bool) -> Iterator[str]:
        """All of it."""
        yield str(told["path"])
        yield f"  {told['n_examples']:,} examples, {told['n_tokens']:,} tokens"
        for name, covers in told["unfinished"].items():
            yield f"  {name} covers {covers:,} of them: actstore pool {told['path']} --update"
        for site in told["sites"]:
            yield ""
            yield from self._site(site, histogram)
        if told["examples"]:
            yield ""
            yield "examples"
        for example in told["examples"]:
            yield from self._example(example)

    def _site(self, site: Mapping[str, Any], histogram: bool) -> Iterator[str]:
        n_rows, _, dim = site["shape"]
        recipe = site["recipe"]
        made = "" if recipe is None else f", {recipe['kind']} of {recipe['source']}"
        yield f"{site['name']}  {site['dtype']}, {n_rows:,} rows of dim {dim:,} on axis {site['axis']}{made}"
        layers = site["layers"]
        yield from self._moments(layers)
        for layer in layers:
            odd = [
                f"{layer[key]:,} {name}" for key, name in (("nan", "NaN"), ("inf", "infinite")) if layer[key]
            ]
            if odd:
                yield f"  !! layer {layer['layer']}: {' and '.join(odd)} of {layer['values']:,} values"
        if any(layer["largest"] for layer in layers):
            yield f"  largest dims, by root mean square ({self._times} that of the median dim)"
            yield from self._largest(layers)
        if not any(layer["values"] for layer in layers):
            return
        if histogram:
            for layer in layers:
                yield from self._magnitudes(layer)
        else:
            yield from self._sparklines(layers)

    def _moments(self, layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        rows = [["layer", "mean", "std", "norm", "min", "max", "NaN", "Inf", "zeros"]]
        for layer in layers:
            share = layer["zeros"] / layer["values"] if layer["values"] else 0.0
            rows.append(
                [
                    str(layer["layer"]),
                    *(short(layer[key]) for key in ("mean", "std", "norm", "min", "max")),
                    *(f"!!{layer[key]:,}" if layer[key] else "-" for key in ("nan", "inf")),
                    percent(share) if layer["zeros"] else "-",
                ]
            )
        lines = table(rows, left=0, gap=2)
        if max(map(len, lines)) + 2 > self.width:
            lines = table(rows, left=0, gap=1)
        yield from (f"  {line}" for line in lines)

    def _largest(self, layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        cells = [
            [
                str(layer["layer"]),
                *(
                    f"{found['dim']} {self._times}{short(found['times_median'])}"
                    for found in layer["largest"]
                ),
            ]
            for layer in layers
        ]
        n = max(map(len, cells))
        lines = [["layer", *([""] * (n - 1))], *(row + [""] * (n - len(row)) for row in cells)]
        while n > 2 and max(map(len, table(lines, left=0))) + 2 > self.width:
            n -= 1
            lines = [row[:n] for row in lines]
        yield from (f"  {line}" for line in table(lines, left=0)[1:])

    def _sparklines(self, layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
        """A line for each layer: negative values by magnitude, zeros, positive values."""
        label = max(5, *(len(str(layer["layer"])) for layer in layers))
        room = (self.width - 2 - label - 2 - 3) // 2
        found = [e for layer in layers for e in layer["histogram"]["exponents"]]
        high = max(found, default=0)
        low = max(min(found, default=0), high - room + 1)
        n = high - low + 1
        yield f"  values by magnitude, doubling outwards; one step up is {_STEP:.0f} times as many"
        for layer in layers:
            bins = {sign: _folded(layer["histogram"], sign, low, high) for sign in ("negative", "positive")}
            tiny = layer["histogram"]["tiny"]
            most = max(*bins["negative"], *bins["positive"], tiny)
            left = "".join(self._level(count, most) for count in reversed(bins["negative"]))
            right = "".join(self._level(count, most) for count in bins["positive"])
            middle = self._line + self._level(tiny, most) + self._line
            yield f"  {layer['layer']:>{label}}  {left}{middle}{right}".rstrip()
        ends = power(high + 1)
        inner = power(low)
        sides = f"-{ends}".ljust(n), ends.rjust(n)
        if n >= 2 * len(inner) + len(ends) + 4:
            sides = (
                f"-{ends}" + f"-{inner}".rjust(n - len(ends) - 1),
                inner + ends.rjust(n - len(inner)),
            )
        if n >= len(ends) + 1:
            yield f"  {'':>{label}}  {sides[0]} 0 {sides[1]}"

    def _level(self, count: int, most: int) -> str:
        """A character as high as a count, on a logarithmic scale."""
        if not count:
            return self._levels[0]
        return self._levels[max(1, 8 + math.floor(math.log(count / most, _STEP) + 0.5))]

    def _magnitudes(self, layer: Mapping[str, Any]) -> Iterator[str]:
        """A line for each power of two: how many values, and bars in proportion."""
        found, values = layer["histogram"], layer["values"]
        yield f"  layer {layer['layer']}: values by magnitude"
        exponents = found["exponents"]
        high = max(exponents, default=0)
        low = max(min(exponents, default=0), high - _MOST_MAGNITUDES + 1)
        minus, plus = (_folded(found, sign, low, high) for sign in ("negative", "positive"))
        most = max(*minus, *plus, found["tiny"], 1)
        room = max(4, (self.width - 2 - 9 - 2 * 10) // 2)
        yield f"  {'below':>9}  {'negative':<{room + 8}}  positive"
        for e in range(high, low - 1, -1) if exponents else ():
            a, b = minus[e - low], plus[e - low]
            bars = [f"{percent(x / values):>6}  {self._bar(x / most, room - 2)}" for x in (a, b)]
            yield f"  {power(e + 1):>9}  {bars[0]:<{room + 8}}  {bars[1]}".rstrip()
        if low > min(exponents, default=0):
            yield f"  {'':>9}  the last line holds all below {power(low + 1)}"
        if found["tiny"]:
            zero = f"{percent(found['tiny'] / values):>6}  {self._bar(found['tiny'] / most, room - 2)}"
            yield f"  {'0':>9}  {zero}".rstrip()

    def _bar(self, share: float, width: int) -> str:
        if share <= 0:
            return ""
        if not self._unicode:
            return "#" * max(1, round(share * width))
        eighths = max(1, round(share * width * 8))
        return "█" * (eighths // 8) + (_PARTS[eighths % 8] if eighths % 8 else "")

    def _example(self, example: Mapping[str, Any]) -> Iterator[str]:
        rows = "" if example["rows"] is None else f", {example['rows']:,} rows"
        name = "" if example["id"] == str(example["number"]) else f" {shown(example['id'])}"
        yield f"  {example['number']}{name}{rows}"
        text = example["text"]
        if text is None and example["tokens"]:
            text = "token ids " + " ".join(map(str, example["tokens"]))
        if text:
            most = None if "norms" in example else _TEXT_LINES
            yield from textwrap.wrap(
                shown(text),
                max(20, self.width),
                max_lines=most,
                placeholder=f" {self._more}",
                initial_indent="    ",
                subsequent_indent="    ",
            )
        for site, layers in example.get("norms", {}).items():
            yield f"    norms of the rows of {site}"
            yield from self._norms(layers)

    def _norms(self, layers: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
        """A line for each layer: rows from left to right, as high as their norms; several to a character."""
        label = max(map(len, layers), default=0)
        for name, norms in layers.items():
            finite = [x for x in norms if x is not None]
            least, most = min(finite, default=0.0), max(finite, default=0.0)
            room = max(10, self.width - 6 - label - 24)
            n = min(room, len(norms))
            cells = []
            for i in range(n):
                group = norms[i * len(norms) // n : (i + 1) * len(norms) // n]
                if any(x is None for x in group):
                    cells.append("!")
                else:
                    top = max(x for x in group if x is not None)
                    cells.append(self._levels[1 + round(7 * (top / most))] if most else self._levels[1])
            yield f"    {name:>{label}}  {''.join(cells)}  {short(least)} to {short(most)}"


def _folded(histogram: Mapping[str, Any], sign: str, low: int, high: int) -> list[int]:
    """Counts from exponent `low` to `high`, those below `low` in the first."""
    out = [0] * (high - low + 1)
    for e, count in zip(histogram["exponents"], histogram[sign], strict=True):
        out[max(e, low) - low] += count
    return out


def short(value: float | str | None) -> str:
    """A number in few characters."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace("Infinity", "inf")
    if value and not 1e-4 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(share: float) -> str:
    """A share; what is there is never 0."""
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def power(e: int) -> str:
    """``2**e``, in digits where these are few."""
    return f"{2.0**e:g}" if -4 <= e <= 16 else f"2^{e}"


def levels(shares: Sequence[float], unicode: bool) -> str:
    """A character for each share, as high as that is; for 0 a space.

    Examples
    --------
    >>> levels([0, 0.1, 0.5, 1], unicode=True)
    ' ▁▄█'
    """
    steps = _UNICODE_LEVELS if unicode else _ASCII_LEVELS
    return "".join(steps[max(1, round(8 * share))] if share > 0 else steps[0] for share in shares)


def shown(text: str) -> str:
    """Text on one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
