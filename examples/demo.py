"""The first two minutes: paints a photograph in a style made up here, and times the style loss against stock PyTorch.

    python examples/demo.py [--output out/demo] [--size 384] [--steps 180]

Needs `pip install "artkernels[demo]"`; downloads nothing.
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
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from artkernels import functional as F
from artkernels import images
from artkernels.checkpoints import load_vgg19
from artkernels.recipes.style_transfer import STYLE_LAYERS, Progress, Settings, stylize

# From night to lamplight.
PALETTE = np.array(
    [
        (13, 22, 58), (22, 48, 110), (31, 84, 150), (52, 128, 160), (110, 170, 170),
        (226, 200, 120), (244, 178, 48), (238, 120, 30), (252, 240, 200),
    ]
)  # fmt: skip
SUPERSAMPLING = 2


def brush_strokes(size: int, seed: int = 0) -> Tensor:
    """A made-up painting: strokes that follow a wind with whirls in it, dark far from them and bright in their eyes.

    Returns:
        [1, 3, size, size] in [0, 1].
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    wind = np.stack([np.ones_like(x), 0.35 * np.sin(5 * x)])
    tone = 0.5 * _clouds(size, 6, random) + 0.25 * _clouds(size, 14, random)
    for _ in range(7):
        center_x, center_y = random.uniform(0.05, 0.95, 2)
        radius = random.uniform(0.08, 0.18)
        spin = random.choice([-1, 1]) * random.uniform(2.5, 5)
        dx, dy = (x - center_x) / radius, (y - center_y) / radius
        wind += spin * np.exp(-(dx**2 + dy**2) / 2) * np.stack([-dy, dx])
        tone += 1.6 * np.exp(-(dx**2 + dy**2) / 0.64)
    tone = (tone - tone.min()) / np.ptp(tone)
    direction = wind / np.linalg.norm(wind, axis=0)

    picture = Image.new("RGB", (size * SUPERSAMPLING,) * 2, tuple(PALETTE[0]))
    draw = ImageDraw.Draw(picture)
    # Broad strokes first, fine ones over them, as many as cover the canvas: count a pixel, length, width, contrast.
    for density, length, width, contrast in [(0.010, 40, 11, 22), (0.024, 28, 6, 30), (0.034, 18, 3.2, 40)]:
        for _ in range(int(density * size**2)):
            start = random.uniform(0, size, 2)
            value = tone[int(start[1]), int(start[0])] + random.normal(0, 0.06)
            stops = np.linspace(0, 1, len(PALETTE))
            color = np.array([np.interp(value, stops, channel) for channel in PALETTE.T])
            color += random.normal(0, contrast) + random.normal(0, 10, 3)
            path = _follow(direction, start, int(length * random.uniform(0.6, 1.3)))
            _stroke(draw, path, width * random.uniform(0.6, 1.3), tuple(color.clip(0, 255).astype(int)))
    pixels = np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def _clouds(size: int, cells: int, random: np.random.Generator) -> np.ndarray:
    noise = Image.fromarray(random.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def _follow(direction: np.ndarray, point: np.ndarray, length: int) -> list[np.ndarray]:
    path = [point]
    for _ in range(length):
        column, row = point.astype(int).clip(0, direction.shape[-1] - 1)
        point = point + 1.2 * direction[:, row, column]
        path.append(point)
    return path


def _stroke(draw: ImageDraw.ImageDraw, path: list[np.ndarray], width: float, color: tuple[int, ...]) -> None:
    for position, point in zip(np.linspace(-1, 1, len(path)), path, strict=True):
        radius = width / 2 * np.sqrt(1 - np.abs(position) ** 3)  # the brush touches down and lifts off
        draw.ellipse(tuple(SUPERSAMPLING * np.concatenate([point - radius, point + radius])), fill=color)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/demo"))
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--steps", type=int, default=180)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    settings = Settings(size=options.size, steps=options.steps)

    photo = images.resize(images.load(Path(skimage.__file__).parent / "data" / "chelsea.png"), options.size)
    style = brush_strokes(options.size)
    start = time.perf_counter()
    with tqdm(total=settings.steps, unit="step", file=sys.stderr) as bar:

        def on_step(progress: Progress) -> None:
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
            bar.update()

        painting = stylize(photo, [style], load_vgg19(pooling="average"), settings, on_step=on_step)
    print(f"painted in {time.perf_counter() - start:.0f} s")
    print(compare_style_loss(photo, style))

    sheet = images.contact_sheet([photo, style, painting])
    for name, picture in {"photo": photo, "style": style, "painting": painting, "sheet": sheet}.items():
        path = options.output / f"{name}.png"
        images.save(picture, path)
        print(path)


if __name__ == "__main__":
    main()
