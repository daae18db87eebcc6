"""Generative art to train on, drawn here: nothing to download, no rights of others, any number of pictures.

Every style has its own file, which names whom it honours. Its :func:`paint` draws all random numbers without asking for
the size, and in unit coordinates, so that a picture is the same at every size.
"""

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from artkernels import images
from artkernels.drawing import flow, mosaic, rosettes, suns, truchet, waves
from artkernels.drawing.canvas import Canvas
from artkernels.errors import UserError

__all__ = ["SIZES", "STYLES", "draw", "draw_set"]

_PAINTERS: dict[str, Callable[[int, np.random.Generator], Canvas]] = {
    "suns": suns.paint,
    "rosettes": rosettes.paint,
    "mosaic": mosaic.paint,
    "truchet": truchet.paint,
    "waves": waves.paint,
    "flow": flow.paint,
}

STYLES: tuple[str, ...] = tuple(_PAINTERS)
"""The names of the styles."""

SIZES = range(32, 1025)
"""Sides of a picture that can be drawn, in pixels."""

# Each file is forced to the disk by itself, 0.2 ms on an idle disk and 3 ms on a busy one, for 1 to 15 ms of drawing:
# meanwhile others are drawn. (At 1024 x 1024 a thread needs 150 MB.)
_THREADS = 4
_BATCH = 64


def draw(style: str, index: int, *, seed: int = 0, size: int = 64) -> Tensor:
    """Draw picture ``index`` of the endless series that ``style`` and ``seed`` name.

    The same arguments give the same picture, but for what the last bit of a sine may change on another machine at the
    edge of a shape. Another size gives the same picture larger or smaller.

    Args:
        style: one of :data:`STYLES`.
        index: 0 or more.
        seed: 0 or more.
        size: height and width, one of :data:`SIZES`.

    Returns:
        [1, 3, size, size], float32 in [0, 1], of whole 255ths: what :func:`artkernels.images.load` reads from its file.

    Raises:
        UserError: an argument is none of these.
    """
    _check(style, index, seed, size)
    random = np.random.default_rng([seed, index, zlib.crc32(style.encode())])
    return _PAINTERS[style](size, random).image()


def draw_set(
    style: str,
    folder: str | os.PathLike[str],
    count: int,
    *,
    seed: int = 0,
    size: int = 64,
    on_picture: Callable[[], object] | None = None,
) -> None:
    """Draw the first ``count`` pictures of a series into ``folder``: ``suns00000.png``, ``suns00001.png`` ...

    Pictures of the same names are replaced, others stay; each is written whole or not at all, with ``style``, ``seed``,
    ``index`` and ``size`` kept in it (see :func:`artkernels.images.save`). The same call made again completes what an
    interrupted one has left undone.

    Args:
        style: one of :data:`STYLES`.
        folder: made if it is missing, with those above it.
        count: 1 or more.
        seed: 0 or more.
        size: height and width, one of :data:`SIZES`.
        on_picture: called after each picture.

    Raises:
        UserError: an argument is none of these, or the folder cannot be made or written to; before the first picture.
    """
    _check(style, 0, seed, size)
    if count < 1:
        raise UserError(f"{count} pictures: 1 or more are needed")
    folder = Path(folder)
    digits = max(5, len(str(count - 1)))  # names in the order of their numbers

    def path(index: int) -> Path:
        return folder / f"{style}{index:0{digits}}.png"

    def draw_and_save(index: int) -> None:
        settings = {"style": style, "seed": seed, "index": index, "size": size}
        images.save(draw(style, index, seed=seed, size=size), path(index), settings)

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be made ({error.strerror or error})") from error
    images.check_writable(path(0))
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for start in range(0, count, _BATCH):
            for _ in pool.map(draw_and_save, range(start, min(start + _BATCH, count))):
                if on_picture is not None:
                    on_picture()
    finally:
        pool.shutdown(cancel_futures=True)


def _check(style: str, index: int, seed: int, size: int) -> None:
    if style not in _PAINTERS:
        raise UserError(f"{style}: no such style, one of {', '.join(STYLES)} is needed")
    if size not in SIZES:
        raise UserError(f"a size of {size} pixels: {SIZES[0]} to {SIZES[-1]} are needed")
    for name, number in (("index", index), ("seed", seed)):
        if number < 0:
            raise UserError(f"{name} {number}: 0 or more is needed")
