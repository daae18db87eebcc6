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
from artkernels.pooled_allocator import release_pooled_memory
from artkernels.recipes.style_memory import memory_in_use
from artkernels.recipes.style_transfer import TileSide, memory_available
from artkernels.tiling import Affine, OnProgress, Photograph, Plan, Tiling, feature_map, pixels_of, progress_of, run
from artkernels.training.runs import METADATA_KEY, latest_snapshots

__all__ = ["MULTIPLE", "Trained", "check", "load_trained", "padded", "paint", "plan_of", "ranges_of", "tiling"]

_METHODS = {"fast-style": TransformerNet, "adain": AdaINDecoder, "cyclegan": ResnetGenerator}
_RANGES = {TransformerNet: (Affine(255), Affine(1 / 255)), ResnetGenerator: (Affine(2, -1), Affine(0.5, 0.5))}
MULTIPLE = 4
"""Of pictures' sides: others the networks would round up. It is the number of pixels in a row to one deep feature."""
_SMALLEST_SIDE = 16  # the deepest maps are then of 2 x 2 pixels, the least that a reflection takes
_BYTES_PER_PIXEL = 1200  # a little above the measured peak of the most demanding of them, AdaIN: 1060
_BYTES_PER_PIXEL_OF_RESULT = 12
_RESERVE = 2**27  # for what libraries allocate when they are first used
_SHARE_OF_AVAILABLE = 0.75  # of the memory that nobody has, for a picture that is painted in bands


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


def check(
    picture: Tensor,
    size: int,
    device: torch.device,
    what: str = "photograph",
    *,
    tile: TileSide = None,
    max_memory: int | None = None,
) -> None:
    """Raise a UserError if ``picture`` [1, 3, H, W], its longer side ``size``, is too thin or too large to paint.

    Args:
        picture: before it is scaled.
        size: in pixels.
        device: that the work is to be done on.
        what: the picture is, for the message.
        tile: as in :func:`tiling`.
        max_memory: likewise.
    """
    height, width = scaled(picture, size)
    if tile is None:
        needed, available = _memory_needed(height, width, max_memory, device)
        if available is not None and needed > available:
            raise UserError(
                f"{width}x{height} pixels would need about {needed / 2**30:.1f} GiB of memory and "
                f"{max(available, 0) / 2**30:.1f} GiB are available: choose a smaller size"
            )
    if min(height, width) < _SMALLEST_SIDE:
        raise UserError(
            f"the {what} would be {width}x{height} pixels, and its shorter side must be at least {_SMALLEST_SIDE}: "
            f"choose a larger size, or another {what}"
        )


def tiling(
    height: int, width: int, device: torch.device, tile: TileSide = "auto", max_memory: int | None = None
) -> Tiling | None:
    """How to paint a photograph, already in memory, of ``height`` x ``width`` pixels; None: all of it at once.

    Args:
        height, width: of the photograph.
        device: that the work is to be done on.
        tile: the height of the bands in pixels; "auto": in bands if it does not fit in memory otherwise; None: at once.
        max_memory: bytes of memory that the process may have in all. None: what the machine has.
    """
    if tile is None:
        return None
    needed, available = _memory_needed(height, width, max_memory, device)
    if tile == "auto" and (available is None or needed <= available):
        return None
    if max_memory is None and available is not None:
        available = int(_SHARE_OF_AVAILABLE * available)
    used = _RESERVE + height * width * _BYTES_PER_PIXEL_OF_RESULT
    return Tiling(0 if tile == "auto" else tile, None if available is None else max(0, available - used))


def _memory_needed(height: int, width: int, max_memory: int | None, device: torch.device) -> tuple[int, int | None]:
    """An estimate of what painting at once takes, and what there is."""
    release_pooled_memory()
    available = memory_available(device)
    if max_memory is not None:
        left = max_memory - memory_in_use(device)
        available = left if available is None else min(left, available)
    return height * width * _BYTES_PER_PIXEL, available


def ranges_of(network: nn.Module) -> tuple[Affine, Affine]:
    """What makes of RGB in [0, 1] the pixels that a network was trained on, and RGB in [0, 1] of those that it makes.

    Args:
        network: a TransformerNet or a ResnetGenerator, fused or not.
    """
    return next(ranges for kind, ranges in _RANGES.items() if isinstance(network, kind))


def padded(pictures: Tensor) -> Tensor:
    """[N, C, H, W] with H and W, at least 4, rounded up to multiples of :data:`MULTIPLE`, by reflection."""
    height, width = pictures.shape[-2:]
    return TF.pad(pictures, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="reflect")


def plan_of(network: nn.Module, photo: Tensor, tiling: Tiling) -> Plan:
    """How ``network`` paints ``photo`` [3, H, W] in bands.

    Raises:
        UserError: the memory is not enough for ``tiling``.
    """
    weight = next(network.parameters())
    given, _ = ranges_of(network)
    photograph = Photograph(photo, given, MULTIPLE, weight.device, weight.dtype)
    return Plan(feature_map(network, photograph), tiling, weight.device, weight.dtype)


@torch.inference_mode()
def paint(
    network: nn.Module, photo: Tensor, tiling: Tiling | None = None, on_progress: OnProgress | None = None
) -> Tensor:
    """Paint ``photo`` with a TransformerNet or a ResnetGenerator. AdaIN has
    :func:`~artkernels.recipes.adain.adain_stylize`.

    Args:
        network: fused or not, in evaluation mode, on the device that does the work.
        photo: [N, 3, H, W], RGB in [0, 1], on any device, H and W at least 16.
        tiling: paint in bands of rows, to float32's rounding the same picture; None: all at once.
        on_progress: told after each band which part of the work is done, above 0 and at last exactly 1.

    Returns:
        [N, 3, H, W] on the CPU, in [0, 1].

    Raises:
        UserError: the memory, or the disk for temporary files, is not enough for ``tiling``.
    """
    weight = next(network.parameters())
    given, made = ranges_of(network)
    height, width = photo.shape[-2:]
    if tiling is None:
        at_once: Tensor = made(network(given(padded(photo).to(weight.device, weight.dtype, copy=True))))
        painted = at_once[..., :height, :width].float().cpu()
        if on_progress is not None:
            on_progress(1.0)
        return painted.clamp(0, 1)
    plans = [plan_of(network, image, tiling) for image in photo]
    on_work = progress_of(plans, on_progress)
    painted = torch.empty(photo.shape)
    for plan, result in zip(plans, painted, strict=True):
        run(plan, pixels_of(result, made), on_work)
    return painted.clamp_(0, 1)
