"""Strokes that follow a wind with whirls in it: a flow field (Tyler Hobbs' Fidenza, 2021) as in The Starry Night."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artkernels.drawing.canvas import Array, Canvas, circle, colors, pick

__all__ = ["BRUSHES", "Brush", "paint"]

# From the still air to the eye of a whirl.
_PALETTES = colors(
    "0d163a 1b4a8a 4fa0b5 f2c14e fff3cf",
    "10243e 136f63 5fb49c f3d34a fff6d6",
    "2a0f3d 7b2d7e d8576b f9a03f fff0c2",
    "3b0d11 9b2226 e36414 f6bd60 fff1d0",
    "1a1446 4338a8 8f7bea f4a6c6 fff0f3",
)
Brush = tuple[int, float, float, float]
"""Strokes along each side of the canvas, their length, their width, and how far their tone may stray."""

# Broad strokes first, finer ones over them, as many as cover the canvas.
BRUSHES: tuple[Brush, ...] = ((7, 0.3, 0.14, 0.05), (12, 0.2, 0.065, 0.09), (12, 0.16, 0.032, 0.13))
_STEPS = 8
# The brush touches down and lifts off.
_PRESSURE = np.sqrt(1 - np.abs(np.linspace(-1, 1, _STEPS + 1)) ** 3)[:, None]


@dataclass(frozen=True)
class _Air:
    """A wind from the left with whirls in it, and the light of their eyes."""

    centers: Array  # [whirls, 2]
    radii: Array  # [whirls, 1]
    spins: Array  # [whirls, 1]
    slope: float
    phase: float

    def direction(self, points: Array) -> Array:
        """Of the wind at ``points`` [points, 2], as vectors of length 1."""
        across = (points[:, None] - self.centers) / self.radii
        speed = self.spins * np.exp(-(across**2).sum(-1, keepdims=True) / 2)
        wind = (speed * across[..., ::-1] * [-1, 1]).sum(1)
        wind[:, 0] += 1
        wind[:, 1] += self.slope * np.sin(5 * points[:, 0] + self.phase)
        return np.asarray(wind / np.hypot(*wind.T)[:, None])

    def light(self, points: Array) -> Array:
        """At ``points`` [points, 2]: about 0 in still air, 1 in an eye."""
        across = (points[:, None] - self.centers) / self.radii
        clouds = np.sin(7 * points[:, 1] + 3 * points[:, 0] + self.phase)
        return np.asarray(0.16 + 0.1 * clouds + 0.8 * np.exp(-(across**2).sum(-1) / 1.6).sum(1))


def paint(size: int, random: np.random.Generator, brushes: Sequence[Brush] = BRUSHES) -> Canvas:
    """Two or three whirls, their eyes, and the strokes round them."""
    palette, air = pick(_PALETTES, random), _air(random)
    canvas = Canvas(size, palette[0])
    for center, radius in zip(air.centers, air.radii[:, 0], strict=True):
        canvas.shape(circle(center, radius), palette[-2])
        canvas.shape(circle(center, 0.6 * radius), palette[-1])
    stops = np.linspace(0, 1, len(palette))
    for across, length, width, contrast in brushes:
        starts = (np.indices((across, across)).reshape(2, -1).T + random.uniform(0, 1, (across**2, 2))) / across
        random.shuffle(starts)
        tones = air.light(starts) + random.normal(0, contrast, len(starts))
        fills = np.stack([np.interp(tones, stops, channel) for channel in palette.T], axis=1)
        outlines = _strokes(air, starts, length * random.uniform(0.7, 1.3, (len(starts), 1)), width)
        for outline, fill in zip(outlines, fills, strict=True):
            canvas.shape(outline, fill)
    return canvas


def _air(random: np.random.Generator) -> _Air:
    whirls = int(random.integers(2, 4))
    # One whirl a sector round the middle, lest they cover each other.
    sectors = np.arange(whirls) + random.uniform(-0.15, 0.15, whirls) + random.uniform(0, whirls)
    bearings = 2 * np.pi / whirls * sectors
    distances = random.uniform(0.24, 0.36, (whirls, 1))
    centers = 0.5 + distances * np.stack([np.cos(bearings), np.sin(bearings)], axis=1)
    radii = random.uniform(0.1, 0.165, (whirls, 1))
    spins = random.choice([-1, 1], (whirls, 1)) * random.uniform(3, 5, (whirls, 1))
    return _Air(centers, radii, spins, slope=random.uniform(0.2, 0.5), phase=random.uniform(0, 2 * np.pi))


def _strokes(air: _Air, middles: Array, lengths: Array, width: float) -> Array:
    """Outlines of strokes through ``middles`` [strokes, 2], ``lengths`` [strokes, 1]: [strokes, points, 2].

    They are followed both ways from the middle, so that a stroke lies where its tone was taken.
    """
    first, last = [middles], [middles]
    for _ in range(_STEPS // 2):
        first.append(first[-1] - lengths / _STEPS * air.direction(first[-1]))
        last.append(last[-1] + lengths / _STEPS * air.direction(last[-1]))
    path = np.stack(first[:0:-1] + last, axis=1)
    along = np.gradient(path, axis=1)
    normal = along[..., ::-1] * [-1, 1] / np.hypot(along[..., 0], along[..., 1])[..., None]
    side = width / 2 * _PRESSURE * normal
    return np.concatenate([path + side, (path - side)[:, ::-1]], axis=1)
