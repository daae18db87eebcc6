"""Transposed convolution + normalisation + activation at the layers of generators, and the layers beside them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

import artkernels
from artkernels.benchmarks.module_case import ModuleCase

__all__ = ["at", "cases"]

_NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": functools.partial(nn.LeakyReLU, 0.2),
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class _Layer:
    """A layer as artkernels.nn has it; `transposed` or not."""

    C: int
    K: int
    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    norm: str = "batch"
    activation: str = "relu"
    transposed: bool = True
    padding_mode: str = "zeros"

    def __str__(self) -> str:
        kind = f"k{self.kernel} s{self.stride}" + ("" if self.transposed else " convolution")
        padding = ", reflect" if self.padding_mode == "reflect" else ""
        follow = " + ".join(
            [f"{self.norm} norm"] * (self.norm != "none") + [self.activation] * (self.activation != "none")
        )
        return f"{self.C} → {self.K}, {kind}{padding}{', ' if follow else ''}{follow}"

    def _convolution(self) -> dict[str, Any]:
        extra = {"output_padding": self.output_padding} if self.transposed else {"padding_mode": self.padding_mode}
        window = {"kernel_size": self.kernel, "stride": self.stride, "padding": self.padding}
        return {"in_channels": self.C, "out_channels": self.K, **window, "bias": self.norm != "batch", **extra}

    def stock(self) -> nn.Sequential:
        """The layers one after the other."""
        convolution = (nn.ConvTranspose2d if self.transposed else nn.Conv2d)(**self._convolution())
        norm = [_NORMS[self.norm](self.K)] if self.norm in _NORMS else []
        activation = [_ACTIVATIONS[self.activation]()] if self.activation in _ACTIVATIONS else []
        return nn.Sequential(convolution, *norm, *activation)

    def fused(self, stock: nn.Module) -> nn.Module:
        """Ours with the weights of ``stock``: its state, entry by entry in the same order."""
        kind = artkernels.nn.ConvTransposeNormAct2d if self.transposed else artkernels.nn.ConvNormAct2d
        layer = kind(**self._convolution(), norm=self.norm, activation=self.activation, negative_slope=0.2)
        layer.load_state_dict(dict(zip(layer.state_dict(), stock.state_dict().values(), strict=True)))
        return layer.to(next(stock.parameters())).train(stock.training)


def _case(name: str, shape: tuple[int, ...], layer: _Layer, *, quick: bool = False) -> ModuleCase:
    return ModuleCase("conv_transpose", name, str(layer), shape, stock=layer.stock, fused=layer.fused, quick=quick)


def _up(C: int) -> _Layer:
    """Of CycleGAN and of fast style: to twice the height and width."""
    return _Layer(C, C // 2, 3, 2, 1, 1, norm="instance")


def _picture(C: int, kernel: int, activation: str) -> _Layer:
    padding = kernel // 2
    return _Layer(C, 3, kernel, 1, padding, 0, "none", activation, transposed=False, padding_mode="reflect")


_DCGAN = {C: _Layer(C, C // 2, 4, 2, 1) for C in (512, 256, 128)}
_DCGAN_PICTURE = _Layer(64, 3, 4, 2, 1, norm="none", activation="tanh")


def at(shape: tuple[int, ...]) -> list[ModuleCase]:
    """DCGAN's and CycleGAN's upsampling, and the picture's layers, on feature maps of one shape [N, C, H, W]."""
    if len(shape) != 4:
        return []
    C = shape[1]
    halved = [_case("dcgan", shape, _Layer(C, C // 2, 4, 2, 1)), _case("cyclegan", shape, _up(C))] if C > 1 else []
    tail = _Layer(C, 3, 4, 2, 1, norm="none", activation="tanh")
    return [*halved, _case("dcgan-picture", shape, tail), _case("cyclegan-picture", shape, _picture(C, 7, "tanh"))]


def cases() -> list[ModuleCase]:
    """DCGAN's generator for a batch and for one picture, the upsampling and the last layers of style networks."""
    return [
        _case("dcgan-1", (64, 100, 1, 1), _Layer(100, 512, 4)),
        _case("dcgan-4", (64, 512, 4, 4), _DCGAN[512], quick=True),
        _case("dcgan-8", (64, 256, 8, 8), _DCGAN[256]),
        _case("dcgan-16", (64, 128, 16, 16), _DCGAN[128]),
        _case("dcgan-32", (64, 64, 32, 32), _DCGAN_PICTURE),
        _case("dcgan-8-single", (1, 256, 8, 8), _DCGAN[256]),
        _case("dcgan-32-single", (1, 64, 32, 32), _DCGAN_PICTURE),
        _case("cyclegan-64", (1, 256, 64, 64), _up(256)),
        _case("cyclegan-128", (1, 128, 128, 128), _up(128), quick=True),
        _case("cyclegan-picture", (1, 64, 256, 256), _picture(64, 7, "tanh")),
        _case("fast-style-picture", (1, 32, 256, 256), _picture(32, 9, "none")),
        _case("discriminator-64", (64, 3, 64, 64), _Layer(3, 64, 4, 2, 1, 0, "none", "leaky_relu", transposed=False)),
    ]
