"""What the trainer must know of a system of networks to train it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from artkernels import functional, reference
from artkernels.training.options import TrainingOptions

__all__ = ["Batch", "Losses", "Phase", "Recipe", "constant", "linear_decay"]

Batch = dict[str, Tensor]
"""The pictures of a step by their source, [N, 3, H, W], RGB in [0, 1], and what :meth:`Recipe.share` adds to them."""

Losses = dict[str, Tensor]
"""``"loss"``, the scalar to be minimised, and any other scalars to be logged."""


def constant(progress: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def linear_decay(progress: float) -> float:
    """The learning rate stays as it is for the first half of the run, then falls to 0 in a straight line."""
    return min(1.0, 2 * (1 - progress))


@dataclass(frozen=True)
class Phase:
    """One optimizer's turn in a training step. The weights of all other networks are frozen meanwhile.

    Attributes:
        name: of its losses in the log.
        networks: those that it trains.
        optimizer: of their parameters.
        loss: computes what to minimise from a batch.
        every: it takes place at every so many steps.
        schedule: what the learning rate is multiplied by, from the fraction of the run that is done.
    """

    name: str
    networks: tuple[nn.Module, ...]
    optimizer: Optimizer
    loss: Callable[[Batch], Losses]
    every: int = 1
    schedule: Callable[[float], float] = constant


class Recipe(ABC):
    """Networks, losses and phases of one system. It has no loop: :class:`~artkernels.training.trainer.Trainer` has.

    A constructor builds :attr:`networks` in stock ``torch.nn``, on the CPU, and :attr:`phases`; the trainer moves them
    to the device and, unless ``--kernels stock``, fuses them. Where ``--init`` names a checkpoint, the networks have
    its shape, and :attr:`options` says so.

    Attributes:
        options: as given, completed by what a checkpoint decides.
        networks: all that is trained, by names that checkpoints keep.
        frozen: networks that only look at pictures.
        averaged: names of the networks whose weights are averaged over time; they make the samples, and are what a
            snapshot holds.
        phases: in the order of a step.
    """

    name: ClassVar[str]
    summary: ClassVar[str]  # a line of --help
    options_type: ClassVar[type[TrainingOptions]]

    options: TrainingOptions
    networks: dict[str, nn.Module]
    frozen: tuple[nn.Module, ...] = ()
    averaged: tuple[str, ...]
    phases: tuple[Phase, ...]

    device: torch.device = torch.device("cpu")
    rank: int = 0
    world_size: int = 1

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @property
    def F(self) -> Any:
        """The operations that losses are made of: the fused ones, or with ``--kernels stock`` plain PyTorch."""
        return functional if self.options.kernels == "fused" else reference

    def sources(self) -> dict[str, Path]:
        """The folders that the pictures of a batch come from."""
        return {"data": self.options.data}

    def share(self, batch: Batch, step: int) -> None:
        """Add to ``batch`` what several phases of a step need, computed once. Nothing is frozen here."""
        return

    @abstractmethod
    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """Pictures, [N, 3, H, W] in [0, 1], that show what the networks have learnt: the fakes of a run directory.

        Args:
            networks: the averaged networks, in evaluation mode.
            batch: the same pictures each time, those of reals.png.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside networks and optimizers, as tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        return

    def randn(self, count: int, *shape: int) -> Tensor:
        """Normally distributed noise [count, *shape] for the pictures of this process.

        It is drawn for those of all processes, which all draw the same, and each takes its part: so that a picture's
        noise does not depend on how many processes there are.
        """
        return self._own(torch.randn(count * self.world_size, *shape))

    def rand(self, count: int, *shape: int) -> Tensor:
        """As :meth:`randn`, uniform in [0, 1)."""
        return self._own(torch.rand(count * self.world_size, *shape))

    def _own(self, noise: Tensor) -> Tensor:
        return noise.chunk(self.world_size)[self.rank].to(self.device, non_blocking=True)
