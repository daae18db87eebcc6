"""artkernels export: networks as ONNX files."""

import re
from pathlib import Path
from typing import Annotated

import typer

from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.export import check_writable, example_for, export_onnx

__all__ = ["export"]


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
