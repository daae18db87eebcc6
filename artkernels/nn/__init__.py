"""Modules of the operations in artkernels.functional."""

from .gram import GramLoss, StyleLoss

__all__ = ["GramLoss", "StyleLoss"]
