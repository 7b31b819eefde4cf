"""``actstore export``: write a store as safetensors files."""

import argparse
import os

from ...base.text import human_bytes
from ...interchange import export
from ..args import Commands, add_json, add_overwrite, add_threads
from ..terminal import ProgressBar, plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help="write a store as safetensors files, one per layer",
        description="Write a store as a directory of safetensors files: SITE.LABEL.safetensors for each "
        "layer, with the tensor SITE.LABEL [rows, dim]; columns.safetensors; and whiteners.safetensors if "
        "there are any. 'actstore import' turns the directory back into a store.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument("output", help="the directory to write")
    parser.add_argument(
        "--only", action="append", metavar="SITE", help="only this site (repeatable; default: all)"
    )
    add_overwrite(parser, "export")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with plain_warnings(), ProgressBar("export") as bar:
        export(
            args.store,
            args.output,
            sites=args.only,
            overwrite=args.overwrite,
            threads=args.threads,
            progress=bar.in_bytes,
        )
    names = sorted(os.listdir(args.output))
    n_bytes = sum(os.path.getsize(os.path.join(args.output, name)) for name in names)
    if args.json:
        print_json({"path": args.output, "files": names, "bytes": n_bytes})
    else:
        print(f"{args.output}: {len(names)} files, {human_bytes(n_bytes)}")
    return 0
