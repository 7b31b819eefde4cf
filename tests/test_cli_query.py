"""``actstore query``: what is found, by which model, and what is refused; ``verify --recompute``."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from children import LIMIT
from tiny_models import MINILM, minilm_folder, needs_minilm, write_bert, write_gpt2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = {
    "cats": "the cat sat on the mat",
    "dogs": "a dog ran far from the house",
    "dates": "parse a date and a time from a string",
    "files": "read a file, write a file",
    "sorting": "sort a list of numbers",
    "colours": "green, blue or red",
}
QUESTION = "parse a date"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and stores that no test changes."""
    made = tmp_path_factory.mktemp("query")
    model = str(write_bert(made / "bert"))
    texts = list(TEXTS.items())
    actstore.capture(made / "rows.act", model, texts, progress=False)
    actstore.capture(
        made / "texts.act", model, texts, store_text=True, sites=["resid", "mlp_out"], progress=False
    )
    actstore.capture(made / "pooled.act", model, texts, pool="max", store_text=True, progress=False)
    actstore.capture(
        made / "causal.act",
        str(write_gpt2(made / "gpt2", dtype="bfloat16")),
        texts,
        tokens="no-special",
        prompt="the ",
        sites=["mlp_out"],
        store_text=True,
        progress=False,
    )
    return made


