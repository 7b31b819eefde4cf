"""``actstore query``: hits, models and errors; and ``actstore verify --recompute``."""

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
    "colors": "green, blue or red",
}
QUESTION = "parse a date"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and stores that tests only read."""
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
        keep="no-special",
        prompt="the ",
        sites=["mlp_out"],
        store_text=True,
        progress=False,
    )
    return made


def json_of(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    parsed = json.loads(out)
    assert isinstance(parsed, dict)
    return parsed


def states(folder: Path, text: str) -> np.ndarray[Any, Any]:
    """The hidden states of a text, computed by transformers alone, ``[T, L, D]``."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        every = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
    stacked: np.ndarray[Any, Any] = torch.stack([layer[0].float() for layer in every], 1).numpy()
    return stacked


def cosines(query: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    cos: np.ndarray[Any, Any] = rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)
    return cos


# ---- Texts ----


@pytest.mark.parametrize("layer", [None, 1])
def test_a_text_is_ranked_as_by_transformers(folder: Path, run: Any, layer: int | None) -> None:
    at = 2 if layer is None else layer
    query = states(folder / "bert", QUESTION)[:, at].mean(0)
    rows = np.stack([states(folder / "bert", text)[:, at].mean(0) for text in TEXTS.values()])
    scores = cosines(query, rows)
    order = np.argsort(-scores)
    options = [] if layer is None else ["--layer", str(layer)]
    result = json_of(run("query", folder / "rows.act", QUESTION, *options, "--json"))
    assert (result["site"], result["layers"], result["pool"], result["metric"]) == (
        "resid",
        [at],
        "mean",
        "cos",
    )
    [hits] = result["hits"]
    assert [hit["id"] for hit in hits] == [list(TEXTS)[i] for i in order]
    np.testing.assert_allclose([hit["score"] for hit in hits], scores[order], atol=1e-5)
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5, 6]


def test_a_text_finds_itself(folder: Path, run: Any) -> None:
    """In every store, whatever its template, tokens, dtype and pooling."""
    for name in ("rows", "texts", "pooled", "causal"):
        for wanted, text in TEXTS.items():
            result = json_of(run("query", folder / f"{name}.act", text, "--k", "1", "--json"))
            assert result["hits"][0][0]["id"] == wanted, name
            assert result["hits"][0][0]["score"] > 0.999, name


def test_lines(folder: Path, run: Any) -> None:
    """A line has rank, score, id and text, and fits the terminal; the text is stored or decoded."""
    for name in ("texts", "rows", "pooled"):
        status, out, err = run("query", folder / f"{name}.act", TEXTS["dates"], "--k", "3", columns=60)
        assert (status, err) == (0, ""), name
        lines = out.splitlines()
        assert len(lines) == 3
        assert all(len(line) <= 60 for line in lines)
        assert lines[0].split(maxsplit=3)[:3] == ["1", "1.000", "dates"], name
        assert lines[0].split(maxsplit=3)[3].startswith("parse a date"), name
    assert len(run("query", folder / "texts.act", "a", columns=40)[1].splitlines()[0]) <= 40


@pytest.mark.parametrize(("combine", "reduce"), [("sum", np.sum), ("max", np.max)])
def test_several_layers_are_combined(folder: Path, run: Any, combine: str, reduce: Any) -> None:
    options = ("--layers", "0,2", "--combine", combine, "--json")
    result = json_of(run("query", folder / "rows.act", QUESTION, *options))
    assert (result["layers"], result["combine"]) == ([0, 2], combine)
    query = states(folder / "bert", QUESTION).mean(0)
    rows = np.stack([states(folder / "bert", text).mean(0) for text in TEXTS.values()])
    by_layer = np.stack([cosines(query[label], rows[:, label]) for label in (0, 2)])
    scores = reduce(by_layer, axis=0)
    np.testing.assert_allclose([hit["score"] for hit in result["hits"][0]], np.sort(scores)[::-1], atol=1e-5)
    winner = None if combine == "sum" else (0, 2)[int(by_layer[:, scores.argmax()].argmax())]
    assert result["hits"][0][0]["layer"] == winner


@pytest.mark.parametrize("more", [[], ["--maxsim"], ["--tokens"]])
def test_several_layers_need_combine(folder: Path, run: Any, more: list[str]) -> None:
    status, out, err = run("query", folder / "rows.act", QUESTION, "--layers", "1:", *more)
    assert (status, out) == (2, "")
    assert "several layers (1, 2): --combine sum or --combine max" in err
    options = (*more, "--layers", "1:", "--combine", "max", "--json")
    assert json_of(run("query", folder / "rows.act", QUESTION, *options))["layers"] == [1, 2]


