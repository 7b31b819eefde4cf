"""``actstore whiten``: fit a whitener and put it into the store."""

import argparse
from typing import Any

from ..errors import InvalidInputError
from ..layout import EXAMPLES
from ..pool import KINDS as POOLS
from ..store import open as open_store
from ..whiten import Whitener
from ..whiteners import KINDS
from .options import Commands, add_json, add_layers, add_threads, only_site, positive, wrong_usage
from .output import Bar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "whiten",
        help="fit whitening to the rows of a site, and keep it in the store",
        description="Fit a whitener (PCA or ZCA, each layer by itself) to the rows of a site, or with --pool "
        "to the pooled rows of its examples, and put it into the store, where 'actstore query' finds it. "
        "Rows stay as they are; of a site's rows the norms that searches need are kept beside. The same name "
        "again after rows were appended adds the norms that are missing; nothing is fitted anew.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("site", nargs="?", help="the site (default: resid, or the only site)")
    parser.add_argument("--out", required=True, metavar="NAME", help="what to call the whitener")
    add_layers(parser)
    parser.add_argument(
        "--pool", choices=POOLS, help="fit to the rows of each example pooled so (default: rows as they are)"
    )
    parser.add_argument("--kind", choices=KINDS, help="default: pca")
    parser.add_argument("--dim", type=positive, metavar="N", help="keep the N directions of most variance")
    parser.add_argument(
        "--eps", type=float, default=0.0, metavar="X", help="add X to each variance (default: 0)"
    )
    parser.add_argument(
        "--shrinkage",
        type=_shrinkage,
        default=0.0,
        metavar="S",
        help="draw variances towards their mean, from 0 to 1, or 'oas' (default: 0)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with open_store(args.store) as store:
        name = args.site
        if name is None:
            name = only_site(list(store), args.store, "say which")
        if args.out in store.whiteners:
            given = (args.dim, args.layers, args.kind, args.eps or None, args.shrinkage or None)
            if any(value is not None for value in given):
                wrong_usage(
                    args, f"{args.out!r} is there already: a whitener is for good, choose another name"
                )
            whitener, was = store.whiteners[args.out], True
        else:
            whitener, was = _fitted(args, store[name]), False
    kept = None if args.pool is not None else name
    with Bar("norms") as bar:
        whitener.save(args.store, args.out, kept, threads=args.threads, progress=bar.of(8))
    told = {
        "path": args.store,
        "name": args.out,
        "site": name,
        "pool": args.pool,
        "kind": whitener.kind,
        "layers": whitener.layers,
        "dim": int(whitener.mean.shape[1]),
        "rank": whitener.rank.tolist(),
        "n": whitener.n,
        "fitted": not was,
    }
    if args.json:
        print_json(told)
        return 0
    of = f"{args.pool} of {name}" if args.pool is not None else name
    verb = "there already, norms brought up to date" if was else f"fitted to {whitener.n:,} rows of {of}"
    print(f"{args.store}: {args.out}, {whitener.kind}, {verb}")
    for label, rank in zip(whitener.layers, whitener.rank.tolist(), strict=True):
        print(f"  layer {label}: {rank} of {whitener.mean.shape[1]} directions")
    return 0


def _fitted(args: argparse.Namespace, site: Any) -> Whitener:
    if args.layers is not None:
        site = site.select(layers=args.layers)
    unit = site.shape[2] * site.dtype.itemsize
    if args.pool is not None:
        if site.axis == EXAMPLES:
            raise InvalidInputError(f"--pool {args.pool}: {site.name!r} has a row for each example already")
        with Bar("pool") as bar:
            site = site.pool(args.pool, on_empty="zero", threads=args.threads, progress=bar.of(unit))
    with Bar("whiten") as bar:
        return Whitener.fit(
            site,
            args.dim,
            args.kind or "pca",
            eps=args.eps,
            shrinkage=args.shrinkage,
            threads=args.threads,
            progress=bar.of(unit),
        )


def _shrinkage(text: str) -> float | str:
    if text == "oas":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor 'oas'") from None
