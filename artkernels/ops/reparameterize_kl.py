"""The reparameterisation trick and the KL divergence of a variational autoencoder, in one pass over the memory."""

from typing import Any

import torch
from torch import Tensor

from .. import reference
from ._common import empty_like_dense

_ops = torch.ops.artkernels


def reparameterize_kl(mean: Tensor, logvar: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draws a code from N(mean, exp(logvar)) for each sample, and measures how far that is from N(0, 1).

    Kingma and Welling 2013, arXiv:1312.6114: the reparameterisation of section 2.4, the divergence of appendix B.

    Args:
        mean: [N, ...], float32, float16, bfloat16 or float64. Halves of one layer's output, as chunk() makes them, are
            read where they are.
        logvar: logarithm of the variance; shape and dtype of the mean.
        noise: standard normal numbers of the same shape, used in the mean's dtype; None: torch.randn_like(mean), so
            that torch.manual_seed governs them.

    Returns:
        (codes, kl): codes = mean + noise * exp(logvar / 2), as the mean, contiguous or channels_last as it is; kl, [N],
        float32 (float64 for a float64 mean): the Kullback-Leibler divergence of each sample in nats,
        -0.5 * sum(1 + logvar - mean^2 - exp(logvar)), 0 for a sample of no element. A VAE's loss is that of the
        reconstruction and kl.mean(). Arithmetic and sums are float32 for 16-bit inputs too. Under autocast the inputs
        are used in the dtype that they come in. Differentiable twice in all inputs, in backward mode only; for the
        backward nothing is kept but the inputs.

    Raises:
        RuntimeError: the mean has no dimension or is not floating point; shapes, dtypes or devices that do not fit.
    """
    if not mean.is_floating_point():
        raise RuntimeError(
            f"reparameterize_kl: mean must be float32, float64, float16 or bfloat16, got {str(mean.dtype)[6:]}"
        )
    noise = torch.randn_like(mean) if noise is None else noise.to(mean.dtype)
    codes, kl = _ops.reparameterize_kl(mean, logvar, noise)
    return codes, kl


# ---- shapes and strides of the results, without computing them -------------------------------------------------------


@torch.library.register_fake("artkernels::reparameterize_kl")
def _(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if mean.dtype == torch.float64 else torch.float32
    return empty_like_dense(mean), mean.new_empty(mean.shape[:1], dtype=dtype)


@torch.library.register_fake("artkernels::reparameterize_kl_backward")
def _(
    grad_codes: Tensor | None,
    grad_kl: Tensor | None,
    mean: Tensor,
    logvar: Tensor,
    noise: Tensor,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    of_mean, of_logvar, of_noise = (
        empty_like_dense(mean) if wanted else mean.new_empty((0,)) for wanted in output_mask
    )
    return of_mean, of_logvar, of_noise


# ---- autograd: the derivative is in csrc/ops/reparameterize_kl_autograd.cpp; its own derivative is here --------------


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.mask = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """The plain formula of the backward, differentiated by autograd."""
    with torch.enable_grad():
        tensors = [
            t.view_as(t) if needed else t for t, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        outputs = reference.reparameterize_kl_backward(*tensors)
    wanted = [(o, g) for o, g, made in zip(outputs, grads, ctx.mask, strict=True) if made and g is not None]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in wanted],
            [t for t, needed in zip(tensors, ctx.needs_input_grad, strict=False) if needed],
            [g for _, g in wanted],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
        )
    )
    return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:5]), None)


torch.library.register_autograd(
    "artkernels::reparameterize_kl_backward", _double_backward, setup_context=_setup_backward
)

# No autocast rule is registered: the inputs are used in the dtype that a layer under autocast gives them, and the
# divergence is computed and returned in float32.
