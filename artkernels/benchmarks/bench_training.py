"""Training steps of the recipes: the trainer on the fused operations against the trainer on stock PyTorch.

A step is everything from the noise to the optimizers and the averaged weights, but for reading files and writing them.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from artkernels.benchmarks.case import Candidate, Setting, SystemCase
from artkernels.benchmarks.results import EAGER, OURS, Pass
from artkernels.drawing import draw_set

if TYPE_CHECKING:
    from artkernels.training.trainer import Trainer

__all__ = ["RecipeCase", "cases"]

_PICTURES = "PICTURES"  # in options, the folder that a case makes


@dataclass(frozen=True)
class RecipeCase(SystemCase):
    """A recipe with some options; see Case."""

    name: str
    batch: int
    resolution: int
    options: dict[str, str] = field(default_factory=dict)
    op = "training"
    passes: tuple[Pass, ...] = ("step",)

    @property
    def title(self) -> str:
        return f"{self.name}, a step of training"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch, 3, self.resolution, self.resolution

    def tolerance(self, dtype: str) -> tuple[float, float]:
        """Of losses: a phase's follow from those before it, through an optimizer's sign of near-zero gradients."""
        return 1e-3, 0.0

    def peers(self, setting: Setting) -> list[str]:
        return [EAGER]

    def candidate(self, name: str, setting: Setting, resources: ExitStack) -> Candidate:
        trainer = self._trainer({OURS: "fused", EAGER: "stock"}[name], setting, resources)
        step = self._step(trainer)

        def results() -> tuple[list[Tensor], list[Tensor]]:
            torch.manual_seed(0)
            step()
            return [torch.tensor(list(trainer.means().values()))], []

        return Candidate(step, results)

    def least(self, setting: Setting) -> tuple[int, int]:
        """The FLOPs of stock's convolutions and products; of memory the weights alone, which is not what bounds it."""
        with ExitStack() as resources:
            trainer = self._trainer("stock", setting, resources)
            step = self._step(trainer)
            step()  # the first one also computes what all share, as a painting's features
            with FlopCounterMode(display=False) as counter:
                step()
            weights = [weight for network in trainer.recipe.networks.values() for weight in network.parameters()]
            return 2 * sum(weight.nbytes for weight in weights), counter.get_total_flops()

    def _trainer(self, kernels: str, setting: Setting, resources: ExitStack) -> "Trainer":
        from artkernels.recipes import RECIPES, build  # seconds, of accelerate and TensorBoard
        from artkernels.training.options import from_plain
        from artkernels.training.trainer import Trainer

        folder = Path(resources.enter_context(tempfile.TemporaryDirectory()))
        pictures = folder / "pictures"
        draw_set("suns", pictures, 4, size=256)
        values: dict[str, Any] = {"data": pictures, "outdir": folder / "runs", "kernels": kernels}
        values |= {"device": setting.device, "batch": self.batch, "resolution": self.resolution}
        values |= {name: value.replace(_PICTURES, str(pictures)) for name, value in self.options.items()}
        trainer = Trainer(build(self.name, from_plain(RECIPES[self.name].options_type, values)))
        if trainer.directory:
            resources.callback(trainer.directory.close)
        return trainer

    def _step(self, trainer: "Trainer") -> Callable[[], None]:
        """A step on pictures of random numbers, the same for every trainer."""
        generator = torch.Generator().manual_seed(0)
        batch = {
            source: torch.rand(self.shape, generator=generator).to(trainer.recipe.device)
            for source in trainer.recipe.sources()
        }
        return lambda: trainer.train_step([dict(batch)])


def cases() -> list[RecipeCase]:
    """The recipes at their default sizes; the two that take ten seconds a step then, smaller."""
    return [
        RecipeCase("dcgan", 64, 64),
        RecipeCase("vae", 64, 64),
        RecipeCase("fast-style", 1, 256, {"style": f"{_PICTURES}/suns00000.png"}),
        RecipeCase("adain", 1, 128, {"style": _PICTURES}),
        RecipeCase("cyclegan", 1, 128, {"data_b": _PICTURES}),
    ]
