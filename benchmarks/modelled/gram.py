"""The Gram matrix and its mean squared error on VGG-19's style layers.

Passed on in L2: partial sums, S = D + D^T. Stock: forward bmm, scale, mse (G - T, square, mean); backward through mse,
scale and bmm: two bmm with the features, and their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .case import DEVICES, DTYPES, LAYOUTS, WITH_FLOAT_TENSOR_CORES, WITHOUT, Call, Case, cuda, nbytes

LAYERS = {  # C, H = W, H emulated
    "relu1_1": (64, 256, 128),
    "relu2_1": (128, 128, 96),
    "relu3_1": (256, 64, 64),
    "relu4_1": (512, 32, 32),
}


def emulate(channels: int, pixels: int, dtype: torch.dtype, channels_last: bool, **options: str) -> list[Call]:
    x = torch.randn(1, channels, pixels).relu()
    target = x @ x.mT / x[0].numel() + 0.01
    placed = cuda.place((x.mT if channels_last else x).to(dtype))
    options |= dict(channels_last=channels_last, scale=1 / x[0].numel())
    forward = cuda.gram(placed, target=target, outputs=("residual", "loss"), **options)
    residual = forward["residual"]
    backward = cuda.gram_backward(placed, residual, factor=1.0, **options)
    features, matrix, size = x.numel(), target.numel(), placed.element_size()
    # bmm: X to G; scale: G to G; mse: G and T, to the squares and their mean.
    stock = size * (features + matrix + 2 * matrix + 2 * matrix)
    # mse: G and T to dG; scale: dG to dG; two bmm (dG X and dG^T X), each reads X and dG and writes X; their sum.
    stock_backward = size * (3 * matrix + 2 * matrix + 2 * (matrix + 2 * features) + 3 * features)
    written = nbytes(residual, forward["loss"])
    return [
        Call("forward", forward["launches"], nbytes(placed, target), written, stock),
        Call("backward", backward["launches"], nbytes(placed, residual), nbytes(backward["grad"]), stock_backward),
    ]


def case(name: str, dtype: str, layout: str, side: int, devices: tuple[str, ...]) -> Case:
    C, H, _ = LAYERS[name]
    return Case(
        op="gram", name=name, dtype=dtype, layout=layout, shape=(1, C, H, H), emulated=(1, C, side, side),
        emulate=partial(emulate, C, side**2, DTYPES[dtype], LAYOUTS[layout]), devices=devices,
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for name, (_, _, side) in LAYERS.items():
        for dtype in DTYPES:
            for layout in LAYOUTS:
                yield case(name, dtype, layout, side, WITH_FLOAT_TENSOR_CORES if dtype == "float32" else DEVICES)
    yield case("relu3_1", "float32", "contiguous", 32, WITHOUT)
