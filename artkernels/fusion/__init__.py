"""Stock PyTorch models on the fused operations: fuse, unfuse, and explain, which says what became of each layer."""

from .explain import ChainReport, Explanation, explain
from .model import fuse, unfuse

__all__ = ["ChainReport", "Explanation", "explain", "fuse", "unfuse"]
