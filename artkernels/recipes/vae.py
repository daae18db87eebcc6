"""Variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114), or beta-VAE (Higgins et al. 2017)."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.checkpoints import load
from artkernels.errors import UserError
from artkernels.models import ConvVAE
from artkernels.training.options import TrainingOptions, option
from artkernels.training.recipe import Batch, Losses, Phase, Recipe
from artkernels.training.runs import STATE

__all__ = ["VAE", "VAEOptions"]


@dataclass(kw_only=True)
class VAEOptions(TrainingOptions):
    """Options of the recipe vae."""

    lr: float = option(1e-3, "Learning rate.", above=0)
    reconstruction: Literal["mse", "bce"] = option(
        "mse", "Squared errors (a normal distribution of variance 1/2) or cross entropy, summed over a picture."
    )
    beta: float = option(1.0, "Weight of the KL divergence: less gives sharper reconstructions.", least=0)
    beta_warmup: int = option(0, "Steps over which beta rises from 0 in a straight line.", least=0)
    nz: int = option(128, "Length of the code.", least=1)
    nf: int = option(32, "Channels of the largest hidden map.", least=1)


class VAE(Recipe):
    """An encoder and a decoder that together maximise the evidence lower bound.

    Both of its terms are sums over a picture, in nats, averaged over the batch, so that ``beta`` 1 is the bound
    itself and means the same at every resolution. The log has them apart: ``reconstruction`` (the squared errors
    without the constant of their distribution) and ``kl``, which ``beta`` does not touch.

    ``beta_warmup`` counts steps, as ``snap`` does, and is no share of the run: a run that is continued for longer must
    not fall back to a smaller beta.

    ``init`` may be an autoencoder's checkpoint, or a run.
    """

    name: ClassVar[str] = "vae"
    summary: ClassVar[str] = "Train a variational autoencoder, or fine-tune one with --init."
    options_type: ClassVar[type[TrainingOptions]] = VAEOptions
    averaged = ("vae",)

    def __init__(self, options: VAEOptions) -> None:
        vae = _initial_network(options)
        self.options: VAEOptions = replace(options, nz=vae.nz, nf=vae.nf, resolution=vae.size)
        self.vae, self.beta = vae, options.beta
        self.networks = {"vae": vae}
        adam = torch.optim.Adam(vae.parameters(), lr=options.lr, fused=True)
        self.phases = (Phase("vae", (vae,), adam, self.negative_bound),)

    def share(self, batch: Batch, step: int) -> None:
        """The weight of the divergence at this step."""
        warmup = self.options.beta_warmup
        self.beta = self.options.beta * min(1.0, step / warmup if warmup else 1.0)

    def negative_bound(self, batch: Batch) -> Losses:
        """What the code fails to tell about a picture, and what it tells beyond the prior."""
        pictures = batch["data"]
        mean, logvar = self.vae.encode(pictures)
        codes, divergences = self.F.reparameterize_kl(mean, logvar, self.randn(len(pictures), self.options.nz))
        reconstruction = self._reconstruction(self.vae.decode(codes), pictures)
        kl = divergences.mean()
        return {"loss": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}

    def _reconstruction(self, decoded: Tensor, pictures: Tensor) -> Tensor:
        """The negative log likelihood of ``pictures``."""
        if self.options.reconstruction == "mse":
            return TF.mse_loss(decoded.float(), pictures, reduction="sum") / len(pictures)
        # By way of the logits, cut where the decoder's dtype ends: autocast refuses the cross entropy of probabilities.
        logits = decoded.float().logit(torch.finfo(decoded.dtype).eps)
        return TF.binary_cross_entropy_with_logits(logits, pictures, reduction="sum") / len(pictures)

    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """A square of pictures: rows of originals, each with its reconstructions below, then samples of the prior."""
        vae, originals = networks["vae"], batch["data"]
        assert isinstance(vae, ConvVAE)
        side = max(3, math.isqrt(len(originals)))
        pairs = side // 3
        shown = originals[torch.arange(pairs * side, device=originals.device) % len(originals)]
        codes = torch.randn((side - 2 * pairs) * side, vae.nz).to(self.device)
        reconstructions, samples = vae.decode(vae.encode(shown)[0]), vae.decode(codes)
        rows = [pictures.float().view(pairs, side, *pictures.shape[1:]) for pictures in (shown, reconstructions)]
        return torch.cat([torch.stack(rows, dim=1).flatten(0, 2), samples])


def _initial_network(options: VAEOptions) -> ConvVAE:
    if options.fit == "bucket":
        raise UserError("fit must be crop, random-crop or pad for vae, whose network takes pictures of one shape")
    if options.init is None:
        if options.resolution not in (32, 64, 128, 256, 512):
            raise UserError(f"resolution must be 32, 64, 128, 256 or 512 for vae, got {options.resolution}")
        return ConvVAE(options.nz, options.nf, size=options.resolution)
    return _loaded(options.init)


def _loaded(init: Path) -> ConvVAE:
    network = load(init / STATE, entry="networks_ema.vae") if init.is_dir() else load(init)
    if not isinstance(network, ConvVAE):
        raise UserError(f"{init}: a {type(network).__name__}, vae needs a ConvVAE")
    if (channels := network.state_dict()["encoder.0.weight"].shape[1]) != 3:
        raise UserError(f"{init}: of pictures of {channels} channels, vae learns from pictures of 3")
    return network
