"""The memory that a step of optimisation style transfer takes, told before the start, and the tiles that fit in it."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from artkernels.models.vgg import VGG19
from artkernels.pooled_allocator import pooled_allocator_statistics, use_pooled_allocator
from artkernels.recipes.style_network import Block, blocks, modules
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS
from artkernels.recipes.style_tiles import Reach, reach, spans

__all__ = ["HISTORY", "Footprint", "memory_in_use", "nothing_kept"]

HISTORY = 20
"""Pairs of a past step and a past gradient that L-BFGS keeps."""

_PICTURE = 3 * 4  # bytes a pixel
# Pictures that are there while the network runs: the photograph at the scale's size, the canvas, its gradient; then of
# Adam two moments, of L-BFGS the history, the last two gradients and the direction.
_PICTURES = {"adam": 3 + 2, "lbfgs": 3 + 2 * HISTORY + 3}
_WORKSPACE = 5 * 2**26  # what the libraries take for themselves, their code included, whatever the size
_COPIES = 50  # bytes a pixel: of the picture, in another layout, normalised, and the differences of its neighbours
_PREVIOUS = _PICTURE + 4  # bytes a pixel: the painting before, and where it is seen
_SMALLEST_TILE = 64


@dataclass(frozen=True)
class Footprint:
    """What the steps take beyond the network, the photograph and the paintings.

    Attributes:
        vgg: the network.
        optimizer: "adam" or "lbfgs".
        canvas: its height and width.
        styles: the paintings' heights and widths.
        previous: whether there is a painting before.
    """

    vgg: VGG19
    optimizer: str
    canvas: tuple[int, int]
    styles: Sequence[tuple[int, int]]
    previous: bool = False

    def bytes(self, tile: int | None) -> int:
        """The peak with tiles of this side in pixels; None: untiled."""
        seen = max(
            max(span.last - span.first for span in spans(height, tile, self._reach))
            * max(span.last - span.first for span in spans(width, tile, self._reach))
            for height, width in (self.canvas, *self.styles)
        )
        whole = _PICTURE * _PICTURES[self.optimizer] + self._content_bytes + self.previous * _PREVIOUS
        return round(_WORKSPACE + self.canvas[0] * self.canvas[1] * whole + seen * self._step_bytes)

    def largest_tile(self, budget: int) -> int | None:
        """The largest tile that fits in ``budget`` bytes, or 64 pixels; None if the whole fits, or takes no more."""
        if self.bytes(None) <= budget:
            return None
        tile = max(self.canvas) // _SMALLEST_TILE * _SMALLEST_TILE
        while tile > _SMALLEST_TILE and self.bytes(tile) > budget:
            tile -= _SMALLEST_TILE
        tile = max(tile, _SMALLEST_TILE)
        return tile if self.bytes(tile) < self.bytes(None) else None

    @cached_property
    def _reach(self) -> Reach:
        return reach(modules(self.vgg, STYLE_LAYERS[-1]))

    @cached_property
    def _step_bytes(self) -> float:
        """For each pixel that the network sees."""
        difference = self.previous * _PICTURE
        return _backward_bytes(blocks(self.vgg, [*STYLE_LAYERS, CONTENT_LAYER])) + _COPIES + difference

    @cached_property
    def _content_bytes(self) -> float:
        """For each pixel of the photograph, whose features are kept."""
        *_, block = blocks(self.vgg, [CONTENT_LAYER])
        return 4 * block.convolution.out_channels / reach(modules(self.vgg, CONTENT_LAYER)).stride ** 2


def _backward_bytes(network: Iterable[Block]) -> float:
    """The peak of the backward pass, for each pixel of the picture.

    When it comes to a block, that is what the blocks up to it have kept, the block's own features even if they are
    computed again, and the gradients of the block's result, of what went into its ReLU, and of what went into it.
    """
    peak, kept, stride = 0.0, 0.0, 1
    for block in network:
        convolution, area = block.convolution, stride**2
        own = (1 if block.keeps_signs() else 4) * convolution.out_channels / area
        if block.pooling is not None:
            stride *= 2
        result = convolution.out_channels / stride**2
        if isinstance(block.pooling, nn.MaxPool2d):
            own += 8 * result  # int64 indices
        peak = max(peak, kept + own + 4 * (result + (convolution.out_channels + convolution.in_channels) / area))
        kept += 0 if block.recomputed() else own
    return peak


def memory_in_use(device: torch.device) -> int:
    """Bytes that this process holds on ``device`` now, but for those that it keeps free; 0 where nobody says."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return resident - pooled_allocator_statistics().bytes_kept
    except OSError:
        return 0


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Let the pooled allocator give back all that is freed: what it kept of one layer would fit few others."""
    limit = pooled_allocator_statistics().max_bytes
    if limit:
        use_pooled_allocator(1)
    try:
        yield
    finally:
        if limit:
            use_pooled_allocator(limit)
