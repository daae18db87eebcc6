"""artkernels data: pictures to train on, drawn here."""

from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from artkernels.drawing import SIZES, STYLES, draw_set
from artkernels.errors import UserError

__all__ = ["data"]

data = typer.Typer(help="Make pictures to train on.", no_args_is_help=True)


@data.callback()
def _data() -> None: ...  # else typer makes the only command of a group the group itself


@data.command()
def draw(
    style: Annotated[str, typer.Argument(metavar="|".join(STYLES), help="What to draw.")],
    output: Annotated[
        Path | None, typer.Option(help="The folder for the pictures.", show_default="a folder STYLE here")
    ] = None,
    count: Annotated[int, typer.Option(help="How many pictures.")] = 2000,
    size: Annotated[int, typer.Option(help=f"Height and width in pixels, {SIZES[0]} to {SIZES[-1]}.")] = 64,
    seed: Annotated[int, typer.Option(help="Another seed draws other pictures of the style.")] = 0,
) -> None:
    """Draw generative art: any number of pictures in one style, the same ones every time."""
    if style not in STYLES:
        raise UserError(f"{style}: no such style, one of {', '.join(STYLES)} is needed")
    folder = output or Path(style)
    with tqdm(total=count, desc=style, unit="picture", disable=None) as bar:
        draw_set(style, folder, count, seed=seed, size=size, on_picture=bar.update)
    print(folder)
