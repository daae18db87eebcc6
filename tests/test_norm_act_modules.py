"""nn.BatchNormAct*, nn.InstanceNormAct*, nn.GroupNormAct2d and nn.AdaIN2d against the layers of torch.nn."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from artkernels import functional as F
from artkernels import nn

stock = torch.nn
TRACKING = {"affine": True, "track_running_stats": True}

# (ours, torch's, positional arguments, keywords, shape of the input)
LAYERS = [
    pytest.param(nn.BatchNormAct1d, stock.BatchNorm1d, (5,), {}, (6, 5), id="BatchNorm1d of vectors"),
    pytest.param(nn.BatchNormAct1d, stock.BatchNorm1d, (5,), {}, (3, 5, 7), id="BatchNorm1d"),
    pytest.param(nn.BatchNormAct2d, stock.BatchNorm2d, (5,), {}, (3, 5, 6, 7), id="BatchNorm2d"),
    pytest.param(nn.BatchNormAct2d, stock.BatchNorm2d, (8, 1e-3, 0.3), {}, (3, 8, 4, 4), id="BatchNorm2d, momentum"),
    pytest.param(nn.BatchNormAct2d, stock.BatchNorm2d, (5, 1e-5, None), {}, (3, 5, 4, 3), id="BatchNorm2d, averaging"),
    pytest.param(nn.BatchNormAct2d, stock.BatchNorm2d, (5,), {"affine": False}, (3, 5, 4, 3), id="BatchNorm2d, plain"),
    pytest.param(
        nn.BatchNormAct2d,
        stock.BatchNorm2d,
        (5,),
        {"track_running_stats": False},
        (3, 5, 4, 3),
        id="BatchNorm2d, not tracking",
    ),
    pytest.param(nn.BatchNormAct3d, stock.BatchNorm3d, (3,), {}, (2, 3, 2, 3, 4), id="BatchNorm3d"),
    pytest.param(nn.InstanceNormAct1d, stock.InstanceNorm1d, (5,), TRACKING, (3, 5, 7), id="InstanceNorm1d"),
    pytest.param(nn.InstanceNormAct2d, stock.InstanceNorm2d, (5,), TRACKING, (3, 5, 4, 3), id="InstanceNorm2d"),
    pytest.param(nn.InstanceNormAct2d, stock.InstanceNorm2d, (5,), {}, (3, 5, 4, 3), id="InstanceNorm2d, plain"),
    pytest.param(nn.InstanceNormAct3d, stock.InstanceNorm3d, (3,), TRACKING, (2, 3, 2, 3, 4), id="InstanceNorm3d"),
    pytest.param(nn.GroupNormAct2d, stock.GroupNorm, (2, 6), {}, (3, 6, 4, 5), id="GroupNorm"),
    pytest.param(nn.GroupNormAct2d, stock.GroupNorm, (3, 6), {}, (3, 6, 7), id="GroupNorm of sequences"),
    pytest.param(nn.GroupNormAct2d, stock.GroupNorm, (3, 6), {"affine": False}, (2, 6, 2, 3, 2), id="GroupNorm of 5-D"),
]


def randomize(module: stock.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


def last(shape: tuple[int, ...], channels_last: bool) -> Tensor:
    x = torch.randn(shape)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x


def assert_same_state(ours: stock.Module, theirs: stock.Module) -> None:
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda message, name=name: f"{name}: {message}")


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs", "shape"), LAYERS)
def test_is_the_stock_layer_and_the_activation_in_training_and_evaluation(
    ours: type, theirs: type, args: Any, kwargs: Any, shape: tuple[int, ...], channels_last: bool
) -> None:
    fused = ours(*args, **kwargs, activation="leaky_relu", negative_slope=0.2)
    layer = theirs(*args, **kwargs)
    randomize(fused)
    layer.load_state_dict(fused.state_dict())
    expected_model = stock.Sequential(layer, stock.LeakyReLU(0.2))
    for _ in range(3):
        x, dy = last(shape, channels_last), last(shape, channels_last)
        gradients = []
        for model in (fused, expected_model):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            gradients.append((y, *torch.autograd.grad(y, (leaf, *model.parameters()), dy)))
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
        assert gradients[0][0].stride() == x.stride()
    assert_same_state(fused, layer)
    for training in (False, True):
        y, expected = (model.train(training)(x) for model in (fused, expected_model))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert_same_state(fused, layer)


@pytest.mark.parametrize("residual_after", [False, True])
@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs", "shape"), LAYERS)
def test_adds_the_residual_before_or_after_the_activation(
    ours: type, theirs: type, args: Any, kwargs: Any, shape: tuple[int, ...], residual_after: bool
) -> None:
    x, residual = torch.randn(shape), torch.randn(shape)
    z = theirs(*args, **kwargs)(x)
    expected = z.relu() + residual if residual_after else (z + residual).relu()
    y = ours(*args, **kwargs, activation="relu", residual_after=residual_after)(x, residual)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs", "shape"), LAYERS)
def test_state_dict_and_defaults_are_torch_s(
    ours: type, theirs: type, args: Any, kwargs: Any, shape: tuple[int, ...]
) -> None:
    fused, layer = ours(*args, **kwargs, activation="relu"), theirs(*args, **kwargs)
    assert_same_state(fused, layer)
    for source, target in ((fused, layer), (layer, fused)):
        randomize(source)
        source(torch.randn(shape))
        target.load_state_dict(source.state_dict())
        assert_same_state(fused, layer)
    assert fused.extra_repr() == f"{layer.extra_repr()}, activation=relu"


@pytest.mark.parametrize(("ours", "theirs", "args", "kwargs", "shape"), LAYERS)
def test_copies_and_pickles(ours: type, theirs: type, args: Any, kwargs: Any, shape: tuple[int, ...]) -> None:
    module = ours(*args, **kwargs, activation="tanh")
    randomize(module)
    x = torch.randn(shape)
    module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(twin) is ours
        assert_same_state(twin, module)
        assert torch.equal(twin.eval()(x), copy.deepcopy(module).eval()(x))
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
    assert all(parameter.any() for parameter in module.parameters())


def test_deepcopy_keeps_ties_between_layers() -> None:
    shared = nn.BatchNormAct2d(3, activation="relu")
    twin = copy.deepcopy(stock.Sequential(shared, shared))
    assert twin[0] is twin[1]
    assert twin[0].weight is not shared.weight


@pytest.mark.parametrize("ours", [nn.BatchNormAct2d, nn.InstanceNormAct2d])
def test_loads_checkpoints_older_than_num_batches_tracked(ours: type) -> None:
    module = ours(4, **TRACKING)
    module(torch.randn(2, 4, 3, 3))
    count = module.num_batches_tracked.item()
    old = {name: t for name, t in ours(4, **TRACKING).state_dict().items() if name != "num_batches_tracked"}
    module.load_state_dict(old)
    assert module.num_batches_tracked == count
    assert not module.running_mean.any()


def test_instance_norm_names_the_running_statistics_of_old_checkpoints_that_it_does_not_keep() -> None:
    old = dict(stock.InstanceNorm2d(4, **TRACKING).state_dict())
    with pytest.raises(RuntimeError, match="Unexpected running stats buffer"):
        nn.InstanceNormAct2d(4, affine=True).load_state_dict(old)


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (nn.InstanceNormAct1d, stock.InstanceNorm1d, (5, 7)),
        (nn.InstanceNormAct2d, stock.InstanceNorm2d, (5, 4, 6)),
        (nn.InstanceNormAct3d, stock.InstanceNorm3d, (5, 2, 3, 4)),
    ],
)
def test_instance_norm_takes_one_image_without_a_batch(ours: type, theirs: type, shape: tuple[int, ...]) -> None:
    fused, layer = ours(5, **TRACKING, activation="silu"), theirs(5, **TRACKING)
    x, residual = torch.randn(shape), torch.randn(shape)
    torch.testing.assert_close(fused(x, residual), stock.functional.silu(layer(x) + residual), rtol=1e-4, atol=1e-5)
    assert_same_state(fused, layer)


@pytest.mark.parametrize("ours", [nn.BatchNormAct2d, nn.InstanceNormAct2d, nn.GroupNormAct2d])
def test_the_bias_alone_can_be_left_out(ours: type) -> None:
    args = (2, 4) if ours is nn.GroupNormAct2d else (4,)
    module = ours(*args, affine=True, bias=False)
    assert module.bias is None
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert module(torch.randn(2, 4, 3, 3)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("training", [True, False])
def test_parameters_of_16_bits_are_used_in_float32(training: bool) -> None:
    module = nn.BatchNormAct2d(4, activation="relu", dtype=torch.bfloat16).train(training)
    x = torch.randn(3, 4, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert module.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(
        y, stock.BatchNorm2d(4).train(training)(x.float()).relu().bfloat16(), rtol=0.02, atol=0.01
    )


def test_convert_sync_batchnorm_leaves_the_activation_alone() -> None:
    model = stock.Sequential(nn.BatchNormAct2d(3, activation="relu"), stock.BatchNorm2d(3))
    converted = stock.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(converted[0]) is nn.BatchNormAct2d
    assert type(converted[1]) is stock.SyncBatchNorm


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNormAct2d(4, activation="relu"),
        nn.InstanceNormAct2d(4, **TRACKING, activation="tanh"),
        nn.GroupNormAct2d(2, 4, activation="silu"),
    ],
    ids=lambda module: type(module).__name__,
)
def test_compiled_in_training_it_updates_the_running_statistics(module: stock.Module) -> None:
    eager = copy.deepcopy(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = torch.randn(2, 4, 5, 3, requires_grad=True)
        results = []
        for model in (compiled, eager):
            y = model(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
        torch.testing.assert_close(*results)
    assert_same_state(module, eager)
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(compiled.eval()(x), eager.eval()(x))
    assert_same_state(module, eager)


def test_extra_repr_shows_what_is_not_stock() -> None:
    assert (
        nn.InstanceNormAct2d(3, activation="leaky_relu", residual_after=True)
        .extra_repr()
        .endswith("track_running_stats=False, activation=leaky_relu, negative_slope=0.01, residual_after=True")
    )
    assert repr(nn.AdaIN2d(activation="relu")) == "AdaIN2d(eps=1e-05, unbiased=True, activation=relu)"


# ---- AdaIN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("styles", [1, 3])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_adain_gives_the_content_the_style_s_mean_and_deviation(
    styles: int, unbiased: bool, channels_last: bool
) -> None:
    content, style = last((3, 5, 6, 4), channels_last), 2 * torch.randn(styles, 5, 3, 7) + 1
    leaves = [t.clone().requires_grad_() for t in (content, style)]
    y = nn.AdaIN2d(unbiased=unbiased, activation="relu")(*leaves, alpha=0.7)
    assert y.stride() == content.stride()

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(t, (2, 3), correction=int(unbiased), keepdim=True)
        return mean, (var + 1e-5).sqrt()

    wide = [t.double().requires_grad_() for t in (content, style)]
    (mean, std), (style_mean, style_std) = map(moments, wide)
    expected = (0.7 * ((wide[0] - mean) / std * style_std + style_mean) + 0.3 * wide[0]).relu()
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-5)
    dy = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, wide, dy.double()), strict=True
    ):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


def test_adain_of_strength_0_is_the_content() -> None:
    content, style = torch.randn(2, 3, 4, 4), torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(nn.AdaIN2d()(content, style, alpha=0.0), content)
    assert nn.AdaIN2d().state_dict() == {}


def test_adain_matches_its_functional() -> None:
    content, style = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 5, 5)
    mean, var = F.feature_statistics(style, unbiased=True)
    expected = F.adaptive_instance_norm(content, mean, (var + 1e-5).sqrt())
    assert torch.equal(nn.AdaIN2d()(content, style), expected)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.BatchNormAct1d(3), (2, 3, 4, 4), "expected 2D or 3D input \\(got 4D input\\)"),
        (nn.BatchNormAct2d(3), (2, 3, 4), "expected 4D input \\(got 3D input\\)"),
        (nn.BatchNormAct3d(3), (2, 3, 4, 4), "expected 5D input \\(got 4D input\\)"),
        (nn.BatchNormAct2d(3), (1, 3, 1, 1), "expected more than 1 value per channel"),
        (nn.InstanceNormAct1d(3), (2, 3, 4, 4), "expected 2D or 3D input \\(got 4D input\\)"),
        (nn.InstanceNormAct2d(3), (3, 4), "expected 3D or 4D input \\(got 2D input\\)"),
        (nn.InstanceNormAct3d(3), (2, 3, 4), "expected 4D or 5D input \\(got 3D input\\)"),
        (nn.InstanceNormAct2d(3), (2, 3, 1, 1), "expected more than 1 spatial element"),
        (nn.InstanceNormAct2d(3, affine=True), (2, 4, 5, 5), "InstanceNormAct2d: input must have 3 channels, got 4"),
        (nn.InstanceNormAct2d(3, track_running_stats=True), (4, 5, 5), "input must have 3 channels, got 4"),
    ],
)
def test_bad_input_gets_one_sentence(module: stock.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(torch.randn(shape))


def test_what_does_not_fit_gets_one_sentence() -> None:
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(RuntimeError, match=r"weight must be \[4\].*got \[3\]"):
        nn.BatchNormAct2d(3)(x)
    with pytest.raises(RuntimeError, match=r"residual must have the input's shape \[2, 4, 5, 5\], got \[2, 4, 5, 4\]"):
        nn.GroupNormAct2d(2, 4)(x, x[..., :4])
    with pytest.raises(RuntimeError, match=r"input must be \[N, C, \.\.\.\], got 1 dimensions"):
        nn.GroupNormAct2d(2, 4)(x.flatten())
    with pytest.raises(ValueError, match="num_channels"):
        nn.GroupNormAct2d(3, 4)
    with pytest.raises(ValueError, match=r"BatchNormAct2d: activation must be none, relu, .*gelu, got swish"):
        nn.BatchNormAct2d(4, activation="swish")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"AdaIN2d: content must be \[N, C, H, W\], got \[4, 5, 5\]"):
        nn.AdaIN2d()(x[0], x)
    for style in (x[0], x[:, :3], torch.cat([x, x])):
        with pytest.raises(ValueError, match=r"AdaIN2d: style must be \[2 or 1, 4, H, W\], got"):
            nn.AdaIN2d()(x, style)
