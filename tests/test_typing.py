"""The types that users see: a consumer of the package, checked by mypy from outside."""

import os
import subprocess
import sys
from pathlib import Path

import actstore
import pytest

HERE = Path(__file__).parent


def test_a_consumer(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    package = Path(actstore.__file__).parent
    assert (package / "py.typed").exists()
    command = [
        sys.executable, "-m", "mypy", "--strict", "--config-file", "",
        "--cache-dir", str(tmp_path), str(HERE / "typing/consumer.py"),
    ]  # fmt: skip
    environment = os.environ | {"MYPYPATH": str(package.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
