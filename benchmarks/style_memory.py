"""Measures the memory that a step of optimisation style transfer takes: ours, and others' ways of writing it.

python benchmarks/style_memory.py [--sides 256 512 1024 2048] [--output benchmarks/results/style_memory.json]

Every figure is of a fresh process: the resident high-water mark while a step runs, of the whole process and beyond
what was resident before it, when the targets had been computed. All look with the same VGG-19 at the same layers.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as TF
from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from torch import Tensor, nn

import artkernels
from artkernels import files, reference
from artkernels.benchmarks import origin
from artkernels.benchmarks.memory import resident
from artkernels.benchmarks.results import EAGER, OURS, Limit, Row
from artkernels.models.vgg import LAYERS, VGG19
from artkernels.recipes.perceptual import total_variation
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS, Objective, TiledObjective, Weights

WEIGHTS = Weights(content=1, style=10, tv=6)
TILE = 256
Backward = Callable[[Tensor], float]
"""Computes the loss of a canvas, and its gradient into ``canvas.grad``."""
Make = Callable[[VGG19, Tensor, Tensor], Backward]


def ours(vgg: VGG19, photo: Tensor, painting: Tensor, *, tile: int | None) -> Backward:
    """Untiled or in tiles."""
    kind = TiledObjective if tile else Objective
    return kind(vgg, photo, [painting], [1.0], WEIGHTS, tile).backward


def with_autograd(loss_of: Callable[[Tensor], Tensor]) -> Backward:
    """The gradient as autograd takes it."""

    def backward(canvas: Tensor) -> float:
        canvas.grad = None
        loss = loss_of(canvas)
        loss.backward()
        return loss.item()

    return backward


def eager(vgg: VGG19, photo: Tensor, painting: Tensor) -> Backward:
    """The same in plain PyTorch: the network returns its features, and then all losses are taken."""
    with torch.no_grad():
        content = vgg(photo, [CONTENT_LAYER])[CONTENT_LAYER]
        grams = {layer: reference.gram_matrix(features) for layer, features in vgg(painting, STYLE_LAYERS).items()}

    def loss_of(canvas: Tensor) -> Tensor:
        features = vgg(canvas, [*STYLE_LAYERS, CONTENT_LAYER])
        loss = WEIGHTS.content * TF.mse_loss(features[CONTENT_LAYER], content) / content.square().mean()
        for layer, target in grams.items():
            style = TF.mse_loss(reference.gram_matrix(features[layer]), target) / target.square().mean()
            loss = loss + WEIGHTS.style / len(grams) * style
        return loss + WEIGHTS.tv * total_variation(canvas)

    return with_autograd(loss_of)


class LossLayer(nn.Module):
    """Passes features on, and keeps their distance to a target."""

    def __init__(self, look: Callable[[Tensor], Tensor], weight: float) -> None:
        super().__init__()
        self.look, self.weight, self.target, self.loss = look, weight, torch.empty(0), torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        if self.target.numel():
            self.loss = self.weight * TF.mse_loss(self.look(features), self.target)
        return features


def loss_layers(vgg: VGG19, photo: Tensor, painting: Tensor) -> Backward:
    """As neural-style and PyTorch's tutorial have it: a Sequential with layers in between, which keep their losses."""
    normalised = [(picture - vgg.mean) / vgg.std for picture in (photo, painting)]
    modules, losses = [], []
    names = iter(LAYERS)
    for module in vgg.features:
        if not isinstance(module, nn.ReLU):
            modules.append(module)
            continue
        modules.append(nn.ReLU())  # the tutorial's: in place, it would overwrite what its loss layers are to see
        name = next(names)
        if name in (*STYLE_LAYERS, CONTENT_LAYER):
            of_style = name in STYLE_LAYERS
            look = reference.gram_matrix if of_style else nn.Identity()
            losses.append(LossLayer(look, WEIGHTS.style / len(STYLE_LAYERS) if of_style else WEIGHTS.content))
            with torch.no_grad():
                losses[-1].target = losses[-1].look(nn.Sequential(*modules)(normalised[of_style]))
            modules.append(losses[-1])
        if name == STYLE_LAYERS[-1]:
            break
    network = nn.Sequential(*modules)

    def loss_of(canvas: Tensor) -> Tensor:
        network((canvas - vgg.mean) / vgg.std)
        return sum((layer.loss for layer in losses), WEIGHTS.tv * total_variation(canvas))

    return with_autograd(loss_of)


