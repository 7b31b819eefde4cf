"""``actstore inspect``: numbers, charts and examples."""

import json
import re
import types
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from actstore.cli.render.formatting import one_line, percent, power_of_two, short_number

RNG = np.random.default_rng(0)
N, LABELS, DIM = 60, [0, 6, 12], 16


def rows() -> Any:
    acts = RNG.standard_t(5, (N, len(LABELS), DIM)).astype(np.float32)
    acts[:, :, 5] *= 50
    acts[:, 2, 3] = 0
    acts[7, 1, :3] = np.nan
    acts[9, 1, 4] = -np.inf
    return acts


ACTS = rows()
TEXTS = ["One short text.", "Two\x1b[31m lines\nand an Ümlaut.", "word " * 200]


def make(path: Path, **columns: Any) -> Path:
    with actstore.create(
        path, {"resid": actstore.SiteSpec(3, DIM, "float32", labels=LABELS)}, identity={"model": "toy"}
    ) as writer:
        writer.append(
            {"resid": ACTS},
            [10, 20, 30],
            ids=["a", "b", "2"],
            token_columns={"id": np.arange(N)},
            columns=columns or None,
        )
    return path


@pytest.fixture
def store(memory_path: Path) -> Path:
    return make(memory_path / "run.act", text=TEXTS)


def test_numbers(store: Path, run: Any) -> None:
    status, out, err = run("inspect", store, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (report["path"], report["n_examples"], report["n_tokens"]) == (str(store), 3, N)
    (site,) = report["sites"]
    assert (site["name"], site["shape"], site["axis"], site["recipe"]) == (
        "resid",
        [N, 3, DIM],
        "tokens",
        None,
    )
    for i, layer in enumerate(site["layers"]):
        values = ACTS[:, i].astype(np.float64)
        finite = values[np.isfinite(values)]
        assert (layer["layer"], layer["rows"], layer["values"]) == (LABELS[i], N, N * DIM)
        assert layer["nan"] == np.isnan(values).sum()
        assert layer["inf"] == np.isinf(values).sum()
        assert layer["zeros"] == (values == 0).sum()
        np.testing.assert_allclose(layer["mean"], finite.mean(), rtol=1e-6)
        np.testing.assert_allclose(layer["std"], finite.std(), rtol=1e-6)
        square = np.nanmean(np.where(np.isinf(values), np.nan, values) ** 2, axis=0)
        np.testing.assert_allclose(layer["norm"], np.sqrt(square.sum()), rtol=1e-6)
        assert layer["max"] == pytest.approx(float(np.nanmax(values)))
        assert layer["min"] == ("-Infinity" if i == 1 else pytest.approx(float(values.min())))
        largest = layer["largest"]
        assert [entry["dim"] for entry in largest] == np.argsort(-square, kind="stable")[:6].tolist()
        assert largest[0]["dim"] == 5
        assert largest[0]["times_median"] == pytest.approx(np.sqrt(square[5]) / np.median(np.sqrt(square)))
        assert sum(layer["histogram"]["negative"]) == (finite < 0).sum()
        assert sum(layer["histogram"]["positive"]) == (finite > 0).sum()
        assert layer["histogram"]["tiny"] == (finite == 0).sum()
        for e, below, above in zip(
            *(layer["histogram"][k] for k in ("exponents", "negative", "positive")), strict=True
        ):
            inside = (np.abs(finite) >= 2.0**e) & (np.abs(finite) < 2.0 ** (e + 1))
            assert (inside & (finite < 0)).sum() == below
            assert (inside & (finite > 0)).sum() == above


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("more", [[], ["--histogram"], ["--example", "b"]])
def test_lines_fit_the_terminal(store: Path, run: Any, columns: int, more: list[str]) -> None:
    status, out, err = run("inspect", store, *more, columns=columns)
    assert (status, err) == (0, "")
    if columns >= 80:
        assert max(map(len, out.splitlines())) <= columns
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())


