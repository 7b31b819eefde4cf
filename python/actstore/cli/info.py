"""``actstore info``: what is in a store and how much room it takes."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from ..arrays import human_bytes
from ..store import open as open_store
from .options import Commands, add_json
from .output import print_json


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "info",
        help="show what is in a store and how much room it takes",
        description="Show a store's sites, axes, columns and identity, its size and its waste.",
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
    records = f", record {parts[0]['record']}" if len(parts) == 1 and parts[0]["record"] is not None else ""
    yield f"  {kind}{records}{', uuid ' + info['uuid'] if info['uuid'] else ''}"
    yield f"  {info['n_examples']:,} examples, {info['n_tokens']:,} tokens"
    waste = info["hole_bytes"] / info["stored_bytes"] if info["stored_bytes"] else 0
    yield f"  {human_bytes(info['stored_bytes'])} on disk, {waste:.1%} of it holes"
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
        yield f"    layers {label_runs(site['layers'])}"
    if info["derived"]:
        yield "derived"
    for name, derived in info["derived"].items():
        recipe = derived["recipe"]
        yield f"  {name}  {recipe['kind']} of {recipe['source']}, layers {label_runs(recipe['layers'])}"
        if not derived["complete"]:
            yield f"    covers {derived['covers']:,} of {derived['n_examples']:,} examples"
            yield f"    hint: actstore pool {info['path']} --update"
    if info["whiteners"]:
        yield "whiteners"
    for name, told in info["whiteners"].items():
        if "error" in told:
            yield f"  {name}  {told['error']}"
            continue
        ranks = sorted(set(told["rank"]))
        rank = f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        norms = "" if told["site"] is None else f", norms of {told['site']}"
        layers = f"layers {label_runs(told['layers'])}"
        yield f"  {name}  {told['kind']}, {layers}, rank {rank} of {told['dim']}{norms}"
    yield "columns"
    for axis, table in {**info["axes"], "examples": info["examples"]}.items():
        columns = ", ".join(f"{name}: {dtype}" for name, dtype in table["columns"].items())
        yield f"  {axis} ({table['rows']:,})  {columns or 'none'}"
    if info["identity"]:
        yield "identity"
        for key, value in info["identity"].items():
            if not isinstance(value, Mapping):
                yield f"  {key}: {value}"
                continue
            yield f"  {key}"
            for name, told in value.items():
                yield f"    {name}: {told}"
    if len(parts) > 1 or info["missing_parts"]:
        yield "parts"
        for part in parts:
            index = "" if part["index"] is None else f"{part['index']}: "
            yield f"  {index}{part['path']}, {part['n_examples']:,} examples, record {part['record']}"
        for absent in info["missing_parts"]:
            yield f"  {absent}: missing, of {parts[0]['count']}"


def label_runs(labels: list[int]) -> str:
    """Runs as ``0-6``, the rest one by one."""
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
