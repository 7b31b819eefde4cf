"""``actstore query``: rank examples or rows by similarity to a text, an example or a vector."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...disk.layout import EXAMPLES
from ...errors import InvalidInputError
from ...ops.hits import Hits
from ...ops.pool import KINDS
from ...ops.whiten import Whitener
from ...site import Site
from ...store import Store
from ...store import open as open_store
from ..args import (
    Commands,
    add_device,
    add_json,
    add_layers,
    add_threads,
    add_trust_remote_code,
    natural,
    positive,
    usage_error,
)
from ..query_vectors import embed_text_tokens, embed_texts, load_vectors
from ..render.explanation import explain_maxsim, explain_search, token_ids
from ..render.hits import HitWithText, hit_lines, with_texts
from ..render.matrix import ScoreMatrix
from ..render.texts import example_number
from ..search_target import SearchTarget, search_target
from ..terminal import plain_warnings, print_json, quiet_libraries, terminal_width, unicode_output

METRICS = ("cos", "dot", "l2")
COMBINE = ("sum", "max")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "query",
        help="rank the examples or rows of a store by similarity to a text, an example or a vector",
        description="Rank the examples of a store, or with --tokens its rows, by similarity to a text, to "
        "an example or to the vectors of a .npy file. A text is embedded by the model that the store was "
        "captured with, at the same site and layer; the model is found by its name and checked by its hash. "
        "With several layers, --combine selects how their scores are combined. With --maxsim, each token of "
        "the query is matched with the best token of each example, and these scores are summed (late "
        "interaction).",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("text", nargs="?", help="the text to search for")
    parser.add_argument(
        "--example", metavar="ID", help="search for examples similar to this one, given by id or position"
    )
    parser.add_argument(
        "--npy", metavar="FILE", help="search for these vectors: [dim], [n, dim] or [n, layers, dim]"
    )
    parser.add_argument("--site", metavar="NAME", help="site to search (default: resid, or the only site)")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--layer", type=natural, metavar="N", help="layer to search (default: the last)")
    add_layers(layers, default="the last")
    parser.add_argument(
        "--combine",
        choices=COMBINE,
        help="score over several layers: the sum or the maximum of the layers' scores (required with "
        "several)",
    )
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="number of hits (default: 10)")
    parser.add_argument(
        "--pool",
        choices=KINDS,
        help="how to pool the rows of an example into one (default: as in the store, else as the model's own "
        "SentenceTransformer does, else mean)",
    )
    parser.add_argument("--tokens", action="store_true", help="rank rows, one per token, not examples")
    parser.add_argument(
        "--maxsim", action="store_true", help="rank examples by late interaction, ignoring special tokens"
    )
    parser.add_argument("--metric", choices=METRICS, default="cos", help="similarity (default: cos)")
    parser.add_argument(
        "--whiten", metavar="NAME", help="score whitened vectors, with a whitener saved by 'actstore whiten'"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show the scores behind a hit: its tokens by layer, or with --maxsim by token of the query",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="N", help="which hit to explain (default: 1, the best)"
    )
    parser.add_argument("--png", metavar="FILE", help="write the explanation as a PNG (needs matplotlib)")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="text to prepend to the query (default: the model's own query prompt, else the store's)",
    )
    add_device(parser)
    add_trust_remote_code(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if sum(given is not None for given in (args.text, args.example, args.npy)) != 1:
        usage_error(args, "exactly one of TEXT, --example ID and --npy FILE is required")
    if args.maxsim and (args.tokens or args.pool):
        usage_error(args, f"--maxsim cannot be used with {'--tokens' if args.tokens else '--pool'}")
    if args.rank is not None and not (args.explain or args.png):
        usage_error(args, "--rank selects the hit to explain: it needs --explain or --png")
    explain = args.explain or args.png is not None
    with open_store(args.store) as store:
        layers = args.layers if args.layer is None else [args.layer]
        target = search_target(store, args.site, layers, args.pool)
        if len(target.layers) > 1 and args.combine is None:
            labels = ", ".join(map(str, target.layers))
            usage_error(
                args, f"several layers ({labels}): --combine sum or --combine max says how to score them"
            )
        if (args.tokens or args.maxsim) and target.rows.axis == EXAMPLES:
            option = "--tokens" if args.tokens else "--maxsim"
            raise InvalidInputError(
                f"{option}: {target.name!r} of {args.store} has one row per example, not per token",
                hint="capture it with dump without --pool",
            )
        whitener = None if args.whiten is None else store.whiteners[args.whiten]
        if args.maxsim:
            result = _maxsim(args, store, target, whitener)
        else:
            result = _search(args, store, target, whitener, explain)
        hits = [
            with_texts(store, result.site, result.hits[q], args.tokens, result.tokenizer)
            for q in range(len(result.hits))
        ]
        matrix = None
        if explain and hits and hits[0]:
            rank = (args.rank or 1) - 1
            if rank >= len(hits[0]):
                raise InvalidInputError(f"--rank {rank + 1}: there are only {len(hits[0])} hits")
            matrix = result.explain(rank)
    _print_hits(args, target, hits, matrix, explain)
    if matrix is not None and args.png is not None:
        # Last, so that the hits are printed even if the file cannot be written.
        matrix.plot(args.png)
    return 0


@dataclass(frozen=True)
class QueryResult:
    """The hits of a query, the site they are in, and how to explain a hit of the first query.

    Attributes
    ----------
    site : Site
        The site that was searched.
    hits : Hits
    tokenizer : optional
        The model's tokenizer, if the query was a text.
    explain : callable
        From the rank of a hit, counted from 0, to the scores behind it.
    """

    site: Site
    hits: Hits
    tokenizer: Any
    explain: Callable[[int], ScoreMatrix]


def _search(
    args: argparse.Namespace, store: Store, target: SearchTarget, whitener: Whitener | None, explain: bool
) -> QueryResult:
    """Rank examples, or rows with ``--tokens``."""
    captured = store[target.name]
    # An explanation covers all layers. The query has a vector for each of them if it is a text, or an example
    # that is pooled now; otherwise it has vectors for the searched layers only.
    all_layers = args.text is not None or (args.example is not None and target.pooled is None)
    query_layers = list(captured.layers) if explain and all_layers else target.layers
    source = replace(target, rows=captured.select(layers=query_layers)) if all_layers else target
    tokenizer = excluded = None
    if args.npy is not None:
        vectors = load_vectors(args.npy)
    elif args.example is not None:
        excluded = example_number(captured, args.example)
        vectors = _example_vector(source, excluded, args.threads)
    else:
        vectors, tokenizer = _quietly(embed_texts, args, store, source, [args.text])
    queries = vectors
    if query_layers != target.layers:
        queries = np.ascontiguousarray(vectors[:, [query_layers.index(label) for label in target.layers]])
    site = _without(target.rows if args.tokens else target.examples(args.threads), excluded)
    hits = site.search(
        queries,
        args.k,
        metric=args.metric,
        combine=args.combine or "sum",
        transform=whitener,
        threads=args.threads,
    )

    def explain_rank(rank: int) -> ScoreMatrix:
        first = vectors[None] if vectors.ndim == 1 else vectors[:1]
        labels = query_layers
        if args.npy is not None and (first.ndim == 2 or first.shape[1] == 1):
            labels = list(captured.layers)  # A single vector can be compared with every layer.
        example, score = int(hits.examples[0, rank]), float(hits.scores[0, rank])
        return explain_search(
            store, captured, example, rank, score, first, labels, args.metric, whitener, tokenizer
        )

    return QueryResult(site, hits, tokenizer, explain_rank)


def _maxsim(
    args: argparse.Namespace, store: Store, target: SearchTarget, whitener: Whitener | None
) -> QueryResult:
    """Rank examples by late interaction."""
    site = store[target.name].select(layers=target.layers)
    columns = store.axes[site.axis]
    if "special" in columns:
        site = site.select(rows=columns["special"] == 0)
    tokenizer = ids = excluded = None
    queries: Any
    if args.npy is not None:
        queries = load_vectors(args.npy)
    elif args.example is not None:
        excluded = example_number(store[target.name], args.example)
        query = site.select(examples=excluded)
        if not len(query):
            raise InvalidInputError(f"--example {args.example}: the example has no tokens but special ones")
        queries = [query.read("float32")]
        ids = token_ids(columns, query.rows)
    else:
        vectors, ids, tokenizer = _quietly(embed_text_tokens, args, store, target, args.text)
        queries = [vectors]
    site = _without(site, excluded)
    hits = site.maxsim(
        queries,
        args.k,
        metric=args.metric,
        combine=args.combine or "sum",
        transform=whitener,
        threads=args.threads,
    )
    return QueryResult(
        site, hits, tokenizer, lambda rank: explain_maxsim(store, site, hits, rank, ids, tokenizer)
    )


def _quietly(
    embed: Callable[..., Any], args: argparse.Namespace, store: Store, target: SearchTarget, text: Any
) -> Any:
    """Embed a text with the options of the command line, without messages of torch and transformers."""
    with quiet_libraries(), plain_warnings():
        return embed(
            store,
            target,
            text,
            prompt=args.prompt,
            device=args.device,
            trust_remote_code=args.trust_remote_code,
        )


def _example_vector(target: SearchTarget, number: int, threads: int) -> NDArray[Any]:
    """The row of an example, float32 ``[1, L, D]``."""
    if target.pooled is not None:
        row = target.pooled.select(examples=number)
    else:
        row = target.rows.select(examples=number).pool(target.pool, threads=threads)
    vector: NDArray[Any] = row.read("float32")
    return vector


def _without(site: Site, example: int | None) -> Site:
    """The site without one of its examples."""
    if example is None:
        return site
    return site.select(examples=[i for i in range(site.n_examples) if i != example])


def _print_hits(
    args: argparse.Namespace,
    target: SearchTarget,
    hits: Sequence[Sequence[HitWithText]],
    matrix: ScoreMatrix | None,
    explain: bool,
) -> None:
    if args.json:
        result = _json(args, target, hits)
        if explain:
            result["explain"] = None if matrix is None else {"rank": args.rank or 1, **matrix.json()}
        print_json(result)
        return
    width, unicode = terminal_width(), unicode_output()
    for q, of_query in enumerate(hits):
        if len(hits) > 1:
            print(f"query {q}")
        for line in hit_lines(of_query, width, unicode):
            print(line)
        if not of_query:
            print("no hits")
    if matrix is not None and args.explain:
        print()
        for line in matrix.lines(width, unicode):
            print(line)


def _json(
    args: argparse.Namespace, target: SearchTarget, hits: Sequence[Sequence[HitWithText]]
) -> dict[str, Any]:
    return {
        "path": args.store,
        "query": args.text or args.example or args.npy,
        "site": target.name,
        "layers": target.layers,
        "combine": args.combine,
        "pool": None if args.maxsim else target.pool,
        "metric": args.metric,
        "maxsim": args.maxsim,
        "whiten": args.whiten,
        "hits": [[hit.json() for hit in of_query] for of_query in hits],
    }
