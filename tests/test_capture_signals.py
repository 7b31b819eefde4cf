"""SIGINT and SIGTERM during a capture: what is complete is committed, then they do what they always do."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import pytest

pytest.importorskip("transformers")

from capture_cases import assert_beginning, assert_same, bert, contents, of_text, texts
from capture_nursery import INTERRUPTED, nursery

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked")

NEVER = 1e9
"""Between commits by the clock: whatever is there was committed because of the signal."""
CASE: dict[str, Any] = {"case": "tokens", "n": 150, "commit_seconds": NEVER}


@pytest.fixture(scope="module")
def whole(memory_folder: Path) -> Path:
    """The same capture, never interrupted."""
    path = memory_folder / "signals-whole.act"
    nursery().run("slowly", path, **CASE)
    return path


def finish(path: Path, whole: Path) -> None:
    """Resumes what was interrupted and compares it."""
    nursery().run("slowly", path, **CASE)
    assert_same(path, whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signals_at_random(memory_path: Path, whole: Path, number: int, status: int) -> None:
    """Again and again until nothing is left; each time some more is committed."""
    path, rng = memory_path / "x.act", random.Random(number)
    found = n_fruitful = 0
    for _ in range(4):
        child = nursery().start("slowly", path, pause=0.02, **CASE)
        child.wait_for_ticks(rng.randrange(1, 12))
        time.sleep(rng.uniform(0, 0.01))
        child.send(number)
        assert child.wait() == status, child.said
        now = assert_beginning(path, whole)
        assert now >= found
        n_fruitful += now > found
        found = now
    assert n_fruitful >= 2
    finish(path, whole)


def test_a_signal_ends_soon(memory_path: Path) -> None:
    """The batch under way is ended, not the window."""
    more = CASE | {"batch_tokens": 64, "window": 1000}
    n_batches = nursery().run("slowly", memory_path / "whole.act", **more).n_ticks
    child = nursery().start("slowly", memory_path / "x.act", **more, pause=0.05)
    child.wait_for_ticks(5)
    child.send(signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
    assert child.n_ticks < n_batches / 2


def test_a_second_ctrl_c_is_at_once(memory_path: Path, whole: Path) -> None:
    path = memory_path / "x.act"
    nursery().run("slowly", path, **CASE | {"texts": _first(40)})
    child = nursery().start("stuck", path, **CASE)
    child.wait_for_ticks(1)
    child.send(signal.SIGINT)
    assert child.wait_for_ticks(2), "the first one did not wait for the batch"
    child.send(signal.SIGINT)
    assert child.wait() == INTERRUPTED
    assert child.n_ticks == 2
    assert assert_beginning(path, whole) == 40
    finish(path, whole)


def _first(n: int) -> list[Any]:
    from capture_cases import with_columns

    return with_columns(CASE["n"])[:n]


@pytest.mark.parametrize("how", ["here", "kill", "raise"])
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_signals_from_within(memory_path: Path, whole: Path, how: str, number: int, status: int) -> None:
    """From the main thread or from another, while a batch is run."""
    path = memory_path / "x.act"
    child = nursery().start("signaled", path, how=how, number=number, at=7, **CASE)
    assert child.wait() == status, child.said
    assert child.n_ticks == 7
    assert 0 < assert_beginning(path, whole) < CASE["n"]
    finish(path, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_another_thread_writes(memory_path: Path, whole: Path, number: int) -> None:
    path = memory_path / "x.act"
    child = nursery().start("signaled", path, how="here", number=number, at=9, overlapped=True, **CASE)
    assert child.wait() == (INTERRUPTED if number == signal.SIGINT else -number), child.said
    assert 0 < assert_beginning(path, whole) < CASE["n"]
    finish(path, whole)


def test_a_signal_as_soon_as_it_is_resumed(memory_path: Path) -> None:
    """Before the window in the middle of which it stopped has been gone through again."""
    case = CASE | {"window": 4}
    n_within = 0
    for at in (11, 15, 17):
        path = memory_path / f"{at}.act"
        child = nursery().start("signaled", path, how="here", number=signal.SIGINT, at=at, **case)
        assert child.wait() == INTERRUPTED, child.said
        with actstore.append(path) as writer:
            n_within += writer.note["window"] < writer.n_examples
        child = nursery().start("reading", path, number=signal.SIGINT, **case)
        assert child.wait() == INTERRUPTED, child.said
        nursery().run("slowly", path, **case)
    assert n_within
    nursery().run("slowly", memory_path / "whole.act", **case)
    assert_same(path, memory_path / "whole.act")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_signal_while_inputs_are_slow_to_come(memory_path: Path, number: int, status: int) -> None:
    """A stream that fills a window in an hour must not hold up the end."""
    path = memory_path / "x.act"
    child = nursery().start("trickle", path, seconds=0.01, **CASE | {"window": 16, "batch_tokens": 8192})
    assert child.wait_for_ticks(120)
    child.send(number)
    assert child.wait() == status, child.said
    assert child.n_ticks < 100 * CASE["n"] / 10  # Of the inputs that would come.


def test_ctrl_c_is_the_main_threads(memory_path: Path, whole: Path) -> None:
    """A capture in another thread goes on to its end."""
    path = memory_path / "x.act"
    child = nursery().start("beside", path, pause=0.005, **CASE)
    child.wait_for_ticks(5)
    child.send(signal.SIGINT)
    assert child.wait() == 0, child.said
    assert child.said == "interrupted"
    assert_same(path, whole)


def test_workers_that_the_inputs_fork_can_be_ended(memory_path: Path, whole: Path) -> None:
    """A pool of processes is ended with SIGTERM, which must mean in them what it always does."""
    path = memory_path / "x.act"
    child = nursery().start("with_workers", path, **CASE)
    assert child.wait() == 0, child.said
    assert child.said == f"died of {-signal.SIGTERM}"
    assert_same(path, whole)


# ---- handlers, in this process ----


class _Calls:
    """A handler of the user's own."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, number: int, frame: Any) -> None:
        self.numbers.append(number)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def handled(request: pytest.FixtureRequest) -> Iterator[tuple[int, _Calls]]:
    """A signal and the user's handler of it."""
    calls = _Calls()
    before = signal.signal(request.param, calls)
    yield request.param, calls
    signal.signal(request.param, before)


