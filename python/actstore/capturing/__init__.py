"""Capturing activations from torch models. torch is imported only when something is captured or loaded."""

from .api import CaptureWarning, available, capture, plan
from .embed import embed, embed_tokens
from .model.loading import Loaded, load
from .plan import Plan
from .recompute import Recomputed, recompute

__all__ = [
    "CaptureWarning",
    "Loaded",
    "Plan",
    "Recomputed",
    "available",
    "capture",
    "embed",
    "embed_tokens",
    "load",
    "plan",
    "recompute",
]
