"""artkernels sample: pictures, sheets and videos from trained networks."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

import artkernels
from artkernels import files, images
from artkernels.checkpoints import load
from artkernels.cli.device import torch_device
from artkernels.errors import UserError
from artkernels.sampling import Sampler, check_video, seed_code, sheet, sheet_size, walk, write_video
from artkernels.training.runs import latest_snapshots

__all__ = ["sample"]

_SEEDS = "0-15"
_OUTDIR = Path("out")
_FRAMES = 60
_SHEET = "grid.png"
_LARGEST_SHEET = 10**8  # pixels, 1.2 GB until they are saved


def sample(
    network: Annotated[
        Path, typer.Argument(metavar="RUN|CHECKPOINT", help="A training run, or a file of a DCGAN generator or a VAE.")
    ],
    photos: Annotated[list[Path] | None, typer.Argument(metavar="PHOTO", help="For --reconstruct.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One picture each, or a walk's stops, as 0-35,40,41.", show_default=_SEEDS)
    ] = None,
    trunc: Annotated[
        float, typer.Option(help="Truncation psi, which codes are multiplied by: below 1 is closer to the average.")
    ] = 1.0,
    grid: Annotated[bool, typer.Option("--grid", help=f"Make one sheet of all pictures, OUTDIR/{_SHEET}.")] = False,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Walk from each stop to the next, and from the last to the first.")
    ] = False,
    frames: Annotated[
        int | None, typer.Option(help="Pictures from one stop of the walk to the next.", show_default=str(_FRAMES))
    ] = None,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE.mp4", help="Make a video of the walk, 30 pictures a second.")
    ] = None,
    reconstruct: Annotated[
        bool, typer.Option("--reconstruct", help="Encode and decode the photographs that follow; needs a VAE.")
    ] = False,
    outdir: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; made if it is not there.", show_default=str(_OUTDIR))
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one it can use")
    ] = None,
) -> None:
    """Make pictures with a trained network: of seeds, of given photographs, or a walk between them.

    A seed gives the same picture whatever other seeds are asked for. Without --grid and --video every picture is a file
    of its own in OUTDIR: seed0000.png, PHOTO-reconstructed.png, or frame00000.png.
    """
    photos = photos or []
    _check_options(seeds, trunc, grid, interpolate, frames, video, reconstruct, photos)
    if video and outdir is not None:
        raise UserError(f"--outdir is for pictures, the video is {video}")
    outdir = outdir or _OUTDIR
    file = _file(network)
    sampler = _sampler(file, torch_device(device))
    made_with = {"artkernels": artkernels.__version__, "network": "/".join(file.resolve().parts[-2:]), "trunc": trunc}
    job = _of_photos(photos, sampler) if reconstruct else _of_seeds(_SEEDS if seeds is None else seeds, sampler)
    if interpolate:
        job = _walk(job, _FRAMES if frames is None else frames)

    if video:
        check_video(video)
    else:
        if grid:
            _check_sheet(job, sampler.size)
        _open_folder(outdir, [_SHEET] if grid else (name for name, _ in job.files()), photos)
    decoded = sampler.decode(trunc * code for code in job.codes)
    with tqdm(decoded, total=job.count, unit="picture", disable=None) as pictures:
        if video:
            write_video(video, pictures)
        elif grid:
            whole = sheet(job.arranged(pictures), job.places, job.columns, sampler.size)
            images.save(whole, outdir / _SHEET, {**made_with, **job.settings})
        else:
            for (name, settings), picture in zip(job.files(), pictures, strict=True):
                images.save(picture, outdir / name, {**made_with, **settings})
    print(video or (outdir / _SHEET if grid else outdir))


@dataclass
class _Job:
    """What is to be made.

    Attributes:
        count: of pictures.
        codes: of the pictures, read once.
        files: the names of their files, and what is kept in each about how it was made.
        settings: what is kept in a sheet of them all.
        columns: of that sheet.
        originals: reads the photographs that stand beside the pictures on a sheet.
    """

    count: int
    codes: Iterator[Tensor]
    files: Callable[[], Iterator[tuple[str, dict[str, Any]]]]
    settings: dict[str, Any]
    columns: int
    originals: Callable[[], Iterator[Tensor]] | None = None

    @property
    def places(self) -> int:
        """Of the sheet."""
        return 2 * self.count if self.originals else self.count

    def arranged(self, pictures: Iterable[Tensor]) -> Iterable[Tensor]:
        """``pictures`` as the sheet has them, each after its original."""
        return chain.from_iterable(zip(self.originals(), pictures, strict=True)) if self.originals else pictures


def _of_seeds(text: str, sampler: Sampler) -> _Job:
    ranges = _parse_seeds(text)
    count = sum(map(len, ranges))
    return _Job(
        count,
        (seed_code(seed, sampler.length) for seed in chain(*ranges)),
        lambda: ((f"seed{seed:04d}.png", {"seed": seed}) for seed in chain(*ranges)),
        {"seeds": text},
        columns=round(math.sqrt(count)),
    )


def _of_photos(photos: list[Path], sampler: Sampler) -> _Job:
    def originals() -> Iterator[Tensor]:
        return (_photo(path, sampler.size, sampler.channels) for path in photos)

    try:
        codes = sampler.encode(originals())
    except ValueError as error:
        raise UserError(f"--reconstruct: {error}") from error
    return _Job(
        len(photos),
        iter(list(codes)),  # all of them, so that a damaged photograph is found before anything is made
        lambda: ((f"{photo.stem}-reconstructed.png", {"photo": photo.name}) for photo in photos),
        {"photos": [photo.name for photo in photos]},
        columns=2 * max(1, round(math.sqrt(len(photos) / 2))),
        originals=originals,
    )


def _walk(stops: _Job, frames: int) -> _Job:
    if stops.count < 2:
        raise UserError(f"--interpolate needs two stops at least, got {stops.count}")
    settings = {**stops.settings, "frames": frames}
    count = stops.count * frames
    return _Job(
        count,
        walk(stops.codes, frames),
        lambda: ((f"frame{frame:05d}.png", {**settings, "frame": frame}) for frame in range(count)),
        settings,
        columns=frames,
    )


def _parse_seeds(text: str) -> list[range]:
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 2**32)
        if last >= 2**32:
            raise UserError(f"--seeds must be numbers below 2**32 and ranges of them, as 0-35,40,41, got {text!r}")
        if last < first:
            raise UserError(f"--seeds must be ranges from a lower to a higher number, got {part.strip()}")
        ranges.append(range(first, last + 1))
    return ranges


def _file(network: Path) -> Path:
    """The checkpoint itself, or the last one of a run."""
    if not network.is_dir():
        return network
    snapshots = latest_snapshots(network)
    if len(snapshots) > 1:
        names = ", ".join(path.name for path in snapshots.values())
        raise UserError(f"{network}: a run of several networks ({names}), none of which makes pictures of noise")
    return next(iter(snapshots.values()))


def _sampler(file: Path, device: torch.device) -> Sampler:
    network = load(file)
    try:
        return Sampler(artkernels.fuse(network, inplace=True).to(device))
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error


def _photo(path: Path, size: int, channels: int) -> Tensor:
    """A photograph as training shows one to the network, its centre cut out: [channels, size, size]."""
    with images.opened(path) as picture:
        fitted = ImageOps.fit(images.to_rgb(picture), (size, size), Image.Resampling.LANCZOS)
        pixels = np.array(fitted.convert("RGB" if channels == 3 else "L"), dtype=np.float32) / np.float32(255)
    return torch.from_numpy(pixels).view(size, size, channels).permute(2, 0, 1)


def _check_options(
    seeds: str | None,
    trunc: float,
    grid: bool,
    interpolate: bool,
    frames: int | None,
    video: Path | None,
    reconstruct: bool,
    photos: list[Path],
) -> None:
    if photos and not reconstruct:
        raise UserError(f"one network is needed, and {photos[0]} beside it only with --reconstruct")
    if reconstruct and not photos:
        raise UserError("--reconstruct needs photographs, after the network")
    if reconstruct and seeds is not None:
        raise UserError("--reconstruct takes its codes from photographs, --seeds cannot be given with it")
    if not interpolate and (video or frames is not None):
        raise UserError(f"{'--video' if video else '--frames'} is of a walk, it needs --interpolate")
    if video and grid:
        raise UserError("--video and --grid cannot both be made at once, choose one")
    if frames is not None and frames < 1:
        raise UserError(f"--frames must be at least 1, got {frames}")
    if not math.isfinite(trunc):
        raise UserError(f"--trunc must be a finite number, got {trunc}")


def _check_sheet(job: _Job, side: int) -> None:
    height, width = sheet_size(job.places, job.columns, side)
    if height * width > _LARGEST_SHEET:
        raise UserError(
            f"a sheet of {job.places} pictures has {width} x {height} pixels, "
            f"more than {_LARGEST_SHEET // 10**6} million: leave out --grid or choose fewer"
        )


def _open_folder(outdir: Path, names: Iterable[str], photos: list[Path]) -> None:
    """Make the folder, if files of these names can and may be written to it."""
    iterator = iter(names)
    first = next(iterator)
    if photos:  # names that are not of seeds, and may be those of files that are still needed
        made: set[Path] = set()
        for name in chain([first], iterator):
            path = (outdir / name).resolve()
            if path in made:
                raise UserError(f"{outdir / name}: two pictures would be saved under this name")
            if any(path == photo.resolve() for photo in photos):
                raise UserError(f"{outdir / name}: a photograph that is reconstructed would be overwritten")
            made.add(path)
    try:
        outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{outdir}: cannot be written ({error.strerror or error})") from error
    files.check_writable(outdir / first)
