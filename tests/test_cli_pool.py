"""``actstore pool``, and how ``actstore info`` describes derived sites."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from children import LIMIT

ACTS = np.arange(6 * 2 * 4, dtype=np.float32).reshape(6, 2, 4)


def make(path: Path, **keywords: Any) -> Path:
    spec = actstore.SiteSpec(2, 4, "float32", labels=[3, 12])
    with actstore.create(path, {"resid": spec}, **keywords) as writer:
        writer.append({"resid": ACTS}, [2, 1, 3], token_columns={"special": [1, 0, 0, 1, 0, 0]})
    return path


def more(path: Path, *lengths: int) -> None:
    with actstore.append(path) as writer:
        acts = {"resid": ACTS[: sum(lengths)]}
        special = np.arange(sum(lengths)) == 0
        writer.append(acts, lengths, token_columns={"special": special.astype(int)})


@pytest.fixture
def store(memory_path: Path) -> Path:
    return make(memory_path / "run.act")


def test_pool_and_update(store: Path, run: Any) -> None:
    line = f"{store}: docs [3, 2, 4], mean of resid, layers 3, 12\n"
    assert run("pool", store, "resid", "--out", "docs") == (0, line, "")
    assert run("pool", store, "resid", "--out", "docs", "--kind", "mean") == (0, line, "")
    expected = np.stack([ACTS[:2].mean(0), ACTS[2], ACTS[3:].mean(0)])
    np.testing.assert_allclose(actstore.open(store)["docs"].read(), expected)
    assert run("pool", store, "--update") == (0, f"{store}: nothing to do\n", "")
    more(store, 4)
    status, out, err = run("info", store)
    assert (status, err) == (0, "")
    assert "covers only 3 of 4 rows" in out
    assert f"hint: actstore pool {store} --update" in out
    status, out, err = run("pool", store, "--update", "--out", "docs", "--threads", "1")
    assert (status, out, err) == (0, line.replace("[3,", "[4,"), "")
    assert actstore.open(store)["docs"].shape == (4, 2, 4)
    assert "covers" not in run("info", store)[1]


def test_every_option(store: Path, run: Any) -> None:
    options = ["--kind", "last", "--layers", "12,3", "--mix", "0.5,-2", "--no-special", "--on-empty", "zero"]
    status, out, err = run("pool", store, "resid", *options, "--out", "docs", "--json")
    assert (status, err) == (0, "")
    recipe = {
        "operation": "pool",
        "version": 1,
        "source": "resid",
        "layers": [12, 3],
        "kind": "last",
        "mix": [0.5, -2.0],
        "special": False,
        "skip_first": 0,
        "on_empty": "zero",
    }
    site = {"name": "docs", "shape": [3, 1, 4], "layers": [0], "recipe": recipe}
    assert json.loads(out) == {"path": str(store), "sites": [site]}
    last = ACTS[[1, 2, 5]]
    np.testing.assert_allclose(actstore.open(store)["docs"][:, 0], 0.5 * last[:, 1] - 2 * last[:, 0])
    more(store, 2, 0)
    status, out, err = run("pool", store, "--update", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["sites"] == [site | {"shape": [5, 1, 4]}]
    assert json.loads(run("info", store, "--json")[1])["derived"]["docs"]["recipe"] == recipe
    # A named mix, and a slice of layers.
    run("pool", store, "resid", "--mix", "concat", "--layers", "0:12", "--on-empty", "zero", "--out", "one")
    assert actstore.open(store)["one"].layers == [3]


def test_parts(memory_path: Path, run: Any) -> None:
    for i in range(2):
        make(memory_path / f"parts/{i}", part=(i, 2))
    assert run("pool", memory_path / "parts", "resid", "--out", "docs")[0] == 0
    more(memory_path / "parts/1", 2)
    assert run("pool", memory_path / "parts", "--update")[0] == 0
    assert actstore.open(memory_path / "parts")["docs"].shape == (7, 2, 4)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run.act"], "--out NAME"),
        (["run.act", "resid"], "--out NAME"),
        (["run.act", "--out", "docs"], "SITE"),
        (["run.act", "resid", "--update"], "--update"),
        (["run.act", "--update", "--kind", "mean"], "--update"),
        (["run.act", "--update", "--no-special"], "--update"),
        (["run.act", "resid", "--out", "docs", "--kind", "median"], "median"),
        (["run.act", "resid", "--out", "docs", "--mix", "1,a"], "1,a"),
        (["run.act", "resid", "--out", "docs", "--layers", "1,a"], "1,a"),
        (["run.act", "resid", "--out", "docs", "--layers", "1:2:3"], "1:2:3"),
    ],
)
def test_wrong_usage(
    store: Path, monkeypatch: pytest.MonkeyPatch, run: Any, args: list[str], words: str
) -> None:
    monkeypatch.chdir(store.parent)
    status, out, err = run("pool", *args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: actstore pool")
    assert words in err.splitlines()[-1]
    assert actstore.open(store).sites == ["resid"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["missing.act", "resid", "--out", "docs"], "missing.act does not exist"),
        (["missing.act", "--update"], "missing.act does not exist"),
        (["run.act", "mlp", "--out", "docs"], "no site 'mlp'"),
        (["run.act", "resid", "--out", "resid"], "'resid' is taken"),
        (["run.act", "resid", "--out", "a/b"], "'a/b'"),
        (["run.act", "resid", "--out", "docs", "--layers", "4"], "no layer 4"),
        (["run.act", "resid", "--out", "docs", "--mix", "1,2,3"], "mix"),
        (["run.act", "--update", "--out", "docs"], "no artifact 'docs'"),
        (["foreign.zarr", "resid", "--out", "docs"], "without commits"),
    ],
)
def test_wrong_input(
    store: Path, monkeypatch: pytest.MonkeyPatch, run: Any, args: list[str], words: str
) -> None:
    monkeypatch.chdir(store.parent)
    group = pytest.importorskip("zarr").create_group("foreign.zarr")
    group.create_array("resid", data=ACTS)
    status, out, err = run("pool", *args)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert actstore.open(store).sites == ["resid"]


def test_an_empty_example_and_another_recipe(store: Path, run: Any) -> None:
    more(store, 0)
    status, out, err = run("pool", store, "resid", "--out", "docs")
    assert (status, out) == (1, "")
    assert "no rows" in err
    assert run("pool", store, "resid", "--out", "docs", "--on-empty", "zero")[0] == 0
    status, out, err = run("pool", store, "resid", "--out", "docs", "--on-empty", "zero", "--kind", "max")
    assert (status, out) == (1, "")
    assert "'mean'" in err
    assert "'max'" in err


def test_progress_on_a_terminal(store: Path) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    try:
        command = [sys.executable, "-m", "actstore", "pool", store, "resid", "--out", "docs", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, timeout=LIMIT, check=True)
        os.close(follower)
        shown = b""
        try:
            while block := os.read(leader, 4096):
                shown += block
        except OSError:  # Linux raises EIO when the other end is closed.
            pass
    finally:
        os.close(leader)
    assert json.loads(done.stdout)["sites"][0]["name"] == "docs"
    assert b"pool [####" in shown
    assert shown.split(b"\r")[-2].strip() == b""
