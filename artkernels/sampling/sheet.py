"""Pictures side by side."""

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["sheet", "sheet_size"]

_GAP = 2  # pixels


def sheet_size(count: int, columns: int, side: int) -> tuple[int, int]:
    """Height and width of a :func:`sheet` of ``count`` pictures of ``side`` x ``side`` pixels."""
    rows = -(-count // columns)
    return rows * (side + _GAP) + _GAP, columns * (side + _GAP) + _GAP


def sheet(pictures: Iterable[Tensor], count: int, columns: int, side: int) -> Tensor:
    """Set pictures in rows on white. They are asked for one by one, and none but the sheet is kept.

    Args:
        pictures: ``count`` of them, [3, side, side], RGB in [0, 1].
        columns: pictures of a row.

    Returns:
        [3, H, W], see :func:`sheet_size`.
    """
    canvas = torch.ones(3, *sheet_size(count, columns, side))
    for index, picture in enumerate(pictures):
        y, x = (_GAP + place * (side + _GAP) for place in divmod(index, columns))
        canvas[:, y : y + side, x : x + side] = picture
    return canvas
