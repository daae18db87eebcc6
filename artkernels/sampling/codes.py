"""Codes, the vectors of normally distributed numbers that pictures are made from: of seeds, and between them."""

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

import torch
from torch import Tensor

__all__ = ["seed_code", "slerp", "walk"]

_PARALLEL = 1e-3  # radians, within which a great circle is a straight line to float32's rounding


def seed_code(seed: int, length: int) -> Tensor:
    """The code of ``seed``, float32 [length]: PyTorch's numbers on the CPU, whatever device they are for."""
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


def slerp(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985; White 2016, arXiv:1609.04468): ``start`` at ``t`` 0, ``end`` at 1.

    Long normal vectors lie close to a sphere. A straight line between two would cut through its inside, where there
    is hardly any, and pictures on the way would be averages.

    Args:
        start: [D].
        end: [D].
        t: in [0, 1].
    """
    cosine = torch.dot(start, end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    if not _PARALLEL < angle < torch.pi - _PARALLEL:  # nor where one is 0, and the angle NaN
        return torch.lerp(start, end, t)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def walk(codes: Iterable[Tensor], frames: int) -> Iterator[Tensor]:
    """A closed walk over ``codes``, ``frames`` steps from each to the next and from the last to the first."""
    stops = iter(codes)
    first = next(stops)
    for start, end in pairwise(chain([first], stops, [first])):
        for frame in range(frames):
            yield slerp(start, end, frame / frames)
