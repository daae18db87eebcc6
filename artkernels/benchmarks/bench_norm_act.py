"""Normalisation + activation at the layers of art networks."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import artkernels
from artkernels import functional as F
from artkernels import reference
from artkernels.benchmarks.module_case import Function, ModuleCase
from artkernels.benchmarks.results import Pass
from artkernels.ops.norm_act import Activation

__all__ = ["at", "cases"]

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.2),
    "silu": nn.SiLU,
}


class _Stock(nn.Module):
    """The layers one after the other."""

    def __init__(self, norm: nn.Module, activation: str) -> None:
        super().__init__()
        self.norm, self.activation = norm, _ACTIVATIONS[activation]()
        weight, bias = norm.parameters()
        nn.init.uniform_(weight, 0.5, 1.5)
        nn.init.normal_(bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        z = self.norm(x)
        return self.activation(z if residual is None else z + residual)


def _norms(kind: str, C: int, activation: Activation) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module]]:
    """What makes stock's norm, and ours with the activation."""
    slope = 0.2
    if kind == "instance":
        return (
            lambda: nn.InstanceNorm2d(C, affine=True),
            lambda: artkernels.nn.InstanceNormAct2d(C, affine=True, activation=activation, negative_slope=slope),
        )
    if kind == "group":
        return (
            lambda: nn.GroupNorm(32, C),
            lambda: artkernels.nn.GroupNormAct2d(32, C, activation=activation, negative_slope=slope),
        )
    return (
        lambda: nn.BatchNorm2d(C),
        lambda: artkernels.nn.BatchNormAct2d(C, activation=activation, negative_slope=slope),
    )


def _case(
    name: str,
    shape: tuple[int, ...],
    kind: str,
    activation: Activation,
    *,
    residual: bool = False,
    passes: tuple[Pass, ...] = ("forward", "backward", "step"),
    quick: bool = False,
) -> ModuleCase:
    norm, ours = _norms(kind, shape[1], activation)

    def fused(stock: nn.Module) -> nn.Module:
        assert isinstance(stock, _Stock)
        layer = ours().to(next(stock.parameters()).device).train(stock.training)
        layer.load_state_dict(stock.norm.state_dict())
        return layer

    def inputs(shape: tuple[int, ...]) -> list[Tensor]:
        return [torch.randn(shape, requires_grad=True) for _ in range(2 if residual else 1)]

    words = [f"{kind} norm", *(["residual"] if residual else []), *([activation] if activation != "none" else [])]
    if passes == ("inference",):
        words[0] = f"evaluation {words[0]}"
    return ModuleCase(
        "norm_act",
        name,
        " + ".join(words),
        shape,
        stock=lambda: _Stock(norm(), activation),
        fused=fused,
        inputs=inputs,
        passes=passes,
        cast="inputs",
        quick=quick,
    )


def _adaptive(name: str, shape: tuple[int, ...]) -> ModuleCase:
    def inputs(shape: tuple[int, ...]) -> list[Tensor]:
        mean, std = torch.randn(shape[:2]), torch.rand(shape[:2]) + 0.5
        return [torch.randn(shape, requires_grad=True), mean.requires_grad_(), std.requires_grad_()]

    return ModuleCase(
        "norm_act",
        name,
        "adaptive instance norm",
        shape,
        stock=lambda: Function(reference.adaptive_instance_norm),
        fused=lambda _: Function(F.adaptive_instance_norm),
        inputs=inputs,
        passes=("forward", "backward", "step"),
        cast="inputs",
    )


def at(shape: tuple[int, ...]) -> list[ModuleCase]:
    """Every norm on feature maps of one shape [N, C, H, W]."""
    if len(shape) != 4:
        return []
    groups = [] if shape[1] % 32 else [_case("group", shape, "group", "silu")]
    return [
        _case("instance", shape, "instance", "relu"),
        _case("batch", shape, "batch", "leaky_relu"),
        *groups,
        _adaptive("adaptive", shape),
    ]


def cases() -> list[ModuleCase]:
    """Fast neural style, CycleGAN, DCGAN, VQGAN and AdaIN, from planes that fit in no cache to 4 x 4 pixels."""
    return [
        _case("fast-style-256", (1, 128, 256, 256), "instance", "relu", quick=True),
        _case("fast-style-64", (1, 256, 64, 64), "instance", "relu"),
        _case("cyclegan-residual", (1, 256, 64, 64), "instance", "none", residual=True),
        _case("dcgan-32", (64, 64, 32, 32), "batch", "leaky_relu", quick=True),
        _case("dcgan-16", (64, 128, 16, 16), "batch", "relu"),
        _case("dcgan-4", (64, 512, 4, 4), "batch", "relu"),
        _case("dcgan-sampling", (64, 64, 32, 32), "batch", "relu", passes=("inference",)),
        _case("vqgan-64", (4, 128, 64, 64), "group", "silu"),
        _adaptive("adain-32", (4, 512, 32, 32)),
    ]
