"""DCGAN (Radford, Metz and Chintala 2015, arXiv:1511.06434): trained from nothing, or fine-tuned on new pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.models import DCGANDiscriminator, DCGANGenerator
from artkernels.recipes.adversarial import freeze_first_convolutions, initialise
from artkernels.training.options import TrainingOptions, option
from artkernels.training.recipe import Batch, Losses, Phase, Recipe
from artkernels.training.runs import STATE, load_state

__all__ = ["DCGAN", "DCGANOptions"]

_CRITIC_STEPS = 5  # Gulrajani et al. 2017: the critic's steps for each one of the generator
_PENALTY = 10.0


@dataclass(kw_only=True)
class DCGANOptions(TrainingOptions):
    """Options of the recipe dcgan; networks of the shape that pytorch/examples made common."""

    loss: Literal["bce", "hinge", "wgan-gp"] = option(
        "bce", "Non-saturating cross entropy of the logits, hinge, or Wasserstein distance with gradient penalty."
    )
    freezed: int = option(0, "First convolutions of the discriminator that stay as they are (FreezeD).", least=0)
    nz: int = option(100, "Length of the noise.", least=1)
    ngf: int = option(64, "Channels of the generator's largest map.", least=1)
    ndf: int = option(64, "Channels of the discriminator's largest map.", least=1)


class DCGAN(Recipe):
    """A generator and the discriminator that it is trained against, by turns.

    Real and generated pictures pass the discriminator in batches of their own, and each generated batch serves both
    phases of its step. With ``wgan-gp`` the discriminator has layer norm in place of batch norm, which would make a
    picture's gradient depend on its neighbours (Gulrajani et al. 2017, arXiv:1704.00028), and five steps to one.

    ``init`` may be a generator's checkpoint, which gets a new discriminator, or a run, whose own it keeps.
    """

    name: ClassVar[str] = "dcgan"
    summary: ClassVar[str] = "Train a DCGAN, or fine-tune one with --init."
    options_type: ClassVar[type[TrainingOptions]] = DCGANOptions
    averaged = ("netG",)

    def __init__(self, options: DCGANOptions) -> None:
        if options.fit == "bucket":
            raise UserError("fit must be crop, random-crop or pad for dcgan, whose pictures are of one shape")
        generator, discriminator = _initial_networks(options)
        ndf = _channels(discriminator.state_dict())
        options = replace(options, nz=generator.nz, ngf=generator.ngf, ndf=ndf, resolution=generator.size)
        self.options: DCGANOptions = options
        self.generator, self.discriminator = generator, discriminator
        self.networks = {"netG": generator, "netD": discriminator}
        freeze_first_convolutions(discriminator, options.freezed)
        critic = options.loss == "wgan-gp"
        betas = (0.0, 0.9) if critic else (0.5, 0.999)
        discriminator_adam, generator_adam = (
            torch.optim.Adam(
                [p for p in network.parameters() if p.requires_grad], lr=options.lr, betas=betas, fused=True
            )
            for network in (discriminator, generator)
        )
        self.phases = (
            Phase("D", (discriminator,), discriminator_adam, self.discriminator_loss),
            Phase("G", (generator,), generator_adam, self.generator_loss, every=_CRITIC_STEPS if critic else 1),
        )

    def share(self, batch: Batch, step: int) -> None:
        """The generated pictures, with their graph where the generator is to learn from them."""
        noise = self.randn(len(batch["data"]), self.options.nz, 1, 1)
        with torch.set_grad_enabled(step % self.phases[1].every == 0):
            batch["fakes"] = self.generator(noise)

    def discriminator_loss(self, batch: Batch) -> Losses:
        """How badly the discriminator tells the two apart."""
        reals, fakes = batch["data"] * 2 - 1, batch["fakes"].detach()
        real, fake = self.discriminator(reals), self.discriminator(fakes)
        scores = {"real": real.mean(), "fake": fake.mean()}
        if self.options.loss == "wgan-gp":
            penalty = self._gradient_penalty(reals, fakes)
            return {"loss": fake.mean() - real.mean() + _PENALTY * penalty, "penalty": penalty, **scores}
        if self.options.loss == "hinge":
            return {"loss": TF.relu(1 - real).mean() + TF.relu(1 + fake).mean(), **scores}
        return {"loss": _cross_entropy(real, 1.0) + _cross_entropy(fake, 0.0), **scores}

    def generator_loss(self, batch: Batch) -> Losses:
        """How badly the generator deceives the discriminator."""
        fake = self.discriminator(batch["fakes"])
        return {"loss": _cross_entropy(fake, 1.0) if self.options.loss == "bce" else -fake.mean()}

    def _gradient_penalty(self, reals: Tensor, fakes: Tensor) -> Tensor:
        """Of the critic's slope between real and generated pictures, which should be 1."""
        t = self.rand(len(reals), 1, 1, 1)
        between = torch.lerp(reals, fakes.to(reals.dtype), t).requires_grad_()
        (slope,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
        norms = slope.flatten(1).square().sum(1).sqrt()
        return (norms - 1).square().mean()

    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """Pictures from the same noise each time."""
        noise = torch.randn(len(batch["data"]), self.options.nz, 1, 1).to(self.device)
        pictures: Tensor = networks["netG"](noise)
        return (pictures + 1) / 2


def _initial_networks(options: DCGANOptions) -> tuple[DCGANGenerator, nn.Module]:
    if options.init and options.init.is_dir():
        return _networks_of_run(options.init, options)
    if options.init:
        generator = _checked(load(options.init), options.init)
    elif options.resolution in (32, 64, 128, 256, 512):
        generator = DCGANGenerator(options.nz, options.ngf, size=options.resolution)
        initialise(generator)
    else:
        raise UserError(f"resolution must be 32, 64, 128, 256 or 512 for dcgan, got {options.resolution}")
    return generator, initialise(_new_discriminator(options.ndf, generator.size, options.loss))


def _networks_of_run(run: Path, options: DCGANOptions) -> tuple[DCGANGenerator, nn.Module]:
    generator = _checked(load(run / STATE, entry="networks_ema.netG"), run)
    state = load_state(run)["networks"]["netD"]
    discriminator = _new_discriminator(_channels(state), generator.size, options.loss)
    if state.keys() != discriminator.state_dict().keys():
        raise UserError(f"{run}: its discriminator has other norms than --loss {options.loss} needs")
    discriminator.load_state_dict(state)
    return generator, discriminator


def _channels(state: Mapping[str, Tensor]) -> int:
    """Of a discriminator's largest map."""
    return state["main.0.weight"].shape[0]


def _checked(network: nn.Module, path: Path) -> DCGANGenerator:
    if not isinstance(network, DCGANGenerator):
        raise UserError(f"{path}: a {type(network).__name__}, dcgan needs a DCGAN generator")
    *_, last = (module for module in network.modules() if isinstance(module, nn.ConvTranspose2d))
    if last.out_channels != 3:
        raise UserError(f"{path}: makes pictures of {last.out_channels} channels, dcgan learns from pictures of 3")
    return network


def _new_discriminator(ndf: int, size: int, loss: str) -> nn.Module:
    discriminator = DCGANDiscriminator(ndf, size=size)
    modules = discriminator.main
    modules[-1] = nn.Identity()  # the losses apply the sigmoid, where they need it
    if loss == "wgan-gp":
        for index, module in enumerate(modules):
            if isinstance(module, nn.BatchNorm2d):
                modules[index] = nn.GroupNorm(1, module.num_features)
    return discriminator


def _cross_entropy(logits: Tensor, label: float) -> Tensor:
    return TF.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))
