"""Pictures as a video that any player shows."""

import math
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from artkernels import files
from artkernels.errors import UserError

__all__ = ["check_video", "write_video"]

_FRAMES_PER_SECOND = 30
_LEAST_SIDE = 256  # pixels, so that small pictures can be watched
_QUALITY = "16"  # x264's constant rate factor, at which its losses are no longer seen


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
    import av

    iterator = iter(pictures)
    first = next(iterator)
    height, width = first.shape[-2:]
    factor = math.ceil(_LEAST_SIDE / min(height, width, _LEAST_SIDE))
    if factor % 2 and (height % 2 or width % 2):
        factor += 1
    with files.whole_or_not_at_all(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FRAMES_PER_SECOND, options={"crf": _QUALITY})
        stream.height, stream.width, stream.pix_fmt = factor * height, factor * width, "yuv420p"
        for picture in chain([first], iterator):
            frame = av.VideoFrame.from_ndarray(_enlarged(picture, factor).numpy(), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def check_video(path: Path) -> None:
    """Raise the UserError that :func:`write_video` would raise, before the work is done, leaving no trace."""
    if path.suffix.lower() != ".mp4":
        raise UserError(f"{path}: videos are saved as MP4, the name must end in .mp4")
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("a video needs one more package (pip install av)") from error
    files.check_writable(path)


def _enlarged(picture: Tensor, factor: int) -> Tensor:
    pixels = picture.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0)
    return pixels.repeat_interleave(factor, 0).repeat_interleave(factor, 1).contiguous()
