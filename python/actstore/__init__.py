"""A store for the hidden activations of neural networks.

>>> import actstore
>>> store = actstore.open("run.act")  # doctest: +SKIP
>>> store["resid"][100:200, 6]  # doctest: +SKIP

Names are imported when they are first used (PEP 562), so that importing actstore is fast.
"""

from .zarr_compat import hook

hook.install()

_MODULES = {
    "ActstoreError": "errors",
    "ActstoreWarning": "errors",
    "Block": "ops.scan",
    "CaptureWarning": "capturing",
    "Certificate": "ops.hits",
    "Columns": "disk.columns",
    "Compaction": "disk.compact",
    "CrossMoments": "ops.cross_moments",
    "Damage": "disk.report",
    "Explanation": "ops.explain",
    "FormatError": "errors",
    "Histogram": "ops.histogram",
    "HistogramResult": "ops.histogram",
    "Hit": "ops.hits",
    "Hits": "ops.hits",
    "InvalidInputError": "errors",
    "Moments": "ops.moments",
    "MomentsResult": "ops.moments",
    "Neighbor": "ops.neighbors",
    "Neighbors": "ops.neighbors",
    "NotFoundError": "errors",
    "NumericalError": "errors",
    "Plan": "capturing",
    "Pool": "ops.pool_reducer",
    "Recomputed": "capturing",
    "Reducer": "ops.scan",
    "Report": "disk.report",
    "ShapeError": "errors",
    "Site": "site",
    "SiteSpec": "disk.spec",
    "StorageError": "errors",
    "Store": "store",
    "StoreWriter": "disk.writer",
    "Summary": "ops.summary",
    "SummaryResult": "ops.summary",
    "Whitener": "ops.whiten",
    "Whiteners": "ops.stored_whiteners",
    "append": "disk.create",
    "build_info": "_native",
    "capture": "capturing",
    "compact": "disk.compact",
    "create": "disk.create",
    "cross_moments": "functional",
    "embed": "capturing",
    "embed_tokens": "capturing",
    "export": "interchange",
    "from_array": "functional",
    "import_": "interchange",
    "maxsim": "functional",
    "moments": "functional",
    "neighbors": "functional",
    "open": "store",
    "plan": "capturing",
    "pool": "functional",
    "recompute": "capturing",
    "repair": "disk.repair",
    "rerank": "ops.rerank",
    "scan": "functional",
    "search": "functional",
    "to_faiss": "interchange",
    "to_usearch": "interchange",
    "update": "updating",
}
"""The module of each public name."""

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
    "Neighbor",
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
    "from_array",
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


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("actstore")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
