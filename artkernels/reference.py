"""The operations in plain PyTorch: their specification, what tests compare the kernels with in float64."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

__all__ = [
    "adaptive_instance_norm",
    "batch_norm_act",
    "conv2d_act",
    "conv2d_norm_act",
    "conv_transpose2d_act",
    "conv_transpose2d_norm_act",
    "feature_statistics",
    "gram_matrix",
    "gram_mse_loss",
    "group_norm_act",
    "instance_norm_act",
    "reparameterize_kl",
]

Pair = int | tuple[int, int]


def gram_matrix(input: Tensor, *, normalize: str | None = "chw") -> Tensor:
    """See artkernels.functional.gram_matrix."""
    N, C, H, W = input.shape
    x = input.reshape(N, C, H * W)
    divisor = {"chw": C * H * W, "hw": H * W, "bchw": N * C * H * W, None: 1}[normalize]
    x = x if x.dtype == torch.float64 else x.float()
    return torch.bmm(x, x.mT) / divisor


def gram_mse_loss(input: Tensor, target: Tensor, *, normalize: str | None = "chw") -> Tensor:
    """See artkernels.functional.gram_mse_loss."""
    gram = gram_matrix(input, normalize=normalize)
    return torch_functional.mse_loss(gram, target.to(gram.dtype).expand_as(gram))


def activate(input: Tensor, activation: str, negative_slope: float) -> Tensor:
    """The activations by their names."""
    if activation == "leaky_relu":
        return torch_functional.leaky_relu(input, negative_slope)
    return input if activation == "none" else getattr(torch_functional, activation)(input)


def _finish(z: Tensor, activation: str, negative_slope: float, residual: Tensor | None, residual_after: bool) -> Tensor:
    if residual is None:
        return activate(z, activation, negative_slope)
    if residual_after:
        return activate(z, activation, negative_slope) + residual
    return activate(z + residual, activation, negative_slope)


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
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """See artkernels.functional.batch_norm_act."""
    z = torch_functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _finish(z, activation, negative_slope, residual, residual_after)


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
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """See artkernels.functional.instance_norm_act."""
    if running_mean is None and use_input_stats:
        # The same thing. torch.nn.functional.instance_norm of a batch of one gives a wrong gradient when grad_output
        # arrives in channels_last (torch 2.14).
        z = torch_functional.group_norm(input, input.shape[1], weight, bias, eps)
    else:
        z = torch_functional.instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    return _finish(z, activation, negative_slope, residual, residual_after)


def group_norm_act(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """See artkernels.functional.group_norm_act."""
    z = torch_functional.group_norm(input, num_groups, weight, bias, eps)
    return _finish(z, activation, negative_slope, residual, residual_after)


def adaptive_instance_norm(
    input: Tensor,
    style_mean: Tensor,
    style_std: Tensor,
    alpha: float = 1.0,
    eps: float = 1e-5,
    *,
    unbiased: bool = True,
    activation: str = "none",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    residual_after: bool = False,
) -> Tensor:
    """See artkernels.functional.adaptive_instance_norm; the style's statistics are [N, C]."""
    shape = (*input.shape[:2], *(1,) * (input.dim() - 2))
    mean, var = (t.view(shape) for t in feature_statistics(input, unbiased=unbiased))
    stylized = (input - mean) / (var + eps).sqrt() * style_std.view(shape) + style_mean.view(shape)
    return _finish(stylized * alpha + input * (1 - alpha), activation, negative_slope, residual, residual_after)


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
    activation: str = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """See artkernels.functional.conv_transpose2d_act."""
    z = torch_functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return activate(z, activation, negative_slope)


def conv_transpose2d_norm_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    output_padding: Pair = 0,
    groups: int = 1,
    dilation: Pair = 1,
    **follow: Any,
) -> Tensor:
    """See artkernels.functional.conv_transpose2d_norm_act, whose keyword-only arguments are `follow`."""
    z = torch_functional.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _norm_act(z, **follow)


def conv2d_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: str = "none",
    negative_slope: float = 0.01,
) -> Tensor:
    """See artkernels.functional.conv2d_act."""
    z = _conv2d(input, weight, bias, stride, padding, dilation, groups, padding_mode)
    return activate(z, activation, negative_slope)


def conv2d_norm_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    **follow: Any,
) -> Tensor:
    """See artkernels.functional.conv2d_norm_act, whose other keyword-only arguments are `follow`."""
    return _norm_act(_conv2d(input, weight, bias, stride, padding, dilation, groups, padding_mode), **follow)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
    padding_mode: str,
) -> Tensor:
    """As the module torch.nn.Conv2d(padding_mode=...) computes it."""
    K, C, kernel_h, kernel_w = weight.shape
    options: Any = {"padding": padding, "padding_mode": padding_mode, "device": "meta"}
    module = torch.nn.Conv2d(C * groups, K, (kernel_h, kernel_w), stride, dilation=dilation, groups=groups, **options)
    result: Tensor = module._conv_forward(input, weight, bias)
    return result


