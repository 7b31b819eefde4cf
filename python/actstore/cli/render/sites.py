"""The sites of a model, for ``--list-sites``."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..terminal import print_json, table
from .formatting import label_ranges


def print_sites(sites: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print the sites of a model, as `actstore.available` lists them."""
    if as_json:
        print_json({"sites": sites})
        return
    rows = [[site["site"], label_ranges(site["layers"]), str(site["dim"]), site["what"]] for site in sites]
    for line in table([["site", "layers", "dim", "what"], *rows], left=4):
        print(line)
