"""Modelled traffic of transposed convolutions in generators: python benchmarks/modelled_conv_transpose.py

modelled.py says what the columns are. least: input, weight and output. stock: the convolution, then bias and activation
(each reads and writes the output), or bias and the statistics that a normalisation begins with. What is passed on in
L2: sums of split channels, statistics of tiles, the packed weight of an image layer. Batches are emulated smaller.
"""

from __future__ import annotations

import sys
import time

import torch
from modelled import DTYPES, HEADER, cuda, parser, require_nvcc, row

LAYERS = {  # N, C, H, W, K, (kernel, stride, padding, output padding), activation or statistics
    "dcgan 1x1": (64, 100, 1, 1, 512, (4, 1, 0, 0), "batch"),
    "dcgan 4x4": (64, 512, 4, 4, 256, (4, 2, 1, 0), "batch"),
    "dcgan 8x8": (64, 256, 8, 8, 128, (4, 2, 1, 0), "batch"),
    "dcgan 16x16": (64, 128, 16, 16, 64, (4, 2, 1, 0), "batch"),
    "dcgan image": (64, 64, 32, 32, 3, (4, 2, 1, 0), "tanh"),
    "dcgan sample": (1, 512, 4, 4, 256, (4, 2, 1, 0), "relu"),
    "cyclegan 64": (1, 256, 64, 64, 128, (3, 2, 1, 1), "instance"),
    "cyclegan 128": (1, 128, 128, 128, 64, (3, 2, 1, 1), "instance"),
    "fast style": (1, 64, 128, 128, 32, (3, 2, 1, 1), "instance"),
}


def settings(shape, window, last: str, dtype: torch.dtype, channels_last: bool, tf32: bool):
    N, C, H, W, K = shape
    kernel, stride, padding, output_padding = window
    of = cuda.Window(kernel, stride, padding, 1)
    OH, OW = ((size - 1) * stride - 2 * padding + kernel + output_padding for size in (H, W))
    gathered = last in cuda.STATISTICS
    return cuda.ConvTransposeParams(
        dtype=cuda.DTYPES[dtype], N=N, C=C, H=H, W=W, K=K, OH=OH, OW=OW, groups=1, rows=of, columns=of,
        input_channels_last=channels_last, output_channels_last=channels_last, allow_tf32=tf32,
        activation=0 if gathered else cuda.ACTIVATIONS.index(last),
        statistics=cuda.STATISTICS.index(last) if gathered else 0,
    )  # fmt: skip


def emulate(p, dtype: torch.dtype, profile: str):
    """The launches of a call, and the bytes of its input, weight and output."""

    def empty(*shape: int) -> torch.Tensor:
        return cuda.place(torch.zeros(shape, dtype=dtype))

    x, output = empty(p.N, p.C, p.H, p.W), empty(p.N, p.K, p.OH, p.OW)
    weight = empty(p.C, p.rows.kernel * p.columns.kernel, p.K)
    mean, var = (cuda.empty(p.N * p.K) if p.statistics else None for _ in range(2))
    tensors = {
        "input": (x, False), "weight": (weight, False), "bias": (cuda.place(torch.zeros(p.K)), False),
        "output": (output, True), "mean": (mean, True), "var": (var, True),
    }  # fmt: skip
    launches = cuda.run_conv_transpose(p, tensors, profile, 0, "compute_80", "none,traffic")
    if p.statistics:  # row() takes what all launches but the last write for passed on: let that be the output's
        launches = [*launches[:-2], launches[-1], launches[-2]]
    return launches, *(t.numel() * t.element_size() for t in (x, weight, output))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS))
    options.add_argument("--tf32", action="store_true", help="float32: one TF32 product instead of three")
    options.add_argument("--gflop", type=float, default=0.6, help="emulate at most this much work of a layer")
    args = options.parse_args()
    require_nvcc("modelled_conv_transpose")
    print(f"modelled on {args.profile}'s grid; MB, microseconds\n")
    print(f"{'layer':<13} {'dtype':<9} {'N x C x H x W -> K':<31} {'layout':<6} {HEADER}")
    start = time.perf_counter()
    for layer in args.layer:
        *shape, window, last = LAYERS[layer]
        N, C, H, W, K = shape
        work = 2e-9 * C * H * W * K * window[0] ** 2  # of an image
        emulated = max(1, min(N, int(args.gflop / work)))
        text = f"{emulated} x {C} x {H} x {W} -> {K}" + (f" of {N}" if emulated < N else "")
        for name in args.dtype:
            for channels_last in (False, True):
                dtype = DTYPES[name]
                p = settings((emulated, *shape[1:]), window, last, dtype, channels_last, args.tf32)
                launches, x, weight, output = emulate(p, dtype, args.profile)
                after = 3 if p.statistics else 4
                stock = x + weight + output + after * output
                layout = "NHWC" if channels_last else "NCHW"
                print(
                    f"{layer:<13} {name:<9} {text:<31} {layout:<6} {row(launches, x + weight + output, stock)}",
                    flush=True,
                )
    print(f"emulated in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
