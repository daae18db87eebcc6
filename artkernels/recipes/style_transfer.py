"""Optimisation style transfer: the pixels of a picture are trained until they have a photograph's content and a
painting's style (Gatys, Ecker and Bethge 2016, "Image Style Transfer Using Convolutional Neural Networks").
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as TF
from torch import Tensor

from artkernels.errors import UserError
from artkernels.images import resize, scaled
from artkernels.models.vgg import VGG19
from artkernels.pooled_allocator import pooled_allocator_statistics, release_pooled_memory
from artkernels.recipes.perceptual import keep_colors, luma, match_luma, normalise_shares
from artkernels.recipes.style_memory import HISTORY, Footprint, memory_in_use, nothing_kept
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS, Objective, Previous, TiledObjective, Weights

__all__ = [
    "CONTENT_LAYER",
    "STYLE_LAYERS",
    "Previous",
    "Progress",
    "Settings",
    "TileSide",
    "check",
    "memory_available",
    "stylize",
]

TileSide: TypeAlias = Literal["auto"] | int | None

# The network pads with zeros, and the optimiser draws lines along the border to make up for it. So it works on a canvas
# that is this much larger on each side, and the lines are cut off.
_MARGIN = 16
_SMALLEST_SIDE = 32  # the deepest layer sees one sixteenth of it
_LARGEST_SIDE = 2**16
_COARSEST_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a picture is to be made.

    Attributes:
        size: the longer side of the result in pixels, from 32 to 65536.
        steps: evaluations of the network in all, shared equally by the scales of the pyramid, at least 1.
        content_weight: weight of the content loss, >= 0.
        style_weight: weight of the style loss, >= 0. Both losses are relative (1: as far off as a grey picture's), so
            the same weights suit any checkpoint, photograph and painting.
        tv_weight: weight of the total variation, >= 0: more makes a smoother picture.
        init: begin with the photograph ("content") or with random "noise".
        optimizer: "lbfgs", which needs fewer steps, or "adam", which needs less memory: 24 bytes a pixel of its own,
            L-BFGS 516. So a picture of 4096 x 4096 pixels can be had in 4 GB with Adam only, tile by tile.
        preserve_color: keep the photograph's colours and transfer the brush-work only.
        seed: of the noise. The same seed, settings, machine and number of threads give the same picture.

    Raises:
        UserError: a value out of its range.
    """

    size: int = 512
    steps: int = 300
    content_weight: float = 1.0
    style_weight: float = 10.0
    tv_weight: float = 6.0
    init: str = "content"
    optimizer: str = "lbfgs"
    preserve_color: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not _SMALLEST_SIDE <= self.size <= _LARGEST_SIDE:
            raise UserError(f"size must be from {_SMALLEST_SIDE} to {_LARGEST_SIDE}, got {self.size}")
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")
        for name in ("content_weight", "style_weight", "tv_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be a number from 0 up, got {getattr(self, name)}")
        if self.init not in ("content", "noise"):
            raise UserError(f'init must be "content" or "noise", got {self.init!r}')
        if self.optimizer not in ("lbfgs", "adam"):
            raise UserError(f'optimizer must be "lbfgs" or "adam", got {self.optimizer!r}')
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")


class Progress(NamedTuple):
    """What a caller of :func:`stylize` is told after every step."""

    step: int  # 1 ... steps
    steps: int  # of all scales that are worked on
    loss: float
    image: Tensor  # [1, 3, h, w] in [0, 1], at the scale being worked on


