"""``actstore dump`` and ``actstore plan``: stores, summaries, estimates and errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from builders import files_of_record, files_on_disk
from children import LIMIT
from tiny_models import MINILM, needs_minilm, write_bert, write_gpt2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["the cat sat on the mat", "a dog ran far", "", "read a file in the house", "one two three " * 20]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    write_bert(made / "bert")
    write_gpt2(made / "gpt2", dtype="bfloat16")
    return made


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return path


def json_of(result: tuple[int, str, str], warned: bool = False) -> dict[str, Any]:
    """The JSON object on stdout."""
    code, out, err = result
    assert (code, bool(err)) == (0, warned), err
    parsed = json.loads(out)
    assert isinstance(parsed, dict)
    return parsed


# ---- dump ----


def test_one_text_per_line(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    status, out, err = run("dump", models / "bert", texts, "-o", tmp_path / "run.act")
    assert status == 0
    assert err.count("\n") == 1
    assert err.startswith("warning: 1 input")
    assert out.startswith(f"{tmp_path / 'run.act'}: 5 examples, 56 tokens, ")
    assert "1 truncated, no NaN or Inf" in out
    assert out.count("\n") == 1
    with actstore.open(tmp_path / "run.act") as store:
        assert store["resid"].shape == (8 + 6 + 2 + 8 + 32, 3, 16)
        assert store.examples["id"].tolist() == ["0", "1", "2", "3", "4"]
        loaded = transformers.AutoModel.from_pretrained(models / "bert")
        tokenizer = transformers.AutoTokenizer.from_pretrained(models / "bert")
        with torch.no_grad():
            every = loaded(
                **tokenizer(TEXTS[0], return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        expected = torch.stack([layer[0] for layer in every], 1).numpy()
        np.testing.assert_allclose(store["resid"].example(0), expected, atol=1e-5)


def test_json(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    path = tmp_path / "run.act"
    result = json_of(run("dump", models / "gpt2", texts, "-o", path, "--json", "--limit", "4"))
    with actstore.open(path) as store:
        assert result["examples"] == result["new_examples"] == store.n_examples == 4
        assert result["tokens"] == store.n_tokens
        assert result["sites"]["resid"] == {
            "axis": "tokens",
            "shape": list(store["resid"].shape),
            "dtype": "bfloat16",
            "layers": [0, 1, 2],
        }
        assert result["bytes"] == store.info()["stored_bytes"]
        assert result["ratio"] == store.info()["sites"]["resid"]["ratio"]
    assert result["raw_bytes"] == store.n_tokens * 3 * 16 * 2
    assert (result["cut_examples"], result["cut_tokens"]) == (0, 0)
    assert (result["nonfinite_examples"], result["nonfinite"]) == (0, {})
    assert result["path"] == str(path)
    assert result["seconds"] > 0
    assert result["tokens_per_second"] > 0


def test_every_option(models: Path, tmp_path: Path, run: Any) -> None:
    records = [{"key": f"k{i}", "body": text, "label": i, "other": "x"} for i, text in enumerate(TEXTS[:2])]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ["--sites", "resid,mlp_out", "--layers", "1", "--dtype", "float16", "--keep", "no-special"]
    options += ["--text-column", "body", "--id-column", "key", "--columns", "label", "--store-text"]
    options += ["--max-length", "16", "--batch-tokens", "64", "--codec", "raw", "--prompt", "the "]
    options += [
        "--device",
        "cpu",
        "--max-bytes",
        "1GB",
        "--force",
        "--seed",
        "3",
        "--threads",
        "1",
        "--quiet",
    ]
    result = json_of(
        run("dump", models / "bert", tmp_path / "t.jsonl", "-o", tmp_path / "x.act", *options, "--json")
    )
    assert result["sites"]["mlp_out"]["layers"] == [1]
    with actstore.open(tmp_path / "x.act") as store:
        assert store.sites == ["resid", "mlp_out"]
        assert store.info()["sites"]["resid"]["codec"] == "raw"
        assert store["resid"].dtype == np.float16
        assert store.examples["id"].tolist() == ["k0", "k1"]
        assert store.examples["label"].tolist() == [0, 1]
        assert store.examples["text"].tolist() == TEXTS[:2]
        assert "other" not in store.examples
        assert not store.tokens["special"].any()
        tokenizer = transformers.AutoTokenizer.from_pretrained(models / "bert")
        expected = tokenizer("the " + TEXTS[0], add_special_tokens=False).input_ids
        assert store.tokens["id"][store.tokens.offsets[0] : store.tokens.offsets[1]].tolist() == expected
        assert store.identity["template"]["prompt"] == "the "
        assert store.identity["truncation"]["max_length"] == 16


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_ids_from_a_column(models: Path, tmp_path: Path, run: Any, kind: str) -> None:
    rows = [{"text": "the cat", "year": 1999, "id": "a"}, {"text": "a dog", "year": 2000, "id": "b"}]
    path = tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        path.write_text("text,year,id\nthe cat,1999,a\na dog,2000,b\n")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for columns, kept in (([], False), (["--columns", "year"], True)):
        command = (
            "dump",
            models / "bert",
            path,
            "-o",
            tmp_path / "x.act",
            "--id-column",
            "year",
            "--overwrite",
        )
        assert run(*command, *columns)[0] == 0
        with actstore.open(tmp_path / "x.act") as store:
            assert store.examples["id"].tolist() == ["1999", "2000"]
            assert ("year" in store.examples) is kept


def test_parts(models: Path, texts: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, in the environment that torchrun sets."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        command = ("dump", models / "bert", texts, "-o", tmp_path / "x.act", "--stride", "16", "--json")
        assert json_of(run(*command))["path"].startswith(str(tmp_path / "x.act" / "part-"))
    assert sorted(actstore.open(tmp_path / "x.act").examples["id"]) == ["0", "1", "2", "3", "4"]


def test_pooled(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    command = ("dump", models / "bert", texts, "--limit", "4", "--json")
    rows = json_of(run(*command, "-o", tmp_path / "rows.act"))
    result = json_of(run(*command, "-o", tmp_path / "mean.act", "--pool", "mean"))
    assert result["sites"]["resid"]["shape"] == [4, 3, 16]
    assert result["tokens"] == rows["tokens"]  # the tokens that were pooled
    with actstore.open(tmp_path / "rows.act") as a, actstore.open(tmp_path / "mean.act") as b:
        np.testing.assert_allclose(b["resid"].read(), a["resid"].pool("mean").read(), atol=1e-5)


def test_windows_and_random_fractions(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    command = ("dump", models / "bert", texts, "--json")
    result = json_of(run(*command, "-o", tmp_path / "w.act", "--stride", "16"))
    assert (result["cut_examples"], result["tokens"]) == (0, 24 + 62)
    result = json_of(run(*command, "-o", tmp_path / "s.act", "--keep", "0.5", "--stride", "16"))
    assert 20 < result["tokens"] < 70


def test_stdin(models: Path, texts: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "actstore", "dump", models / "bert", "-", "-o", tmp_path / "x.act"]
    with texts.open() as file:
        done = subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "5 examples" in done.stdout
    assert actstore.open(tmp_path / "x.act").n_examples == 5


def test_a_chat(models: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "t.txt").write_text("the cat\n")
    template = tmp_path / "chat.jinja"
    template.write_text("[CLS]{% for m in messages %}{{ m.content }}[SEP]{% endfor %}")
    for i, chat in enumerate([template.read_text(), str(template)]):
        result = json_of(
            run(
                "dump", models / "bert", tmp_path / "t.txt", "-o", tmp_path / f"{i}", "--json", "--chat", chat
            )
        )
        assert result["tokens"] == 4
    status, _, err = run("dump", models / "bert", tmp_path / "t.txt", "-o", tmp_path / "x", "--chat")
    assert status == 1
    assert "no chat template" in err


def test_nan_is_counted_by_layer(models: Path, tmp_path: Path, run: Any) -> None:
    """One weight of the model's last block is NaN."""
    model = transformers.AutoModel.from_pretrained(models / "bert")
    with torch.no_grad():
        model.encoder.layer[1].output.dense.bias[3] = torch.nan
    model.save_pretrained(tmp_path / "bad")
    transformers.AutoTokenizer.from_pretrained(models / "bert").save_pretrained(tmp_path / "bad")
    (tmp_path / "t.txt").write_text("the cat\na dog\n")
    status, out, err = run("dump", tmp_path / "bad", tmp_path / "t.txt", "-o", tmp_path / "x.act")
    assert status == 0
    assert "2 with NaN or Inf" in out
    assert "  resid, layer 2: " in out
    assert "resid, layer 1" not in out
    assert err.startswith("warning: resid, layer 2: ")
    result = json_of(
        run("dump", tmp_path / "bad", tmp_path / "t.txt", "-o", tmp_path / "y.act", "--json"), warned=True
    )
    assert result["nonfinite"]["resid"].keys() == {"2"}
    assert result["nonfinite"]["resid"]["2"]["nan"] > 0
    status, _, err = run(
        "dump", tmp_path / "bad", tmp_path / "t.txt", "-o", tmp_path / "z.act", "--on-nan", "raise"
    )
    assert status == 1
    assert "NaN" in err


