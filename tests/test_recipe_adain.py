"""The recipe adain learns to decode what AdaIN makes of features, as on stock PyTorch; adain_stylize mixes styles."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

import artkernels
from artkernels import functional as F
from artkernels import images, recipes
from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.models import AdaINDecoder, AdaINEncoder, NLayerDiscriminator, TransformerNet
from artkernels.models import adain as networks
from artkernels.recipes import adain
from artkernels.recipes.adain import AdaIN, AdaINOptions, adain_stylize
from artkernels.recipes.perceptual import luma
from artkernels.training.runs import latest_snapshots
from artkernels.training.trainer import Trainer

THIN = tuple(tuple(channels // 8 for channels in stage) for stage in networks._STAGES)


def random_encoder(path: Path | None = None) -> AdaINEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AdaINEncoder().apply(adain._initialise).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def thin_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights, an eighth of the channels: no package is needed, and no time."""
    monkeypatch.setattr(networks, "_STAGES", THIN)
    monkeypatch.setattr(adain, "load_adain_encoder", random_encoder)
    monkeypatch.setattr(adain, "NLayerDiscriminator", partial(NLayerDiscriminator, ndf=8))


def blobs(height: int, width: int, shift: float = 0.0) -> Tensor:
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([torch.exp(-((x - shift) ** 2 + (y - c) ** 2) / 0.1) for c in (0.2, 0.5, 0.8)])[None]


