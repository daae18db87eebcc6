"""A VGG-19 for tests that need its layers, and not what it has learnt."""

import torch
from torch import nn

from artkernels.models import VGG19

__all__ = ["random_vgg"]


def random_vgg(pooling: str = "average", *, slim: bool = False) -> VGG19:
    """Frozen, with the same random weights each time; slim: with a sixteenth of the channels."""
    torch.manual_seed(3)
    vgg, channels = VGG19(pooling=pooling), 3
    for index, module in enumerate(vgg.features):
        if slim and isinstance(module, nn.Conv2d):
            vgg.features[index] = nn.Conv2d(channels, module.out_channels // 16, 3, padding=1)
            channels = module.out_channels // 16
    return vgg.requires_grad_(False)
