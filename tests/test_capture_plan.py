"""What a capture will take, against what it took; and disks that are too small, before and in the middle."""

import copy
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import actstore
import pytest
from actstore.capturing.api import _show

pytest.importorskip("transformers")

import transformers
from capture_cases import assert_beginning, assert_same, bert, contents, gpt2, of_text, texts
from trained_tokenizers import docstrings, wordpiece


@functools.cache
def reader() -> dict[str, Any]:
    """A model of docstrings, up to 512 tokens of them."""
    tokenizer = copy.deepcopy(wordpiece())
    tokenizer.model_max_length = 512
    transformers.set_seed(0)
    config = transformers.BertConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
    )
    return {"model": transformers.BertModel(config).eval(), "tokenizer": tokenizer}


ORDERS = {
    "as they come": list,
    "shortest first": lambda these: sorted(these, key=len),
    "longest first": lambda these: sorted(these, key=len, reverse=True),
}


@functools.cache
def took(folder: Path, pool: str | None) -> tuple[int, int, int]:
    """Tokens, bytes before compression and after it, of a capture of all docstrings."""
    path = folder / f"plan-{pool}.act"
    with pytest.warns(actstore.CaptureWarning, match="cut"):
        store = actstore.capture(path, texts=list(docstrings()), pool=pool, progress=False, **reader())
    site = store.info()["sites"]["resid"]
    n_tokens = int(store.examples["n_rows"].sum()) if pool else store.n_tokens
    stored, raw = site["stored_bytes"], store["resid"].read().nbytes
    store.close()
    return n_tokens, raw, stored


@pytest.mark.parametrize("pool", [None, "mean"])
@pytest.mark.parametrize("order", ORDERS)
def test_estimates_are_near(memory_folder: Path, order: str, pool: str | None) -> None:
    """Tokens within 10 %, bytes within 15 %, however the inputs are sorted."""
    n_tokens, raw, stored = took(memory_folder, pool)
    plan = actstore.plan(texts=ORDERS[order](docstrings()), path=memory_folder, pool=pool, **reader())
    assert plan.n_examples == len(docstrings())
    assert plan.n_tokens == pytest.approx(n_tokens, rel=0.1)
    assert plan.raw_bytes == pytest.approx(raw, rel=0.1)
    assert plan.stored_bytes == pytest.approx(stored, rel=0.15)
    assert plan.fits
    assert plan.seconds is not None
    assert plan.seconds > 0
    assert "resid" in str(plan)


def test_a_plan_writes_nothing_and_needs_no_folder(memory_path: Path) -> None:
    before = {name for name in os.listdir("/dev/shm") if name.startswith("actstore-pilot")}
    plan = actstore.plan(
        bert(), texts(20), tokenizer=of_text(None)["tokenizer"], path=memory_path / "a" / "b.act"
    )
    assert plan.free_bytes == pytest.approx(shutil.disk_usage(memory_path).free, rel=0.05)
    assert os.listdir(memory_path) == []
    assert {name for name in os.listdir("/dev/shm") if name.startswith("actstore-pilot")} <= before


@pytest.mark.parametrize("given", [[], iter(["a cat", "the dog sat"]), ["a"]])
def test_plans_of_little(given: Any) -> None:
    """Nothing, a stream, a word."""
    arguments = of_text(gpt2(), texts=given)
    plan = actstore.plan(arguments["model"], arguments["texts"], tokenizer=arguments["tokenizer"])
    assert isinstance(plan.fits, bool)
    assert str(plan)
    assert plan.json()["sites"]["resid"]["dtype"] == "float32"


def test_max_bytes(memory_path: Path) -> None:
    path = memory_path / "x.act"
    arguments = of_text(bert(), texts=texts(200))
    with pytest.raises(actstore.StorageError, match=r"max_bytes is 10\.0 kB|max_bytes is") as raised:
        actstore.capture(path, **arguments, max_bytes=10_000)
    assert raised.value.kind == "disk_full"
    assert "force" in str(raised.value.hint)
    actstore.capture(path, **arguments, max_bytes=100_000_000).close()
    assert contents(path)["n_examples"] == 200
    actstore.capture(memory_path / "y.act", **arguments, max_bytes=10_000, force=True).close()
    assert contents(memory_path / "y.act")["n_examples"] == 200


