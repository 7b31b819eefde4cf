"""``actstore pool``: one row for each example, written beside the site."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..pool import KINDS, MIXES, ON_EMPTY
from ..store import Store
from ..store import open as open_store
from ..update import unfinished, update
from .options import Commands, add_json, add_layers, add_threads, wrong_usage
from .output import Bar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "pool",
        help="pool the rows of each example into one, beside the site",
        description="Write a pooled site, one row for each example, into the store. What is there already, "
        "by the same recipe, is not computed again, so an interrupted run goes on where it stopped. With "
        "--update, bring the pooled sites of a store up to date after examples were appended.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    parser.add_argument("site", nargs="?", help="the site to pool (not with --update)")
    parser.add_argument("--out", metavar="NAME", help="what to call the pooled site")
    parser.add_argument("--kind", choices=KINDS, help="how to pool the rows of an example (default: mean)")
    add_layers(parser)
    parser.add_argument(
        "--mix",
        type=_mix,
        metavar="HOW",
        help="make one layer of several: mean, sum, concat, or weights as 0.25,0.75 (default: layers stay)",
    )
    parser.add_argument(
        "--no-special", action="store_true", help="leave out rows whose column 'special' is set"
    )
    parser.add_argument(
        "--on-empty", choices=ON_EMPTY, help="what an example without rows is (default: raise, an error)"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="compute what pooled sites lack, all of them or the one that --out names",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    names = _update(args) if args.update else _pool(args)
    with open_store(args.store) as store:
        sites = [_told(store, name) for name in names]
    if args.json:
        print_json({"path": args.store, "sites": sites})
    elif not sites:
        print(f"{args.store}: nothing to do")
    for site in [] if args.json else sites:
        recipe = site["recipe"]
        print(
            f"{args.store}: {site['name']} {site['shape']}, {recipe['kind']} of {recipe['source']}, "
            f"layers {', '.join(map(str, recipe['layers']))}"
        )
    return 0


def _pool(args: argparse.Namespace) -> list[str]:
    if args.site is None or args.out is None:
        wrong_usage(args, "SITE and --out NAME are needed, or --update")
    with open_store(args.store) as store, Bar("pool") as bar:
        site = store[args.site]
        site.pool(
            args.kind or "mean",
            layers=args.layers,
            mix=args.mix,
            special=not args.no_special,
            on_empty=args.on_empty or "raise",
            out=args.out,
            threads=args.threads,
            progress=bar.of(site.shape[2] * site.dtype.itemsize),
        )
    return [args.out]


def _update(args: argparse.Namespace) -> list[str]:
    given = (args.site, args.kind, args.layers, args.mix, args.on_empty, args.no_special or None)
    if any(value is not None for value in given):
        wrong_usage(args, "--update goes by the recipes in the store: give it no site, nor how to pool")
    with open_store(args.store) as store:
        short = unfinished(store, None if args.out is None else [args.out])
        units = [_unit(store, name) for name in short]
    for name, unit in zip(short, units, strict=True):
        with Bar(f"pool {name}") as bar:
            update(args.store, [name], threads=args.threads, progress=bar.of(unit))
    return short


def _unit(store: Store, name: str) -> int:
    """Bytes of a row of one layer of what a derived site is made of."""
    recipe = store._snapshot.recipe(name)
    assert recipe is not None
    source = store[recipe["source"]]
    return source.shape[2] * source.dtype.itemsize


def _told(store: Store, name: str) -> dict[str, Any]:
    site = store[name]
    return {"name": name, "shape": list(site.shape), "layers": site.layers, "recipe": site.recipe}


def _mix(text: str) -> str | Sequence[float]:
    if text in MIXES:
        return text
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of {', '.join(MIXES)}, nor weights as 0.25,0.75"
        ) from None
