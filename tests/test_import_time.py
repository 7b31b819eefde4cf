"""``import actstore`` is light: what it pulls in, and how long that takes."""

import json
import os
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

HEAVY = [
    "asyncio",
    "concurrent.futures",
    "importlib.metadata",
    "matplotlib",
    "multiprocessing",
    "pandas",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorstore",
    "torch",
    "tqdm",
    "transformers",
    "zarr",
]


def run(code: str, bytecode: Path | None = None) -> object:
    """What ``code`` prints in an interpreter of its own, which keeps its bytecode in the folder given."""
    environment = dict(os.environ)
    if bytecode is not None:
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        environment["PYTHONPYCACHEPREFIX"] = str(bytecode)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


def test_what_is_imported() -> None:
    """Nothing heavy, not even where it is installed, and of the standard library only what is used."""
    found = run(f"""
        import json, sys
        import numpy, ml_dtypes
        before = set(sys.modules)
        import actstore
        new = sorted(set(sys.modules) - before)
        print(json.dumps([name for name in {HEAVY!r} if name in new]))
    """)
    assert found == []


def test_opening_and_reading_import_nothing_heavy(tmp_path: object) -> None:
    found = run(f"""
        import json, sys
        import numpy as np, ml_dtypes
        before = set(sys.modules)
        import actstore
        path = {str(tmp_path)!r} + "/x.act"
        with actstore.create(path, {{"r": actstore.SiteSpec(1, 4, "bfloat16")}}) as w:
            w.append({{"r": np.ones((3, 1, 4))}}, [3], cast=True, tokens=np.arange(3))
        with actstore.open(path) as store:
            store["r"].read("float32"), store.tokens["id"], store.examples["id"], store.verify()
        new = set(sys.modules) - before
        print(json.dumps([name for name in {HEAVY!r} if name in new]))
    """)
    assert found == []


@pytest.mark.slow
def test_how_long_it_takes(tmp_path: Path) -> None:
    """Under 150 ms beyond numpy and ml_dtypes, once Python has compiled it, as an installer does.

    The time is this thread's own: the threads that numpy starts are not the import's.
    """
    code = """
        import json, time
        import numpy, ml_dtypes
        start = time.thread_time()
        import actstore
        print(json.dumps(time.thread_time() - start))
    """
    run(code, bytecode=tmp_path)
    assert any(tmp_path.rglob("store.*.pyc")), "no bytecode was kept: compiling it would be timed"
    times = [run(code, bytecode=tmp_path) for _ in range(7)]
    assert all(isinstance(seconds, float) for seconds in times)
    assert statistics.median(times) < 0.150  # type: ignore[type-var]
