"""What optimisation style transfer minimises, with its gradient: of a whole picture at once, or tile by tile."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor

from artkernels import functional as F
from artkernels.models.vgg import VGG19
from artkernels.recipes.perceptual import RelativeGramLoss, total_variation
from artkernels.recipes.style_network import Look, modules, walk
from artkernels.recipes.style_tiles import Tile, reach, split

__all__ = ["CONTENT_LAYER", "STYLE_LAYERS", "Objective", "Previous", "TiledObjective", "Weights"]

STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
CONTENT_LAYER = "relu4_2"

_TINY = torch.finfo(torch.float32).tiny  # a flat photograph's features can all be 0


class Weights(NamedTuple):
    """Of the terms of the loss, each >= 0."""

    content: float
    style: float
    tv: float


class Previous(NamedTuple):
    """The painting of the frame before, moved along with what it shows.

    With it the loss has the term of Ruder, Dosovitskiy and Brox 2016, "Artistic Style Transfer for Videos": ``weight``
    times the mean over all pixels and channels of ``seen * (painting - picture) ** 2``.

    Attributes:
        picture: [1, 1 or 3, H, W] in [0, 1], of the painting's size.
        seen: [1, 1, H, W] in [0, 1]: 1 where its content is still to be seen, 0 where it came into view just now.
        weight: of the squared distance to it, >= 0.
    """

    picture: Tensor
    seen: Tensor
    weight: float

    def owned(self, tile: Tile) -> "Previous":
        """The tile's part of it."""
        return Previous(tile.owned(self.picture), tile.owned(self.seen), self.weight)

    def distance(self, painting: Tensor) -> Tensor:
        """The weighted sum of the squares: a scalar."""
        return self.weight * ((painting - self.picture).square() * self.seen).sum()


