"""Rectangles between thick lines: after Piet Mondrian's Compositions (1920 to 1942)."""

import numpy as np

from artkernels.drawing.canvas import Array, Canvas, colors, pick

__all__ = ["paint"]

# Line, paper, three colours.
_PALETTES = colors(
    "151515 f5f0e1 d62818 1d4fa3 f6c616",
    "151515 f8f3ea c8102e 0b6bb3 ffd23f",
    "1a1a24 f3eee3 e4572e 17a2a2 f3b61f",
    "181220 faf2ec d81e5b 5b3fa0 ffb627",
)
_SMALLEST = 0.2


def paint(size: int, random: np.random.Generator) -> Canvas:
    """The canvas split again and again; of the cells three to five coloured, no colour missing."""
    line, paper, *accents = pick(_PALETTES, random)
    half_line = random.uniform(0.014, 0.024)
    canvas = Canvas(size, line)
    cells = _split(np.array([[-0.03, -0.03], [1.03, 1.03]]), 3, random)
    coloured = random.permutation(len(cells))[: random.integers(3, 6)]
    fills = dict(zip(coloured.tolist(), 2 * accents, strict=False))
    for number, (low, high) in enumerate(cells):
        (left, top), (right, bottom) = low + half_line, high - half_line
        outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        canvas.shape(outline, fills.get(number, paper))
    return canvas


def _split(cell: Array, depth: int, random: np.random.Generator) -> list[Array]:
    """Cut ``cell``, its corners [[left, top], [right, bottom]], across its longer side, and the parts likewise."""
    sides = cell[1] - cell[0] + random.uniform(0, 0.1, 2)
    axis = int(sides.argmax())
    if depth == 0 or sides[axis] < 2 * _SMALLEST:
        return [cell]
    cut = cell[0, axis] + (cell[1, axis] - cell[0, axis]) * random.choice([0.3, 0.38, 0.5, 0.62, 0.7])
    first, second = cell.copy(), cell.copy()
    first[1, axis] = second[0, axis] = cut
    return _split(first, depth - 1, random) + _split(second, depth - 1, random)
