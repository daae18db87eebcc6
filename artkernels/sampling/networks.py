"""What the networks that make pictures out of noise have in common, and pictures by their seeds."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from artkernels.models import ConvVAE, DCGANGenerator, KerasDCGANGenerator
from artkernels.sampling.codes import seed_code

__all__ = ["Sampler", "sample"]

# Kernels for other batch sizes may round in another way, so that the pixels of a seed would depend on how many seeds
# were asked for: every batch has this many rows, the last one filled up with zeros. In batches of 1, 8, 16 and 32 a
# fused DCGAN of 64 x 64 (ngf 64) makes 79, 143, 153 and 148 pictures a second on one thread, 44, 107, 174 and 239 on
# two (medians, on a busy Xeon); of large pictures a batch of 32 would take seconds where one is wanted.
_BATCH = 16


def sample(network: nn.Module, seeds: Iterable[int], *, truncation: float = 1.0) -> Iterator[Tensor]:
    """The pictures that ``network`` makes of ``seeds``, one after the other, as they are asked for.

    A seed's picture depends on nothing but the seed: not on the others, nor on their number or order. Its noise is
    ``torch.randn(nz, generator=torch.Generator().manual_seed(seed))``.

    Args:
        network: a :class:`~artkernels.models.DCGANGenerator`, :class:`~artkernels.models.KerasDCGANGenerator` or
            :class:`~artkernels.models.ConvVAE`, as :func:`artkernels.load` returns them, fused or not, on any device;
            in evaluation mode.
        seeds: at least 0. They are read in small batches, and may go on for ever.
        truncation: psi, which the noise is multiplied by: below 1, pictures are more alike and closer to the average.

    Returns:
        an iterator of pictures, float32 [3, H, W], RGB in [0, 1], on the CPU.

    Raises:
        ValueError: the network is of another kind, or in training mode.
    """
    sampler = Sampler(network)
    return sampler.decode(truncation * seed_code(seed, sampler.length) for seed in seeds)


class Sampler:
    """Decodes codes to pictures and, if the network can, encodes pictures: batch by batch, each picture by itself.

    Args:
        network: see :func:`sample`.

    Attributes:
        length: of a code.
        size: height and width of the pictures.
        channels: of the network's pictures, 1 or 3.

    Raises:
        ValueError: the network is of another kind, or in training mode.
    """

    def __init__(self, network: nn.Module) -> None:
        self._to_pictures, self.length, self.size = _decoder(network)
        if network.training:
            raise ValueError(f"the {type(network).__name__} is in training mode, call its eval() before sampling")
        self._network = network
        self._device = next(network.parameters()).device
        last = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)][-1]
        self.channels = last.out_channels
        if self.channels not in (1, 3):
            raise ValueError(f"the {type(network).__name__} makes pictures of {self.channels} channels, not of 1 or 3")

    def decode(self, codes: Iterable[Tensor]) -> Iterator[Tensor]:
        """The pictures, float32 [3, H, W] in [0, 1] on the CPU, of ``codes`` [length] each."""
        for pictures in self._in_batches(self._to_pictures, codes):
            yield pictures.clamp(0, 1).expand(3, -1, -1)

    def encode(self, pictures: Iterable[Tensor]) -> Iterator[Tensor]:
        """The means, [length], of the distributions that a VAE encodes ``pictures`` as, [channels, size, size] each.

        Raises:
            ValueError: the network has no encoder.
        """
        network = self._network
        if not isinstance(network, ConvVAE):
            raise ValueError(f"a {type(network).__name__} has no encoder, a ConvVAE is needed")
        return self._in_batches(lambda batch: network.encode(batch)[0], pictures)

    def _in_batches(self, function: Callable[[Tensor], Tensor], rows: Iterable[Tensor]) -> Iterator[Tensor]:
        iterator = iter(rows)
        while batch := list(islice(iterator, _BATCH)):
            stacked = TF.pad(torch.stack(batch).flatten(1), (0, 0, 0, _BATCH - len(batch))).view(-1, *batch[0].shape)
            with torch.inference_mode():
                results = function(stacked.to(self._device)).float().cpu()
            yield from results[: len(batch)]


def _decoder(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """The function from codes [N, length] to pictures in [0, 1], the length, and the pictures' size."""
    match network:
        case DCGANGenerator():
            return lambda codes: (network(codes[..., None, None]) + 1) / 2, network.nz, network.size
        case KerasDCGANGenerator():
            return lambda codes: (network(codes) + 1) / 2, network.state_dict()["project.0.weight"].shape[1], 28
        case ConvVAE():
            return network.decode, network.nz, network.size
    raise ValueError(
        f"a {type(network).__name__} does not make pictures of noise, a DCGANGenerator, KerasDCGANGenerator or ConvVAE "
        "is needed"
    )
