"""To and from other formats."""

from .export import export
from .imports import import_
from .indexes import rerank, to_faiss, to_usearch

__all__ = ["export", "import_", "rerank", "to_faiss", "to_usearch"]
