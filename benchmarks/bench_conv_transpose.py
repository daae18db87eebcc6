"""Transposed convolution + normalisation + activation: layers and decoders of art networks on the CPU.

python benchmarks/bench_conv_transpose.py [--rounds 11] [--dtype float32|bfloat16|float16] [--compile] [--pooled]
    [--engines] [--case NAME ...]

Peers: stock PyTorch in the layout of the input and in channels_last; --compile: torch.compile; --engines: ONNX Runtime
and OpenVINO, on whole decoders.
"""

import argparse
import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from harness import Timing, arguments, begin, interleave, ratio
from peers import engines, missing_note
from torch import Tensor, nn

import artkernels


@dataclass(frozen=True)
class Layer:
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

    def arguments(self) -> tuple:
        extra = (self.output_padding,) if self.transposed else ()
        return self.C, self.K, self.kernel, self.stride, self.padding, *extra

    def stock(self) -> list[nn.Module]:
        kind = nn.ConvTranspose2d if self.transposed else nn.Conv2d
        norms = {"batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
        activations = {"relu": nn.ReLU, "leaky_relu": functools.partial(nn.LeakyReLU, 0.2), "tanh": nn.Tanh}
        modules = [kind(*self.arguments(), bias=self.norm != "batch", padding_mode=self.padding_mode)]
        modules += [norms[self.norm](self.K)] if self.norm in norms else []
        return modules + ([activations[self.activation]()] if self.activation in activations else [])

    def ours(self) -> nn.Module:
        kind = artkernels.nn.ConvTransposeNormAct2d if self.transposed else artkernels.nn.ConvNormAct2d
        options = {"norm": self.norm, "activation": self.activation, "negative_slope": 0.2}
        return kind(*self.arguments(), bias=self.norm != "batch", padding_mode=self.padding_mode, **options)


@dataclass(frozen=True)
class Case:
    """Layers one after the other, and the shape of their input."""

    name: str
    shape: tuple[int, int, int, int]
    layers: list[Layer]

    def stock(self) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(*(module for layer in self.layers for module in layer.stock()))

    def ours(self, stock: nn.Sequential) -> nn.Sequential:
        """With the weights of `stock`: its state, entry by entry in the same order."""
        model = nn.Sequential(*(layer.ours() for layer in self.layers))
        states = zip(model.state_dict(), stock.state_dict().values(), strict=True)
        model.load_state_dict(dict(states))
        return model


def dcgan(first: int) -> list[Layer]:
    sizes = (100, 512, 256, 128, 64)
    layers = [Layer(C, K, 4, *((1, 0) if C == 100 else (2, 1))) for C, K in itertools.pairwise(sizes)]
    return [*layers, Layer(64, 3, 4, 2, 1, norm="none", activation="tanh")][first:]


def up(C: int, norm: str = "instance") -> Layer:
    return Layer(C, C // 2, 3, 2, 1, 1, norm=norm)


def picture(C: int, kernel: int, activation: str) -> Layer:
    options = {"transposed": False, "padding_mode": "reflect", "norm": "none"}
    return Layer(C, 3, kernel, 1, kernel // 2, activation=activation, **options)


CASES = [
    Case("dcgan-1", (64, 100, 1, 1), dcgan(0)[:1]),
    Case("dcgan-4", (64, 512, 4, 4), dcgan(1)[:1]),
    Case("dcgan-8", (64, 256, 8, 8), dcgan(2)[:1]),
    Case("dcgan-16", (64, 128, 16, 16), dcgan(3)[:1]),
    Case("dcgan-32", (64, 64, 32, 32), dcgan(4)),
    Case("dcgan-4-single", (1, 512, 4, 4), dcgan(1)[:1]),
    Case("dcgan-8-single", (1, 256, 8, 8), dcgan(2)[:1]),
    Case("dcgan-16-single", (1, 128, 16, 16), dcgan(3)[:1]),
    Case("dcgan-32-single", (1, 64, 32, 32), dcgan(4)),
    Case("cyclegan-64", (1, 256, 64, 64), [up(256)]),
    Case("cyclegan-128", (1, 128, 128, 128), [up(128)]),
    Case("cyclegan-picture", (1, 64, 256, 256), [picture(64, 7, "tanh")]),
    Case("fast-style-picture", (1, 32, 256, 256), [picture(32, 9, "none")]),
    Case("discriminator-64", (64, 3, 64, 64), [Layer(3, 64, 4, 2, 1, 0, "none", "leaky_relu", transposed=False)]),
    Case("dcgan-generator", (64, 100, 1, 1), dcgan(0)),
    Case("dcgan-generator-single", (1, 100, 1, 1), dcgan(0)),
    Case("cyclegan-decoder", (1, 256, 64, 64), [up(256), up(128), picture(64, 7, "tanh")]),
    Case("fast-style-decoder", (1, 128, 64, 64), [up(128), up(64), picture(32, 9, "none")]),
]


def check(calls: dict[str, Callable[[], object]], exact: Tensor, dtype: torch.dtype) -> None:
    for name, call in calls.items():
        error = ((torch.as_tensor(call()) - exact).abs().max() / exact.abs().max()).item()
        if not error < 512 * torch.finfo(dtype).eps:
            raise AssertionError(f"{name}: relative error {error:.1e}")


def inference(
    case: Case, dtype: torch.dtype, layout: torch.memory_format, args: argparse.Namespace
) -> dict[str, Timing]:
    x = torch.randn(case.shape).to(dtype).contiguous(memory_format=layout)
    stock = case.stock().to(dtype).eval()
    exact = stock.double()(x.double()).detach()
    stock.to(dtype).to(memory_format=layout)
    calls = {"ours": functools.partial(case.ours(stock).to(dtype).to(memory_format=layout).eval(), x)}
    calls["eager"] = functools.partial(stock, x)
    if layout == torch.contiguous_format:
        other = case.stock().to(dtype).eval().to(memory_format=torch.channels_last)
        calls["NHWC"] = functools.partial(other, x.contiguous(memory_format=torch.channels_last))
    if args.compile:
        torch._dynamo.reset()
        calls["compile"] = functools.partial(torch.compile(stock), x)
    if args.engines and layout == torch.contiguous_format and dtype == torch.float32 and len(case.layers) > 1:
        calls |= engines(stock, x)
    with torch.no_grad():
        check(calls, exact, dtype)
        return interleave(calls, args.rounds)


def training(
    case: Case, dtype: torch.dtype, layout: torch.memory_format, args: argparse.Namespace
) -> dict[str, Timing]:
    x = torch.randn(case.shape).to(dtype).contiguous(memory_format=layout).requires_grad_()
    stock = case.stock().to(dtype)
    models = {"ours": case.ours(stock).to(dtype), "eager": stock}

    def step(model: nn.Module, grad_output: Tensor) -> None:
        torch.autograd.grad(model(x), [x, *model.parameters()], grad_output)

    calls = {}
    for name, model in models.items():
        model.to(memory_format=layout)
        grad_output = torch.randn_like(model(x).detach())
        calls[name] = functools.partial(step, model, grad_output)
    return interleave(calls, args.rounds)


def line(case: Case, layout: torch.memory_format, timings: dict[str, dict[str, Timing]]) -> str:
    shape = "x".join(map(str, case.shape)) + ("" if layout == torch.contiguous_format else " NHWC")
    columns = [f"{case.name:<24} {shape:<20}"]
    for name, times in timings.items():
        columns.append(f"{name} {1e3 * times['ours'].median:8.3f} ms")
        columns += [f"{peer} {ratio(times[peer], times['ours'])}" for peer in times if peer != "ours"]
    return "  ".join(columns)


def main() -> None:
    parser = arguments(__doc__, (case.name for case in CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--engines", action="store_true", help="ONNX Runtime and OpenVINO as further peers")
    args = parser.parse_args()
    begin(args, args.dtype)
    print("ratio: time of the peer / ours, median (quartiles) of rounds" + (missing_note() if args.engines else ""))
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        for layout in (torch.contiguous_format, torch.channels_last):
            timings = {"inference": inference(case, getattr(torch, args.dtype), layout, args)}
            timings["train"] = training(case, getattr(torch, args.dtype), layout, args)
            print(line(case, layout, timings), flush=True)


if __name__ == "__main__":
    main()
