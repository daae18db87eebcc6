"""Reparameterisation + KL divergence.

Stock, what each of its kernels reads and writes: forward, scale, exp, multiply and add (10 arrays), square, exp, add,
two subtractions and sum (13); backward, through the codes (11), through the divergence (10), the sums of both (5).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from .case import DTYPES, Call, Case, cuda, nbytes

SHAPES = {"vae": (64, 128), "latent maps": (16, 4096), "large maps": (4, 65536)}


def emulate(N: int, D: int, dtype: torch.dtype, **options: str) -> list[Call]:
    inputs = [cuda.place(torch.randn(N, D).to(dtype)) for _ in range(3)]  # mean, logvar, noise
    grad_codes, grad_kl = cuda.place(torch.randn(N, D).to(dtype)), cuda.place(torch.randn(N))
    codes, kl, forward = cuda.reparameterize_kl(*inputs, **options)
    of_mean, of_logvar, _, backward = cuda.reparameterize_kl_backward(
        grad_codes, grad_kl, *inputs, wanted=(True, True, False), **options
    )
    read = nbytes(*inputs)
    return [
        Call("forward", forward, read, nbytes(codes, kl), 23 * codes.nbytes + kl.nbytes),
        Call(
            "backward", backward, read + nbytes(grad_codes, grad_kl), nbytes(of_mean, of_logvar),
            26 * codes.nbytes + kl.nbytes,
        ),
    ]  # fmt: skip


def cases() -> Iterator[Case]:
    for name, (N, D) in SHAPES.items():
        for dtype in DTYPES:
            yield Case(
                op="reparameterize_kl", name=name, dtype=dtype, layout="contiguous", shape=(N, D), emulated=(N, D),
                emulate=partial(emulate, N, D, DTYPES[dtype]),
            )  # fmt: skip