def test_outliers_are_marked(store: Path, run: Any) -> None:
    out = run("inspect", store)[1]
    assert "  !! layer 6: 3 NaN and 1 infinite of 960 values\n" in out
    lines = out.splitlines()
    table = {line.split()[0]: line for line in lines[4:8]}
    assert "!!3" in table["6"]
    assert "!!1" in table["6"]
    assert "-inf" in table["6"]
    assert "!!" not in table["0"] + table["12"]
    assert re.search(r" 6\.2%$", table["12"])
    assert re.search(r"^ +0 +5 \u00d7", out, re.MULTILINE)
    assert "│" in out
    assert "█" in out


def test_full_histogram(store: Path, run: Any) -> None:
    out = run("inspect", store, "--histogram", "--layers", "12")[1]
    assert "layer 12: values by magnitude" in out
    shares = [float(x) for x in re.findall(r" ([0-9.]+)%", out.split("by magnitude")[1].split("examples")[0])]
    assert 95 < sum(shares) < 105
    assert "layer 0" not in out


def test_selection(store: Path, run: Any) -> None:
    layers = json.loads(run("inspect", store, "--layers", "12,-3", "--dims", "0", "--json")[1])["sites"][0][
        "layers"
    ]
    assert [layer["layer"] for layer in layers] == [12, 0]
    assert layers[0]["largest"] == []
    layers = json.loads(run("inspect", store, "--layers", "0:12", "--json")[1])["sites"][0]["layers"]
    assert [layer["layer"] for layer in layers] == [0, 6]
    assert "largest" not in run("inspect", store, "--dims", "0")[1]
    for args, words in [
        (["--site", "mlp"], "no site 'mlp'"),
        (["--layers", "7"], "no layer 7"),
        (["--example", "zzz"], "no example 'zzz'"),
        (["--example", "99"], "no example '99'"),
    ]:
        status, out, err = run("inspect", store, *args)
        assert (status, out) == (1, "")
        assert words in err
    for usage in (["--examples", "-1"], ["--dims", "x"], ["--examples", "1", "--example", "a"]):
        assert run("inspect", store, *usage)[0] == 2
    status, out, err = run("inspect", store.with_name("missing"))
    assert (status, out) == (1, "")
    assert "does not exist" in err


def test_text_of_examples(store: Path, run: Any) -> None:
    out = run("inspect", store)[1].split("\nexamples\n")[1]
    assert out.startswith("  0 a, 10 rows\n    One short text.\n  1 b, 20 rows\n")
    assert "    Two [31m lines and an Ümlaut.\n" in out
    assert out.endswith(" …\n")
    assert len(out.splitlines()) == 8
    assert "examples\n  " not in run("inspect", store, "--examples", "0")[1]
    assert "  1 b" not in run("inspect", store, "--examples", "1")[1]


def test_one_example(store: Path, run: Any) -> None:
    """Ids take precedence over positions; the whole text and the norms of the rows are shown."""
    out = run("inspect", store, "--example", "2", "--example", "1")[1]
    assert "  2, 30 rows" in out
    assert "  1 b, 20 rows" in out
    assert out.count("word") == 200
    assert "norms of the rows of resid" in out
    report = json.loads(run("inspect", store, "--example", "a", "--json")[1])["examples"]
    assert [example["id"] for example in report] == ["a"]
    assert report[0]["tokens"] == list(range(10))
    norms = report[0]["norms"]["resid"]
    assert norms.keys() == {"0", "6", "12"}
    np.testing.assert_allclose(norms["0"], np.linalg.norm(ACTS[:10, 0].astype(np.float64), axis=1))
    assert norms["6"][7] is norms["6"][9] is None
    line = next(line for line in out.splitlines() if re.match(r" +12 +[▁-█]", line))
    assert "!" not in line


def test_token_ids_replace_a_missing_text(memory_path: Path, run: Any) -> None:
    out = run("inspect", make(memory_path / "x.act"))[1]
    assert "token ids 0 1 2 3" in out


