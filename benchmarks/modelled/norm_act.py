"""Normalisation + relu in layers of art networks.

Stock: statistics, apply, activation (5 passes over the feature map, AdaIN 7: mean, std, normalise, scale, blend);
backward activation and norm (8). Larger maps are emulated with fewer channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .case import DTYPES, LAYOUTS, Call, Case, cuda, nbytes

LAYERS = {  # kind, N, C, H, W
    "transformer in": ("instance", 1, 128, 256, 256),
    "transformer res": ("instance", 1, 256, 64, 64),
    "dcgan 32x32": ("batch", 64, 64, 32, 32),
    "dcgan 4x4": ("batch", 64, 512, 4, 4),
    "vqgan 16x16": ("group", 1, 512, 16, 16),
    "style transfer": ("adain", 1, 512, 32, 32),
}
ELEMENTS = 1 << 20  # emulated at most


def settings(params: type[cuda.NormAct], kind: str, x: Tensor, channels_last: bool) -> cuda.NormAct:
    features = cuda.features_of(x, channels_last)
    return params(
        features=features, groups=32 if kind == "group" else features.C, across_batch=kind == "batch", eps=1e-5,
        alpha=0.5 if kind == "adain" else 1, affine_stride=features.C if kind == "adain" else 0,
        activation=cuda.ACTIVATIONS.index("relu"),
    )  # fmt: skip


def emulate(kind: str, N: int, C: int, P: int, dtype: torch.dtype, channels_last: bool, **options: str) -> list[Call]:
    x = cuda.place(torch.randn((N, P, C) if channels_last else (N, C, P)).to(dtype))
    p, q = (settings(params, kind, x, channels_last) for params in (cuda.NormActParams, cuda.NormActBackwardParams))
    weight, bias = (cuda.place(torch.randn(N if p.affine_stride else 1, C)) for _ in range(2))
    mean, var = (cuda.empty(C if p.across_batch else N * p.groups) for _ in range(2))
    output, grad_input = (cuda.empty(*x.shape, dtype=dtype) for _ in range(2))
    sums = cuda.empty(2, *(() if p.across_batch else (N,)), C)

    def call(op: str, params: cuda.NormAct, read: dict[str, Tensor], written: dict[str, Tensor], passes: int) -> Call:
        read = {**read, "weight": weight, "bias": bias}
        tensors = {name: (tensor, name in written) for name, tensor in {**read, **written}.items()}
        launches = cuda.run_norm_act(op, params, tensors, seed=0, **options)
        kind = "backward" if op.endswith("backward") else "forward"
        return Call(kind, launches, nbytes(*read.values()), nbytes(*written.values()), passes * x.nbytes)

    statistics = {"mean": mean, "var": var}
    grads = {"grad_input": grad_input, "sums": sums}
    return [
        call("norm_act", p, {"input": x}, {"output": output, **statistics}, 7 if kind == "adain" else 5),
        call("norm_act_backward", q, {"input": x, "grad_output": output, **statistics}, grads, 8),
    ]


def cases() -> Iterator[Case]:
    for name, (kind, N, C, H, W) in LAYERS.items():
        emulated = max(8, min(C, ELEMENTS // (N * H * W)))
        for dtype in DTYPES:
            for layout, channels_last in LAYOUTS.items():
                yield Case(
                    op="norm_act", name=f"{name}, {kind}", dtype=dtype, layout=layout, shape=(N, C, H, W),
                    emulated=(N, emulated, H, W),
                    emulate=partial(emulate, kind, N, emulated, H * W, DTYPES[dtype], channels_last),
                )  # fmt: skip
