"""The command line's verbs, a file each. What they do is elsewhere; here is what is asked, said and refused."""

import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

import artkernels
from artkernels import doctor as health
from artkernels.errors import UserError

from .bench import bench
from .data import data
from .export import export
from .sample import sample
from .stylize import stylize
from .train import train

__all__ = ["app", "run"]

_NO_MEMORY = "there is not enough memory for this: choose a smaller size or batch"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a mistake of the caller's is one sentence on stderr and a 2."""
    try:
        return app(arguments, prog_name="artkernels", standalone_mode=False) or 0
    except UserError as error:
        message = str(error)
    except (MemoryError, torch.OutOfMemoryError):
        message = _NO_MEMORY
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # PyTorch has no type for it on the CPU
            raise
        message = _NO_MEMORY
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


for verb in (bench, export, sample, stylize):
    app.command()(verb)
app.add_typer(data, name="data")
app.add_typer(train, name="train")
