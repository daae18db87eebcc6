"""Gram matrix + MSE at VGG-19's shapes, forward and forward + backward, against stock PyTorch on the CPU.

    python benchmarks/bench_gram.py [--rounds 21] [--dtype float32|bfloat16|float16] [--compile]
"""

import argparse

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="torch.compile as a second peer")
    args = parser.parse_args()
    print(f"{machine()}, kernels for {artkernels.build_info()['cpu_instruction_set']}, {args.dtype}")
    print("ratio: time of stock PyTorch / ours, median (quartiles) of rounds; GFLOP/s counts the whole matrix, 2 N C C H W")
    for layout in (torch.contiguous_format, torch.channels_last):
        for N in (1, 4):
            for C, size in SHAPES:
                torch.manual_seed(0)
                x = torch.randn(N, C, size, size).relu().to(getattr(torch, args.dtype), memory_format=layout)
                target = torch.randn(N, C, C)
                target += target.mT.clone()
                leaf = x.clone().requires_grad_()
                peers = {"eager": stock_loss}
                if args.compile:
                    torch._dynamo.reset()
                    peers["compile"] = torch.compile(stock_loss)
                forward = {name: lambda f=f: f(x, target) for name, f in peers.items()}
                train = {name: train_step(f, leaf, target) for name, f in peers.items()}
                with torch.no_grad():
                    f = interleave({"ours": lambda: F.gram_mse_loss(x, target)} | forward, args.rounds)
                t = interleave({"ours": train_step(F.gram_mse_loss, leaf, target)} | train, args.rounds)
                rate = 2 * N * C * C * size * size / f["ours"].median / 1e9
                name = f"{'NCHW' if layout == torch.contiguous_format else 'NHWC'} {N}x{C}x{size}x{size}"
                print(f"{name:20} forward {1e3 * f['ours'].median:7.2f} ms {rate:5.0f} GFLOP/s  "
                      + "  ".join(f"{p} {ratio(f[p], f['ours'])}" for p in peers)
                      + f"   train {1e3 * t['ours'].median:7.2f} ms  "
                      + "  ".join(f"{p} {ratio(t[p], t['ours'])}" for p in peers), flush=True)


if __name__ == "__main__":
    main()
