"""VGG-19 as optimisation style transfer looks through it: frozen, and keeping no more than its gradient needs."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as TF
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from artkernels.models.vgg import LAYERS, VGG19

__all__ = ["Block", "Look", "blocks", "modules", "walk"]

Look: TypeAlias = Callable[[Tensor], Tensor]
"""A function of a layer's features, such as a loss."""


class Block(NamedTuple):
    """A convolution with its ReLU, and the pooling that follows, if one does.

    Attributes:
        layer: the ReLU's name.
        looked_at: whether a loss is taken of it.
    """

    layer: str
    looked_at: bool
    convolution: nn.Conv2d
    pooling: nn.AvgPool2d | nn.MaxPool2d | None

    def keeps_signs(self) -> bool:
        """Whether a byte for each feature is all that is kept of them."""
        return not self.looked_at and not isinstance(self.pooling, nn.MaxPool2d)

    def pooled(self) -> bool:
        """Whether only the average is ever used."""
        return self.keeps_signs() and self.pooling is not None

    def recomputed(self) -> bool:
        """Whether its features are computed again for the gradient, and not kept."""
        return self.looked_at and self.layer == LAYERS[0]


def blocks(vgg: VGG19, layers: Collection[str]) -> Iterator[Block]:
    """Those of ``vgg`` up to the deepest of ``layers``."""
    convolutions = [index for index, module in enumerate(vgg.features) if isinstance(module, nn.Conv2d)]
    deepest = max(layers, key=LAYERS.index)
    for layer, index in zip(LAYERS, convolutions, strict=True):
        convolution, _, after = vgg.features[index : index + 3]
        assert isinstance(convolution, nn.Conv2d)
        pooling = after if isinstance(after, nn.AvgPool2d | nn.MaxPool2d) and layer != deepest else None
        yield Block(layer, layer in layers, convolution, pooling)
        if layer == deepest:
            return


def modules(vgg: VGG19, layer: str) -> Iterator[nn.Module]:
    """The convolutions and poolings between a picture and ``layer``."""
    for block in blocks(vgg, [layer]):
        yield block.convolution
        if block.pooling is not None:
            yield block.pooling


def walk(vgg: VGG19, picture: Tensor, look: Mapping[str, Look]) -> Iterator[tuple[str, Tensor]]:
    """Each layer of ``look``, in the network's order, with what its function makes of the layer's features.

    The order matters to memory. Autograd runs the youngest of the nodes that are ready: the gradient of a loss that is
    taken of a layer before the next is computed waits until the backward pass is there. Losses taken at the end would
    have all their gradients, as large as the features, computed first.

    Features of the first layer are the largest of all, and computed from three channels: neither they nor what a loss
    keeps of them stay for the backward pass, which computes both again.

    Args:
        vgg: the network.
        picture: [N, 1 or 3, H, W] in [0, 1].
        look: layer -> a function of its features [N, C, H', W'].
    """
    # channels_last is the layout that the convolutions are fastest in; a luminance picture becomes three channels.
    x = picture.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    x = (x - vgg.mean) / vgg.std
    for block in blocks(vgg, look):
        if block.recomputed() and x.requires_grad:
            seen = partial(_seen, block=block, look=look[block.layer])
            x, found = checkpoint(seen, x, use_reentrant=False, preserve_rng_state=False)
            yield block.layer, found
        elif block.looked_at:
            x, found = _seen(x, block, look[block.layer])
            yield block.layer, found
        else:
            x = _FrozenBlock.apply(x, block)
        if block.pooling is not None and not block.pooled():
            x = block.pooling(x)


def _seen(x: Tensor, block: Block, look: Look) -> tuple[Tensor, Tensor]:
    """A block's features, and what ``look`` makes of them."""
    features = _FrozenBlock.apply(x, block)
    return features, look(features)


class _FrozenBlock(torch.autograd.Function):
    """A block's convolution and ReLU, and its average pooling where nobody looks in between.

    The gradient through frozen weights needs nothing of the convolution's input, through a ReLU only where its result
    was positive, through an average nothing at all. PyTorch's own nodes keep all of it in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block) -> Tensor:
        convolution = block.convolution
        features = TF.conv2d(x, convolution.weight, convolution.bias, padding=1).relu_()
        ctx.block = block
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(features > 0 if block.keeps_signs() else features)
        return TF.avg_pool2d(features, 2) if block.pooled() else features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        block: Block = ctx.block
        if block.pooled():
            gradient = _before_average(gradient, kept)
        elif block.keeps_signs():
            gradient = gradient * kept
        else:
            gradient = torch.ops.aten.threshold_backward(gradient, kept, 0)
        return TF.conv_transpose2d(gradient, block.convolution.weight, padding=1), None


def _before_average(gradient: Tensor, signs: Tensor) -> Tensor:
    """The gradient before an average pooling of squares of 2 x 2, where ``signs`` [N, C, H, W] are True."""
    height, width = gradient.shape[-2:]
    whole = torch.zeros_like(signs, dtype=gradient.dtype)  # an odd last row or column is in no average

    def squares(features: Tensor) -> Tensor:
        return features[..., : 2 * height, : 2 * width].view(*features.shape[:2], height, 2, width, 2)

    torch.mul(gradient[..., :, None, :, None], squares(signs), out=squares(whole))
    return whole.mul_(0.25)
