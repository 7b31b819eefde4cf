"""Options that several commands have."""

import argparse
from typing import Any

Commands = Any
"""What ``add_subparsers`` returns; its type is private to argparse."""


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads", type=_count, default=0, metavar="N", help="threads to use (default: 0, all cores)"
    )


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    return number
