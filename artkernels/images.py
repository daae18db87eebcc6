"""Pictures in and out of files: RGB tensors in [0, 1] on this side, whatever Pillow can read on the other."""

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
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
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

_ROWS_AT_ONCE = 256  # of a picture that is saved: copies of all of it may not fit in memory


def load(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture as the viewer would show it: turned as EXIF says, transparency over white, any mode as RGB.

    Returns:
        [1, 3, H, W], float32 in [0, 1].

    Raises:
        UserError: no such file, not a picture, damaged, unreadable, or too large to be one in good faith.
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
            with path.open("rb") as file, Image.open(file) as picture:
                yield picture
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder, a picture is needed") from error
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not a picture") from error
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
    """Decode an :func:`opened` picture as the viewer would show it, mode "RGB"."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip and not scale
        grey = np.asarray(picture, dtype=np.float32) / np.float32(257)
        picture = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


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
