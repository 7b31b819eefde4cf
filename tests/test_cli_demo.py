"""``actstore demo`` and the docstrings it reads."""

import json
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.cli import demo
from actstore.cli.docstrings import docstrings
from tiny_models import needs_minilm, write_bert

pytest.importorskip("torch")
pytest.importorskip("transformers")


# ---- The docstrings ----


def test_docstrings_of_python_and_of_c() -> None:
    texts = docstrings()
    names = [name for name, _ in texts]
    assert len(names) == len(set(names)) > 4000
    found = dict(texts)
    for name, word in (
        ("datetime.datetime.strptime", "parsed from a string"),
        ("str.split", "substrings"),
        ("math.gcd", "Common Divisor"),
        ("itertools.chain", "iterable"),
        ("json.dumps", "JSON"),
        ("os.listdir", "directory"),
        ("textwrap", "wrapping"),
    ):
        assert found[name].startswith(name)
        assert word in found[name], name
    assert all(text.strip() and len(text) <= 400 for text in found.values())
    assert not [name for name in names if any(part.startswith("_") for part in name.split("."))]


def test_docstrings_are_the_same_each_time_and_well_mixed() -> None:
    texts = docstrings()
    assert texts == docstrings.__wrapped__()
    assert len({name.split(".")[0] for name, _ in texts[:300]}) > 60


def test_docstrings_import_nothing_odd() -> None:
    docstrings()
    assert "antigravity" not in sys.modules
    assert "this" not in sys.modules


# ---- The demo ----


@needs_minilm
def test_demo(tmp_path: Path, run: Any) -> None:
    path = tmp_path / "demo.act"
    status, out, err = run("demo", "-o", path, "--limit", "150")
    assert status == 0
    assert err.startswith("all-MiniLM-L6-v2 reads 150 docstrings of Python")
    assert "150 docstrings" in out.splitlines()[0]
    for question in demo.QUESTIONS:
        assert f"\n{question}\n  layer 6  0." in out
    assert "layer 3  0." in out
    assert "layer 0  0." in out
    table = out.partition("how many each layer has")[2].splitlines()
    assert table[2].split() == ["layer", *map(str, range(7))]
    assert table[3].startswith(f"  {demo.QUESTIONS[0]}")
    assert "   10" in table[3]
    assert all(len(line) <= 90 for line in out.splitlines() if str(tmp_path) not in line)
    with actstore.open(path) as store:
        assert store["resid"].shape == (150, 7, 384)
        assert store.examples["id"].tolist() == [name for name, _ in docstrings()[:150]]
    if "Drawn in" in out:
        assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    # Again: what is there is used; a larger sample goes on with it.
    status, again, err = run("demo", "-o", path, "--limit", "150", "--no-plot")
    assert (status, err) == (0, "")
    first, second = (text.partition("\n\n")[2].partition("Early layers")[0] for text in (out, again))
    assert first == second
    assert "Drawn" not in again
    status, out, _ = run("demo", "-o", path, "--limit", "160", "--no-plot")
    assert status == 0
    assert out.startswith(f"{path}: 160 docstrings")


@needs_minilm
def test_demo_in_few_columns_and_characters(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demo.act"
    assert run("demo", "-o", path, "--limit", "30", "--no-plot")[0] == 0
    monkeypatch.setattr(demo, "unicode_output", lambda: False)
    status, out, _ = run("demo", "-o", path, "--limit", "30", "--no-plot", columns=60)
    assert status == 0
    out.encode("ascii")
    answers = out.partition("Of the")[0].partition("\n\n")[2]
    assert all(len(line) <= 60 for line in answers.splitlines())


@needs_minilm
def test_the_last_layer_is_the_sentence_transformer(tmp_path: Path, run: Any) -> None:
    """Its answers are those of the model as published; the overlap counts what it says."""
    library = pytest.importorskip("sentence_transformers")
    from tiny_models import minilm_folder

    path = tmp_path / "demo.act"
    assert run("demo", "-o", path, "--limit", "80", "--no-plot")[0] == 0
    texts = docstrings()[:80]
    model = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    scores = model.encode(list(demo.QUESTIONS)) @ model.encode([text for _, text in texts]).T
    with actstore.open(path) as store:
        found, overlap = demo.ask(store)
    for q in range(len(demo.QUESTIONS)):
        order = np.argsort(-scores[q])[:10]
        assert {hit.id for hit in found[q][6]} == {texts[i][0] for i in order}
        assert found[q][6][0].score == pytest.approx(scores[q].max(), abs=1e-4)
        assert overlap[q][6] == 10
        both = {hit.id for hit in found[q][2]} & {hit.id for hit in found[q][6]}
        assert overlap[q][2] == len(both)


@needs_minilm
def test_as_json(tmp_path: Path, run: Any) -> None:
    status, out, _ = run("demo", "-o", tmp_path / "demo.act", "--limit", "60", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["plot"] == str(tmp_path / "demo.png")
    assert Path(found["plot"]).read_bytes()[:4] == b"\x89PNG"
    first = found["questions"][0]
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


def test_somebody_elses_store(tmp_path: Path, run: Any) -> None:
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
def test_another_pythons_docstrings(tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.act"
    monkeypatch.setattr(demo, "docstrings", lambda: (("old.name", "old.name\nIt was so."),))
    assert run("demo", "-o", path, "--no-plot")[0] == 0
    monkeypatch.undo()
    status, out, err = run("demo", "-o", path, "--limit", "5")
    assert (status, out) == (1, "")
    assert "hint: remove it, or give another -o" in err