# ---- disks ----


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(mounted)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


def fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes."""
    filler = disk / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - left)))
    return filler


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit after each window."""
    from actstore.capturing.run import run

    monkeypatch.setattr(run, "_COMMIT_SECONDS", 0.0)


def test_a_disk_that_is_too_small(disk: Path) -> None:
    path = disk / "x.act"
    arguments = of_text(bert(), texts=texts(600))
    filler = fill(disk, 1 << 20)
    with pytest.raises(actstore.StorageError, match="free") as raised:
        actstore.capture(path, **arguments)
    assert raised.value.kind == "disk_full"
    assert "force" in str(raised.value.hint)
    filler.unlink()
    actstore.capture(path, **arguments).close()
    assert contents(path)["n_examples"] == 600


def test_a_disk_that_is_full_in_the_middle(disk: Path, memory_path: Path, commits: None) -> None:
    """What was committed stands; with more room it goes on."""
    path, whole = disk / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=texts(600), batch_tokens=256)
    actstore.capture(whole, **arguments).close()
    filler = fill(disk, 1 << 20)
    with pytest.raises(actstore.StorageError) as raised:
        actstore.capture(path, **arguments, force=True)
    assert raised.value.kind == "disk_full"
    found = assert_beginning(path, whole)
    assert 0 < found < 600
    with pytest.raises(actstore.StorageError) as raised:
        actstore.capture(path, **arguments, resume=True)
    assert raised.value.kind == "disk_full"
    assert found <= assert_beginning(path, whole) < 600
    filler.unlink()
    actstore.capture(path, **arguments, resume=True).close()
    assert_same(path, whole)


def test_a_full_disk_while_another_thread_writes(
    disk: Path, memory_path: Path, commits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from actstore.capturing.run import run
    from capture_nursery import overlapped

    path, whole = disk / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=texts(600), batch_tokens=256)
    actstore.capture(whole, **arguments).close()
    monkeypatch.setattr(run, "CaptureRun", overlapped(run.CaptureRun))
    filler = fill(disk, 1 << 20)
    with pytest.raises(actstore.StorageError) as raised:
        actstore.capture(path, **arguments, force=True)
    assert raised.value.kind == "disk_full"
    assert 0 < assert_beginning(path, whole) < 600
    filler.unlink()
    actstore.capture(path, **arguments, resume=True).close()
    assert_same(path, whole)


def test_room_for_what_is_left_is_enough(disk: Path, memory_path: Path) -> None:
    """A resumed capture needs no room for all of it again, only for the last shard and chunks."""
    path, whole = disk / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=texts(600), batch_tokens=256)
    actstore.capture(whole, **arguments).close()
    actstore.capture(path, **arguments | {"texts": texts(600)[:560]}).close()
    with actstore.open(path) as store:
        fill(disk, int(2.6 * store.info()["stored_bytes"]))
    actstore.capture(path, **arguments, resume=True).close()
    assert contents(path)["examples/id"] == contents(whole)["examples/id"]


def test_what_will_take_long_is_told_before(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = of_text(bert(), texts=texts(100))
    plan = actstore.plan(arguments["model"], arguments["texts"], tokenizer=arguments["tokenizer"])
    _show(replace(plan, seconds=4.9))
    assert capsys.readouterr().err == ""
    _show(replace(plan, seconds=3600))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("capture: about ")
    assert " in 60 min, " in line
    _show(replace(plan, n_tokens=None, seconds=None))
    assert capsys.readouterr().err.startswith("capture: input of unknown length; ")


def test_a_plan_of_raw_rows_has_no_ratio() -> None:
    arguments = of_text(bert(), texts=texts(100))
    plan = actstore.plan(
        arguments["model"], arguments["texts"], tokenizer=arguments["tokenizer"], codec="raw"
    )
    assert plan.stored_bytes == plan.raw_bytes
    assert plan.ratio == 1.0
