"""Gram matrices of feature maps and the style loss on them (Gatys et al. 2016, "Image Style Transfer Using CNNs")."""

from typing import Any, Literal

import torch
from torch import Tensor

from ._common import empty_like_dense, refuse_forward_mode

Normalize = Literal["chw", "hw", "bchw"]

_ops = torch.ops.artkernels


def gram_matrix(
    input: Tensor, *, normalize: Normalize | None = "chw", out: Tensor | None = None, accumulate: bool = False
) -> Tensor:
    """Gram matrix of each image's channels: G = X X^T / d, with X the image as [C, H * W].

    Args:
        input: [N, C, H, W], float32, float16, bfloat16 or float64, contiguous or channels_last.
        normalize: d, a product of sizes: "chw" C*H*W (Johnson et al. 2016), "hw" H*W, "bchw" N*C*H*W (the PyTorch
            tutorial), None 1 (Gatys et al. 2016).
        out: [N, C, C] tensor that receives the result; float32, or float64 for a float64 input.
        accumulate: add to `out` instead of overwriting it: the Gram matrix of a large image is the sum over its tiles.
            Takes normalize=None, because a tile's size is not the image's: divide the sum once, at the end.

    Returns:
        [N, C, C] in float32 (float64 for a float64 input), symmetric to the bit. Sums are taken and scaled in float32,
        whatever the input's dtype: float16 features cannot overflow. Under autocast the input is used in the dtype that
        it comes in. Differentiable twice, in backward mode only (no torch.func). `out` itself when it is given.

    Raises:
        RuntimeError: input is not 4-D or not floating point, or normalize is unknown.
        ValueError: accumulate without `out`, or with a normalize.
    """
    if accumulate and (out is None or normalize is not None):
        raise ValueError(
            "gram_matrix: accumulate=True needs `out` and normalize=None, "
            f"got out={'None' if out is None else 'a tensor'} and normalize={normalize!r}"
        )
    refuse_forward_mode("gram_matrix", input)
    gram: Tensor = _ops.gram_matrix(input, normalize)
    if out is None:
        return gram
    if out.shape != gram.shape or out.dtype != gram.dtype:
        raise ValueError(
            f"gram_matrix: out must be {list(gram.shape)} of {gram.dtype}, got {list(out.shape)} of {out.dtype}"
        )
    return out.add_(gram) if accumulate else out.copy_(gram)


def gram_mse_loss(input: Tensor, target: Tensor, *, normalize: Normalize | None = "chw") -> Tensor:
    """mse_loss(gram_matrix(input), target), without the Gram matrix being written where it is not needed.

    Args:
        input: [N, C, H, W], as for gram_matrix.
        target: [N, C, C], or [C, C] or [1, C, C] for all images; any floating-point dtype, used in float32 (float64 for
            a float64 input). Need not be symmetric.
        normalize: as for gram_matrix; the target must have been made with the same.

    Returns:
        Scalar, float32 (float64 for a float64 input): the mean over N * C * C of (G - target)^2, as
        torch.nn.functional.mse_loss. Differentiable twice in `input` and `target`.

    Raises:
        RuntimeError: as for gram_matrix; the target's shape or device does not fit the input.
    """
    refuse_forward_mode("gram_mse_loss", input, target)
    needs_residual = torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)
    loss: Tensor = _ops.gram_mse_loss(input, target, normalize, needs_residual)[0]
    return loss


# ---- shapes and strides of the results, without computing them -------------------------------------------------------


def _channels(op: str, input: Tensor) -> tuple[int, int]:
    """N and C; csrc/include/checks.h refuses other inputs in the same words."""
    if input.dim() != 4:
        raise RuntimeError(f"{op}: input must be [N, C, H, W], got {input.dim()} dimensions")
    return input.shape[0], input.shape[1]


def _matrix_dtype(input: Tensor) -> torch.dtype:
    return torch.float64 if input.dtype == torch.float64 else torch.float32


@torch.library.register_fake("artkernels::gram_matrix")
def _(input: Tensor, normalize: str | None) -> Tensor:
    N, C = _channels("gram_matrix", input)
    return input.new_empty((N, C, C), dtype=_matrix_dtype(input))


@torch.library.register_fake("artkernels::gram_matrix_backward")
def _(grad_output: Tensor, input: Tensor, normalize: str | None) -> Tensor:
    return empty_like_dense(input)


@torch.library.register_fake("artkernels::gram_mse_loss")
def _(input: Tensor, target: Tensor, normalize: str | None, needs_residual: bool) -> tuple[Tensor, Tensor]:
    N, C = _channels("gram_mse_loss", input)
    dtype = _matrix_dtype(input)
    return input.new_empty((), dtype=dtype), input.new_empty((N, C, C) if needs_residual else (0,), dtype=dtype)


