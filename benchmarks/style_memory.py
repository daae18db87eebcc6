"""Measures the memory that a step of optimisation style transfer takes: ours, and others' ways of writing it.

python benchmarks/style_memory.py [--sides 256 512 1024 2048] [--output benchmarks/results/style_memory.json]

Every figure is of a fresh process: the resident high-water mark while a step runs, of the whole process and beyond
what was resident before it, when the targets had been computed. All look with the same VGG-19 at the same layers.
"""

import argparse
import ctypes
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import torch.nn.functional as TF
from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info
from pytest_benchmark.utils import get_commit_info
from torch import Tensor, nn

import artkernels
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


def gram(features: Tensor) -> Tensor:
    rows = features.flatten(2)
    return torch.bmm(rows, rows.mT) / rows[0].numel()


def eager(vgg: VGG19, photo: Tensor, painting: Tensor) -> Backward:
    """The same in plain PyTorch: the network returns its features, and then all losses are taken."""
    with torch.no_grad():
        content = vgg(photo, [CONTENT_LAYER])[CONTENT_LAYER]
        grams = {layer: gram(features) for layer, features in vgg(painting, STYLE_LAYERS).items()}

    def loss_of(canvas: Tensor) -> Tensor:
        features = vgg(canvas, [*STYLE_LAYERS, CONTENT_LAYER])
        loss = WEIGHTS.content * TF.mse_loss(features[CONTENT_LAYER], content) / content.square().mean()
        for layer, target in grams.items():
            style = TF.mse_loss(gram(features[layer]), target) / target.square().mean()
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
            losses.append(
                LossLayer(gram, WEIGHTS.style / len(STYLE_LAYERS)) if of_style else LossLayer(nn.Identity(), 1)
            )
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
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident
    before, start = resident("VmRSS"), time.perf_counter()
    optimizer.step(lambda: backward(canvas))
    return {"seconds": time.perf_counter() - start, "before": before, "peak": resident("VmHWM")}


def resident(field: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


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
    del machine["node"], machine["cpu"]["flags"]
    commit = get_commit_info()
    plain = {
        "machine_info": {**machine, "torch": torch.__version__},
        "commit_info": {key: commit.get(key) for key in ("id", "dirty")},
        "datetime": datetime.now(UTC).isoformat(),
        "artkernels": {
            "version": artkernels.__version__,
            "command": "python benchmarks/style_memory.py",
            "allocator": "torch",
        },
        "benchmarks": [{"extra_info": row.to_plain()} for row in found],
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")


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
            save(found, args.output)  # the next side takes four times as long


if __name__ == "__main__":
    main()