def test_another_site_metric_and_pool(folder: Path, run: Any) -> None:
    options = ("--site", "mlp_out", "--metric", "l2", "--pool", "first", "--json")
    result = json_of(run("query", folder / "texts.act", TEXTS["cats"], *options))
    assert (result["site"], result["layers"], result["pool"], result["metric"]) == (
        "mlp_out",
        [1],
        "first",
        "l2",
    )
    assert result["hits"][0][0]["id"] == "cats"
    assert abs(result["hits"][0][0]["score"]) < 1e-8
    assert result["hits"][0][1]["score"] < 0


def test_tokens_are_marked_in_their_context(folder: Path, tmp_path: Path, run: Any) -> None:
    with actstore.open(folder / "rows.act") as store:
        np.save(tmp_path / "date.npy", store["resid"].example("dates")[3, 1])  # [CLS] parse a date
    options = ("query", folder / "rows.act", "--npy", tmp_path / "date.npy", "--tokens", "--layer", "1")
    first = json_of(run(*options, "--json"))["hits"][0][0]
    assert (first["id"], first["position"], first["token"], first["layer"]) == ("dates", 3, "date", 1)
    assert first["text"] == "[CLS] parse a «date» and a time from a string [SEP]"
    status, out, err = run(*options)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith("dates    [CLS] parse a «date» and a time from a string [SEP]")
    for columns in (40, 50, 60):
        status, out, _ = run("query", folder / "rows.act", "date", "--tokens", columns=columns)
        assert status == 0
        assert all(len(line) <= columns and "«" in line and "»" in line for line in out.splitlines())


def test_a_stored_pooled_site_is_used(folder: Path, tmp_path: Path, run: Any) -> None:
    path = shutil.copytree(folder / "rows.act", tmp_path / "x.act")
    with actstore.open(path) as store:
        store["resid"].pool("mean", out="docs")
        store["resid"].pool("max", out="maxima", layers=[0, 2])
        store["resid"].pool("mean", out="mixed", mix="sum")
    expected = json_of(run("query", folder / "rows.act", QUESTION, "--json"))
    assert json_of(run("query", path, QUESTION, "--json"))["hits"] == expected["hits"]
    by_name = json_of(run("query", path, QUESTION, "--site", "docs", "--json"))
    assert (by_name["site"], by_name["pool"]) == ("resid", "mean")
    assert by_name["hits"] == expected["hits"]
    result = json_of(run("query", path, QUESTION, "--site", "maxima", "--json"))
    assert (result["layers"], result["pool"]) == ([2], "max")
    status, _, err = run("query", path, QUESTION, "--site", "mixed")
    assert status == 1
    assert "with its layers mixed" in err
    status, _, err = run("query", path, QUESTION, "--site", "docs", "--pool", "max")
    assert status == 1
    assert "already pooled with 'mean'" in err


def test_a_store_pooled_at_capture(folder: Path, run: Any) -> None:
    result = json_of(run("query", folder / "pooled.act", QUESTION, "--json"))
    assert result["pool"] == "max"
    query = states(folder / "bert", QUESTION)[:, 2].max(0)
    rows = np.stack([states(folder / "bert", text)[:, 2].max(0) for text in TEXTS.values()])
    np.testing.assert_allclose(
        [hit["score"] for hit in result["hits"][0]], np.sort(cosines(query, rows))[::-1], atol=1e-5
    )
    status, _, err = run("query", folder / "pooled.act", QUESTION, "--tokens")
    assert status == 1
    assert "not per token" in err


@needs_minilm
def test_scores_match_sentence_transformers(tmp_path: Path, run: Any) -> None:
    library = pytest.importorskip("sentence_transformers")
    actstore.capture(tmp_path / "x.act", MINILM, list(TEXTS.items()), progress=False, device="cpu")
    result = json_of(run("query", tmp_path / "x.act", "kittens on rugs", "--json", "--device", "cpu"))
    model = library.SentenceTransformer(str(minilm_folder()), device="cpu")
    scores = model.encode(list(TEXTS.values())) @ model.encode("kittens on rugs")
    assert [hit["id"] for hit in result["hits"][0]] == [list(TEXTS)[i] for i in np.argsort(-scores)]
    np.testing.assert_allclose([hit["score"] for hit in result["hits"][0]], np.sort(scores)[::-1], atol=1e-5)