def test_a_local_tokenizer_decodes_the_tokens(
    memory_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded, and a tokenizer that fails is ignored."""
    requests = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            requests.append((name, options))
            return types.SimpleNamespace(decode=lambda ids: " ".join(f"<{i}>" for i in ids))

    fake = types.ModuleType("transformers")
    fake.AutoTokenizer = AutoTokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "transformers", fake)
    path = make(memory_path / "x.act")
    assert "<0> <1> <2>" in run("inspect", path)[1]
    assert requests == [("toy", {"local_files_only": True})]
    del fake.AutoTokenizer
    assert "token ids 0 1 2" in run("inspect", path)[1]


def test_pooled_and_incomplete_sites(memory_path: Path, run: Any) -> None:
    path = memory_path / "x.act"
    sites = {
        "resid": actstore.SiteSpec(1, 4, "bfloat16"),
        "vec": actstore.SiteSpec(1, 2, "float32", axis="examples"),
    }
    acts = {"resid": np.ones((3, 1, 4)), "vec": np.ones((2, 1, 2), np.float32)}
    with actstore.create(path, sites) as writer:
        writer.append(acts, [1, 2], cast=True)
    actstore.open(path)["resid"].pool("max", out="docs")
    out = run("inspect", path)[1]
    assert "docs  float32, 2 rows of dim 4 on axis examples, max of resid" in out
    with actstore.append(path) as writer:
        writer.append(acts, [1, 2], cast=True)
    out = run("inspect", path)[1]
    assert f"  docs covers only 2 examples: run actstore pool {path} --update\n" in out
    assert "\nresid  bfloat16" in out
    assert "\nvec  float32, 4 rows of dim 2 on axis examples\n" in out
    assert "resid" not in run("inspect", path, "--site", "vec")[1]
    assert run("inspect", path, "--site", "docs")[0] == 1


def test_an_empty_store_and_a_foreign_group(memory_path: Path, run: Any) -> None:
    path = memory_path / "x.act"
    actstore.create(path, {"resid": actstore.SiteSpec(2, 4, "float32")}).close()
    status, out, err = run("inspect", path)
    assert (status, err) == (0, "")
    assert "0 rows of dim 4" in out
    (site,) = json.loads(run("inspect", path, "--json")[1])["sites"]
    assert site["layers"][0]["mean"] is None
    group = pytest.importorskip("zarr").create_group(memory_path / "g.zarr")
    group.create_array("resid", data=ACTS)
    status, out, err = run("inspect", memory_path / "g.zarr")
    assert (status, err) == (0, "")
    assert "60 rows" in out


def test_only_zeros(memory_path: Path, run: Any) -> None:
    path = memory_path / "x.act"
    with actstore.create(path, {"resid": actstore.SiteSpec(1, 4, "float32")}) as writer:
        writer.append({"resid": np.zeros((3, 1, 4), np.float32)}, [3])
    for more in ([], ["--histogram"]):
        status, out, err = run("inspect", path, *more)
        assert (status, err) == (0, "")
        assert "100.0%" in out


def test_formatting() -> None:
    shorts = {0.0: "0", 1.0: "1", -0.12345: "-0.123", 12345.6: "12346", 1e-9: "1.0e-9", -3e38: "-3.0e38"}
    assert {value: short_number(value) for value in shorts} == shorts
    assert [short_number(x) for x in (None, "Infinity", "-Infinity")] == ["-", "inf", "-inf"]
    assert [percent(x) for x in (0.0, 1e-9, 0.123, 1.0)] == ["0.0%", "<0.1%", "12.3%", "100.0%"]
    assert [power_of_two(e) for e in (-20, -4, 0, 3, 16, 17)] == [
        "2^-20",
        "0.0625",
        "1",
        "8",
        "65536",
        "2^17",
    ]
    assert one_line("a\n\tb\x1b]0;x\x07 \u202ec") == "a b ]0;x c"
