"""The recipe vae minimises the negative evidence lower bound, the same on fused and on stock operations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from PIL import Image
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence

from artkernels.errors import UserError
from artkernels.fusion import fuse
from artkernels.models import ConvVAE, DCGANGenerator
from artkernels.recipes import build
from artkernels.recipes.vae import VAE, VAEOptions
from artkernels.training.trainer import Trainer

pytestmark = pytest.mark.cpu_only  # of the networks' operations, each has a test of its own on CUDA

TINY = {"resolution": 32, "nz": 6, "nf": 8, "batch": 8, "workers": 0, "device": "cpu", "lr": 1e-3, "tick": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    chance = np.random.default_rng(0)
    for index in range(20):
        blocks = chance.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((32, 32), Image.Resampling.BILINEAR).save(folder / f"{index}.png")
    return folder


def recipe(**options) -> VAE:
    made = build("vae", VAEOptions(**{**TINY, **options}))
    assert isinstance(made, VAE)
    return made


def trained(pictures: Path, outdir: Path, **options) -> Path:
    trainer = Trainer(recipe(data=pictures, outdir=outdir, snap=1000, **options))
    trainer.train()
    return trainer.path


def logged(run: Path, name: str) -> list[float]:
    return [json.loads(line)[f"vae/{name}"] for line in (run / "stats.jsonl").read_text().splitlines()]


def bound(vae: VAE, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return vae.negative_bound({"data": batch})


def losses_of_a_hundred_steps(kernels: str) -> torch.Tensor:
    """[100, 3]: loss, reconstruction and KL divergence.

    Adam multiplies rounding from step to step: stock PyTorch whose first weights differ in the last bit is as far from
    itself after so many steps, at this learning rate 4e-5 of the loss, and more at a larger one.
    """
    vae = recipe(kernels=kernels, beta=0.5, beta_warmup=50, batch=16, lr=1e-4)
    (phase,) = vae.phases
    if kernels == "fused":
        fuse(vae.vae, inplace=True)
    torch.manual_seed(0)
    data, losses = TF.interpolate(torch.rand(24, 3, 4, 4), (32, 32), mode="bilinear"), []
    for step in range(100):
        batch = {"data": data[torch.randint(0, 24, (16,))]}
        vae.share(batch, step)
        values = phase.loss(batch)
        values["loss"].backward()
        phase.optimizer.step()
        phase.optimizer.zero_grad()
        losses.append(torch.stack([values[name].detach() for name in ("loss", "reconstruction", "kl")]))
    return torch.stack(losses)


def test_fused_and_stock_losses_agree_over_a_hundred_steps():
    fused, stock = losses_of_a_hundred_steps("fused"), losses_of_a_hundred_steps("stock")
    torch.testing.assert_close(fused[:10], stock[:10], rtol=1e-5, atol=0)
    assert ((fused - stock).abs() <= 1e-3 * stock[:, :1]).all()
    assert fused[-10:, 0].mean() < fused[:10, 0].mean()


def test_the_divergence_is_that_of_the_distributions_in_nats_per_picture():
    vae, batch = recipe(), torch.rand(4, 3, 32, 32)
    mean, logvar = vae.vae.encode(batch)
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(bound(vae, batch)["kl"], expected)


@pytest.mark.parametrize("reconstruction", ["mse", "bce"])
def test_the_reconstruction_is_the_negative_log_likelihood_of_a_picture_of_the_drawn_code(reconstruction):
    vae, batch = recipe(reconstruction=reconstruction), torch.rand(4, 3, 32, 32)
    losses = bound(vae, batch)
    torch.manual_seed(1)
    mean, logvar = vae.vae.encode(batch)
    decoded = vae.vae.decode(mean + (logvar / 2).exp() * torch.randn(4, 6))
    if reconstruction == "mse":  # but for the constant, which depends on no weight
        log_likelihood = Normal(decoded, math.sqrt(0.5)).log_prob(batch) + math.log(math.pi) / 2
        expected = -log_likelihood.sum((1, 2, 3)).mean()
    else:
        expected = TF.binary_cross_entropy(decoded, batch, reduction="none").sum((1, 2, 3)).mean()
    torch.testing.assert_close(losses["reconstruction"], expected)
    torch.testing.assert_close(losses["loss"], expected + losses["kl"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_cross_entropy_stays_finite_where_a_16_bit_sigmoid_saturates(dtype):
    vae = recipe(reconstruction="bce")
    decoded = torch.tensor([[0.0, 0.5, 1.0]], dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype):
        loss = vae._reconstruction(decoded, torch.tensor([[1.0, 0.5, 0.0]]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert decoded.grad.isfinite().all()


def test_beta_rises_in_a_straight_line_and_then_stays():
    vae, betas = recipe(beta=4.0, beta_warmup=8), []
    for step in range(12):
        vae.share({}, step)
        betas.append(vae.beta)
    assert betas == [0.5 * step for step in range(8)] + [4.0] * 4


def test_beta_weights_the_divergence_and_without_a_warm_up_does_so_at_once():
    vae, batch = recipe(beta=3.0), torch.rand(2, 3, 32, 32)
    vae.share({}, 0)
    losses = bound(vae, batch)
    torch.testing.assert_close(losses["loss"], losses["reconstruction"] + 3 * losses["kl"])


def test_a_run_continued_in_the_middle_of_the_warm_up_has_the_losses_of_one_that_was_not_stopped(pictures, tmp_path):
    whole = trained(pictures, tmp_path, steps=12, beta_warmup=10)
    part = trained(pictures, tmp_path, steps=6, beta_warmup=10)
    Trainer(recipe(data=pictures, outdir=tmp_path, snap=1000, steps=12, beta_warmup=10), part).train()
    assert logged(part, "loss") == logged(whole, "loss")
    assert recipe().state_dict() == {}


@pytest.mark.parametrize(("count", "side"), [(1, 3), (4, 3), (16, 4), (64, 8)])
def test_the_preview_is_a_square_of_originals_above_their_reconstructions_and_of_samples(count, side):
    vae, batch = recipe(), torch.rand(count, 3, 32, 32)
    network = vae.vae.eval()
    with torch.no_grad():
        shown = vae.preview({"vae": network}, {"data": batch})
        first = batch[torch.arange(side) % count]
        reconstructions = network.decode(network.encode(first)[0])
    assert shown.shape == (side * side, 3, 32, 32)
    assert torch.equal(shown[:side], first)
    torch.testing.assert_close(shown[side : 2 * side], reconstructions)
    if side == 8:
        assert torch.equal(shown[16:24], batch[8:16])
    assert 0 <= shown.min() <= shown.max() <= 1


def test_init_takes_a_checkpoint_or_a_run_and_its_shape(pictures, tmp_path):
    network = ConvVAE(5, 4, size=32)
    save_file(network.state_dict(), tmp_path / "vae.safetensors")
    of_file = recipe(init=tmp_path / "vae.safetensors", resolution=64)
    assert (of_file.options.nz, of_file.options.nf, of_file.options.resolution) == (5, 4, 32)
    torch.testing.assert_close(of_file.vae.state_dict(), network.state_dict())

    run = trained(pictures, tmp_path, steps=2)
    averaged = torch.load(run / "state.pt", weights_only=True)["networks_ema"]["vae"]
    torch.testing.assert_close(recipe(init=run, nz=99).vae.state_dict(), averaged)


def test_what_it_cannot_learn_from_is_refused_in_one_sentence(tmp_path):
    save_file(DCGANGenerator(3, 2, size=32).state_dict(), tmp_path / "netG.safetensors")
    save_file(ConvVAE(3, 2, 1, size=32).state_dict(), tmp_path / "grey.safetensors")
    for options, words in [
        ({"init": tmp_path / "netG.safetensors"}, "a DCGANGenerator, vae needs a ConvVAE"),
        ({"init": tmp_path / "grey.safetensors"}, "of pictures of 1 channels"),
        ({"init": tmp_path}, "state.pt: no such file"),
        ({"resolution": 48}, "resolution must be 32, 64, 128, 256 or 512 for vae, got 48"),
        ({"fit": "bucket"}, "fit must be crop, random-crop or pad"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"beta_warmup": -1}, "beta_warmup must be at least 0"),
        ({"reconstruction": "l1"}, "reconstruction must be one of mse, bce"),
    ]:
        with pytest.raises(UserError, match=words):
            recipe(**options)
