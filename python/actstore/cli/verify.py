"""``actstore verify``: whether every checksum is right."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..arrays import human_bytes
from ..errors import FormatError
from ..repair import repair
from ..report import Damage, Report
from ..store import Store
from ..store import open as open_store
from .options import Commands, add_json, add_threads, natural, positive
from .output import Bar, plain_warnings, print_json, table

if TYPE_CHECKING:
    from ..capture import Recomputed


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help="check every checksum of a store",
        description="Read all of a store and check every checksum. With --recompute, also run some of the "
        "examples through the model again and compare. With --repair, first write anew a root zarr.json that "
        "is missing. Exit status 1 when something is damaged or differs.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="also list what interrupted writes left behind (it does no harm)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="write the root's zarr.json anew from the records where it is missing; of parts, name one",
    )
    parser.add_argument(
        "--recompute",
        type=positive,
        metavar="N",
        help="run N examples through the model that the store was captured with, and compare",
    )
    parser.add_argument("--seed", type=natural, default=0, metavar="N", help="which N examples (default: 0)")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    found: Recomputed | None = None
    repaired: list[str] = []
    try:
        if args.repair:
            repaired = repair(args.store)
        with open_store(args.store) as store:
            with Bar("verify") as bar:
                report = store.verify(strict=args.strict, threads=args.threads, progress=bar.progress)
            if args.recompute is not None and report.ok:
                found = _recomputed(store, args.recompute, args.seed)
    except FormatError as error:  # Damage that keeps the store from being opened is damage.
        report = Report([Damage(args.store, "", None, None, error.kind, str(error))])
    ok = report.ok and (found is None or found.ok)
    if args.json:
        told: dict[str, Any] = {"ok": ok, **dataclasses.asdict(report)}
        if args.repair:
            told["repaired"] = repaired
        if found is not None:
            told["recomputed"] = dataclasses.asdict(found)
        print_json(told)
    else:
        for path in repaired:
            print(f"written anew: {path}")
        for damage in report.damaged:
            print(f"damaged: {_where(damage)}: {damage.message}")
        for path in report.leftovers:
            print(f"leftover: {path}")
        checked = f"{report.chunks:,} chunks, {human_bytes(report.bytes)} checked"
        print(f"{checked}: {'ok' if report.ok else f'{len(report.damaged)} damaged'}")
        if found is not None:
            _print_recomputed(found)
    return 0 if ok else 1


def _recomputed(store: Store, n: int, seed: int) -> "Recomputed":
    from ..capture import recompute
    from .query import without_noise

    with without_noise(), plain_warnings():
        return recompute(store, n=n, seed=seed)


def _print_recomputed(found: "Recomputed") -> None:
    rows = [
        [site, label, _number(far["max_error"], ".2e"), _number(far["min_cosine"], ".7f")]
        for site, layers in found.sites.items()
        for label, far in layers.items()
    ]
    for line in table([["site", "layer", "largest error", "least cosine"], *rows]):
        print(line)
    print(f"{len(found.examples):,} examples computed again: {'ok' if found.ok else 'they differ'}")


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _where(damage: Damage) -> str:
    places = [damage.array, damage.part]
    where = " of ".join(place for place in places if place)
    where += "" if damage.shard is None else f", shard {damage.shard}"
    return where + ("" if damage.chunk is None else f", chunk {damage.chunk}")
