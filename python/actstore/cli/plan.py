"""``actstore plan``: what a capture will take, before it is made."""

import argparse

from ..arrays import human_bytes
from .capturing import add_arguments, given_texts, keywords, load_model
from .dump import list_sites
from .options import Commands, wrong_usage
from .output import plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "plan",
        help="estimate size, time and disk of a capture before it is made",
        description="Look at some of the texts and run a few, to say how large the store will be, how long "
        "it will take, and whether the disk has room. Takes the arguments of dump and writes nothing. "
        "Exit status 1 when dump would refuse to begin.",
    )
    parser.add_argument(
        "-o", "--out", default=".", metavar="STORE", help="where the store would be (default: here)"
    )
    add_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.list_sites:
        return list_sites(args)
    if args.texts is None:
        wrong_usage(args, "TEXTS are needed, or --list-sites")
    from ..capture import plan

    loaded, texts = load_model(args), given_texts(args)
    with plain_warnings():
        found = plan(loaded, texts, path=args.out, **keywords(args))
    if args.json:
        print_json(found.json())
    else:
        print(found)
    too_large = None not in (args.max_bytes, found.stored_bytes) and found.stored_bytes > args.max_bytes
    if too_large and not args.json:
        print(f"limit       {human_bytes(args.max_bytes)}: too little")
    return 0 if args.force or (found.fits and not too_large) else 1
