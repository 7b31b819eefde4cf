"""What several test modules share."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import pytest
from actstore.cli import main
from children import hear_signals, without_forecast
from interposed import Nurseries, Nursery, compile_interposer

# Checked by mypy, not run.
collect_ignore = ["typing"]


@pytest.fixture(scope="session", autouse=True)
def signals_are_heard() -> Iterator[None]:
    """However the tests were started."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    hear_signals()
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def memory_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory where there is one: a kill leaves the same there, and syncing costs nothing."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("disk")
        return
    folder = Path(tempfile.mkdtemp(prefix="actstore-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def memory_path(memory_folder: Path) -> Iterator[Path]:
    """A new folder in it, for one test."""
    folder = Path(tempfile.mkdtemp(dir=memory_folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def interposer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that kills, fails or records the calls of a writer."""
    if sys.platform != "linux":
        pytest.skip("the interposer is Linux's")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return compile_interposer(tmp_path_factory.mktemp("interposer"))


@pytest.fixture(scope="session")
def nurseries(interposer: Path) -> Iterator[Nurseries]:
    """Two, that one core may work in a child while the other looks at what is left."""
    with Nursery(interposer) as one, Nursery(interposer) as two:
        yield [one, two]


@pytest.fixture
def store(path: Path) -> Iterator[actstore.Store]:
    """The store that a module's own `path` makes, open."""
    with actstore.open(path) as store:
        yield store


@pytest.fixture
def site(store: actstore.Store) -> actstore.Site:
    """Its tokens."""
    return store["resid"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A command in this process: exit status, stdout, stderr."""

    def run(*args: str | Path, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        status = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, without_forecast(err)

    return run
