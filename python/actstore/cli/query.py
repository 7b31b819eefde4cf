"""``actstore query``: what in a store is most like a text, an example or a vector."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError
from ..hits import Hits
from ..layout import EXAMPLES
from ..pool import KINDS
from ..site import Site
from ..store import Store
from ..store import open as open_store
from ..whiten import Whitener
from .examples import example_number
from .explained import of_maxsim, of_search, token_ids
from .found import Found, found_hits, hit_lines
from .matrix import Matrix
from .options import Commands, add_json, add_layers, add_threads, natural, only_site, positive, wrong_usage
from .output import Bar, plain_warnings, print_json, unicode_output, width_of_terminal

METRICS = ("cos", "dot", "l2")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "query",
        help="find what in a store is most like a text, an example or a vector",
        description="Rank the examples of a store, or with --tokens its rows, by how like they are to a "
        "text, to an example or to vectors of a .npy file. A text goes through the model that the store was "
        "captured with, which is found again by its name and checked by its hash, and is taken at the same "
        "site and layer. With several layers their scores are summed. With --maxsim each token of the query "
        "looks for the best token of each example, and these scores are added up (late interaction).",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("text", nargs="?", help="what to look for")
    parser.add_argument(
        "--example", metavar="ID", help="look for what is like this example, by id or position"
    )
    parser.add_argument(
        "--npy", metavar="FILE", help="look for these vectors: [dim], [n, dim] or [n, layers, dim]"
    )
    parser.add_argument("--site", metavar="NAME", help="where to look (default: resid, or the only site)")
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--layer", type=natural, metavar="N", help="at this layer (default: the last)")
    add_layers(layers, default="the last")
    parser.add_argument("--k", type=positive, default=10, metavar="N", help="how many hits (default: 10)")
    parser.add_argument(
        "--pool",
        choices=KINDS,
        help="how the rows of a text become one (default: as the store's are, or as the model's own "
        "SentenceTransformer does it, or mean)",
    )
    parser.add_argument(
        "--tokens", action="store_true", help="rank rows, each of a token, instead of examples"
    )
    parser.add_argument(
        "--maxsim", action="store_true", help="rank examples by late interaction, special tokens left out"
    )
    parser.add_argument("--metric", choices=METRICS, default="cos", help="default: cos")
    parser.add_argument(
        "--whiten", metavar="NAME", help="score as whitened by what 'actstore whiten' put into the store"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="show what is behind a hit: its tokens by layer, with --maxsim by tokens of the query",
    )
    parser.add_argument(
        "--rank", type=positive, metavar="N", help="which hit to explain (default: 1, the first)"
    )
    parser.add_argument("--png", metavar="FILE", help="also write that as a picture, with matplotlib")
    parser.add_argument(
        "--prompt",
        metavar="P",
        help="put before the text (default: the model's own for queries, else the store's)",
    )
    parser.add_argument("--device", metavar="D", help="for the model (default: cuda where there is one)")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let code that comes with the model run (default: no)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if sum(given is not None for given in (args.text, args.example, args.npy)) != 1:
        wrong_usage(args, "one of TEXT, --example ID and --npy FILE is needed")
    if args.maxsim and (args.tokens or args.pool):
        wrong_usage(args, f"--maxsim goes without {'--tokens' if args.tokens else '--pool'}")
    if args.rank is not None and not (args.explain or args.png):
        wrong_usage(args, "--rank says which hit to explain: give --explain too")
    explain = args.explain or args.png is not None
    with open_store(args.store) as store:
        layers = args.layers if args.layer is None else [args.layer]
        place = place_to_look(store, args.site, layers, args.pool)
        if (args.tokens or args.maxsim) and place.rows.axis == EXAMPLES:
            option = "--tokens" if args.tokens else "--maxsim"
            raise InvalidInputError(
                f"{option}: {place.name!r} of {args.store} has a row for each example, none for tokens",
                hint="dump it without --pool",
            )
        whitener = None if args.whiten is None else store.whiteners[args.whiten]
        if args.maxsim:
            asked = _maxsim(args, store, place, whitener)
        else:
            asked = _search(args, store, place, whitener, explain)
        hits, tokenizer = asked.hits, asked.tokenizer
        found = [found_hits(store, asked.site, hits[q], args.tokens, tokenizer) for q in range(len(hits))]
        matrix = None
        if explain and found and found[0]:
            rank = (args.rank or 1) - 1
            if rank >= len(found[0]):
                raise InvalidInputError(f"--rank {rank + 1}: there are {len(found[0])} hits")
            matrix = asked.explain(rank)
    _show(args, place, found, matrix, explain)
    if matrix is not None and args.png is not None:
        # In the end: if it cannot be written, what was found is there all the same.
        matrix.plot(args.png)
    return 0


def _show(
    args: argparse.Namespace,
    place: "Place",
    found: Sequence[Sequence[Found]],
    matrix: Matrix | None,
    explain: bool,
) -> None:
    """Print what was found, and what is behind a hit."""
    if args.json:
        told = _told(args, place, found)
        if explain:
            told["explain"] = None if matrix is None else {"rank": args.rank or 1, **matrix.json()}
        print_json(told)
        return
    width, unicode = width_of_terminal(), unicode_output()
    for q, of_query in enumerate(found):
        if len(found) > 1:
            print(f"query {q}")
        for line in hit_lines(of_query, width, unicode):
            print(line)
        if not of_query:
            print("nothing found")
    if matrix is not None and args.explain:
        print()
        for line in matrix.lines(width, unicode):
            print(line)


@dataclass(frozen=True)
class _Asked:
    """What was found where, and how a hit of the first query is explained, by its rank from 0."""

    site: Site
    hits: Hits
    tokenizer: Any
    explain: Callable[[int], Matrix]


def _search(
    args: argparse.Namespace, store: Store, place: "Place", whitener: Whitener | None, explain: bool
) -> _Asked:
    """By vectors of examples, or of tokens with ``--tokens``."""
    captured = store[place.name]
    # Looked at in all layers, if they are to be shown.
    seen_whole = args.text is not None or (args.example is not None and place.pooled is None)
    wide = captured.layers if explain and seen_whole else place.layers
    seen = replace(place, rows=captured.select(layers=wide)) if seen_whole else place
    tokenizer = left_out = None
    if args.npy is not None:
        vectors = _vectors(args.npy)
    elif args.example is not None:
        vectors, left_out = _of_example(store, seen, args.example, args.threads)
    else:
        with without_noise(), plain_warnings():
            vectors, tokenizer = embedded(
                store,
                seen,
                [args.text],
                prompt=args.prompt,
                device=args.device,
                trust_remote_code=args.trust_remote_code,
            )
    queries = vectors
    if list(wide) != place.layers:
        queries = np.ascontiguousarray(vectors[:, [list(wide).index(label) for label in place.layers]])
    site = place.rows if args.tokens else place.examples(args.threads)
    hits = search(site, queries, args.k, args.metric, args.threads, left_out, whitener)

    def of_rank(rank: int) -> Matrix:
        first = vectors[None] if vectors.ndim == 1 else vectors[:1]
        shown = list(wide)
        if args.npy is not None and (first.ndim == 2 or first.shape[1] == 1):
            shown = captured.layers  # One vector, held against all of them.
        example, score = int(hits.examples[0, rank]), float(hits.scores[0, rank])
        return of_search(
            store, captured, example, rank, score, first, shown, args.metric, whitener, tokenizer
        )

    return _Asked(site, hits, tokenizer, of_rank)


def _maxsim(args: argparse.Namespace, store: Store, place: "Place", whitener: Whitener | None) -> _Asked:
    """By the vectors of tokens."""
    site = store[place.name].select(layers=place.layers)
    columns = store.axes[site.axis]
    if "special" in columns:
        site = site.select(tokens=columns["special"] == 0)
    tokenizer = ids = left_out = None
    queries: Any
    if args.npy is not None:
        queries = _vectors(args.npy)
    elif args.example is not None:
        left_out = example_number(store, args.example)
        own = site.select(examples=left_out)
        if not len(own):
            raise InvalidInputError(f"--example {args.example}: it has no tokens but special ones")
        queries = [own.read("float32")]
        ids = token_ids(columns, own.rows)
    else:
        with without_noise(), plain_warnings():
            queries, ids, tokenizer = embedded_tokens(
                store,
                place,
                args.text,
                prompt=args.prompt,
                device=args.device,
                trust_remote_code=args.trust_remote_code,
            )
    if left_out is not None:
        site = site.select(examples=[i for i in range(site.n_examples) if i != left_out])
    hits = site.maxsim(queries, args.k, metric=args.metric, transform=whitener, threads=args.threads)
    return _Asked(site, hits, tokenizer, lambda rank: of_maxsim(store, site, hits, rank, ids, tokenizer))


def _told(args: argparse.Namespace, place: "Place", found: Sequence[Sequence[Found]]) -> dict[str, Any]:
    return {
        "path": args.store,
        "query": args.text or args.example or args.npy,
        "site": place.name,
        "layers": place.layers,
        "pool": None if args.maxsim else place.pool,
        "metric": args.metric,
        "maxsim": args.maxsim,
        "whiten": args.whiten,
        "hits": [[hit.json() for hit in of_query] for of_query in found],
    }


@dataclass(frozen=True)
class Place:
    """Where a store is searched: a site, some of its layers, and how its rows become one."""

    name: str
    """Of the site that was captured."""
    rows: Site
    """Its layers that are asked for."""
    pool: str
    pooled: Site | None
    """These, pooled so already."""

    @property
    def layers(self) -> list[int]:
        """Their labels."""
        return list(self.rows.layers)

    def examples(self, threads: int = 0) -> Site:
        """A row for each example."""
        if self.pooled is not None:
            return self.pooled
        with Bar("pool") as bar:
            unit = self.rows.shape[2] * self.rows.dtype.itemsize
            return self.rows.pool(
                self.pool,  # type: ignore[arg-type]
                on_empty="zero",
                threads=threads,
                progress=bar.of(unit),
            )


def place_to_look(store: Store, name: str | None, layers: Any, pool: str | None) -> Place:
    """Where to look for what is asked for.

    Raises
    ------
    NotFoundError
        For a site or layer that is not there.
    InvalidInputError
        When the store has several sites and none is asked for, or is pooled in another way than is asked for.
    """
    derived = store.info()["derived"]
    captured = [site for site in store if site not in derived]
    if name is None:
        name = only_site(captured, store.path, "--site says which")
    site = store[name]
    if name in derived:  # Somebody has pooled it: how, the recipe says.
        recipe = derived[name]["recipe"]
        if recipe["mix"] is not None or not recipe["special"]:
            how = "several layers mixed" if recipe["mix"] is not None else "special tokens left out"
            raise InvalidInputError(
                f"{name!r} was pooled with {how}: a query cannot be", hint=f"--site {recipe['source']}"
            )
        _check_pool(pool, recipe["kind"], name)
        rows = _selected(site, layers)
        return Place(recipe["source"], rows, recipe["kind"], rows)
    rows = _selected(site, layers)
    if site.axis == EXAMPLES:
        kind = store.identity.get("pool")
        if isinstance(kind, str):
            _check_pool(pool, kind, name)
        return Place(name, rows, kind if isinstance(kind, str) else pool or "mean", rows)
    model = store.identity.get("model")
    own = model.get("pool") if isinstance(model, dict) else None
    kind = pool or (own if own in KINDS else "mean")
    return Place(name, rows, kind, _ready(store, derived, name, rows.layers, kind))


def _selected(site: Site, layers: Any) -> Site:
    return site.select(layers=[site.layers[-1]] if layers is None else layers)


def _check_pool(asked: str | None, kind: str, name: str) -> None:
    if asked not in (None, kind):
        raise InvalidInputError(
            f"--pool {asked}: {name!r} is pooled already, by {kind}", hint=f"--pool {kind}"
        )


def _ready(
    store: Store, derived: dict[str, Any], source: str, layers: Sequence[int], kind: str
) -> Site | None:
    """A site in the store that is these layers pooled so, of all examples."""
    for name, told in derived.items():
        recipe = told["recipe"]
        if (
            told["complete"]
            and (recipe["source"], recipe["kind"]) == (source, kind)
            and recipe["mix"] is None
            and recipe["special"]
            and set(layers) <= set(recipe["layers"])
        ):
            return store[name].select(layers=list(layers))
    return None


# ---- What is looked for ----


def embedded(
    store: Store,
    place: Place,
    texts: Sequence[str],
    *,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> tuple[NDArray[np.float32], Any]:
    """Texts as the store's own model sees them, float32 ``[n, L, D]``, and its tokenizer.

    Raises
    ------
    NotFoundError, InvalidInputError
        When the model is not to be found, or is another by now.
    """
    from ..capture import embed
    from ..capture.loading import found_again

    loaded = found_again(store.identity, device=device, trust_remote_code=trust_remote_code)
    vectors = embed(
        store, texts, site=place.name, layers=place.layers, pool=place.pool, model=loaded, prompt=prompt
    )
    return vectors, loaded.tokenizer


def embedded_tokens(
    store: Store,
    place: Place,
    text: str,
    *,
    prompt: str | None = None,
    device: Any = None,
    trust_remote_code: bool = False,
) -> tuple[list[NDArray[np.float32]], list[int], Any]:
    """The tokens of a text as the store's own model sees them, ``[[T, L, D]]``, their ids, the tokenizer."""
    from ..capture.embed import tokens_of
    from ..capture.loading import found_again

    loaded = found_again(store.identity, device=device, trust_remote_code=trust_remote_code)
    [(vectors, ids)] = tokens_of(
        store, [text], site=place.name, layers=place.layers, special=False, model=loaded, prompt=prompt
    )
    return [vectors], ids.tolist(), loaded.tokenizer


def _of_example(store: Store, place: Place, asked: str, threads: int) -> tuple[NDArray[Any], int]:
    """The row of an example, ``[1, L, D]``, and its number in the store."""
    number = example_number(store, asked)
    if place.pooled is not None:
        return place.pooled.select(examples=number).read("float32"), number
    row = place.rows.select(examples=number).pool(place.pool, threads=threads)  # type: ignore[arg-type]
    return row.read("float32"), number


def _vectors(path: str) -> NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(
            f"{path} is no array: {error}", hint="numpy.save(path, array) writes one"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InvalidInputError(f"{path} holds several arrays: one is needed, as numpy.save writes it")
    return array


def search(
    site: Site,
    queries: Any,
    k: int,
    metric: str,
    threads: int,
    left_out: int | None = None,
    whitener: Whitener | None = None,
) -> Hits:
    """The best of a site; without one of its examples, where that is what is looked for."""
    if left_out is not None:
        numbers = [i for i in range(site.n_examples) if i != left_out]
        site = site.select(examples=numbers)
    return site.search(queries, k, metric=metric, transform=whitener, threads=threads)  # type: ignore[arg-type]


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """torch and transformers say nothing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from ..capture.libraries import library, quiet

    library("transformers")
    with quiet():
        yield
