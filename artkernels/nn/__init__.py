"""Modules of the operations in artkernels.functional."""

from .conv import ConvNormAct2d, ConvTransposeNormAct2d
from .gram import GramLoss, StyleLoss
from .norm_act import (
    AdaIN2d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
    GroupNormAct2d,
    InstanceNormAct1d,
    InstanceNormAct2d,
    InstanceNormAct3d,
)

__all__ = [
    "AdaIN2d",
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ConvNormAct2d",
    "ConvTransposeNormAct2d",
    "GramLoss",
    "GroupNormAct2d",
    "InstanceNormAct1d",
    "InstanceNormAct2d",
    "InstanceNormAct3d",
    "StyleLoss",
]
