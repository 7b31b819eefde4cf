"""The command line: ``actstore COMMAND``. Each command is a module in `commands` with `add` and `run`.

Results go to stdout, everything else to stderr. Exit status: 0 success, 1 expected failure, 2 usage error,
130 interrupted.

Structure, from top to bottom: commands/ (one module each; commands do not import each other), render/
(formatting of results), then the modules beside this one.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ActstoreError
from .commands import (
    bench,
    compact,
    demo,
    dump,
    export,
    import_,
    info,
    inspect,
    plan,
    pool,
    query,
    verify,
    whiten,
)

_COMMANDS = (dump, query, plan, info, inspect, verify, compact, pool, whiten, export, import_, bench, demo)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Examples
    --------
    >>> main(["info", "no/such.act"])
    1
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has already printed the error or the help.
        return _exit_status(stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal cannot display must not make the command fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status: int = args.run(args)
        if sys.stdout is not None:  # None if the caller closed it.
            sys.stdout.flush()
        return status
    except SystemExit as stop:  # The command rejected a combination of options.
        return _exit_status(stop)
    except KeyboardInterrupt:
        _print_stderr("interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output is gone. Python would fail again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ActstoreError as error:
        _print_error(str(error), error.hint)
        return 1
    except (OSError, MemoryError) as error:
        _print_error(str(error) or type(error).__name__, None)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; ``docs/generate_cli.py`` renders it."""
    parser = argparse.ArgumentParser(
        prog="actstore", description="A store for the hidden activations of neural networks."
    )
    parser.add_argument("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _exit_status(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else 2


def _print_error(message: str, hint: str | None) -> None:
    _print_stderr(f"error: {message}")
    if hint is not None:
        _print_stderr(f"hint: {hint}")


def _print_stderr(line: str) -> None:
    if sys.stderr is not None:  # print(file=None) would write to stdout.
        print(line, file=sys.stderr)


class _PrintVersion(argparse.Action):
    """Unlike argparse's own action, this one looks up the version only when it is requested."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from .. import __version__

        print(f"actstore {__version__}")
        parser.exit()
