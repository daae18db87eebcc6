"""Properties of F.conv_transpose2d_norm_act and F.conv2d_norm_act.

Run on the CPU kernels and, emulated, on the CUDA kernels.
"""

import re
import sys
from pathlib import Path

import pytest
import torch

from artkernels import functional as F
from artkernels import reference

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import (
    NORMS,
    Layer,
    assert_as_accurate_as_stock,
    conv,
    conv_transpose,
    each_dtype,
    each_layout,
    each_norm,
    error,
    value_and_gradients,
)

LAYERS = [
    conv_transpose((2, 32, 5, 7), 16, 4, 2, 1),
    conv_transpose((2, 20, 4, 4), 31, 3, 2, 1, output_padding=1),
    conv_transpose((3, 8, 1, 1), 12, 4, 1, 0, groups=4),
    conv((2, 16, 8, 6), 33, 4, 2, 1),
    conv((1, 12, 7, 7), 20, 3, 1, 1, padding_mode="reflect"),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@each_layer
@each_layout
@each_dtype
@each_norm
def test_training_is_as_accurate_as_stock(
    norm: str, dtype: torch.dtype, layout: torch.memory_format, layer: Layer
) -> None:
    tensors = [layer.input(dtype, layout), layer.weight(dtype, layout), None, *layer.affine()]
    ours, stock = layer.norm_act(norm=norm, training=True, activation="leaky_relu", negative_slope=0.2)
    assert_as_accurate_as_stock(ours, stock, tensors, torch.randn(stock(*tensors).shape), roundings=8)


@each_layer
@each_layout
@each_dtype
@each_norm
def test_evaluation_is_as_accurate_as_stock(
    norm: str, dtype: torch.dtype, layout: torch.memory_format, layer: Layer
) -> None:
    """With gradients and without: then the normalisation is folded into the convolution."""
    state = layer.running()
    ours, _ = layer.norm_act(norm=norm, activation="tanh", **state)
    # In evaluation both norms are the same; torch's instance norm takes no 16-bit input with float32 statistics.
    _, stock = layer.norm_act(norm="batch", activation="tanh", **state)
    tensors = [layer.input(dtype, layout), layer.weight(dtype, layout), layer.bias(dtype), *layer.affine()]
    for some in (tensors, [*tensors[:2], None, None, None], [*tensors[:3], None, tensors[4]]):
        exact = stock(*(None if t is None else t.double() for t in some))
        limit = max(2 * error(stock(*some), exact), 4 * torch.finfo(dtype).eps)
        folded, differentiable = ours(*some), ours(some[0].clone().requires_grad_(), *some[1:])
        assert differentiable.requires_grad
        assert folded.stride() == differentiable.stride()
        for y in (folded, differentiable):
            assert error(y, exact) <= limit
            assert y.dtype == dtype


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[3]], ids=str)
@each_norm
@pytest.mark.parametrize("residual_after", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_residual_is_added_before_or_after_the_activation(
    layer: Layer, norm: str, residual_after: bool, training: bool
) -> None:
    options = {"norm": norm, "training": training, "activation": "relu", "residual_after": residual_after}
    ours, stock = layer.norm_act(**options, **layer.running())
    # In training the mean takes the bias away again: its gradient is zero and roundings.
    tensors = [layer.input(), layer.weight(), None if training else layer.bias(), *layer.affine()]
    tensors.append(torch.randn(ours(*tensors).shape))
    assert_as_accurate_as_stock(ours, stock, tensors, torch.randn(tensors[-1].shape), roundings=64)
    with torch.no_grad():
        torch.testing.assert_close(ours(*tensors), stock(*tensors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [LAYERS[1], LAYERS[3]], ids=str)
@each_norm
@each_layout
def test_running_statistics_move_as_in_torch(layout: torch.memory_format, norm: str, layer: Layer) -> None:
    ours, stock = ({"running_mean": torch.zeros(layer.K), "running_var": torch.ones(layer.K)} for _ in range(2))
    weight = layer.weight(layout=layout)
    for momentum in (0.1, 1.0, 0.25):
        x = layer.input(layout=layout)
        for library, state in zip((0, 1), (ours, stock), strict=True):
            layer.norm_act(norm=norm, training=True, momentum=momentum, **state)[library](x, weight)
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-6)


@each_norm
def test_one_running_statistic_may_be_missing(norm: str) -> None:
    layer, var = LAYERS[0], torch.ones(16)
    y = layer.norm_act(norm=norm, training=True, running_var=var)[0](layer.input(), layer.weight())
    assert y.shape[1] == 16
    assert (var != 1).all()


def test_a_style_for_each_image() -> None:
    layer = LAYERS[0]
    x, weight, norm_weight, norm_bias = layer.input(), layer.weight(), torch.rand(2, 16), torch.randn(2, 16)
    ours, _ = layer.norm_act(norm="instance", training=True)
    each = [ours(x[i : i + 1], weight, None, norm_weight[i], norm_bias[i]) for i in range(2)]
    torch.testing.assert_close(ours(x, weight, None, norm_weight, norm_bias), torch.cat(each), rtol=1e-4, atol=1e-5)


def test_small_variance_far_from_zero() -> None:
    """Statistics come from centred squares, never from E[x^2] - E[x]^2."""
    for layer in (LAYERS[0], LAYERS[3]):
        x, weight, bias = layer.input() * 1e-2, layer.weight(), torch.full((layer.K,), 100.0)
        ours, stock = layer.norm_act(training=True)
        exact = stock(x.double(), weight.double(), bias.double())
        assert error(ours(x, weight, bias), exact) <= max(2 * error(stock(x, weight, bias), exact), 1e-5)


@each_norm
@pytest.mark.parametrize("layer", [conv_transpose((0, 4, 3, 3), 6, 4, 2, 1), conv((0, 4, 3, 3), 6, 3, 1, 1)], ids=str)
def test_empty_batch(layer: Layer, norm: str) -> None:
    tensors = [layer.input(), layer.weight(), layer.bias()]
    size = 6 if layer.op == "conv_transpose2d" else 3
    for function in (layer.act(activation="relu")[0], layer.norm_act(norm=norm, training=True)[0]):
        y, *grads = value_and_gradients(function, tensors)
        assert y.shape == (0, 6, size, size)
        assert [g.shape for g in grads] == [t.shape for t in tensors]
        assert all(not g.any() for g in grads)
    with torch.no_grad():
        assert layer.norm_act(norm=norm, **layer.running())[0](*tensors).shape == (0, 6, size, size)


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 3, 3), torch.zeros(4, 4, 3, 3)


