"""The recipe cyclegan: what its losses, its phases and its image pool do, and what of it is kept."""

import itertools
import json
import random

import pytest
import torch
from PIL import Image
from torch import Tensor

import artkernels
from artkernels.errors import UserError
from artkernels.models import ResnetGenerator
from artkernels.recipes import build
from artkernels.recipes.cyclegan import CycleGAN, CycleGANOptions
from artkernels.training.image_pool import ImagePool
from artkernels.training.trainer import Trainer

TINY = {"resolution": 32, "ngf": 4, "ndf": 4, "blocks": 1, "device": "cpu", "workers": 0}

pytestmark = pytest.mark.cpu_only  # its operations have tests of their own


def recipe(**changes) -> CycleGAN:
    made = build("cyclegan", CycleGANOptions(**{**TINY, **changes}))
    assert isinstance(made, CycleGAN)
    return made


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {kind: torch.rand(1, 3, 32, 32, generator=generator) for kind in ("A", "B")}


def shared(made: CycleGAN) -> dict[str, Tensor]:
    pictures = batch()
    made.share(pictures, 0)
    return pictures


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The current folder, with the two kinds of pictures in the official layout."""
    monkeypatch.chdir(tmp_path)
    for kind, index in itertools.product(("trainA", "trainB"), range(3)):
        folder = tmp_path / "data" / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 20 + 30 * index).convert("RGB").save(folder / f"{index}.png")
    return tmp_path


def train(**changes) -> Trainer:
    trainer = Trainer(recipe(**{**TINY, "snap": 10**6, **changes}))
    trainer.train()
    return trainer


def lines(trainer: Trainer) -> list[dict[str, float]]:
    return [json.loads(line) for line in (trainer.path / "stats.jsonl").read_text().splitlines()]


# ---- losses and phases -----------------------------------------------------------------------------------------------


def test_the_losses_are_the_papers():
    made = recipe(lambda_cycle=7.0, lambda_identity=0.25)
    a2b, b2a, d_a, d_b = made.networks.values()
    pictures = shared(made)
    a, b = pictures["A"] * 2 - 1, pictures["B"] * 2 - 1
    fake_a, fake_b = b2a(b), a2b(a)
    gan = ((d_a(fake_a) - 1) ** 2).mean() + ((d_b(fake_b) - 1) ** 2).mean()
    cycle = (b2a(fake_b) - a).abs().mean() + (a2b(fake_a) - b).abs().mean()
    identity = (b2a(a) - a).abs().mean() + (a2b(b) - b).abs().mean()
    torch.testing.assert_close(made.generator_loss(pictures)["loss"], gan + 7 * cycle + 7 * 0.25 * identity)
    tell = [
        (d(real) - 1).square().mean() + d(fake).square().mean()
        for d, real, fake in ((d_a, a, fake_a), (d_b, b, fake_b))
    ]
    torch.testing.assert_close(made.discriminator_loss(pictures)["loss"], (tell[0] + tell[1]) / 2)


def test_without_its_weight_the_identity_loss_is_not_computed():
    made = recipe(lambda_identity=0.0)
    assert "identity" not in made.generator_loss(shared(made))


def test_generators_learn_first_and_each_phase_trains_its_own_networks_only():
    made = recipe()
    assert [phase.name for phase in made.phases] == ["G", "D"]
    generators, discriminators = made.phases
    pictures = shared(made)
    for network in discriminators.networks:
        network.requires_grad_(False)  # as the trainer does
    generators.loss(pictures)["loss"].backward()
    assert all(p.grad is None for network in discriminators.networks for p in network.parameters())
    assert all(p.grad is not None for network in generators.networks for p in network.parameters())
    before = [p.grad.clone() for network in generators.networks for p in network.parameters()]
    for network in discriminators.networks:
        network.requires_grad_(True)
    discriminators.loss(pictures)["loss"].backward()
    after = [p.grad for network in generators.networks for p in network.parameters()]
    assert all(map(torch.equal, before, after))
    assert all(p.grad is not None for network in discriminators.networks for p in network.parameters())


def test_every_network_is_of_exactly_one_optimizer():
    made = recipe()
    trained = [id(p) for phase in made.phases for group in phase.optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for network in made.networks.values() for p in network.parameters())


def test_the_learning_rates_fall_in_a_straight_line_in_the_second_half():
    for phase in recipe().phases:
        assert [phase.schedule(t) for t in (0.0, 0.3, 0.5, 0.75, 1.0)] == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_weights_begin_normally_distributed_with_a_deviation_of_002():
    made = recipe(ngf=16)
    weights = torch.cat([p.flatten() for p in made.A2B.parameters() if p.dim() == 4])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not p.any() for network in made.networks.values() for p in network.parameters() if p.dim() == 1)


def test_frozen_convolutions_stay_as_they_are():
    made = recipe(freezed=2)
    frozen = [name for name, p in made.D_A.named_parameters() if not p.requires_grad]
    assert frozen == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]
    with pytest.raises(UserError, match="less than a discriminator's 5 convolutions, got 5"):
        recipe(freezed=5)


@pytest.mark.parametrize(("resolution", "blocks"), [(256, 9), (252, 6)])
def test_pictures_of_256_pixels_get_nine_blocks_and_smaller_ones_six(resolution, blocks):
    assert recipe(resolution=resolution, blocks=None).options.blocks == blocks


def test_a_preview_shows_each_picture_above_what_becomes_of_it():
    made = recipe()
    pictures = {kind: torch.rand(3, 3, 32, 32) for kind in ("A", "B")}
    sheet = made.preview({name: made.networks[name] for name in made.averaged}, pictures)
    a, a2b, b, b2a = sheet.chunk(4, dim=-2)
    assert torch.equal(a, pictures["A"])
    assert torch.equal(b, pictures["B"])
    torch.testing.assert_close(a2b, (made.A2B(pictures["A"] * 2 - 1) + 1) / 2)
    torch.testing.assert_close(b2a, (made.B2A(pictures["B"] * 2 - 1) + 1) / 2)


# ---- the pool --------------------------------------------------------------------------------------------------------


def pictures_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def shown(pool: ImagePool, value: float) -> float:
    return pool.exchange(pictures_of(value))[0, 0, 0, 0].item()


def test_a_pool_that_is_filling_returns_what_it_is_given():
    pool = ImagePool(3)
    given = pictures_of(1, 2, 3)
    assert torch.equal(pool.exchange(given), given)
    assert [picture[0, 0, 0].item() for picture in pool.pictures] == [1, 2, 3]


def test_a_full_pool_returns_every_other_time_an_earlier_picture_and_keeps_the_new_one():
    random.seed(0)
    pool = ImagePool(5)
    returned = [shown(pool, value) for value in range(1005)]
    exchanged = [value != now for now, value in enumerate(returned)]
    assert len(pool.pictures) == 5
    assert 0.45 < sum(exchanged[5:]) / 1000 < 0.55
    kept = {picture[0, 0, 0].item() for picture in pool.pictures}
    assert len(set(returned) | kept) == 1005  # nothing is lost, nothing shown twice
    assert not set(returned) & kept - set(range(5))


def test_a_pool_keeps_no_graph_and_no_more_than_its_pictures():
    pool = ImagePool(2)
    pool.exchange(pictures_of(1, 2, 3, 4).requires_grad_() * 2)
    assert all(not p.requires_grad and p.untyped_storage().nbytes() == p.nbytes for p in pool.pictures)


def test_a_restored_pool_makes_the_same_choices(tmp_path):
    random.seed(3)
    first, second = recipe(), recipe()
    for kind, value in itertools.product(("A", "B"), range(60)):
        first.pools[kind].exchange(pictures_of(value))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    state = random.getstate()
    wanted = [shown(first.pools[kind], value) for value in range(60, 100) for kind in ("A", "B")]
    random.setstate(state)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [shown(second.pools[kind], value) for value in range(60, 100) for kind in ("A", "B")] == wanted


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_fused_and_stock_kernels_have_the_same_losses(folders):
    """At a low learning rate: at the usual one the contest is chaotic, and the discriminators' loss of stock PyTorch
    itself, begun with weights that differ by 1e-7, is off by a third within 50 steps.
    """
    options = {"data": folders / "data", "steps": 100, "tick": 1, "lr": 5e-6}
    runs = [train(**options, kernels=kernels, outdir=folders / kernels) for kernels in ("fused", "stock")]
    for fused, stock in zip(*map(lines, runs), strict=True):
        assert fused["G/loss"] == pytest.approx(stock["G/loss"], rel=1e-3)
        assert fused["D/loss"] == pytest.approx(stock["D/loss"], rel=1e-3)


def test_a_continued_run_has_the_losses_of_one_that_was_not_stopped(folders, monkeypatch):
    monkeypatch.setattr("artkernels.recipes.cyclegan._POOL", 3)  # full, and choosing, before the stop
    options = {"data": folders / "data", "steps": 12, "tick": 1}
    whole = train(**options, outdir=folders / "whole")
    stopped = Trainer(recipe(**options, outdir=folders / "stopped"))
    monkeypatch.setattr(stopped, "_must_stop", lambda: stopped.step == 7)
    stopped.train()
    assert len(lines(stopped)) == 7
    continued = Trainer(recipe(**options, outdir=folders / "stopped"), stopped.path)
    continued.train()
    losses = [[(line["G/loss"], line["D/loss"]) for line in lines(trainer)] for trainer in (continued, whole)]
    assert losses[0] == losses[1]


def test_a_run_saves_one_file_a_generator_and_can_be_started_from(folders):
    trainer = train(data=folders / "data", steps=2, tick=1)
    a2b = artkernels.load(trainer.path / "network-snapshot-000002-netG_A2B.safetensors")
    assert isinstance(a2b, ResnetGenerator)
    torch.save(a2b.state_dict(), folders / "netG.pth")
    tuned = recipe(init=trainer.path, ngf=64, blocks=9, ndf=64)
    assert (tuned.options.ngf, tuned.options.blocks, tuned.options.ndf) == (4, 1, 4)
    for name in ("netG_A2B", "netG_B2A"):
        average = trainer.averages[name].module
        torch.testing.assert_close(tuned.networks[name].state_dict(), dict(average.state_dict()))
    torch.testing.assert_close(tuned.D_B.state_dict(), dict(trainer.recipe.networks["netD_B"].state_dict()))
    begun = recipe(init=folders / "netG.pth", ngf=64)
    torch.testing.assert_close(begun.A2B.state_dict(), a2b.state_dict())
    assert begun.B2A.state_dict().keys() == a2b.state_dict().keys()
    assert not torch.equal(begun.B2A.model[1].weight, begun.A2B.model[1].weight)


def test_pictures_come_from_two_folders_in_either_layout(folders):
    official = recipe(data=folders / "data").sources()
    assert official == {"A": folders / "data" / "trainA", "B": folders / "data" / "trainB"}
    assert recipe(data=official["B"], data_b=official["A"]).sources() == {"A": official["B"], "B": official["A"]}
    (folders / "half" / "trainA").mkdir(parents=True)
    with pytest.raises(UserError, match=r"half: has no folder trainB: .*--data-b"):
        recipe(data=folders / "half").sources()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"resolution": 30}, "multiple of 4"),
        ({"resolution": 20}, "at least 24"),
        ({"fit": "bucket"}, "fit must be"),
        ({"blocks": 0}, "blocks must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        recipe(**changes)


@pytest.mark.parametrize(
    "network",
    [
        ResnetGenerator(1, 3, 4, 1),
        ResnetGenerator(3, 3, 4, 1, norm="batch"),
        ResnetGenerator(3, 3, 4, 1, use_dropout=True),
    ],
)
def test_a_generator_of_another_make_is_refused(tmp_path, network):
    torch.save(network.state_dict(), tmp_path / "netG.pth")
    with pytest.raises(UserError, match="cyclegan needs a ResNet generator"):
        recipe(init=tmp_path / "netG.pth")
