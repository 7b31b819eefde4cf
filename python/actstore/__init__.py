"""A store for the hidden activations of neural networks.

>>> import actstore
>>> store = actstore.open("run.act")  # doctest: +SKIP
>>> store["resid"][100:200, 6]  # doctest: +SKIP
"""

from . import zarr_hook
from ._native import build_info
from .capture import CaptureWarning, Plan, Recomputed, capture, embed, embed_tokens, plan, recompute
from .columns import Columns
from .compact import Compaction, compact
from .create import append, create
from .errors import (
    ActstoreError,
    ActstoreWarning,
    FormatError,
    InvalidInputError,
    NotFoundError,
    NumericalError,
    ShapeError,
    StorageError,
)
from .explain import Explanation
from .histogram import Histogram, HistogramResult
from .hits import Certificate, Hit, Hits
from .interchange import export, import_, rerank, to_faiss, to_usearch
from .moments import CrossMoments, Moments, MomentsResult
from .neighbors import Neighbors
from .plain import cross_moments, maxsim, moments, neighbors, pool, scan, search
from .pool_reducer import Pool
from .repair import repair
from .report import Damage, Report
from .scan import Block, Reducer
from .site import Site
from .site_spec import SiteSpec
from .store import Store, open
from .summary import Summary, SummaryResult
from .update import update
from .whiten import Whitener, Whiteners
from .writer import StoreWriter

zarr_hook.install()

__all__ = [
    "ActstoreError",
    "ActstoreWarning",
    "Block",
    "CaptureWarning",
    "Certificate",
    "Columns",
    "Compaction",
    "CrossMoments",
    "Damage",
    "Explanation",
    "FormatError",
    "Histogram",
    "HistogramResult",
    "Hit",
    "Hits",
    "InvalidInputError",
    "Moments",
    "MomentsResult",
    "Neighbors",
    "NotFoundError",
    "NumericalError",
    "Plan",
    "Pool",
    "Recomputed",
    "Reducer",
    "Report",
    "ShapeError",
    "Site",
    "SiteSpec",
    "StorageError",
    "Store",
    "StoreWriter",
    "Summary",
    "SummaryResult",
    "Whitener",
    "Whiteners",
    "append",
    "build_info",
    "capture",
    "compact",
    "create",
    "cross_moments",
    "embed",
    "embed_tokens",
    "export",
    "import_",
    "maxsim",
    "moments",
    "neighbors",
    "open",
    "plan",
    "pool",
    "recompute",
    "repair",
    "rerank",
    "scan",
    "search",
    "to_faiss",
    "to_usearch",
    "update",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # importlib.metadata is slow to import and seldom asked.
        from importlib.metadata import version

        return version("actstore")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