@torch.library.register_fake("artkernels::gram_mse_loss_backward")
def _(grad_loss: Tensor, residual: Tensor, input: Tensor, normalize: str | None) -> Tensor:
    return empty_like_dense(input)


# ---- autograd: each backward is an op with a derivative of its own, so that gradients of gradients are right ---------


def _products(a: Tensor, b: Tensor) -> Tensor:
    """a b^T + b a^T for each image, in the Gram matrices' dtype: [N, C, C]."""
    dtype = _matrix_dtype(a)
    a, b = (t.flatten(2).to(dtype) for t in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        product = torch.bmm(a, b.mT)
    return product + product.mT


def _scale(input: Tensor, normalize: str | None) -> float:
    N, C, H, W = input.shape
    return 1.0 / max({"chw": C * H * W, "hw": H * W, "bchw": N * C * H * W, None: 1}[normalize], 1)


def _setup_gram_matrix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, ctx.normalize = inputs
    ctx.save_for_backward(input)


def _gram_matrix_backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
    (input,) = ctx.saved_tensors
    return _ops.gram_matrix_backward(grad_output, input, ctx.normalize), None


torch.library.register_autograd("artkernels::gram_matrix", _gram_matrix_backward, setup_context=_setup_gram_matrix)


def _setup_gram_matrix_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_output, input, ctx.normalize = inputs
    ctx.save_for_backward(grad_output, input)


def _gram_matrix_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    grad_output, input = ctx.saved_tensors
    of_grad_output, of_input, _ = ctx.needs_input_grad
    return (
        _products(grad, input) * _scale(input, ctx.normalize) if of_grad_output else None,
        _ops.gram_matrix_backward(grad_output, grad.to(input.dtype), ctx.normalize) if of_input else None,
        None,
    )


torch.library.register_autograd(
    "artkernels::gram_matrix_backward", _gram_matrix_double_backward, setup_context=_setup_gram_matrix_backward
)


def _setup_gram_mse_loss(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, target, ctx.normalize, _ = inputs
    ctx.set_materialize_grads(False)  # the residual has a gradient in a double backward only
    ctx.save_for_backward(input, target, output[1])


def _gram_mse_loss_backward(
    ctx: Any, grad_loss: Tensor | None, grad_residual: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None]:
    input, target, residual = ctx.saved_tensors
    if residual.dim() == 1:  # a graph that was traced without gradients, now run with them
        residual = _ops.gram_mse_loss(input, target, ctx.normalize, True)[1]
    grad_input = grad_target = None
    if grad_loss is not None:
        if ctx.needs_input_grad[0]:
            grad_input = _ops.gram_mse_loss_backward(grad_loss, residual, input, ctx.normalize)
        if ctx.needs_input_grad[1]:
            # The residual is the symmetric part of G - target; G is symmetric, so the rest is the target's.
            wide = target.to(residual.dtype)
            grad_target = ((wide - wide.mT) / 2 - residual) * (2 / max(residual.numel(), 1)) * grad_loss
    if grad_residual is not None:
        symmetric = (grad_residual + grad_residual.mT) / 2
        if ctx.needs_input_grad[0]:
            through_residual = _ops.gram_matrix_backward(symmetric, input, ctx.normalize)
            grad_input = through_residual if grad_input is None else grad_input + through_residual
        if ctx.needs_input_grad[1]:
            grad_target = -symmetric if grad_target is None else grad_target - symmetric
    if grad_target is not None:
        grad_target = grad_target.sum_to_size(target.shape).to(target.dtype)
    return grad_input, grad_target, None, None


torch.library.register_autograd(
    "artkernels::gram_mse_loss", _gram_mse_loss_backward, setup_context=_setup_gram_mse_loss
)


def _setup_gram_mse_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad_loss, residual, input, ctx.normalize = inputs
    ctx.save_for_backward(grad_loss, residual, input)


def _gram_mse_loss_double_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    grad_loss, residual, input = ctx.saved_tensors
    of_grad_loss, of_residual, of_input, _ = ctx.needs_input_grad
    scale = _scale(input, ctx.normalize) * 2 / max(residual.numel(), 1)
    products = _products(grad, input) * scale if of_grad_loss or of_residual else None
    return (
        (products * residual).sum().reshape(grad_loss.shape) if of_grad_loss and products is not None else None,
        products * grad_loss if of_residual and products is not None else None,
        _ops.gram_mse_loss_backward(grad_loss, residual, grad.to(input.dtype), ctx.normalize) if of_input else None,
        None,
    )


torch.library.register_autograd(
    "artkernels::gram_mse_loss_backward", _gram_mse_loss_double_backward, setup_context=_setup_gram_mse_loss_backward
)

# No autocast rule is registered: in every autocast mode these ops take the input in the dtype it comes in, 16-bit
# features included, and compute and return float32. A cast to float32 would only cost memory, one to 16 bits would lose
# the Gram matrix.
