"""``actstore inspect``: a picture of the activations, from one pass over them."""

import argparse
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..histogram import Histogram, HistogramResult
from ..site import Site
from ..store import Store
from ..store import open as open_store
from ..summary import Summary, SummaryResult
from .examples import chosen_examples
from .options import Commands, add_json, add_layers, add_threads, natural
from .output import Bar, print_json, unicode_output, width_of_terminal
from .picture import Picture

_BIAS, _SPECIAL = 127, 255


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "inspect",
        help="show a picture of the activations: moments, histograms, largest dims, examples",
        description="Read sites once and show, for each layer, mean, standard deviation, norm, extremes, the "
        "counts of NaN, infinities and zeros, the values by magnitude, and the dims that stand out; and the "
        "text of some examples.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument(
        "--site", action="append", metavar="NAME", help="only this site (may be repeated; default: all)"
    )
    add_layers(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--examples",
        type=natural,
        default=3,
        metavar="N",
        help="show the text of the first N examples (default: 3)",
    )
    which.add_argument(
        "--example",
        action="append",
        metavar="ID",
        help="show this example, by id or position, and the norms of its rows (may be repeated)",
    )
    parser.add_argument("--histogram", action="store_true", help="show the values by magnitude in full")
    parser.add_argument(
        "--dims",
        type=natural,
        default=6,
        metavar="N",
        help="show the N dims with the largest values (default: 6)",
    )
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    with open_store(args.store) as store:
        sites = [store[name] for name in args.site or store.sites]
        if args.layers is not None:
            sites = [site.select(layers=args.layers) for site in sites]
        told = {
            "path": args.store,
            "n_examples": store.n_examples,
            "n_tokens": store.n_tokens,
            "sites": [describe(site, args.dims, args.threads) for site in sites],
            "unfinished": _unfinished(store),
            "examples": chosen_examples(store, sites, args.examples, args.example),
        }
    if args.json:
        print_json(told)
    else:
        picture = Picture(width_of_terminal(), unicode_output())
        for line in picture.lines(told, args.histogram):
            print(line)
    return 0


def _unfinished(store: Store) -> dict[str, int]:
    """Derived sites that cannot be shown, for they lack examples, and how many they have."""
    found = store.info()["derived"]
    return {name: told["covers"] for name, told in found.items() if not told["complete"]}


def describe(site: Site, n_dims: int, threads: int) -> dict[str, Any]:
    """What is to be said of a site, ready for JSON."""
    with Bar(f"inspect {site.name}") as bar:
        progress = bar.of(site.shape[2] * site.dtype.itemsize)
        summary, histogram = site.scan([Summary(), Histogram()], threads=threads, progress=progress)
    return {
        "name": site.name,
        "dtype": site.dtype.name,
        "shape": list(site.shape),
        "axis": site.axis,
        "recipe": site.recipe,
        "layers": [_layer(summary, histogram, i, n_dims) for i in range(len(site.layers))],
    }


def _layer(summary: SummaryResult, histogram: HistogramResult, i: int, n_dims: int) -> dict[str, Any]:
    count, means = summary.count[i], np.where(summary.count[i] > 0, summary.mean[i], 0.0)
    total = int(count.sum())
    mean = float((count * means).sum() / total) if total else math.nan
    spread = float((summary.m2[i] + count * (means - mean) ** 2).sum() / total) if total else math.nan
    # The mean square of each dim; a dim without a finite value counts as zero.
    square = np.where(count > 0, (summary.m2[i] + count * means**2) / np.maximum(count, 1), 0.0)
    return {
        "layer": summary.layers[i],
        "rows": int(summary.n[i]),
        "mean": number(mean),
        "std": number(math.sqrt(spread)),
        "norm": number(math.sqrt(square.sum())) if total else None,
        "min": number(float(summary.min[i])),
        "max": number(float(summary.max[i])),
        "nan": int(summary.n_nan[i]),
        "inf": int(summary.n_inf[i]),
        "zeros": int(summary.n_zero[i]),
        "values": int(summary.n[i]) * summary.mean.shape[1],
        "largest": _largest(np.sqrt(square), means, n_dims) if total else [],
        "histogram": _histogram(histogram.counts[i]),
    }


def _largest(rms: NDArray[np.float64], means: NDArray[np.float64], n: int) -> list[dict[str, Any]]:
    """The dims with the largest root mean square, and how many times the median one that is."""
    middle = float(np.median(rms))
    return [
        {
            "dim": int(dim),
            "rms": float(rms[dim]),
            "mean": float(means[dim]),
            "times_median": number(float(rms[dim]) / middle if middle else math.inf),
        }
        for dim in np.argsort(-rms, kind="stable")[:n]
        if rms[dim] > 0
    ]


def _histogram(counts: NDArray[np.uint64]) -> dict[str, Any]:
    """Values from ``2**e`` to below ``2**(e + 1)`` in magnitude, by sign and e; below ``2**-126`` apart."""
    positive, negative = counts[0, 1:_SPECIAL].tolist(), counts[1, 1:_SPECIAL].tolist()
    there = [i for i in range(_SPECIAL - 1) if positive[i] or negative[i]]
    first, stop = (there[0], there[-1] + 1) if there else (0, 0)
    return {
        "exponents": list(range(first + 1 - _BIAS, stop + 1 - _BIAS)),
        "negative": negative[first:stop],
        "positive": positive[first:stop],
        "tiny": int(counts[:, 0].sum()),
    }


def number(value: float) -> float | str | None:
    """A float as JSON can hold it: no value as null, infinities as Zarr writes them."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
