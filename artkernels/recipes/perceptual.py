"""What all style transfer is made of: losses of a picture as VGG-19 sees it, and its luminance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.errors import UserError
from artkernels.models import VGG19, AdaINEncoder

__all__ = [
    "EncoderLevels",
    "RelativeGramLoss",
    "VGGLayers",
    "begin_grey",
    "deviation",
    "keep_colors",
    "luma",
    "match_luma",
    "mean_std",
    "normalise_shares",
    "relative_mse",
    "statistics_loss",
    "total_variation",
]

_LUMA = (0.299, 0.587, 0.114)
_EPS = 1e-5  # of a variance, before its square root
_TINY = torch.finfo(torch.float32).tiny  # a flat picture can have no energy at all


class VGGLayers(nn.Module):
    """Some layers of VGG-19, as a forward of tensors only: :func:`artkernels.fuse` can trace it."""

    def __init__(self, vgg: VGG19, layers: Sequence[str]) -> None:
        super().__init__()
        self.vgg, self.layers = vgg, tuple(layers)

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """The features of ``pictures`` [N, 3, H, W], RGB in [0, 1], in the network's order."""
        return tuple(self.vgg(pictures, self.layers).values())


class EncoderLevels(nn.Module):
    """The features of AdaIN's encoder whose statistics are a style, likewise."""

    def __init__(self, encoder: AdaINEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """Those of :meth:`AdaINEncoder.levels <artkernels.models.AdaINEncoder.levels>`."""
        return tuple(self.encoder.levels(pictures))


class RelativeGramLoss:
    """How far the Gram matrices of features are from a style's, in units of the style's own size.

    A flat picture's loss is about 1, whatever the network's weights, the painting and the layer; so one weight suits
    them all.

    Args:
        grams: of the style, layer name -> [1, C, C], made with ``normalize="chw"``.
        gram_mse_loss: that of :mod:`artkernels.functional`, or its reference.
    """

    def __init__(self, grams: Mapping[str, Tensor], gram_mse_loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._grams = dict(grams)
        self._gram_mse_loss = gram_mse_loss
        self._scales = {
            layer: 1 / len(grams) / max(float(gram.square().mean()), _TINY) for layer, gram in grams.items()
        }

    def __call__(self, features: Mapping[str, Tensor]) -> Tensor:
        """A scalar, from the features [N, C, H, W] of at least the style's layers."""
        losses = [
            self._scales[layer] * self._gram_mse_loss(features[layer], gram) for layer, gram in self._grams.items()
        ]
        return torch.stack(losses).sum()


def relative_mse(features: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference in units of the target's mean square: 1 for features that are all 0."""
    return TF.mse_loss(features, target) / target.float().square().mean().clamp_min(_TINY)


def mean_std(features: Tensor, F: Any) -> tuple[Tensor, Tensor]:
    """The style that :func:`~artkernels.functional.adaptive_instance_norm` gives: each channel's mean and deviation.

    Args:
        features: [N, C, H, W] of more than one pixel.
        F: :mod:`artkernels.functional` or :mod:`artkernels.reference`.

    Returns:
        (mean, standard deviation), each [N, C].
    """
    mean, var = F.feature_statistics(features, unbiased=True)
    return mean, deviation(var)


def deviation(var: Tensor) -> Tensor:
    """The standard deviation of a variance, never quite 0."""
    return (var + _EPS).sqrt()


def statistics_loss(features: Sequence[Tensor], styles: Sequence[tuple[Tensor, Tensor]], F: Any) -> Tensor:
    """How far each channel's mean and deviation are from a style's: mean squares, summed over the layers.

    Args:
        features: of each layer, [N, C, H, W].
        styles: of each layer, what :func:`mean_std` gave.
        F: as there.
    """
    losses = [
        TF.mse_loss(ours, theirs)
        for layer, style in zip(features, styles, strict=True)
        for ours, theirs in zip(mean_std(layer, F), style, strict=True)
    ]
    return torch.stack(losses).sum()


def total_variation(pictures: Tensor) -> Tensor:
    """How much neighbouring pixels of ``pictures`` [N, C, H, W] differ: mean squares, down and across."""
    vertical = (pictures[..., 1:, :] - pictures[..., :-1, :]).square().mean()
    horizontal = (pictures[..., :, 1:] - pictures[..., :, :-1]).square().mean()
    return vertical + horizontal


def normalise_shares(shares: Sequence[float] | None, count: int) -> list[float]:
    """The proportions in which ``count`` styles are mixed, None for equal ones, as numbers whose sum is 1.

    Raises:
        UserError: no style, or shares that are not one positive number each.
    """
    if not count:
        raise UserError("at least one style picture is needed, got none")
    shares = [1.0] * count if shares is None else list(shares)
    if len(shares) != count or not all(0 < share < float("inf") for share in shares):
        raise UserError(f"style weights must be {count} positive numbers, one for each style picture, got {shares}")
    return [share / sum(shares) for share in shares]


@torch.no_grad()
def begin_grey(last: nn.Module, grey: float, contrast: float) -> None:
    """Let a new network's first pictures be about ``grey``, whence any picture is soon learnt: set its last layer.

    Args:
        last: a convolution whose ``weight`` and ``bias`` are new.
        grey: what the bias is set to.
        contrast: what the weight is multiplied by.
    """
    last.get_parameter("weight").mul_(contrast)
    last.get_parameter("bias").fill_(grey)


# ---- a photograph's own colours: luminance-only transfer (Gatys et al. 2016, arXiv:1606.05897) -----------------------
# Unlike colour matching, the paper's other way, it cannot leak a colour that the photograph doesn't have.


def luma(picture: Tensor) -> Tensor:
    """The luminance of ``picture`` [N, 3, H, W], RGB: [N, 1, H, W]."""
    return (picture * picture.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def match_luma(style: Tensor, photo: Tensor) -> Tensor:
    """Give the painting's luminance the photograph's mean and contrast."""
    contrast = photo.std() / style.std().clamp_min(1e-3)
    return (style - style.mean()) * contrast + photo.mean()


def keep_colors(painted: Tensor, photo: Tensor) -> Tensor:
    """``painted``, a luminance [1, 1, H, W], in the colours of ``photo`` [1, 3, H, W]."""
    return photo + (painted - luma(photo))