def _norm_act(
    z: Tensor,
    *,
    norm: str = "batch",
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    training: bool = False,
    **finish: Any,
) -> Tensor:
    function = batch_norm_act if norm == "batch" else instance_norm_act
    return function(z, running_mean, running_var, norm_weight, norm_bias, training, **finish)


def feature_statistics(
    input: Tensor, *, groups: int | None = None, across_batch: bool = False, unbiased: bool = False
) -> tuple[Tensor, Tensor]:
    """See artkernels.functional.feature_statistics."""
    N, C = input.shape[:2]
    x = input if input.dtype == torch.float64 else input.float()
    x = x.reshape(N, C, -1).transpose(0, 1).reshape(C, -1) if across_batch else x.reshape(N, groups or C, -1)
    var, mean = torch.var_mean(x, -1, correction=int(unbiased))
    return mean, var


def norm_act_backward(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    statistics_given: bool,
    groups: int,
    across_batch: bool,
    eps: float,
    alpha: float,
    correction: float,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_input, sums, grad_residual) of torch.ops.artkernels.norm_act_backward, differentiable by autograd.

    Statistics that are not given depend on the input, and are computed from it here.
    """
    N, C = input.shape[:2]
    wide = torch.promote_types(input.dtype, torch.float32)
    x, dy, r = (None if t is None else t.reshape(N, C, -1).to(wide) for t in (input, grad_output, residual))
    assert x is not None
    assert dy is not None
    if not statistics_given:
        of_groups = None if groups == C else groups
        mean, var = feature_statistics(x, groups=of_groups, across_batch=across_batch)
        elements = x.numel() / mean.numel()
        var = var * (elements / (elements - correction))

    def per_channel(t: Tensor) -> Tensor:
        return t.repeat_interleave(C // t.shape[-1], -1).unsqueeze(-1)

    xhat = (x - per_channel(mean)) * per_channel((var + eps).rsqrt())
    scaled = xhat if weight is None else xhat * per_channel(weight)
    z = (scaled if bias is None else scaled + per_channel(bias)) * alpha + x * (1 - alpha)
    z = z if r is None else z + r
    dz = dy
    if activation != "none":
        z = z if z.requires_grad else z.requires_grad_()
        (dz,) = torch.autograd.grad(activate(z, activation, negative_slope), z, dy, create_graph=True)
    weighted = dz if weight is None else dz * per_channel(weight)
    through_norm = weighted
    if not statistics_given:

        def sums_of_groups(t: Tensor) -> Tensor:
            return t.sum((0, 2)) if across_batch else t.reshape(N, groups, -1).sum(-1)

        a1, a2 = sums_of_groups(weighted) / elements, sums_of_groups(weighted * xhat) / (elements - correction)
        through_norm = weighted - per_channel(a1) - xhat * per_channel(a2)
    grad_input = through_norm * per_channel((var + eps).rsqrt()) * alpha + dz * (1 - alpha)
    dims = (0, 2) if across_batch else (2,)
    return (
        grad_input.reshape(input.shape).to(input.dtype),
        torch.stack([dz.sum(dims), (dz * xhat).sum(dims)]),
        dz.reshape(input.shape).to(input.dtype),
    )


def reparameterize_kl(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """See artkernels.functional.reparameterize_kl."""
    m, x, z = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (mean, logvar, noise))
    divergence = (m.square() + torch.expm1(x) - x) / 2
    return (m + z * torch.exp(x / 2)).to(mean.dtype), divergence.unsqueeze(-1).flatten(1).sum(1)


def reparameterize_kl_backward(
    grad_codes: Tensor | None, grad_kl: Tensor | None, mean: Tensor, logvar: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of mean, logvar and noise, differentiable by autograd; a gradient that is None counts as zero."""
    m, x, z = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (mean, logvar, noise))
    sigma = torch.exp(x / 2)
    of_mean, of_logvar, of_noise = torch.zeros_like(m), torch.zeros_like(x), torch.zeros_like(z)
    if grad_codes is not None:
        of_noise = grad_codes * sigma
        of_mean, of_logvar = of_mean + grad_codes, of_noise * z / 2
    if grad_kl is not None:
        of_sample = grad_kl.view(-1, *(1,) * (mean.dim() - 1))
        of_mean, of_logvar = of_mean + of_sample * m, of_logvar + of_sample * torch.expm1(x) / 2
    return of_mean.to(mean.dtype), of_logvar.to(mean.dtype), of_noise.to(mean.dtype)
