"""A convolutional variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114)."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["ConvVAE"]

_SIZES = (32, 64, 128, 256, 512)


class ConvVAE(nn.Module):
    """Encodes pictures as normal distributions over ``nz`` numbers, and decodes such numbers to pictures.

    Both halves are the stacks of strided convolutions and batch norms of DCGAN, down to 4 x 4 pixels and up from
    them.

    Args:
        nz: length of the code.
        nf: channels of the largest hidden map; every halving of the picture doubles them.
        nc: channels of the pictures.
        size: their height and width: 32, 64, 128, 256 or 512.
    """

    def __init__(self, nz: int = 128, nf: int = 32, nc: int = 3, *, size: int = 64) -> None:
        super().__init__()
        if size not in _SIZES:
            raise ValueError(f"ConvVAE: size must be one of {', '.join(map(str, _SIZES))}, got {size}")
        self.nz, self.nf, self.size = nz, nf, size
        halvings = size.bit_length() - 3
        down = [nc] + [nf * 2**stage for stage in range(halvings)]
        up = down[:0:-1]

        encoder: list[nn.Module] = []
        for previous, channels in pairwise(down):
            encoder += [
                nn.Conv2d(previous, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.encoder = nn.Sequential(*encoder, nn.Flatten())
        self.mean = nn.Linear(up[0] * 16, nz)
        self.logvar = nn.Linear(up[0] * 16, nz)

        decoder: list[nn.Module] = [nn.Linear(nz, up[0] * 16), nn.Unflatten(1, (up[0], 4, 4)), nn.ReLU(inplace=True)]
        for previous, channels in pairwise(up):
            decoder += [
                nn.ConvTranspose2d(previous, channels, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        self.decoder = nn.Sequential(*decoder, nn.ConvTranspose2d(nf, nc, 4, 2, 1), nn.Sigmoid())

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "ConvVAE":
        """The autoencoder whose ``state_dict`` has the names and shapes of ``state``."""
        nf, nc = state["encoder.0.weight"].shape[:2]
        halvings = sum(name.startswith("encoder.") and value.dim() == 4 for name, value in state.items())
        return cls(state["mean.weight"].shape[0], nf, nc, size=4 * 2**halvings)

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the logarithm of the variance, [N, nz] each, of the codes of ``pictures``."""
        features = self.encoder(pictures)
        return self.mean(features), self.logvar(features)

    def decode(self, codes: Tensor) -> Tensor:
        """The pictures [N, nc, size, size], in [0, 1], of ``codes`` [N, nz]."""
        pictures: Tensor = self.decoder(codes)
        return pictures

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode ``pictures`` [N, nc, size, size], in [0, 1], draw a code for each, and decode it.

        Returns:
            the decoded pictures, and the mean and the log variance that :meth:`encode` gave.
        """
        mean, logvar = self.encode(pictures)
        codes = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        return self.decode(codes), mean, logvar
