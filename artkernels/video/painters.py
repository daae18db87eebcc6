"""Ways to paint the frames of a video, each frame going on from the one before it.

All share one number, the consistency c from 0 to 1: how much a painting is bound to that of the frame before, moved
along with what it shows, wherever that was to be seen there. 0 paints every frame by itself; towards 1 less and less
flickers, and brush-work is dragged along.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

import artkernels
from artkernels.feed_forward import MULTIPLE, padded, ranges_of
from artkernels.fusion.model import fused_modules
from artkernels.models import VGG19, AdaINDecoder, AdaINEncoder
from artkernels.recipes import perceptual
from artkernels.recipes.adain import style_moments, stylized_features
from artkernels.recipes.style_transfer import Previous, Settings, TileSide, stylize
from artkernels.video.flow import Motion, warp

__all__ = ["CONSISTENCY", "AdaINFrames", "Before", "FramePainter", "NetworkFrames", "OptimisedFrames", "Painted"]

CONSISTENCY = 0.7
"""The command's default."""

# Of the distance to the painting before, at a consistency of one half: 233 at the command's 0.7. At 300 the second of
# two frames was 0.011 away from the first, painted by itself 0.057, at 2 % more of the style loss; from 1000 on specks
# stay at the edges of what came into view.
_TEMPORAL_WEIGHT = 100.0


class Before(NamedTuple):
    """What a frame's painting goes on from.

    Attributes:
        memory: of the painting before, see :class:`Painted`.
        motion: from the frame before to this one.
    """

    memory: Tensor
    motion: Motion


class Painted(NamedTuple):
    """A frame's painting.

    Attributes:
        picture: [1, 3, H, W] on the CPU, in [0, 1].
        memory: what the next frame's goes on from, on the CPU: a network's features, or the picture itself.
    """

    picture: Tensor
    memory: Tensor


class FramePainter(Protocol):
    """Paints frames, in their order.

    Attributes:
        save_every: frames; what is painted is kept whenever so many are done.
    """

    save_every: int

    def paint(self, frame: Tensor, before: Before | None) -> Painted:
        """Paint ``frame`` [1, 3, H, W], RGB in [0, 1] on the CPU; ``before`` is None at the beginning of a scene."""
        ...


@dataclass
class OptimisedFrames:
    """Gatys et al. 2016, held together as in Ruder, Dosovitskiy and Brox 2016 (arXiv:1604.08610).

    A scene's first frame is painted from coarse to fine. Every other one begins with the painting before, moved along,
    is refined at the finest scale only, and has the squared distance to where it began in its loss.

    Attributes:
        vgg, styles, settings, shares, tile, max_memory: as :func:`~artkernels.recipes.style_transfer.stylize` has them.
        consistency: from 0 to below 1. The distance has the weight 100 c / (1 - c).
    """

    vgg: VGG19
    styles: Sequence[Tensor]
    settings: Settings
    shares: Sequence[float] | None
    consistency: float
    tile: TileSide = "auto"
    max_memory: int | None = None
    save_every: int = 8  # minutes of work each

    def paint(self, frame: Tensor, before: Before | None) -> Painted:
        """See :class:`FramePainter`."""
        previous = None
        if before is not None and self.consistency:
            weight = _TEMPORAL_WEIGHT * self.consistency / (1 - self.consistency)
            previous = Previous(warp(before.memory, before.motion.flow), before.motion.seen, weight)
        picture = stylize(
            frame,
            self.styles,
            self.vgg,
            self.settings,
            style_shares=self.shares,
            previous=previous,
            tile=self.tile,
            max_memory=self.max_memory,
        )
        return Painted(picture, picture)


