"""The frozen VGG-19 of style transfer has the features and the gradient of the whole one, and keeps less."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkernels.models.vgg import LAYERS, VGG19
from artkernels.recipes.style_network import walk
from artkernels.recipes.style_objective import CONTENT_LAYER, STYLE_LAYERS

sys.path.insert(0, str(Path(__file__).parent))

from random_vgg import random_vgg

LOOKED_AT = [*STYLE_LAYERS, CONTENT_LAYER]


def kept_by_autograd(vgg: VGG19, picture: Tensor) -> list[Tensor]:
    """What is kept of each feature map for the backward pass."""
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.shape[0] == 1 and tensor.numel() > 3:
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        list(walk(vgg, picture, dict.fromkeys(LOOKED_AT, torch.sum)))
    return kept


@pytest.mark.parametrize("layers", [LOOKED_AT, LAYERS, ["relu1_2", "relu3_3"], ["relu5_4"]], ids=lambda x: x[-1])
@pytest.mark.parametrize("pooling", ["average", "max"])
@pytest.mark.parametrize("size", [(32, 48), (53, 71)])
def test_features_and_gradient_are_those_of_the_network(size, pooling, layers):
    vgg = random_vgg(pooling, slim=True).double()
    ours = torch.rand(1, 3, *size, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    features, expected = dict(walk(vgg, ours, dict.fromkeys(layers, torch.clone))), vgg(theirs, layers)
    assert list(features) == list(expected)
    for layer, value in expected.items():
        torch.testing.assert_close(features[layer], value)
    for found in (features, expected):
        torch.stack([value.square().sum() + value.sin().sum() for value in found.values()]).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_of_layers_that_nobody_looks_at_a_byte_a_feature_is_kept_and_of_the_first_nothing():
    picture = torch.rand(1, 3, 32, 48, requires_grad=True)
    kept = kept_by_autograd(random_vgg(slim=True), picture)
    shapes = {dtype: [tuple(t.shape[1:]) for t in kept if t.dtype == dtype] for dtype in (torch.bool, torch.float32)}
    maps = [(3, 32, 48), (8, 16, 24), (16, 8, 12), (32, 4, 6), (32, 4, 6), (32, 2, 3)]
    assert shapes[torch.float32] == maps  # the picture, and of relu2_1, 3_1, 4_1, 4_2 and 5_1
    assert shapes[torch.bool] == [(4, 32, 48), (8, 16, 24), *[(16, 8, 12)] * 3, *[(32, 4, 6)] * 2]


def test_without_gradients_nothing_is_kept():
    assert kept_by_autograd(random_vgg(slim=True), torch.rand(1, 3, 32, 48)) == []


def test_a_second_derivative_is_refused():
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    *_, (_, features) = walk(random_vgg(slim=True), picture, {"relu1_2": torch.clone})
    (gradient,) = torch.autograd.grad(features.square().sum(), picture, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