def test_resume_and_overwrite(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    command = ("dump", models / "bert", texts, "-o", tmp_path / "x.act", "--stride", "16")
    assert run(*command, "--limit", "2")[0] == 0
    status, _, err = run(*command)
    assert status == 1
    assert "exists" in err
    status, out, _ = run(*command, "--resume")
    assert status == 0
    assert "5 examples (3 new), " in out
    whole = json_of(run("dump", models / "bert", texts, "-o", tmp_path / "y.act", "--stride", "16", "--json"))
    with actstore.open(tmp_path / "x.act") as a, actstore.open(tmp_path / "y.act") as b:
        assert a.n_tokens == b.n_tokens == whole["tokens"]
        np.testing.assert_allclose(a["resid"].read(), b["resid"].read(), atol=1e-5)
    status, _, err = run(*command, "--resume", "--pool", "mean")
    assert status == 1
    assert "pool" in err
    assert run(*command, "--overwrite", "--limit", "1")[0] == 0
    assert actstore.open(tmp_path / "x.act").n_examples == 1


@needs_minilm
def test_minilm(texts: Path, tmp_path: Path, run: Any) -> None:
    result = json_of(run("dump", MINILM, texts, "-o", tmp_path / "x.act", "--json", "--device", "cpu"))
    assert result["sites"]["resid"]["layers"] == list(range(7))
    with actstore.open(tmp_path / "x.act") as store:
        assert store.identity["model"]["name_or_path"] == MINILM


@pytest.mark.slow
def test_an_interrupt_says_how_to_continue(models: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on the mat " * 4 + "\n" + "a dog ran far\n" * 400_000)
    out = tmp_path / "x.act"
    command = [sys.executable, "-m", "actstore", "dump", models / "bert", tmp_path / "t.txt", "-o", out]
    child = subprocess.Popen([*command, "--batch-tokens", "512"], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + LIMIT
    # Wait until rows are written.
    while not ((out / "zarr.json").exists() and files_on_disk(out) - files_of_record(out)):
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=LIMIT)
    assert child.returncode == 130
    assert "continue with --resume" in err
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    with actstore.open(out) as store:
        assert 0 < store.n_examples < 400_001
        assert store.verify().ok


# ---- --list-sites, plan ----


def test_list_sites(models: Path, run: Any) -> None:
    for command in ("dump", "plan"):
        status, out, err = run(command, models / "gpt2", "--list-sites")
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert lines[0].split() == ["site", "layers", "dim", "what"]
        result = {line.split()[0]: line.split()[1:3] for line in lines[1:]}
        assert result["resid"] == ["0-2", "16"]
        assert result["logits"] == ["2", "80"]
    result = json_of(run("dump", models / "gpt2", "--list-sites", "--json"))
    assert result["sites"][0]["site"] == "resid"


def test_plan(models: Path, texts: Path, run: Any) -> None:
    status, out, err = run("plan", models / "bert", texts, "--stride", "16")
    assert (status, err) == (0, "")
    for word in ("examples    5", "resid  float32", "disk ", "free ", "time "):
        assert word in out
    result = json_of(run("plan", models / "bert", texts, "--stride", "16", "--sites", "resid,q", "--json"))
    assert result["n_examples"] == 5
    assert result["n_tokens"] >= 86  # tokens in overlaps of windows count twice
    assert result["sites"].keys() == {"resid", "q"}
    assert result["fits"] is True


def test_plan_fails_where_dump_would(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    status, out, _ = run("plan", models / "bert", texts, "--max-bytes", "1kB")
    assert status == 1
    assert "limit       1000 B: too small" in out
    command = ("dump", models / "bert", texts, "-o", tmp_path / "x.act", "--max-bytes", "1kB")
    status, _, err = run(*command)
    assert status == 1
    assert "hint: " in err
    assert not (tmp_path / "x.act").exists() or actstore.open(tmp_path / "x.act").n_examples == 0
    assert run("plan", models / "bert", texts, "--max-bytes", "1kB", "--force")[0] == 0
    assert run(*command, "--force", "--overwrite")[0] == 0


def test_plan_writes_nothing(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run("plan", models / "bert", texts, "-o", tmp_path / "x.act")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before


# ---- Errors ----


@pytest.mark.parametrize(
    "args",
    [
        ["dump"],
        ["dump", "MODEL"],
        ["dump", "MODEL", "TEXTS"],
        ["plan", "MODEL"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--pool", "median"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--keep", "some"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--keep", "1.5"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--keep", "nan"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--layers", "first"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--sites", "resid,,q"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--max-bytes", "20 apples"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--max-length", "0"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--batch-tokens", "-3"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--limit", "many"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--resume", "--overwrite"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--codec", "zip"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--on-nan", "shrug"],
        ["dump", "MODEL", "TEXTS", "-o", "x", "--threads", "-1"],
    ],
)
def test_wrong_usage(args: list[str], models: Path, texts: Path, run: Any) -> None:
    names = {"MODEL": models / "bert", "TEXTS": texts}
    status, out, err = run(*(names.get(arg, arg) for arg in args))
    assert (status, out) == (2, "")
    assert err.startswith("usage: actstore ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["NOMODEL"], "there is no model"),
        (["package:no_such_package"], "is not installed"),
        (["TMP"], "folder without a model"),
        (["MODEL", "no/such.txt"], "do not exist"),
        (["MODEL", "TMP"], "corpus.jsonl"),
        (["MODEL", "TEXTS", "--sites", "no_such"], "no_such"),
        (["MODEL", "TEXTS", "--layers", "7"], "7"),
        (["MODEL", "TEXTS", "--dtype", "int4"], "int4"),
        (["MODEL", "TEXTS", "--max-length", "4096"], "4096"),
        (["MODEL", "TEXTS", "--stride", "4096"], "stride"),
        (["MODEL", "TEXTS", "--device", "no-such"], "cannot be used"),
        (["MODEL", "TEXTS", "--id-column", "key"], "'key'"),
        (["MODEL", "TEXTS", "--chat", "no template"], "chat"),
        (["MODEL", "TEXTS", "--pool", "mean", "--keep", "no-special"], "no rows"),
    ],
)
def test_expected_failures(
    change: list[str], words: str, models: Path, texts: Path, tmp_path: Path, run: Any
) -> None:
    (tmp_path / "empty").mkdir()
    names = {
        "MODEL": models / "bert",
        "TEXTS": texts,
        "TMP": tmp_path / "empty",
        "NOMODEL": "no/such/model/here",
    }
    args = [names.get(arg, arg) for arg in change]
    args += [texts] if len(args) == 1 else []
    status, out, err = run("dump", *args, "-o", tmp_path / "x.act")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err


def test_output_path_is_a_file(models: Path, texts: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "file").write_text("mine")
    for flag in ([], ["--resume"], ["--overwrite"]):
        status, _, err = run("dump", models / "bert", texts, "-o", tmp_path / "file", *flag)
        assert status == 1
        assert err.startswith("error: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_help_needs_no_torch() -> None:
    """Usage errors do not need it either."""
    code = """
import sys
sys.argv = ["actstore"]
from actstore.cli import main
for command in ("dump", "plan", "query", "demo", "verify"):
    main([command, "--help"])
main(["dump"])
heavy = [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
