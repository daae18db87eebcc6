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
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS, network
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
_SMALLEST_TILE = 64


@dataclass(frozen=True)
class Footprint:
    """What the steps take beyond the network, the photograph and the paintings.

    Attributes:
        vgg: the network.
        optimizer: "adam" or "lbfgs".
        canvas: its height and width.
        styles: the paintings' heights and widths.
    """

    vgg: VGG19
    optimizer: str
    canvas: tuple[int, int]
    styles: Sequence[tuple[int, int]]

    def bytes(self, tile: int | None) -> int:
        """The peak with tiles of this side in pixels; None: untiled."""
        seen = max(
            max(span.last - span.first for span in spans(height, tile, self._reach))
            * max(span.last - span.first for span in spans(width, tile, self._reach))
            for height, width in (self.canvas, *self.styles)
        )
        whole = _PICTURE * _PICTURES[self.optimizer] + self._content_bytes
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
    def _modules(self) -> list[nn.Module]:
        return [module for _, module in network(self.vgg, [*STYLE_LAYERS, CONTENT_LAYER])]

    @cached_property
    def _reach(self) -> Reach:
        return reach(self._modules)

    @cached_property
    def _step_bytes(self) -> float:
        """For each pixel that the network sees."""
        return 4 * sum(_maps(self._modules)) + _COPIES

    @cached_property
    def _content_bytes(self) -> float:
        """For each pixel of the photograph, whose features are kept."""
        return 4 * _maps(module for _, module in network(self.vgg, [CONTENT_LAYER]))[-1]


def _maps(modules: Iterable[nn.Module]) -> list[float]:
    """The numbers, for each pixel of the picture, that each convolution and pooling leaves for the backward pass."""
    numbers, channels, stride = [], 3, 1
    for module in modules:
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels
            numbers.append(channels / stride**2)
        elif isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
            stride *= 2
            indices = 2 if isinstance(module, nn.MaxPool2d) else 0  # int64
            numbers.append((1 + indices) * channels / stride**2)
    return numbers


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
