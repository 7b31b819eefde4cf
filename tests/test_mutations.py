"""Metadata changed at random, wherever they can be: refused or harmless."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import put, twin
from foreign_lies import BAD_NAMES, BAD_NUMBERS, BAD_VALUES, build_foreign, sharded
from forged_lies import CORPUS, RAW, base_of
from forgery import Forgery
from limited import Tell, anonymous_memory, in_child
from test_hostile import attempt, look_around


def nodes_of(tree: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values of a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield (*where, key)
        yield from nodes_of(child, (*where, key))


def mutate(tree: Any, rng: random.Random) -> None:
    """One to three changes of any kind, anywhere."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(nodes_of(tree))
        where = rng.choice(places)
        parent = tree
        for step in where[:-1]:
            parent = parent[step]
        value = parent[where[-1]]
        kind = rng.randrange(7)
        if kind == 0:
            del parent[where[-1]]
        elif kind == 1:
            parent[where[-1]] = rng.choice(BAD_NUMBERS + BAD_VALUES + BAD_NAMES)
        elif kind == 2 and isinstance(value, int) and not isinstance(value, bool):
            parent[where[-1]] = rng.choice(
                [value + 1, value - 1, value * 2, 1 << rng.randrange(64), -value, 0]
            )
        elif kind == 3:
            other = tree
            for step in rng.choice(places):
                other = other[step] if not isinstance(other, list) or step < len(other) else None
                if not isinstance(other, dict | list):
                    break
            parent[where[-1]] = json.loads(json.dumps(other))
        elif kind == 4 and isinstance(value, list):
            parent[where[-1]] = value * rng.choice([2, 3]) if rng.random() < 0.5 else value[:-1]
        elif kind == 5 and isinstance(parent, dict):
            parent[rng.choice(BAD_NAMES)] = parent.pop(where[-1])
        elif kind == 6:
            parent[where[-1]] = [value]


def fuzz(tell: Tell, folder: Path, n: int, seed: int) -> list[str]:
    problems = []
    bases = [base_of(CORPUS, folder), base_of(RAW, folder)]
    plain = folder / "foreign"
    build_foreign(plain, [*sharded(chunk_shape=[2, 2, 4])])
    for i in range(n):
        rng = random.Random(f"{seed} {i}")
        path = folder / f"x-{i}"
        tell(f"case {i}")
        if i % 3:
            twin(rng.choice(bases), path)
            forgery = Forgery(path)
            target = rng.choice(["record", "root", "node"])
            if target == "node":
                mutate(forgery.nodes[rng.choice(list(forgery.nodes))], rng)
            else:
                mutate(vars(forgery)[target], rng)
            try:
                forgery.write()
            except (TypeError, KeyError, AttributeError, UnicodeEncodeError):
                shutil.rmtree(path)  # Beyond what can be made to look right.
                continue
        else:
            twin(plain, path)
            file = path / rng.choice(["zarr.json", "x/zarr.json"])
            tree = json.loads(file.read_text())
            mutate(tree, rng)
            put(file, json.dumps(tree))
        before, start = anonymous_memory(), time.process_time()
        for found in attempt(path), look_around(path):
            if found[0] == "BaseException":
                problems.append(f"case {i}: {found[1]}")
        if time.process_time() - start > 5:
            problems.append(f"case {i}: took {time.process_time() - start:.1f} s of work")
        if anonymous_memory() - before > 128 << 20:
            problems.append(f"case {i}: took {(anonymous_memory() - before) >> 20} MiB")
        shutil.rmtree(path)
    return problems


def test_some_mutations(memory_path: Path) -> None:
    assert in_child(fuzz, memory_path, 80, 0) == []


@pytest.mark.slow
def test_mutations(memory_path: Path) -> None:
    assert in_child(fuzz, memory_path, 1200, 1) == []
