"""Convolution + activation, and convolution + normalisation + residual + activation.

One op stands behind both: torch.ops.artkernels.conv2d_act. csrc/include/params.h writes down what it computes; autograd
and autocast are in csrc/ops/conv_autograd.cpp.
"""

from typing import Literal

import torch
from torch import Tensor

from ._common import is_channels_last
from ._conv import NormAct, Normalization, Pair, convolve_norm_act, empty_map, empty_result, output_channels, pair
from .norm_act import Activation

PaddingMode = Literal["zeros", "reflect"]

_ops = torch.ops.artkernels


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | Literal["same", "valid"] = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
    activation: Activation = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """activation(torch.nn.functional.conv2d(input, ...)), the activation applied as the output is written.

    Args:
        input: [N, C, H, W], float32, float16, bfloat16 or float64, contiguous or channels_last.
        weight: [K, C / groups, kernel_h, kernel_w], in the input's dtype.
        bias: [K], floating point, used in float32 (float64 for a float64 input).
        stride, padding, dilation, groups: those of torch.nn.functional.conv2d.
        padding_mode: zeros, or reflect: the input mirrored at its edges, as torch.nn.Conv2d(padding_mode="reflect").
        activation: none, relu, leaky_relu (with `negative_slope`), tanh, sigmoid, silu, or gelu (the exact one).

    Returns:
        [N, K, OH, OW] with OH = (H + 2 padding - dilation (kernel_h - 1) - 1) / stride + 1, rounded down, in the
        input's dtype; channels_last where the input or the weight is. Differentiable any number of times, in backward
        mode only. Under autocast input and weight are cast as torch's convolutions cast them. Kept for the backward:
        input (padded, where it is reflected), weight and, where the activation needs it, the output.

    Raises:
        ValueError: unknown padding or padding_mode, padding="same" with a stride.
        RuntimeError: shapes, dtypes or devices that do not fit; input that is not [N, C, H, W].
    """
    op = "conv2d_act"
    output_channels(op, input, weight, groups, transposed=False)
    input, padding = _pad(op, input, weight, stride, padding, dilation, padding_mode)
    window = (pair(stride), padding, pair(dilation), groups, padding_mode == "reflect")
    output: Tensor = _ops.conv2d_act(input, weight, bias, None, *window, activation, negative_slope, "none")[0]
    return output


def conv2d_norm_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | Literal["same", "valid"] = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: PaddingMode = "zeros",
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
    """activation(norm(torch.nn.functional.conv2d(input, ...)) + residual).

    Args:
        input, weight, bias, stride, padding, dilation, groups, padding_mode: those of conv2d_act.
        The others are those of conv_transpose2d_norm_act.

    Returns:
        As conv2d_act. In training the convolution's output is kept for the backward too.

    Raises:
        ValueError: training with one value a channel (norm="batch") or one pixel (norm="instance"), or neither training
            nor running statistics; those of conv2d_act.
        RuntimeError: shapes, dtypes or devices that do not fit; input that is not [N, C, H, W].
    """
    op = "conv2d_norm_act"
    output_channels(op, input, weight, groups, transposed=False)
    padded, padding = _pad(op, input, weight, stride, padding, dilation, padding_mode)
    window = (pair(stride), padding, pair(dilation), groups, padding_mode == "reflect")

    def convolve(
        bias: Tensor | None, scale: Tensor | None, activation: str, statistics: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = _ops.conv2d_act(
            padded, weight, bias, scale, *window, activation, negative_slope, statistics
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


def _pad(
    op: str, input: Tensor, weight: Tensor, stride: Pair, padding: Pair | str, dilation: Pair, padding_mode: PaddingMode
) -> tuple[Tensor, tuple[int, int]]:
    """(input, padding in numbers); padded here where its sides differ, as those of "same" do for an even kernel."""
    if padding_mode not in ("zeros", "reflect"):
        raise ValueError(f"{op}: padding_mode must be zeros or reflect, got {padding_mode}")
    if not isinstance(padding, str):
        return input, pair(padding)
    if padding == "valid":
        return input, (0, 0)
    if padding != "same":
        raise ValueError(f"{op}: padding must be numbers, same or valid, got {padding}")
    if tuple(pair(stride)) != (1, 1):
        raise ValueError(f"{op}: padding='same' needs a stride of 1, got {stride}")
    by_row, by_column = pair(dilation)
    rows, columns = by_row * (weight.shape[2] - 1), by_column * (weight.shape[3] - 1)
    if rows % 2 == columns % 2 == 0:
        return input, (rows // 2, columns // 2)
    sides = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
    mode = "reflect" if padding_mode == "reflect" else "constant"
    return torch.nn.functional.pad(input, sides, mode), (0, 0)


@torch.library.register_fake("artkernels::conv2d_act")
def _(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    reflect: bool,
    activation: str,
    negative_slope: float,
    statistics: str,
) -> tuple[Tensor, Tensor, Tensor]:
    K = output_channels("conv2d_act", input, weight, groups, transposed=False)
    size = [
        (input.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    ]
    return empty_result(input, weight, K, size, statistics)


@torch.library.register_fake("artkernels::conv2d_weight_grad")
def _(
    input: Tensor,
    grad_output: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    shape = (grad_output.shape[1], input.shape[1] // groups, *kernel_size)
    return empty_map(input, shape, is_channels_last(input) or is_channels_last(grad_output))


@torch.library.register_fake("artkernels::conv_backward")
def _(
    grad_output: Tensor,
    output: Tensor | None,
    input: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    transposed: bool,
    activation: str,
    negative_slope: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    channels_last = is_channels_last(grad_output)
    parameters = torch.promote_types(grad_output.dtype, torch.float32)
    nothing = grad_output.new_empty(0, dtype=parameters)
    wants_input, wants_weight, wants_bias = output_mask
    return (
        empty_map(grad_output, input.shape, channels_last or is_channels_last(weight)) if wants_input else nothing,
        empty_map(grad_output, weight.shape, channels_last or is_channels_last(input)) if wants_weight else nothing,
        grad_output.new_empty(grad_output.shape[1], dtype=parameters) if wants_bias else nothing,
    )
