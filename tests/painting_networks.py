"""Networks for tests that paint: random, and their pictures have contrast and depend on all that they are made of.

Those that PyTorch makes paint black, or one grey, of whatever they are given: any two pictures of theirs are the same.
"""

from pathlib import Path

import torch
from torch import nn

from artkernels.models import AdaINDecoder, AdaINEncoder, ResnetGenerator, TransformerNet
from artkernels.recipes.perceptual import begin_grey

__all__ = ["NETWORKS", "adain_networks", "link_networks", "resnet_generator", "save_networks", "transformer_net"]

NETWORKS = ("fast.pth", "cycle.pth", "encoder.pth", "decoder.pth")
"""What :func:`save_networks` saves."""


def transformer_net(*, transposed: bool = False) -> TransformerNet:
    """With the same weights each time and in evaluation mode, as all of these."""
    torch.manual_seed(4)
    network = TransformerNet(transposed=transposed)
    with torch.no_grad():
        begin_grey(network.deconv3.conv2d, 128, 100)
    return network.eval()


def resnet_generator(ngf: int = 4, n_blocks: int = 1) -> ResnetGenerator:
    """Slim, and as PyTorch makes it: its norms and its tanh see to the contrast."""
    torch.manual_seed(4)
    return ResnetGenerator(ngf=ngf, n_blocks=n_blocks).eval()


def adain_networks() -> tuple[AdaINEncoder, AdaINDecoder]:
    """An encoder, and a decoder for it."""
    torch.manual_seed(4)
    encoder, decoder = AdaINEncoder().apply(_initialise), AdaINDecoder().apply(_initialise)
    with torch.no_grad():
        begin_grey(decoder[-1], 0.5, 2)
    return encoder.eval(), decoder.eval()


def save_networks(folder: Path) -> Path:
    """Save one of each kind, the slim one of CycleGAN's, under the names of :data:`NETWORKS`; returns ``folder``."""
    for name, network in zip(NETWORKS, (transformer_net(), resnet_generator(), *adain_networks()), strict=True):
        torch.save(network.state_dict(), folder / name)
    return folder


def link_networks(networks: Path, folder: Path) -> None:
    """Let what :func:`save_networks` saved in ``networks`` be in ``folder``, too."""
    for name in NETWORKS:
        (folder / name).symlink_to(networks / name)


def _initialise(module: nn.Module) -> None:
    """He et al. 2015, and each filter of features without its mean: a picture reaches the end, not only its mean.

    Features after a ReLU are positive. Of their mean, which hardly depends on the picture, filters with a mean of their
    own make nearly all that comes after them.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.in_channels > 3:
            with torch.no_grad():
                module.weight -= module.weight.mean((1, 2, 3), keepdim=True)
