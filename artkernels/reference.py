"""The operations in plain PyTorch: their specification, what tests compare the kernels with in float64."""

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

__all__ = ["gram_matrix", "gram_mse_loss"]


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
