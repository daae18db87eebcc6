"""Pictures in and out of files: RGB tensors in [0, 1] on this side, whatever Pillow can read on the other."""

import io
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from artkernels import files
from artkernels.errors import UserError

__all__ = [
    "METADATA_KEY",
    "check_writable",
    "contact_sheet",
    "load",
    "opened",
    "resize",
    "save",
    "scaled",
    "to_rgb",
    "upright_size",
]

METADATA_KEY = "artkernels"
"""The PNG text chunk in which :func:`save` keeps, as JSON, how a picture was made."""

_MODES_OF_PROFILES = ("L", "RGB", "CMYK", "LAB", "YCbCr")
_OVERSHOOT = 0.25  # beyond black and white, that resampling may have left: it is clipped
_ROWS_AT_ONCE = 256  # of a picture that is saved: copies of all of it may not fit in memory


def load(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture as a viewer would show it: turned as EXIF says, its ICC profile's colours as sRGB, transparency
    over white, any mode as RGB; the first of several.

    Returns:
        [1, 3, H, W], float32 in [0, 1].

    Raises:
        UserError: no such file, not a picture, damaged, unreadable, without a known black and white, or too large to be
            one in good faith.
    """
    with opened(Path(path)) as picture:
        pixels = torch.from_numpy(np.array(to_rgb(picture)))
    rgb = pixels.permute(2, 0, 1).unsqueeze(0)
    return rgb.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


@contextmanager
def opened(path: Path | zipfile.Path) -> Iterator[Image.Image]:
    """The picture in a file, its header read and its pixels not yet, for the block to decode.

    Raises:
        UserError: whatever is wrong with the file, found here or in the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large, or odd in its metadata: what matters is an error
            with files.readable(path, "a picture"), path.open("rb") as file, Image.open(file) as picture:
                yield picture
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture, or of a kind that cannot be read") from error
    except _UnknownRangeError as error:
        raise UserError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise UserError(f"{path}: damaged or incomplete picture ({error})") from error


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height of an :func:`opened` picture after it is turned as EXIF says, told without decoding it."""
    width, height = picture.size
    if picture.format == "TIFF":  # Pillow itself turns these
        return width, height
    if picture.format == "PNG" and "exif" not in picture.info:  # getexif() would decode it to look behind the pixels
        return width, height
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Decode an :func:`opened` picture as a viewer would show it, mode "RGB"."""
    ImageOps.exif_transpose(picture, in_place=True)
    profile = picture.info.get("icc_profile")
    opacity = _opacity(picture) if picture.has_transparency_data else None
    if picture.mode.startswith(("I", "F")):
        picture = _of_levels(picture)
    elif picture.mode not in _MODES_OF_PROFILES:
        picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
    if profile:
        picture = _as_srgb(picture, profile)
    picture = picture.convert("RGB")
    if opacity is None:
        return picture
    over_white = Image.new("RGB", picture.size, "white")
    over_white.paste(picture, mask=opacity)
    return over_white


def _opacity(picture: Image.Image) -> Image.Image:
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I") and isinstance(clear, int):  # one of 65536 levels, where Pillow looks at 256
        return Image.fromarray(np.where(np.asarray(picture) == clear, 0, 255).astype(np.uint8))
    return picture.convert("RGBA").getchannel("A")


class _UnknownRangeError(ValueError):
    """Numbers that are no levels of grey from black to white."""


def _of_levels(picture: Image.Image) -> Image.Image:
    """16-bit grey, which may come as 32-bit integers, and floating-point numbers: Pillow would clip both to 8 bits."""
    white = 1 if picture.mode == "F" else 65535
    levels = np.asarray(picture, dtype=np.float32) / np.float32(white)
    if not (levels.min() >= -_OVERSHOOT and levels.max() <= 1 + _OVERSHOOT):
        raise _UnknownRangeError(
            f"its pixels are numbers from {white * levels.min():g} to {white * levels.max():g}, and must be from 0, "
            f"black, to {white}, white"
        )
    return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))


def _as_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(own, srgb, picture.mode, "RGB")
        if picture.mode == "RGB" and _changes_nothing(transform):  # so do most, and a second is saved
            return picture
        converted = ImageCms.applyTransform(picture, transform)
    except (OSError, ImageCms.PyCMSError):  # damaged, or of other channels: viewers do without it
        return picture
    assert converted is not None  # as it was not asked for in place
    return converted


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether all greys, reds, greens and blues stay as they are, but for rounding."""
    levels = np.arange(256, dtype=np.uint8)
    ramps = np.zeros((4, 256, 3), np.uint8)
    ramps[0] = levels[:, None]
    ramps[1, :, 0] = ramps[2, :, 1] = ramps[3, :, 2] = levels
    converted = ImageCms.applyTransform(Image.fromarray(ramps), transform)
    return bool(np.abs(np.asarray(converted).astype(np.int16) - ramps).max() <= 1)


def scaled(image: Tensor, size: int) -> tuple[int, int]:
    """The height and width that :func:`resize` would give ``image``."""
    height, width = image.shape[-2:]
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def resize(image: Tensor, size: int) -> Tensor:
    """Scale ``image``, [1, C, H, W] in [0, 1], antialiased, so that its longer side is ``size`` pixels."""
    shape = scaled(image, size)
    if shape == image.shape[-2:]:
        return image
    return TF.interpolate(image, shape, mode="bicubic", align_corners=False, antialias=True).clamp_(0, 1)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the UserError that :func:`save` would raise for ``path``, before the work is done, leaving no trace."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are saved as PNG, the name must end in .png")
    files.check_writable(path)


def save(image: Tensor, path: str | os.PathLike[str], settings: dict[str, Any] | None = None) -> None:
    """Write a PNG file whole or not at all, replacing one of the same name.

    Args:
        image: [1, 3, H, W] or [3, H, W], RGB in [0, 1]; values outside are clipped.
        path: must end in .png, in a folder that exists.
        settings: kept in the file as JSON, see :data:`METADATA_KEY`.

    Raises:
        UserError: the folder is missing, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: pictures are saved as PNG, the name must end in .png")
    info = PngInfo()
    if settings is not None:
        info.add_text(METADATA_KEY, json.dumps(settings))
    picture = _to_pil(image)
    with files.whole_or_not_at_all(path) as temporary, temporary.open("xb") as file:
        picture.save(file, format="PNG", pnginfo=info)


def contact_sheet(images: Sequence[Tensor], *, height: int = 256, gap: int = 8) -> Tensor:
    """Set pictures, [1, 3, H, W] in [0, 1], side by side on white, all of one ``height``: [1, 3, height, W']."""
    tiles: list[Tensor] = []
    for image in images:
        tile = resize(image, round(height * max(1, image.shape[-1] / image.shape[-2])))
        tiles += [torch.ones(1, 3, height, gap), tile[..., :height, :]]
    return torch.cat(tiles[1:], dim=-1)


def _to_pil(image: Tensor) -> Image.Image:
    height, width = image.shape[-2:]
    pixels = torch.empty(height, width, 3, dtype=torch.uint8)
    rgb = image.detach().reshape(3, height, width)
    for first in range(0, height, _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        pixels[rows] = rgb[:, rows].float().clamp(0, 1).mul_(255).round_().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy(), "RGB")
