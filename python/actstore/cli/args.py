"""Arguments and argument types that several commands share."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from ..errors import InvalidInputError

Commands = Any
"""The type that ``add_subparsers`` returns, which has no public name."""


class ArgumentTarget(Protocol):
    """A parser or an argument group."""

    def add_argument(self, *name_or_flags: str, **options: Any) -> Any:
        """Declare an argument."""


def add_json(target: ArgumentTarget) -> None:
    """Declare ``--json``."""
    target.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_threads(target: ArgumentTarget) -> None:
    """Declare ``--threads``."""
    target.add_argument(
        "--threads", type=natural, default=0, metavar="N", help="threads to use (default: 0, all cores)"
    )


def add_layers(target: ArgumentTarget, default: str = "all") -> None:
    """Declare ``--layers``: a list or a slice of labels for `Site.select`."""
    target.add_argument(
        "--layers",
        type=_layers,
        metavar="N,N,...",
        help=f"only these layers, by label; A:B means from A up to but not including B (default: {default})",
    )


def add_device(target: ArgumentTarget) -> None:
    """Declare ``--device``: where the model runs."""
    target.add_argument(
        "--device",
        metavar="D",
        help="run the model on this device: cpu, cuda, cuda:1, ... (default: cuda if available)",
    )


def add_trust_remote_code(target: ArgumentTarget) -> None:
    """Declare ``--trust-remote-code``."""
    target.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="allow code shipped with the model to run (default: no)",
    )


def add_codec(target: ArgumentTarget) -> None:
    """Declare ``--codec``."""
    target.add_argument(
        "--codec",
        choices=("blosc", "raw"),
        default="blosc",
        help="blosc (lossless compression) or raw (uncompressed) (default: blosc)",
    )


def add_overwrite(target: ArgumentTarget, what: str = "store") -> None:
    """Declare ``--overwrite``."""
    target.add_argument("--overwrite", action="store_true", help=f"replace an existing {what}")


def natural(text: str) -> int:
    """Parse an integer of at least 0.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is anything else.
    """
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return number


def positive(text: str) -> int:
    """Parse an integer of at least 1.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def int_list(text: str) -> list[int]:
    """Parse integers separated by commas.

    Raises
    ------
    argparse.ArgumentTypeError
        If the text is anything else.
    """
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, such as 0,1,2, got {text!r}"
        ) from None


def name_list(text: str) -> list[str]:
    """Parse names separated by commas.

    Raises
    ------
    argparse.ArgumentTypeError
        If one of them is empty.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, such as a,b, got {text!r}")
    return names


def default_site(sites: Sequence[str], path: object, hint: str) -> str:
    """The site to use when the user names none: resid, or the only one.

    Raises
    ------
    InvalidInputError
        If there are several sites and none is called resid.
    """
    if "resid" not in sites and len(sites) != 1:
        raise InvalidInputError(f"{path} has several sites: {', '.join(sites) or 'none'}", hint=hint)
    return "resid" if "resid" in sites else sites[0]


def usage_error(args: argparse.Namespace, message: str) -> NoReturn:
    """Report options that cannot be combined, and exit with status 2.

    The command must have set ``parser`` as a default of its arguments.
    """
    args.parser.error(message)
    raise AssertionError("ArgumentParser.error exits")


def _layers(text: str) -> list[int] | slice:
    try:
        if ":" in text:
            start, stop = (int(bound) if bound.strip() else None for bound in text.split(":"))
            return slice(start, stop)
        return [int(label) for label in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected layer labels, such as 1,12 or 0:6, got {text!r}"
        ) from None
