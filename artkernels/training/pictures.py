"""A folder or .zip file of any pictures as a dataset: each at the resolution to train on, uint8."""

import itertools
import math
import mmap
import os
import random
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from artkernels import images
from artkernels.errors import UserError
from artkernels.training.runs import OPTIONS, STATE

__all__ = ["CACHE_BYTES", "Draw", "Fit", "Pictures", "to_unit"]

CACHE_BYTES = 2**30
"""Pictures that take no more than this at their working size are decoded once and kept in memory."""

Fit = Literal["crop", "random-crop", "pad", "bucket"]

_Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_RANDOM_CROP_FROM = 286 / 256  # pix2pix and CycleGAN (Isola et al. 2017): crops of 256 pixels out of 286
_BUCKET_SHAPES = ((1, 2), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (2, 1))
_BUCKET_MULTIPLE = 8  # what the deepest encoder here, that of AdaIN, divides sides by


class Draw(NamedTuple):
    """The showing of a picture in an epoch: with the seed, all that its random changes depend on."""

    epoch: int
    picture: int


class Pictures(Dataset[Tensor]):
    """The pictures of a folder or .zip file, sub-folders included, in the order of their names.

    Run directories, hidden files, and files whose names don't end as a picture's, are ignored. The headers of all
    others are read at once, and whatever is no picture is reported and left out. A file that turns out to be damaged
    when its pixels are read, perhaps hours later, is reported and from then on replaced by the next readable one of its
    shape; which one that is depends on the files alone, so that a run can be repeated.

    Pictures are kept at their working size, in memory that worker processes share, if all of them fit in
    ``cache_bytes``; each process that trains has a cache of its own.

    Args:
        source: folder or .zip file.
        resolution: of the tensors, in pixels.
        fit: how a picture of another shape becomes one of ``resolution`` x ``resolution``. ``"crop"`` cuts the centre
            out; ``"random-crop"`` scales the shorter side to 286/256 of the resolution and cuts at random; ``"pad"``
            adds white, which is also what transparency shows (repeated edge pixels would be streaks to learn).
            ``"bucket"`` doesn't make it square: of seven shapes from 1:2 to 2:1, of about as many pixels and sides
            that are multiples of 8, it takes the one closest to the picture's, and cuts off the little that is left.
        mirror: show a picture mirrored with probability 1/2.
        seed: of mirroring and random crops.
        report: is told of every file that cannot be read, once, in a sentence; called in the main process only.
        cache_bytes: memory to keep pictures in; 0 decodes them each time.

    Attributes:
        names: of the pictures, relative to ``source``.
        buckets: indices of the pictures that are of one shape and can be stacked, most pictures first. There is one
            bucket unless ``fit`` is ``"bucket"``.

    Raises:
        UserError: ``source`` is missing, is neither a folder nor a .zip file, or has no readable picture in it.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        resolution: int,
        *,
        fit: Fit = "crop",
        mirror: bool = False,
        seed: int = 0,
        report: Callable[[str], None] = warnings.warn,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.resolution, self.fit, self.mirror, self.seed, self.report = resolution, fit, mirror, seed, report
        self._files = _Files(Path(source))
        self.names: list[str] = []
        self._sizes: list[tuple[int, int]] = []  # of the pictures while they are worked on: width, height
        for name in self._files.names(report):
            try:
                with images.opened(self._files[name]) as picture:
                    size = images.upright_size(picture)
            except UserError as error:
                report(str(error))
            else:
                self.names.append(name)
                self._sizes.append(_working_size(size, resolution, fit))
        if not self.names:
            raise UserError(f"{source}: no readable picture in it")
        self.buckets = self._group()
        self._broken = _shared_bytes(len(self))
        self._reported: set[int] = set()
        needed = sum(3 * width * height for width, height in self._sizes)
        self._cache = _Cache(self._sizes) if needed <= cache_bytes else None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, draw: Draw) -> Tensor:
        """The picture as it is shown in an epoch: uint8 [3, H, W]."""
        chance = random.Random(f"{self.seed} {draw.epoch} {draw.picture}")
        window = self._window(draw.picture, chance.random(), chance.random())
        mirrored = self.mirror and chance.random() < 0.5
        return _to_tensor(window[:, :, ::-1] if mirrored else window)

    def plain(self, index: int) -> Tensor:
        """A picture with nothing random about it, not mirrored and cut at its centre: uint8 [3, H, W]."""
        return _to_tensor(self._window(index, 0.5, 0.5))

    def report_broken(self) -> None:
        """Report the pictures that this process, or any worker process, found damaged since the last call."""
        for index in self._broken.nonzero()[0].tolist():
            if index not in self._reported:
                self._reported.add(index)
                self.report(f"{self._files[self.names[index]]}: damaged or unreadable, another picture takes its place")

    def _group(self) -> list[list[int]]:
        if self.fit != "bucket":
            return [list(range(len(self)))]
        buckets: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(self._sizes):
            buckets.setdefault(size, []).append(index)
        return sorted(buckets.values(), key=len, reverse=True)

    def _window(self, index: int, x: float, y: float) -> _Bytes:
        """What is seen of a picture, for x and y in [0, 1) from its left and top edge to its right and bottom edge."""
        picture = self._cache.get(index, self._read) if self._cache else self._read(index)
        if self.fit != "random-crop":
            return picture
        side = self.resolution
        top = int(y * (picture.shape[1] - side + 1))
        left = int(x * (picture.shape[2] - side + 1))
        return picture[:, top : top + side, left : left + side]

    def _read(self, index: int) -> _Bytes:
        """A picture, or what replaces it if it is broken, at the picture's working size."""
        for candidate in self._candidates(index):
            if self._broken[candidate]:
                continue
            try:
                return self._decode(candidate, self._sizes[index])
            except UserError:
                self._broken[candidate] = 1
                if get_worker_info() is None:
                    self.report_broken()
        raise UserError(f"{self._files.root}: no readable picture is left in it")

    def _candidates(self, index: int) -> Iterator[int]:
        """The picture, those of its shape that follow, then all others that follow."""
        for same_shape in (True, False):
            for other in itertools.chain(range(index, len(self)), range(index)):
                if (self._sizes[other] == self._sizes[index]) == same_shape:
                    yield other

    def _decode(self, index: int, size: tuple[int, int]) -> _Bytes:
        with images.opened(self._files[self.names[index]]) as picture:
            picture.draft(None, (2 * max(size),) * 2)  # a large JPEG is decoded at 1/2, 1/4 or 1/8: many times faster
            rgb = images.to_rgb(picture)
            if self.fit == "pad":
                rgb = ImageOps.pad(rgb, size, Image.Resampling.LANCZOS, color="white")
            else:
                rgb = ImageOps.fit(rgb, size, Image.Resampling.LANCZOS)
        return np.asarray(rgb).transpose(2, 0, 1)


