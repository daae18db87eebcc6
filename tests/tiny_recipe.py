"""A recipe small enough to reckon with: one linear layer that learns the mean colour of pictures, and a judge."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from artkernels.training.options import TrainingOptions, option
from artkernels.training.random_state import seed_everything
from artkernels.training.recipe import Phase, Recipe
from artkernels.training.trainer import Trainer


@dataclass(kw_only=True)
class TinyOptions(TrainingOptions):
    judge_every: int = option(1, "Steps of the painter for one of the judge.", least=1)


class Tiny(Recipe):
    """Phases "painter", trained on the picture's mean colour, and "judge", trained on what the painter makes."""

    name = "tiny"
    summary = "A recipe for tests."
    options_type = TinyOptions
    averaged = ("painter",)

    def __init__(self, options: TinyOptions) -> None:
        self.options = options
        self.painter, self.judge = nn.Linear(4, 3), nn.Linear(3, 1)
        self.networks = {"painter": self.painter, "judge": self.judge}
        self.trace: list[tuple[str, object]] = []
        self.phases = (
            Phase("painter", (self.painter,), torch.optim.Adam(self.painter.parameters(), options.lr), self.paint),
            Phase(
                "judge",
                (self.judge,),
                torch.optim.SGD(self.judge.parameters(), options.lr, momentum=0.9),
                self.judged,
                every=options.judge_every,
            ),
        )

    def share(self, batch, step):
        noise = self.rand(len(batch["data"]), 4)
        batch["noise"] = noise
        batch["painted"] = self.painter(noise)

    def paint(self, batch):
        self.trace.append(("painter", [p.requires_grad for p in self.judge.parameters()]))
        error = (batch["painted"] - batch["data"].mean((2, 3))).square().mean()
        return {"loss": error + 0.01 * self.judge(batch["painted"]).mean(), "error": error}

    def judged(self, batch):
        self.trace.append(("judge", [p.requires_grad for p in self.painter.parameters()]))
        return {"loss": self.judge(batch["painted"].detach()).square().mean()}

    def preview(self, networks, batch):
        return batch["data"] + networks["painter"](torch.randn(len(batch["data"]), 4))[:, :, None, None]


def pictures(folder: Path, count: int = 12) -> Path:
    """``count`` pictures of one colour each in a new folder."""
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (16, 16), (20 * index, 255 - 20 * index, 7 * index)).save(folder / f"{index:02d}.png")
    return folder


def trainer(data: Path, run: Path | None = None, **values: object) -> Trainer:
    """A trainer of the tiny recipe: 12 steps of 4 pictures, every loss in the log."""
    defaults = {"data": data, "outdir": data.parent / "runs", "steps": 12, "batch": 4, "tick": 1, "snap": 5}
    options = TinyOptions(**{**defaults, "resolution": 16, "lr": 1e-2, "device": "cpu", **values})
    seed_everything(options.seed)
    return Trainer(Tiny(options), run)
