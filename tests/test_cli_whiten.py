"""``actstore whiten``, and ``query`` with ``--maxsim``, ``--whiten`` and ``--explain``."""

import json
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from tiny_models import write_bert

pytest.importorskip("transformers")

TEXTS = {
    "cats": "the cat sat on the mat",
    "dogs": "a dog ran far from the house",
    "dates": "parse a date and a time from a string",
    "files": "read a file, write a file",
    "sorting": "sort a list of numbers",
    "colors": "green, blue or red",
}
QUESTION = "parse a date"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and stores that tests only read."""
    made = tmp_path_factory.mktemp("whiten")
    model = str(write_bert(made / "bert"))
    texts = list(TEXTS.items())
    store = actstore.capture(made / "rows.act", model, texts, progress=False)
    actstore.capture(made / "pooled.act", model, texts, pool="mean", store_text=True, progress=False)
    actstore.Whitener().fit(store["resid"]).save(made / "rows.act", "tokens", "resid")
    np.save(made / "q.npy", store["resid"].example("dates")[:, 2])
    return made


def json_of(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    parsed = json.loads(out)
    assert isinstance(parsed, dict)
    return parsed


# ---- whiten ----


def test_whiten_and_query(folder: Path, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "x.act"
    actstore.capture(path, str(folder / "bert"), list(TEXTS.items()), progress=False)
    result = json_of(
        run("whiten", path, "--out", "w", "--layers", "1,2", "--dim", "5", "--eps", "0.1", "--json")
    )
    assert (result["site"], result["layers"], result["rank"], result["fitted"]) == (
        "resid",
        [1, 2],
        [5, 5],
        True,
    )
    w = actstore.open(path).whiteners["w"]
    assert w.eps == 0.1
    again = json_of(run("whiten", path, "--out", "w", "--json"))
    assert again["fitted"] is False
    _, out, _ = run(
        "whiten", path, "resid", "--out", "docs", "--pool", "mean", "--kind", "zca", "--shrinkage", "oas"
    )
    assert "docs, zca, fitted to 6 rows of mean of resid" in out
    result = json_of(run("query", path, QUESTION, "--whiten", "docs", "--layer", "1", "--json"))
    assert result["whiten"] == "docs"
    docs = actstore.open(path)["resid"].select(layers=1).pool("mean")
    query = actstore.embed(actstore.open(path), [QUESTION], layers=1)
    hits = docs.search(query, metric="cos", transform=actstore.open(path).whiteners["docs"], combine="sum")
    assert [hit["id"] for hit in result["hits"][0]] == hits.ids[0][:6]
    np.testing.assert_allclose([hit["score"] for hit in result["hits"][0]], hits.scores[0, :6], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["whiten", "STORE"], 2, "--out"),
        (["whiten", "STORE", "--out", "tokens", "--dim", "3"], 2, "exists"),
        (["whiten", "STORE", "--out", "w", "--shrinkage", "much"], 2, "expected a number or 'oas'"),
        (["whiten", "STORE", "--out", "w", "--dim", "0"], 2, "'0'"),
        (["whiten", "STORE", "--out", "w", "--dim", "99"], 1, "n_components is 99"),
        (["whiten", "STORE", "--out", "w", "--shrinkage", "2"], 1, "from 0 to 1"),
        (["whiten", "STORE", "nothing", "--out", "w"], 1, "no site 'nothing'"),
        (["whiten", "STORE", "--out", "w", "--layers", "7"], 1, "no layer 7"),
        (["whiten", "POOLED", "--out", "w", "--pool", "mean"], 1, "already"),
        (["query", "STORE", "a", "--whiten", "none"], 1, "no whitener 'none', it has: tokens"),
        (["query", "STORE", "a", "--maxsim", "--tokens"], 2, "cannot be used with --tokens"),
        (["query", "STORE", "a", "--maxsim", "--pool", "max"], 2, "cannot be used with --pool"),
        (["query", "STORE", "a", "--rank", "2"], 2, "--explain"),
        (["query", "STORE", "a", "--explain", "--rank", "7"], 1, "only 6 hits"),
        (["query", "POOLED", "a", "--maxsim"], 1, "--maxsim: 'resid'"),
        (["query", "STORE", "a", "--png", "/no/such/folder/x.png"], 1, "cannot be written"),
    ],
)
def test_wrong_usage(folder: Path, run: Any, arguments: list[str], status: int, message: str) -> None:
    named = {"STORE": folder / "rows.act", "POOLED": folder / "pooled.act"}
    code, _, err = run(*(named.get(argument, argument) for argument in arguments))
    assert code == status, err
    assert message in err
    assert "Traceback" not in err


# ---- query --maxsim ----


def test_maxsim_of_a_text(folder: Path, run: Any) -> None:
    """As in Python, with special tokens ignored in the query and in the examples."""
    store = actstore.open(folder / "rows.act")
    vectors = actstore.embed_tokens(store, [QUESTION], layers=2, special=False).read()
    assert vectors.shape == (3, 1, store["resid"].shape[2])
    site = store["resid"].select(layers=2, rows=store.tokens["special"] == 0)
    for extra, transform in (([], None), (["--whiten", "tokens"], store.whiteners["tokens"])):
        hits = site.maxsim([vectors], k=6, metric="cos", transform=transform, combine="sum")
        result = json_of(run("query", folder / "rows.act", QUESTION, "--maxsim", *extra, "--json"))
        assert result["maxsim"] is True
        assert result["pool"] is None
        assert [hit["id"] for hit in result["hits"][0]] == hits.ids[0]
        np.testing.assert_allclose([hit["score"] for hit in result["hits"][0]], hits.scores[0], rtol=1e-6)
        assert result["hits"][0][0]["position"] is None
    # A whole text finds itself.
    for name, text in TEXTS.items():
        result = json_of(run("query", folder / "rows.act", text, "--maxsim", "--k", "1", "--json"))
        assert result["hits"][0][0]["id"] == name


def test_maxsim_of_an_example_and_of_vectors(folder: Path, run: Any) -> None:
    result = json_of(run("query", folder / "rows.act", "--example", "dates", "--maxsim", "--json"))
    names = [hit["id"] for hit in result["hits"][0]]
    assert "dates" not in names
    assert len(names) == 5
    result = json_of(run("query", folder / "rows.act", "--npy", folder / "q.npy", "--maxsim", "--json"))
    assert result["hits"][0][0]["id"] == "dates"


# ---- query --explain ----


def test_explanation_by_layer(folder: Path, run: Any, tmp_path: Path) -> None:
    store = actstore.open(folder / "rows.act")
    result = json_of(run("query", folder / "rows.act", QUESTION, "--explain", "--json"))["explain"]
    assert result["rank"] == 1
    top = json_of(run("query", folder / "rows.act", QUESTION, "--json"))["hits"][0][0]["id"]
    rows = store["resid"].example(top).astype(np.float64)
    assert result["columns"] == ["0", "1", "2"]
    assert len(result["tokens"]) == len(rows)
    query = actstore.embed(store, [QUESTION])[0].astype(np.float64)
    norms = np.linalg.norm(rows, axis=2) * np.linalg.norm(query, axis=1)
    np.testing.assert_allclose(result["scores"], (rows * query).sum(2) / norms, atol=1e-5)
    _, out, err = run(
        "query", folder / "rows.act", QUESTION, "--explain", "--png", tmp_path / "x.png", columns=70
    )
    assert err == ""
    assert all(len(line) <= 70 for line in out.splitlines())
    assert "its tokens by layer" in out
    assert sum("[CLS]" in line for line in out.splitlines()) == 1
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    # Another hit, an example, vectors, tokens, a whitener, several layers.
    for extra in (
        [QUESTION, "--rank", "3"],
        ["--example", "dates"],
        ["--npy", folder / "q.npy"],
        [QUESTION, "--tokens"],
        [QUESTION, "--whiten", "tokens"],
        [QUESTION, "--layers", "0,1", "--combine", "sum"],
    ):
        result = json_of(run("query", folder / "rows.act", *extra, "--explain", "--json"))["explain"]
        assert result["columns"] == ["0", "1", "2"], extra
        assert np.isfinite(result["scores"]).all()
    result = json_of(run("query", folder / "pooled.act", QUESTION, "--explain", "--json"))["explain"]
    assert np.array(result["scores"]).shape == (1, 3)


def test_hits_are_printed_even_if_the_png_cannot_be_written(folder: Path, run: Any) -> None:
    code, out, err = run("query", folder / "rows.act", TEXTS["dates"], "--png", "/no/such/folder/x.png")
    assert code == 1
    assert out.split()[2] == "dates"
    assert len(out.splitlines()) == len(TEXTS)
    assert "cannot be written" in err


def test_explanation_by_query_token(folder: Path, run: Any, tmp_path: Path) -> None:
    result = json_of(run("query", folder / "rows.act", QUESTION, "--maxsim", "--explain", "--json"))
    matrix = result["explain"]
    assert matrix["columns"] == ["parse", "a", "date"]
    assert "[CLS]" not in matrix["tokens"]
    np.testing.assert_allclose(
        np.max(matrix["scores"], axis=0).sum(), result["hits"][0][0]["score"], rtol=1e-5
    )
    picture = tmp_path / "m.png"
    _, out, _ = run("query", folder / "rows.act", QUESTION, "--maxsim", "--explain", "--png", picture)
    assert "its tokens by query token" in out
    assert picture.stat().st_size > 1000


def test_long_examples_show_their_best_tokens() -> None:
    from actstore.cli.render.matrix import ScoreMatrix

    rng = np.random.default_rng(0)
    scores = rng.normal(size=(500, 40)).astype(np.float32)
    matrix = ScoreMatrix("t", scores, [f"w{i}" for i in range(500)], [str(i) for i in range(40)], True)
    for width in (40, 80, 200):
        lines = list(matrix.lines(width, unicode=False))
        assert all(len(line) <= width for line in lines)
        assert len(lines) < 140
        assert any(line.strip() == "..." for line in lines)
    for best in scores.argmax(0)[:30]:
        assert any(line.split()[:1] == [f"w{best}"] for line in lines)
    empty = ScoreMatrix("t", scores[:0], [], ["0"], True)
    assert list(empty.lines(80, True)) == ["t", "  no tokens"]
    assert "".join(matrix.lines(80, unicode=False)).isascii()
