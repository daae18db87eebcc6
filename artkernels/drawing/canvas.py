"""A square to draw filled shapes on in unit coordinates, so that a picture is the same at every size."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor

__all__ = ["Array", "Canvas", "circle", "colors", "pick", "turn"]

Array = npt.NDArray[np.float64]

_SUPERSAMPLING = 4
_TURN = np.linspace(0, 2 * np.pi, 97)[:-1]
# Light that falls off with the square of what is left of the way from the middle to the middle of a side. (Pillow's
# gradient reaches 255 in the corners.)
_GLOW = Image.radial_gradient("L").point([round(255 * max(0, 1 - value / 180) ** 2) for value in range(256)])


class Canvas:
    """``size`` x ``size`` pixels, antialiased; (0, 0) is the upper left corner, (1, 1) the lower right one, as (x, y).

    A ``fill`` is one colour, [3], or a grid of them, [rows, columns, 3], of two rows or more, stretched smoothly over
    the box around the shape: [2, 1, 3] is a gradient from top to bottom, [2, 2, 3] one between four corners. Colours
    are RGB in [0, 255].
    """

    def __init__(self, size: int, fill: Array) -> None:
        self._scale = size * _SUPERSAMPLING
        self._picture = Image.new("RGB", (self._scale, self._scale))
        self._draw = ImageDraw.Draw(self._picture)
        self._paint((0, 0, self._scale, self._scale), None, fill)

    def shapes(self, outlines: Sequence[Array], fill: Array) -> None:
        """Fill closed polygons, [points, 2] each; a gradient is stretched over all of them together."""
        pixels = [outline * self._scale - 0.5 for outline in outlines]
        if fill.ndim == 1:
            for outline in pixels:
                self._draw.polygon(outline.ravel().tolist(), fill=_rgb(fill))
            return
        low = np.floor(np.min([outline.min(0) for outline in pixels], axis=0)).astype(int)
        high = np.ceil(np.max([outline.max(0) for outline in pixels], axis=0)).astype(int) + 1
        mask = Image.new("L", tuple((high - low).tolist()))
        draw = ImageDraw.Draw(mask)
        for outline in pixels:
            draw.polygon((outline - low).ravel().tolist(), fill=255)
        self._paint((*low.tolist(), *high.tolist()), mask, fill)

    def shape(self, outline: Array, fill: Array) -> None:
        """Fill one closed polygon, [points, 2]."""
        self.shapes([outline], fill)

    def glow(self, center: Array, radius: float, color: Array) -> None:
        """Lay ``color`` over what is there, opaque at ``center``, ever fainter and gone at ``radius``."""
        low, high = (np.rint((center + side * radius) * self._scale).astype(int) for side in (-1, 1))
        mask = _GLOW.resize(tuple((high - low).tolist()), Image.Resampling.BILINEAR)
        self._picture.paste(_rgb(color), (*low.tolist(), *high.tolist()), mask)

    def image(self) -> Tensor:
        """[1, 3, size, size], float32 in [0, 1], of whole 255ths."""
        pixels = torch.from_numpy(np.array(self._picture.reduce(_SUPERSAMPLING)))
        return pixels.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255

    def _paint(self, box: tuple[int, int, int, int], mask: Image.Image | None, fill: Array) -> None:
        if fill.ndim == 1:
            self._picture.paste(_rgb(fill), box, mask)
            return
        (rows, columns), width, height = fill.shape[:2], box[2] - box[0], box[3] - box[1]
        grid = Image.fromarray(fill.clip(0, 255).round().astype(np.uint8))
        # From the middle of the first colour to the middle of the last one: the shape's edges have these very colours.
        strips = grid.resize((columns, height), Image.Resampling.BILINEAR, (0, 0.5, columns, rows - 0.5))
        if columns == 1:  # the same as below, in less than half the time
            gradient = strips.resize((width, height), Image.Resampling.NEAREST)
        else:
            gradient = strips.resize((width, height), Image.Resampling.BILINEAR, (0.5, 0, columns - 0.5, height))
        self._picture.paste(gradient, box, mask)


def circle(center: Array, radius: float) -> Array:
    """The outline of a disc, [points, 2]."""
    return center + radius * np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def turn(angle: float) -> Array:
    """The matrix [2, 2] that turns ``points @ turn(angle)``, [points, 2], by ``angle``, clockwise as it is seen."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def colors(*palettes: str) -> Array:
    """Palettes written as "d94f30 f2b134 ...", hexadecimal, equally many colours in each: [palettes, colours, 3]."""
    return np.array([[tuple(bytes.fromhex(color)) for color in palette.split()] for palette in palettes], dtype=float)


def pick(palettes: Array, random: np.random.Generator) -> Array:
    """One of ``palettes``, [palettes, colours, 3], up to a third of the way to the next one, each colour varied."""
    first = int(random.integers(len(palettes)))
    palette, following = palettes[first], palettes[(first + 1) % len(palettes)]
    return np.asarray(palette + random.uniform(0, 0.33) * (following - palette) + random.normal(0, 5, palette.shape))


def _rgb(color: Array) -> tuple[int, ...]:
    return tuple(min(255, max(0, round(channel))) for channel in color.tolist())
