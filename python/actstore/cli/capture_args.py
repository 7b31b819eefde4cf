"""The arguments that ``dump`` and ``plan`` share, loading the model, and reading the texts."""

import argparse
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InvalidInputError
from ..ops.pool import KINDS, ON_EMPTY
from .args import (
    ArgumentTarget,
    add_codec,
    add_device,
    add_json,
    add_layers,
    add_overwrite,
    add_threads,
    add_trust_remote_code,
    name_list,
    natural,
    positive,
)
from .text_files import STDIN, TextFile, texts

if TYPE_CHECKING:
    from ..capturing.model.loading import Loaded

_DECIMAL_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare everything that determines a capture."""
    parser.add_argument("model", help="a folder, a model name on the Hugging Face hub, or package:NAME")
    parser.add_argument(
        "texts",
        nargs="?",
        help="a .txt (one text per line), .jsonl, .csv, .tsv or .parquet file, a BEIR folder, or - for stdin",
    )
    _add_selection(parser.add_argument_group("what to capture"))
    _add_texts(parser.add_argument_group("texts"))
    execution = parser.add_argument_group("execution")
    _add_execution(execution)
    existing = execution.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue an existing store")
    add_overwrite(existing)
    add_threads(execution)
    add_json(execution)


def _add_selection(group: ArgumentTarget) -> None:
    group.add_argument(
        "--sites",
        type=name_list,
        default=["resid"],
        metavar="A,B,...",
        help="where in the model: resid, attn_out, mlp_out, q, k, v, final, logits, module paths, globs "
        "(default: resid)",
    )
    group.add_argument("--list-sites", action="store_true", help="list the model's sites and exit")
    add_layers(group)
    group.add_argument(
        "--dtype", help="dtype to store: bfloat16, float16 or float32 (default: the model's own)"
    )
    group.add_argument(
        "--keep",
        type=_token_filter,
        default="all",
        metavar="POLICY",
        help="which tokens to store: all, no-special, last, or a random fraction such as 0.1 (default: all)",
    )
    group.add_argument(
        "--pool", choices=KINDS, help="pool the rows of each text into one, instead of storing one per token"
    )
    group.add_argument(
        "--on-empty",
        choices=ON_EMPTY,
        default="raise",
        help="with --pool, for a text without tokens: raise an error or store zeros (default: raise)",
    )
    group.add_argument(
        "--on-nan",
        choices=("count", "raise"),
        default="count",
        help="for NaN and infinite values: count them or raise an error (default: count)",
    )


def _add_texts(group: ArgumentTarget) -> None:
    group.add_argument(
        "--text-column", default="text", metavar="C", help="column that holds the text (default: text)"
    )
    group.add_argument(
        "--id-column", metavar="C", help="column that holds the id (default: _id or id, if present)"
    )
    group.add_argument(
        "--columns",
        type=name_list,
        metavar="A,B,...",
        help="columns to store with the examples (default: all)",
    )
    group.add_argument("--store-text", action="store_true", help="store the texts too")
    group.add_argument("--limit", type=positive, metavar="N", help="capture only the first N texts")
    group.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="truncate texts to N tokens (default: the model's maximum)",
    )
    group.add_argument(
        "--stride",
        type=positive,
        metavar="N",
        help="instead of truncating, split long texts into windows that start N tokens apart",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="text to prepend to each text (default: the model's own prompt)"
    )
    group.add_argument(
        "--chat",
        nargs="?",
        const=True,
        metavar="TEMPLATE",
        help="apply a chat template; each text becomes a user turn. TEMPLATE is a template or a file "
        "(default: the model's own); 'generate' also adds the generation prompt",
    )


def _add_execution(group: ArgumentTarget) -> None:
    group.add_argument("--revision", metavar="R", help="revision of a model on the hub")
    add_device(group)
    group.add_argument(
        "--batch-tokens", type=positive, default=8192, metavar="N", help="tokens per batch (default: 8192)"
    )
    add_codec(group)
    group.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="N",
        help="seed of the random fraction that --keep selects (default: 0)",
    )
    group.add_argument(
        "--max-bytes",
        type=_size,
        metavar="SIZE",
        help="refuse to start if the store would exceed SIZE, such as 20GB",
    )
    add_trust_remote_code(group)
    group.add_argument("--force", action="store_true", help="start even if the disk is too small")
    group.add_argument("--quiet", action="store_true", help="show no progress")


def load_model(args: argparse.Namespace) -> "Loaded":
    """Load the model that the arguments name."""
    from ..capturing.model.loading import load

    return load(
        args.model, device=args.device, revision=args.revision, trust_remote_code=args.trust_remote_code
    )


def read_texts(args: argparse.Namespace) -> Any:
    """The texts that the arguments name, read lazily during the capture."""
    source = texts(args.texts, text_column=args.text_column)
    if args.texts == STDIN:
        return itertools.islice(iter(source), args.limit)
    if args.limit is None and args.id_column is None:
        return source

    def count() -> int | None:
        n = source.n_examples
        return n if n is None or args.limit is None else min(n, args.limit)

    keep = args.id_column in (args.columns or ())
    return TextFile(
        source.title,
        lambda: itertools.islice(_with_ids(source, args.id_column, keep), args.limit),
        count=count,
    )


def _with_ids(items: Iterable[Any], column: str | None, keep: bool) -> Iterator[Any]:
    """Records whose id comes from `column`; with `keep`, it remains a column as well."""
    for number, item in enumerate(items):
        if column is not None:
            if not isinstance(item, dict) or column not in item:
                available = ", ".join(map(repr, item)) if isinstance(item, dict) else "only its text"
                raise InvalidInputError(
                    f"--id-column: text {number} has no column {column!r}, it has {available}"
                )
            item = {**item, "id": str(item[column])}
            if not keep:
                del item[column]
        yield item


def capture_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments that `capture` and `plan` share."""
    return {
        "sites": args.sites,
        "layers": args.layers,
        "dtype": args.dtype,
        "keep": args.keep,
        "pool": args.pool,
        "max_length": args.max_length,
        "stride": args.stride,
        "batch_tokens": args.batch_tokens,
        "columns": args.columns,
        "chat": _chat_template(args.chat),
        "prompt": args.prompt,
        "seed": args.seed,
        "codec": args.codec,
    }


def _chat_template(chat: str | bool | None) -> str | bool | None:
    """The template; read from a file if `chat` is a path."""
    if isinstance(chat, str) and os.path.isfile(chat):
        with open(chat, encoding="utf-8") as file:
            try:
                return file.read()
            except UnicodeDecodeError as error:
                raise InvalidInputError(f"--chat: {chat} is not valid UTF-8: {error.reason}") from error
    return chat


def _token_filter(text: str) -> str | float:
    if text in ("all", "no-special", "last"):
        return text
    try:
        fraction = float(text)
    except ValueError:
        fraction = math.nan
    if not 0 < fraction < 1:
        raise argparse.ArgumentTypeError(
            f"expected all, no-special, last or a fraction between 0 and 1, got {text!r}"
        )
    return fraction


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise argparse.ArgumentTypeError(f"expected a size such as 20GB or 1.5TiB, got {text!r}")
    unit = _BINARY_UNITS[match[2]] if match[3] else _DECIMAL_UNITS[match[2]]
    return int(float(match[1]) * unit)
