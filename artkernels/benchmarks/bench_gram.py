"""Gram matrix + mean squared error to a target at VGG-19's style layers (Gatys et al. 2016)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from artkernels import functional as F
from artkernels.benchmarks.module_case import Function, ModuleCase

__all__ = ["at", "cases"]


def _stock(input: Tensor, target: Tensor) -> Tensor:
    """What style-transfer code does: a batched matrix product, a division, mse_loss."""
    N, C, H, W = input.shape
    x = input.reshape(N, C, H * W)
    return torch_functional.mse_loss(torch.bmm(x, x.mT) / (C * H * W), target.to(x.dtype))


def _inputs(shape: tuple[int, ...]) -> list[Tensor]:
    N, C = shape[:2]
    target = torch.randn(N, C, C)
    return [torch.randn(shape).relu().requires_grad_(), target + target.mT]


def _fused(_: nn.Module) -> nn.Module:
    return Function(F.gram_mse_loss)


def at(shape: tuple[int, ...]) -> list[ModuleCase]:
    """The loss of features of one shape [N, C, H, W]."""
    return [_case("gram", shape)] if len(shape) == 4 else []


def _case(name: str, shape: tuple[int, ...], *, quick: bool = False) -> ModuleCase:
    return ModuleCase(
        "gram",
        name,
        "Gram matrix + MSE",
        shape,
        stock=lambda: Function(_stock),
        fused=_fused,
        inputs=_inputs,
        passes=("forward", "backward", "step"),
        flops_share=0.5,  # the matrix is symmetric, and so is its gradient: one product, not two
        quick=quick,
    )


def cases() -> list[ModuleCase]:
    """Three layers of a picture of 256 x 256, from few channels to many, and two of a batch."""
    return [
        _case("relu1_1", (1, 64, 256, 256), quick=True),
        _case("relu3_1", (1, 256, 64, 64)),
        _case("relu4_1", (1, 512, 32, 32), quick=True),
        _case("relu1_1-batch", (4, 64, 256, 256)),
        _case("relu3_1-batch", (4, 256, 64, 64)),
    ]
