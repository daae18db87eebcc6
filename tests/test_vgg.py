"""VGG-19's features are torchvision's, layer by layer, and no more of them are computed than asked for."""

import pytest
import torch

from artkernels.models.vgg import LAYERS, VGG19

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.vgg19(weights=None).features.eval()


@pytest.fixture(scope="module")
def ours(stock: torch.nn.Module) -> VGG19:
    model = VGG19()
    model.features.load_state_dict(stock.state_dict())
    return model


def test_state_dict_has_the_names_and_shapes_of_torchvisions_features(stock, ours):
    expected = {f"features.{name}": value.shape for name, value in stock.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected


@torch.no_grad()
def test_every_layer_equals_torchvisions(stock, ours):
    image = torch.rand(2, 3, 37, 50)
    x = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    expected = []
    for module in stock:
        x = module(x)
        if isinstance(module, torch.nn.ReLU):
            expected.append(x.clone())
    outputs = ours(image)
    assert tuple(outputs) == LAYERS
    for output, reference in zip(outputs.values(), expected, strict=True):
        torch.testing.assert_close(output, reference)


def test_layers_are_named_by_stage():
    assert len(LAYERS) == 16
    assert LAYERS[:3] == ("relu1_1", "relu1_2", "relu2_1")
    assert LAYERS[-1] == "relu5_4"


@torch.no_grad()
def test_stops_at_the_deepest_layer_asked_for(ours):
    reached = []
    hooks = [
        module.register_forward_hook(lambda *_, index=index: reached.append(index))
        for index, module in enumerate(ours.features)
    ]
    outputs = ours(torch.rand(1, 3, 32, 32), ["relu2_1", "relu1_1"])
    for hook in hooks:
        hook.remove()
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "relu1_1": (1, 64, 32, 32),
        "relu2_1": (1, 128, 16, 16),
    }
    assert max(reached) == 6


@torch.no_grad()
def test_average_pooling_replaces_every_max_pooling():
    model = VGG19(pooling="average")
    kinds = {type(module) for module in model.features}
    assert torch.nn.AvgPool2d in kinds
    assert torch.nn.MaxPool2d not in kinds


def test_in_place_activations_do_not_disturb_the_gradient(ours):
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    sum(x.square().mean() for x in ours(image, ["relu1_1", "relu1_2", "relu2_2"]).values()).backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="no layer 'conv1_1'"):
        VGG19()(torch.rand(1, 3, 16, 16), ["conv1_1"])
    with pytest.raises(ValueError, match="pooling must be"):
        VGG19(pooling="median")
