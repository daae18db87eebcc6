"""Modelled traffic of the Gram kernels on VGG-19's style layers: python benchmarks/modelled_gram.py

Nothing here is measured: the kernels run on tests/cuda_emulator, which counts what they do. The columns:

DRAM      32-byte sectors that a launch touches, each once, added over the launches of the call. What one kernel of the
          call writes and the next reads (partial sums, S = D + D^T) is counted both times, though it stays in L2:
          "of it L2".
least     what any implementation must move: the input and the target once, the output once.
stock     PyTorch's sequence of kernels, an operand read once per kernel: forward bmm, scale, mse (G - T, square, mean);
          backward through mse, scale and bmm: two bmm with the features, and their sum.
L2        all sectors requested by the kernels, however often.
banks     shared-memory passes over conflict-free passes.
bound     the slowest of DRAM, arithmetic, issue and shared memory, assuming perfect overlap, for the kernels of the
          call one after the other, without launch latency; and what bounds the longest of them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cuda_launchers as cuda
from cuda_launchers import cudaemu

LAYERS = {"relu1_1": (64, 256, 256), "relu2_1": (128, 128, 128), "relu3_1": (256, 64, 64), "relu4_1": (512, 32, 32)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROFILES = ("h100", "a100", "rtx4090")


def stock_bytes(backward: bool, features: int, matrix: int, element: int) -> int:
    """DRAM bytes of the stock sequence; features and matrix are the elements of X and of G."""
    if backward:
        # mse: G and T to dG; scale: dG to dG; two bmm (dG X and dG^T X), each reads X and dG and writes X; their sum.
        return element * (3 * matrix + 2 * matrix + 2 * (matrix + 2 * features) + 3 * features)
    # bmm: X to G; scale: G to G; subtract, square, mean as one mse kernel: G and T.
    return element * (features + matrix + 2 * matrix + 2 * matrix)


def row(launches, least: int, stock: int) -> str:
    dram = [32 * (run.unique_read_sectors + run.unique_written_sectors) for run in launches]
    l2 = sum(32 * (run.global_load["sectors"] + run.global_store["sectors"]) for run in launches)
    # Written by a kernel of the call for a later one: everything but the last kernel's output.
    passed_on = sum(32 * run.unique_written_sectors for run in launches[:-1])
    shared = [counts for run in launches for counts in (run.shared_load, run.shared_store)]
    banks = sum(counts["wavefronts"] for counts in shared) / sum(counts["ideal"] for counts in shared)
    bounds = []
    for profile in PROFILES:
        lines = [run.roofline(profile) for run in launches]
        longest = max(lines, key=lambda line: line["bound_s"])
        bounds.append(f"{1e6 * sum(line['bound_s'] for line in lines):7.1f} {longest['limiter']:<8}")
    blocks = "+".join(str(run.grid[0]) for run in launches)
    return (
        f"{sum(dram) / 1e6:7.2f} {2 * passed_on / 1e6:9.2f} {least / 1e6:7.2f} {stock / 1e6:7.2f} {l2 / 1e6:7.2f} "
        f"{banks:6.2f}  {blocks:<14} {' '.join(bounds)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--tf32", action="store_true", help="float32: one TF32 product instead of three")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", type=int, default=16384, help="emulate at most this many pixels of an image")
    parser.add_argument("--profile", default="h100", help="the device whose number of SMs chooses the grid")
    args = parser.parse_args()
    try:
        cudaemu.build.cuda_home()
    except cudaemu.BuildError as error:
        sys.exit(f"modelled_gram: {error}")
    print(
        f"modelled on {args.profile}'s grid, {'channels_last' if args.channels_last else 'NCHW'}, batch {args.batch}; "
        "MB, microseconds\n"
    )
    print(
        f"{'layer':<8} {'dtype':<9} {'C x pixels':<24} {'op':<8} {'DRAM':>7} {'of it L2':>9} {'least':>7} {'stock':>7} "
        f"{'L2':>7} {'banks':>6}  {'blocks':<14} " + " ".join(f"{p:<16}" for p in PROFILES)
    )
    for layer in args.layer:
        channels, height, width = LAYERS[layer]
        pixels = min(height * width, args.pixels)
        for name in args.dtype:
            dtype = DTYPES[name]
            x = torch.randn(args.batch, channels, pixels).relu()
            target = x @ x.mT / x[0].numel() + 0.01
            placed = cuda.place((x.mT if args.channels_last else x).to(dtype))
            options = dict(
                channels_last=args.channels_last,
                scale=1 / x[0].numel(),
                tf32=args.tf32,
                profile=args.profile,
                checks="none,traffic",
            )
            element, features, matrix = placed.element_size(), x.numel(), args.batch * channels**2
            shape = f"{channels} x {pixels}" + (f" of {height * width}" if pixels < height * width else "")
            start = time.perf_counter()
            forward = cuda.gram(placed, target=target, outputs=("residual", "loss"), **options)
            backward = cuda.gram_backward(placed, forward["residual"], factor=1.0, **options)
            seconds = time.perf_counter() - start
            least = element * features + 8 * matrix, 2 * element * features + 4 * matrix
            for op, launches, bytes_least in (
                ("forward", forward["launches"], least[0]),
                ("backward", backward["launches"], least[1]),
            ):
                stock = stock_bytes(op == "backward", features, matrix, element)
                print(f"{layer:<8} {name:<9} {shape:<24} {op:<8} {row(launches, bytes_least, stock)}")
            print(f"{'':<8} emulated in {seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
