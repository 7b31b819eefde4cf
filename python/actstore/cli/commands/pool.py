"""``actstore pool``: write a pooled site, one row per example, into the store."""

import argparse
from collections.abc import Sequence
from typing import Any

from ...ops.pool import KINDS, MIXES, ON_EMPTY
from ...site import Site
from ...store import Store
from ...store import open as open_store
from ...updating import incomplete_artifacts, update
from ..args import Commands, add_json, add_layers, add_threads, usage_error
from ..render.formatting import label_ranges
from ..terminal import ProgressBar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "pool",
        help="write a pooled site, one row per example, into the store",
        description="Pool the rows of each example into one and write them into the store as a new site. "
        "Rows that are stored already are not computed again, so that an interrupted run continues where it "
        "stopped. With --update, complete the pooled sites of a store after examples were appended.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("site", nargs="?", help="the site to pool (not with --update)")
    parser.add_argument("--out", metavar="NAME", help="name of the pooled site")
    parser.add_argument("--kind", choices=KINDS, help="how to pool the rows of an example (default: mean)")
    add_layers(parser)
    parser.add_argument(
        "--mix",
        type=_mix,
        metavar="MIX",
        help="merge the layers into one: mean, sum, concat, or weights such as 0.25,0.75 (default: keep "
        "them)",
    )
    parser.add_argument(
        "--no-special", action="store_true", help="ignore special tokens (rows whose column 'special' is set)"
    )
    parser.add_argument(
        "--on-empty",
        choices=ON_EMPTY,
        help="for an example without rows: raise an error or store zeros (default: raise)",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="compute the missing rows of all pooled sites, or of the one that --out names",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    names = _update(args) if args.update else _pool(args)
    with open_store(args.store) as store:
        sites = [_describe(store, name) for name in names]
    if args.json:
        print_json({"path": args.store, "sites": sites})
        return 0
    if not sites:
        print(f"{args.store}: nothing to do")
    for site in sites:
        recipe = site["recipe"]
        print(
            f"{args.store}: {site['name']} {site['shape']}, {recipe['kind']} of {recipe['source']}, "
            f"layers {label_ranges(recipe['layers'])}"
        )
    return 0


def _pool(args: argparse.Namespace) -> list[str]:
    if args.site is None or args.out is None:
        usage_error(args, "SITE and --out NAME are required, or --update")
    with open_store(args.store) as store, ProgressBar("pool") as bar:
        site = store[args.site]
        site.pool(
            args.kind or "mean",
            layers=args.layers,
            mix=args.mix,
            special=not args.no_special,
            on_empty=args.on_empty or "raise",
            out=args.out,
            threads=args.threads,
            progress=bar.in_units(_row_bytes(site)),
        )
    return [args.out]


def _update(args: argparse.Namespace) -> list[str]:
    options = (args.site, args.kind, args.layers, args.mix, args.on_empty, args.no_special or None)
    if any(value is not None for value in options):
        usage_error(args, "--update uses the recipes in the store: it takes no SITE and no pooling options")
    with open_store(args.store) as store:
        names = incomplete_artifacts(store, None if args.out is None else [args.out])
        derived = store.info()["derived"]
        row_bytes = [_row_bytes(store[derived[name]["recipe"]["source"]]) for name in names]
    for name, unit in zip(names, row_bytes, strict=True):
        with ProgressBar(f"pool {name}") as bar:
            update(args.store, [name], threads=args.threads, progress=bar.in_units(unit))
    return names


def _row_bytes(site: Site) -> int:
    """Bytes of a row of one layer."""
    return site.shape[2] * site.dtype.itemsize


def _describe(store: Store, name: str) -> dict[str, Any]:
    site = store[name]
    return {"name": name, "shape": list(site.shape), "layers": site.layers, "recipe": site.recipe}


def _mix(text: str) -> str | Sequence[float]:
    if text in MIXES:
        return text
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(MIXES)} or weights such as 0.25,0.75, got {text!r}"
        ) from None
