"""The report of `actstore inspect` as text: tables, histograms and sparklines."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..terminal import table
from .formatting import level_chars, one_line, percent, power_of_two, short_number

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVEL_RATIO = 4.0
"""Histograms have a logarithmic scale: a bar one level higher stands for this many times the count."""
_MAX_BINS = 24
_MAX_TEXT_LINES = 3


class InspectCharts:
    """Renders the report as lines that fit the terminal.

    Parameters
    ----------
    width : int
        Columns of the terminal.
    unicode : bool
        Whether to draw with block characters; otherwise with ASCII.
    """

    def __init__(self, width: int, unicode: bool) -> None:
        self.width = width
        self._unicode = unicode
        self._levels = level_chars(unicode)
        self._bar_line = "│" if unicode else "|"
        self._times = "\N{MULTIPLICATION SIGN}" if unicode else "x"
        self._ellipsis = "…" if unicode else "..."

    def lines(self, report: Mapping[str, Any], histogram: bool) -> Iterator[str]:
        """The lines of the whole report.

        Parameters
        ----------
        report : dict
            The report that ``actstore inspect --json`` prints.
        histogram : bool
            Whether to draw full histograms instead of sparklines.
        """
        yield str(report["path"])
        yield f"  {report['n_examples']:,} examples, {report['n_tokens']:,} tokens"
        for name, covers in report["unfinished"].items():
            yield f"  {name} covers only {covers:,} examples: run actstore pool {report['path']} --update"
        for site in report["sites"]:
            yield ""
            yield from self._site(site, histogram)
        if report["examples"]:
            yield ""
            yield "examples"
        for example in report["examples"]:
            yield from self._example(example)

    def _site(self, site: Mapping[str, Any], histogram: bool) -> Iterator[str]:
        n_rows, _, dim = site["shape"]
        recipe = site["recipe"]
        source = "" if recipe is None else f", {recipe['kind']} of {recipe['source']}"
        rows = f"{n_rows:,} rows of dim {dim:,} on axis {site['axis']}"
        yield f"{site['name']}  {site['dtype']}, {rows}{source}"
        layers = site["layers"]
        yield from self._moments(layers)
        for layer in layers:
            nonfinite = [
                f"{layer[key]:,} {name}" for key, name in (("nan", "NaN"), ("inf", "infinite")) if layer[key]
            ]
            if nonfinite:
                yield f"  !! layer {layer['layer']}: {' and '.join(nonfinite)} of {layer['values']:,} values"
        if any(layer["largest"] for layer in layers):
            yield f"  largest dims by root mean square ({self._times}N: N times the median dim)"
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
            zeros = layer["zeros"] / layer["values"] if layer["values"] else 0.0
            rows.append(
                [
                    str(layer["layer"]),
                    *(short_number(layer[key]) for key in ("mean", "std", "norm", "min", "max")),
                    *(f"!!{layer[key]:,}" if layer[key] else "-" for key in ("nan", "inf")),
                    percent(zeros) if layer["zeros"] else "-",
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
                    f"{largest['dim']} {self._times}{short_number(largest['times_median'])}"
                    for largest in layer["largest"]
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
        """One line per layer: counts of negative values by magnitude, of zeros, of positive values."""
        label = max(5, *(len(str(layer["layer"])) for layer in layers))
        room = (self.width - 2 - label - 2 - 3) // 2
        exponents = [e for layer in layers for e in layer["histogram"]["exponents"]]
        high = max(exponents, default=0)
        low = max(min(exponents, default=0), high - room + 1)
        n = high - low + 1
        yield f"  histograms: bins double away from zero; one level up is {_LEVEL_RATIO:.0f} times the count"
        for layer in layers:
            bins = {
                sign: _clipped_counts(layer["histogram"], sign, low, high)
                for sign in ("negative", "positive")
            }
            tiny = layer["histogram"]["tiny"]
            peak = max(*bins["negative"], *bins["positive"], tiny)
            left = "".join(self._level(count, peak) for count in reversed(bins["negative"]))
            right = "".join(self._level(count, peak) for count in bins["positive"])
            middle = self._bar_line + self._level(tiny, peak) + self._bar_line
            yield f"  {layer['layer']:>{label}}  {left}{middle}{right}".rstrip()
        high_edge = power_of_two(high + 1)
        low_edge = power_of_two(low)
        sides = f"-{high_edge}".ljust(n), high_edge.rjust(n)
        if n >= 2 * len(low_edge) + len(high_edge) + 4:
            sides = (
                f"-{high_edge}" + f"-{low_edge}".rjust(n - len(high_edge) - 1),
                low_edge + high_edge.rjust(n - len(low_edge)),
            )
        if n >= len(high_edge) + 1:
            yield f"  {'':>{label}}  {sides[0]} 0 {sides[1]}"

    def _level(self, count: int, peak: int) -> str:
        """The character for a count, on a logarithmic scale whose top is `peak`."""
        if not count:
            return self._levels[0]
        return self._levels[max(1, 8 + math.floor(math.log(count / peak, _LEVEL_RATIO) + 0.5))]

    def _magnitudes(self, layer: Mapping[str, Any]) -> Iterator[str]:
        """One line per power of two: the percentages of negative and positive values, with bars."""
        histogram, values = layer["histogram"], layer["values"]
        yield f"  layer {layer['layer']}: values by magnitude"
        exponents = histogram["exponents"]
        high = max(exponents, default=0)
        low = max(min(exponents, default=0), high - _MAX_BINS + 1)
        negative, positive = (
            _clipped_counts(histogram, sign, low, high) for sign in ("negative", "positive")
        )
        peak = max(*negative, *positive, histogram["tiny"], 1)
        room = max(4, (self.width - 2 - 9 - 2 * 10) // 2)
        yield f"  {'below':>9}  {'negative':<{room + 8}}  positive"
        for e in range(high, low - 1, -1) if exponents else ():
            a, b = negative[e - low], positive[e - low]
            bars = [f"{percent(x / values):>6}  {self._bar(x / peak, room - 2)}" for x in (a, b)]
            yield f"  {power_of_two(e + 1):>9}  {bars[0]:<{room + 8}}  {bars[1]}".rstrip()
        if low > min(exponents, default=0):
            yield f"  {'':>9}  the last line includes everything below {power_of_two(low + 1)}"
        if histogram["tiny"]:
            bar = self._bar(histogram["tiny"] / peak, room - 2)
            zero = f"{percent(histogram['tiny'] / values):>6}  {bar}"
            yield f"  {'0':>9}  {zero}".rstrip()

    def _bar(self, fraction: float, width: int) -> str:
        if fraction <= 0:
            return ""
        if not self._unicode:
            return "#" * max(1, round(fraction * width))
        eighths = max(1, round(fraction * width * 8))
        return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")

    def _example(self, example: Mapping[str, Any]) -> Iterator[str]:
        rows = "" if example["rows"] is None else f", {example['rows']:,} rows"
        name = "" if example["id"] == str(example["number"]) else f" {one_line(example['id'])}"
        yield f"  {example['number']}{name}{rows}"
        text = example["text"]
        if text is None and example["tokens"]:
            text = "token ids " + " ".join(map(str, example["tokens"]))
        if text:
            max_lines = None if "norms" in example else _MAX_TEXT_LINES
            yield from textwrap.wrap(
                one_line(text),
                max(20, self.width),
                max_lines=max_lines,
                placeholder=f" {self._ellipsis}",
                initial_indent="    ",
                subsequent_indent="    ",
            )
        for site, layers in example.get("norms", {}).items():
            yield f"    norms of the rows of {site}"
            yield from self._norms(layers)

    def _norms(self, layers: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
        """One sparkline per layer over the example's rows; a character is the maximum of adjacent rows."""
        label = max(map(len, layers), default=0)
        for name, norms in layers.items():
            finite = [x for x in norms if x is not None]
            lowest, highest = min(finite, default=0.0), max(finite, default=0.0)
            room = max(10, self.width - 6 - label - 24)
            n = min(room, len(norms))
            cells = []
            for i in range(n):
                group = norms[i * len(norms) // n : (i + 1) * len(norms) // n]
                if any(x is None for x in group):
                    cells.append("!")
                else:
                    top = max(x for x in group if x is not None)
                    cells.append(self._levels[1 + round(7 * (top / highest))] if highest else self._levels[1])
            yield f"    {name:>{label}}  {''.join(cells)}  {short_number(lowest)} to {short_number(highest)}"


def _clipped_counts(histogram: Mapping[str, Any], sign: str, low: int, high: int) -> list[int]:
    """Counts for exponents `low` to `high`; those below `low` are added to the first."""
    out = [0] * (high - low + 1)
    for e, count in zip(histogram["exponents"], histogram[sign], strict=True):
        out[max(e, low) - low] += count
    return out
