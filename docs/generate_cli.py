"""Generate docs/cli.md from the parsers of the command line: ``python docs/generate_cli.py --write``."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from actstore import cli

HEAD = """\
# Command line

<!-- Generated from the parsers: change those, then run `python docs/generate_cli.py --write`. -->

Results go to stdout; errors, warnings, hints and progress go to stderr.
Progress bars appear only if stderr is a terminal.
`python -m actstore` is the same program.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | expected failure, such as a missing store, a damaged store, a full disk or a locked store |
| 2 | usage error |
| 130 | interrupted |

"""


def render() -> str:
    """The text of docs/cli.md."""
    parser = cli.build_parser()
    lines = ["## actstore", "", str(parser.description), "", *_usage(parser), *_table(_actions(parser))]
    for name, command in _commands(parser).items():
        lines += [f"## actstore {name}", "", str(command.description), "", *_usage(command)]
        lines += _table(_actions(command))
    return HEAD + "\n".join(lines).rstrip() + "\n"


def _subparsers(parser: argparse.ArgumentParser) -> argparse._SubParsersAction | None:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return actions[0] if actions else None


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    action = _subparsers(parser)
    return {} if action is None else dict(action.choices)


def _actions(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """The name and the help of each command and argument."""
    commands = _subparsers(parser)
    if commands is not None:
        for choice in commands._choices_actions:
            yield f"[`{choice.dest}`](#actstore-{choice.dest})", choice.help or ""
    for action in parser._actions:
        if action is not commands:
            names = action.option_strings or [action.dest.upper()]
            yield ", ".join(f"`{name}{_value(action)}`" for name in names), action.help or ""


def _value(action: argparse.Action) -> str:
    if not action.option_strings or action.nargs == 0:
        return ""
    if action.choices is not None:
        return " " + "|".join(map(str, action.choices))
    return f" {action.metavar or action.dest.upper()}"


def _usage(parser: argparse.ArgumentParser) -> list[str]:
    """The usage on one line; argparse wraps it differently in each version."""
    commands = _subparsers(parser)
    words = [f"[{action.option_strings[-1]}{_value(action)}]" for action in _options(parser)]
    words += (
        ["COMMAND ..."] if commands else [a.dest.upper() for a in parser._actions if not a.option_strings]
    )
    return ["```text", f"{parser.prog} {' '.join(words)}", "```", ""]


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if a.option_strings and "--help" not in a.option_strings]


def _table(rows: Iterator[tuple[str, str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in cells), ""]


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        Path(__file__).with_name("cli.md").write_text(render(), encoding="utf-8")
    else:
        sys.stdout.write(render())
