"""Where in the frame before each pixel was: what holds the paintings of a video's frames together."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as TF
from numpy.typing import NDArray
from torch import Tensor

from artkernels.errors import UserError

__all__ = ["Motion", "motion", "require_cv2", "warp", "warping_error"]

_CUT = 0.4  # of the frame seen before: with less it is another scene
# What a pixel may be off after the way there and back, and how steep the flow may be where things do not move apart,
# in square pixels and beside the flow's own square: Sundaram, Brox and Keutzer 2010, section 5.
_ROUND_TRIP = (0.5, 0.01)
_BOUNDARY = (0.002, 0.01)
# What colours may be off, RGB from 0 to 1: light may change, a flash is seen for the first time. Between pictures with
# nothing in them to follow, black and then another scene, the flow is 0 both ways, and only this tells them apart.
_UNLIKE = 0.2


class Motion(NamedTuple):
    """From one frame to the next.

    Attributes:
        flow: [1, 2, H, W], in pixels, x before y: what is at p was at p + flow(p) in the frame before.
        seen: [1, 1, H, W], from 1, where that was to be seen there, to 0, where it came into view only now.
    """

    flow: Tensor
    seen: Tensor

    def shrunk(self, stride: int) -> "Motion":
        """For features that stand for ``stride`` x ``stride`` pixels each, the last of them for fewer."""
        height, width = self.flow.shape[-2:]
        edge = (0, -width % stride, 0, -height % stride)
        flow, seen = (TF.avg_pool2d(TF.pad(x, edge, mode="replicate"), stride) for x in self)
        return Motion(flow / stride, seen)


def motion(before: Tensor, frame: Tensor) -> Motion | None:
    """The motion from one frame to the next; None where the scene is another, most of it never seen before.

    Dense inverse search (Kroeger, Timofte, Dai and Van Gool 2016, arXiv:1603.03590) both ways. What does not come back
    to where it began, is not at a place inside the frame before, or lies where the flow has an edge, counts as unseen,
    as in Ruder, Dosovitskiy and Brox 2016 (arXiv:1604.08610), and so does what has quite another colour there.

    Args:
        before: [1, 3, H, W], RGB in [0, 1], H and W at least 16.
        frame: the same, what came after it.
    """
    import cv2

    first, second = _grey(before), _grey(frame)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow, back = (
        _tensor(search.calc(*pair, None))  # type: ignore[call-overload]
        for pair in ((second, first), (first, second))
    )
    seen = _returns(flow, warp(back, flow)) & _is_smooth(flow) & _is_inside(flow) & _is_alike(warp(before, flow), frame)
    if seen.float().mean() < _CUT:
        return None
    return Motion(flow, seen.to(flow.dtype))


def require_cv2() -> None:
    """Raise a UserError if the package that finds motion is missing."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError("painting a video needs one more package (pip install opencv-python-headless)") from error


def warp(before: Tensor, flow: Tensor) -> Tensor:
    """``before`` [N, C, H, W], moved along ``flow`` [1, 2, H, W] to where it is now; interpolated linearly."""
    height, width = before.shape[-2:]
    rows = torch.arange(height, dtype=flow.dtype, device=flow.device).view(-1, 1)
    columns = torch.arange(width, dtype=flow.dtype, device=flow.device)
    x = (2 * (columns + flow[:, 0]) + 1) / width - 1
    y = (2 * (rows + flow[:, 1]) + 1) / height - 1
    grid = torch.stack([x, y], dim=-1).expand(len(before), -1, -1, -1).to(before.dtype)
    return TF.grid_sample(before, grid, padding_mode="border", align_corners=False)


def warping_error(before: Tensor, frame: Tensor, motion: Motion) -> float:
    """Mean square of what a frame differs by from the one before it, moved along, where it was seen there.

    The flicker of Lai et al. 2018 (arXiv:1808.00449), section 3.3.
    """
    difference = (frame - warp(before, motion.flow)).square().mean(dim=1, keepdim=True)
    return float((motion.seen * difference).sum() / motion.seen.sum())


def _grey(frame: Tensor) -> NDArray[np.uint8]:
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)  # ITU-R BT.601
    return (255 * weights * frame[0]).sum(dim=0).round().to(torch.uint8).numpy()


def _tensor(flow: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(flow).permute(2, 0, 1).unsqueeze(0)


def _square(flow: Tensor) -> Tensor:
    return flow.square().sum(dim=1, keepdim=True)


def _returns(flow: Tensor, back: Tensor) -> Tensor:
    constant, share = _ROUND_TRIP
    return _square(flow + back) <= share * (_square(flow) + _square(back)) + constant


def _is_smooth(flow: Tensor) -> Tensor:
    constant, share = _BOUNDARY
    down = flow.diff(dim=2, append=flow[:, :, -1:])
    right = flow.diff(dim=3, append=flow[..., -1:])
    return _square(down) + _square(right) <= share * _square(flow) + constant


def _is_inside(flow: Tensor) -> Tensor:
    height, width = flow.shape[-2:]
    x = torch.arange(width) + flow[:, 0]
    y = torch.arange(height).view(-1, 1) + flow[:, 1]
    return ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)).unsqueeze(1)


def _is_alike(before: Tensor, frame: Tensor) -> Tensor:
    return (frame - before).square().mean(dim=1, keepdim=True) <= _UNLIKE**2
