"""Modules of the Gram-matrix losses."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..ops.gram import Normalize, gram_matrix, gram_mse_loss

__all__ = ["GramLoss", "StyleLoss"]


class GramLoss(nn.Module):
    """Mean squared difference between the Gram matrices of a feature map and of a style's feature map.

    Args:
        target_features: [1, C, H, W] features of the style picture (or [N, C, H, W], one a picture of the batch); only
            their Gram matrix is kept, as the buffer `target`.
        normalize: as in artkernels.functional.gram_matrix, but for "bchw": its divisor counts the pictures of a batch,
            and the style's batch is not the input's.

    Shape:
        input [N, C, H', W'] -> scalar, float32.

    Raises:
        ValueError: normalize is "bchw".
    """

    target: Tensor

    def __init__(self, target_features: Tensor, normalize: Normalize | None = "chw") -> None:
        super().__init__()
        if normalize == "bchw":
            raise ValueError('GramLoss: normalize must not depend on the batch, got "bchw": use "chw"')
        self.normalize = normalize
        with torch.no_grad():
            self.register_buffer("target", gram_matrix(target_features, normalize=normalize))

    def forward(self, input: Tensor) -> Tensor:
        return gram_mse_loss(input, self.target, normalize=self.normalize)

    def extra_repr(self) -> str:
        return f"channels={self.target.shape[-1]}, normalize={self.normalize!r}"


class StyleLoss(nn.Module):
    """Weighted sum of GramLoss over several layers: the style loss of Gatys et al. 2016.

    Args:
        target_features: the style picture's features, layer name -> [1, C, H, W].
        weights: layer name -> weight, or one weight a layer in order; by default 1 / number of layers each.
        normalize: as in GramLoss.

    Shape:
        features: layer name -> [N, C, H, W], at least the layers of target_features -> scalar, float32.

    Raises:
        ValueError: no layer, or weights that do not name the same layers.
        KeyError: forward is not given a layer that has a target.
    """

    def __init__(
        self,
        target_features: Mapping[str, Tensor],
        weights: Mapping[str, float] | Sequence[float] | None = None,
        normalize: Normalize | None = "chw",
    ) -> None:
        super().__init__()
        self.layers = tuple(target_features)
        self.weights = self._weights(weights)
        self.losses = nn.ModuleList(GramLoss(features, normalize) for features in target_features.values())

    def _weights(self, weights: Mapping[str, float] | Sequence[float] | None) -> tuple[float, ...]:
        if not self.layers:
            raise ValueError("StyleLoss: target_features must have at least one layer, got none")
        if weights is None:
            return (1 / len(self.layers),) * len(self.layers)
        if isinstance(weights, Mapping):
            if set(weights) != set(self.layers):
                raise ValueError(
                    f"StyleLoss: weights must name the layers {_names(self.layers)}, got {_names(weights)}"
                )
            return tuple(float(weights[layer]) for layer in self.layers)
        if len(weights) != len(self.layers):
            raise ValueError(f"StyleLoss: weights must be one a layer, {len(self.layers)}, got {len(weights)}")
        return tuple(map(float, weights))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        terms = [
            weight * loss(features[layer])
            for layer, weight, loss in zip(self.layers, self.weights, self.losses, strict=True)
        ]
        return torch.stack(terms).sum()

    def extra_repr(self) -> str:
        return ", ".join(f"{layer}: {weight:g}" for layer, weight in zip(self.layers, self.weights, strict=True))


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
