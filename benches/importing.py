"""How long ``import actstore`` takes, in a fresh interpreter, beyond numpy and ml_dtypes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from .measure import OURS, Line, Report

MOST = 0.150
"""Seconds that it may take."""

CODE = """
import time
import numpy, ml_dtypes
start = time.thread_time()
import actstore
print(time.thread_time() - start)
"""
"""The time is this thread's own: the threads that numpy starts are not the import's."""


def importing(report: Report, folder: Path, rounds: int) -> None:
    """The first import compiles the modules, as an installer does, and is not counted."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def once() -> float:
        command = [sys.executable, "-c", CODE]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return float(done.stdout)

    once()
    if not any((folder / "bytecode").rglob("store.*.pyc")):
        raise AssertionError("no bytecode was kept: compiling it would be timed")
    samples = [once() for _ in range(rounds)]
    line = Line("import actstore", "", OURS, statistics.median(samples), "s", samples=samples)
    line.target = f"<= {1000 * MOST:.0f} ms"
    line.verdict = "pass" if line.value <= MOST else "short"
    report.values("import actstore", "", [line])
