"""What generators and their discriminators have in common."""

from torch import nn

from artkernels.errors import UserError

__all__ = ["freeze_first_convolutions", "initialise"]


def initialise(network: nn.Module) -> nn.Module:
    """Give a network the weights that DCGAN and CycleGAN begin with, in place, and return it.

    Convolutions from N(0, 0.02), norms with parameters from N(1, 0.02), biases 0 (Radford et al. 2015,
    arXiv:1511.06434).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight, 1.0, 0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return network


def freeze_first_convolutions(discriminator: nn.Module, count: int) -> None:
    """Freeze the first ``count`` convolutions, with the norms after them (Mo, Cho and Shin 2020, arXiv:2002.10964).

    Raises:
        UserError: nothing would be left to train.
    """
    layers = [module for module in discriminator.modules() if not list(module.children())]
    convolutions = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if count >= len(convolutions):
        raise UserError(f"freezed must be less than a discriminator's {len(convolutions)} convolutions, got {count}")
    for layer in layers[: convolutions[count]]:
        layer.requires_grad_(False)
