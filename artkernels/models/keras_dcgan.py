"""The DCGAN generator of Keras' tutorials (architecture: Radford, Metz and Chintala 2015, arXiv:1511.06434)."""

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["KerasDCGANGenerator"]


def _norm_act(norm: type[nn.BatchNorm1d] | type[nn.BatchNorm2d], channels: int) -> tuple[nn.Module, nn.Module]:
    # Keras' defaults; what it calls a momentum of 0.99 is 0.01 here.
    return norm(channels, eps=1e-3, momentum=0.01), nn.LeakyReLU(0.3, inplace=True)


class KerasDCGANGenerator(nn.Module):
    """Turns noise into pictures of 28 x 28: a dense layer to 7 x 7, then transposed convolutions of 5 x 5.

    Every transposed convolution gives the size of TensorFlow's "same" padding: its input's times the stride. Of the
    three rows and columns too many, PyTorch's ``padding=2, output_padding=1`` cuts two at the start and one at the
    end, TensorFlow one at the start and two at the end: with a kernel taken from TensorFlow the map comes out one
    pixel further up and left for each of the two strided layers, at that layer's scale.

    Args:
        nz: length of the noise.
        nc: channels of the pictures.
    """

    def __init__(self, nz: int = 100, nc: int = 1) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Linear(nz, 256 * 7 * 7, bias=False),
            *_norm_act(nn.BatchNorm1d, 256 * 7 * 7),
            nn.Unflatten(1, (256, 7, 7)),
        )
        self.deconv = nn.Sequential(
            nn.ConvTranspose2d(256, 128, 5, stride=1, padding=2, bias=False),
            *_norm_act(nn.BatchNorm2d, 128),
            nn.ConvTranspose2d(128, 64, 5, stride=2, padding=2, output_padding=1, bias=False),
            *_norm_act(nn.BatchNorm2d, 64),
            nn.ConvTranspose2d(64, nc, 5, stride=2, padding=2, output_padding=1, bias=False),
            nn.Tanh(),
        )

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "KerasDCGANGenerator":
        """The generator whose ``state_dict`` has the names and shapes of ``state``."""
        return cls(state["project.0.weight"].shape[1], state["deconv.6.weight"].shape[1])

    def forward(self, noise: Tensor) -> Tensor:
        """Map ``noise`` [N, nz], normally distributed, to pictures [N, nc, 28, 28] in [-1, 1]."""
        pictures: Tensor = self.deconv(self.project(noise))
        return pictures
