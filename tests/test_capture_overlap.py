"""Writing in a thread while the next window is computed, as for a GPU; and two or more captures at once."""

import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from capture_cases import CASES, assert_beginning, assert_same, bert, contents, gpt2, of_text, texts
from capture_nursery import nursery, overlapped
from children import fork, join


@pytest.fixture
def writing_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no way to ask for it on a CPU: two windows and a thread are put in by hand."""
    from actstore.capturing.run import run

    monkeypatch.setattr(run, "CaptureRun", overlapped(run.CaptureRun))
    monkeypatch.setattr(run, "_COMMIT_SECONDS", 0.0)


def capture(path: Path, **arguments: Any) -> None:
    """Captures and closes."""
    actstore.capture(path, **arguments).close()


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_without(memory_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    from actstore.capturing.run import run

    arguments = CASES[case](60)
    capture(memory_path / "whole.act", **arguments)
    monkeypatch.setattr(run, "CaptureRun", overlapped(run.CaptureRun))
    capture(memory_path / "x.act", **arguments)
    assert_same(memory_path / "x.act", memory_path / "whole.act")


def poisoned(model: Any, n: int) -> Any:
    """The model, of which one batch has a NaN."""
    count = 0

    def hook(module: Any, args: Any, result: Any) -> Any:
        nonlocal count
        count += 1
        return result * torch.nan if count == n else result

    model.embeddings.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("at", [30, 33])
def test_nothing_follows_a_window_that_failed(memory_path: Path, writing_thread: None, at: int) -> None:
    """The window after it may be waiting to be written already: it must not be written in its place."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=texts(150), batch_tokens=48, window=1)
    capture(whole, **arguments)
    with pytest.raises(actstore.InvalidInputError, match="NaN"):
        capture(path, **arguments | {"model": poisoned(bert(), at)}, on_nan="raise")
    assert assert_beginning(path, whole) < 150
    capture(path, **arguments, resume=True)
    assert_same(path, whole)


def test_an_error_in_the_model_loses_no_window(memory_path: Path, writing_thread: None) -> None:
    """What was complete before an error is written; the error says what the model's own says."""
    path, whole = memory_path / "x.act", memory_path / "whole.act"
    arguments = of_text(bert(), texts=texts(150))
    capture(whole, **arguments)
    model, count = bert(), 0

    def fail(module: Any, args: Any) -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise RuntimeError("the model's own")

    model.register_forward_pre_hook(fail)
    with pytest.raises(actstore.InvalidInputError, match=r"examples '\d+'.*: the model's own"):
        capture(path, **arguments | {"model": model})
    assert 0 < assert_beginning(path, whole) < 150
    capture(path, **arguments, resume=True)
    assert_same(path, whole)


# ---- captures beside others ----


