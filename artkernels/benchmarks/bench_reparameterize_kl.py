"""Reparameterisation + KL divergence of a VAE (Kingma and Welling 2013)."""

import torch
from torch import Tensor

from artkernels import functional as F
from artkernels.benchmarks.module_case import Function, ModuleCase

__all__ = ["at", "cases"]


def _stock(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """As it is written by hand."""
    divergence = 1 + logvar - mean.pow(2) - logvar.exp()
    return mean + noise * torch.exp(0.5 * logvar), -0.5 * divergence.flatten(1).sum(1)


def _inputs(shape: tuple[int, ...]) -> list[Tensor]:
    mean, logvar, noise = (torch.randn(shape) for _ in range(3))
    return [mean.requires_grad_(), logvar.requires_grad_(), noise]


def _case(name: str, shape: tuple[int, ...], *, quick: bool = False) -> ModuleCase:
    return ModuleCase(
        "reparameterize_kl",
        name,
        "reparameterisation + KL",
        shape,
        stock=lambda: Function(_stock),
        fused=lambda _: Function(F.reparameterize_kl),
        inputs=_inputs,
        passes=("forward", "backward", "step"),
        quick=quick,
    )


def at(shape: tuple[int, ...]) -> list[ModuleCase]:
    """Codes of one shape [N, ...]."""
    return [_case("codes", shape)]


def cases() -> list[ModuleCase]:
    """Codes of a VAE's usual sizes, and maps of latents."""
    return [_case("vae-128", (64, 128), quick=True), _case("wide", (256, 4096)), _case("latent-maps", (16, 4, 32, 32))]
