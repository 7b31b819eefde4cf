"""``actstore dump``: capture the activations of a model on texts."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from ...base.text import human_bytes
from ...errors import ActstoreError
from ...ops.summary import Summary
from ...store import Store
from ...store import open as open_store
from ..args import Commands, usage_error
from ..capture_args import add_arguments, capture_options, load_model, read_texts
from ..render.sites import print_sites
from ..terminal import plain_warnings, print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "dump",
        help="capture the activations of a model on texts",
        description="Run texts through a model and store the activations of its layers (in Python: "
        "actstore.capture). Committed rows survive a kill: --resume continues where the last run stopped.",
    )
    parser.add_argument("-o", "--out", metavar="STORE", help="where to write the store")
    add_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if not args.list_sites and (args.texts is None or args.out is None):
        usage_error(args, "TEXTS and -o STORE are required, or --list-sites")
    from ...capturing import available, capture

    if args.list_sites:
        print_sites(available(load_model(args)), args.json)
        return 0
    model, texts = load_model(args), read_texts(args)
    n_before, tokens_before = _existing(args.out) if args.resume else (0, 0)
    start = time.monotonic()
    with plain_warnings(), _resume_hint(args):
        store = capture(
            args.out,
            model,
            texts,
            **capture_options(args),
            store_text=args.store_text,
            on_nan=args.on_nan,
            on_empty=args.on_empty,
            max_bytes=args.max_bytes,
            threads=args.threads,
            force=args.force,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=not args.quiet,
        )
    seconds = time.monotonic() - start
    with store:
        result = {"path": store.path, **_summary(store, seconds, tokens_before)}
    result["new_examples"] = result["examples"] - n_before
    if args.json:
        print_json(result)
    else:
        for line in _lines(result):
            print(line)
    return 0


def _existing(path: str) -> tuple[int, int]:
    """Examples and tokens of a store; zeros if there is no store."""
    if not os.path.isdir(path):
        return 0, 0
    with contextlib.suppress(ActstoreError), open_store(path) as store:
        return store.n_examples, _n_tokens(store)
    return 0, 0


def _n_tokens(store: Store) -> int:
    """Captured tokens, including those that were pooled into one row per example."""
    pooled = store.examples.get("n_rows")
    return store.n_tokens if pooled is None else int(pooled.sum())


def _summary(store: Store, seconds: float, tokens_before: int) -> dict[str, Any]:
    """The result of a capture, ready for JSON."""
    info = store.info()
    raw = sum(site["logical_bytes"] for site in info["sites"].values())
    used = sum(site["stored_bytes"] - site["hole_bytes"] for site in info["sites"].values())
    cut = store.examples.get("n_cut")
    nonfinite = store.examples.get("n_nonfinite")
    n_nonfinite = 0 if nonfinite is None else int((nonfinite > 0).sum())
    tokens = _n_tokens(store)
    return {
        "examples": store.n_examples,
        "tokens": tokens,
        "sites": {
            name: {key: site[key] for key in ("axis", "shape", "dtype", "layers")}
            for name, site in info["sites"].items()
        },
        "bytes": info["stored_bytes"],
        "raw_bytes": raw,
        "ratio": raw / used if used else None,
        "seconds": seconds,
        "tokens_per_second": (tokens - tokens_before) / seconds,
        "cut_examples": 0 if cut is None else int((cut > 0).sum()),
        "cut_tokens": 0 if cut is None else int(cut.sum()),
        "nonfinite_examples": n_nonfinite,
        "nonfinite": _nonfinite(store) if n_nonfinite else {},
    }


def _nonfinite(store: Store) -> dict[str, dict[str, dict[str, int]]]:
    """The number of NaN and infinities by site and layer, for layers that have any."""
    by_site = {}
    for name in store:
        [summary] = store[name].scan([Summary()])
        by_layer = {
            str(label): {"nan": int(summary.n_nan[i]), "inf": int(summary.n_inf[i])}
            for i, label in enumerate(summary.layers)
            if summary.n_nan[i] or summary.n_inf[i]
        }
        if by_layer:
            by_site[name] = by_layer
    return by_site


def _lines(result: dict[str, Any]) -> Iterator[str]:
    n_new, tokens = result["new_examples"], result["tokens"]
    new = "" if n_new == result["examples"] else f" ({n_new:,} new)"
    n_tokens = f", {tokens:,} tokens" if tokens else ""
    ratio = "" if result["ratio"] is None else f" (ratio {result['ratio']:.2f})"
    speed = f", {result['tokens_per_second']:,.0f} tokens/s" if tokens else ""
    n_cut, n_nonfinite = result["cut_examples"], result["nonfinite_examples"]
    cut = f"{n_cut:,} truncated" if n_cut else "none truncated"
    nonfinite = f"{n_nonfinite:,} with NaN or Inf" if n_nonfinite else "no NaN or Inf"
    yield (
        f"{result['path']}: {result['examples']:,} examples{new}{n_tokens}, {human_bytes(result['bytes'])}"
        f"{ratio} in {result['seconds']:.1f} s{speed}; {cut}, {nonfinite}"
    )
    for site, layers in result["nonfinite"].items():
        for label, counts in layers.items():
            yield f"  {site}, layer {label}: {counts['nan']:,} NaN, {counts['inf']:,} infinite"


@contextlib.contextmanager
def _resume_hint(args: argparse.Namespace) -> Iterator[None]:
    """On an interrupt, say how much is stored and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        n, _ = _existing(args.out)
        if n and sys.stderr is not None:
            print(f"{args.out} has {n:,} examples; continue with --resume", file=sys.stderr)
        raise