@needs_minilm
def test_stderr_has_only_our_warnings(tmp_path: Path) -> None:
    actstore.capture(tmp_path / "x.act", MINILM, list(TEXTS.items()), progress=False, device="cpu")
    command = [sys.executable, "-m", "actstore", "query", tmp_path / "x.act", "a cat " * 400, "--k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    [line] = done.stderr.splitlines()
    assert line.startswith("warning: 1 of 1 texts are longer than 256 tokens and were truncated: 546 tokens")
    assert done.stdout.splitlines()[0].endswith("cats  the cat sat on the mat")


# ---- Examples and vectors ----


def test_similar_to_an_example(folder: Path, run: Any) -> None:
    """The example is given by id or position, is not among its own hits, and needs no model."""
    expected = json_of(run("query", folder / "rows.act", TEXTS["dates"], "--json"))["hits"][0][1:]
    for name in ("dates", "2"):
        result = json_of(run("query", folder / "rows.act", "--example", name, "--json"))
        assert [hit["id"] for hit in result["hits"][0]] == [hit["id"] for hit in expected]
    result = json_of(run("query", folder / "pooled.act", "--example", "dates", "--k", "2", "--json"))
    assert len(result["hits"][0]) == 2
    assert "dates" not in [hit["id"] for hit in result["hits"][0]]
    result = json_of(run("query", folder / "rows.act", "--example", "dates", "--tokens", "--json"))
    assert "dates" not in [hit["id"] for hit in result["hits"][0]]


def test_vectors_from_a_file(folder: Path, tmp_path: Path, run: Any) -> None:
    with actstore.open(folder / "rows.act") as store:
        docs = store["resid"].pool("mean").read()
    for name, array, options in (
        ("one", docs[3, 2], ["--layer", "2"]),
        ("many", docs[[3, 0], 2], []),
        ("layers", docs[[3]].astype(np.float64), ["--layers", "0,1,2", "--combine", "sum"]),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        result = json_of(
            run("query", folder / "rows.act", "--npy", tmp_path / f"{name}.npy", "--json", *options)
        )
        assert result["hits"][0][0]["id"] == "files", name
        assert len(result["hits"]) == (2 if name == "many" else 1)
    status, out, err = run("query", folder / "rows.act", "--npy", tmp_path / "many.npy", "--k", "1")
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[::2]] == [["query", "0"], ["query", "1"]]


def test_a_store_without_a_model(tmp_path: Path, run: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    with actstore.create(tmp_path / "x.act", {"mine": actstore.SiteSpec(2, 4, "float32")}) as writer:
        writer.append({"mine": rows}, [2, 1, 3], ids=["a", "b", "c"], token_columns={"id": np.arange(6)})
    result = json_of(run("query", tmp_path / "x.act", "--example", "b", "--json"))
    assert {hit["id"] for hit in result["hits"][0]} == {"a", "c"}
    assert result["hits"][0][0]["text"] is None
    assert run("query", tmp_path / "x.act", "--example", "b", "--tokens")[0] == 0
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "does not record a name" in err


# ---- Errors ----


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


def test_files_without_vectors(folder: Path, tmp_path: Path, run: Any) -> None:
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


def test_a_missing_store(tmp_path: Path, run: Any) -> None:
    status, out, err = run("query", tmp_path / "no.act", "words")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")


def test_a_changed_model(tmp_path: Path, run: Any) -> None:
    write_bert(tmp_path / "bert")
    actstore.capture(tmp_path / "x.act", str(tmp_path / "bert"), list(TEXTS.items()), progress=False)
    write_bert(tmp_path / "bert", seed=1)
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "is not the model of the store" in err
    assert "hint: " in err
    shutil.rmtree(tmp_path / "bert")
    status, _, err = run("query", tmp_path / "x.act", "words")
    assert status == 1
    assert "there is no model" in err
    assert run("query", tmp_path / "x.act", "--example", "cats")[0] == 0  # needs no model


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
    assert lines[-1] == "3 examples recomputed: ok"
    assert run("verify", folder / "rows.act", "--recompute", "6")[0] == 0  # from the stored tokens
    assert run("verify", folder / "pooled.act", "--recompute", "6")[0] == 0
    result = json_of(run("verify", folder / "causal.act", "--recompute", "100", "--seed", "1", "--json"))
    assert result["ok"] is True
    assert result["recomputed"]["ok"] is True
    assert result["recomputed"]["sites"]["mlp_out"]["1"]["min_cosine"] > 0.999


def test_recompute_detects_wrong_rows(folder: Path, tmp_path: Path, run: Any) -> None:
    """The rows are those of other tokens, with valid checksums."""
    with actstore.open(folder / "texts.act") as store:
        rows = store["resid"].read()
        rows[:, 1] = rows[::-1, 1]
        identity = dict(store.identity)
        lengths = np.diff(store.tokens.offsets)
        spec = actstore.SiteSpec(3, 16, "float32")
        with actstore.create(tmp_path / "x.act", {"resid": spec}, identity=identity) as writer:
            writer.append(
                {"resid": rows},
                lengths,
                ids=list(TEXTS),
                token_columns={name: store.tokens[name] for name in store.tokens},
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
