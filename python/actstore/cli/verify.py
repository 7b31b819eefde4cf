"""``actstore verify``: whether every checksum is right."""

import argparse
import dataclasses

from ..arrays import human_bytes
from ..errors import FormatError
from ..report import Damage, Report
from ..store import open as open_store
from .options import Commands, add_json, add_threads
from .output import Bar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "verify",
        help="check every checksum of a store",
        description="Read all of a store and check every checksum. Exit status 1 when something is damaged.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="also list what interrupted writes left behind (it does no harm)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    try:
        with open_store(args.store) as store, Bar("verify") as bar:
            report = store.verify(strict=args.strict, threads=args.threads, progress=bar.progress)
    except FormatError as error:  # Damage that keeps the store from being opened is damage.
        report = Report([Damage(args.store, "", None, None, error.kind, str(error))])
    if args.json:
        print_json({"ok": report.ok, **dataclasses.asdict(report)})
    else:
        for damage in report.damaged:
            print(f"damaged: {_where(damage)}: {damage.message}")
        for path in report.leftovers:
            print(f"leftover: {path}")
        checked = f"{report.chunks:,} chunks, {human_bytes(report.bytes)} checked"
        print(f"{checked}: {'ok' if report.ok else f'{len(report.damaged)} damaged'}")
    return 0 if report.ok else 1


def _where(damage: Damage) -> str:
    places = [damage.array, damage.part]
    where = " of ".join(place for place in places if place)
    where += "" if damage.shard is None else f", shard {damage.shard}"
    return where + ("" if damage.chunk is None else f", chunk {damage.chunk}")
