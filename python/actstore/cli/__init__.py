"""The command line: ``actstore COMMAND``. Each command is a module here with `add` and `run`.

Data goes to stdout, everything else to stderr. Exit status: 0 done, 1 an expected failure,
2 usage, 130 interrupted.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ActstoreError
from . import bench, compact, demo, dump, export, import_, info, inspect, plan, pool, query, verify, whiten

_COMMANDS = (dump, query, plan, info, inspect, verify, compact, pool, whiten, export, import_, bench, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status.

    Examples
    --------
    >>> main(["info", "no/such.act"])
    1
    """
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or shown the help
        return stop.code if isinstance(stop.code, int) else 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot show is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = args.run(args)
        if sys.stdout is not None:  # it is None where the caller has closed it
            sys.stdout.flush()
        return status
    except SystemExit as stop:  # options that do not go together
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ActstoreError as error:
        _complain(str(error), error.hint)
        return 1
    except (OSError, MemoryError) as error:
        _complain(str(error) or type(error).__name__, None)
        return 1


def _complain(message: str, hint: str | None) -> None:
    _say(f"error: {message}")
    if hint is not None:
        _say(f"hint: {hint}")


def _say(line: str) -> None:
    if sys.stderr is not None:  # print would take None for stdout
        print(line, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actstore", description="A store for the hidden activations of neural networks."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from .. import __version__

        print(f"actstore {__version__}")
        parser.exit()