def stripes(height: int, width: int, frequency: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    wave = 0.5 + 0.5 * torch.sin(frequency * (x + 2 * y))
    return torch.stack([wave, 0.3 + 0.4 * wave, 1 - wave])[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise of two scales as photographs and paintings."""
    generator = torch.Generator().manual_seed(1)
    for name in ("photos", "paintings"):
        (tmp_path / name).mkdir()
        for index in range(4):
            coarse, fine = (torch.rand(1, 3, side, side, generator=generator) for side in (18, 36))
            picture = 0.7 * TF.interpolate(coarse, scale_factor=2.0, mode="bilinear") + 0.3 * fine
            images.save(picture, tmp_path / name / f"{index}.png")
    return tmp_path


def options(folder: Path, **changes: object) -> AdaINOptions:
    values = {"steps": 2, "tick": 1, "resolution": 32, "batch": 2, "workers": 0, "device": "cpu"}
    values |= {"data": folder / "photos", "style": folder / "paintings", "outdir": folder / "runs"}
    return AdaINOptions(**{**values, **changes})


def trained(chosen: AdaINOptions) -> Trainer:
    trainer = Trainer(recipes.build("adain", chosen))
    trainer.train()
    return trainer


def stats(trainer: Trainer) -> dict[str, Tensor]:
    lines = [json.loads(line) for line in (trainer.path / "stats.jsonl").read_text().splitlines()]
    return {name: torch.tensor([line[name] for line in lines]) for name in lines[0] if "/" in name}


@pytest.mark.parametrize(("steps", "adversarial"), [(100, 0.0), (20, 0.1)])
def test_losses_and_gradients_along_a_run_are_those_of_stock_pytorch_and_the_style_is_learnt(
    folder, steps, adversarial
):
    """At the same weights: two runs of their own part, as two of stock PyTorch do whose first weights differ by 1e-7
    (by 1e-2 after 20 steps, with SGD too): training multiplies any difference.
    """
    fused, stock = (
        recipes.build("adain", options(folder, kernels=kernels, adversarial=adversarial, lr=4e-4))
        for kernels in ("fused", "stock")
    )
    for network in (*fused.networks.values(), *fused.frozen):
        artkernels.fuse(network, inplace=True)
    styles = []
    for step in range(steps):
        batch = {"data": torch.rand(2, 3, 32, 32), "style": torch.rand(2, 3, 32, 32).lerp(stripes(32, 32, 0.4), 0.7)}
        same_batch = dict(batch)
        for phase, stock_phase in zip(fused.phases, stock.phases, strict=True):
            losses = phase.loss(batch)
            losses["loss"].backward()
            if step % 9 == 0:
                for name, network in stock.networks.items():
                    network.load_state_dict(fused.networks[name].state_dict())
                expected = stock_phase.loss(same_batch)
                expected["loss"].backward()
                for name, value in expected.items():
                    torch.testing.assert_close(losses[name], value, rtol=1e-3, atol=1e-5)
                ours, theirs = (
                    torch.cat([p.grad.flatten() for p in network.parameters()])
                    for network in (*phase.networks, *stock_phase.networks)
                )
                assert (ours - theirs).norm() <= 1e-3 * theirs.norm()
            phase.optimizer.step()
            for network in (*fused.networks.values(), *stock.networks.values()):
                network.zero_grad()
            if phase.name == "decoder":
                styles.append(losses["style"].item())
    assert steps < 100 or sum(styles[-5:]) < 0.5 * sum(styles[:5])


def test_a_discriminator_learns_to_tell_painted_pictures_from_paintings(folder):
    told = stats(trained(options(folder, steps=25, adversarial=1.0)))
    margin = told["discriminator/real"] - told["discriminator/fake"]
    assert margin[-3:].mean() > margin[:3].mean() + 0.1
    assert told["discriminator/loss"][-3:].mean() < told["discriminator/loss"][:3].mean()


def test_the_adversarial_loss_is_part_of_what_the_decoder_minimises(folder):
    recipe = AdaIN(options(folder, adversarial=0.5))
    losses = recipe.decoder_loss({"data": blobs(32, 32), "style": stripes(32, 32, 0.5)})
    expected = losses["content"] + 10 * losses["style"] + 0.5 * losses["adversarial"]
    torch.testing.assert_close(losses["loss"], expected)


def test_the_losses_are_those_of_the_public_training_code(folder):
    recipe = AdaIN(options(folder))
    photos, paintings = (
        torch.cat([blobs(32, 32), blobs(32, 32, 0.5)]),
        torch.cat([stripes(32, 32, f) for f in (0.4, 1)]),
    )
    losses = recipe.decoder_loss({"data": photos, "style": paintings})

    def mean_std(features: Tensor) -> tuple[Tensor, Tensor]:
        flat = features.flatten(2)
        return flat.mean(2)[..., None, None], (flat.var(2) + 1e-5).sqrt()[..., None, None]

    encoder = recipe.levels.encoder
    content, styles = encoder.levels(photos)[-1], encoder.levels(paintings)
    (mean, std), (style_mean, style_std) = mean_std(content), mean_std(styles[-1])
    target = (content - mean) / std * style_std + style_mean
    found = encoder.levels(recipe.decoder(target))
    pairs = [(mean_std(a), mean_std(b)) for a, b in zip(found, styles, strict=True)]
    style = sum((a[i] - b[i]).square().mean() for a, b in pairs for i in (0, 1))
    torch.testing.assert_close(losses["content"], (found[-1] - target).square().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["style"], style, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_decays_with_the_steps_made_however_long_the_run(folder):
    for steps in (1000, 100_000):
        (phase,) = AdaIN(options(folder, steps=steps)).phases
        assert phase.schedule(1000 / steps) == pytest.approx(1 / (1 + 5e-5 * 1000))


def test_the_encoder_is_neither_changed_nor_given_gradients(folder):
    recipe = trained(options(folder)).recipe
    assert isinstance(recipe, AdaIN)
    encoder = recipe.levels.encoder
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), random_encoder().parameters(), strict=True))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_snapshot_is_a_plain_decoder_that_stylizes_as_the_preview_shows(folder):
    trainer = trained(options(folder))
    decoder = load(latest_snapshots(trainer.path)[""])
    assert isinstance(decoder, AdaINDecoder)
    photo, painting = blobs(32, 32), stripes(32, 32, 0.5)
    with torch.no_grad():
        average = {name: module.module for name, module in trainer.averages.items()}
        shown = trainer.recipe.preview(average, {"data": photo, "style": painting})
    painted = adain_stylize(random_encoder(), decoder, photo, [painting])
    torch.testing.assert_close(shown.clamp(0, 1), torch.cat([photo, painting, painted], 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("adversarial", [0.0, 1.0])
def test_training_goes_on_from_a_decoder_or_a_run_with_its_discriminator(folder, adversarial):
    trainer = trained(options(folder, adversarial=adversarial))
    averaged = trainer.averages["decoder"].module.state_dict()
    for init in (trainer.path, latest_snapshots(trainer.path)[""]):
        recipe = AdaIN(options(folder, init=init, adversarial=1.0))
        assert all(torch.equal(value, averaged[name]) for name, value in recipe.decoder.state_dict().items())
    if adversarial:
        judge = AdaIN(options(folder, init=trainer.path, adversarial=1.0)).discriminator.state_dict()
        theirs = trainer.recipe.networks["discriminator"].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in judge.items())


def test_other_networks_a_missing_style_and_pictures_too_small_to_judge_are_refused(folder, tmp_path):
    torch.save(TransformerNet().state_dict(), tmp_path / "network.pth")
    with pytest.raises(UserError, match=r"network\.pth: a TransformerNet, adain needs"):
        AdaIN(options(folder, init=tmp_path / "network.pth"))
    with pytest.raises(UserError, match="--style is needed"):
        AdaIN(options(folder, style=None))
    with pytest.raises(UserError, match="at least 24 with adversarial, got 16"):
        AdaIN(options(folder, resolution=16, adversarial=1.0))


@pytest.fixture
def pair() -> tuple[AdaINEncoder, AdaINDecoder]:
    torch.manual_seed(3)
    return random_encoder(), adain._initial_decoder(None).eval()


def test_any_sizes_are_painted_at_the_size_of_the_content(pair):
    for height, width in ((16, 16), (29, 50), (41, 17)):
        painted = adain_stylize(*pair, blobs(height, width), [stripes(23, 37, 0.4)])
        assert painted.shape == (1, 3, height, width)
        assert painted.min() >= 0
        assert painted.max() <= 1


def test_alpha_0_paints_the_content_as_it_is_and_1_in_the_style(pair):
    encoder, decoder = pair
    content, style = blobs(32, 32), stripes(32, 32, 0.5)
    with torch.no_grad():
        features = encoder(content)
        mean, var = F.feature_statistics(encoder(style), unbiased=True)
        stylised = F.adaptive_instance_norm(features, mean, (var + 1e-5).sqrt())
        for alpha in (0.0, 0.3, 1.0):
            expected = decoder(features.lerp(stylised, alpha)).clamp(0, 1)
            painted = adain_stylize(encoder, decoder, content, [style], alpha=alpha)
            torch.testing.assert_close(painted, expected, rtol=1e-4, atol=1e-4)


def test_styles_mix_in_feature_space_in_the_proportions_given(pair):
    encoder, decoder = pair
    content, styles = blobs(32, 32), [stripes(32, 32, 0.3), stripes(24, 40, 1.1)]
    with torch.no_grad():
        features, mixture = encoder(content), torch.zeros(())
        for share, style in zip((0.25, 0.75), styles, strict=True):
            mean, var = F.feature_statistics(encoder(style), unbiased=True)
            mixture = mixture + share * F.adaptive_instance_norm(features, mean, (var + 1e-5).sqrt())
        expected = decoder(mixture).clamp(0, 1)
    torch.testing.assert_close(adain_stylize(*pair, content, styles, [1, 3]), expected, rtol=1e-4, atol=1e-4)
    even = adain_stylize(*pair, content, styles, [2, 2])
    assert torch.equal(adain_stylize(*pair, content, styles), even)


def test_preserve_color_changes_luminance_only(pair):
    content = 0.3 + 0.4 * blobs(32, 32)
    painted = adain_stylize(*pair, content, [stripes(32, 32, 0.5)], preserve_color=True)
    inside = ((painted > 0) & (painted < 1)).all(1, keepdim=True)
    assert inside.float().mean() > 0.1
    difference = ((painted - luma(painted)) - (content - luma(content))) * inside
    assert difference.abs().max() < 1e-5
    assert not torch.allclose(painted, content, atol=0.02)


def test_what_cannot_be_painted_is_refused(pair):
    content, style = blobs(32, 32), stripes(32, 32, 0.5)
    with pytest.raises(UserError, match="at least 16 pixels high and wide, got 32x15"):
        adain_stylize(*pair, blobs(15, 32), [style])
    with pytest.raises(UserError, match="at least 16 pixels high and wide, got 8x32"):
        adain_stylize(*pair, content, [style, stripes(32, 8, 0.5)])
    with pytest.raises(UserError, match=r"alpha must be from 0 to 1, got 1\.5"):
        adain_stylize(*pair, content, [style], alpha=1.5)
    with pytest.raises(UserError, match="2 positive numbers"):
        adain_stylize(*pair, content, [style, style], [1.0])
    with pytest.raises(UserError, match="at least one style"):
        adain_stylize(*pair, content, [])
