"""Frames for the tests of videos, and a network to look at them with."""

from pathlib import Path

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.models import VGG19
from artkernels.video import Clip

__all__ = ["assert_same_video", "moving_noise", "slim_vgg"]


def assert_same_video(found: Path, wanted: Path) -> None:
    """The same frames at the same times, as far as x264 decides alike: not always, of the same pixels."""
    pairs = list(zip(Clip(found).frames(), Clip(wanted).frames(), strict=True))
    assert all(one.time == other.time for one, other in pairs)
    for one, other in pairs:
        assert (one.picture.float() - other.picture.float()).abs().mean() < 2  # of 255


def moving_noise(count: int, height: int, width: int, step: int = 2) -> list[Tensor]:
    """Frames, [1, 3, height, width] in [0, 1]: a texture that moves left by ``step`` pixels, with a camera's noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, -(-height // 4), -(-(width + step * count) // 4), generator=generator)
    texture = TF.interpolate(coarse, scale_factor=4, mode="bicubic")
    frames = [texture[..., :height, step * k : step * k + width] for k in range(count)]
    return [(frame + 0.03 * torch.randn(frame.shape, generator=generator)).clamp(0, 1) for frame in frames]


def slim_vgg() -> VGG19:
    """VGG-19's layers, with random weights and a sixteenth of the channels."""
    torch.manual_seed(3)
    vgg, channels = VGG19(pooling="average"), 3
    for index, module in enumerate(vgg.features):
        if isinstance(module, nn.Conv2d):
            vgg.features[index] = nn.Conv2d(channels, module.out_channels // 16, 3, padding=1)
            channels = module.out_channels // 16
    return vgg.requires_grad_(False)
