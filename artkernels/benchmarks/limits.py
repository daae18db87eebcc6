"""What the machine can do at most: how fast it copies memory, and how fast it multiplies and adds."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional as torch_functional

from artkernels.benchmarks.results import Limit

__all__ = ["Arithmetic", "Copy", "arithmetic", "copy_speed", "limit", "peak"]

_COPIED = 64 << 20  # bytes: larger than a cache


class Copy:
    """A copy that reads and writes ``nbytes`` together, in memory that is mapped already."""

    def __init__(self, nbytes: int, device: str) -> None:
        elements = max(1, nbytes // 2)
        self.source = torch.zeros(elements, dtype=torch.uint8, device=device)
        self.destination = torch.ones_like(self.source)

    def __call__(self) -> None:
        self.destination.copy_(self.source)


@dataclass(frozen=True)
class Arithmetic:
    """A call that does ``flops`` FLOPs as fast as PyTorch can on this machine."""

    call: Callable[[], object]
    flops: int


def arithmetic(dtype: torch.dtype, device: str) -> Arithmetic:
    """The fastest of a matrix product and a 3 x 3 convolution, in ``dtype`` and, where that is no faster, float32.

    Which of them comes near the peak depends on the machine: MKL's products do on Intel, oneDNN's convolutions on AMD,
    and 16 bits are slower than 32 on CPUs that only emulate them.
    """
    found = [work for kind in {dtype, torch.float32} for work in (_product(kind, device), _convolution(kind, device))]
    return max(found, key=lambda work: work.flops / _seconds(work.call, device))


def _product(dtype: torch.dtype, device: str) -> Arithmetic:
    size = 1024 if device == "cpu" else 4096
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return Arithmetic(lambda: torch.mm(a, b), 2 * size**3)


def _convolution(dtype: torch.dtype, device: str) -> Arithmetic:
    N, C, side = (1, 256, 48) if device == "cpu" else (16, 256, 64)
    x = torch.randn(N, C, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(C, C, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return Arithmetic(lambda: torch_functional.conv2d(x, weight, padding=1), 2 * N * C * C * 9 * side**2)


def _seconds(call: Callable[[], object], device: str) -> float:
    """The least of some calls."""
    least = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        with torch.no_grad():
            call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - start)
    return least


def copy_speed(device: str) -> float:
    """Bytes read and written a second by a large copy."""
    return _COPIED / _seconds(Copy(_COPIED, device), device)


def peak(work: Arithmetic, device: str) -> float:
    """FLOPs a second of the work."""
    return work.flops / _seconds(work.call, device)


def limit(nbytes: int, flops: int, copies: list[float], works: list[float], work: Arithmetic) -> Limit:
    """The limit of a case from what a copy of its bytes and the work took, round by round."""
    arithmetic_seconds = [flops / work.flops * seconds for seconds in works]
    by: Literal["memory", "arithmetic"] = "arithmetic" if sum(arithmetic_seconds) > sum(copies) else "memory"
    return Limit(nbytes, flops, arithmetic_seconds if by == "arithmetic" else copies, by)
