"""``actstore compact``: give back the room that superseded chunks take."""

import argparse
from typing import Any

from ..arrays import human_bytes
from ..compact import compact
from ..parts import find_parts
from .options import Commands, add_json, add_threads
from .output import Bar, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compact",
        help="remove the holes that many small commits leave",
        description="Rewrite the files of a store that have holes. Values stay as they are; nobody may be "
        "writing to it meanwhile.",
    )
    parser.add_argument("store", help="a store or a folder of parts")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    parts: list[dict[str, Any]] = []
    with Bar("compact") as bar:
        for path in find_parts(args.store):
            done = compact(path, threads=args.threads, progress=bar.progress)
            parts.append(
                {
                    "path": path,
                    "bytes_before": done.bytes_before,
                    "bytes_after": done.bytes_after,
                    "record": done.record,
                }
            )
    if args.json:
        print_json({"parts": parts})
    else:
        for part in parts:
            before, after = human_bytes(part["bytes_before"]), human_bytes(part["bytes_after"])
            print(f"{part['path']}: {before} before, {after} now")
    return 0
