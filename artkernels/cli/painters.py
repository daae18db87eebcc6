"""What artkernels stylize paints with: the optimisation of pixels, or a trained network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import artkernels
from artkernels import feed_forward, images
from artkernels.checkpoints import load_adain_encoder
from artkernels.errors import UserError
from artkernels.feed_forward import Trained
from artkernels.models import VGG19, AdaINDecoder, AdaINEncoder
from artkernels.recipes.adain import adain_stylize
from artkernels.recipes.style_transfer import Progress, Settings, TileSide, check, stylize

__all__ = ["Painter", "by_adain", "by_network", "by_optimisation"]


class Painter(NamedTuple):
    """One way to paint photographs.

    Attributes:
        settings: kept in the pictures that are made.
        check: raises the UserError that painting a photograph would raise.
        paint: makes a picture of a photograph; is told under which path, and with what settings, it will be saved.
    """

    settings: dict[str, Any]
    check: Callable[[Tensor], None]
    paint: Callable[[Tensor, Path, dict[str, Any]], Tensor]


def by_optimisation(
    network: VGG19,
    paintings: Sequence[Tensor],
    shares: Sequence[float] | None,
    settings: Settings,
    save_every: int | None,
    *,
    tile: TileSide = "auto",
    max_memory: int | None = None,
) -> Painter:
    """Gatys et al. 2016: pixels are trained, and saved on the way after every ``save_every`` steps.

    ``tile`` and ``max_memory`` are those of :func:`~artkernels.recipes.style_transfer.stylize`.
    """

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

    return Painter(
        {"style_shares": shares, **asdict(settings)},
        lambda picture: check(picture, paintings, network, settings, tile=tile, max_memory=max_memory),
        paint,
    )


def by_network(
    trained: Trained, size: int, device: torch.device, *, tile: TileSide = "auto", max_memory: int | None = None
) -> Painter:
    """A network that knows one style, or one other kind of pictures.

    ``tile`` and ``max_memory`` are those of :func:`artkernels.feed_forward.tiling`.
    """
    network = artkernels.fuse(trained.network.to(device), inplace=True)

    def paint(picture: Tensor, path: Path, made_with: dict[str, Any]) -> Tensor:
        photo = images.resize(picture, size)
        height, width = photo.shape[-2:]
        return feed_forward.paint(network, photo, feed_forward.tiling(height, width, device, tile, max_memory))

    def check(picture: Tensor) -> None:
        feed_forward.check(picture, size, device, tile=tile, max_memory=max_memory)

    return Painter(_settings(trained, size), check, paint)


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
    encoder = artkernels.fuse(_encoder(trained, vgg).to(device), inplace=True)
    decoder = artkernels.fuse(trained.network.to(device), inplace=True)
    assert isinstance(decoder, AdaINDecoder)
    for painting in paintings:
        feed_forward.check(
            painting, max(painting.shape[-2:]), device, "style picture", tile=tile, max_memory=max_memory
        )

    def paint(picture: Tensor, path: Path, made_with: dict[str, Any]) -> Tensor:
        photo = images.resize(picture, size)
        height, width = max((photo, *paintings), key=Tensor.numel).shape[-2:]
        tiling = feed_forward.tiling(height, width, device, tile, max_memory)
        return adain_stylize(encoder, decoder, photo, paintings, shares, alpha, preserve_color, tiling)

    def check(picture: Tensor) -> None:
        feed_forward.check(picture, size, device, tile=tile, max_memory=max_memory)

    settings = {**_settings(trained, size), "style_shares": shares, "alpha": alpha, "preserve_color": preserve_color}
    return Painter(settings, check, paint)


def _settings(trained: Trained, size: int) -> dict[str, Any]:
    return {"model": trained.file.name, "size": size}


def _encoder(trained: Trained, vgg: Path | None) -> AdaINEncoder:
    if vgg is None and "vgg" not in trained.options:
        raise UserError(
            f"{trained.file}: does not say which encoder it was trained with, name it with --vgg: "
            "for the authors' own decoder vgg_normalised.pth"
        )
    path = vgg or trained.options["vgg"]
    if vgg is None and path is not None and not Path(path).is_file():
        raise UserError(f"{path}: the encoder that {trained.file} was trained with is not there, name it with --vgg")
    return load_adain_encoder(path)
