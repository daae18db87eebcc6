"""Models as ONNX files, written only after ONNX Runtime has computed from them what the models compute."""

import copy
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from artkernels import files, models
from artkernels.errors import UserError
from artkernels.fusion import unfuse

__all__ = ["TOLERANCE", "Example", "check_writable", "example_for", "export_onnx"]

TOLERANCE = 1e-4
"""By how much ONNX Runtime's outputs may differ from the model's, as a share of the largest value of each output."""

_BATCH = {0: "batch"}
_PICTURES = _BATCH | {2: "height", 3: "width"}
_LARGEST = 2**31 - 2**20  # bytes of weights: an ONNX file is one protobuf message, of less than 2 GiB in all


class Example(NamedTuple):
    """What :func:`export_onnx` needs to know of a network.

    Attributes:
        network: the part of it that is exported.
        input: float32, normally distributed.
        axes: the dimensions of the input that are free, and their names.
    """

    network: nn.Module
    input: Tensor
    axes: Mapping[int, str]


def example_for(model: nn.Module, *, batch: int | None = None, size: tuple[int, int] | None = None) -> Example:
    """The input of a network that `artkernels.load` returns: noise, pictures or features, as it takes them.

    Of an autoencoder, which draws random numbers on its way, it is the decoder's: codes [N, nz].

    Args:
        model: a network of :mod:`artkernels.models`, fused or not.
        batch: a fixed N; None leaves it free.
        size: a fixed height and width; None leaves them free where the network does.

    Raises:
        UserError: the network is of another kind, or takes one size only and another was given.
    """
    network, shape, axes = _input(model)
    if size is not None:
        if not axes.keys() >= {2, 3}:
            taken = ", ".join(map(str, ("N", *shape[1:])))
            raise UserError(f"no size can be chosen for a {type(model).__name__}: it takes [{taken}] only")
        shape, axes = (*shape[:2], *size), _BATCH
    if batch is not None:
        shape, axes = (batch, *shape[1:]), {axis: name for axis, name in axes.items() if axis != 0}
    if min(shape) < 1:
        raise UserError(f"batch and size must be at least 1, an input of {list(shape)} was asked for")
    peak = 255 if isinstance(model, models.TransformerNet) else 1
    return Example(network, peak * torch.randn(shape), axes)


def _input(model: nn.Module) -> tuple[nn.Module, tuple[int, ...], Mapping[int, str]]:
    """What of a network is exported, an input's shape, and which of its dimensions are free."""
    state = model.state_dict()
    match model:
        case models.DCGANGenerator():
            return model, (1, state["main.0.weight"].shape[0], 1, 1), _BATCH
        case models.KerasDCGANGenerator():
            return model, (1, state["project.0.weight"].shape[1]), _BATCH
        case models.ConvVAE():
            return model.decoder, (1, state["decoder.0.weight"].shape[1]), _BATCH
        case models.DCGANDiscriminator():
            size = 2 << sum(value.dim() == 4 for value in state.values())  # every convolution halves it, the last 4
            return model, (1, state["main.0.weight"].shape[1], size, size), _BATCH
        case models.ResnetGenerator():
            return model, (1, state["model.1.weight"].shape[1], 128, 128), _PICTURES
        case models.NLayerDiscriminator():
            return model, (1, state["model.0.weight"].shape[1], 128, 128), _PICTURES
        case models.TransformerNet() | models.AdaINEncoder():
            return model, (1, 3, 128, 128), _PICTURES
        case models.AdaINDecoder():
            return model, (1, 512, 16, 16), _PICTURES
    raise UserError(f"not a network of artkernels.models with one input: {type(model).__name__}")


