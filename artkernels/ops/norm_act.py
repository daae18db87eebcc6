"""Normalisation + residual + activation as one operation: instance, batch and group norm, adaptive instance norm.

One op stands behind all of them: torch.ops.artkernels.norm_act. csrc/include/params.h writes down what it computes.

There is no in-place variant. In-place activated batch norm (Rota Bulo et al. 2018) keeps the output alone and gets xhat
back as (z - bias) / weight, which is lost where a weight is 0 (the last norm of a residual block is often initialised
so), and which multiplies the rounding of a 16-bit output by |bias / weight|. Here the input is kept, and nothing else.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .. import reference
from ._common import channels, empty_like_dense
from .feature_statistics import empty_statistics
from .sync_batch_norm_act import Arguments, spans_processes, sync_batch_norm_act

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Activation = Literal["none", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"]
Statistics = tuple[Tensor, Tensor]

_ops = torch.ops.artkernels


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Activation = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    statistics: Statistics | None = None,
    process_group: "ProcessGroup | None" = None,
) -> Tensor:
    """activation(torch.nn.functional.batch_norm(input, ...) + residual), in one read of the input where caches allow.

    Args:
        input: [N, C, ...], float32, float16, bfloat16 or float64, contiguous or channels_last.
        running_mean, running_var, weight, bias: [C], floating point, used in float32 (float64 for a float64 input).
        training: normalise by the batch's own mean and biased variance, and update the running ones by `momentum`, with
            the unbiased variance; otherwise normalise by the running ones.
        activation: none, relu, leaky_relu (with `negative_slope`), tanh, sigmoid, silu, or gelu (the exact one).
        residual: added before the activation, of the input's shape; after it with `residual_after`. Where its dtype is
            another one, both are promoted as torch does.
        statistics: (mean, var), each [C], to use instead: see feature_statistics. Differentiable.
        process_group: in training, the batch is that of all processes of this group together, as in
            torch.nn.SyncBatchNorm, on any device and backend; a process without images must call too. None: it is this
            process's own.

    Returns:
        As the input, in its layout. Differentiable twice, in backward mode only; with several processes, once. For the
        backward nothing is kept but the input, two numbers a channel and, where it is added before an activation, the
        residual.

    Raises:
        ValueError: training with one value a channel, or neither training nor statistics to use.
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    C = channels("batch_norm_act", input)
    arguments = (C, True, eps, 1.0, 0.0, activation, negative_slope)
    if statistics is None and not training:
        statistics = running_statistics("batch_norm_act", "training=False", running_mean, running_var)
    if statistics is not None:
        return norm_act(input, weight, bias, residual, residual_after, statistics, arguments)[0]
    if process_group is not None and spans_processes(process_group):
        input, residual = _promote(input, residual)
        running = running_mean, running_var
        tensors = input, *running, weight, bias, residual
        return sync_batch_norm_act(*tensors, residual_after, momentum, arguments, process_group)
    n = require_several("batch_norm_act", "value per channel", input.numel() // max(C, 1), input)
    output, mean, var = norm_act(input, weight, bias, residual, residual_after, None, arguments)
    update_running(running_mean, running_var, mean, var, n, momentum)
    return output


def instance_norm_act(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Activation = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    statistics: Statistics | None = None,
) -> Tensor:
    """activation(torch.nn.functional.instance_norm(input, ...) + residual) (Ulyanov et al. 2016).

    Args:
        input: [N, C, ...], as in batch_norm_act.
        running_mean, running_var: [C], updated by the average over the images; used when not `use_input_stats`.
        weight, bias: [C], or [N, C]: a style of its own for each image.
        statistics: (mean, var), each [N, C], to use instead of the input's: see feature_statistics.
        The others are those of batch_norm_act.

    Returns:
        As batch_norm_act.

    Raises:
        ValueError: the input's statistics are wanted and an image has one pixel, or use_input_stats=False without
            running statistics.
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    C = channels("instance_norm_act", input)
    of_batch = statistics is None and not use_input_stats  # running statistics are of all images
    if of_batch:
        statistics = running_statistics("instance_norm_act", "use_input_stats=False", running_mean, running_var)
    arguments = (C, of_batch, eps, 1.0, 0.0, activation, negative_slope)
    if statistics is not None:
        return norm_act(input, weight, bias, residual, residual_after, statistics, arguments)[0]
    pixels = input.numel() // max(input.shape[0] * C, 1)
    n = require_several("instance_norm_act", "spatial element", pixels, input)
    output, mean, var = norm_act(input, weight, bias, residual, residual_after, None, arguments)
    if running_mean is not None or running_var is not None:
        update_running(running_mean, running_var, mean.mean(0), var.mean(0), n, momentum)
    return output


def group_norm_act(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    statistics: Statistics | None = None,
) -> Tensor:
    """activation(torch.nn.functional.group_norm(input, num_groups, ...) + residual) (Wu and He 2018).

    Args:
        input: [N, C, ...], as in batch_norm_act.
        num_groups: divides C.
        weight, bias: [C], or [N, C].
        statistics: (mean, var), each [N, num_groups], to use instead of the input's: see feature_statistics.
        The others are those of batch_norm_act.

    Returns:
        As batch_norm_act.

    Raises:
        ValueError: there is one value in all.
        RuntimeError: num_groups does not divide C; shapes, dtypes or devices that do not fit.
    """
    channels("group_norm_act", input)
    if statistics is None:
        require_several("group_norm_act", "value per group", input.numel() // max(num_groups, 1), input)
    arguments = (num_groups, False, eps, 1.0, 0.0, activation, negative_slope)
    return norm_act(input, weight, bias, residual, residual_after, statistics, arguments)[0]


def adaptive_instance_norm(
    input: Tensor,
    style_mean: Tensor,
    style_std: Tensor,
    alpha: float = 1.0,
    eps: float = 1e-5,
    *,
    unbiased: bool = True,
    activation: Activation = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
    statistics: Statistics | None = None,
) -> Tensor:
    """AdaIN: the content's channels take the style's mean and standard deviation (Huang and Belongie 2017).

    alpha * (style_std * (x - mean) / sqrt(var + eps) + style_mean) + (1 - alpha) * x

    Args:
        input: content features, [N, C, ...], as in batch_norm_act.
        style_mean, style_std: [N, C] or [N, C, 1, 1], or of one image for all: [1, C], [1, C, 1, 1] or [C]. Of the
            style's features: `mean, var = feature_statistics(style, unbiased=True)`, `std = (var + eps).sqrt()`.
        alpha: strength of the style, from 0 (the content as it is) to 1.
        eps: added to the content's variance, before the square root.
        unbiased: the variance's divisor is the number of pixels less one, as in the paper's code and its ports.
        statistics: (mean, var), each [N, C], of the content, to use instead of the input's: see feature_statistics.
        The others are those of batch_norm_act.

    Returns:
        As batch_norm_act. Differentiable in the style too.

    Raises:
        RuntimeError: shapes, dtypes or devices that do not fit.
    """
    N, C = input.shape[0], channels("adaptive_instance_norm", input)
    arguments = (C, False, eps, alpha, 1.0 if unbiased else 0.0, activation, negative_slope)
    std, mean = _per_image("style_std", style_std, N, C), _per_image("style_mean", style_mean, N, C)
    return norm_act(input, std, mean, residual, residual_after, statistics, arguments)[0]


def _per_image(name: str, style: Tensor, N: int, C: int) -> Tensor:
    """[N, C], or [C] for all images."""
    flat = style.flatten(1) if style.dim() > 2 else style
    flat = flat[0] if flat.dim() == 2 and flat.shape[0] == 1 else flat
    if tuple(flat.shape) not in ((N, C), (C,)):
        raise RuntimeError(
            f"adaptive_instance_norm: {name} must be [{N}, {C}] or of one image for all, got {list(style.shape)}"
        )
    return flat


def norm_act(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_after: bool,
    statistics: Statistics | None,
    arguments: Arguments,
    statistics_of_input: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(output, mean, var); the statistics are empty when they were given.

    With `statistics_of_input` those given were computed from the input, and the derivative is that of norm_act when it
    computes them itself.
    """
    input, residual = _promote(input, residual)
    mean, var = statistics or (None, None)
    result: tuple[Tensor, Tensor, Tensor] = _ops.norm_act(
        input, weight, bias, residual, mean, var, *arguments, residual_after, statistics_of_input
    )
    return result


def _promote(input: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if residual is None or residual.dtype == input.dtype:
        return input, residual
    dtype = torch.promote_types(input.dtype, residual.dtype)
    return input.to(dtype), residual.to(dtype)


def running_statistics(op: str, why: str, running_mean: Tensor | None, running_var: Tensor | None) -> Statistics:
    if running_mean is None or running_var is None:
        raise ValueError(f"{op}: running_mean and running_var are needed when {why}, got None")
    return running_mean, running_var


def require_several(op: str, what: str, count: int, input: Tensor) -> int:
    if count == 1:
        raise ValueError(f"{op}: expected more than 1 {what} when training, got input size {list(input.shape)}")
    return count


def update_running(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, n: int, momentum: float
) -> None:
    """Moves the running statistics by `momentum` towards those of n values a channel, the variance unbiased."""
    with torch.no_grad():
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean, alpha=momentum)
        if running_var is not None:
            running_var.mul_(1 - momentum).add_(var, alpha=momentum * n / (n - 1) if n != 1 else momentum)


# ---- shapes and strides of the results, without computing them -------------------------------------------------------


@torch.library.register_fake("artkernels::norm_act")
def _(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    groups: int,
    across_batch: bool,
    eps: float,
    alpha: float,
    correction: float,
    activation: str,
    negative_slope: float,
    residual_after: bool,
    statistics_of_input: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (groups, across_batch) if mean is None else (0, True)
    return empty_like_dense(input), empty_statistics(input, *shape), empty_statistics(input, *shape)


@torch.library.register_fake("artkernels::norm_act_backward")
def _(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    averages: Tensor | None,
    statistics_given: bool,
    groups: int,
    across_batch: bool,
    eps: float,
    alpha: float,
    correction: float,
    activation: str,
    negative_slope: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    N, C = input.shape[:2]
    sums_shape = ((2, C) if across_batch else (2, N, C)) if output_mask[1] else (0,)
    sums_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    maps = [empty_like_dense(input) if wanted else input.new_empty((0,)) for wanted in output_mask]
    return maps[0], input.new_empty(sums_shape, dtype=sums_dtype), maps[2]


# ---- autograd: the derivative is in csrc/ops/norm_act_autograd.cpp; its own derivative is here -----------------------


def _setup_norm_act_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, averages = inputs[:8]
    ctx.arguments, ctx.mask = inputs[8:16], inputs[16]
    ctx.set_materialize_grads(False)
    ctx.averages_given = averages is not None
    ctx.save_for_backward(*tensors)


def _norm_act_double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """The plain formula of the backward, differentiated by autograd: gradient penalties are rare, and right."""
    if ctx.averages_given:
        raise RuntimeError("norm_act_backward: has no derivative when the averages of several processes are given")
    with torch.enable_grad():
        tensors = [
            t.view_as(t) if needed else t for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        outputs = reference.norm_act_backward(*tensors, *ctx.arguments)
    wanted = [(o, g) for o, g, made in zip(outputs, grads, ctx.mask, strict=True) if made and g is not None]
    inputs = [t for t, needed in zip(tensors, ctx.needs_input_grad, strict=False) if needed]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in wanted],
            inputs,
            [g for _, g in wanted],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:7]), *(None,) * 10)


torch.library.register_autograd(
    "artkernels::norm_act_backward", _norm_act_double_backward, setup_context=_setup_norm_act_backward
)

# No autocast rule is registered: these ops take the input in the dtype that it comes in, as torch's batch norm does,
# with float32 parameters and float32 sums.