CANDIDATES: dict[str, Make] = {
    OURS: functools.partial(ours, tile=None),
    f"ours in tiles of {TILE}": functools.partial(ours, tile=TILE),
    EAGER: eager,
    "loss layers": loss_layers,
}


def measured(candidate: str, side: int) -> dict[str, float]:
    """Bytes and seconds of a step, in this process."""
    torch.manual_seed(0)
    vgg = VGG19(pooling="average").requires_grad_(False)
    photo, painting, canvas = (torch.rand(1, 3, side, side) for _ in range(3))
    backward = CANDIDATES[candidate](vgg, photo, painting)
    canvas.requires_grad_()
    # The others' optimizer is the one that they come with. Its history, of which there is none at the first step,
    # grows to 200 pictures, 2400 bytes a pixel.
    optimizer = (
        torch.optim.LBFGS([canvas], max_iter=1)
        if candidate == "loss layers"
        else torch.optim.Adam([canvas], lr=0.03, fused=True)
    )
    start = time.perf_counter()
    before, peak = resident(lambda: optimizer.step(lambda: backward(canvas)))
    return {"seconds": time.perf_counter() - start, "before": before, "peak": peak}


def rows(side: int) -> list[Row]:
    """Of the whole process, and of what a step takes beyond what was resident before it."""
    found: dict[str, dict[str, float]] = {}
    for candidate in CANDIDATES:
        if side <= TILE and "tiles" in candidate:
            continue
        command = [sys.executable, __file__, "--one", candidate, str(side)]
        found[candidate] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{side:5} {candidate:22}", found[candidate], flush=True)

    def row(case: str, title: str, memory: dict[str, int]) -> Row:
        seconds = {candidate: [one["seconds"]] for candidate, one in found.items()}
        limit = Limit(bytes=0, flops=0, seconds=[], by="memory")
        shape = (1, 3, side, side)
        threads = torch.get_num_threads()
        return Row(
            *("style_memory", case, title, shape, "contiguous", "float32", "step", "cpu", threads, "resolution"),
            *(seconds, limit, memory),
        )

    return [
        row("process", "the whole process", {name: int(one["peak"]) for name, one in found.items()}),
        row("step", "a step of it", {name: int(one["peak"] - one["before"]) for name, one in found.items()}),
    ]


def save(found: list[Row], path: Path) -> None:
    """As artkernels.benchmarks.results.Results reads it."""
    machine = pytest_benchmark_generate_machine_info()
    origin.describe(machine, torch.get_num_threads())
    plain: dict[str, Any] = {
        "machine_info": machine,
        "commit_info": origin.commit(),
        "datetime": datetime.now(timezone.utc).isoformat(),
        "artkernels": {
            "version": artkernels.__version__,
            "command": "python benchmarks/style_memory.py",
            "allocator": "torch",
        },
        "benchmarks": [{"extra_info": row.to_plain()} for row in found],
    }
    with files.whole_or_not_at_all(path) as temporary:
        temporary.write_text(origin.one_line_a_row(plain))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "style_memory.json")
    parser.add_argument("--one", nargs=2, metavar=("CANDIDATE", "SIDE"), help="print one figure, of this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], int(args.one[1]))))
    else:
        found: list[Row] = []
        for side in args.sides:
            found += rows(side)
        save(found, args.output)


if __name__ == "__main__":
    main()
