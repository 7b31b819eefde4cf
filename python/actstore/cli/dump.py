"""``actstore dump``: capture what a model computes of texts."""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..arrays import human_bytes
from ..errors import ActstoreError
from ..store import Store
from ..store import open as open_store
from ..summary import Summary
from .capturing import add_arguments, given_texts, keywords, load_model
from .info import label_runs
from .options import Commands, wrong_usage
from .output import plain_warnings, print_json, table


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "dump",
        help="capture what a model computes of texts",
        description="Run texts through a model and store the activations of its layers. What is committed "
        "survives a kill: --resume goes on where the last run stopped.",
    )
    parser.add_argument("-o", "--out", metavar="STORE", help="where the store is to be")
    add_arguments(parser)
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.list_sites:
        return list_sites(args)
    if args.texts is None or args.out is None:
        wrong_usage(args, "TEXTS and -o STORE are needed, or --list-sites")
    from ..capture import capture

    loaded, texts = load_model(args), given_texts(args)
    writing = {
        "store_text": args.store_text,
        "on_nan": args.on_nan,
        "on_empty": args.on_empty,
        "max_bytes": args.max_bytes,
        "threads": args.threads,
        "force": args.force,
        "resume": args.resume,
        "overwrite": args.overwrite,
        "progress": not args.quiet,
    }
    n_before, tokens_before = _there(args.out) if args.resume else (0, 0)
    start = time.monotonic()
    with plain_warnings(), _what_is_kept(args):
        store = capture(args.out, loaded, texts, **keywords(args), **writing)
    seconds = time.monotonic() - start
    with store:
        told = {"path": store.path, **summary(store, seconds, tokens_before)}
    told = {**told, "new_examples": told["examples"] - n_before}
    if args.json:
        print_json(told)
    else:
        for line in _lines(told):
            print(line)
    return 0


def list_sites(args: argparse.Namespace) -> int:
    """What ``--list-sites`` prints: the sites that a model has."""
    from ..capture import available

    found = available(load_model(args))
    if args.json:
        print_json({"sites": found})
    else:
        rows = [[site["site"], label_runs(site["layers"]), str(site["dim"]), site["what"]] for site in found]
        for line in table([["site", "layers", "dim", "what"], *rows], left=4):
            print(line)
    return 0


def _there(path: str) -> tuple[int, int]:
    """Examples and tokens of a store that may be there."""
    if not os.path.isdir(path):
        return 0, 0
    with contextlib.suppress(ActstoreError), open_store(path) as store:
        return store.n_examples, tokens_of(store)
    return 0, 0


def tokens_of(store: Store) -> int:
    """Rows that were captured, those that were pooled into one included."""
    pooled = store.examples.get("n_rows")
    return store.n_tokens if pooled is None else int(pooled.sum())


def summary(store: Store, seconds: float, tokens_before: int = 0) -> dict[str, Any]:
    """What a capture has made, ready for JSON."""
    info = store.info()
    raw = sum(site["logical_bytes"] for site in info["sites"].values())
    used = sum(site["stored_bytes"] - site["hole_bytes"] for site in info["sites"].values())
    cut = store.examples.get("n_cut")
    odd = store.examples.get("n_nonfinite")
    n_odd = 0 if odd is None else int((odd > 0).sum())
    tokens = tokens_of(store)
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
        "nonfinite_examples": n_odd,
        "nonfinite": _nonfinite(store) if n_odd else {},
    }


def _nonfinite(store: Store) -> dict[str, dict[str, dict[str, int]]]:
    """By site and layer, how many NaN and infinities; of layers that have some."""
    found = {}
    for name in store:
        [seen] = store[name].scan([Summary()])
        bad = {
            str(label): {"nan": int(seen.n_nan[i]), "inf": int(seen.n_inf[i])}
            for i, label in enumerate(seen.layers)
            if seen.n_nan[i] or seen.n_inf[i]
        }
        if bad:
            found[name] = bad
    return found


def _lines(told: dict[str, Any]) -> Iterator[str]:
    new, tokens = told["new_examples"], told["tokens"]
    more = "" if new == told["examples"] else f" ({new:,} new)"
    ratio = "" if told["ratio"] is None else f" (ratio {told['ratio']:.2f})"
    speed = f", {told['tokens_per_second']:,.0f} tokens/s" if tokens else ""
    cut = f"{told['cut_examples']:,} cut" if told["cut_examples"] else "none cut"
    odd = f"{told['nonfinite_examples']:,} with NaN or Inf" if told["nonfinite_examples"] else "no NaN or Inf"
    rows = f", {tokens:,} tokens" if tokens else ""
    yield (
        f"{told['path']}: {told['examples']:,} examples{more}{rows}, {human_bytes(told['bytes'])}{ratio} "
        f"in {told['seconds']:.1f} s{speed}; {cut}, {odd}"
    )
    for site, layers in told["nonfinite"].items():
        for label, bad in layers.items():
            yield f"  {site}, layer {label}: {bad['nan']:,} NaN, {bad['inf']:,} infinite"


@contextlib.contextmanager
def _what_is_kept(args: argparse.Namespace) -> Iterator[None]:
    """When interrupted, say how much is there and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        n, _ = _there(args.out)
        if n and sys.stderr is not None:
            print(f"{args.out} has {n:,} examples; --resume goes on", file=sys.stderr)
        raise
