"""Capturing activations from torch models; torch is imported when something is captured."""

from .capturing import CaptureWarning, available, capture, plan
from .embed import embed, embed_tokens
from .plan import Plan
from .recompute import Recomputed, recompute

__all__ = [
    "CaptureWarning",
    "Plan",
    "Recomputed",
    "available",
    "capture",
    "embed",
    "embed_tokens",
    "plan",
    "recompute",
]
