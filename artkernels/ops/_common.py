"""What the ops share: layouts of results, refusals."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def is_channels_last(input: Tensor) -> bool:
    """Channels innermost and nothing else; csrc/include/layout.h decides alike."""
    return input.dim() > 2 and not input.is_contiguous() and input.movedim(1, -1).is_contiguous()


def channels(op: str, input: Tensor) -> int:
    """C of [N, C, ...]; csrc/ops/norm_act.cpp refuses other inputs in the same words."""
    if input.dim() < 2:
        raise RuntimeError(f"{op}: input must be [N, C, ...], got {input.dim()} dimensions")
    return input.shape[1]


def empty_like_dense(input: Tensor) -> Tensor:
    """What a kernel returns for such an input: its layout where that is one of the two, else contiguous."""
    if is_channels_last(input):
        return torch.empty_like(input.movedim(1, -1), memory_format=torch.contiguous_format).movedim(-1, 1)
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    # register_autograd has no rule for it: PyTorch would take the tangent as zero and say nothing.
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
            raise RuntimeError(f"{op}: has no forward-mode derivative, only backward ones")
