"""``actstore plan``: estimate the cost of a capture before running it."""

import argparse

from ...base.text import human_bytes
from ..args import Commands, usage_error
from ..capture_args import add_arguments, capture_options, load_model, read_texts
from ..render.sites import print_sites
from ..terminal import plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "plan",
        help="estimate the size and duration of a capture before running it",
        description="Sample the texts and run a few of them, to estimate how large the store will be, how "
        "long the capture will take, and whether the disk has room. Takes the arguments of dump and writes "
        "nothing. The exit status is 1 if dump would refuse to start.",
    )
    parser.add_argument(
        "-o",
        "--out",
        default=".",
        metavar="STORE",
        help="path of the planned store (default: the current folder)",
    )
    add_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.list_sites and args.texts is None:
        usage_error(args, "TEXTS is required, or --list-sites")
    from ...capturing import available, plan

    if args.list_sites:
        print_sites(available(load_model(args)), args.json)
        return 0
    model, texts = load_model(args), read_texts(args)
    with plain_warnings():
        estimate = plan(model, texts, path=args.out, **capture_options(args))
    if args.json:
        print_json(estimate.json())
    else:
        print(estimate)
    over_limit = (
        None not in (args.max_bytes, estimate.stored_bytes) and estimate.stored_bytes > args.max_bytes
    )
    if over_limit and not args.json:
        print(f"limit       {human_bytes(args.max_bytes)}: too small")
    return 0 if args.force or (estimate.fits and not over_limit) else 1