def told(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def states(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """The hidden states of a text, by transformers alone: ``[T, L, D]``."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        every = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    found: np.ndarray[Any, Any] = torch.stack([layer[0].float() for layer in every], 1).numpy()
    return found


def cosines(query: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    return found


# ---- Texts ----


@pytest.mark.parametrize("layer", [None, 1])
def test_a_text_is_ranked_as_transformers_would(folder: Path, run: Any, layer: int | None) -> None:
    at = 2 if layer is None else layer
    query = states(folder / "bert", QUESTION)[:, at].mean(0)
    rows = np.stack([states(folder / "bert", text)[:, at].mean(0) for text in TEXTS.values()])
    scores = cosines(query, rows)
    order = np.argsort(-scores)
    asked = [] if layer is None else ["--layer", str(layer)]
    found = told(run("query", folder / "rows.act", QUESTION, *asked, "--json"))
    assert (found["site"], found["layers"], found["pool"], found["metric"]) == ("resid", [at], "mean", "cos")
    [hits] = found["hits"]
    assert [hit["id"] for hit in hits] == [list(TEXTS)[i] for i in order]
    np.testing.assert_allclose([hit["score"] for hit in hits], scores[order], atol=1e-5)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]


def test_a_text_finds_itself(folder: Path, run: Any) -> None:
    """Through every store: whatever its template, tokens, dtype and pooling."""
    for name in ("rows", "texts", "pooled", "causal"):
        for wanted, text in TEXTS.items():
            found = told(run("query", folder / f"{name}.act", text, "--k", "1", "--json"))
            assert found["hits"][0][0]["id"] == wanted, name
            assert found["hits"][0][0]["score"] > 0.999, name


def test_lines(folder: Path, run: Any) -> None:
    """Rank, score, id and text, as wide as the terminal; the text is stored, or made of the tokens."""
    for name in ("texts", "rows", "pooled"):
        status, out, err = run("query", folder / f"{name}.act", TEXTS["dates"], "--k", "3", columns=60)
        assert (status, err) == (0, ""), name
        lines = out.splitlines()
        assert len(lines) == 3
        assert all(len(line) <= 60 for line in lines)
        assert lines[0].split(maxsplit=3)[:3] == ["1", "1.000", "dates"], name
        assert lines[0].split(maxsplit=3)[3].startswith("parse a date"), name
    assert len(run("query", folder / "texts.act", "a", columns=40)[1].splitlines()[0]) <= 40


def test_several_layers_are_summed(folder: Path, run: Any) -> None:
    found = told(run("query", folder / "rows.act", QUESTION, "--layers", "0,2", "--json"))
    assert found["layers"] == [0, 2]
    query = states(folder / "bert", QUESTION).mean(0)
    rows = np.stack([states(folder / "bert", text).mean(0) for text in TEXTS.values()])
    scores = cosines(query[0], rows[:, 0]) + cosines(query[2], rows[:, 2])
    np.testing.assert_allclose([hit["score"] for hit in found["hits"][0]], np.sort(scores)[::-1], atol=1e-5)
    assert found["hits"][0][0]["layer"] is None
    assert told(run("query", folder / "rows.act", QUESTION, "--layers", "1:", "--json"))["layers"] == [1, 2]


def test_another_site_metric_and_pool(folder: Path, run: Any) -> None:
    asked = ("--site", "mlp_out", "--metric", "l2", "--pool", "first", "--json")
    found = told(run("query", folder / "texts.act", TEXTS["cats"], *asked))
    assert (found["site"], found["layers"], found["pool"], found["metric"]) == ("mlp_out", [1], "first", "l2")
    assert found["hits"][0][0]["id"] == "cats"
    assert abs(found["hits"][0][0]["score"]) < 1e-8
    assert found["hits"][0][1]["score"] < 0


def test_tokens_are_marked_in_their_context(folder: Path, tmp_path: Path, run: Any) -> None:
    with actstore.open(folder / "rows.act") as store:
        np.save(tmp_path / "date.npy", store["resid"].example("dates")[3, 1])  # [CLS] parse a date
    asked = ("query", folder / "rows.act", "--npy", tmp_path / "date.npy", "--tokens", "--layer", "1")
    first = told(run(*asked, "--json"))["hits"][0][0]
    assert (first["id"], first["position"], first["token"], first["layer"]) == ("dates", 3, "date", 1)
    assert first["text"] == "[CLS] parse a «date» and a time from a string [SEP]"
    status, out, err = run(*asked)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith("dates    [CLS] parse a «date» and a time from a string [SEP]")
    for columns in (40, 50, 60):
        status, out, _ = run("query", folder / "rows.act", "date", "--tokens", columns=columns)
        assert status == 0
        assert all(len(line) <= columns and "«" in line and "»" in line for line in out.splitlines())


def test_a_pooled_site_in_the_store_is_used(folder: Path, tmp_path: Path, run: Any) -> None:
    path = shutil.copytree(folder / "rows.act", tmp_path / "x.act")
    with actstore.open(path) as store:
        store["resid"].pool("mean", out="docs")
        store["resid"].pool("max", out="maxima", layers=[0, 2])
        store["resid"].pool("mean", out="mixed", mix="sum")
    expected = told(run("query", folder / "rows.act", QUESTION, "--json"))
    assert told(run("query", path, QUESTION, "--json"))["hits"] == expected["hits"]
    by_name = told(run("query", path, QUESTION, "--site", "docs", "--json"))
    assert (by_name["site"], by_name["pool"]) == ("resid", "mean")
    assert by_name["hits"] == expected["hits"]
    found = told(run("query", path, QUESTION, "--site", "maxima", "--json"))
    assert (found["layers"], found["pool"]) == ([2], "max")
    status, _, err = run("query", path, QUESTION, "--site", "mixed")
    assert status == 1
    assert "several layers mixed" in err
    status, _, err = run("query", path, QUESTION, "--site", "docs", "--pool", "max")
    assert status == 1
    assert "pooled already, by mean" in err


def test_of_a_store_that_was_pooled(folder: Path, run: Any) -> None:
    found = told(run("query", folder / "pooled.act", QUESTION, "--json"))
    assert found["pool"] == "max"
    query = states(folder / "bert", QUESTION)[:, 2].max(0)
    rows = np.stack([states(folder / "bert", text)[:, 2].max(0) for text in TEXTS.values()])
    np.testing.assert_allclose(
        [hit["score"] for hit in found["hits"][0]], np.sort(cosines(query, rows))[::-1], atol=1e-5
    )
    status, _, err = run("query", folder / "pooled.act", QUESTION, "--tokens")
    assert status == 1
    assert "none for tokens" in err


@needs_minilm
def test_as_the_sentence_transformer(tmp_path: Path, run: Any) -> None:
    library = pytest.importorskip("sentence_transformers")
    actstore.capture(tmp_path / "x.act", MINILM, list(TEXTS.items()), progress=False, device="cpu")
    found = told(run("query", tmp_path / "x.act", "kittens on rugs", "--json", "--device", "cpu"))
    model = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    scores = model.encode(list(TEXTS.values())) @ model.encode("kittens on rugs")
    assert [hit["id"] for hit in found["hits"][0]] == [list(TEXTS)[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit["score"] for hit in found["hits"][0]], np.sort(scores)[::-1], atol=1e-5)


@needs_minilm
def test_a_process_of_its_own_says_nothing_else(tmp_path: Path) -> None:
    actstore.capture(tmp_path / "x.act", MINILM, list(TEXTS.items()), progress=False, device="cpu")
    command = [sys.executable, "-m", "actstore", "query", tmp_path / "x.act", "a cat " * 400, "--k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    [line] = done.stderr.splitlines()
    assert line.startswith("warning: 1 of 1 texts are longer than 256 tokens and were cut: 546 tokens")
    assert done.stdout.splitlines()[0].endswith("cats  the cat sat on the mat")


# ---- Examples and vectors ----


def test_like_an_example(folder: Path, run: Any) -> None:
    """By id or position; it is not found itself, and no model is needed."""
    expected = told(run("query", folder / "rows.act", TEXTS["dates"], "--json"))["hits"][0][1:]
    for name in ("dates", "2"):
        found = told(run("query", folder / "rows.act", "--example", name, "--json"))
        assert [hit["id"] for hit in found["hits"][0]] == [hit["id"] for hit in expected]
    found = told(run("query", folder / "pooled.act", "--example", "dates", "--k", "2", "--json"))
    assert len(found["hits"][0]) == 2
    assert "dates" not in [hit["id"] for hit in found["hits"][0]]
    found = told(run("query", folder / "rows.act", "--example", "dates", "--tokens", "--json"))
    assert "dates" not in [hit["id"] for hit in found["hits"][0]]


def test_vectors_of_a_file(folder: Path, tmp_path: Path, run: Any) -> None:
    with actstore.open(folder / "rows.act") as store:
        docs = store["resid"].pool("mean").read()
    for name, array, asked in (
        ("one", docs[3, 2], ["--layer", "2"]),
        ("many", docs[[3, 0], 2], []),
        ("layers", docs[[3]].astype(np.float64), ["--layers", "0,1,2"]),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        found = told(run("query", folder / "rows.act", "--npy", tmp_path / f"{name}.npy", "--json", *asked))
        assert found["hits"][0][0]["id"] == "files", name
        assert len(found["hits"]) == (2 if name == "many" else 1)
    status, out, err = run("query", folder / "rows.act", "--npy", tmp_path / "many.npy", "--k", "1")
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[::2]] == [["query", "0"], ["query", "1"]]


def test_a_store_that_no_model_made(tmp_path: Path, run: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    with actstore.create(tmp_path / "x.act", {"mine": actstore.SiteSpec(2, 4, "float32")}) as writer:
        writer.append({"mine": rows}, [2, 1, 3], ids=["a", "b", "c"], tokens={"id": np.arange(6)})
    found = told(run("query", tmp_path / "x.act", "--example", "b", "--json"))
    assert {hit["id"] for hit in found["hits"][0]} == {"a", "c"}
    assert found["hits"][0][0]["text"] is None
    assert run("query", tmp_path / "x.act", "--example", "b", "--tokens")[0] == 0
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "by which name" in err


# ---- What is refused ----


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["words", "--example", "cats"],
        ["--example", "cats", "--npy", "x.npy"],
        ["words", "--layer", "1", "--layers", "1,2"],
        ["words", "--layer", "-1"],
        ["words", "--k", "0"],
        ["words", "--metric", "jaccard"],
        ["words", "--pool", "median"],
    ],
)
def test_wrong_usage(folder: Path, args: list[str], run: Any) -> None:
    status, out, err = run("query", folder / "rows.act", *args)
    assert (status, out) == (2, "")
    assert err.startswith("usage: actstore query")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["words", "--layer", "9"], "9"),
        (["words", "--site", "nowhere"], "nowhere"),
        (["--example", "nobody"], "nobody"),
        (["--example", "6"], "'6'"),
        (["--npy", "no/such.npy"], "no/such.npy"),
        (["words", "--device", "no-such"], "cannot be used"),
        (["", "--tokens", "--layer", "9"], "9"),
    ],
)
def test_expected_failures(folder: Path, args: list[str], words: str, run: Any) -> None:
    status, out, err = run("query", folder / "rows.act", *args)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err


def test_files_that_are_no_vectors(folder: Path, tmp_path: Path, run: Any) -> None:
    arrays = {
        "text.npy": b"hello",
        "empty.npy": b"",
    }
    for name, data in arrays.items():
        (tmp_path / name).write_bytes(data)
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    np.save(tmp_path / "other.npy", np.ones(7, np.float32))
    np.save(tmp_path / "nan.npy", np.full(16, np.nan, np.float32))
    np.savez(tmp_path / "several.npz", a=np.ones(16))
    for path in sorted(tmp_path.glob("*.np*")):
        status, out, err = run("query", folder / "rows.act", "--npy", path)
        assert (status, out) == (1, ""), path
        assert err.startswith("error: "), path


def test_a_store_that_is_none(tmp_path: Path, run: Any) -> None:
    status, out, err = run("query", tmp_path / "no.act", "words")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")


def test_another_model_by_now(tmp_path: Path, run: Any) -> None:
    write_bert(tmp_path / "bert")
    actstore.capture(tmp_path / "x.act", str(tmp_path / "bert"), list(TEXTS.items()), progress=False)
    write_bert(tmp_path / "bert", seed=1)
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "another model by now" in err
    assert "hint: " in err
    shutil.rmtree(tmp_path / "bert")
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "there is no model" in err
    assert run("query", tmp_path / "x.act", "--example", "cats")[0] == 0  # which needs none


# ---- verify --recompute ----


def test_recompute(folder: Path, run: Any) -> None:
    status, out, err = run("verify", folder / "texts.act", "--recompute", "3")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("checked: ok")
    assert lines[1].split()[:2] == ["site", "layer"]
    assert [line.split()[:2] for line in lines[2:-1]] == [
        *(["resid", str(i)] for i in range(3)),
        *(["mlp_out", str(i)] for i in range(2)),
    ]
    assert lines[-1] == "3 examples computed again: ok"
    assert run("verify", folder / "rows.act", "--recompute", "6")[0] == 0  # from the tokens
    assert run("verify", folder / "pooled.act", "--recompute", "6")[0] == 0
    found = told(run("verify", folder / "causal.act", "--recompute", "100", "--seed", "1", "--json"))
    assert found["ok"] is True
    assert found["recomputed"]["ok"] is True
    assert found["recomputed"]["sites"]["mlp_out"]["1"]["min_cosine"] > 0.999


def test_recompute_finds_other_rows(folder: Path, tmp_path: Path, run: Any) -> None:
    """Of a store whose checksums are right."""
    with actstore.open(folder / "texts.act") as store:
        rows = store["resid"].read()
        rows[:, 1] = rows[::-1, 1]
        identity = dict(store.identity)
        lengths = np.diff(store.tokens.offset)
        spec = actstore.SiteSpec(3, 16, "float32")
        with actstore.create(tmp_path / "x.act", {"resid": spec}, identity=identity) as writer:
            writer.append(
                {"resid": rows},
                lengths,
                ids=list(TEXTS),
                tokens={name: store.tokens[name] for name in store.tokens},
                columns={"text": store.examples["text"]},
            )
    assert run("verify", tmp_path / "x.act")[0] == 0
    status, out, _ = run("verify", tmp_path / "x.act", "--recompute", "6")
    assert status == 1
    assert out.endswith("they differ\n")


def test_recompute_needs_the_model(tmp_path: Path, run: Any) -> None:
    write_bert(tmp_path / "bert")
    actstore.capture(tmp_path / "x.act", str(tmp_path / "bert"), list(TEXTS.items()), progress=False)
    os.rename(tmp_path / "bert", tmp_path / "moved")
    status, _, err = run("verify", tmp_path / "x.act", "--recompute", "2")
    assert status == 1
    assert err.startswith("error: there is no model")
    assert run("verify", tmp_path / "x.act", "--recompute", "0")[0] == 2
