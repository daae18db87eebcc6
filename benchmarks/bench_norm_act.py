"""Normalisation + activation at the shapes of art networks, forward and forward + backward, on the CPU.

python benchmarks/bench_norm_act.py [--rounds 21] [--dtype float32|bfloat16|float16] [--compile] [--pooled]
    [--case NAME ...]
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from harness import Timing, arguments, begin, interleave, ratio
from torch import Tensor
from torch.nn import functional as torch_functional

from artkernels import functional as F
from artkernels import reference


@dataclass(frozen=True)
class Case:
    """A layer: what it computes, at which shape."""

    name: str
    shape: tuple[int, ...]
    kind: str
    activation: str
    residual: bool = False

    def __str__(self) -> str:
        return (
            f"{self.kind} norm"
            + (f" + {self.activation}" if self.activation != "none" else "")
            + (" + residual" if self.residual else "")
        )


CASES = [
    Case("fast-style-256", (1, 128, 256, 256), "instance", "relu"),
    Case("fast-style-64", (1, 256, 64, 64), "instance", "relu"),
    Case("cyclegan-residual", (1, 256, 64, 64), "instance", "none", residual=True),
    Case("dcgan-32", (64, 64, 32, 32), "batch", "leaky_relu"),
    Case("dcgan-16", (64, 128, 16, 16), "batch", "relu"),
    Case("dcgan-4", (64, 512, 4, 4), "batch", "relu"),
    Case("dcgan-sampling", (64, 64, 32, 32), "evaluation batch", "relu"),
    Case("vqgan-64", (4, 128, 64, 64), "group", "silu"),
    Case("adain-32", (4, 512, 32, 32), "adaptive instance", "none"),
]


def add(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else x + residual


def layer(case: Case, library: ModuleType) -> Callable[..., Tensor]:
    """The case as a function of the input, residual, weight and bias."""
    options = {"activation": case.activation, "negative_slope": 0.2}
    activate = functools.partial(reference.activate, **options)
    if case.kind == "instance" and library is reference:  # which calls group norm, see there
        return lambda x, r, w, b: add(activate(torch_functional.instance_norm(x, weight=w, bias=b)), r)
    if case.kind == "instance":
        return lambda x, r, w, b: library.instance_norm_act(x, weight=w, bias=b, residual=r, **options)
    if case.kind == "batch":
        return lambda x, r, w, b: library.batch_norm_act(x, None, None, w, b, True, residual=r, **options)
    if case.kind == "evaluation batch":
        mean, var = torch.zeros(case.shape[1]), torch.ones(case.shape[1])

        def evaluate(x: Tensor, r: Tensor | None, w: Tensor, b: Tensor) -> Tensor:
            statistics = mean.to(w.dtype), var.to(w.dtype)
            return library.batch_norm_act(x, *statistics, w, b, False, residual=r, **options)

        return evaluate
    if case.kind == "group":
        return lambda x, r, w, b: library.group_norm_act(x, 32, w, b, residual=r, **options)
    return lambda x, r, w, b: library.adaptive_instance_norm(x, b, w, **options)


def train_step(function: Callable[..., Tensor], tensors: list[Tensor | None], grad_output: Tensor):
    def step() -> list[Tensor]:
        leaves = [t for t in tensors if t is not None]
        return torch.autograd.grad(function(*tensors), leaves, grad_output)

    return step


def check(functions: dict[str, Callable[..., Tensor]], inputs: list[Tensor | None], dtype: torch.dtype) -> None:
    """All candidates compute the same; stock group norm in channels_last is the least exact of them."""
    exact = functions["eager"](*(t if t is None else t.double() for t in inputs))
    for name, function in functions.items():
        error = ((function(*inputs) - exact).abs().max() / exact.abs().max()).item()
        if not error < 512 * torch.finfo(dtype).eps:
            raise AssertionError(f"{name}: relative error {error:.1e}")


def time_case(
    case: Case, dtype: torch.dtype, layout: torch.memory_format, rounds: int, compile: bool
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    torch.manual_seed(0)
    N, C = case.shape[:2]
    affine = (N, C) if case.kind == "adaptive instance" else (C,)
    x, r, g = (torch.randn(case.shape).to(dtype).contiguous(memory_format=layout) for _ in range(3))
    inputs = [x, r if case.residual else None, torch.rand(affine) + 0.5, torch.randn(affine)]
    functions = {"ours": layer(case, F), "eager": layer(case, reference)}
    if compile:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(layer(case, reference))
    with torch.no_grad():
        check(functions, inputs, dtype)
        calls = {name: functools.partial(function, *inputs) for name, function in functions.items()}
        calls["copy"] = functools.partial(torch.clone, x)
        forward = interleave(calls, rounds)
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    train = interleave({name: train_step(function, leaves, g) for name, function in functions.items()}, rounds)
    return forward, train


def line(case: Case, layout: torch.memory_format, forward: dict[str, Timing], train: dict[str, Timing]) -> str:
    shape = "x".join(map(str, case.shape)) + ("" if layout == torch.contiguous_format else " NHWC")
    columns = [f"{case!s:<32} {shape:<22}"]
    for name, timings in (("forward", forward), ("train", train)):
        columns.append(f"{name} {1e3 * timings['ours'].median:7.3f} ms")
        columns += [f"{peer} {ratio(timings[peer], timings['ours'])}" for peer in timings if peer != "ours"]
    return "  ".join(columns)


def main() -> None:
    parser = arguments(__doc__, (case.name for case in CASES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.set_defaults(rounds=21)
    args = parser.parse_args()
    begin(args, args.dtype)
    print("ratio: time of the peer / ours, median (quartiles) of rounds; copy: torch.clone of the input")
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        for layout in (torch.contiguous_format, torch.channels_last):
            times = time_case(case, getattr(torch, args.dtype), layout, args.rounds, args.compile)
            print(line(case, layout, *times), flush=True)


if __name__ == "__main__":
    main()
