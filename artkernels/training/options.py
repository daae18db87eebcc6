"""What can be chosen about a training run: a dataclass for each recipe, whose fields are the flags of the command line,
the keys of a configuration file, and the content of a run's options.json.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from artkernels.errors import UserError

__all__ = ["TrainingOptions", "from_plain", "option", "to_plain"]

T = TypeVar("T", bound="TrainingOptions")


def option(default: Any, help: str, *, least: float | None = None, above: float | None = None) -> Any:
    """A field of an options dataclass: its default, a sentence for ``--help``, and the least value that it may have."""
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "above": above})


@dataclass(kw_only=True)
class TrainingOptions:
    """What every recipe can be told. Recipes derive from it, add their own fields and change defaults.

    Raises:
        UserError: a value out of its range.
    """

    data: Path = option(None, "Folder or .zip of pictures to learn from.")
    outdir: Path = option(Path("runs"), "Folder in which the run gets a folder of its own.")
    steps: int = option(2000, "Training steps in all.", least=1)
    kimg: float | None = option(None, "Thousands of pictures to show in all, instead of --steps.", above=0)
    batch: int = option(64, "Pictures a step, in all processes together.", least=1)
    accumulate: int = option(
        1, "Parts that a batch is computed in, to save memory (dcgan, cyclegan: of discriminators only).", least=1
    )
    lr: float = option(2e-4, "Learning rate.", above=0)
    seed: int = option(0, "Of everything random: the same seed gives the same run.", least=0)
    snap: int = option(200, "Steps between saves: sample pictures, network snapshot, state.", least=1)
    tick: int = option(10, "Steps between lines of the log, which are means over them.", least=1)
    resolution: int = option(64, "Height and width of the pictures, in pixels.", least=8)
    fit: Literal["crop", "random-crop", "pad", "bucket"] = option(
        "crop", "How a picture gets its size: cut at the centre or at random, padded, or sorted by shape."
    )
    mirror: bool = option(False, "Show every second picture mirrored.")
    workers: int | None = option(
        None,
        "Processes that read pictures; 0 reads them in the training process. [default: 0 on a CPU, 4 on a GPU]",
        least=0,
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to train; auto is cuda if there is one it can use.")
    amp: Literal["no", "bf16", "fp16"] = option("no", "Mixed precision.")
    kernels: Literal["fused", "stock"] = option("fused", "Fused operations, or stock PyTorch to compare with.")
    ema: float = option(0.999, "Decay of the averaged weights that samples are made with; 0 takes the last.", least=0)
    init: Path | None = option(
        None, "Checkpoint or run to start from (fine-tuning), whose shape it takes; --resume continues a run."
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_range(field, getattr(self, field.name))
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, got {self.seed}")
        if self.ema >= 1:
            raise UserError(f"ema must be below 1, got {self.ema}")
        if self.batch % self.accumulate:
            raise UserError(f"batch must be a multiple of accumulate, got {self.batch} and {self.accumulate}")
        if self.kimg is not None:
            self.steps, self.kimg = math.ceil(self.kimg * 1000 / self.batch), None


def _check_range(field: "dataclasses.Field[Any]", value: Any) -> None:
    least, above = field.metadata.get("least"), field.metadata.get("above")
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{field.name} must be a finite number, got {value}")
    if least is not None and not value >= least:
        raise UserError(f"{field.name} must be at least {least}, got {value}")
    if above is not None and not value > above:
        raise UserError(f"{field.name} must be more than {above}, got {value}")
    choices = typing.get_args(field.type) if typing.get_origin(field.type) is Literal else ()
    if choices and value not in choices:
        raise UserError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}")


def to_plain(options: TrainingOptions) -> dict[str, Any]:
    """The options as JSON and YAML can hold them, paths absolute: a run may be continued from another folder."""
    return {name: _plain(value) for name, value in dataclasses.asdict(options).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def from_plain(kind: type[T], values: dict[str, Any]) -> T:
    """The options of ``kind`` that :func:`to_plain`, or a configuration file, gave ``values``; others are defaults.

    Raises:
        UserError: a name that ``kind`` does not have, or a value out of its range or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [name for name in values if name not in fields]:
        raise UserError(f"unknown option {unknown[0]!r}; there are {', '.join(fields)}")
    return kind(**{name: _typed(name, fields[name].type, value) for name, value in values.items()})


def _typed(name: str, kind: Any, value: Any) -> Any:
    """``value`` as the annotation ``kind`` wants it: numbers and paths may come as text, an integer as a float."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(choice for choice in typing.get_args(kind) if choice is not type(None))
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "no" if value is False and "no" in typing.get_args(kind) else value  # YAML's no
    if origin in (list, tuple):
        return origin(_typed(name, typing.get_args(kind)[0], item) for item in value)
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}")
    try:
        if kind is int and (isinstance(value, bool) or int(value) != float(value)):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} must be {_NAMES.get(kind, kind.__name__)}, got {value!r}") from error


_NAMES = {int: "a whole number", float: "a number", Path: "a path"}
