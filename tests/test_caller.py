"""What a call brings along: its thread's floating-point mode, its arrays, files that others may change."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore import FormatError, InvalidInputError, _native
from builders import Corpus
from foreign import CRC, LITTLE, metadata
from limited import Tell, anonymous_memory, in_child

N = 4096
CRC_INDEX = {"shard": [N, 2, 64], "index_codecs": [LITTLE, CRC]}


def flushes() -> bool:
    tiny = np.full(4, 1e-40, np.float32)
    return bool((tiny * np.float32(0.5) == 0).all())


def flush_denormals(work: Callable[[], Any]) -> Any:
    """With this thread's denormals flushed to zero, as some programs and `torch.set_flush_denormal` do."""
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush denormals")
    try:
        assert flushes()  # Else this shows nothing.
        result = work()
        assert flushes(), "the caller's mode is its own"
        return result
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_denormals_are_kept_however_few_rows_are_read(memory_path: Path, dtype: str) -> None:
    smallest = {"float32": 1e-40, "float16": 6e-8, "bfloat16": 1e-40}[dtype]
    rows = np.full((N, 1, 64), smallest, np.float32)
    for codec in ("blosc", "raw"):
        with actstore.create(
            memory_path / codec, {"resid": actstore.SiteSpec(1, 64, dtype)}, codec=codec
        ) as w:
            w.append({"resid": rows}, [N], cast=True)
        site = actstore.open(memory_path / codec)["resid"]
        for to in ("float32", "float64"):
            want = site.read(to)
            assert (want.astype(np.float64) != 0).all()

            def read(site: actstore.Site = site, to: str = to) -> list[Any]:
                views = (site.select(rows=slice(0, 1)), site.select(rows=[5, 3, 5]), site)
                return [view.read(to) for view in views]

            for got in flush_denormals(read):
                assert (got == want[: len(got)]).all(), (codec, to, len(got))


def test_a_reducer_that_flushes_denormals_changes_no_other(memory_path: Path) -> None:
    torch = pytest.importorskip("torch")
    rows = np.full((N, 1, 64), 1e-40, np.float32)
    with actstore.create(
        memory_path / "x", {"resid": actstore.SiteSpec(1, 64, "float32", chunk_rows=64)}
    ) as w:
        w.append({"resid": rows}, [N])
    site = actstore.open(memory_path / "x")["resid"]

    class Flush(actstore.Reducer):
        def new(self) -> int:
            return 0

        def update(self, state: int, block: actstore.Block) -> int:
            torch.set_flush_denormal(True)
            return state + len(block.values)

        def merge(self, state: int, other: int) -> int:
            return state + other

    want = site.scan([actstore.Summary()], threads=1)[0]
    got = site.scan([Flush(), actstore.Summary()], threads=1)[1]
    assert (got.mean == want.mean).all()
    assert (got.mean != 0).all()
    again = site.scan([actstore.Summary()], threads=1)[0]
    assert (again.mean == want.mean).all()


# ---- A pool whose threads run code of the caller's ----


def ask_for_ids_within_a_scan(tell: Tell, path: str) -> int:
    """One thread looks up ids, which it has to read; all threads of its pool are reducers that ask too."""
    store = actstore.open(path)
    reading, all_in = threading.Event(), threading.Barrier(3)

    class Asks(actstore.Reducer):
        def new(self) -> int:
            return 0

        def update(self, state: int, block: actstore.Block) -> int:
            if not reading.is_set():
                all_in.wait()
                reading.wait()
                time.sleep(0.1)
            store["resid"].example("1")
            return state + len(block.values)

        def merge(self, state: int, other: int) -> int:
            return state + other

        def finish(self, state: int) -> int:
            return state

    def look_up() -> None:
        all_in.wait()
        reading.set()
        store["resid"].example("2")

    thread = threading.Thread(target=look_up)
    thread.start()
    tell("the scan")
    [found] = store["resid"].scan([Asks()], threads=0)
    tell("the look-up")
    thread.join()
    return int(found)


def test_a_reducer_that_asks_for_what_another_thread_reads(memory_path: Path) -> None:
    n = 300_000  # Ids of more than a mebibyte, which are read in the pool.
    with actstore.create(
        memory_path / "x", {"resid": actstore.SiteSpec(1, 2, "float32", chunk_rows=50_000)}
    ) as w:
        w.append({"resid": np.ones((n, 1, 2), np.float32)}, np.ones(n, int), [str(i) for i in range(n)])
    if len(os.sched_getaffinity(0)) != 2:
        pytest.skip("the scan's threads are counted: two")
    assert in_child(ask_for_ids_within_a_scan, str(memory_path / "x"), seconds=90) == n


# ---- Outputs over what is read ----


