"""Mean and variance of feature maps, as the normalisations of artkernels.functional take them."""

from typing import Any

import torch
from torch import Tensor

from ._common import channels, refuse_forward_mode

_ops = torch.ops.artkernels


def feature_statistics(
    input: Tensor, *, groups: int | None = None, across_batch: bool = False, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of each image, in one pass over the memory.

    Args:
        input: [N, C, ...], float32, float16, bfloat16 or float64, contiguous or channels_last.
        groups: number of groups of neighbouring channels that share a mean, as in group norm; None: every channel has
            its own.
        across_batch: one mean a channel for the whole batch, as in batch norm; takes groups=None.
        unbiased: divide the sum of squared distances by the number of elements less one.

    Returns:
        (mean, var): [N, C], or [N, groups], or [C] when across_batch; float32 (float64 for a float64 input), from
        centred squares, never from E[x^2] - E[x]^2. NaN where there is no element to average. Differentiable twice.
        What torch.var_mean(input.flatten(2), -1, correction=int(unbiased)) gives.

    Raises:
        RuntimeError: groups does not divide the channels, or is given together with across_batch; input is not
            floating point or has no channels.

    The normalisations take the pair as `statistics=`: a picture that does not fit in memory is normalised tile by tile
    with the statistics of the whole.
    """
    refuse_forward_mode("feature_statistics", input)
    groups = channels("feature_statistics", input) if groups is None else groups
    mean, var = _ops.feature_statistics(input, groups, across_batch, 1.0 if unbiased else 0.0)
    return mean, var


def empty_statistics(input: Tensor, groups: int, across_batch: bool) -> Tensor:
    """For the fake kernels: one value a statistic."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.new_empty((groups,) if across_batch else (input.shape[0], groups), dtype=dtype)


@torch.library.register_fake("artkernels::feature_statistics")
def _(input: Tensor, groups: int, across_batch: bool, correction: float) -> tuple[Tensor, Tensor]:
    return empty_statistics(input, groups, across_batch), empty_statistics(input, groups, across_batch)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.groups, ctx.across_batch, ctx.correction = inputs
    ctx.save_for_backward(input, output[0])


def _backward(ctx: Any, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, None, None, None]:
    """grad_mean / n + 2 grad_var (x - mean) / (n - correction): an affine map of x - mean, which norm_act computes."""
    input, mean = ctx.saved_tensors
    elements = input.numel() / max(mean.numel(), 1)
    of_group = input.shape[1] // ctx.groups
    weight = (grad_var * (2 / (elements - ctx.correction))).repeat_interleave(of_group, -1)
    bias = (grad_mean / elements).repeat_interleave(of_group, -1)
    one = torch.ones_like(mean)
    options = (ctx.groups, ctx.across_batch, 0.0, 1.0, 0.0, "none", 0.0, False)
    return _ops.norm_act(input, weight, bias, None, mean, one, *options)[0], None, None, None


torch.library.register_autograd("artkernels::feature_statistics", _backward, setup_context=_setup)