def to_unit(batch: Tensor) -> Tensor:
    """Pictures as networks take them: uint8 to float32 in [0, 1], on the batch's device."""
    return batch.to(torch.float32).div_(255)


def _to_tensor(picture: _Bytes) -> Tensor:
    """A copy. NumPy makes it, because PyTorch's threads take longer to meet than one needs to copy a picture."""
    return torch.from_numpy(picture.copy())


def _working_size(size: tuple[int, int], resolution: int, fit: Fit) -> tuple[int, int]:
    """Width and height at which a picture of ``size`` is kept."""
    width, height = size
    if fit == "random-crop":
        shorter = round(resolution * _RANDOM_CROP_FROM)
        scale = shorter / min(size)
        return max(shorter, round(width * scale)), max(shorter, round(height * scale))
    if fit == "bucket":
        across, down = min(_BUCKET_SHAPES, key=lambda shape: abs(math.log(width / height * shape[1] / shape[0])))
        side = resolution / math.sqrt(across * down) / _BUCKET_MULTIPLE
        return max(1, round(across * side)) * _BUCKET_MULTIPLE, max(1, round(down * side)) * _BUCKET_MULTIPLE
    return resolution, resolution


class _Files:
    """The files of a folder or a .zip file, by their names in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Processes must not share an open archive: they would move each other's place in it.
        self._archives: dict[int, zipfile.Path] = {}
        try:
            self._is_folder = root.is_dir()
            if not self._is_folder:
                self._archive()
        except FileNotFoundError as error:
            raise UserError(f"{root}: no such folder or .zip file") from error
        except zipfile.BadZipFile as error:
            raise UserError(f"{root}: neither a folder nor a readable .zip file of pictures") from error
        except OSError as error:
            raise UserError(f"{root}: cannot be read ({error.strerror or error})") from error

    def __getitem__(self, name: str) -> Path | zipfile.Path:
        return self.root / name if self._is_folder else self._archive() / name

    def names(self, report: Callable[[str], None]) -> list[str]:
        """Those that may be pictures, sorted: the same for a folder and a .zip of it, on every file system."""
        endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
        names = map(PurePosixPath, self._folder_names(report) if self._is_folder else self._archive_names())
        return sorted(
            str(name)
            for name in names
            if name.suffix.lower() in endings and not any(part.startswith(".") for part in name.parts)
        )

    def _folder_names(self, report: Callable[[str], None]) -> Iterator[str]:
        def unreadable(error: OSError) -> None:
            report(f"{error.filename}: cannot be read ({error.strerror})")

        seen = set()  # links may lead back
        for folder, folders, files in os.walk(self.root, onerror=unreadable, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen or (folder != str(self.root) and {OPTIONS, STATE} <= {*files}):  # the sheets of a run
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(folder, file).relative_to(self.root).as_posix() for file in files)

    def _archive_names(self) -> Iterator[str]:
        return (name for name in self._archive().root.namelist() if not name.endswith("/"))

    def _archive(self) -> zipfile.Path:
        process = os.getpid()
        if process not in self._archives:
            self._archives[process] = zipfile.Path(self.root)
        return self._archives[process]


class _Cache:
    """Room for pictures of known sizes in memory that forked processes share.

    Two processes may fill a place at once; both write the same.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self._sizes = sizes
        self._starts = [0, *itertools.accumulate(3 * width * height for width, height in sizes)]
        self._pixels = _shared_bytes(self._starts[-1])
        self._filled = _shared_bytes(len(sizes))

    def get(self, index: int, read: Callable[[int], _Bytes]) -> _Bytes:
        """The picture, [3, H, W], in place: not to be written to. ``read`` is asked for it the first time."""
        width, height = self._sizes[index]
        picture = self._pixels[self._starts[index] : self._starts[index + 1]].reshape(3, height, width)
        if not self._filled[index]:
            picture[...] = read(index)
            self._filled[index] = 1
        return picture


def _shared_bytes(count: int) -> _Bytes:
    """Zeros, [count], shared with the processes that this one will fork.

    Not ``Tensor.share_memory_``: that takes /dev/shm, of which a container often has 64 MiB, and going beyond kills.
    """
    return np.frombuffer(mmap.mmap(-1, count), dtype=np.uint8)
