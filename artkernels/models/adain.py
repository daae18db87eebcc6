"""Encoder and decoder of arbitrary style transfer by AdaIN (Huang and Belongie 2017, arXiv:1703.06868).

Named as in naoto0804/pytorch-AdaIN, whose weights were converted from the authors' own. Between the two stands
:func:`artkernels.functional.adaptive_instance_norm`.
"""

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["AdaINDecoder", "AdaINEncoder"]

# Channels of the encoder's 3 x 3 convolutions, stage by stage; a pooling layer that halves the picture between two.
_STAGES = ((64, 64), (128, 128), (256, 256, 256, 256), (512,))


def _conv(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.ReflectionPad2d(1), nn.Conv2d(in_channels, out_channels, 3)]


class AdaINEncoder(nn.Sequential):
    """VGG-19 up to relu4_1, its weights scaled so that activations average 1 ("normalised"), padded by reflection.

    The first layer, of 1 x 1, turns RGB in [0, 1] into what the original network saw.
    """

    def __init__(self) -> None:
        modules: list[nn.Module] = [nn.Conv2d(3, 3, 1)]
        levels = []
        previous = 3
        for stage in _STAGES:
            if previous > 3:
                modules.append(nn.MaxPool2d(2, ceil_mode=True))
            for layer, channels in enumerate(stage):
                modules += [*_conv(previous, channels), nn.ReLU(inplace=True)]
                previous = channels
                if layer == 0:
                    levels.append(len(modules) - 1)
        super().__init__(*modules)
        self._levels = frozenset(levels)

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "AdaINEncoder":
        """The encoder: all have one shape."""
        return cls()

    def levels(self, pictures: Tensor) -> list[Tensor]:
        """The features of ``pictures`` [N, 3, H, W], RGB in [0, 1], whose statistics are a style.

        Returns:
            relu1_1, relu2_1, relu3_1 and relu4_1: [N, 64, H, W], [N, 128, H / 2, W / 2], [N, 256, H / 4, W / 4],
            [N, 512, H / 8, W / 8], rounded up. The last is what the decoder understands.
        """
        features = []
        x = pictures
        for index, module in enumerate(self):
            x = module(x)
            if index in self._levels:
                features.append(x)
        return features


class AdaINDecoder(nn.Sequential):
    """The encoder's mirror image: from relu4_1, [N, 512, H, W], back to pictures, [N, 3, 8 H, 8 W].

    Nearest upsampling in place of pooling, no normalisation; RGB, about [0, 1], to be clamped.
    """

    def __init__(self) -> None:
        widths = [channels for stage in _STAGES for channels in stage]
        stages_begin = {sum(map(len, _STAGES[:count])) for count in range(1, len(_STAGES))}
        modules: list[nn.Module] = []
        for index in reversed(range(1, len(widths))):
            modules += [*_conv(widths[index], widths[index - 1]), nn.ReLU(inplace=True)]
            if index in stages_begin:
                modules.append(nn.Upsample(scale_factor=2, mode="nearest"))
        super().__init__(*modules, *_conv(widths[0], 3))

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "AdaINDecoder":
        """The decoder: all have one shape."""
        return cls()
