"""VGG-19 as optimisation style transfer looks through it: frozen, and keeping no more than its gradient needs."""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from artkernels.models.vgg import LAYERS, VGG19

__all__ = ["Block", "blocks", "modules", "walk"]


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


def walk(vgg: VGG19, picture: Tensor, layers: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Each of ``layers`` with its features of ``picture``, as soon as the network has computed them.

    The order matters to memory. Autograd runs the youngest of the nodes that are ready: the gradient of a loss that is
    taken of a layer before the next is computed waits until the backward pass is there. Losses taken at the end would
    have all their gradients, as large as the features, computed first.
    """
    # channels_last is the layout that the convolutions are fastest in; a luminance picture becomes three channels.
    x = picture.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
    x = (x - vgg.mean) / vgg.std
    for block in blocks(vgg, layers):
        x = _FrozenBlock.apply(x, block)
        if block.looked_at:
            yield block.layer, x
        if block.pooling is not None and not block.pooled():
            x = block.pooling(x)


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
