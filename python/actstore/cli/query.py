"""``actstore query``: what in a store is most like a text, an example or a vector."""

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidInputError, NotFoundError
from ..hits import Hits
from ..layout import EXAMPLES
from ..pool import KINDS
from ..site import Site
from ..store import Store
from ..store import open as open_store
from .capturing import plain_warnings
from .found import Found, found_hits, hit_lines
from .options import Commands, add_json, add_layers, add_threads, natural, positive, wrong_usage
from .output import Bar, print_json, unicode_output, width_of_terminal

METRICS = ("cos", "dot", "l2")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "query",
        help="find what in a store is most like a text, an example or a vector",
        description="Rank the examples of a store, or with --tokens its rows, by how like they are to a "
        "text, to an example or to vectors of a .npy file. A text goes through the model that the store was "
        "captured with, which is found again by its name and checked by its hash, and is taken at the same "
        "site and layer. With several layers their scores are summed.",
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
    parser.add_argument("--metric", choices=METRICS, default="cos", help="default: cos")
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
    with open_store(args.store) as store:
        place = place_to_look(
            store, args.site, args.layers if args.layer is None else [args.layer], args.pool
        )
        if args.tokens and place.rows.axis == EXAMPLES:
            raise InvalidInputError(
                f"--tokens: {place.name!r} of {args.store} has a row for each example, none for tokens",
                hint="dump it without --pool",
            )
        tokenizer = left_out = None
        if args.npy is not None:
            queries = _vectors(args.npy)
        elif args.example is not None:
            queries, left_out = _of_example(store, place, args.example, args.threads)
        else:
            with without_noise(), plain_warnings():
                queries, tokenizer = embedded(
                    store,
                    place,
                    [args.text],
                    prompt=args.prompt,
                    device=args.device,
                    trust_remote_code=args.trust_remote_code,
                )
        site = place.rows if args.tokens else place.examples(args.threads)
        hits = search(site, queries, args.k, args.metric, args.threads, left_out)
        found = [found_hits(store, site, hits[q], args.tokens, tokenizer) for q in range(len(hits))]
    if args.json:
        print_json(_told(args, place, found))
        return 0
    for q, of_query in enumerate(found):
        if len(found) > 1:
            print(f"query {q}")
        for line in hit_lines(of_query, width_of_terminal(), unicode_output()):
            print(line)
        if not of_query:
            print("nothing found")
    return 0


def _told(args: argparse.Namespace, place: "Place", found: Sequence[Sequence[Found]]) -> dict[str, Any]:
    return {
        "path": args.store,
        "query": args.text or args.example or args.npy,
        "site": place.name,
        "layers": place.layers,
        "pool": place.pool,
        "metric": args.metric,
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
        if "resid" not in captured and len(captured) != 1:
            raise InvalidInputError(
                f"{store.path} has several sites: {', '.join(captured) or 'none'}", hint="--site says which"
            )
        name = "resid" if "resid" in captured else captured[0]
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


def _of_example(store: Store, place: Place, asked: str, threads: int) -> tuple[NDArray[Any], int]:
    """The row of an example, ``[1, L, D]``, and its number in the store."""
    try:
        number = store._snapshot.example_number(asked)
    except NotFoundError:
        if not asked.isdecimal() or int(asked) >= store.n_examples:
            raise
        number = int(asked)
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


def search(site: Site, queries: Any, k: int, metric: str, threads: int, left_out: int | None = None) -> Hits:
    """The best of a site; without one of its examples, where that is what is looked for."""
    if left_out is not None:
        numbers = [i for i in range(site.n_examples) if i != left_out]
        site = site.select(examples=numbers)
    return site.search(queries, k, metric=metric, threads=threads)  # type: ignore[arg-type]


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """torch and transformers say nothing."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from ..capture.libraries import library, quiet

    library("transformers")
    with quiet():
        yield