def interrupt_at(model: Any, n: int, number: int) -> Any:
    """Has the signal come when the model is run for the n-th time."""
    count = 0

    def hook(module: Any, args: Any) -> None:
        nonlocal count
        count += 1
        if count == n:
            signal.raise_signal(number)

    return model.register_forward_pre_hook(hook)


def test_handlers_are_put_back(memory_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    arguments = of_text(bert(), texts=texts(60))
    actstore.capture(memory_path / "a.act", **arguments).close()
    assert [signal.getsignal(number) for number in numbers] == before
    with pytest.raises(actstore.InvalidInputError):
        actstore.capture(memory_path / "b.act", **arguments | {"texts": [*texts(60), None]})
    assert [signal.getsignal(number) for number in numbers] == before
    interrupt_at(arguments["model"], 12, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        actstore.capture(memory_path / "c.act", **arguments)
    assert [signal.getsignal(number) for number in numbers] == before


def test_own_handlers_are_called(memory_path: Path, handled: tuple[int, _Calls]) -> None:
    """They stand for what the signal always does; the capture has ended before, in good order."""
    number, calls = handled
    arguments = of_text(bert(), texts=texts(150))
    hook = interrupt_at(arguments["model"], 40, number)
    interrupted = False
    try:
        actstore.capture(memory_path / "x.act", **arguments).close()
    except KeyboardInterrupt:
        interrupted = True
    hook.remove()
    assert not interrupted
    assert calls.numbers == [number]
    assert signal.getsignal(number) is calls
    actstore.capture(memory_path / "whole.act", **arguments).close()
    assert 0 < assert_beginning(memory_path / "x.act", memory_path / "whole.act") < 150
    actstore.capture(memory_path / "x.act", **arguments, resume=True).close()
    assert_same(memory_path / "x.act", memory_path / "whole.act")


def test_ignored_signals_stay_ignored(memory_path: Path) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        arguments = of_text(bert(), texts=texts(60))
        interrupt_at(arguments["model"], 30, signal.SIGTERM)
        with actstore.capture(memory_path / "x.act", **arguments) as store:
            assert store.n_examples == 60
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_capture_in_a_thread_leaves_handlers_alone(memory_path: Path) -> None:
    seen: list[Any] = []
    arguments = of_text(bert(), texts=texts(60))
    arguments["model"].register_forward_pre_hook(lambda *_: seen.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: actstore.capture(memory_path / "x.act", **arguments).close())
    thread.start()
    thread.join()
    assert set(seen) == {before}
    assert contents(memory_path / "x.act")["n_examples"] == 60
    assert os.path.exists(memory_path / "x.act" / "zarr.json")
