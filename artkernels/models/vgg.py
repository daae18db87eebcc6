"""VGG-19's convolutional part, the eye of style transfer (Simonyan and Zisserman 2014, arXiv:1409.1556)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "LAYERS", "VGG19"]

# Channels of the convolutions, stage by stage; every stage ends in a pooling layer that halves the picture.
_STAGES = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512, 512, 512, 512))

# What torchvision's training subtracts from, and divides, an RGB picture in [0, 1] by.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _relu_positions() -> dict[str, int]:
    positions, index = {}, 0
    for stage, channels in enumerate(_STAGES, start=1):
        for layer in range(1, len(channels) + 1):
            positions[f"relu{stage}_{layer}"] = index + 1  # the convolution is at index, its ReLU follows
            index += 2
        index += 1
    return positions


_POSITIONS = _relu_positions()

LAYERS: tuple[str, ...] = tuple(_POSITIONS)
"""The layers that :class:`VGG19` can return: relu1_1, relu1_2, relu2_1 ... relu5_4."""


class VGG19(nn.Module):
    """The convolutional part of VGG-19, returning the layers asked for.

    Modules are named as in ``torchvision.models.vgg19``, so that its ``features.*`` checkpoint entries load.
    Pictures are always RGB in [0, 1]: ``mean`` and ``std`` say what the weights at hand were trained to see. They are
    applied before the first convolution and not folded into its bias, because that convolution pads with zeros, which
    stand for the mean colour: a folded bias would turn them into black and change every pixel at the border.

    Args:
        pooling: ``"max"``, which the weights were trained with, or ``"average"``, as in Gatys et al.
        mean: subtracted from each of the three channels.
        std: divides each of them afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, pooling: str = "max", mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if pooling not in ("max", "average"):
            raise ValueError(f'VGG19: pooling must be "max" or "average", got {pooling!r}')
        modules: list[nn.Module] = []
        previous = 3
        for stage in _STAGES:
            for channels in stage:
                # In place, because only the activated values are ever returned or needed by the backward pass:
                # one tensor a layer instead of two.
                modules += [nn.Conv2d(previous, channels, 3, padding=1), nn.ReLU(inplace=True)]
                previous = channels
            modules.append(nn.MaxPool2d(2, 2) if pooling == "max" else nn.AvgPool2d(2, 2))
        self.features = nn.Sequential(*modules)
        # Not in the state_dict: its keys are torchvision's.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, layers: Sequence[str] = LAYERS) -> dict[str, Tensor]:
        """Compute ``layers`` of ``images``, and nothing deeper than the deepest of them.

        Args:
            images: [N, 3, H, W], RGB in [0, 1].
            layers: names out of :data:`LAYERS`.

        Returns:
            ``{name: [N, C, H / 2**s, W / 2**s]}`` in the network's order, s = 0 for relu1_*, 4 for relu5_*; the
            values after the ReLU.

        Raises:
            ValueError: a layer that VGG-19 does not have.
        """
        for name in layers:
            if name not in _POSITIONS:
                raise ValueError(f"VGG19: no layer {name!r}; the layers are {', '.join(LAYERS)}")
        names = {_POSITIONS[name]: name for name in layers}
        outputs: dict[str, Tensor] = {}
        x = (images - self.mean) / self.std
        for index, module in enumerate(self.features[: max(names, default=-1) + 1]):
            x = module(x)
            if index in names:
                outputs[names[index]] = x
        return outputs
