"""``actstore bench``: the numbers are consistent and no files remain."""

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from actstore.base.machine import Limits, machine_limits
from actstore.cli import main
from actstore.cli.commands import bench


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, memory_path: Path) -> Path:
    """A benchmark of a few rows, in its own temporary folder."""
    monkeypatch.setattr(bench, "_QUICK_ROWS", bench._EXAMPLE)
    monkeypatch.setattr(bench, "_MIN_ROWS", bench._EXAMPLE)
    monkeypatch.setattr(bench, "_QUERIES", (1, 16))
    monkeypatch.setattr(bench, "_RUNS", 1)
    monkeypatch.setattr(bench, "machine_limits", lambda threads: Limits(1e10, 1e11))
    monkeypatch.setattr(tempfile, "tempdir", str(memory_path))
    return memory_path


def test_json(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick", "--json", "--threads", "1"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report: dict[str, Any] = json.loads(out)
    assert report["machine"]["read_bytes_per_second"] == 1e10
    assert (report["rows"], report["dim"], report["threads"]) == (128, 768, 1)
    what = [result["what"] for result in report["results"]]
    shared = ["scan: Summary", "pool: mean", "search: 1 query", "search: 16 queries"]
    assert what == [*shared, "read", *shared]
    for result in report["results"]:
        minimum = max(result["bytes"] / 1e10, result["flops"] / 1e11)
        assert result["share"] == pytest.approx(minimum / result["seconds"])
        assert result["limit"] == ("peak" if result["flops"] / 1e11 > result["bytes"] / 1e10 else "bandwidth")
    assert {result["limit"] for result in report["results"]} == {"bandwidth", "peak"}
    assert list(small.iterdir()) == []


def test_the_table(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--quick"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "10.0 GB/s" in out
    assert "100 GFLOP/s" in out
    assert max(map(len, out.splitlines())) <= 90
    assert out.count("% bandwidth") + out.count("% peak") == 9
    for word in ("float32 in memory", "bfloat16 compressed", "search: 16 queries"):
        assert out.count(word) == (2 if word.startswith("search") else 1)


def test_a_disk_that_is_too_small(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["bench", "--quick"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "1000 B free" in err
    assert "hint: TMPDIR=" in err
    assert list(small.iterdir()) == []


def test_rows_are_limited_by_disk_and_time(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_MIN_ROWS", 1)
    all_rows = bench._affordable_rows(1 << 12, str(small), Limits(1e10, 1e15))
    assert all_rows == 1 << 12
    assert bench._affordable_rows(1 << 12, str(small), Limits(1e10, 1e6)) < all_rows
    monkeypatch.setattr(bench.shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 768 * 300))
    assert bench._affordable_rows(1 << 12, str(small), Limits(1e10, 1e15)) == 256


@pytest.mark.slow
def test_the_limits_are_measured() -> None:
    limits = machine_limits(1)
    assert 1e8 < limits.read_bytes_per_second < 1e13
    assert 1e8 < limits.flops_per_second < 1e14
