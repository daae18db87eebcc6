"""A sun over hills, from dawn to night: after Etel Adnan, who painted the one over Mount Tamalpais for decades."""

import numpy as np

from artkernels.drawing.canvas import Canvas, circle, colors, pick

__all__ = ["paint"]

# Round the clock: sky at the top, sky at the horizon, sun at its top and foot, the farthest hill, the nearest one.
_HOURS = colors(
    "f2c9b0 fbe8c8 f9d976 f39f86 d98880 512e5f",
    "8fd3e8 fdf3d0 fff3a0 ffb347 5fb49c 14505c",
    "2e86c1 aed9e0 fffbe6 ffd166 3fa34d 123524",
    "f6a21e fde8a9 ff5a36 d7263d b8412c 3b1220",
    "6a2c70 f08a5d fff3b0 f9c74f b83b5e 2b1239",
    "1b1b4b 6f4ca5 ffd1dc ff6f91 3d348b 0b0b2b",
    "0b132b 1c5d7e fdf6e3 b8d8e8 134e5e 050a1c",
)
_X = np.linspace(0, 1, 49)


def paint(size: int, random: np.random.Generator) -> Canvas:
    """A sky, a sun in its light, three hills one before the other."""
    palette = pick(_HOURS, random)
    sky, sun, (far, near) = palette[:2, None], palette[2:4, None], palette[4:]
    canvas = Canvas(size, np.concatenate([sky, sky[1:]]))
    center, radius = random.uniform([0.25, 0.28], [0.75, 0.55]), random.uniform(0.14, 0.25)
    canvas.glow(center, 2.4 * radius, sun[0, 0])
    canvas.shape(circle(center, radius), sun)

    horizon = random.uniform(0.58, 0.7)
    for depth in range(3):
        height, waves, phase = random.uniform([0.05, 0.5, 0], [0.11, 1.1, 1])
        ridge = horizon + 0.14 * depth - height * np.sin(2 * np.pi * (waves * _X + phase))
        outline = np.stack([np.append(_X, [1, 0]), np.append(ridge, [1, 1])], axis=1)
        crest = far + depth / 2 * (near - far)
        canvas.shape(outline, np.stack([crest, crest + 0.35 * (near - crest)])[:, None])
    return canvas
