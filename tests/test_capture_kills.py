"""Captures killed with SIGKILL at random and resumed each time: they equal one that never was."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import actstore
import pytest

pytest.importorskip("transformers")

from capture_cases import CASES, assert_beginning, assert_same
from capture_nursery import nursery, random_kills

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked")


def checker(path: Path, whole: Path, every: int = 1) -> Callable[[int], int]:
    """Looks at what a kill left; each `every`-th time at all of it."""
    n = 0

    def check(before: int) -> int:
        nonlocal n
        n += 1
        try:
            store = actstore.open(path)
        except actstore.NotFoundError:
            assert before == 0
            return 0
        found = store.n_examples
        store.close()
        if n % every == 0:
            assert assert_beginning(path, whole) == found
        return found

    return check


def kill_and_compare(
    folder: Path, case: str, n: int, n_kills: int, seed: int = 0, longest: float = 6, **more: Any
) -> None:
    """A capture that is killed so often, and one that is not."""
    whole, path = folder / "whole.act", folder / "x.act"
    nursery().run("slowly", whole, case=case, n=n)
    n_fruitful = random_kills(path, n_kills, seed, checker(path, whole), longest, case=case, n=n, **more)
    assert n_fruitful >= n_kills / 4
    nursery().run("slowly", path, case=case, n=n, **more)
    assert_same(path, whole)


def test_killed_twenty_times(memory_path: Path) -> None:
    kill_and_compare(memory_path, "tokens", 350, 20)


@pytest.mark.parametrize("case", ["mean", "ready", "images"])
def test_killed_a_few_times(memory_path: Path, case: str) -> None:
    kill_and_compare(memory_path, case, 150, 3)


def test_killed_while_another_thread_writes(memory_path: Path) -> None:
    kill_and_compare(memory_path, "tokens", 200, 4, overlapped=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_killed_twenty_times_each(memory_path: Path, case: str, seed: int) -> None:
    kill_and_compare(memory_path, case, 600, 20, seed)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tokens", "mean", "ready", "two axes"])
def test_killed_twenty_times_while_another_thread_writes(memory_path: Path, case: str) -> None:
    kill_and_compare(memory_path, case, 600, 20, 3, overlapped=True)


@pytest.mark.slow
def test_killed_between_commits_that_come_by_the_clock(memory_path: Path) -> None:
    """Rows of two seconds are lost at most, and no more."""
    kill_and_compare(memory_path, "tokens", 1200, 8, 4, 60, commit_seconds=0.25, pause=0.005)
