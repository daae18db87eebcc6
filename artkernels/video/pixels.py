"""Colours between files and pictures: what a decoder gives as RGB, and RGB as an encoder wants it."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from av import VideoFrame

__all__ = ["ToRGB", "ToYUV"]

_HD_ROWS = 720  # from here on a video that names no matrix is taken for BT.709, below for BT.601, as players do
_ASPECTS = Fraction(1, 8), Fraction(8)  # of a pixel; what is beyond is a damaged header

_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # swscale's number for FFmpeg's AVColorSpace
_BT709, _BT601 = 1, 5
_LIMITED = 1  # AVCOL_RANGE_MPEG: black is 16, white 235


class ToRGB:
    """Decoded frames of one clip as a player shows them, all in the size of the first.

    Args:
        frame: the first.
        aspect: width of a pixel by its height, None where the file does not say. Pictures have square pixels: the side
            that is sampled more coarsely is enlarged.

    Attributes:
        height, width: of the pictures.
    """

    def __init__(self, frame: VideoFrame, aspect: Fraction | None) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        if not aspect or not _ASPECTS[0] <= aspect <= _ASPECTS[1]:
            aspect = Fraction(1)
        self._stored = round(frame.height / min(aspect, Fraction(1))), round(frame.width * max(aspect, Fraction(1)))
        self._transposed, *self._flipped = _orientation(frame)
        self.height, self.width = reversed(self._stored) if self._transposed else self._stored
        self._reformatter = VideoReformatter()
        # Without these two swscale repeats chroma samples and darkens all by a level: an error of 3.5 instead of 0.7.
        self._flags = Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
        self._flags |= Interpolation.BILINEAR if aspect == 1 else Interpolation.BICUBIC

    def __call__(self, frame: VideoFrame) -> Tensor:
        """[3, height, width], uint8, transparency over white."""
        see_through = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
        height, width = self._stored
        converted = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgba" if see_through else "rgb24",
            src_colorspace=_matrix(frame),
            interpolation=self._flags,
            threads=1,
        )
        pixels: NDArray[np.uint8] = converted.to_ndarray().astype(np.uint8, copy=False)
        picture = torch.from_numpy(_over_white(pixels) if see_through else pixels).permute(2, 0, 1)
        if self._transposed:
            picture = picture.transpose(1, 2)
        return picture.flip([dim for dim, flipped in zip((1, 2), self._flipped, strict=True) if flipped]).contiguous()


class ToYUV:
    """Pictures as frames for an encoder: yuv420p, BT.709, limited range, and marked so."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, picture: Tensor) -> VideoFrame:
        """[3, H, W], RGB in [0, 1], values outside clipped; of an odd side the last row or column comes twice."""
        from av import VideoFrame
        from av.video.reformatter import ColorPrimaries, ColorTrc

        rgb = picture.detach().float().clamp(0, 1).mul_(255).round_().to("cpu", torch.uint8)
        height, width = rgb.shape[1:]
        pixels = np.pad(rgb.permute(1, 2, 0).numpy(), ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
            format="yuv420p",
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED,
            threads=1,
        )
        frame.color_primaries, frame.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return frame


def _matrix(frame: VideoFrame) -> int | None:
    if frame.format.is_rgb or frame.format.has_palette:
        return None
    return _MATRICES.get(frame.colorspace, _BT709 if frame.height >= _HD_ROWS else _BT601)


def _over_white(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a player turns the frame: transposed, then its rows reversed, its columns reversed.

    Read from the display matrix itself, since the angle that PyAV makes of it (``frame.rotation``) forgets reflections.
    """
    from av.sidedata.sidedata import SideDataContainer, Type

    matrix = cast(SideDataContainer, frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    # x' = a x + c y, y' = b x + d y
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return False, d < 0, a < 0
    return True, b < 0, c < 0