class Objective:
    """The loss of a canvas against one photograph and the paintings, at one scale.

    Several paintings cost no more than one: the weighted sum of squared distances to their Gram matrices is, up to a
    constant, the squared distance to the weighted mean of the matrices.

    Args:
        vgg: the network to look with, frozen.
        photo: [1, 1 or 3, H, W] in [0, 1], of the canvas's size.
        styles: the paintings, [1, 1 or 3, h, w] each. They are taken one at a time.
        shares: how much of each.
        weights: of the loss's terms.
        tile: the side of the tiles in which the targets are computed, in pixels; None: whole.
        previous: the painting before, of the canvas's size and channels; None: there is none.
    """

    def __init__(
        self,
        vgg: VGG19,
        photo: Tensor,
        styles: Iterable[Tensor],
        shares: Sequence[float],
        weights: Weights,
        tile: int | None = None,
        previous: Previous | None = None,
    ) -> None:
        self.vgg, self.weights, self.tile, self.previous = vgg, weights, tile, previous
        self.reach = {layer: reach(modules(vgg, layer)) for layer in (*STYLE_LAYERS, CONTENT_LAYER)}
        # Kept, 32 bytes a pixel at relu4_2, and not computed anew with every step, which would take a third longer:
        # spent on larger tiles, whose halos are a smaller part of them, the memory would save less.
        self.content, mean_square = self._content(photo)
        self.content_scale = 1 / max(mean_square, _TINY)
        self.grams: dict[str, Tensor] = {}
        for share, style in zip(shares, styles, strict=True):
            for layer, gram in self._grams(style).items():
                self.grams[layer] = self.grams.get(layer, 0) + share * gram
        self._style_losses = {
            layer: RelativeGramLoss({layer: gram}, F.gram_mse_loss) for layer, gram in self.grams.items()
        }

    def __call__(self, canvas: Tensor) -> Tensor:
        """The loss of ``canvas`` [1, 1 or 3, H, W], a scalar for autograd."""
        losses = [self.weights.tv * total_variation(canvas)]
        if self.previous is not None:
            losses.append(self.previous.distance(canvas) / canvas.numel())
        look: dict[str, Look] = {layer: partial(self._style_loss, layer) for layer in STYLE_LAYERS}
        losses += (loss for _, loss in walk(self.vgg, canvas, {**look, CONTENT_LAYER: self._content_loss}))
        return torch.stack(losses).sum()

    def backward(self, canvas: Tensor) -> float:
        """Compute the loss of ``canvas``, and its gradient into ``canvas.grad``."""
        canvas.grad = None
        loss = self(canvas)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _content_loss(self, features: Tensor) -> Tensor:
        return self.weights.content * self.content_scale * TF.mse_loss(features, self.content)

    def _style_loss(self, layer: str, features: Tensor) -> Tensor:
        return self.weights.style / len(STYLE_LAYERS) * self._style_losses[layer]({layer: features})

    def _tiles(self, picture: Tensor, deepest: str) -> Iterator[Tile]:
        """Of ``picture``, for the network up to the layer ``deepest``."""
        height, width = picture.shape[-2:]
        return split(height, width, self.tile, self.reach[deepest])

    @torch.no_grad()
    def _content(self, photo: Tensor) -> tuple[Tensor, float]:
        """The photograph's features, and the mean of their squares."""
        stride = self.reach[CONTENT_LAYER].stride
        whole, squares = torch.empty(0), 0.0
        for tile in self._tiles(photo, CONTENT_LAYER):
            ((_, features),) = walk(self.vgg, tile.seen(photo), {CONTENT_LAYER: partial(tile.own, stride=stride)})
            if not whole.numel():
                sides = [side // stride for side in photo.shape[-2:]]
                whole = features.new_empty(1, features.shape[1], *sides).contiguous(memory_format=torch.channels_last)
            tile.owned(whole, stride).copy_(features)
            squares += features.square().sum().item()
        return whole, squares / whole.numel()

    @torch.no_grad()
    def _grams(self, picture: Tensor) -> dict[str, Tensor]:
        """The Gram matrices of a picture's style layers, as F.gram_matrix has them of the whole picture."""
        sums: dict[str, Tensor] = {}
        for tile in self._tiles(picture, STYLE_LAYERS[-1]):
            look = {layer: partial(self._own_gram, tile, layer) for layer in STYLE_LAYERS}
            for layer, gram in walk(self.vgg, tile.seen(picture), look):
                sums[layer] = sums.get(layer, 0) + gram.double()
        dtype = picture.dtype
        return {layer: (gram / self._gram_size(gram, layer, picture)).to(dtype) for layer, gram in sums.items()}

    def _own_gram(self, tile: Tile, layer: str, seen: Tensor) -> Tensor:
        """A tile's part of the sum over pixels that a Gram matrix is."""
        return F.gram_matrix(tile.own(seen, self.reach[layer].stride), normalize=None)

    def _gram_size(self, gram: Tensor, layer: str, picture: Tensor) -> int:
        """What a layer's Gram matrix is divided by: the layer's channels, rows and columns."""
        height, width = (side // self.reach[layer].stride for side in picture.shape[-2:])
        return gram.shape[-1] * height * width


class TiledObjective(Objective):
    """The same loss and gradient, computed tile by tile: what it needs at once is a tile's features, not the picture's.

    The style loss is not a sum over tiles, but the Gram matrices are, G = sum of F F^T, and given G the gradient is
    local again: dL/dF = (dL/dG + dL/dG^T) F, of any part of the features F by itself. So the canvas is looked at twice,
    first without gradients for the Gram matrices, then with them, one tile after the other. A tile sees as much
    of its surroundings as the features that it owns depend on, and those alone have a loss: what the network makes of
    the tile's rim is never used. Every feature has one owner, so the gradients of the tiles add up to the whole's.
    """

    def backward(self, canvas: Tensor) -> float:
        """Compute the loss of ``canvas``, and its gradient into ``canvas.grad``."""
        canvas.grad = None
        picture = canvas.detach()
        grams = {layer: gram.requires_grad_() for layer, gram in self._grams(picture).items()}
        style = self.weights.style * RelativeGramLoss(self.grams, TF.mse_loss)(grams)
        slopes = dict(zip(grams, torch.autograd.grad(style, list(grams.values())), strict=True))
        loss, gradient = style.item(), torch.zeros_like(picture)
        for tile in self._tiles(picture, STYLE_LAYERS[-1]):
            pixels = tile.seen(picture).requires_grad_()
            local, linear = self._tile_losses(tile, pixels, picture, slopes)
            (local + linear).backward()  # type: ignore[no-untyped-call]
            assert pixels.grad is not None
            tile.seen(gradient).add_(pixels.grad)
            loss += local.item()
        canvas.grad = gradient
        return loss

    def _tile_losses(
        self, tile: Tile, pixels: Tensor, picture: Tensor, slopes: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A tile's part of the losses that are sums over pixels; and a scalar with the gradient of the style loss.

        That is the style loss's linear part in the Gram matrices: the sum of dL/dG * G.
        """
        local = [self.weights.tv * _variation(pixels, tile, picture)]
        if self.previous is not None:
            local.append(self.previous.owned(tile).distance(tile.own(pixels)) / picture.numel())

        def content(seen: Tensor) -> Tensor:
            stride = self.reach[CONTENT_LAYER].stride
            scale = self.weights.content * self.content_scale / self.content.numel()
            return scale * TF.mse_loss(tile.own(seen, stride), tile.owned(self.content, stride), reduction="sum")

        def style(layer: str, seen: Tensor) -> Tensor:
            slope = slopes[layer] / self._gram_size(slopes[layer], layer, picture)
            return (slope * self._own_gram(tile, layer, seen)).sum()

        linear: list[Tensor] = []
        look: dict[str, Look] = {layer: partial(style, layer) for layer in STYLE_LAYERS}
        for layer, loss in walk(self.vgg, pixels, {**look, CONTENT_LAYER: content}):
            (local if layer == CONTENT_LAYER else linear).append(loss)
        return torch.stack(local).sum(), torch.stack(linear).sum()


def _variation(pixels: Tensor, tile: Tile, picture: Tensor) -> Tensor:
    """The tile's part of total_variation(picture): the differences of its own pixels to those below and to the right.

    Args:
        pixels: those that the tile sees.
    """
    height, width = picture.shape[-2:]
    rows, columns = tile.rows.own(), tile.columns.own()
    here = pixels[..., rows, columns]
    below = pixels[..., rows.start + 1 : rows.stop + 1, columns]  # the picture's last row has nothing below it
    beside = pixels[..., rows, columns.start + 1 : columns.stop + 1]
    vertical = (below - here[..., : below.shape[-2], :]).square().sum() / ((height - 1) * width)
    horizontal = (beside - here[..., : beside.shape[-1]]).square().sum() / (height * (width - 1))
    return (vertical + horizontal) / picture.shape[1]
