"""Modelled traffic of the Gram kernels on VGG-19's style layers: python benchmarks/modelled_gram.py

modelled.py says what the columns are. What is passed on in L2: partial sums, S = D + D^T. stock: forward bmm, scale,
mse (G - T, square, mean); backward through mse, scale and bmm: two bmm with the features, and their sum.
"""

from __future__ import annotations

import sys
import time

import torch
from modelled import DTYPES, HEADER, cuda, parser, require_nvcc, row

LAYERS = {"relu1_1": (64, 256, 256), "relu2_1": (128, 128, 128), "relu3_1": (256, 64, 64), "relu4_1": (512, 32, 32)}


def stock_bytes(backward: bool, features: int, matrix: int, element: int) -> int:
    """DRAM bytes of the stock sequence; features and matrix are the elements of X and of G."""
    if backward:
        # mse: G and T to dG; scale: dG to dG; two bmm (dG X and dG^T X), each reads X and dG and writes X; their sum.
        return element * (3 * matrix + 2 * matrix + 2 * (matrix + 2 * features) + 3 * features)
    # bmm: X to G; scale: G to G; subtract, square, mean as one mse kernel: G and T.
    return element * (features + matrix + 2 * matrix + 2 * matrix)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS))
    options.add_argument("--channels-last", action="store_true")
    options.add_argument("--tf32", action="store_true", help="float32: one TF32 product instead of three")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--pixels", type=int, default=16384, help="emulate at most this many pixels of an image")
    args = options.parse_args()
    require_nvcc("modelled_gram")
    print(
        f"modelled on {args.profile}'s grid, {'channels_last' if args.channels_last else 'NCHW'}, batch {args.batch}; "
        "MB, microseconds\n"
    )
    print(f"{'layer':<8} {'dtype':<9} {'C x pixels':<24} {'op':<8} {HEADER}")
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
