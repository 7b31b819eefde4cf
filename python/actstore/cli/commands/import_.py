"""``actstore import``: create a store from .npy, safetensors or Zarr."""

import argparse

from ...base.arrays import SITE_DTYPES
from ...errors import InvalidInputError, NotFoundError
from ...interchange import import_
from ...store import open as open_store
from ..args import Commands, add_codec, add_json, add_overwrite, add_threads, int_list
from ..terminal import ProgressBar, plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import",
        help="create a store from .npy, safetensors or Zarr",
        description="Create a store from an export of 'actstore export', a .safetensors file, a .npy file, "
        "or a Zarr v3 group or array. Arrays have shape [rows, dim] or [rows, layers, dim].",
    )
    parser.add_argument("source", help="the file or directory to read")
    parser.add_argument("store", help="the store to create")
    boundaries = parser.add_mutually_exclusive_group()
    boundaries.add_argument(
        "--offsets",
        metavar="FILE.npy",
        help="first row of each example, and the number of rows (default: as in SOURCE, else one example)",
    )
    boundaries.add_argument(
        "--lengths", metavar="FILE.npy", help="number of rows of each example, instead of --offsets"
    )
    parser.add_argument("--ids", metavar="FILE", help="text file with the id of one example per line")
    parser.add_argument(
        "--site",
        default="resid",
        metavar="NAME",
        help="name for the site of a .npy file (default: resid)",
    )
    parser.add_argument(
        "--only", action="append", metavar="SITE", help="only this site (repeatable; default: all)"
    )
    parser.add_argument(
        "--labels", type=int_list, metavar="N,N,...", help="labels of the layers (default: 0,1,2,...)"
    )
    parser.add_argument(
        "--dtype", choices=list(SITE_DTYPES), help="cast to this dtype (default: keep the dtype)"
    )
    add_codec(parser)
    add_overwrite(parser)
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with plain_warnings(), ProgressBar("import") as bar:
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
            progress=bar.in_bytes,
        )
    with open_store(args.store) as store:
        if args.json:
            print_json(store.info())
        else:
            print(f"{args.store}: {store.n_examples:,} examples, {store.n_tokens:,} tokens")
    return 0


def _read_ids(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not valid UTF-8: {error}") from error