@pytest.mark.parametrize("function", ["conv_transpose2d_norm_act", "conv2d_norm_act"])
@pytest.mark.parametrize(
    ("x", "weight", "options", "message"),
    [
        (torch.zeros(2, 32, 3, 3), torch.zeros(64, 64, 3, 3), {}, "weight has 64 input channels, input has 32"),
        (X[0], WEIGHT, {}, "input must be [N, C, H, W], got 3 dimensions"),
        (X[None], WEIGHT, {}, "input must be [N, C, H, W], got 5 dimensions"),
        (X, WEIGHT, {"norm": "group"}, "norm must be batch or instance, got group"),
        (X, WEIGHT, {}, "running_mean and running_var are needed when training=False, got None"),
        (X[:1, :, :1, :1], WEIGHT[..., :1, :1], {"training": True}, "expected more than 1 value per channel"),
        (
            X[:, :, :1, :1],
            WEIGHT[..., :1, :1],
            {"norm": "instance", "training": True},
            "expected more than 1 spatial element when training, got input size [2, 4, 1, 1]",
        ),
    ],
)
def test_bad_input_gets_one_sentence(function: str, x, weight, options: dict, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=re.escape(f"{function}: {message}")) as caught:
        getattr(F, function)(x, weight, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_residual_of_another_shape_is_refused() -> None:
    with pytest.raises(RuntimeError, match=re.escape("residual must have the input's shape [2, 4, 5, 5]")):
        F.conv_transpose2d_norm_act(X, WEIGHT, training=True, residual=X)


def test_the_reference_has_the_same_functions() -> None:
    assert {f"{op}_{end}" for op in ("conv2d", "conv_transpose2d") for end in ("act", "norm_act")} <= set(
        reference.__all__
    ) & set(F.__all__)
    assert NORMS == ["batch", "instance"]
