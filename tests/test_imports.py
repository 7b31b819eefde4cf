"""``import actstore`` imports few modules. ``benches`` measures the time it takes."""

import json
import subprocess
import sys
import textwrap

import pytest
from children import LIMIT

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


OURS = {"actstore", "ml_dtypes", "numpy"}
MOST = 140
"""The most modules that it may import beyond those of numpy and ml_dtypes."""


def run(code: str) -> object:
    """The JSON that ``code`` prints in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """The modules that ``import actstore`` imports."""
    found = run("""
        import json, sys
        import numpy, ml_dtypes
        before = set(sys.modules)
        import actstore
        actstore.open  # Names are imported when they are first used.
        print(json.dumps(sorted(set(sys.modules) - before)))
    """)
    assert isinstance(found, list)
    assert "actstore.store" in found
    return found


def test_nothing_heavy_is_imported(imported: list[str]) -> None:
    """Even if it is installed."""
    assert [name for name in HEAVY if name in imported] == []


def test_no_third_party_modules_are_imported(imported: list[str]) -> None:
    """Only the standard library and the dependencies, including numpy's Cython runtime."""
    roots = {name.partition(".")[0] for name in imported}
    others = roots - set(sys.stdlib_module_names) - OURS
    assert {name for name in others if "cython" not in name} == set()


def test_few_modules_are_imported(imported: list[str]) -> None:
    assert len(imported) <= MOST, imported


def test_opening_and_reading_import_nothing_heavy(tmp_path: object) -> None:
    found = run(f"""
        import json, sys
        import numpy as np, ml_dtypes
        before = set(sys.modules)
        import actstore
        path = {str(tmp_path)!r} + "/x.act"
        with actstore.create(path, {{"r": actstore.SiteSpec(1, 4, "bfloat16")}}) as w:
            w.append({{"r": np.ones((3, 1, 4))}}, [3], cast=True, token_columns={{"id": np.arange(3)}})
        with actstore.open(path) as store:
            store["r"].read("float32"), store.tokens["id"], store.examples["id"], store.verify()
        new = set(sys.modules) - before
        print(json.dumps([name for name in {HEAVY!r} if name in new]))
    """)
    assert found == []
