"""To and from other formats."""

from .export import export
from .imports import import_

__all__ = ["export", "import_"]
