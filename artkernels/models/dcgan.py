"""DCGAN (Radford, Metz and Chintala 2015, arXiv:1511.06434), with the names of pytorch/examples' ``dcgan``."""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["DCGANDiscriminator", "DCGANGenerator"]

_SIZES = (32, 64, 128, 256, 512)


def _widths(size: int, base: int) -> list[int]:
    """Channels of the maps of 4 x 4, 8 x 8 ... size / 2 pixels: ``base`` on the largest, doubled with every halving."""
    if size not in _SIZES:
        raise ValueError(f"DCGAN: size must be one of {', '.join(map(str, _SIZES))}, got {size}")
    return [base * 2**stage for stage in reversed(range(size.bit_length() - 3))]


def _size(state: Mapping[str, Tensor]) -> int:
    """Pixels a side, from the number of convolutions: four at 32 x 32, one more for every doubling."""
    convolutions = sum(value.dim() == 4 for value in state.values())
    return 1 << (convolutions + 1)


class DCGANGenerator(nn.Module):
    """Turns noise into pictures: one transposed convolution to 4 x 4 pixels, then one for every doubling.

    At 64 x 64 the modules are those of pytorch/examples (``main.0.weight`` to ``main.12.weight``); other sizes have
    more or fewer of the doubling ones, and ``ngf`` times size / 8 channels on the 4 x 4 map.

    Args:
        nz: length of the noise.
        ngf: channels of the last hidden map.
        nc: channels of the pictures.
        size: their height and width: 32, 64, 128, 256 or 512.
    """

    def __init__(self, nz: int = 100, ngf: int = 64, nc: int = 3, *, size: int = 64) -> None:
        super().__init__()
        self.nz, self.ngf, self.size = nz, ngf, size
        widths = _widths(size, ngf)
        modules: list[nn.Module] = [
            nn.ConvTranspose2d(nz, widths[0], 4, 1, 0, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        ]
        for previous, channels in pairwise(widths):
            modules += [
                nn.ConvTranspose2d(previous, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        modules += [nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*modules)

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "DCGANGenerator":
        """The generator whose ``state_dict`` has the names and shapes of ``state``."""
        size = _size(state)
        nz = state["main.0.weight"].shape[0]
        ngf, nc = state[f"main.{3 * len(_widths(size, 1))}.weight"].shape[:2]
        return cls(nz, ngf, nc, size=size)

    def forward(self, noise: Tensor) -> Tensor:
        """Map ``noise`` [N, nz, 1, 1], normally distributed, to pictures [N, nc, size, size] in [-1, 1]."""
        pictures: Tensor = self.main(noise)
        return pictures


class DCGANDiscriminator(nn.Module):
    """Tells pictures from generated ones: the generator's mirror image, of strided convolutions.

    Args:
        ndf: channels of the first hidden map.
        nc: channels of the pictures.
        size: their height and width: 32, 64, 128, 256 or 512.
    """

    def __init__(self, ndf: int = 64, nc: int = 3, *, size: int = 64) -> None:
        super().__init__()
        widths = _widths(size, ndf)[::-1]
        modules: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for previous, channels in pairwise(widths):
            modules += [
                nn.Conv2d(previous, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        modules += [nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False), nn.Sigmoid()]
        self.main = nn.Sequential(*modules)

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "DCGANDiscriminator":
        """The discriminator whose ``state_dict`` has the names and shapes of ``state``."""
        ndf, nc = state["main.0.weight"].shape[:2]
        return cls(ndf, nc, size=_size(state))

    def forward(self, pictures: Tensor) -> Tensor:
        """The probability [N] that each of ``pictures`` [N, nc, size, size], in [-1, 1], is a real one."""
        probabilities: Tensor = self.main(pictures)
        return probabilities.flatten()