def export_onnx(
    model: nn.Module, path: str | os.PathLike[str], example_input: Tensor, *, axes: Mapping[int, str] = _BATCH
) -> float:
    """Write a model's stock equivalent, ``unfuse(model)`` in evaluation mode, as an ONNX file.

    Before the file is put in its place, ONNX Runtime computes from it the outputs of ``example_input`` and, where
    dimensions are free, of a larger one; they must agree with the model's own to :data:`TOLERANCE`. The graph's input
    is called ``input``, its outputs ``output``, or ``output_0``, ``output_1`` ... if there are several.

    Args:
        model: of one input, without random numbers in evaluation; it is left as it is. A stock model that was fused
            is what is meant: those of :mod:`artkernels.nn` and :mod:`artkernels.functional` are not in ONNX.
        path: must end in .onnx, in a folder that exists. A file of that name is replaced, or kept if this fails.
        example_input: a typical input, float32; it gives the sizes of the dimensions that are not free.
        axes: the dimensions of the input that are free, and their names in the graph.

    Returns:
        the largest difference that was found, as a share of the largest value of its output.

    Raises:
        UserError: a package is missing, the file cannot be written, the model refuses one of the inputs, or ONNX
            Runtime computes something else.
        RuntimeError: torch.onnx cannot express the model.
        ValueError: ``example_input`` is not float32 or has no elements, or the weights exceed 2 GiB.
    """
    path = Path(path)
    _require_packages()
    check_writable(path)
    if example_input.dtype != torch.float32 or example_input.numel() == 0:
        given = f"{example_input.dtype} of {list(example_input.shape)}"
        raise ValueError(f"export_onnx: example_input must be float32 and not empty, got {given}")
    if (weights := sum(value.nbytes for value in model.state_dict().values())) > _LARGEST:
        raise ValueError(f"export_onnx: the model has {weights / 2**30:.1f} GiB of weights, an ONNX file holds 2 GiB")

    model = copy.deepcopy(model).cpu().eval()
    small = example_input.detach().cpu()
    large = _enlarge(small, axes)
    cases = [(input, _outputs(model, input)) for input in ([small, large] if axes else [small])]
    with files.whole_or_not_at_all(path) as temporary:
        # Traced with the larger one, in which no free dimension is 1: torch.export takes a 1 for a constant.
        _write(unfuse(model, inplace=True), large, axes, len(cases[0][1]), temporary)
        difference = max(_difference(temporary, input, outputs) for input, outputs in cases)
        if difference > TOLERANCE:
            raise UserError(
                f"{path}: not written, because ONNX Runtime's outputs are off the model's by {difference:.0e} of their "
                f"largest value, and {TOLERANCE:.0e} is accepted: does it draw random numbers, or return a NaN?"
            )
    return difference


def _require_packages() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(f'exporting needs {error.name}: pip install "artkernels[onnx]"') from error


def _enlarge(input: Tensor, axes: Mapping[int, str]) -> Tensor:
    """A little larger, and differently, in each of ``axes``, the values repeated."""
    for axis in axes:
        size = input.shape[axis]
        input = input.index_select(axis, torch.arange(size + 1 + axis) % size)
    return input


@torch.no_grad()
def _outputs(model: nn.Module, input: Tensor) -> list[Tensor]:
    try:
        return pytree.tree_leaves(model(input))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{type(model).__name__} refuses an input of {list(input.shape)}: {reason}") from error


def _write(stock: nn.Module, input: Tensor, axes: Mapping[int, str], outputs: int, file: Path) -> None:
    try:
        program = torch.onnx.export(
            stock,
            (input,),
            dynamo=True,
            dynamic_shapes=(dict(axes),),
            input_names=["input"],
            output_names=["output"] if outputs == 1 else [f"output_{index}" for index in range(outputs)],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        sentence = str(reason).strip().partition("\n")[0]
        raise RuntimeError(f"export_onnx: torch.onnx cannot express {type(stock).__name__}: {sentence}") from error
    assert program is not None  # it is, when no file is given
    program.save(file, external_data=False)


def _difference(file: Path, input: Tensor, expected: Sequence[Tensor]) -> float:
    """Between ONNX Runtime's outputs and ``expected``, as a share of each output's largest value; inf for a NaN."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    shares = [0.0]
    for values, wanted in zip(session.run(None, {"input": input.numpy()}), expected, strict=True):
        found = torch.from_numpy(values)
        if found.shape != wanted.shape:
            return math.inf
        if not torch.equal(found, wanted):
            share = ((found - wanted).abs().max() / wanted.abs().max()).item()
            shares.append(math.inf if math.isnan(share) else share)
    return max(shares)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise the UserError that :func:`export_onnx` would raise for ``path``, before any work is done."""
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{path}: the name of an ONNX file must end in .onnx")
    files.check_writable(path)
