"""DCGAN: its losses, what it starts from, and that the fused operations train it as stock PyTorch does."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as TF
from PIL import Image

import artkernels
from artkernels.errors import UserError
from artkernels.models import DCGANGenerator, TransformerNet
from artkernels.recipes import build
from artkernels.recipes.dcgan import DCGAN, DCGANOptions
from artkernels.training.trainer import Trainer

LOSSES = ("bce", "hinge", "wgan-gp")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(24):
        Image.effect_noise((32, 32), 5 * index).convert("RGB").save(folder / f"{index:02d}.png")
    return folder


def options(data: Path, outdir: Path, **values: object) -> DCGANOptions:
    defaults = {"data": data, "outdir": outdir, "steps": 4, "batch": 8, "tick": 1, "device": "cpu"}
    return DCGANOptions(**{**defaults, "resolution": 32, "ngf": 4, "ndf": 4, "nz": 8, **values})


def trained(data: Path, outdir: Path, **values: object) -> Trainer:
    trainer = Trainer(build("dcgan", options(data, outdir, **values)))
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trainer.path / "stats.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", LOSSES)
def test_fused_operations_train_as_stock_pytorch_does(data, tmp_path, loss):
    # Adversarial training multiplies any difference: at the usual learning rate, weights changed by 1e-7 in stock
    # PyTorch end in losses that differ by 1e-2 after 100 steps. A small one keeps what is being compared in sight.
    fused, stock = (
        losses(trained(data, tmp_path, loss=loss, kernels=kernels, steps=100, lr=1e-5))
        for kernels in ("fused", "stock")
    )
    assert len(fused) == 100
    for ours, theirs in zip(fused, stock, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"images_per_second"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-3), name


def loss_of_first_step(recipe: DCGAN) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]:
    """The discriminator's losses, the generator's, and the scores of the real and the generated pictures."""
    torch.manual_seed(0)
    batch = {"data": torch.rand(8, 3, 32, 32)}
    recipe.share(batch, 0)
    of_discriminator, of_generator = recipe.discriminator_loss(batch), recipe.generator_loss(batch)["loss"]
    real, fake = recipe.discriminator(2 * batch["data"] - 1), recipe.discriminator(batch["fakes"])
    return of_discriminator, of_generator, real, fake


def test_the_losses_are_those_of_the_papers(data, tmp_path):
    d, g, real, fake = loss_of_first_step(build("dcgan", options(data, tmp_path)))
    probabilities = real.sigmoid(), fake.sigmoid()
    torch.testing.assert_close(d["loss"], -probabilities[0].log().mean() - (1 - probabilities[1]).log().mean())
    torch.testing.assert_close(g, -probabilities[1].log().mean())

    d, g, real, fake = loss_of_first_step(build("dcgan", options(data, tmp_path, loss="hinge")))
    torch.testing.assert_close(d["loss"], (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
    torch.testing.assert_close(g, -fake.mean())

    d, g, real, fake = loss_of_first_step(build("dcgan", options(data, tmp_path, loss="wgan-gp")))
    torch.testing.assert_close(d["loss"], fake.mean() - real.mean() + 10 * d["penalty"])
    torch.testing.assert_close(g, -fake.mean())


def test_the_gradient_penalty_is_that_of_a_critic_whose_slope_is_known(data, tmp_path):
    recipe = build("dcgan", options(data, tmp_path, loss="wgan-gp"))
    slope = torch.randn(3, 32, 32)
    recipe.discriminator = lambda pictures: (pictures * slope).flatten(1).sum(1)
    penalty = recipe._gradient_penalty(torch.rand(8, 3, 32, 32), torch.rand(8, 3, 32, 32))
    torch.testing.assert_close(penalty, (slope.norm() - 1).square())


def test_the_critic_of_wgan_gp_makes_five_steps_to_one_and_has_no_batch_norm(data, tmp_path):
    trainer = trained(data, tmp_path, loss="wgan-gp", steps=6)
    assert ["G/loss" in line for line in losses(trainer)] == [True, False, False, False, False, True]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in trainer.recipe.networks["netD"].modules())


def test_weights_begin_as_in_the_paper(data, tmp_path):
    recipe = build("dcgan", options(data, tmp_path, ngf=32, ndf=32))
    for network in recipe.networks.values():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 4:
                assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            elif name.endswith("weight"):
                assert parameter.mean().item() == pytest.approx(1, abs=0.02), name


def test_frozen_convolutions_of_the_discriminator_stay_as_they_are(data, tmp_path):
    recipe = build("dcgan", options(data, tmp_path, freezed=2))
    before = {name: value.clone() for name, value in recipe.discriminator.named_parameters()}
    Trainer(recipe).train()
    changed = {name for name, value in recipe.discriminator.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"main.5.weight", "main.6.weight", "main.6.bias", "main.8.weight"} & before.keys()
    assert changed


def test_the_snapshot_is_a_checkpoint_that_load_and_stock_pytorch_read(data, tmp_path):
    trainer = trained(data, tmp_path)
    snapshot = trainer.path / "network-snapshot-000004.safetensors"
    generator = artkernels.load(snapshot)
    assert isinstance(generator, DCGANGenerator)
    from safetensors.torch import load_file

    DCGANGenerator(8, 4, size=32).load_state_dict(load_file(snapshot))
    assert isinstance(artkernels.load(trainer.path / "state.pt"), DCGANGenerator)


def test_fine_tuning_starts_from_a_generator_and_takes_its_shape(data, tmp_path):
    pretrained = DCGANGenerator(12, 6, size=32)
    torch.save(pretrained.state_dict(), tmp_path / "netG.pth")
    recipe = build("dcgan", options(data, tmp_path, init=tmp_path / "netG.pth", resolution=64))
    assert (recipe.options.nz, recipe.options.ngf, recipe.options.resolution) == (12, 6, 32)
    for name, value in pretrained.state_dict().items():
        assert torch.equal(recipe.generator.state_dict()[name], value)


def test_fine_tuning_from_a_run_keeps_its_discriminator(data, tmp_path):
    first = trained(data, tmp_path)
    recipe = build("dcgan", options(data, tmp_path, init=first.path))
    for name, value in first.recipe.discriminator.state_dict().items():
        assert torch.equal(recipe.discriminator.state_dict()[name], value)
    for name, value in first.averages["netG"].module.state_dict().items():
        assert torch.equal(recipe.generator.state_dict()[name], value)
    pictures = torch.rand(2, 3, 32, 32)
    logits = artkernels.unfuse(first.recipe.discriminator).eval()(pictures)
    torch.testing.assert_close(recipe.discriminator.eval()(pictures), logits)


def test_a_run_that_began_with_another_continues_though_its_discriminator_has_another_width(data, tmp_path):
    first = trained(data, tmp_path, ndf=6)
    second = trained(data, tmp_path, init=first.path)
    assert second.options.ndf == 6
    resumed = Trainer(build("dcgan", options(data, tmp_path, ndf=6, steps=6)), second.path)
    resumed.train()
    assert resumed.step == 6


@pytest.mark.parametrize("other", [{"ngf": 6}, {"loss": "wgan-gp"}, {"freezed": 1}])
def test_a_run_is_not_continued_with_networks_that_do_not_fit_and_stays_as_it_is(data, tmp_path, other):
    run = trained(data, tmp_path).path
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UserError, match="its state does not fit these options"):
        Trainer(build("dcgan", options(data, tmp_path, **other, steps=6)), run)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_what_a_checkpoint_decides_is_said(data, tmp_path, caplog):
    torch.save(DCGANGenerator(12, 6, size=32).state_dict(), tmp_path / "netG.pth")
    build("dcgan", options(data, tmp_path, init=tmp_path / "netG.pth", resolution=64))
    assert "resolution is 32, as in" in caplog.text


def test_a_generator_of_grey_pictures_is_refused(data, tmp_path):
    torch.save(DCGANGenerator(8, 4, nc=1, size=32).state_dict(), tmp_path / "grey.pth")
    with pytest.raises(UserError, match=r"grey\.pth: makes pictures of 1 channels, dcgan learns from pictures of 3"):
        build("dcgan", options(data, tmp_path, init=tmp_path / "grey.pth"))


def test_a_discriminator_of_other_norms_is_not_taken_over(data, tmp_path):
    first = trained(data, tmp_path)
    with pytest.raises(UserError, match="its discriminator has other norms than --loss wgan-gp needs"):
        build("dcgan", options(data, tmp_path, init=first.path, loss="wgan-gp"))


def test_what_cannot_be_fine_tuned_is_refused(data, tmp_path):
    torch.save(TransformerNet().state_dict(), tmp_path / "style.pth")
    with pytest.raises(UserError, match=r"style\.pth: a TransformerNet, dcgan needs a DCGAN generator"):
        build("dcgan", options(data, tmp_path, init=tmp_path / "style.pth"))
    with pytest.raises(UserError, match="resolution must be 32, 64, 128, 256 or 512 for dcgan, got 48"):
        build("dcgan", options(data, tmp_path, resolution=48))


def test_previews_are_pictures_of_the_same_noise_each_time(data, tmp_path):
    trainer = trained(data, tmp_path)
    assert torch.equal(trainer._preview(), trainer._preview())
    assert TF.relu(trainer._preview() - 1).sum() == 0
    assert trainer._preview().shape == (24, 3, 32, 32)
