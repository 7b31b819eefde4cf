"""Conversion from and to other formats."""

from .export import export
from .faiss import to_faiss
from .imports import import_
from .usearch import to_usearch

__all__ = ["export", "import_", "to_faiss", "to_usearch"]
