"""Pictures as a video that any player shows."""

import math
from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

from torch import Tensor

from artkernels.video.encoding import Encoder, check_video

__all__ = ["check_video", "write_video"]

_FRAMES_PER_SECOND = 30
_LEAST_SIDE = 256  # pixels, so that small pictures can be watched


def write_video(path: Path, pictures: Iterable[Tensor]) -> None:
    """Write an MP4 file (H.264, yuv420p, 30 frames a second) whole or not at all, a frame for each picture.

    The pictures are enlarged by a whole factor, pixel by pixel, so that no side is less than 256 or odd.

    Args:
        path: must end in .mp4, in a folder that exists.
        pictures: [3, H, W], RGB in [0, 1], all of one size, at least one; asked for one by one.

    Raises:
        UserError: the package av is missing, or the file cannot be written.
    """
    check_video(path)
    iterator = iter(pictures)
    first = next(iterator)
    height, width = first.shape[-2:]
    factor = math.ceil(_LEAST_SIDE / min(height, width, _LEAST_SIDE))
    if factor % 2 and (height % 2 or width % 2):
        factor += 1
    with Encoder(path, Fraction(_FRAMES_PER_SECOND)) as encoder:
        for index, picture in enumerate(chain([first], iterator)):
            enlarged = picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            encoder.add(Fraction(index, _FRAMES_PER_SECOND), enlarged)
