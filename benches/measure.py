"""How figures are taken, compared with their targets, and printed.

A figure is a set of cases that do the same work: ours, the peers, the limits. They run in rounds,
each case once a round and in another order each time, so that a slow moment of the machine falls
on all of them. What is reported is the median over the rounds. Speeds are relative to ours:
2.00x means that actstore takes half as long.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "actstore"
RATES = {"GB/s": 1e9, "GFLOP/s": 1e9, "Mrow/s": 1e6}


@dataclass(frozen=True)
class Case:
    """One way of doing the work; `before` clears its place and is not timed."""

    run: Callable[[], object]
    before: Callable[[], object] | None = None


@dataclass
class Line:
    """One line of the report, and of the JSON file."""

    figure: str
    data: str
    name: str
    value: float
    unit: str
    ratio: float | None = None
    target: str = ""
    verdict: str = ""
    samples: list[float] = field(default_factory=list)

    def judge(self, ratio: float, goal: float) -> None:
        """How many times as fast as what it stands beside it is, and how many times it is to be."""
        self.ratio, self.target = ratio, f">= {goal:.2f}x"
        self.verdict = "pass" if ratio >= goal else "short"


def interleave(cases: Mapping[str, Case], rounds: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each case in each round, after one round that doesn't count."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    gc.collect()
    gc.disable()
    for number in range(-1 if warm else 0, rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            case = cases[name]
            if case.before is not None:
                case.before()
            start = time.perf_counter()
            result = case.run()
            elapsed = time.perf_counter() - start
            del result  # freeing memory is not timed
            if number >= 0:
                samples[name].append(elapsed)
    gc.enable()
    return samples


def fastest(cases: Mapping[str, Case], rounds: int = 3) -> str:
    """The name of the case that was fastest once, of several ways to do the same."""
    samples = interleave(cases, rounds)
    return min(samples, key=lambda name: min(samples[name]))


@dataclass
class Report:
    """The lines so far; each figure is printed as soon as it is known."""

    lines: list[Line] = field(default_factory=list)

    def timed(
        self,
        figure: str,
        data: str,
        samples: Mapping[str, list[float]],
        amount: float | None = None,
        targets: Mapping[str, float] | None = None,
        unit: str = "GB/s",
    ) -> None:
        """A figure of times.

        Parameters
        ----------
        figure, data
            What was measured, and on which data set.
        samples
            Seconds of each case; the first is ours unless the figure is of the machine alone.
        amount
            What the work amounts to (bytes, operations, rows), the same for all cases.
        targets
            Case -> how many times its speed ours is to have.
        unit
            One of `RATES`: how the amount over the time is shown.
        """
        times = {name: statistics.median(taken) for name, taken in samples.items()}
        lines = []
        for name, seconds in times.items():
            line = Line(figure, data, name, seconds, "s", samples=list(samples[name]))
            if OURS in times and name != OURS:
                line.ratio = seconds / times[OURS]
            goal = (targets or {}).get(name)
            if goal is not None and line.ratio is not None:
                line.judge(line.ratio, goal)
            lines.append(line)
        self._print(figure, data, lines, amount, unit)

    def values(self, figure: str, data: str, lines: list[Line]) -> None:
        """A figure that is no time: each line says its own unit, target and verdict."""
        self._print(figure, data, lines)

    def summary(self) -> str:
        """Every line that has a target, in one table."""
        judged = [line for line in self.lines if line.verdict]
        rows = [("figure", "data", "beside", "is", "target", "")]
        for line in judged:
            measured = f"{line.ratio:.2f}x" if line.ratio is not None else _amount(line.value, line.unit)
            rows.append((line.figure, line.data, line.name, measured, line.target, line.verdict))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        table = "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        passed = sum(line.verdict == "pass" for line in judged)
        return f"{table}\n\n{passed} of {len(judged)} targets met"

    def as_json(self) -> list[dict[str, Any]]:
        """The lines, with every sample."""
        return [asdict(line) for line in self.lines]

    def _print(
        self, figure: str, data: str, lines: list[Line], amount: float | None = None, unit: str = "GB/s"
    ) -> None:
        self.lines += lines
        print(f"\n{figure}" + (f" · {data}" if data else ""))
        width = max(len(line.name) for line in lines)
        for line in lines:
            text = f"  {line.name:<{width}}  {_amount(line.value, line.unit):>10}"
            text += f"  {amount / line.value / RATES[unit]:7.2f} {unit}" if amount else ""
            text += f"  {line.ratio:6.2f}x" if line.ratio is not None else ""
            text += f"  target {line.target}  {line.verdict}" if line.target else ""
            print(text, flush=True)


def _amount(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.3f}{unit}" if unit == "x" else f"{value:.0f} {unit}"
