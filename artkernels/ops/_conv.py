"""What the convolutions share: refusals, shapes for the fake kernels, and the normalisation that may follow."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._common import is_channels_last
from .feature_statistics import empty_statistics
from .norm_act import Activation, norm_act, require_several, running_statistics, update_running

Pair = int | tuple[int, int]
Normalization = Literal["batch", "instance"]
# (bias, scale, activation, statistics) -> (output, mean, var): a convolution op, its other arguments bound.
Convolve = Callable[[Tensor | None, Tensor | None, str, str], tuple[Tensor, Tensor, Tensor]]


class NormAct(NamedTuple):
    """What follows a convolution: the arguments of batch_norm_act and instance_norm_act."""

    norm: Normalization
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    training: bool
    momentum: float
    eps: float
    activation: Activation
    negative_slope: float
    residual: Tensor | None
    residual_after: bool


def pair(value: Pair) -> tuple[int, int]:
    """Of rows and of columns."""
    return value if isinstance(value, (tuple, list)) else (value, value)


def output_channels(op: str, input: Tensor, weight: Tensor, groups: int, transposed: bool) -> int:
    """K; csrc/ops/conv_common.cpp refuses in the same words what does not fit."""
    if input.dim() != 4:
        raise RuntimeError(f"{op}: input must be [N, C, H, W], got {input.dim()} dimensions")
    if weight.dim() != 4:
        shape = "[C, K / groups, H, W]" if transposed else "[K, C / groups, H, W]"
        raise RuntimeError(f"{op}: weight must be {shape}, got {weight.dim()} dimensions")
    outer, inner = weight.shape[0], weight.shape[1] * groups
    C, K = (outer, inner) if transposed else (inner, outer)
    if input.shape[1] != C:
        raise RuntimeError(f"{op}: weight has {C} input channels, input has {input.shape[1]}")
    return K


def convolve_norm_act(
    op: str, convolve: Convolve, input: Tensor, weight: Tensor, bias: Tensor | None, follow: NormAct
) -> Tensor:
    """norm(convolve) + residual and activation, in as few passes over the output as there can be.

    In training the convolution gathers the statistics as it writes. In evaluation the normalisation is an affine map
    that it applies as it writes, unless a derivative is wanted (the affine map has none) or a residual is added.
    """
    if follow.norm not in ("batch", "instance"):
        raise ValueError(f"{op}: norm must be batch or instance, got {follow.norm}")
    if not follow.training:
        mean, var = running_statistics(op, "training=False", follow.running_mean, follow.running_var)
        if follow.residual is None and not _needs_gradient(input, weight, bias, mean, var, follow.weight, follow.bias):
            scale, shift = _fold(input, bias, mean, var, follow)
            return convolve(shift, scale, follow.activation, "none")[0]
        z, _, _ = convolve(bias, None, "none", "none")
        return _norm_act(z, (mean, var), across_batch=True, of_input=False, follow=follow)
    z, mean, var = convolve(bias, None, "none", follow.norm)
    of_batch = follow.norm == "batch"
    pixels = z.shape[2] * z.shape[3]
    n = z.shape[0] * pixels if of_batch else pixels
    require_several(op, "value per channel" if of_batch else "spatial element", n, z)
    output = _norm_act(z, (mean, var), across_batch=of_batch, of_input=True, follow=follow)
    if follow.running_mean is not None or follow.running_var is not None:
        mean, var = (mean, var) if of_batch else (mean.mean(0), var.mean(0))
        update_running(follow.running_mean, follow.running_var, mean, var, n, follow.momentum)
    return output


def _norm_act(
    z: Tensor, statistics: tuple[Tensor, Tensor], *, across_batch: bool, of_input: bool, follow: NormAct
) -> Tensor:
    arguments = (z.shape[1], across_batch, follow.eps, 1.0, 0.0, follow.activation, follow.negative_slope)
    affine, residual = (follow.weight, follow.bias), (follow.residual, follow.residual_after)
    return norm_act(z, *affine, *residual, statistics, arguments, statistics_of_input=of_input)[0]


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _fold(input: Tensor, bias: Tensor | None, mean: Tensor, var: Tensor, follow: NormAct) -> tuple[Tensor, Tensor]:
    """(scale, shift): weight (z + bias - mean) / sqrt(var + eps) + norm bias = scale z + shift."""
    dtype = torch.promote_types(input.dtype, torch.float32)
    scale = (var.to(dtype) + follow.eps).rsqrt()
    if follow.weight is not None:
        scale = scale * follow.weight
    centre = mean.to(dtype) if bias is None else mean.to(dtype) - bias
    return scale, -scale * centre if follow.bias is None else torch.addcmul(
        follow.bias.to(dtype), scale, centre, value=-1
    )


# ---- for the fake kernels --------------------------------------------------------------------------------------------


def empty_result(
    input: Tensor, weight: Tensor, K: int, size: list[int], statistics: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, mean, var): channels_last where the input or the weight is; statistics empty where none are wanted."""
    shape = (K, statistics == "batch") if statistics != "none" else (0, True)
    output = empty_map(input, (input.shape[0], K, *size), is_channels_last(input) or is_channels_last(weight))
    return output, empty_statistics(input, *shape), empty_statistics(input, *shape)


def empty_map(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """Of the strides that csrc/ops/conv_common.cpp gives."""
    if not channels_last:
        return like.new_empty(shape)
    N, C, H, W = shape
    return like.new_empty((N, H, W, C)).movedim(-1, 1)
