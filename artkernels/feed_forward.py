"""Trained networks that paint photographs in one pass: those of fast style, AdaIN and CycleGAN."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.images import scaled
from artkernels.models import AdaINDecoder, ResnetGenerator, TransformerNet
from artkernels.recipes.style_transfer import memory_available
from artkernels.training.runs import METADATA_KEY, latest_snapshots

__all__ = ["Trained", "check", "load_trained", "paint"]

_METHODS = {"fast-style": TransformerNet, "adain": AdaINDecoder, "cyclegan": ResnetGenerator}
_MULTIPLE = 4  # of sides; others the networks would round up
_SMALLEST_SIDE = 16  # the deepest maps are then of 2 x 2 pixels, the least that a reflection takes
_BYTES_PER_PIXEL = 1200  # a little above the measured peak of the most demanding of them, AdaIN: 1060


class Trained(NamedTuple):
    """A network that paints photographs.

    Attributes:
        method: ``"fast-style"``, ``"adain"`` or ``"cyclegan"``.
        network: a TransformerNet, an AdaINDecoder or a ResnetGenerator, in evaluation mode, on the CPU.
        file: that it was read from.
        options: of the recipe that trained it; empty where the file does not say.
    """

    method: str
    network: nn.Module
    file: Path
    options: dict[str, Any]


def load_trained(model: Path, entry: str | None = None) -> Trained:
    """Load a network that paints photographs.

    Args:
        model: a checkpoint that :func:`artkernels.load` knows, or a run directory, whose last snapshot is taken.
        entry: which network of several. A run of CycleGAN has ``"netG_A2B"``, the default, and ``"netG_B2A"``.

    Raises:
        UserError: there is no such network, or it makes no RGB picture of one.
    """
    if model.is_dir():
        file = _snapshot(model, entry)
        network = load(file)
    else:
        file = model
        network = load(file, entry=entry)
    for method, kind in _METHODS.items():
        if isinstance(network, kind) and _is_rgb(network):
            return Trained(method, network, file, _options(file))
    raise UserError(
        f"{file}: this {type(network).__name__} paints no photographs, needed is a TransformerNet, an AdaINDecoder "
        "or a ResnetGenerator of RGB pictures"
    )


def _snapshot(run: Path, entry: str | None) -> Path:
    snapshots = latest_snapshots(run)
    name = entry or ("" if "" in snapshots else "netG_A2B")
    if name not in snapshots:
        raise UserError(f"{run}: has no network {name!r}, only {', '.join(map(repr, sorted(snapshots)))}")
    return snapshots[name]


def _is_rgb(network: nn.Module) -> bool:
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    takes = 512 if isinstance(network, AdaINDecoder) else 3
    return convolutions[0].in_channels == takes and convolutions[-1].out_channels == 3


def _options(file: Path) -> dict[str, Any]:
    if file.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        metadata = content.metadata() or {}
    try:
        return dict(json.loads(metadata[METADATA_KEY])["options"])
    except (KeyError, TypeError, ValueError):
        return {}  # not of a training run


def check(picture: Tensor, size: int, device: torch.device, what: str = "photograph") -> None:
    """Raise a UserError if ``picture`` [1, 3, H, W], its longer side ``size``, is too thin or too large to paint."""
    height, width = scaled(picture, size)
    needed, available = height * width * _BYTES_PER_PIXEL, memory_available(device)
    if available is not None and needed > available:
        raise UserError(
            f"{width}x{height} pixels would need about {needed / 2**30:.1f} GiB of memory and "
            f"{available / 2**30:.1f} GiB are available: choose a smaller size"
        )
    if min(height, width) < _SMALLEST_SIDE:
        raise UserError(
            f"the {what} would be {width}x{height} pixels, and its shorter side must be at least {_SMALLEST_SIDE}: "
            "choose a larger size"
        )


@torch.inference_mode()
def paint(network: nn.Module, photo: Tensor) -> Tensor:
    """Paint ``photo`` with a TransformerNet or a ResnetGenerator. AdaIN has
    :func:`~artkernels.recipes.adain.adain_stylize`.

    Args:
        network: fused or not, in evaluation mode, on the device that does the work.
        photo: [N, 3, H, W], RGB in [0, 1], on any device, H and W at least 16.

    Returns:
        [N, 3, H, W] on the CPU, in [0, 1].
    """
    height, width = photo.shape[-2:]
    pictures = TF.pad(photo, (0, -width % _MULTIPLE, 0, -height % _MULTIPLE), mode="reflect")
    pictures = pictures.to(next(network.parameters()).device)
    if isinstance(network, TransformerNet):
        painted: Tensor = network(255 * pictures) / 255
    else:
        painted = (network(2 * pictures - 1) + 1) / 2
    return painted[..., :height, :width].float().cpu().clamp(0, 1)