def stylize(
    photo: Tensor,
    styles: Sequence[Tensor],
    vgg: VGG19,
    settings: Settings | None = None,
    *,
    style_shares: Sequence[float] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    tile: TileSide = "auto",
    max_memory: int | None = None,
    previous: Previous | None = None,
) -> Tensor:
    """Paint ``photo`` in the manner of ``styles``.

    Works from coarse to fine: every scale doubles the last one's picture and refines it, so that large shapes are
    settled where steps are cheap.

    Args:
        photo: [1, 3, H, W], RGB in [0, 1], any size and shape.
        styles: one or more paintings, [1, 3, h, w] each, of any size.
        vgg: the network to look with, frozen; the work is done on its device.
        settings: None for the defaults.
        style_shares: how much of each painting, one positive number each; only their proportions count. None: equal.
        on_step: called after every step.
        tile: compute each step in tiles of this side in pixels, rounded up to a multiple of 16. The loss and the
            gradient are the same to float32 rounding, at any size; the memory is that of a tile's features, the time
            more than twice as long, as the network looks at the picture twice, and at the tiles' surroundings, too.
            None: untiled. "auto": untiled if that fits in memory, else in the largest tiles that do; as it depends on
            what is in memory already, the picture may differ by rounding from one run to the next.
        max_memory: bytes that the process may hold in all. None: as many as there are.
        previous: of a frame of a video: the painting of the frame before, its ``picture`` [1, 3, H', W'], of the
            result's size. The new one begins with it, where it is seen, and with the photograph elsewhere, whatever
            ``settings.init`` says, and is kept close to it. Only the last scale is worked on, for that scale's share
            of the steps: the coarser ones would paint anew what is to stay.

    Returns:
        [1, 3, H', W'] on the CPU, in [0, 1], the longer side ``settings.size``, the shape of the photograph.

    Raises:
        UserError: a picture too thin, a tile below 1 pixel, a size that will not fit in memory, shares that do not fit
            the styles, or a loss that is no longer finite.
        ValueError: ``previous`` is not of the result's size, or its weight is negative or not finite.
    """
    settings = settings or Settings()
    device = vgg.mean.device
    shares = normalise_shares(style_shares, len(styles))
    check(photo, styles, vgg, settings, tile=tile, max_memory=max_memory, previous=previous)
    budget = _budget(device, max_memory)

    original = full = resize(photo, settings.size)
    if settings.preserve_color:
        full = luma(full)
        styles = [match_luma(luma(style), full) for style in styles]
        previous = previous and previous._replace(picture=luma(previous.picture))

    def finish(image: Tensor) -> Tensor:
        image = image.cpu()
        if settings.preserve_color:
            image = keep_colors(image, resize(original, max(image.shape[-2:])))
        return image.clamp(0, 1)

    scales = _scales(full, settings.steps)
    if previous is not None:
        scales = scales[-1:]
    step, steps = 0, sum(share for _, share in scales)
    image: Tensor | None = None
    for side, share in scales:
        target = resize(full, side)
        image = _beginning(target, settings, previous) if image is None else _enlarged(image, target)
        canvas = _extend(image).to(device).requires_grad_()
        image = _without_margin(canvas)
        tile_here = _tile(_footprint(target, styles, vgg, settings, side, previous), tile, budget)
        with nothing_kept() if tile_here or max_memory is not None else nullcontext():
            objective = (TiledObjective if tile_here else Objective)(
                vgg,
                _extend(target).to(device),
                (resize(style, side).to(device) for style in styles),
                shares,
                Weights(settings.content_weight, settings.style_weight, settings.tv_weight),
                tile_here,
                previous and _on_canvas(previous, device),
            )
            optimizer = _optimizer(canvas, settings)
            for _ in range(share):
                step += 1
                loss = _step(optimizer, objective, canvas, step)
                image = _without_margin(canvas)
                if on_step is not None:
                    on_step(Progress(step, steps, loss, finish(image)))
        image = image.cpu()
        release_pooled_memory()  # the next scale's feature maps are four times as large, and fit in none of it
    assert image is not None  # a pyramid has at least one level
    return finish(image)


def _beginning(target: Tensor, settings: Settings, previous: Previous | None) -> Tensor:
    """What the first scale that is worked on begins with, in place of ``target``."""
    if previous is not None:
        return torch.lerp(target, previous.picture, previous.seen)
    if settings.init == "content":
        return target
    generator = torch.Generator().manual_seed(settings.seed)
    return (0.5 + 0.2 * torch.randn(target.shape, generator=generator)).clamp(0, 1)


