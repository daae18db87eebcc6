"""Modelled traffic of normalisation + relu in layers of art networks: python benchmarks/modelled_norm_act.py

modelled.py says what the columns are. least: input and output, backward both inputs and the gradient. stock:
statistics, apply, activation (5 passes over the feature map, AdaIN 7: mean, std, normalise, scale, blend); backward
activation and norm (8). Larger maps are emulated with fewer channels.
"""

from __future__ import annotations

import sys
import time

import torch
from modelled import DTYPES, HEADER, cuda, parser, require_nvcc, row

LAYERS = {  # kind, N, C, P
    "transformer in": ("instance", 1, 128, 256 * 256),
    "transformer res": ("instance", 1, 256, 64 * 64),
    "dcgan 32x32": ("batch", 64, 64, 32 * 32),
    "dcgan 4x4": ("batch", 64, 512, 4 * 4),
    "vqgan 16x16": ("group", 1, 512, 16 * 16),
    "adain": ("adain", 1, 512, 32 * 32),
}


def settings(params, kind: str, x: torch.Tensor, channels_last: bool):
    features = cuda.features_of(x, channels_last)
    groups = 32 if kind == "group" else features.C
    return params(
        features=features, groups=groups, across_batch=kind == "batch", eps=1e-5, alpha=0.5 if kind == "adain" else 1,
        affine_stride=features.C if kind == "adain" else 0, activation=cuda.ACTIVATIONS.index("relu"),
    )  # fmt: skip


def emulate(kind: str, x: torch.Tensor, channels_last: bool, profile: str):
    """The launches of a forward and of a backward."""
    p, q = (settings(params, kind, x, channels_last) for params in (cuda.NormActParams, cuda.NormActBackwardParams))
    N, C = p.features.N, p.features.C
    affine = {name: (cuda.place(torch.randn(N if p.affine_stride else 1, C)), False) for name in ("weight", "bias")}
    mean, var = (cuda.empty(C if p.across_batch else N * p.groups) for _ in range(2))
    output, grad_input = (cuda.empty(*x.shape, dtype=x.dtype) for _ in range(2))
    sums = cuda.empty(2, *(() if p.across_batch else (N,)), C)
    options = dict(profile=profile, seed=0, arch="compute_80", checks="none,traffic")
    tensors = {"input": (x, False), "output": (output, True), "mean": (mean, True), "var": (var, True), **affine}
    forward = cuda.run_norm_act("norm_act", p, tensors, **options)
    tensors = {
        "input": (x, False), "grad_output": (output, False), "mean": (mean, False), "var": (var, False),
        "grad_input": (grad_input, True), "sums": (sums, True), **affine,
    }  # fmt: skip
    return forward, cuda.run_norm_act("norm_act_backward", q, tensors, **options)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layer", nargs="*", choices=LAYERS, default=list(LAYERS))
    options.add_argument("--elements", type=int, default=1 << 20, help="emulate at most this many")
    args = options.parse_args()
    require_nvcc("modelled_norm_act")
    print(f"modelled on {args.profile}'s grid; MB, microseconds\n")
    print(f"{'layer':<16} {'kind':<9} {'dtype':<9} {'N x C x pixels':<24} {'layout':<6} {'op':<8} {HEADER}")
    start = time.perf_counter()
    for layer in args.layer:
        kind, N, C, P = LAYERS[layer]
        emulated = max(8, min(C, args.elements // (N * P)))
        shape = f"{N} x {emulated} x {P}" + (f" of {C}" if emulated < C else "")
        for dtype in args.dtype:
            for channels_last in (False, True):
                x = cuda.place(torch.randn((N, P, emulated) if channels_last else (N, emulated, P)).to(DTYPES[dtype]))
                size = x.numel() * x.element_size()
                passes = {"forward": (2, 7 if kind == "adain" else 5), "backward": (3, 8)}
                for op, launches in zip(passes, emulate(kind, x, channels_last, args.profile), strict=True):
                    least, stock = (size * n for n in passes[op])
                    layout = "NHWC" if channels_last else "NCHW"
                    line = f"{layer:<16} {kind:<9} {dtype:<9} {shape:<24} {layout:<6} {op:<8}"
                    print(line, row(launches, least, stock))
    print(f"emulated in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
