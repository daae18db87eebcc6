"""artkernels train RECIPE: from a folder of pictures to networks that make such pictures."""

import dataclasses
import inspect
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from tqdm import tqdm

from artkernels.errors import UserError
from artkernels.recipes import RECIPES, build
from artkernels.training.options import TrainingOptions, from_plain, to_plain
from artkernels.training.runs import read_options

__all__ = ["train"]

train = typer.Typer(help="Train networks on a folder of pictures.", no_args_is_help=True)


def _train(recipe: str, context: typer.Context, *, resume: Path | None, config: Path | None, dry_run: bool) -> None:
    kind = RECIPES[recipe].options_type
    given = _given(context, kind)
    for name in ("init", "outdir"):
        if resume and name in given:
            raise UserError(f"--{name} is for a run that begins, --resume continues one")
    if {"steps", "kimg"} <= given.keys():
        raise UserError("--steps and --kimg both say how long to train: give one")
    values = {**_of_run(resume, recipe), **_of_file(config)}
    if "steps" in given:
        values.pop("kimg", None)
    values |= given
    options = from_plain(kind, values)
    if options.data is None:
        raise UserError("--data is needed: a folder or .zip of pictures")
    if dry_run:
        print(json.dumps(to_plain(options), indent=2))
        return
    try:
        from artkernels.training.trainer import Trainer  # accelerate and TensorBoard take seconds to import
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("artkernels"):
            raise
        raise UserError(f'training needs {error.name}: pip install "artkernels[train]"') from error

    with _logging_to_screen():
        trainer = Trainer(build(recipe, options), resume)
        trainer.train()
    if trainer.stopped:
        raise typer.Exit(128 + trainer.stopped)


@contextmanager
def _logging_to_screen() -> Iterator[None]:
    handler = _Screen()
    logger = logging.getLogger("artkernels")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Screen(logging.Handler):
    """Prints above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(record.getMessage(), file=sys.stderr)


def _of_run(run: Path | None, recipe: str) -> dict[str, Any]:
    if run is None:
        return {}
    content = read_options(run)
    if content["recipe"] != recipe:
        raise UserError(f"{run}: a run of {content['recipe']}, not of {recipe}")
    # The state has the weights, and the checkpoint that they began with may be gone.
    return {**content["options"], "init": None}


def _of_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        values = yaml.safe_load(config.read_text())  # JSON is YAML, too
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{config}: cannot be read") from error
    except yaml.YAMLError as error:
        raise UserError(f"{config}: neither YAML nor JSON") from error
    if not isinstance(values, dict):
        raise UserError(f"{config}: must hold options by their names")
    if values.keys() == {"recipe", "version", "options"}:  # a run's options.json
        values = values["options"]
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def _given(context: typer.Context, kind: type[TrainingOptions]) -> dict[str, Any]:
    """The flags on the command line, as opposed to defaults."""
    names = [field.name for field in dataclasses.fields(kind)]
    return {
        name: context.params[name]
        for name in names
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }


def _command(recipe: str) -> Callable[..., None]:
    """A function with a keyword for every field of the recipe's options, for typer to make flags of."""

    def command(context: typer.Context, **flags: Any) -> None:
        _train(recipe, context, resume=flags["resume"], config=flags["config"], dry_run=flags["dry_run"])

    def parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(
            parameter(field.name, _flag(field), field.default)
            for field in dataclasses.fields(RECIPES[recipe].options_type)
        ),
        parameter(
            "resume",
            Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run, with its options.")],
            None,
        ),
        parameter(
            "config", Annotated[Path | None, typer.Option(help="YAML or JSON file of options; flags win.")], None
        ),
        parameter(
            "dry_run", Annotated[bool, typer.Option("--dry-run", "-n", help="Print the options and leave.")], False
        ),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = RECIPES[recipe].summary
    return command


def _flag(field: "dataclasses.Field[Any]") -> Any:
    optional = Path | None if field.type is Path else field.type
    return Annotated[optional, typer.Option(help=field.metadata["help"])]


for _name in RECIPES:
    train.command(_name)(_command(_name))
