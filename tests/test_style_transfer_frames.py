"""A frame of a video stays close to the painting before it, wherever that still shows the same."""

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkernels.models.vgg import VGG19
from artkernels.recipes import style_transfer
from artkernels.recipes.perceptual import luma
from artkernels.recipes.style_memory import Footprint
from artkernels.recipes.style_objective import Objective, TiledObjective, Weights
from artkernels.recipes.style_transfer import Previous, Progress, Settings, stylize

sys.path.insert(0, str(Path(__file__).parent))

from random_vgg import random_vgg

QUICK = Settings(size=64, steps=4, optimizer="adam", seed=5)


@pytest.fixture(scope="module")
def vgg() -> VGG19:
    return random_vgg(slim=True)


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(7)

    def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=dtype)

    return tensor


def photo_and_paintings(random: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    return random(1, 3, 64, 64), [random(1, 3, 50, 40)]


def loss_and_gradient(objective: Objective, canvas: Tensor) -> tuple[float, Tensor]:
    canvas = canvas.clone().requires_grad_()
    loss = objective.backward(canvas)
    assert canvas.grad is not None
    return loss, canvas.grad


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_loss_is_the_weighted_mean_square_where_it_is_seen_and_its_gradient_is_exact(vgg, random, channels, tile):
    canvas, photo, picture = (random(1, channels, 53, 70, dtype=torch.float64) for _ in range(3))
    seen = random(1, 1, 53, 70, dtype=torch.float64)
    vgg = copy.deepcopy(vgg).double()

    def of(previous: Previous | None) -> tuple[float, Tensor]:
        kind = TiledObjective if tile else Objective
        return loss_and_gradient(kind(vgg, photo, [photo], [1], Weights(1, 10, 6), tile, previous), canvas)

    (loss, gradient), (without, gradient_without) = of(Previous(picture, seen, 7.0)), of(None)
    expected = 7.0 * (seen * (canvas - picture) ** 2).sum() / canvas.numel()
    assert loss - without == pytest.approx(float(expected), rel=1e-10)
    torch.testing.assert_close(gradient - gradient_without, 14.0 * seen * (canvas - picture) / canvas.numel())


def test_tiles_paint_the_same_frame(vgg, random):
    photo, styles = photo_and_paintings(random)
    previous = Previous(random(1, 3, 64, 64), random(1, 1, 64, 64), 10.0)
    whole, tiled = (stylize(photo, styles, vgg, QUICK, tile=tile, previous=previous) for tile in (None, 48))
    torch.testing.assert_close(tiled, whole, atol=1e-3, rtol=0)


def test_with_nothing_seen_and_no_weight_it_is_the_finest_scale_begun_from_the_photograph(vgg, random, monkeypatch):
    photo, styles = photo_and_paintings(random)
    settings = Settings(size=64, steps=9, optimizer="adam")
    monkeypatch.setattr(style_transfer, "_COARSEST_SIDE", 32)
    unseen = Previous(random(1, 3, 64, 64), torch.zeros(1, 1, 64, 64), 0.0)
    told: list[Progress] = []
    frame = stylize(photo, styles, vgg, settings, previous=unseen, on_step=told.append)
    monkeypatch.setattr(style_transfer, "_COARSEST_SIDE", 64)  # one scale only
    finest = stylize(photo, styles, vgg, replace(settings, steps=len(told)))
    assert torch.equal(frame, finest)


@pytest.mark.parametrize(("size", "steps", "share"), [(64, 9, 5), (64, 1, 1), (128, 30, 10)])
def test_the_finest_scales_share_of_the_steps_is_taken_and_counted_from_one(
    vgg, random, monkeypatch, size, steps, share
):
    monkeypatch.setattr(style_transfer, "_COARSEST_SIDE", 32)
    photo, styles = photo_and_paintings(random)
    told: list[Progress] = []
    previous = Previous(random(1, 3, size, size), random(1, 1, size, size), 1.0)
    settings = Settings(size=size, steps=steps, optimizer="adam")
    stylize(photo, styles, vgg, settings, previous=previous, on_step=told.append)
    assert [(progress.step, progress.steps) for progress in told] == [(n, share) for n in range(1, share + 1)]
    assert {progress.image.shape for progress in told} == {(1, 3, size, size)}


@pytest.mark.parametrize("init", ["content", "noise"])
def test_it_begins_with_the_painting_before_where_that_is_seen_whatever_init_says(vgg, random, monkeypatch, init):
    photo, styles = photo_and_paintings(random)
    begun: list[Tensor] = []

    def step(optimizer: object, objective: object, canvas: Tensor, number: int) -> float:
        begun.append(style_transfer._without_margin(canvas).clone())
        return 0.0

    monkeypatch.setattr(style_transfer, "_step", step)
    picture, seen = random(1, 3, 64, 64), random(1, 1, 64, 64)
    stylize(photo, styles, vgg, Settings(size=64, steps=1, init=init), previous=Previous(picture, seen, 1.0))
    torch.testing.assert_close(begun[0], seen * picture + (1 - seen) * photo)


@pytest.mark.parametrize("preserve_color", [False, True])
def test_a_large_weight_keeps_the_painting_where_it_is_seen_and_not_elsewhere(vgg, random, preserve_color):
    photo, styles = photo_and_paintings(random)
    # Greys within what the photograph's chroma leaves room for: no colour is clipped, so luminance is kept exactly.
    photo, picture = 0.45 + 0.1 * photo, (0.4 + 0.2 * random(1, 1, 64, 64)).expand(1, 3, 64, 64)
    seen = torch.zeros(1, 1, 64, 64)
    seen[..., :32] = 1
    settings = Settings(size=64, steps=15, preserve_color=preserve_color)

    def moved(weight: float) -> tuple[float, float]:
        result = stylize(photo, styles, vgg, settings, previous=Previous(picture, seen, weight))
        change = (luma(result) - luma(picture)).abs() if preserve_color else (result - picture).abs()
        return float(change[..., :32].mean()), float(change[..., 32:].mean())

    (held, elsewhere), (free, _) = moved(1e5), moved(0.0)
    assert held < 0.5 / 255  # what no file would show
    assert free > 10 * held
    assert elsewhere > 10 * held


def test_the_margin_is_held_like_the_picture(vgg, random, monkeypatch):
    canvases: list[Tensor] = []
    real = style_transfer._step

    def step(optimizer: torch.optim.Optimizer, objective: Objective, canvas: Tensor, number: int) -> float:
        loss = real(optimizer, objective, canvas, number)
        canvases.append(canvas.detach().clone())
        return loss

    monkeypatch.setattr(style_transfer, "_step", step)
    photo, styles = photo_and_paintings(random)
    picture = random(1, 3, 64, 64)
    stylize(photo, styles, vgg, Settings(size=64, steps=20), previous=Previous(picture, torch.ones(1, 1, 64, 64), 1e5))
    torch.testing.assert_close(canvases[-1], style_transfer._extend(picture), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("picture", "seen", "weight", "words"),
    [
        ((1, 3, 64, 63), (1, 1, 64, 64), 1.0, r"previous\.picture is \[1, 3, 64, 63\], and \[1, 3, 64, 64\] is needed"),
        ((1, 1, 64, 64), (1, 1, 64, 64), 1.0, r"previous\.picture is \[1, 1, 64, 64\], and \[1, 3, 64, 64\] is needed"),
        ((1, 3, 64, 64), (1, 3, 64, 64), 1.0, r"previous\.seen is \[1, 3, 64, 64\], and \[1, 1, 64, 64\] is needed"),
        ((1, 3, 64, 64), (64, 64), 1.0, r"previous\.seen is \[64, 64\], and \[1, 1, 64, 64\] is needed"),
        ((1, 3, 64, 64), (1, 1, 64, 64), -1.0, r"previous\.weight must be a number from 0 up, got -1\.0"),
        ((1, 3, 64, 64), (1, 1, 64, 64), float("nan"), r"previous\.weight must be a number from 0 up, got nan"),
    ],
)
def test_a_painting_before_that_does_not_fit_is_refused(vgg, random, picture, seen, weight, words):
    photo, styles = photo_and_paintings(random)
    with pytest.raises(ValueError, match=words):
        stylize(photo, styles, vgg, QUICK, previous=Previous(torch.rand(picture), torch.rand(seen), weight))


def test_the_estimate_counts_the_painting_before(vgg):
    def footprint(*, previous: bool) -> Footprint:
        return Footprint(vgg, "adam", (1056, 1056), [(1024, 1024)], previous)

    for tile in (None, 256):
        more = footprint(previous=True).bytes(tile) - footprint(previous=False).bytes(tile)
        assert more >= 16 * 1056**2
