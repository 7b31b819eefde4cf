"""Exact search of more: more draws, more rows than caches hold, and vectors of real texts."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import pytest
import search_cases as cases
from numpy.typing import NDArray
from search_cases import COMBINATIONS, F32, draw
from search_oracle import Ask, check, expected, same, search

pytestmark = pytest.mark.slow

CORPORA = Path(__file__).parents[2] / "shared/corpora"


@pytest.mark.parametrize("group", range(8))
def test_any_search(group: int) -> None:
    for seed in range(50_000 + group * 200, 50_000 + (group + 1) * 200):
        case = draw(seed, 10_000_000 if seed % 10 == 0 else 1_000_000)
        check(case.values, case.values, case.ask, (1, (2, 3, 7)[seed % 3]), case.what)


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_many_rows(metric: str) -> None:
    """Several groups in memory, of rows of which many are the same."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(150_000, 1, 32)).astype(F32)
    values[rng.integers(0, 150_000, 60_000)] = values[rng.integers(0, 150_000, 20), 0][:, None].repeat(
        3000, 0
    )
    queries = rng.normal(size=(20, 1, 32)).astype(F32)
    queries[0] = values[77]
    for k in (1, 10, 5000):
        check(values, values, Ask(queries, k, metric), (1, 2, 7))
    check(values, values, Ask(queries[:2], 10, metric), (1, 2, 7))


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_very_long_vectors(metric: str) -> None:
    rng = np.random.default_rng(0)
    values, queries = (cases.outliers(rng, (n, 1, 70_001)).astype(F32) for n in (20, 5))
    values[10:] = values[:10] * (1 + rng.integers(-1, 2, (10, 1, 70_001)) * F32(2.0**-23))
    for some in (queries, queries[:2], values[:5]):
        check(values, values, Ask(some, 3, metric))


def test_the_same_every_time() -> None:
    """Thousands of equal rows and a dozen threads: whoever comes first, the lowest rows are found."""
    values = np.ones((3000, 1, 4096), F32)
    values[1::2] = 2
    queries = np.ones((3, 1, 4096), F32)
    for metric, combine in COMBINATIONS:
        ask = Ask(queries, 40, metric, combine)
        wanted, _ = expected(values, ask)
        for _ in range(4):
            same(search(values, ask, threads=12)[0], wanted, ask)


def test_many_queries_for_many_hits(tmp_path: Path) -> None:
    """Batches of queries over a stored array."""
    rng = np.random.default_rng(0)
    values = cases.outliers(rng, (70_000, 1, 8)).astype(F32)
    values[500:9000] = values[0]
    with actstore.create(tmp_path / "x.act", {"x": actstore.SiteSpec(1, 8, "float32")}) as writer:
        writer.append({"x": values}, [70_000])
    array = actstore.open(tmp_path / "x.act")["x"].backend.native
    queries = rng.normal(size=(40, 1, 8)).astype(F32)
    for k in (70_000, 20_000):
        check(array, values, Ask(queries, k, "l2"), (4,))


def hashed(texts: list[str], dim: int) -> NDArray[np.float32]:
    """Counts of words, each at a place and with a sign that follow from the word; common ones weigh less."""
    words = [re.findall(r"[a-z0-9]{2,}", text.lower()) for text in texts]
    n_texts: dict[str, int] = {}
    for of_text in words:
        for word in set(of_text):
            n_texts[word] = n_texts.get(word, 0) + 1
    out = np.zeros((len(texts), dim))
    for row, of_text in zip(out, words, strict=True):
        for word in of_text:
            digest = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
            row[digest % dim] += np.log(1 + len(texts) / n_texts[word]) * (1 if digest >> 63 else -1)
    return out.astype(F32)


def texts(path: Path) -> list[str]:
    read: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return [f"{entry.get('title', '')} {entry['text']}".strip() for entry in read]


@pytest.mark.skipif(not CORPORA.is_dir(), reason="../shared/corpora is not there")
@pytest.mark.parametrize(("corpus", "n_docs"), [("cranfield", 1400), ("scifact", 2500)])
def test_texts(tmp_path: Path, corpus: str, n_docs: int) -> None:
    """Vectors of sparse words, from a store of halves and from memory; as found by any threads."""
    docs = texts(CORPORA / corpus / "corpus.jsonl")[:n_docs]
    asked = texts(CORPORA / corpus / "queries.jsonl")
    vectors = hashed(docs + asked, 384)
    rows, queries = vectors[: len(docs), None], vectors[len(docs) :, None]
    with actstore.create(tmp_path / "x.act", {"x": actstore.SiteSpec(1, 384, "bfloat16")}) as writer:
        writer.append({"x": rows}, np.ones(len(docs), int), cast=True)
    site = actstore.open(tmp_path / "x.act")["x"]
    for metric in ("cos", "dot", "l2"):
        check(rows, rows, Ask(queries, 10, metric), (1, 2))
        check(site.backend.native, site.read(), Ask(queries[:50], 100, metric), (1, 3))
