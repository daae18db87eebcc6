"""Frames for the tests of videos."""

from pathlib import Path

import torch
import torch.nn.functional as TF
from torch import Tensor

from artkernels.video import Clip

__all__ = ["assert_same_video", "moving_noise"]


def assert_same_video(found: Path, wanted: Path) -> None:
    """The same frames at the same times, as far as x264 decides alike.

    Of the same pixels it now and then makes other bytes, and what is decoded is up to 4 of 255 away. The next frame of
    a video that moves is more than 17 away.
    """
    pairs = list(zip(Clip(found).frames(), Clip(wanted).frames(), strict=True))
    assert all(one.time == other.time for one, other in pairs)
    for one, other in pairs:
        assert (one.picture.float() - other.picture.float()).abs().mean() < 7


def moving_noise(count: int, height: int, width: int, step: int = 2) -> list[Tensor]:
    """Frames, [1, 3, height, width] in [0, 1]: a texture that moves left by ``step`` pixels, with a camera's noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, -(-height // 4), -(-(width + step * count) // 4), generator=generator)
    texture = TF.interpolate(coarse, scale_factor=4, mode="bicubic")
    frames = [texture[..., :height, step * k : step * k + width] for k in range(count)]
    return [(frame + 0.03 * torch.randn(frame.shape, generator=generator)).clamp(0, 1) for frame in frames]