def _enlarged(image: Tensor, target: Tensor) -> Tensor:
    return TF.interpolate(image, target.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


def _optimizer(canvas: Tensor, settings: Settings) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam([canvas], lr=0.03, fused=True)  # in place: no pictures beside its two moments
    # One evaluation a step (max_iter=1), and no stopping of its own: a pixel's gradient is below its tolerances.
    return torch.optim.LBFGS([canvas], max_iter=1, history_size=HISTORY, tolerance_grad=0, tolerance_change=0)


def _step(optimizer: torch.optim.Optimizer, objective: Objective, canvas: Tensor, step: int) -> float:
    def closure() -> float:
        return objective.backward(canvas)

    loss = optimizer.step(closure)
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: use smaller weights, or the optimizer adam")
    return loss


def _pyramid(image: Tensor) -> list[int]:
    """The longer side at each scale, coarse to fine: halves, as long as there is something to see in them."""
    shorter, longer = sorted(image.shape[-2:])
    sides = [longer]
    while sides[0] // 2 >= _COARSEST_SIDE and shorter * (sides[0] // 2) // longer >= _SMALLEST_SIDE:
        sides.insert(0, sides[0] // 2)
    return sides


def _scales(image: Tensor, steps: int) -> list[tuple[int, int]]:
    """The longer side at each scale, and its share of the steps."""
    sides = _pyramid(image)
    ends = (steps * level // len(sides) for level in range(len(sides) + 1))
    return [(side, end - start) for side, (start, end) in zip(sides, pairwise(ends), strict=True)]


def _extend(image: Tensor) -> Tensor:
    return TF.pad(image, [_MARGIN] * 4, mode="reflect")


def _on_canvas(previous: Previous, device: torch.device) -> Previous:
    """With a margin, too: a margin that was free to flicker would show in the features of the picture's border."""
    return Previous(_extend(previous.picture).to(device), _extend(previous.seen).to(device), previous.weight)


def _without_margin(canvas: Tensor) -> Tensor:
    return canvas.detach()[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def check(
    photo: Tensor,
    styles: Sequence[Tensor],
    vgg: VGG19,
    settings: Settings,
    what: str = "photograph",
    *,
    tile: TileSide = "auto",
    max_memory: int | None = None,
    previous: Previous | None = None,
) -> None:
    """Raise the error that :func:`stylize` would raise for the pictures' shapes or for want of memory.

    ``what`` is what ``photo`` is, for the message; the others are as :func:`stylize` has them.
    """
    if isinstance(tile, int) and tile < 1:
        raise UserError(f"the side of a tile must be at least 1 pixel, got {tile}")
    for name, image in [(what, photo), *(("style picture", style) for style in styles)]:
        height, width = scaled(image, settings.size)
        if min(height, width) < _SMALLEST_SIDE:
            raise UserError(
                f"the {name} would be {width}x{height} pixels, and its shorter side must be at least {_SMALLEST_SIDE}: "
                "choose a larger size"
            )
    if previous is not None:
        _check_previous(previous, scaled(photo, settings.size))
    footprint = _footprint(photo, styles, vgg, settings, settings.size, previous)
    _check_memory(footprint, tile, _budget(vgg.mean.device, max_memory))


def _check_previous(previous: Previous, size: tuple[int, int]) -> None:
    for name, channels in (("picture", 3), ("seen", 1)):
        needed, given = [1, channels, *size], list(getattr(previous, name).shape)
        if given != needed:
            raise ValueError(f"previous.{name} is {given}, and {needed} is needed: the result's size")
    if not 0 <= previous.weight < math.inf:
        raise ValueError(f"previous.weight must be a number from 0 up, got {previous.weight}")


def _check_memory(footprint: Footprint, tile: TileSide, budget: int | None) -> None:
    side = _tile(footprint, tile, budget)
    needed = footprint.bytes(side)
    if budget is None or needed <= budget:
        return
    height, width = (length - 2 * _MARGIN for length in footprint.canvas)
    hints = ["choose a smaller size"]
    if tile is None:
        hints.append("let it be computed in tiles")
    if footprint.optimizer == "lbfgs":
        with_adam = replace(footprint, optimizer="adam").bytes(side)
        hints.append(f"the optimizer adam, which would need {with_adam / 2**30:.1f} GiB")
    raise UserError(
        f"{width}x{height} pixels would need about {needed / 2**30:.1f} GiB of memory"
        f"{'' if side is None else f', in tiles of {side} pixels,'} and {max(budget, 0) / 2**30:.1f} GiB are "
        f"available: {' or '.join(hints)}"
    )


def _footprint(
    photo: Tensor, styles: Sequence[Tensor], vgg: VGG19, settings: Settings, side: int, previous: Previous | None
) -> Footprint:
    """Of the scale at which the photograph's longer side is ``side``."""
    height, width = scaled(photo, side)
    canvas = (height + 2 * _MARGIN, width + 2 * _MARGIN)
    sizes = tuple(scaled(style, side) for style in styles)
    return Footprint(vgg, settings.optimizer, canvas, sizes, previous is not None)


def _tile(footprint: Footprint, tile: TileSide, budget: int | None) -> int | None:
    """The tile to use; None where the whole is."""
    if tile == "auto":
        return None if budget is None else footprint.largest_tile(budget)
    return None if tile is None or tile >= max(footprint.canvas) else tile


def _budget(device: torch.device, max_memory: int | None) -> int | None:
    """Bytes that may be taken on ``device``, beyond those that are in use; None where nobody says."""
    available = memory_available(device)
    if max_memory is None:
        return available
    left = max_memory - memory_in_use(device)
    return left if available is None else min(left, available)


def memory_available(device: torch.device) -> int | None:
    """Bytes that can still be had on ``device``; None where the system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # in PyTorch's own cache
        return torch.cuda.mem_get_info(device)[0] + unused
    try:  # what Linux could free, caches included, and what we could
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return free + pooled_allocator_statistics().bytes_kept
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None  # a system that does not say
