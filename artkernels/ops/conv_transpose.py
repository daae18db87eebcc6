"""Transposed convolution + activation, and transposed convolution + normalisation + residual + activation.

One op stands behind both: torch.ops.artkernels.conv_transpose2d_act. csrc/include/params.h writes down what it
computes; autograd and autocast are in csrc/ops/conv_autograd.cpp.
"""

import torch
from torch import Tensor

from ._conv import NormAct, Normalization, Pair, convolve_norm_act, empty_result, output_channels, pair
from .norm_act import Activation

_ops = torch.ops.artkernels


def conv_transpose2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    activation: Activation = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(torch.nn.functional.conv_transpose2d(input, ...)), the activation applied as the output is written.

    Args:
        input: [N, C, H, W], float32, float16, bfloat16 or float64, contiguous or channels_last.
        weight: [C, K / groups, kernel_h, kernel_w], in the input's dtype.
        bias: [K], floating point, used in float32 (float64 for a float64 input).
        stride, padding, output_padding, groups, dilation: those of torch.nn.functional.conv_transpose2d.
        activation: none, relu, leaky_relu (with `negative_slope`), tanh, sigmoid, silu, or gelu (the exact one).

    Returns:
        [N, K, OH, OW] with OH = (H - 1) stride - 2 padding + dilation (kernel_h - 1) + output_padding + 1, in the
        input's dtype; channels_last where the input or the weight is. Differentiable any number of times, in backward
        mode only. Under autocast input and weight are cast as torch's convolutions cast them; float32 on CUDA rounds to
        TF32 where torch.backends.cudnn.allow_tf32 lets it. Kept for the backward: input, weight and, where the
        activation needs it, the output.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit; input that is not [N, C, H, W].
    """
    output_channels("conv_transpose2d_act", input, weight, groups, transposed=True)
    window = (pair(stride), pair(padding), pair(output_padding), groups, pair(dilation))
    output: Tensor = _ops.conv_transpose2d_act(input, weight, bias, None, *window, activation, negative_slope, "none")[
        0
    ]
    return output


def conv_transpose2d_norm_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    *,
    norm: Normalization = "batch",
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: Activation = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """activation(norm(torch.nn.functional.conv_transpose2d(input, ...)) + residual): a layer of DCGAN's generator.

    Args:
        input, weight, bias, stride, padding, output_padding, groups, dilation: those of conv_transpose2d_act.
        norm: batch, or instance: of each image alone (Ulyanov et al. 2016).
        running_mean, running_var, norm_weight, norm_bias: [K], floating point; the normalisation's.
        training: normalise by the output's own mean and biased variance, and update the running ones, if there are
            any, by `momentum`, with the unbiased variance; otherwise normalise by the running ones. The use_input_stats
            of torch.nn.functional.instance_norm.
        eps, activation, negative_slope, residual, residual_after: those of batch_norm_act, the residual of the output's
            shape.

    Returns:
        As conv_transpose2d_act. In training the convolution's output is kept for the backward too.

    Raises:
        ValueError: training with one value a channel (norm="batch") or one pixel (norm="instance"), or neither training
            nor running statistics.
        RuntimeError: shapes, dtypes or devices that do not fit; input that is not [N, C, H, W].

    Evaluation without gradients is one pass over the output: the normalisation is a scale and a shift of each channel,
    computed anew in each call, so that a step of an optimizer or a loaded state_dict needs nothing else. DCGAN: Radford
    et al. 2015.
    """
    op = "conv_transpose2d_norm_act"
    output_channels(op, input, weight, groups, transposed=True)
    window = (pair(stride), pair(padding), pair(output_padding), groups, pair(dilation))

    def convolve(
        bias: Tensor | None, scale: Tensor | None, activation: str, statistics: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = _ops.conv_transpose2d_act(
            input, weight, bias, scale, *window, activation, negative_slope, statistics
        )
        return result

    follow = NormAct(
        norm,
        running_mean,
        running_var,
        norm_weight,
        norm_bias,
        training,
        momentum,
        eps,
        activation,
        negative_slope,
        residual,
        residual_after,
    )
    return convolve_norm_act(op, convolve, input, weight, bias, follow)


@torch.library.register_fake("artkernels::conv_transpose2d_act")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    groups: int,
    dilation: list[int],
    activation: str,
    negative_slope: float,
    statistics: str,
) -> tuple[Tensor, Tensor, Tensor]:
    K = output_channels("conv_transpose2d_act", input, weight, groups, transposed=True)
    size = [
        (input.shape[2 + d] - 1) * stride[d]
        - 2 * padding[d]
        + dilation[d] * (weight.shape[2 + d] - 1)
        + output_padding[d]
        + 1
        for d in range(2)
    ]
    return empty_result(input, weight, K, size, statistics)
