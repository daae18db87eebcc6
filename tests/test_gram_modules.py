"""nn.GramLoss and nn.StyleLoss."""

import pytest
import torch
from torch import Tensor

from artkernels import functional as F
from artkernels import nn


def vgg_like(N: int = 1, size: int = 8) -> dict[str, Tensor]:
    return {"relu1_1": torch.randn(N, 6, size, size), "relu2_1": torch.randn(N, 10, size // 2, size // 2)}


@pytest.mark.parametrize("normalize", ["chw", "hw", None])
def test_gram_loss_compares_with_the_style_it_was_given(normalize: str | None) -> None:
    style, x = torch.randn(1, 8, 9, 7), torch.randn(2, 8, 5, 6)
    loss = nn.GramLoss(style, normalize)
    assert loss(style.repeat(3, 1, 1, 1)).item() == 0
    expected = F.gram_mse_loss(x, F.gram_matrix(style, normalize=normalize), normalize=normalize)
    assert torch.equal(loss(x), expected)


def test_gram_loss_keeps_no_graph_of_the_style() -> None:
    style = torch.randn(1, 4, 5, 5, requires_grad=True)
    loss = nn.GramLoss(style)
    assert not loss.target.requires_grad
    assert list(loss.parameters()) == []


def test_style_loss_is_the_weighted_sum_of_its_layers() -> None:
    style, x = vgg_like(), vgg_like(N=2, size=12)
    terms = [F.gram_mse_loss(x[layer], F.gram_matrix(style[layer])) for layer in style]
    for weights in ({"relu2_1": 3.0, "relu1_1": 0.5}, [0.5, 3.0]):
        torch.testing.assert_close(nn.StyleLoss(style, weights)(x), 0.5 * terms[0] + 3.0 * terms[1])
    torch.testing.assert_close(nn.StyleLoss(style)(x), (terms[0] + terms[1]) / 2)


def test_style_loss_gives_every_layer_a_gradient() -> None:
    style, x = vgg_like(), {name: t.requires_grad_() for name, t in vgg_like().items()}
    nn.StyleLoss(style)(x).backward()
    for t in x.values():
        assert t.grad is not None
        assert t.grad.abs().max() > 0


def test_state_dict_restores_the_targets() -> None:
    first, second = nn.StyleLoss(vgg_like()), nn.StyleLoss(vgg_like())
    second.load_state_dict(first.state_dict())
    x = vgg_like()
    assert torch.equal(first(x), second(x))


def test_bad_arguments_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="at least one layer, got none"):
        nn.StyleLoss({})
    with pytest.raises(ValueError, match="must name the layers relu1_1, relu2_1, got relu1_1"):
        nn.StyleLoss(vgg_like(), {"relu1_1": 1.0})
    with pytest.raises(ValueError, match="one a layer, 2, got 3"):
        nn.StyleLoss(vgg_like(), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="must not depend on the batch"):
        nn.GramLoss(torch.randn(1, 3, 4, 4), "bchw")
    with pytest.raises(KeyError, match="relu2_1"):
        nn.StyleLoss(vgg_like())({"relu1_1": torch.randn(1, 6, 4, 4)})
