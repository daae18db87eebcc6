"""Batch norm whose batch is spread over the processes of a group: what batch_norm_act does when it is given one.

Two collectives a step, each of a few numbers a channel: the forward gathers every process's moments, the backward adds
up the sums that the statistics' gradients need. The maps themselves are never sent.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Arguments = tuple[int, bool, float, float, float, str, float]

_ops = torch.ops.artkernels


def spans_processes(group: "ProcessGroup") -> bool:
    """Whether there is another process to share statistics with."""
    return torch.distributed.get_world_size(group) > 1


def sync_batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_after: bool,
    momentum: float,
    arguments: Arguments,
    group: "ProcessGroup",
) -> Tensor:
    """batch_norm_act in training, by the statistics of the batches of all processes together.

    The gradients of weight and bias are those of this process's images, for DistributedDataParallel to average. Every
    process must call it, one without images too, and must want the gradient of its input if one of them does.
    """
    mean, var, count = _statistics_of_all(input, group)
    output: Tensor = _SyncBatchNormAct.apply(
        input, weight, bias, residual, mean, var, count, residual_after, arguments, group
    )
    # Not as in norm_act.py: the count stays on its device, for no layer to wait for the GPU.
    with torch.no_grad():
        if running_mean is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1).clamp(min=1))
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return output


@torch.no_grad()
def _statistics_of_all(input: Tensor, group: "ProcessGroup") -> tuple[Tensor, Tensor, Tensor]:
    """(mean, var, values a channel) of all processes' inputs; the same bits in each of them.

    Parallel variance (Chan et al. 1979): the squares within each process and the squares of the distances between their
    means. In float64, which holds every count exactly, and in the order of the ranks.
    """
    C = input.shape[1]
    own_count = input.numel() // max(C, 1)
    if own_count:
        moments = _ops.feature_statistics(input, C, True, 0.0)
        own = torch.cat([*moments, input.new_full((1,), own_count, dtype=torch.float64)])
    else:  # its mean would be NaN; what counts nothing must add nothing
        own = input.new_zeros((2 * C + 1,), dtype=torch.float64)
    of_all = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(of_all, own, group=group)
    means, variances, counts = torch.split(torch.stack(of_all), [C, C, 1], 1)
    count = counts.sum()
    # Only who has less than two values needs to look at the total, which makes the CPU wait for the GPU. One value in
    # all is one in no process or in one, so that all look, and all raise.
    if own_count < 2 and count.item() == 1:
        raise ValueError(
            f"batch_norm_act: expected more than 1 value per channel in all processes together when training, "
            f"got input size {list(input.shape)} in this one"
        )
    count = count.clamp(min=1)
    mean = (counts * means).sum(0) / count
    var = (counts * (variances + (means - mean).square())).sum(0) / count
    dtype = torch.promote_types(input.dtype, torch.float32)
    return mean.to(dtype), var.to(dtype), count


class _SyncBatchNormAct(torch.autograd.Function):
    """norm_act by statistics that depend on the input of every process."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        residual_after: bool,
        arguments: Arguments,
        group: "ProcessGroup",
    ) -> Tensor:
        *_, activation, _ = arguments
        # As in csrc/ops/norm_act_autograd.cpp: a residual takes part in the backward only through an activation.
        through_activation = None if residual_after or activation == "none" else residual
        ctx.save_for_backward(input, weight, bias, through_activation, mean, var, count)
        ctx.arguments, ctx.group = arguments, group
        output: Tensor = _ops.norm_act(input, weight, bias, residual, mean, var, *arguments, residual_after)[0]
        return output

    @staticmethod
    @once_differentiable  # the second derivative would need collectives of its own
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *saved, count = ctx.saved_tensors
        _, weight, bias, residual, _, _ = saved
        of_input, of_weight, of_bias, of_residual = ctx.needs_input_grad[:4]

        def gradients(averages: Tensor | None, output_mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
            result: tuple[Tensor, Tensor, Tensor] = _ops.norm_act_backward(
                grad_output, *saved, averages, False, *ctx.arguments, output_mask
            )
            return result

        averages = None
        _, sums, _ = gradients(None, [False, of_input or of_weight or of_bias, False])
        if of_input:
            averages = sums.clone()
            torch.distributed.all_reduce(averages, group=ctx.group)
            averages /= count
            if weight is not None:
                averages *= weight
        maps_mask = [of_input, False, of_residual and residual is not None]
        grad_input, _, grad_residual = gradients(averages, maps_mask)
        return (
            grad_input if of_input else None,
            sums[1].to(weight.dtype) if of_weight else None,
            sums[0].to(bias.dtype) if of_bias else None,
            grad_residual if maps_mask[2] else grad_output if of_residual else None,
            *(None,) * 6,
        )
