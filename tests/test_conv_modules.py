"""nn.ConvTransposeNormAct2d and nn.ConvNormAct2d against the layers of torch.nn one after the other."""

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from artkernels import nn

stock = torch.nn
NORMS = {"batch": stock.BatchNorm2d, "instance": stock.InstanceNorm2d, "none": lambda _: stock.Identity()}

# (ours, torch's convolution, positional arguments, keywords)
LAYERS = [
    pytest.param(nn.ConvTransposeNormAct2d, stock.ConvTranspose2d, (6, 8, 4, 2, 1), {"bias": False}, id="transposed"),
    pytest.param(nn.ConvTransposeNormAct2d, stock.ConvTranspose2d, (6, 9, 3, 2, 1, 1, 3), {}, id="transposed, groups"),
    pytest.param(nn.ConvNormAct2d, stock.Conv2d, (6, 8, 4, 2, 1), {"bias": False}, id="conv"),
    pytest.param(nn.ConvNormAct2d, stock.Conv2d, (6, 9, 3, 1, 1), {"padding_mode": "reflect"}, id="conv, reflect"),
    pytest.param(nn.ConvNormAct2d, stock.Conv2d, (6, 9, 3, 1, "same", 2, 3), {}, id="conv, same"),
]
each_layer = pytest.mark.parametrize(("ours", "theirs", "args", "kwargs"), LAYERS)
each_norm = pytest.mark.parametrize("norm", NORMS)
one_of_each = pytest.mark.parametrize(("ours", "theirs", "args", "kwargs"), [LAYERS[0], LAYERS[2]])


class Stock(stock.Module):
    """The same layer of stock modules, under the same names."""

    def __init__(self, conv: stock.Module, norm: stock.Module, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.activation = conv, norm, activation

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(input)))


def pair(ours: type, theirs: type, args: tuple, kwargs: dict, norm: str = "batch", **options) -> tuple:
    """Ours and stock's with the same parameters, none of which is what it was initialised to."""
    fused = ours(*args, **kwargs, norm=norm, **options)
    layer = Stock(theirs(*args, **kwargs), NORMS[norm](args[1]), torch.relu)
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    layer.load_state_dict(fused.state_dict())
    return fused, layer


def image(channels_last: bool = False) -> Tensor:
    x = torch.randn(2, 6, 7, 5)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def assert_same_state(fused: stock.Module, layer: stock.Module) -> None:
    assert list(fused.state_dict()) == list(layer.state_dict())
    for (name, a), b in zip(fused.state_dict().items(), layer.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda message, name=name: f"{name}: {message}")


@each_layer
@each_norm
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_three_steps_of_training_are_those_of_stock(
    ours: type, theirs: type, args: tuple, kwargs: dict, norm: str, channels_last: bool
) -> None:
    models = pair(ours, theirs, args, kwargs, norm)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in models]
    for _ in range(3):
        x, gradients = image(channels_last), []
        target = torch.randn(models[0](x).shape)
        models[1](x)  # as often as the other
        for model, optimizer in zip(models, optimizers, strict=True):
            leaf = x.clone().requires_grad_()
            optimizer.zero_grad()
            (model(leaf) - target).square().mean().backward()
            gradients.append(leaf.grad)
            optimizer.step()
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
        assert_same_state(*models)
    for model in models:
        model.eval()
    x = image(channels_last)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(*(model(x) for model in models), rtol=1e-4, atol=1e-4)
    assert_same_state(*models)


@each_layer
@each_norm
def test_copies_pickles_and_loads(ours: type, theirs: type, args: tuple, kwargs: dict, norm: str) -> None:
    module, layer = pair(ours, theirs, args, kwargs, norm)
    x = image()
    module(x)
    loaded = ours(*args, **kwargs, norm=norm)
    loaded.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = module.eval()(x)
        for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded.eval()):
            assert type(twin) is ours
            assert_same_state(twin, module)
            assert torch.equal(twin(x), expected)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(module(x), expected)
        layer.load_state_dict(module.state_dict())
        torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-4)


@one_of_each
def test_a_loaded_state_dict_and_a_step_are_seen_at_once(ours: type, theirs: type, args: tuple, kwargs: dict) -> None:
    module, layer = pair(ours, theirs, args, kwargs)
    other, _ = pair(ours, theirs, args, kwargs)
    x = image()

    def assert_current() -> None:
        layer.load_state_dict(module.state_dict())
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(module.eval()(x), layer.eval()(x), rtol=1e-4, atol=1e-4)

    assert_current()
    module.load_state_dict(other.state_dict())
    assert_current()
    module.train()(x).square().mean().backward()
    torch.optim.Adam(module.parameters(), lr=0.1).step()
    assert_current()
    module.to(memory_format=torch.channels_last)
    assert_current()
    module.conv.weight.data = torch.randn_like(module.conv.weight)
    assert_current()


