"""CycleGAN's networks (Zhu et al. 2017, arXiv:1703.10593), named as in junyanz/pytorch-CycleGAN-and-pix2pix.

The generator is that of Johnson et al. 2016 (arXiv:1603.08155), the discriminator the PatchGAN of Isola et al. 2017
(arXiv:1611.07004).
"""

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["NLayerDiscriminator", "ResnetGenerator"]

_DECODER = 9  # modules of the generator after the residual blocks


def _norm(norm: str, channels: int) -> nn.Module:
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    raise ValueError(f'CycleGAN: norm must be "instance" or "batch", got {norm!r}')


class ResnetBlock(nn.Module):
    """Two 3 x 3 convolutions, padded by reflection, added to their input; no activation after the sum."""

    def __init__(self, channels: int, *, norm: str, use_dropout: bool) -> None:
        super().__init__()
        bias = norm == "instance"  # batch norm's own bias makes the convolution's idle
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            _norm(norm, channels),
            nn.ReLU(inplace=True),
            *([nn.Dropout(0.5)] if use_dropout else []),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=bias),
            _norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to the same shape."""
        output: Tensor = x + self.conv_block(x)
        return output


class ResnetGenerator(nn.Module):
    """Translates pictures of one kind into another: a quarter of the size, residual blocks, and back.

    Args:
        input_nc: channels of the pictures given.
        output_nc: channels of the pictures made.
        ngf: channels of the first hidden map.
        n_blocks: residual blocks: 9 for pictures of 256 x 256 and more, 6 for smaller ones.
        norm: ``"instance"``, CycleGAN's, or ``"batch"``, pix2pix'.
        use_dropout: dropout inside the residual blocks.
    """

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        *,
        norm: str = "instance",
        use_dropout: bool = False,
    ) -> None:
        super().__init__()
        bias = norm == "instance"
        modules: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(input_nc, ngf, 7, bias=bias),
            _norm(norm, ngf),
            nn.ReLU(inplace=True),
        ]
        for channels in (ngf, 2 * ngf):
            modules += [
                nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=bias),
                _norm(norm, 2 * channels),
                nn.ReLU(inplace=True),
            ]
        modules += [ResnetBlock(4 * ngf, norm=norm, use_dropout=use_dropout) for _ in range(n_blocks)]
        for channels in (2 * ngf, ngf):
            modules += [
                nn.ConvTranspose2d(2 * channels, channels, 3, stride=2, padding=1, output_padding=1, bias=bias),
                _norm(norm, channels),
                nn.ReLU(inplace=True),
            ]
        self.model = nn.Sequential(*modules, nn.ReflectionPad2d(3), nn.Conv2d(ngf, output_nc, 7), nn.Tanh())

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "ResnetGenerator":
        """The generator whose ``state_dict`` has the names and shapes of ``state``."""
        ngf, input_nc = state["model.1.weight"].shape[:2]
        n_blocks = len({name.split(".")[1] for name in state if ".conv_block." in name})
        return cls(
            input_nc,
            state[f"model.{17 + n_blocks}.weight"].shape[0],
            ngf,
            n_blocks,
            norm="batch" if "model.2.weight" in state else "instance",
            # With dropout the second convolution of a block is number 6, without it number 5.
            use_dropout="model.10.conv_block.5.weight" not in state,
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """Translate ``pictures`` [N, input_nc, H, W], in [-1, 1].

        Returns:
            [N, output_nc, H', W'] in [-1, 1], H' and W' rounded up to multiples of 4.
        """
        translated: Tensor = self.model(pictures)
        return translated

    def encode(self, pictures: Tensor) -> Tensor:
        """The first half of :meth:`forward`, with the residual blocks: to features [N, 4 ngf, H' / 4, W' / 4]."""
        return self._run(pictures, slice(None, -_DECODER))

    def decode(self, features: Tensor) -> Tensor:
        """The second half: the picture of what :meth:`encode` returns."""
        return self._run(features, slice(-_DECODER, None))

    def _run(self, x: Tensor, part: slice) -> Tensor:
        for module in list(self.model)[part]:
            x = module(x)
        return x


class NLayerDiscriminator(nn.Module):
    """PatchGAN: tells, of every patch of a picture (70 x 70 pixels with three layers), whether it is real.

    Args:
        input_nc: channels of the pictures (pix2pix: of both pictures, concatenated).
        ndf: channels of the first hidden map; every further layer doubles them, up to eight times as many.
        n_layers: strided layers.
        norm: ``"instance"``, CycleGAN's, or ``"batch"``, pix2pix'.
    """

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, *, norm: str = "instance") -> None:
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        previous = ndf
        for layer in range(1, n_layers + 1):
            channels = ndf * min(2**layer, 8)
            stride = 2 if layer < n_layers else 1
            modules += [
                nn.Conv2d(previous, channels, 4, stride=stride, padding=1, bias=norm == "instance"),
                _norm(norm, channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            previous = channels
        self.model = nn.Sequential(*modules, nn.Conv2d(previous, 1, 4, padding=1))

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "NLayerDiscriminator":
        """The discriminator whose ``state_dict`` has the names and shapes of ``state``."""
        ndf, input_nc = state["model.0.weight"].shape[:2]
        convolutions = sum(value.dim() == 4 for value in state.values())
        norm = "batch" if "model.3.weight" in state else "instance"
        return cls(input_nc, ndf, convolutions - 2, norm=norm)

    def forward(self, pictures: Tensor) -> Tensor:
        """Score the patches of ``pictures`` [N, input_nc, H, W], in [-1, 1].

        Returns:
            [N, 1, H', W'], unbounded (least squares, or a sigmoid still to come), H' = H / 2**n_layers - 2 for sizes
            that divide.
        """
        scores: Tensor = self.model(pictures)
        return scores
