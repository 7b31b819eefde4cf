"""Every instruction set that this machine runs gives the same bits: each is forced in its own process."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from search_cases import COMBINATIONS, F32, OF_ROWS, draw, rounded
from search_oracle import Ask, Found, expected, same, search

SETS = actstore.build_info()["instruction_sets"].split()
SEEDS = range(2000, 2000 + len(OF_ROWS) * len(COMBINATIONS))
STORED: list[tuple[Any, str]] = [
    (codec, dtype) for codec in ("blosc", "raw") for dtype in ("bfloat16", "float16", "float32")
]


def forced(name: str, code: str, *arguments: object) -> str:
    """What a new process says that runs `code` with an instruction set."""
    environment = os.environ | {"ACTSTORE_INSTRUCTION_SET": name}
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def values(dtype: str) -> Any:
    """Any bits of the dtype but NaN, with a row in ten of usual values."""
    dtype = actstore.SiteSpec(1, 1, dtype).dtype
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 256, (90, 2, 37, np.dtype(dtype).itemsize), np.uint8)
    drawn = np.ascontiguousarray(bits).view(dtype)[..., 0]
    with np.errstate(all="ignore"):
        drawn[np.isnan(drawn)] = 0
    drawn[::10] = rounded(rng.normal(size=(9, 2, 37)), dtype)
    return drawn


def stored_ask() -> Ask:
    return Ask(np.random.default_rng(1).normal(size=(9, 2, 37)).astype(F32), 90, "cos")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for codec, dtype in STORED:
        spec = {"x": actstore.SiteSpec(2, 37, dtype, chunk_rows=16, shard_rows=64)}
        with actstore.create(folder / f"{codec}-{dtype}", spec, codec=codec) as writer:
            writer.append({"x": values(dtype)}, [90])
    return folder


FIND = """
import sys
import numpy as np
from test_instruction_sets import found_here
np.savez(sys.argv[1], *found_here(sys.argv[2]))
"""


def found_here(stores: str) -> list[Any]:
    """The bits that this process finds, in one list."""
    found: list[Found] = []
    for seed in SEEDS:
        case = draw(seed, 100_000)
        found.append(search(case.values, case.ask, 1 + seed % 2)[0])
    for codec, dtype in STORED:
        array = actstore.open(Path(stores) / f"{codec}-{dtype}")["x"].backend.native
        found.append(search(array, stored_ask(), 2)[0])
    return [array for one in found for array in one]


@pytest.mark.parametrize("name", SETS)
def test_scores(stores: Path, tmp_path: Path, name: str) -> None:
    """Of all kinds of values, in memory and stored."""
    forced(name, FIND, tmp_path / "found.npz", stores)
    with np.load(tmp_path / "found.npz") as arrays:
        found = list(arrays.values())
    wanted = [
        (case.what, expected(case.values, case.ask)[0]) for seed in SEEDS for case in [draw(seed, 100_000)]
    ]
    wanted += [(f"{codec} {dtype}", expected(values(dtype), stored_ask())[0]) for codec, dtype in STORED]
    for i, (what, of_case) in enumerate(wanted):
        same((found[3 * i], found[3 * i + 1], found[3 * i + 2]), of_case, f"{name}: {what}")


OTHERS = """
import hashlib
import numpy as np
import actstore
rng = np.random.default_rng(0)
rows = (rng.normal(size=(900, 2, 37)) * rng.uniform(0.1, 30, 37) + 4).astype(np.float32)
vectors = rng.normal(size=(40, 2, 37)).astype(np.float32)
mean, directions = rng.normal(size=(2, 37)), np.linalg.qr(rng.normal(size=(2, 37, 37)))[0]
w = actstore.Whitener()
w.set_fitted([0, 1], mean, list(directions), list(rng.uniform(0.1, 9, (2, 37))), 900, [0.0, 0.0], None)
offset = np.arange(0, 901, 30)
digest = hashlib.sha256()
for metric in ("dot", "cos", "l2"):
    for found in (
        actstore.maxsim(rows, offset, [vectors[:3], vectors[3:36]], 9, metric=metric),
        actstore.maxsim(rows, offset, [vectors[:20]], 9, metric=metric, transform=w),
        actstore.search(rows, vectors, 9, metric=metric, transform=w),
        actstore.search(rows, vectors[:2], 9, metric=metric, combine="max", transform=w),
    ):
        digest.update(found.scores.tobytes() + found.rows.tobytes())
    if metric != "dot":
        found = actstore.neighbors(rows, 3, metric=metric)
        digest.update(found.distances.tobytes() + found.rows.tobytes())
print(digest.hexdigest())
"""


def test_late_interaction_whitening_and_neighbors() -> None:
    """The same bits from every set; those of the scalar loops are the specification."""
    assert len({forced(name, OTHERS) for name in SETS}) == 1


@pytest.mark.parametrize("name", SETS)
def test_the_set_that_is_asked_for_is_used(name: str) -> None:
    code = "import actstore; print(actstore.build_info()['instruction_set'])"
    assert forced(name, code) == name


def test_the_best_is_used_by_default() -> None:
    code = "import actstore; print(actstore.build_info()['instruction_set'])"
    assert forced("", code) == SETS[0]
    assert SETS[-1] == "scalar"


FLUSHED = """
import torch
from test_instruction_sets import DENORMAL
from search_oracle import search
if torch.set_flush_denormal(True):
    assert not (DENORMAL.queries[0] * DENORMAL.queries[1]).any()
    for threads in (1, 3):
        print(search(DENORMAL.queries[:1], DENORMAL, threads)[0][0].tobytes().hex())
"""
DENORMAL = Ask(np.array([[[1e-42] * 8], [[1e30] * 8]], F32), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_callers_that_flush_denormals(name: str) -> None:
    """Whose threads take them for zero; ours do not inherit that."""
    pytest.importorskip("torch")
    wanted = expected(DENORMAL.queries[:1], DENORMAL)[0][0]
    assert wanted[1, 0] > 0
    found = forced(name, FLUSHED).split()
    if not found:
        pytest.skip("this processor does not flush denormals")
    assert found == [wanted.tobytes().hex()] * 2
