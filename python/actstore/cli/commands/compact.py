"""``actstore compact``: free the disk space of superseded chunks."""

import argparse
from typing import Any

from ...base.text import human_bytes
from ...disk.compact import compact
from ...disk.location import find_parts
from ..args import Commands, add_json, add_threads
from ..terminal import ProgressBar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compact",
        help="free the disk space of superseded chunks",
        description="Rewrite the files of a store without the holes that frequent commits leave. The values "
        "do not change. No other process may be writing to the store.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    parts: list[dict[str, Any]] = []
    with ProgressBar("compact") as bar:
        for path in find_parts(args.store):
            result = compact(path, threads=args.threads, progress=bar.in_bytes)
            parts.append(
                {
                    "path": path,
                    "bytes_before": result.bytes_before,
                    "bytes_after": result.bytes_after,
                    "record": result.record,
                }
            )
    if args.json:
        print_json({"parts": parts})
    else:
        for part in parts:
            before, after = human_bytes(part["bytes_before"]), human_bytes(part["bytes_after"])
            print(f"{part['path']}: {before} before, {after} after")
    return 0