def test_output_size_chooses_the_output_padding() -> None:
    module = nn.ConvTransposeNormAct2d(6, 4, 3, 2, 1, norm="none", activation="none")
    x = image()
    for size in ([13, 9], [14, 9], [14, 10]):
        y = module(x, output_size=size)
        assert list(y.shape[2:]) == size
        torch.testing.assert_close(y, module.conv(x, output_size=size), rtol=1e-4, atol=1e-5)


@one_of_each
@pytest.mark.parametrize("momentum", [0.3, None])
def test_momentum_and_eps_are_the_normalisation_s(
    ours: type, theirs: type, args: tuple, kwargs: dict, momentum: float | None
) -> None:
    module = ours(*args, **kwargs, momentum=momentum, eps=0.1)
    layer = Stock(theirs(*args, **kwargs), stock.BatchNorm2d(args[1], 0.1, momentum), torch.relu)
    layer.load_state_dict(module.state_dict())
    for _ in range(3):
        x = image()
        torch.testing.assert_close(module(x), layer(x), rtol=1e-4, atol=1e-4)
    assert_same_state(module, layer)


def test_affine_and_tracking_can_be_chosen() -> None:
    keys = [set(nn.ConvNormAct2d(3, 4, 3, bias=False, norm=norm).state_dict()) for norm in NORMS]
    running = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    affine = {"norm.weight", "norm.bias"}
    assert keys == [{"conv.weight"} | affine | running, {"conv.weight"}, {"conv.weight"}]
    instance = nn.ConvNormAct2d(3, 4, 3, bias=False, norm="instance", affine=True, track_running_stats=True)
    assert set(instance.state_dict()) == keys[0]
    assert set(nn.ConvNormAct2d(3, 4, 3, affine=False).state_dict()) == {"conv.weight", "conv.bias"} | running


@one_of_each
def test_hooks_of_the_submodules_run(ours: type, theirs: type, args: tuple, kwargs: dict) -> None:
    module, layer = pair(ours, theirs, args, kwargs)
    called = []
    module.conv.register_forward_hook(lambda *_: called.append("conv"))
    module.norm.register_forward_hook(lambda *_: called.append("norm"))
    x = image()
    torch.testing.assert_close(module(x), layer(x), rtol=1e-4, atol=1e-4)
    assert called == ["conv", "norm"]


@one_of_each
def test_parametrized_weights_are_used(ours: type, theirs: type, args: tuple, kwargs: dict) -> None:
    fused = ours(*args, **kwargs, norm="none", activation="none").eval()
    torch.nn.utils.parametrizations.weight_norm(fused.conv)
    with torch.no_grad():
        fused.conv.parametrizations.weight.original0.mul_(2)
        x = image()
        torch.testing.assert_close(fused(x), fused.conv(x), rtol=1e-4, atol=1e-5)


@one_of_each
def test_compiles_in_one_graph(ours: type, theirs: type, args: tuple, kwargs: dict) -> None:
    torch._dynamo.reset()
    module, _ = pair(ours, theirs, args, kwargs)
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = image()
    torch.testing.assert_close(compiled(x), eager(x), rtol=1e-4, atol=1e-4)
    assert_same_state(module, eager)


def test_dtype_and_repr() -> None:
    module = nn.ConvNormAct2d(6, 4, 3, activation="leaky_relu", dtype=torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module(image().bfloat16()).dtype == torch.bfloat16
    assert module.extra_repr() == "activation=leaky_relu, negative_slope=0.01"
    assert "BatchNormAct2d" in repr(module)


@pytest.mark.parametrize("ours", [nn.ConvTransposeNormAct2d, nn.ConvNormAct2d])
def test_bad_arguments_get_one_sentence(ours: type) -> None:
    name = ours.__name__
    with pytest.raises(ValueError, match=re.escape(f"{name}: norm must be batch, instance, none, got group")):
        ours(3, 4, 3, norm="group")
    with pytest.raises(ValueError, match=re.escape(f"{name}: activation must be none, relu, ")):
        ours(3, 4, 3, activation="swish")
    with pytest.raises(RuntimeError, match=r"norm_act: weight has 3 input channels, input has 6"):
        ours(3, 4, 3)(image())
    with pytest.raises(RuntimeError, match=r"input must be \[N, C, H, W\], got 3 dimensions"):
        ours(6, 4, 3)(image()[0])


def test_padding_of_another_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="ConvNormAct2d: padding_mode must be zeros or reflect, got circular"):
        nn.ConvNormAct2d(3, 4, 3, padding_mode="circular")
