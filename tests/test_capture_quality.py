"""What published figures say of all-MiniLM-L6-v2, from stores: semantic similarity and retrieval."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
from tiny_models import MINILM, needs_minilm

pytest.importorskip("transformers")

CORPORA = Path(__file__).parents[2] / "shared" / "corpora"
pytestmark = [
    needs_minilm,
    pytest.mark.skipif(not CORPORA.is_dir(), reason="there are no corpora beside the checkout"),
]


def ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """From 1, the mean of their ranks for equal ones."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: np.ndarray[Any, Any] = (ends - (counts - 1) / 2)[inverse]
    return found


def spearman(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def similarities(path: Path, pairs: Sequence[dict[str, str]], **how: Any) -> dict[int, float]:
    """By layer, Spearman x 100 of the cosines of mean-pooled pairs with what people said."""
    texts = [pair[key] for pair in pairs for key in ("sentence1", "sentence2")]
    store = actstore.capture(path, MINILM, texts, progress=False, device="cpu", **how)
    site = store["resid"] if store["resid"].axis == "examples" else store["resid"].pool("mean")
    rows = site.read("float32").astype(np.float64)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    cosines = (rows[0::2] * rows[1::2]).sum(2)
    gold = np.array([float(pair["score"]) for pair in pairs])
    return {label: 100 * spearman(cosines[:, i], gold) for i, label in enumerate(site.layers)}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"pool": "mean"}, {"dtype": "bfloat16"}])
def test_sts(memory_path: Path, how: dict[str, Any]) -> None:
    """MTEB has 82.03 for STSBenchmark; the first layers, which know words alone, are further off."""
    with open(CORPORA / "stsb" / "test.tsv", encoding="utf-8", newline="") as file:
        pairs = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(pairs) == 1379
    found = similarities(memory_path / "sts.act", pairs, **how)
    assert found[6] == pytest.approx(82.03, abs=0.15 if "dtype" in how else 0.1)
    assert found[0] < found[6] - 5


def ndcg(ranked: Sequence[str], relevant: dict[str, int], k: int = 10) -> float:
    gains = [relevant.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(ranked[:k])]
    best = sorted(relevant.values(), reverse=True)[:k]
    return sum(gains) / sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))


@pytest.mark.slow
def test_scifact(memory_path: Path) -> None:
    """nDCG@10 is .6451 in MTEB, at 256 tokens. Texts are read from their folder."""
    from actstore.cli.text_files import texts

    folder = CORPORA / "scifact"
    with pytest.warns(actstore.CaptureWarning, match=r"longer than 256 tokens .* were truncated"):
        store = actstore.capture(
            memory_path / "scifact.act", MINILM, texts(folder), pool="mean", layers=6, progress=False
        )
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()]
    vectors = actstore.embed(store, [query["text"] for query in queries], layers=6)
    hits = store["resid"].search(vectors, k=10, metric="cos", combine="sum")
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        relevant.setdefault(query, {})[document] = int(score)
    scores = [
        ndcg([name for name in hits.ids[q] if name is not None], relevant[query["_id"]])
        for q, query in enumerate(queries)
        if query["_id"] in relevant
    ]
    assert len(scores) == 300
    assert np.mean(scores) == pytest.approx(0.645, abs=0.003)
