"""Options that several commands have."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import InvalidInputError

Commands = Any
"""What ``add_subparsers`` returns; its type is private to argparse."""


def add_json(parser: argparse._ActionsContainer) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_threads(parser: argparse._ActionsContainer) -> None:
    """``--threads``."""
    parser.add_argument(
        "--threads", type=_count, default=0, metavar="N", help="threads to use (default: 0, all cores)"
    )


def add_layers(parser: argparse._ActionsContainer, default: str = "all") -> None:
    """``--layers``: what `Site.select` takes."""
    parser.add_argument(
        "--layers",
        type=_layers,
        metavar="N,N,...",
        help=f"only these layers, by label; A:B is those from A to before B (default: {default})",
    )


def natural(text: str) -> int:
    """A number from 0 up.

    Raises
    ------
    argparse.ArgumentTypeError
        When it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return number


def positive(text: str) -> int:
    """A number from 1 up.

    Raises
    ------
    argparse.ArgumentTypeError
        When it is none.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def only_site(there: Sequence[str], path: object, hint: str) -> str:
    """The site that is meant where none is named: resid, or the only one.

    Raises
    ------
    InvalidInputError
        When there are several.
    """
    if "resid" not in there and len(there) != 1:
        raise InvalidInputError(f"{path} has several sites: {', '.join(there) or 'none'}", hint=hint)
    return "resid" if "resid" in there else there[0]


def wrong_usage(args: argparse.Namespace, message: str) -> NoReturn:
    """Options that do not go together: say so and end with status 2; the command sets ``parser``."""
    args.parser.error(message)
    raise AssertionError("argparse exits")


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads")
    return number


def _layers(text: str) -> list[int] | slice:
    try:
        if ":" in text:
            start, stop = (int(bound) if bound.strip() else None for bound in text.split(":"))
            return slice(start, stop)
        return [int(label) for label in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of layers, as 1,12 or 0:6") from None
