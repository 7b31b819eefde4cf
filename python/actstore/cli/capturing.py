"""What ``dump`` and ``plan`` have in common: their arguments, the model, the texts."""

import argparse
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..pool import KINDS, ON_EMPTY
from .options import add_json, add_layers, add_threads, natural, positive

if TYPE_CHECKING:
    from ..capture.loading import Loaded

STDIN = "-"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All that decides what is captured, and how."""
    parser.add_argument("model", help="a folder, a name on the Hugging Face hub, or package:NAME")
    parser.add_argument(
        "texts",
        nargs="?",
        help="a .txt (a text on each line), .jsonl, .csv, .tsv or .parquet, a BEIR folder, or - for stdin",
    )
    what = parser.add_argument_group("what is captured")
    what.add_argument(
        "--sites",
        type=_names,
        default=["resid"],
        metavar="A,B,...",
        help="where in the model: resid, attn_out, mlp_out, q, k, v, final, logits, module paths, globs "
        "(default: resid)",
    )
    what.add_argument("--list-sites", action="store_true", help="list the sites that the model has, and end")
    add_layers(what)
    what.add_argument(
        "--dtype", help="what is stored: bfloat16, float16 or float32 (default: as the model computes)"
    )
    what.add_argument(
        "--tokens",
        type=_policy,
        default="all",
        metavar="POLICY",
        help="which tokens are stored: all, no-special, last, or a share as 0.1 (default: all)",
    )
    what.add_argument(
        "--pool", choices=KINDS, help="store one row for each text instead of one for each token"
    )
    what.add_argument(
        "--on-empty",
        choices=ON_EMPTY,
        default="raise",
        help="with --pool, what a text without tokens is (default: raise, an error)",
    )
    what.add_argument(
        "--on-nan",
        choices=("count", "raise"),
        default="count",
        help="what to do about NaN and infinities (default: count them)",
    )
    texts = parser.add_argument_group("the texts")
    texts.add_argument("--text-column", default="text", metavar="C", help="where the text is (default: text)")
    texts.add_argument(
        "--id-column", metavar="C", help="where the id is (default: _id or id, if there is one)"
    )
    texts.add_argument(
        "--columns", type=_names, metavar="A,B,...", help="columns to keep with the examples (default: all)"
    )
    texts.add_argument("--store-text", action="store_true", help="keep the texts in the store")
    texts.add_argument("--limit", type=positive, metavar="N", help="only the first N texts")
    texts.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="cut texts to so many tokens (default: the model's length)",
    )
    texts.add_argument(
        "--stride",
        type=positive,
        metavar="N",
        help="do not cut: long texts go through the model in windows that begin N tokens apart",
    )
    texts.add_argument(
        "--prompt", metavar="TEXT", help="put before each text (default: the model's own prompt)"
    )
    texts.add_argument(
        "--chat",
        nargs="?",
        const=True,
        metavar="TEMPLATE",
        help="texts are user turns, messages are chats: by the model's template, by this one (or a file of "
        "it), or 'generate' for the model's with the reply begun",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--revision", metavar="R", help="of a model of the hub")
    how.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    how.add_argument(
        "--batch-tokens", type=positive, default=8192, metavar="N", help="tokens of a batch (default: 8192)"
    )
    how.add_argument("--codec", choices=("blosc", "raw"), default="blosc", help="default: blosc")
    how.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="for a share of the tokens (default: 0)"
    )
    how.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        help="refuse to begin when the store would be larger, as 20GB",
    )
    how.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let code that comes with the model run (default: no)",
    )
    how.add_argument("--force", action="store_true", help="begin even when the disk is too small")
    how.add_argument("--quiet", action="store_true", help="no progress")
    which = how.add_mutually_exclusive_group()
    which.add_argument("--resume", action="store_true", help="go on with a store that is there")
    which.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    add_threads(how)
    add_json(how)


def load_model(args: argparse.Namespace) -> "Loaded":
    """The model that is asked for."""
    from ..capture.loading import load

    return load(
        args.model, device=args.device, revision=args.revision, trust_remote_code=args.trust_remote_code
    )


def given_texts(args: argparse.Namespace) -> Any:
    """The texts that are asked for, read while they are captured."""
    from ..capture.files import Texts, texts

    found = texts(args.texts, text_column=args.text_column)
    if args.texts == STDIN:
        return itertools.islice(iter(found), args.limit)
    if args.limit is None and args.id_column is None:
        return found

    def count() -> int | None:
        n = found.n_examples
        return n if n is None or args.limit is None else min(n, args.limit)

    keep = args.id_column in (args.columns or ())
    return Texts(
        found.title, lambda: itertools.islice(_renamed(found, args.id_column, keep), args.limit), count=count
    )


def _renamed(items: Iterable[Any], column: str | None, keep: bool) -> Iterator[Any]:
    """Records with the id that a column of theirs holds; it stays a column if it is to be kept."""
    for number, item in enumerate(items):
        if column is not None:
            if not isinstance(item, dict) or column not in item:
                there = ", ".join(map(repr, item)) if isinstance(item, dict) else "only its text"
                raise InvalidInputError(f"--id-column: text {number} has no {column!r}, it has {there}")
            item = {**item, "id": str(item[column])}
            if not keep:
                del item[column]
        yield item


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What `capture` and `plan` are both asked, besides the model and the texts."""
    return {
        "sites": args.sites,
        "layers": args.layers,
        "dtype": args.dtype,
        "tokens": args.tokens,
        "pool": args.pool,
        "max_length": args.max_length,
        "stride": args.stride,
        "batch_tokens": args.batch_tokens,
        "columns": args.columns,
        "chat": _template(args.chat),
        "prompt": args.prompt,
        "seed": args.seed,
        "codec": args.codec,
    }


def _template(chat: str | bool | None) -> str | bool | None:
    """A template on the command line is mostly a file."""
    if isinstance(chat, str) and os.path.isfile(chat):
        with open(chat, encoding="utf-8") as file:
            try:
                return file.read()
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"--chat: {chat} is not utf-8: {error.reason}") from error
    return chat


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of names, as a,b")
    return names


def _policy(text: str) -> str | float:
    if text in ("all", "no-special", "last"):
        return text
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of all, no-special, last, nor a share between 0 and 1"
        )
    return share


def _size(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if found is None or (found[3] and not found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, as 20GB or 1.5TiB")
    unit = _BINARY[found[2]] if found[3] else _UNITS[found[2]]
    return int(float(found[1]) * unit)
