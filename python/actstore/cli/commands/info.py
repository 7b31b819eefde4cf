"""``actstore info``: the contents of a store and their size."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from ...base.text import human_bytes
from ...store import open as open_store
from ..args import Commands, add_json
from ..render.formatting import label_ranges
from ..terminal import print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "info",
        help="show the contents of a store and their size",
        description="Show a store's sites, derived sites, whiteners, columns and identity, its size on disk "
        "and how much of that is wasted.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with open_store(args.store) as store:
        info = store.info()
    if args.json:
        print_json(info)
    else:
        for line in _lines(info):
            print(line)
    return 0


def _lines(info: Mapping[str, Any]) -> Iterator[str]:
    yield str(info["path"])
    kind = "foreign Zarr group" if info["format"] is None else f"actstore format {info['format']}"
    parts = info["parts"]
    record = f", record {parts[0]['record']}" if len(parts) == 1 and parts[0]["record"] is not None else ""
    yield f"  {kind}{record}{', uuid ' + info['uuid'] if info['uuid'] else ''}"
    yield f"  {info['n_examples']:,} examples, {info['n_tokens']:,} tokens"
    waste = info["hole_bytes"] / info["stored_bytes"] if info["stored_bytes"] else 0
    yield f"  {human_bytes(info['stored_bytes'])} on disk, {waste:.1%} wasted by superseded chunks"
    if waste > 0.1:
        yield f"  hint: actstore compact {info['path']}"
    yield "sites"
    for name, site in info["sites"].items():
        ratio = "" if site["ratio"] is None else f", ratio {site['ratio']:.2f}"
        yield (
            f"  {name}  {site['dtype']} {site['shape']} on axis {site['axis']}, {site['codec']}: "
            f"{human_bytes(site['logical_bytes'])} in {human_bytes(site['stored_bytes'])}{ratio}, "
            f"{site['shards']} {'shard' if site['shards'] == 1 else 'shards'}"
        )
        yield f"    layers {label_ranges(site['layers'])}"
    if info["derived"]:
        yield "derived"
    for name, derived in info["derived"].items():
        recipe = derived["recipe"]
        yield f"  {name}  {recipe['kind']} of {recipe['source']}, layers {label_ranges(recipe['layers'])}"
        if not derived["complete"]:
            yield f"    covers only {derived['covers']:,} of {derived['n_rows']:,} rows"
            yield f"    hint: actstore pool {info['path']} --update"
    if info["whiteners"]:
        yield "whiteners"
    for name, whitener in info["whiteners"].items():
        if "error" in whitener:
            yield f"  {name}  {whitener['error']}"
            continue
        ranks = sorted(set(whitener["rank"]))
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        norms = "" if whitener["site"] is None else f", with norms of {whitener['site']}"
        layers = f"layers {label_ranges(whitener['layers'])}"
        yield f"  {name}  {whitener['transform']}, {layers}, rank {rank} of {whitener['dim']}{norms}"
    others = {name: own for name, own in info["artifacts"].items() if name not in info["whiteners"]}
    if others:
        yield "other artifacts"
    for name, artifact in others.items():
        yield f"  {name}  {artifact['kind'] or 'of no kind'}, version {artifact['version']}"
    if info["unknown"]:
        yield "not readable by this version"
    for name, reason in info["unknown"].items():
        yield f"  {name}  {reason}"
    yield "columns"
    for axis, table in {**info["axes"], "examples": info["examples"]}.items():
        columns = ", ".join(f"{name}: {dtype}" for name, dtype in table["columns"].items())
        yield f"  {axis} ({table['rows']:,})  {columns or 'none'}"
        for name, short in info["short_columns"].get(axis, {}).items():
            yield f"    {name} covers only {short['covers']:,} of {short['n_rows']:,} rows"
    if info["identity"]:
        yield "identity"
        for key, value in info["identity"].items():
            if not isinstance(value, Mapping):
                yield f"  {key}: {value}"
                continue
            yield f"  {key}"
            for name, entry in value.items():
                yield f"    {name}: {entry}"
    if len(parts) > 1 or info["missing_parts"]:
        yield "parts"
        for part in parts:
            index = "" if part["index"] is None else f"{part['index']}: "
            yield f"  {index}{part['path']}, {part['n_examples']:,} examples, record {part['record']}"
        for index in info["missing_parts"]:
            yield f"  {index}: missing (of {parts[0]['count']} parts)"
