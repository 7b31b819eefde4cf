"""``actstore verify``: check every checksum, and optionally recompute some examples."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ...base.text import human_bytes
from ...disk.repair import repair
from ...disk.report import Damage, Report
from ...errors import FormatError
from ...store import Store
from ...store import open as open_store
from ..args import (
    Commands,
    add_device,
    add_json,
    add_threads,
    add_trust_remote_code,
    natural,
    positive,
)
from ..terminal import ProgressBar, plain_warnings, print_json, quiet_libraries, table

if TYPE_CHECKING:
    from ...capturing import Recomputed


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help="check every checksum of a store",
        description="Read the whole store and check every checksum. With --recompute, also run some "
        "examples through the model again and compare. With --repair, first restore a missing root "
        "zarr.json. The exit status is 1 if something is damaged or differs.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="also list files that interrupted writes left behind (they are harmless)",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="restore a missing root zarr.json from the commit records (of one store or one part)",
    )
    parser.add_argument(
        "--recompute",
        type=positive,
        metavar="N",
        help="run N random examples through the model that the store was captured with, and compare",
    )
    parser.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the random choice of examples (default: 0)",
    )
    add_device(parser)
    add_trust_remote_code(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    comparison: Recomputed | None = None
    repaired: list[str] = []
    try:
        if args.repair:
            repaired = repair(args.store)
        with open_store(args.store) as store:
            with ProgressBar("verify") as bar:
                report = store.verify(strict=args.strict, threads=args.threads, progress=bar.in_bytes)
            if args.recompute is not None and report.ok:
                comparison = _recompute(args, store)
    except FormatError as error:  # Damage so severe that the store cannot be opened.
        report = Report([Damage(args.store, "", None, None, error.kind, str(error))])
    ok = report.ok and (comparison is None or comparison.ok)
    if args.json:
        result: dict[str, Any] = {"ok": ok, **dataclasses.asdict(report)}
        if args.repair:
            result["repaired"] = repaired
        if comparison is not None:
            result["recomputed"] = dataclasses.asdict(comparison)
        print_json(result)
    else:
        for path in repaired:
            print(f"restored: {path}")
        for damage in report.damaged:
            print(f"damaged: {_location(damage)}: {damage.message}")
        for path in report.leftovers:
            print(f"leftover: {path}")
        size = f"{report.chunks:,} chunks, {human_bytes(report.bytes)} checked"
        print(f"{size}: {'ok' if report.ok else f'{len(report.damaged)} damaged'}")
        if comparison is not None:
            _print_comparison(comparison)
    return 0 if ok else 1


def _recompute(args: argparse.Namespace, store: Store) -> "Recomputed":
    from ...capturing import recompute

    with quiet_libraries(), plain_warnings():
        return recompute(
            store,
            n=args.recompute,
            seed=args.seed,
            device=args.device,
            trust_remote_code=args.trust_remote_code,
        )


def _print_comparison(comparison: "Recomputed") -> None:
    rows = [
        [site, label, _number(errors["max_error"], ".2e"), _number(errors["min_cosine"], ".7f")]
        for site, layers in comparison.sites.items()
        for label, errors in layers.items()
    ]
    for line in table([["site", "layer", "max error", "min cosine"], *rows]):
        print(line)
    verdict = "ok" if comparison.ok else "they differ"
    print(f"{len(comparison.examples):,} examples recomputed: {verdict}")


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def _location(damage: Damage) -> str:
    location = " of ".join(place for place in (damage.array, damage.part) if place)
    location += "" if damage.shard is None else f", shard {damage.shard}"
    return location + ("" if damage.chunk is None else f", chunk {damage.chunk}")