def test_two_models_in_two_threads(memory_path: Path) -> None:
    made = {"a": of_text(bert(), texts=texts(80)), "b": of_text(gpt2(), texts=texts(80, 1))}
    for name, arguments in made.items():
        capture(memory_path / f"{name}-alone.act", **arguments)
    threads = [
        threading.Thread(target=capture, args=(memory_path / f"{name}.act",), kwargs=arguments)
        for name, arguments in made.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in made:
        assert_same(memory_path / f"{name}.act", memory_path / f"{name}-alone.act")


def alike(n: int, seed: int) -> list[str]:
    """Texts of ten words: all batches have the same shape, so that shapes tell nothing apart."""
    return [" ".join((text + " a" * 10).split()[:10]) for text in texts(n, seed)]


def test_one_model_in_two_threads(memory_path: Path) -> None:
    """Each sees its own rows, or is refused in words; never those of the other."""
    model = bert()
    made = {name: of_text(model, texts=alike(200, seed), batch_tokens=48) for seed, name in enumerate("ab")}
    for name, arguments in made.items():
        capture(memory_path / f"{name}-alone.act", **arguments)
    errors: dict[str, BaseException] = {}

    def work(name: str) -> None:
        try:
            capture(memory_path / f"{name}.act", **made[name])
        except BaseException as error:
            errors[name] = error

    threads = [threading.Thread(target=work, args=(name,)) for name in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in made:
        if name in errors:
            assert isinstance(errors[name], actstore.ActstoreError)
        else:
            assert_same(memory_path / f"{name}.act", memory_path / f"{name}-alone.act")


def test_the_model_is_used_beside(memory_path: Path) -> None:
    """By a thread of the user's, in the middle of a batch: tensors of one must not get to the other."""
    model = bert()
    arguments = of_text(model, texts=alike(200, 0), batch_tokens=48)
    capture(memory_path / "alone.act", **arguments)
    ids = torch.full((4, 12), 7)
    with torch.inference_mode():
        expected = model(input_ids=ids).last_hidden_state
    errors: list[BaseException] = []
    n = 0

    def use() -> None:
        try:
            with torch.inference_mode():
                assert torch.equal(model(input_ids=ids).last_hidden_state, expected)
        except BaseException as error:
            errors.append(error)

    def within(module: Any, args: Any) -> None:
        nonlocal n
        if threading.current_thread() is threading.main_thread():
            n += 1
            if n in (30, 40):
                thread = threading.Thread(target=use)
                thread.start()
                thread.join()

    model.encoder.layer[1].register_forward_pre_hook(within)
    capture(memory_path / "x.act", **arguments)
    assert n > 40
    assert_same(memory_path / "x.act", memory_path / "alone.act")
    assert not errors


def own_hooks(model: Any) -> list[Any]:
    """Hooks that are not those that transformers leaves where hidden states were asked for."""
    return [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not hook.__module__.startswith("transformers.")
    ]


def test_a_capture_within_a_capture(memory_path: Path) -> None:
    """The inputs of one come from another, of the same model."""
    model = bert()
    arguments = of_text(model, texts=texts(150))
    capture(memory_path / "alone.act", **arguments)

    def nested() -> Iterator[str]:
        for i, text in enumerate(texts(150)):
            if i in (0, 70, 149):
                capture(memory_path / f"{i}.act", **of_text(model, texts=texts(80)))
            yield text

    capture(memory_path / "x.act", **arguments | {"texts": nested()})
    assert_same(memory_path / "x.act", memory_path / "alone.act")
    assert_same(memory_path / "0.act", memory_path / "149.act")
    assert own_hooks(model) == []


def test_the_model_is_left_as_it_was(memory_path: Path) -> None:
    """Training mode, hooks and gradients, also when it was refused."""
    model = bert().train()
    model.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    arguments = of_text(model, texts=texts(10))
    capture(memory_path / "x.act", **arguments)
    bad: list[dict[str, Any]] = [
        {"dtype": "int8"},
        {"sites": ["nothing"]},
        {"batch_tokens": 0},
        {"pool": "most"},
        {"max_bytes": 1},
        {"texts": [*texts(70), None]},
        {"layers": [99]},
        {"dtype": "nothing"},
    ]
    for i, more in enumerate(bad):
        with pytest.raises(actstore.ActstoreError):
            capture(memory_path / f"{i}.act", **arguments | more)
        assert [module.training for module in model.modules()] == modes, more
    assert own_hooks(model) == []
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked")
def test_in_a_forked_child(memory_path: Path) -> None:
    """Of a process that has captured already."""
    torch.set_num_threads(1)
    arguments = of_text(bert(), texts=texts(40))
    capture(memory_path / "here.act", **arguments)
    join(fork(lambda: capture(memory_path / "there.act", **arguments)))
    assert_same(memory_path / "there.act", memory_path / "here.act")
    capture(memory_path / "again.act", **arguments)
    assert_same(memory_path / "again.act", memory_path / "here.act")


def test_a_child_forked_during_a_capture_holds_no_lock(memory_path: Path) -> None:
    read, write = os.pipe()
    pids = []

    def inputs() -> Iterator[str]:
        for i, text in enumerate(texts(100)):
            if i == 80:
                pids.append(fork(lambda: (os.close(write), os.read(read, 1))))
            yield text

    torch.set_num_threads(1)
    path = memory_path / "x.act"
    capture(path, **of_text(bert(), texts=inputs()))
    capture(path, **of_text(bert(), texts=texts(120)), resume=True)
    os.close(write)
    join(pids[0])
    os.close(read)
    assert contents(path)["n_examples"] == 120


# ---- what is shown ----


@pytest.mark.skipif(sys.platform != "linux", reason="children are forked")
@pytest.mark.parametrize("progress", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_log_is_not_flooded(memory_path: Path, progress: bool) -> None:
    """A bar is for eyes: in a file it is a line now and then."""
    path = memory_path / "x.act"
    nursery().run("talking", path, case="tokens", n=150, pause=0.03, progress=progress)
    shown = Path(f"{path}.err").read_text()
    lines = [line for line in shown.replace("\r", "\n").splitlines() if line.strip()]
    assert len(lines) <= (4 if progress else 0), lines[:6]


def test_without_a_stderr(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw, or where it is closed."""
    monkeypatch.setattr(sys, "stderr", None)
    capture(memory_path / "a.act", **of_text(bert(), texts=texts(5)) | {"progress": True})
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    capture(memory_path / "b.act", **of_text(bert(), texts=texts(5)) | {"progress": True})
    assert np.isfinite(actstore.open(memory_path / "b.act")["resid"].read()).all()
