"""Flowers of rotational symmetry: after Guido Grandi's rhodoneae (Flores geometrici, 1728)."""

import numpy as np

from artkernels.drawing.canvas import Array, Canvas, circle, colors, pick, turn

__all__ = ["paint"]

# Ground, the petals from the outermost ring inwards, heart.
_PALETTES = colors(
    "0f2a4a e4572e f3a712 fbe3a6 7a1f2b",
    "123c3a d8315b f58fa8 fde2e4 f5b700",
    "f4e6cf c1272d ef6f3c fbc15e 2d1b33",
    "fbe9e0 6a2c8f b565c9 f0b7e8 f7c325",
    "e4efe4 20508f 4f93d2 b5dcf0 f2a03d",
    "1c1233 3f6ad8 6cc5e8 eafcf6 ff7f6a",
    "2a1030 8f2d86 e85d9e ffc8a2 fff0a5",
)
_ALONG = np.linspace(0, 1, 17)


def paint(size: int, random: np.random.Generator) -> Canvas:
    """Three rings of petals round a heart, each ring turned half a petal against the one below."""
    ground, *rings, heart = pick(_PALETTES, random)
    canvas = Canvas(size, np.stack([ground * 1.12, ground * 0.85])[:, None])
    center, petals = random.uniform(0.47, 0.53, 2), int(random.integers(5, 10))
    start, plump, tip = random.uniform([0, 1.0, 0.75], [2 * np.pi / petals, 1.35, 1.5])
    for ring, color in enumerate(rings):
        length = (0.46, 0.33, 0.2)[ring] * random.uniform(0.93, 1.04)
        width = plump * length * np.pi / petals
        angles = start + np.pi / petals * ring + 2 * np.pi / petals * np.arange(petals)
        petal = _petal(length, width, tip)
        canvas.shapes([center + petal @ turn(angle) for angle in angles], color * 0.72)
        canvas.shapes([center + petal * [0.94, 0.8] @ turn(angle) for angle in angles], color)
    radius = random.uniform(0.055, 0.085)
    canvas.shape(circle(center, radius * 1.2), heart * 0.6)
    canvas.shape(circle(center, radius), heart)
    return canvas


def _petal(length: float, width: float, tip: float) -> Array:
    """An outline [points, 2] along x; the broadest place is the nearer to the tip the larger ``tip`` is."""
    half = width / 2 * np.sin(np.pi * _ALONG**tip) ** 0.8
    return np.stack([np.append(_ALONG, _ALONG[::-1]) * length, np.append(half, -half[::-1])], axis=1)
