"""The first minutes: draws pictures, trains a network to make more, teaches it another style, and paints a photograph.

    python examples/demo.py [--output out/demo]

Everything is a command that it prints. Needs `pip install "artkernels[demo]"`; downloads nothing.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage
import torch
from torch import Tensor

import artkernels
from artkernels import cli, images
from artkernels import functional as F
from artkernels.checkpoints import load_vgg19
from artkernels.drawing import flow
from artkernels.recipes.style_transfer import STYLE_LAYERS

# A small network, so that a CPU of two cores gets somewhere in two minutes.
NETWORK = ("--ngf", 32, "--ndf", 32, "--batch", 32, "--lr", 5e-4)
FIRST_STYLE, SECOND_STYLE = "suns", "rosettes"
SEEDS = "0-24"

# Finer than those of the pictures to train on: a painting of some hundred pixels.
BRUSHES = ((16, 0.12, 0.07, 0.08), (40, 0.09, 0.022, 0.13), (64, 0.06, 0.011, 0.17))


def run(*arguments: object) -> None:
    """One command of artkernels."""
    print("$ artkernels", *arguments, flush=True)
    if code := cli.run([*map(str, arguments)]):
        sys.exit(code)


def newest(runs: Path) -> Path:
    """The run that was begun last."""
    return max(runs.iterdir())


def stock_style_loss(features: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """The five-layer style loss as everyone writes it."""
    losses = []
    for layer, x in features.items():
        n, c, h, w = x.shape
        flat = x.reshape(n, c, h * w)
        gram = torch.bmm(flat, flat.transpose(1, 2)) / (c * h * w)
        losses.append(torch.nn.functional.mse_loss(gram, targets[layer]))
    return torch.stack(losses).sum()


def fused_style_loss(features: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """The same with this package's kernels."""
    return torch.stack([F.gram_mse_loss(x, targets[layer]) for layer, x in features.items()]).sum()


def compare_style_loss(picture: Tensor, style: Tensor, rounds: int = 21) -> str:
    """Time both losses, forward and backward, on VGG-19's features of ``picture``, by turns; one line to read.

    Both get the features as plain contiguous tensors, the layout that torch.bmm likes best.
    """
    vgg = load_vgg19(pooling="average")
    with torch.no_grad():
        features = {layer: x.requires_grad_() for layer, x in vgg(picture, STYLE_LAYERS).items()}
        targets = {layer: F.gram_matrix(x) for layer, x in vgg(style, STYLE_LAYERS).items()}
    losses: dict[str, Callable[..., Tensor]] = {"artkernels": fused_style_loss, "stock": stock_style_loss}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(rounds + 2):
        for name, loss in losses.items():
            start = time.perf_counter()
            torch.autograd.grad(loss(features, targets), list(features.values()))
            seconds[name].append(time.perf_counter() - start)
    report = []
    for name, times in seconds.items():
        low, median, high = (1000 * t for t in statistics.quantiles(times[2:], n=4))  # the first two warm up
        report.append(f"{name} {median:.1f} ms ({low:.1f} to {high:.1f})")
    ratios = [stock / ours for stock, ours in zip(seconds["stock"][2:], seconds["artkernels"][2:], strict=True)]
    height, width = picture.shape[-2:]
    return (
        f"style loss and its gradient, {width}x{height} pixels, five layers, {torch.get_num_threads()} threads, "
        f"median (quartiles) of {rounds}: {', '.join(report)}; {statistics.median(ratios):.2f} times as fast"
    )


def generate(folder: Path, steps: tuple[int, int]) -> list[Tensor]:
    """Train a DCGAN on one style, then on another from there; sheets of what it drew and what it made."""
    runs = folder / "runs"
    for style in (FIRST_STYLE, SECOND_STYLE):
        run("data", "draw", style, "--count", 1500, "--output", folder / style)
    run("train", "dcgan", "--data", folder / FIRST_STYLE, "--outdir", runs, "--steps", steps[0], *NETWORK)
    first = newest(runs)
    run("train", "dcgan", "--data", folder / SECOND_STYLE, "--outdir", runs, "--steps", steps[1], *NETWORK,
        "--init", first)  # fmt: skip
    second = newest(runs)
    sheets = []
    for trained in (first, second):
        sampled = folder / f"sampled-{trained.name}"
        run("sample", trained, "--seeds", SEEDS, "--grid", "--outdir", sampled)
        sheets += [images.load(trained / "reals.png")[..., :332, :332], images.load(sampled / "grid.png")]
    return sheets


def stylize(folder: Path, size: int, steps: int) -> list[Tensor]:
    """Paint a photograph of a cat in a style made up here: the photograph, the style, and the painting."""
    photo = images.resize(images.load(Path(skimage.__file__).parent / "data" / "chelsea.png"), size)
    pictures = {"photo": photo, "style": flow.paint(size, np.random.default_rng(11), BRUSHES).image()}
    for name, picture in pictures.items():
        images.save(picture, folder / f"{name}.png")
    painting = folder / "painting.png"
    run("stylize", folder / "photo.png", "--style", folder / "style.png", "--output", painting, "--size", size,
        "--steps", steps)  # fmt: skip
    print(compare_style_loss(pictures["photo"], pictures["style"]))
    return [*pictures.values(), images.load(painting)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/demo"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    artkernels.use_pooled_allocator()  # as the command line does
    start = time.perf_counter()
    sheets = [*generate(options.output, steps=(700, 400)), *stylize(options.output, size=320, steps=120)]
    sheet = options.output / "sheet.png"
    rows = [images.contact_sheet(row, height=256) for row in (sheets[:4], sheets[4:])]
    width = max(row.shape[-1] for row in rows)
    rows = [torch.nn.functional.pad(row, (0, width - row.shape[-1], 0, 8), value=1.0) for row in rows]
    images.save(torch.cat(rows, dim=2), sheet)
    print(f"{sheet}, after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
