"""What is compared: a case, and the candidates that compute it, each in its way."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from artkernels.benchmarks.results import Pass

__all__ = ["LAYOUTS", "Candidate", "Case", "Setting", "SystemCase"]

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Setting:
    """How a case is asked for: which pass, of what, where."""

    kind: Pass
    layout: str = "contiguous"
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that is named."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def differentiates(self) -> bool:
        """Whether gradients are computed."""
        return self.kind in ("backward", "step")


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case.

    Attributes:
        call: computes it once.
        results: computes it once, from a seed of its own; returns what must agree between candidates: values (outputs
            or losses), and gradients.
    """

    call: Callable[[], object]
    results: Callable[[], tuple[list[Tensor], list[Tensor]]]


class SystemCase:
    """What is alike in cases of whole systems, such as a step of training; see Case."""

    layouts = ("contiguous",)
    dtypes = ("float32",)
    quick = False
    axis = ""
    threads = 0


class Case(Protocol):
    """Something that ours and stock PyTorch can both compute."""

    @property
    def op(self) -> str:
        """Its group: an op's name, models, training, video or scaling."""
        ...

    @property
    def name(self) -> str:
        """Unique in the group."""
        ...

    @property
    def title(self) -> str:
        """What is computed, for a table."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the input."""
        ...

    @property
    def quick(self) -> bool:
        """Whether it is part of a quick run."""
        ...

    @property
    def axis(self) -> str:
        """What varies in the series that it belongs to: batch, resolution or threads; else empty."""
        ...

    @property
    def threads(self) -> int:
        """Of the CPU, where they are what varies; else 0."""
        ...

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Those that make sense."""
        ...

    @property
    def layouts(self) -> tuple[str, ...]:
        """Those that differ."""
        ...

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Those that make sense."""
        ...

    def tolerance(self, dtype: str) -> tuple[float, float]:
        """The largest relative error of values and of gradients that rounding explains."""
        ...

    def peers(self, setting: Setting) -> list[str]:
        """Names of the candidates beside ours."""
        ...

    def candidate(self, name: str, setting: Setting, resources: ExitStack) -> Candidate:
        """Makes ours or a peer; what it holds while it is timed is released with ``resources``."""
        ...

    def least(self, setting: Setting) -> tuple[int, int]:
        """Bytes that any implementation must read and write, and FLOPs that it must do."""
        ...