class _BlendedFrames:
    """Networks that paint in one pass: their features, half way, are blended with those of the frame before.

    Blended there, and not in the picture, two frames' brush-work does not show through each other as in a double
    exposure: what is painted is one set of strokes, of features in between.
    """

    save_every = 32  # seconds of work
    _stride: int  # pixels to a feature

    def __init__(self, consistency: float) -> None:
        self._consistency = consistency

    def _encode(self, frame: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, features: Tensor) -> Tensor:
        raise NotImplementedError

    def _finish(self, picture: Tensor, frame: Tensor) -> Tensor:
        return picture

    @torch.inference_mode()
    def paint(self, frame: Tensor, before: Before | None) -> Painted:
        """See :class:`FramePainter`."""
        features = self._encode(frame)
        if before is not None and self._consistency:
            motion = before.motion.shrunk(self._stride)
            flow, seen, memory = (x.to(features) for x in (motion.flow, motion.seen, before.memory))
            features = torch.lerp(features, warp(memory, flow), self._consistency * seen)
        picture = self._decode(features)[..., : frame.shape[-2], : frame.shape[-1]]
        return Painted(self._finish(picture.float().cpu(), frame).clamp(0, 1), features.cpu())


class NetworkFrames(_BlendedFrames):
    """A TransformerNet or a ResnetGenerator.

    Args:
        network: fused or not, and its halves then likewise; in evaluation mode, on the device that does the work.
        consistency: from 0 to 1.
    """

    _stride = MULTIPLE

    def __init__(self, network: nn.Module, consistency: float) -> None:
        super().__init__(consistency)
        self._given, self._made = ranges_of(network)
        self._weight = next(network.parameters())
        halves = [_Half(network, part) for part in ("encode", "decode")]
        self._encoder, self._decoder = map(artkernels.fuse, halves) if fused_modules(network) else halves

    def _encode(self, frame: Tensor) -> Tensor:
        pixels = padded(frame).to(self._weight.device, self._weight.dtype, copy=True)
        features: Tensor = self._encoder(self._given(pixels))
        return features

    def _decode(self, features: Tensor) -> Tensor:
        return self._made(self._decoder(features))


class AdaINFrames(_BlendedFrames):
    """Huang and Belongie 2017, for any style.

    Args:
        encoder, decoder, styles, shares, alpha, preserve_color: as
            :func:`~artkernels.recipes.adain.adain_stylize` has them.
        consistency: from 0 to 1.
    """

    _stride = 8

    def __init__(
        self,
        encoder: AdaINEncoder,
        decoder: AdaINDecoder,
        styles: Sequence[Tensor],
        shares: Sequence[float] | None,
        alpha: float,
        preserve_color: bool,
        consistency: float,
    ) -> None:
        super().__init__(consistency)
        self._encoder, self._decoder, self._alpha, self._preserve_color = encoder, decoder, alpha, preserve_color
        self._styles = [perceptual.luma(style) for style in styles] if preserve_color else styles
        self._shares = perceptual.normalise_shares(shares, len(styles))
        self._moments: tuple[Tensor, Tensor] | None = None

    def _encode(self, frame: Tensor) -> Tensor:
        if self._preserve_color:
            grey = perceptual.luma(frame)
            styles = [perceptual.match_luma(style, grey) for style in self._styles]
            return stylized_features(self._encoder, grey, self._style(styles), self._alpha)
        if self._moments is None:
            self._moments = self._style(self._styles)
        return stylized_features(self._encoder, frame, self._moments, self._alpha)

    def _style(self, styles: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return style_moments(self._encoder, styles, self._shares)

    def _decode(self, features: Tensor) -> Tensor:
        picture: Tensor = self._decoder(features)
        return picture

    def _finish(self, picture: Tensor, frame: Tensor) -> Tensor:
        return perceptual.keep_colors(perceptual.luma(picture), frame) if self._preserve_color else picture


class _Half(nn.Module):
    """One of a network's two halves, as a module, so that it can be fused."""

    def __init__(self, network: nn.Module, part: str) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, x: Tensor) -> Tensor:
        forward: Callable[[Tensor], Tensor] = getattr(self.network, self.part)
        return forward(x)
