"""Winding bands of quarter circles: Sebastien Truchet's tiles (1704) as Cyril Stanley Smith drew them (1987)."""

import numpy as np

from artkernels.drawing.canvas import Array, Canvas, colors, pick

__all__ = ["paint"]

# The one region in its upper left and lower right, the other one likewise, the band between them.
_PALETTES = colors(
    "f6c667 e2583e 17405c 0b1d33 fdf3dc",
    "f9dcc4 f28482 2f6f73 12343b fffaf0",
    "a8e6cf 3aa6a0 5b2a86 250e4e fdf6ff",
    "cfe8ff 4b8fe2 d7263d 6b0f2e fff6ea",
    "ffe08a ff8c42 6d214f 2b0d36 fff4df",
)
_BAND = 0.075
_ANGLE = np.linspace(0, np.pi / 2, 25)
_DIRECTION = np.stack([np.cos(_ANGLE), np.sin(_ANGLE)], axis=1)
_ARC = 0.5 * _DIRECTION
# A tile, [0, 1] x [0, 1], whose arcs are round the upper left and the lower right corner: what lies inside them, what
# lies between them, and the bands. (1 - outline is the outline turned by half a turn.)
_CORNERS = [np.vstack([_ARC, [0, 0]]), 1 - np.vstack([_ARC, [0, 0]])]
_MIDDLE = [np.vstack([_ARC, [0, 1], 1 - _ARC, [1, 0]])]
_RING = np.vstack([(0.5 - _BAND) * _DIRECTION, (0.5 + _BAND) * _DIRECTION[::-1]])
_BANDS = [_RING, 1 - _RING]


def paint(size: int, random: np.random.Generator) -> Canvas:
    """Three or four tiles a side, each turned one way or the other; across a band always lies the other region.

    For this the corners of the tiles belong to the regions by turns, as on a chessboard, and what is round a corner to
    the region of that corner.
    """
    palette = pick(_PALETTES, random)
    tiles = int(random.integers(3, 5))
    region: list[Array] = []
    bands: list[Array] = []
    for row, column in np.ndindex(tiles, tiles):
        mirrored = random.random() < 0.5
        own = _MIDDLE if ((row + column) % 2 == 0) != mirrored else _CORNERS
        for outlines, part in ((region, own), (bands, _BANDS)):
            outlines += [np.array([column, row]) + (_mirror(outline) if mirrored else outline) for outline in part]
    canvas = Canvas(size, _diagonal(*palette[:2]))
    canvas.shapes([outline / tiles for outline in region], _diagonal(*palette[2:4]))
    canvas.shapes([outline / tiles for outline in bands], palette[4])
    return canvas


def _mirror(outline: Array) -> Array:
    return outline * [-1, 1] + [1, 0]


def _diagonal(first: Array, last: Array) -> Array:
    """A fill from the upper left to the lower right corner."""
    middle = (first + last) / 2
    return np.array([[first, middle], [middle, last]])
