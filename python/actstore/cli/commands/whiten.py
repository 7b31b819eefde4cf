"""``actstore whiten``: fit a whitener and save it in the store."""

import argparse

import numpy as np

from ...artifacts.whiteners import KINDS
from ...disk.layout import EXAMPLES
from ...errors import InvalidInputError
from ...ops.pool import KINDS as POOLS
from ...ops.whiten import Whitener
from ...site import Site
from ...store import open as open_store
from ..args import Commands, add_json, add_layers, add_threads, default_site, positive, usage_error
from ..terminal import ProgressBar, plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "whiten",
        help="fit a whitener to the rows of a site and save it in the store",
        description="Fit a whitener (PCA or ZCA, separately for each layer) to the rows of a site, or with "
        "--pool to its pooled examples, and save it in the store, where 'actstore query' can use it. The "
        "stored rows do not change. Without --pool, the whitened norms of the rows are saved too, because "
        "cos and l2 searches need them. If a whitener of that name exists, it is not fitted again: only the "
        "norms of rows appended since are added.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("site", nargs="?", help="the site to fit to (default: resid, or the only site)")
    parser.add_argument("--out", required=True, metavar="NAME", help="name of the whitener")
    add_layers(parser)
    parser.add_argument(
        "--pool",
        choices=POOLS,
        help="pool the rows of each example before fitting (default: fit to the rows)",
    )
    parser.add_argument("--kind", choices=KINDS, help="kind of whitening (default: pca)")
    parser.add_argument(
        "--dim", type=positive, metavar="N", help="keep the N directions of largest variance (default: all)"
    )
    parser.add_argument(
        "--eps",
        type=float,
        default=0.0,
        metavar="X",
        help="add X to the variance of each direction (default: 0)",
    )
    parser.add_argument(
        "--shrinkage",
        type=_shrinkage,
        default=0.0,
        metavar="S",
        help="shrink the covariance toward a multiple of the identity: 0 to 1, or 'oas' (default: 0)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with open_store(args.store) as store:
        site_name = args.site
        if site_name is None:
            site_name = default_site(list(store), args.store, "give SITE")
        exists = args.out in store.whiteners
        if exists:
            options = (args.dim, args.layers, args.kind, args.eps or None, args.shrinkage or None)
            if any(value is not None for value in options):
                usage_error(
                    args, f"whitener {args.out!r} exists and is not fitted again: choose another name"
                )
            whitener = store.whiteners[args.out]
        else:
            whitener = _fit(args, store[site_name])
    with ProgressBar("norms") as bar:
        whitener.save(
            args.store,
            args.out,
            site_name if args.pool is None else None,
            threads=args.threads,
            progress=bar.in_units(np.dtype(np.float64).itemsize),
        )
    ranks, dim = whitener.rank_.tolist(), whitener.n_features_in_
    if args.json:
        print_json(
            {
                "path": args.store,
                "name": args.out,
                "site": site_name,
                "pool": args.pool,
                "kind": whitener.kind,
                "layers": whitener.layers_,
                "dim": dim,
                "rank": ranks,
                "n": whitener.n_samples_,
                "fitted": not exists,
            }
        )
        return 0
    if exists:
        action = "exists; norms are up to date"
    else:
        rows = site_name if args.pool is None else f"{args.pool} of {site_name}"
        action = f"fitted to {whitener.n_samples_:,} rows of {rows}"
    print(f"{args.store}: {args.out}, {whitener.kind}, {action}")
    for label, rank in zip(whitener.layers_, ranks, strict=True):
        print(f"  layer {label}: {rank} of {dim} directions")
    return 0


def _fit(args: argparse.Namespace, site: Site) -> Whitener:
    if args.layers is not None:
        site = site.select(layers=args.layers)
    row_bytes = site.shape[2] * site.dtype.itemsize
    if args.pool is not None:
        if site.axis == EXAMPLES:
            raise InvalidInputError(f"--pool {args.pool}: {site.name!r} already has one row per example")
        with ProgressBar("pool") as bar:
            site = site.pool(
                args.pool, on_empty="zero", threads=args.threads, progress=bar.in_units(row_bytes)
            )
    with plain_warnings(), ProgressBar("whiten") as bar:
        whitener = Whitener(args.dim, args.kind or "pca", args.eps, args.shrinkage)
        return whitener.fit(site, threads=args.threads, progress=bar.in_units(row_bytes))


def _shrinkage(text: str) -> float | str:
    if text == "oas":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or 'oas', got {text!r}") from None
