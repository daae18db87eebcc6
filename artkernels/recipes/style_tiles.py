"""Tiles of a picture for a network of convolutions and poolings: what each owns, and what it must see of the rest."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Reach", "Span", "Tile", "reach", "spans", "split"]


class Reach(NamedTuple):
    """How much of a picture a feature is computed from.

    Attributes:
        stride: the side of the square of pixels that one feature stands for.
        radius: how many pixels beyond that square it depends on, on each side.
    """

    stride: int
    radius: int


def reach(modules: Iterable[nn.Module]) -> Reach:
    """The reach of what comes out of ``modules``, one after the other: Conv2d, pooling, and layers of single pixels."""
    stride, before, after = 1, 0, 0
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, step, padding = (_square(size) for size in (module.kernel_size, module.stride, module.padding))
            before += padding * stride
            after += (kernel - 1 - padding) * stride
            stride *= step
    return Reach(stride, max(before, after - (stride - 1)))


def _square(size: object) -> int:
    sizes = set(size) if isinstance(size, tuple) else {size}
    (side,) = sizes
    assert isinstance(side, int)
    return side


class Span(NamedTuple):
    """A tile's rows or columns.

    Both ends of what it sees are at the picture's, or at a multiple of the network's stride and further from what it
    owns than the network reaches. So poolings cut it as they cut the picture, and the zeros that convolutions put
    around it are the picture's own, or too far away to matter.

    Attributes:
        start, stop: what it owns; every pixel, and every feature of every layer, has one owner.
        first, last: what it sees.
    """

    start: int
    stop: int
    first: int
    last: int

    def seen(self) -> slice:
        """What it sees, in the picture."""
        return slice(self.first, self.last)

    def owned(self, stride: int = 1) -> slice:
        """What it owns, in a layer of the picture. (A partial square at the picture's end has no feature.)"""
        return slice(self.start // stride, self.stop // stride)

    def own(self, stride: int = 1) -> slice:
        """What it owns, in a layer of what it sees."""
        return slice((self.start - self.first) // stride, (self.stop - self.first) // stride)


class Tile(NamedTuple):
    """A rectangle of a picture; the methods take and return [N, C, H, W]."""

    rows: Span
    columns: Span

    def seen(self, picture: Tensor) -> Tensor:
        """The pixels that the network is given."""
        return picture[..., self.rows.seen(), self.columns.seen()]

    def owned(self, whole: Tensor, stride: int = 1) -> Tensor:
        """The tile's part of a layer of the whole picture."""
        return whole[..., self.rows.owned(stride), self.columns.owned(stride)]

    def own(self, features: Tensor, stride: int = 1) -> Tensor:
        """The tile's own part of a layer of what it sees."""
        return features[..., self.rows.own(stride), self.columns.own(stride)]


def split(height: int, width: int, side: int | None, reach: Reach) -> Iterator[Tile]:
    """Cut a picture into tiles, row by row; arguments as for :func:`spans`."""
    for rows in spans(height, side, reach):
        for columns in spans(width, side, reach):
            yield Tile(rows, columns)


def spans(length: int, side: int | None, reach: Reach) -> list[Span]:
    """Cut ``length`` rows or columns into spans that own at most ``side`` of them, about as many each.

    Args:
        length: the picture's height or width.
        side: rounded up to a multiple of the stride; None: one span.
        reach: of the network's deepest layer in use.
    """
    if side is None:
        return [Span(0, length, 0, length)]
    stride = reach.stride
    halo = -(-reach.radius // stride) * stride
    squares = -(-length // stride)
    count = -(-squares // -(-side // stride))
    ends = [min(squares * n // count * stride, length) for n in range(count + 1)]
    return [Span(start, stop, max(start - halo, 0), min(stop + halo, length)) for start, stop in pairwise(ends)]
