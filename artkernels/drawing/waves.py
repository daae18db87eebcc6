"""Bands of parallel waves, aslant: after Bridget Riley's curve paintings (Cataract 3, 1967)."""

import numpy as np

from artkernels.drawing.canvas import Canvas, colors, pick, turn

__all__ = ["paint"]

_PALETTES = colors(
    "264653 2a9d8f f4e8c1 f4a261 e4572e",
    "023047 219ebc e6f4f1 ffb703 fb7a00",
    "2b1a6b 7b5be0 fde7f3 f78fb3 d81e5b",
    "14213d 457b9d f1faee f4978e d62839",
    "12372a 4f8f4b fbf6d9 e9b44c b5472f",
)
_X = np.linspace(-0.3, 1.3, 65)


def paint(size: int, random: np.random.Generator) -> Canvas:
    """Seven to ten waves of one length, their colours by turns; each is ahead of the one before by the same phase."""
    palette = pick(_PALETTES, random)
    if random.random() < 0.5:
        palette = palette[::-1]
    count = int(random.integers(7, 11))
    height, length, phase, ahead = random.uniform([0.035, 0.45, 0, -0.16], [0.075, 0.8, 1, 0.16])
    angle = random.uniform(-0.5, 0.5)
    canvas = Canvas(size, palette[-1])
    for wave in range(count):
        crest = -0.25 + 1.5 * wave / count - height * np.sin(2 * np.pi * (_X / length + phase + ahead * wave))
        # All that is below the crest; the next wave covers all but a band of it.
        outline = np.stack([np.append(_X, _X[[-1, 0]]), np.append(crest, [1.6, 1.6])], axis=1)
        canvas.shape(0.5 + (outline - 0.5) @ turn(angle), palette[wave % len(palette)])
    return canvas
