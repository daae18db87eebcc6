"""The network of fast neural style (Johnson, Alahi and Fei-Fei 2016, arXiv:1603.08155), named as in pytorch/examples.

With instance norm (Ulyanov et al. 2016, arXiv:1607.08022) in place of the paper's batch norm.
"""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["TransformerNet"]


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, *, upsample: bool = False
) -> nn.Module:
    modules = OrderedDict[str, nn.Module]()
    if upsample:
        modules["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
    modules["reflection_pad"] = nn.ReflectionPad2d(kernel_size // 2)
    modules["conv2d"] = nn.Conv2d(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(modules)


def _double(in_channels: int, out_channels: int, *, transposed: bool) -> nn.Module:
    if transposed:
        return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)
    return _conv(in_channels, out_channels, 3, upsample=True)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance norm, added to their input; no activation after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv(channels, channels, 3)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = _conv(channels, channels, 3)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] to the same shape."""
        y = self.relu(self.in1(self.conv1(x)))
        output: Tensor = self.in2(self.conv2(y)) + x
        return output


class TransformerNet(nn.Module):
    """Paints a picture in the one style that it was trained for.

    Args:
        transposed: double the picture by transposed convolutions (``deconv1.weight``), as the paper does, instead of
            nearest upsampling and a convolution (``deconv1.conv2d.weight``), as pytorch/examples does.
    """

    def __init__(self, *, transposed: bool = False) -> None:
        super().__init__()
        self.conv1 = _conv(3, 32, 9)
        self.in1 = nn.InstanceNorm2d(32, affine=True)
        self.conv2 = _conv(32, 64, 3, stride=2)
        self.in2 = nn.InstanceNorm2d(64, affine=True)
        self.conv3 = _conv(64, 128, 3, stride=2)
        self.in3 = nn.InstanceNorm2d(128, affine=True)
        self.res1 = ResidualBlock(128)
        self.res2 = ResidualBlock(128)
        self.res3 = ResidualBlock(128)
        self.res4 = ResidualBlock(128)
        self.res5 = ResidualBlock(128)
        self.deconv1 = _double(128, 64, transposed=transposed)
        self.in4 = nn.InstanceNorm2d(64, affine=True)
        self.deconv2 = _double(64, 32, transposed=transposed)
        self.in5 = nn.InstanceNorm2d(32, affine=True)
        self.deconv3 = _conv(32, 3, 9)
        self.relu = nn.ReLU()

    @classmethod
    def shaped_like(cls, state: Mapping[str, Tensor]) -> "TransformerNet":
        """The network whose ``state_dict`` has the names of ``state``."""
        return cls(transposed="deconv1.weight" in state)

    def encode(self, pictures: Tensor) -> Tensor:
        """The first half of :meth:`forward`: pictures to features [N, 128, H' / 4, W' / 4]."""
        y = self.relu(self.in1(self.conv1(pictures)))
        y = self.relu(self.in2(self.conv2(y)))
        y = self.relu(self.in3(self.conv3(y)))
        y = self.res1(y)
        y = self.res2(y)
        y = self.res3(y)
        y = self.res4(y)
        features: Tensor = self.res5(y)
        return features

    def decode(self, features: Tensor) -> Tensor:
        """The second half: the picture of what :meth:`encode` returns."""
        y = self.relu(self.in4(self.deconv1(features)))
        y = self.relu(self.in5(self.deconv2(y)))
        painted: Tensor = self.deconv3(y)
        return painted

    def forward(self, pictures: Tensor) -> Tensor:
        """Paint ``pictures`` [N, 3, H, W], RGB in [0, 255], H and W at least 5.

        Returns:
            [N, 3, H', W'], H' and W' rounded up to multiples of 4; about [0, 255], to be clamped.
        """
        return self.decode(self.encode(pictures))
