"""``actstore inspect``: summarize the activations, in one pass over them."""

import argparse
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...ops.histogram import Histogram, HistogramResult
from ...ops.summary import Summary, SummaryResult
from ...site import Site
from ...store import Store
from ...store import open as open_store
from ..args import Commands, add_json, add_layers, add_threads, natural
from ..render.charts import InspectCharts
from ..render.texts import describe_examples
from ..terminal import ProgressBar, print_json, terminal_width, unicode_output

_BIAS, _NONFINITE = 127, 255
"""The bias of a float32's exponent field, by which `Histogram` counts, and the field of NaN and Inf."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "inspect",
        help="summarize the activations: moments, histograms, largest dims, examples",
        description="Read each site once and show, for each layer, the mean, the standard deviation, the "
        "norm, the extremes, the counts of NaN, infinities and zeros, a histogram by magnitude and the "
        "largest dims; then the texts of some examples.",
    )
    parser.add_argument("store", help="a store, a folder of parts or a Zarr group")
    parser.add_argument(
        "--site", action="append", metavar="NAME", help="only this site (repeatable; default: all)"
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
        help="show this example, given by id or position, and the norms of its rows (repeatable)",
    )
    parser.add_argument("--histogram", action="store_true", help="show full histograms by magnitude")
    parser.add_argument(
        "--dims",
        type=natural,
        default=6,
        metavar="N",
        help="show the N dims with the largest root mean square (default: 6)",
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
        report = {
            "path": args.store,
            "n_examples": store.n_examples,
            "n_tokens": store.n_tokens,
            "sites": [_describe(site, args.dims, args.threads) for site in sites],
            "unfinished": _unfinished(store),
            "examples": describe_examples(store, sites, args.examples, args.example),
        }
    if args.json:
        print_json(report)
    else:
        charts = InspectCharts(terminal_width(), unicode_output())
        for line in charts.lines(report, args.histogram):
            print(line)
    return 0


def _unfinished(store: Store) -> dict[str, int]:
    """How many examples incomplete derived sites cover; such sites cannot be opened."""
    derived = store.info()["derived"]
    return {name: info["covers"] for name, info in derived.items() if not info["complete"]}


def _describe(site: Site, n_dims: int, threads: int) -> dict[str, Any]:
    """The report on a site, ready for JSON."""
    with ProgressBar(f"inspect {site.name}") as bar:
        progress = bar.in_units(site.shape[2] * site.dtype.itemsize)
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
    # The mean square of each dim; zero if it has no finite value.
    square = np.where(count > 0, (summary.m2[i] + count * means**2) / np.maximum(count, 1), 0.0)
    return {
        "layer": summary.layers[i],
        "rows": int(summary.n[i]),
        "mean": _json_number(mean),
        "std": _json_number(math.sqrt(spread)),
        "norm": _json_number(math.sqrt(square.sum())) if total else None,
        "min": _json_number(float(summary.min[i])),
        "max": _json_number(float(summary.max[i])),
        "nan": int(summary.n_nan[i]),
        "inf": int(summary.n_inf[i]),
        "zeros": int(summary.n_zero[i]),
        "values": int(summary.n[i]) * summary.mean.shape[1],
        "largest": _largest(np.sqrt(square), means, n_dims) if total else [],
        "histogram": _histogram(histogram.counts[i]),
    }


def _largest(rms: NDArray[np.float64], means: NDArray[np.float64], n: int) -> list[dict[str, Any]]:
    """The dims with the largest root mean square, with its ratio to the median dim's."""
    median = float(np.median(rms))
    return [
        {
            "dim": int(dim),
            "rms": float(rms[dim]),
            "mean": float(means[dim]),
            "times_median": _json_number(float(rms[dim]) / median if median else math.inf),
        }
        for dim in np.argsort(-rms, kind="stable")[:n]
        if rms[dim] > 0
    ]


def _histogram(counts: NDArray[np.uint64]) -> dict[str, Any]:
    """Counts of values with ``2**e <= |x| < 2**(e + 1)``, by sign and exponent e.

    ``tiny`` counts the values below ``2**-126``, zeros included.
    """
    positive, negative = counts[0, 1:_NONFINITE].tolist(), counts[1, 1:_NONFINITE].tolist()
    nonempty = [i for i in range(_NONFINITE - 1) if positive[i] or negative[i]]
    first, stop = (nonempty[0], nonempty[-1] + 1) if nonempty else (0, 0)
    return {
        "exponents": list(range(first + 1 - _BIAS, stop + 1 - _BIAS)),
        "negative": negative[first:stop],
        "positive": positive[first:stop],
        "tiny": int(counts[:, 0].sum()),
    }


def _json_number(value: float) -> float | str | None:
    """A float that JSON can hold: NaN is null, infinities are strings as in Zarr metadata."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
