"""Gram matrix + MSE at VGG-19's shapes, forward and forward + backward, against stock PyTorch on the CPU.

python benchmarks/bench_gram.py [--rounds 21] [--dtype float32|bfloat16|float16] [--compile]
"""

import argparse
import functools

import torch
from harness import interleave, machine, ratio
from torch.nn import functional as torch_functional

import artkernels
from artkernels import functional as F

SHAPES = [(64, 256), (128, 128), (256, 64), (512, 32)]


def stock_loss(input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What style-transfer code does: a batched matrix product, a division, mse_loss."""
    N, C, H, W = input.shape
    x = input.reshape(N, C, H * W)
    return torch_functional.mse_loss(torch.bmm(x, x.mT) / (C * H * W), target.to(x.dtype))


def train_step(loss, input: torch.Tensor, target: torch.Tensor):
    def step() -> torch.Tensor:
        input.grad = None
        loss(input, target).backward()
        return input.grad

    return step


def case(N: int, C: int, size: int, dtype: torch.dtype, layout: torch.memory_format, rounds: int, compile: bool) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    x = torch.randn(N, C, size, size).relu().to(dtype, memory_format=layout)
    target = torch.randn(N, C, C)
    target += target.mT.clone()
    losses = {"ours": F.gram_mse_loss, "eager": stock_loss}
    if compile:
        torch._dynamo.reset()
        losses["compile"] = torch.compile(stock_loss)
    with torch.no_grad():
        forward = interleave({name: functools.partial(loss, x, target) for name, loss in losses.items()}, rounds)
    leaf = x.clone().requires_grad_()
    train = interleave({name: train_step(loss, leaf, target) for name, loss in losses.items()}, rounds)
    rate = 2 * N * C * C * size * size / forward["ours"].median / 1e9
    columns = [f"{'NCHW' if layout == torch.contiguous_format else 'NHWC'} {N}x{C}x{size}x{size}".ljust(20)]
    for name, timings, note in (("forward", forward, f" {rate:5.0f} GFLOP/s"), ("train", train, "")):
        columns.append(f"{name} {1e3 * timings['ours'].median:7.2f} ms{note}")
        columns += [f"{peer} {ratio(timings[peer], timings['ours'])}" for peer in losses if peer != "ours"]
    return "  ".join(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a second peer")
    args = parser.parse_args()
    print(f"{machine()}, kernels for {artkernels.build_info()['cpu_instruction_set']}, {args.dtype}")
    print("ratio: time of the peer / ours, median (quartiles) of rounds; GFLOP/s counts the whole matrix, 2 N C C H W")
    for layout in (torch.contiguous_format, torch.channels_last):
        for N in (1, 4):
            for C, size in SHAPES:
                print(case(N, C, size, getattr(torch, args.dtype), layout, args.rounds, args.compile), flush=True)


if __name__ == "__main__":
    main()