def test_an_output_over_the_list_of_rows_is_refused(memory_path: Path) -> None:
    store = actstore.open(Corpus().build(memory_path / "x", 9))
    array = _native.Reader(str(memory_path / "x")).array("tokens/id")
    rows = np.arange(store.n_tokens, dtype=np.int64)
    for n, out in ((len(rows), rows), (len(rows) - 1, rows[1:])):
        with pytest.raises(InvalidInputError, match="shares memory"):
            array.read(rows[:n], None, out)
    assert (rows == np.arange(len(rows))).all()
    apart = np.empty(2 * len(rows), np.int64)
    apart[: len(rows)] = rows
    array.read(apart[: len(rows)], None, apart[len(rows) :])
    assert (apart[len(rows) :] == store.tokens["id"]).all()

    # A pooled output over the rows that are pooled.
    whole = np.zeros((8, 1, 2), np.float32)
    listed = whole.view(np.int64).reshape(-1)
    what = {"kind": "mean", "offset": np.array([0, 8]), "out": whole[:1]}
    with pytest.raises(InvalidInputError, match="shares memory"):
        _native.scan(np.ones((8, 1, 2), np.float32), listed, None, [("pool", what)])


def test_elements_that_are_not_computed_on_are_refused(memory_path: Path) -> None:
    Corpus().build(memory_path / "x", 9)
    array = _native.Reader(str(memory_path / "x")).array("tokens/id")
    scoring = {
        "metric": "dot",
        "combine": "sum",
        "weights": None,
        "distances": False,
        "min_score": None,
        "skip_nan": False,
        "numbers": None,
        "map": None,
    }
    for source in (array, np.ones((3, 1, 1), np.int64)):
        with pytest.raises(InvalidInputError, match="float types are computed on"):
            _native.scan(source, (0, 3), None, [("summary", {})])
        with pytest.raises(InvalidInputError, match="float types are computed on"):
            _native.search(source, (0, 3), None, np.ones((1, 1, 1), np.float32), 1, scoring)


# ---- Files that others may change ----


def foreign_raw(folder: Path) -> tuple[Path, Any]:
    """A raw sharded array that looks like ours but for the records."""
    import zarr

    rows = np.arange(N * 2 * 64, dtype=np.float32).reshape(N, 2, 64)
    node = metadata([N, 2, 64], "float32", [256, 1, 64], [LITTLE, CRC], **CRC_INDEX)
    group = folder / "x.zarr"
    (group / "resid").mkdir(parents=True)
    (group / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    (group / "resid/zarr.json").write_text(json.dumps(node))
    array = zarr.open_array(group / "resid", mode="r+")
    array[:] = rows
    return group, rows


def read_a_file_that_is_cut(tell: Tell, group: str) -> str:
    site = actstore.open(group)["resid"]
    assert site[N - 1, 1][63] == N * 2 * 64 - 1
    files = [one for one in (Path(group) / "resid/c").rglob("*") if one.is_file()]
    assert len(files) == 1
    os.truncate(files[0], 5000)
    tell("the read of a file that was cut short")
    try:
        site.read()
    except FormatError as error:
        return error.kind
    return "no error"


def test_a_foreign_raw_shard_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    """A mapped page past the end of its file would end the process."""
    group, rows = foreign_raw(tmp_path)
    site = actstore.open(group)["resid"]
    assert (site.read() == rows).all()
    picked = np.random.default_rng(0).integers(0, N, 300)
    assert (site[picked, 1] == rows[picked, 1]).all()
    assert in_child(read_a_file_that_is_cut, str(group)) == "truncated"


# ---- Memory ----


def too_much(tell: Tell) -> list[str]:
    wide = np.ones((3, 1, 1 << 14), np.float32)  # 2 GiB of products, more than there is room for.
    found = []
    what = {"kind": "float64", "labels": None, "groups": 1, "layers": [0], "numbers": None}
    works: list[tuple[str, Callable[[], Any]]] = [
        ("moments", lambda: actstore.moments(wide)),
        ("cross-moments", lambda: actstore.cross_moments(wide, wide)),
        ("moments, natively", lambda: _native.scan(wide, (0, 3), None, [("moments", what)])),
    ]
    for name, work in works:
        tell(name)
        try:
            work()
        except InvalidInputError as error:
            found.append(str(error))
    return found


def test_moments_that_no_memory_holds_are_an_error() -> None:
    found = in_child(too_much, room=1 << 30)
    assert len(found) == 3
    assert all("memory" in message for message in found), found


def limits_of(tell: Tell, threads: int) -> int:
    del tell
    before = anonymous_memory()
    _native.machine_limits(threads)
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:"))
    return peak - before


@pytest.mark.slow
def test_limits_of_many_threads_fit_memory() -> None:
    assert in_child(limits_of, 32, room=16 << 30) < 1 << 30
