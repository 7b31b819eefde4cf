"""``actstore import``: a store of .npy, safetensors or Zarr."""

import argparse

from ..arrays import SITE_DTYPES
from ..errors import InvalidInputError, NotFoundError
from ..interchange import import_
from ..store import open as open_store
from .options import Commands, add_json, add_threads
from .output import Bar, plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import",
        help="make a store of .npy, safetensors or Zarr",
        description="Make a store of an export, a .safetensors file, an .npy file, a Zarr v3 group or array. "
        "Arrays are [rows, dim] or [rows, layers, dim].",
    )
    parser.add_argument("source", help="the file or directory to read")
    parser.add_argument("store", help="the store to make")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument(
        "--offsets",
        metavar="FILE.npy",
        help="where each example begins, one more than there are (default: as SOURCE says, else one example)",
    )
    begins.add_argument("--lengths", metavar="FILE.npy", help="rows of each example, instead of --offsets")
    parser.add_argument("--ids", metavar="FILE", help="a text file, the id of an example on each line")
    parser.add_argument(
        "--site",
        default="resid",
        metavar="NAME",
        help="what to call the site of an .npy file (default: resid)",
    )
    parser.add_argument("--only", action="append", metavar="SITE", help="only this site (may be repeated)")
    parser.add_argument(
        "--labels", type=_labels, metavar="N,N,...", help="what the layers are called (default: 0,1,2,...)"
    )
    parser.add_argument("--dtype", choices=list(SITE_DTYPES), help="cast to this (default: as it is)")
    parser.add_argument(
        "--codec",
        choices=["blosc", "raw"],
        default="blosc",
        help="compressed without loss, or as it is in memory (default: blosc)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with plain_warnings(), Bar("import") as bar:
        import_(
            args.source,
            args.store,
            offsets=args.offsets,
            lengths=args.lengths,
            ids=None if args.ids is None else _read_ids(args.ids),
            site=args.site,
            sites=args.only,
            labels=args.labels,
            dtype=args.dtype,
            codec=args.codec,
            overwrite=args.overwrite,
            threads=args.threads,
            progress=bar.progress,
        )
    with open_store(args.store) as store:
        if args.json:
            print_json(store.info())
        else:
            print(f"{args.store}: {store.n_examples:,} examples, {store.n_tokens:,} tokens")
    return 0


def _labels(text: str) -> list[int]:
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ints") from None


def _read_ids(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not utf-8: {error}") from error
