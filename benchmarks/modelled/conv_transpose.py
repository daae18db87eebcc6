"""Transposed convolutions of generators, with what is fused behind them.

Stock: the convolution, then bias and activation (each reads and writes the output), or bias and the statistics that a
normalisation begins with. Passed on in L2: sums of split channels, statistics of tiles, the packed weight of an image
layer. Emulated with fewer input channels, which leaves the tiles what they are, or fewer images.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .case import DEVICES, DTYPES, LAYOUTS, WITH_FLOAT_TENSOR_CORES, WITHOUT, Call, Case, cuda, nbytes

Shape = tuple[int, int, int, int, int]
Axis = tuple[int, int, int, int]

LAYERS: dict[str, tuple[Shape, tuple[int, int], Axis, str]] = {
    # (N, C, H, W, K), N and C emulated, (kernel, stride, padding, output padding), activation or statistics
    "dcgan 1x1": ((64, 100, 1, 1, 512), (64, 100), (4, 1, 0, 0), "batch"),
    "dcgan 4x4": ((64, 512, 4, 4, 256), (64, 32), (4, 2, 1, 0), "batch"),
    "dcgan 8x8": ((64, 256, 8, 8, 128), (32, 32), (4, 2, 1, 0), "batch"),
    "dcgan 16x16": ((64, 128, 16, 16, 64), (16, 32), (4, 2, 1, 0), "batch"),
    "dcgan image": ((64, 64, 32, 32, 3), (32, 64), (4, 2, 1, 0), "tanh"),
    "dcgan sample": ((1, 512, 4, 4, 256), (1, 512), (4, 2, 1, 0), "relu"),
    "cyclegan 64": ((1, 256, 64, 64, 128), (1, 64), (3, 2, 1, 1), "instance"),
    "cyclegan 128": ((1, 128, 128, 128, 64), (1, 32), (3, 2, 1, 1), "instance"),
    "fast style": ((1, 64, 128, 128, 32), (1, 32), (3, 2, 1, 1), "instance"),
}


def settings(shape: Shape, axis: Axis, last: str, dtype: torch.dtype, channels_last: bool) -> cuda.ConvTransposeParams:
    N, C, H, W, K = shape
    kernel, stride, padding, output_padding = axis
    of = cuda.Window(kernel, stride, padding, 1)
    OH, OW = ((size - 1) * stride - 2 * padding + kernel + output_padding for size in (H, W))
    gathered = last in cuda.STATISTICS
    return cuda.ConvTransposeParams(
        dtype=cuda.DTYPES[dtype], N=N, C=C, H=H, W=W, K=K, OH=OH, OW=OW, groups=1, rows=of, columns=of,
        input_channels_last=channels_last, output_channels_last=channels_last,
        activation=0 if gathered else cuda.ACTIVATIONS.index(last),
        statistics=cuda.STATISTICS.index(last) if gathered else 0,
    )  # fmt: skip


def emulate(shape: Shape, axis: Axis, last: str, dtype: torch.dtype, channels_last: bool, **options: str) -> list[Call]:
    p = settings(shape, axis, last, dtype, channels_last)

    def zeros(*size: int) -> Tensor:
        return cuda.place(torch.zeros(size, dtype=dtype))

    x, weight, output = zeros(p.N, p.C, p.H, p.W), zeros(p.C, axis[0] ** 2, p.K), zeros(p.N, p.K, p.OH, p.OW)
    read = {"input": x, "weight": weight, "bias": cuda.place(torch.zeros(p.K))}
    written = {"output": output}
    if p.statistics:
        written |= {name: cuda.empty(p.K if last == "batch" else p.N * p.K) for name in ("mean", "var")}
    tensors = {name: (tensor, name in written) for name, tensor in {**read, **written}.items()}
    launches = cuda.run_conv_transpose(p, tensors, seed=0, **options)
    stock = nbytes(x, weight, output) + (3 if p.statistics else 4) * output.nbytes
    return [Call("forward", launches, nbytes(*read.values()), nbytes(*written.values()), stock)]


def case(name: str, dtype: str, layout: str, devices: tuple[str, ...]) -> Case:
    (N, C, H, W, K), (images, channels), axis, last = LAYERS[name]
    shape = (images, channels, H, W, K)
    return Case(
        op="conv_transpose", name=f"{name}, to {K} channels, {last}", dtype=dtype, layout=layout, shape=(N, C, H, W),
        emulated=(images, channels, H, W), devices=devices,
        emulate=partial(emulate, shape, axis, last, DTYPES[dtype], LAYOUTS[layout]),
    )  # fmt: skip


def cases() -> Iterator[Case]:
    for name in LAYERS:
        for dtype in DTYPES:
            for layout in LAYOUTS:
                yield case(name, dtype, layout, WITH_FLOAT_TENSOR_CORES if dtype == "float32" else DEVICES)
    for name in ("dcgan image", "dcgan sample"):
        yield case(name, "float32", "contiguous", WITHOUT)
