"""Properties of F.conv_transpose2d_act. Run on the CPU kernels and, emulated, on the CUDA kernels."""

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from artkernels import _C, reference
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    Layer,
    assert_as_accurate_as_stock,
    conv_transpose,
    each_activation,
    each_dtype,
    each_layout,
    error,
)

LAYERS = [
    # Those of generators: DCGAN, CycleGAN, StyleGAN2's upsampling, decoders of VAEs and of pixel-to-pixel networks.
    conv_transpose((2, 32, 5, 7), 16, 4, 2, 1),
    conv_transpose((2, 17, 4, 4), 33, 4, 2, 1),
    conv_transpose((3, 64, 1, 1), 48, 4, 1, 0),
    conv_transpose((1, 70, 7, 5), 3, 4, 2, 1),
    conv_transpose((2, 20, 6, 9), 1, 4, 2, 1),
    conv_transpose((2, 24, 5, 4), 31, 3, 2, 1, output_padding=1),
    conv_transpose((2, 16, 7, 7), 8, 2, 2, 0),
    conv_transpose((2, 9, 6, 5), 12, 3, 2, 0),
    conv_transpose((2, 10, 4, 5), 6, 5, 2, 2, output_padding=1),
    conv_transpose((1, 8, 5, 5), 4, 6, 2, 2),
    conv_transpose((2, 18, 7, 6), 35, 3, 1, 1),
    # Planes of one row, one column, one pixel; one channel; more padding than the kernel has rows to spare.
    conv_transpose((1, 1, 1, 17), 1, 4, 2, 1),
    conv_transpose((2, 3, 17, 1), 5, 3, 2, 1, output_padding=1),
    conv_transpose((2, 5, 2, 2), 7, 4, 2, 1),
    conv_transpose((1, 2, 1, 1), 3, 4, 2, 1),
    conv_transpose((1, 4, 5, 5), 4, 1, 1),
    conv_transpose((1, 4, 5, 5), 4, 1, 2),
    conv_transpose((1, 3, 4, 4), 2, 4, 2, 3),
    # Other strides, groups, dilations, and all of them different for rows and columns.
    conv_transpose((2, 6, 5, 3), 4, 3, 3, 1, output_padding=2),
    conv_transpose((1, 4, 3, 4), 5, 5, 3, 0),
    conv_transpose((1, 6, 5, 5), 8, 3, 1, 2, groups=2),
    conv_transpose((2, 8, 4, 5), 12, 4, 2, 1, groups=4),
    conv_transpose((1, 6, 5, 4), 6, 3, 2, 1, output_padding=1, groups=6),
    conv_transpose((1, 4, 5, 6), 3, 3, 2, 2, output_padding=1, dilation=2),
    conv_transpose((1, 3, 5, 6), 4, 3, 1, 1, output_padding=2, dilation=3),
    conv_transpose((1, 5, 4, 6), 3, (3, 4), (1, 2), (1, 0), output_padding=(0, 1)),
    conv_transpose((1, 5, 4, 6), 3, (1, 5), (2, 3), (0, 2), output_padding=(1, 0), dilation=(1, 2)),
]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@each_layer
@each_layout
@each_dtype
def test_as_accurate_as_stock(layer: Layer, layout: torch.memory_format, dtype: torch.dtype) -> None:
    tensors = [layer.input(dtype, layout), layer.weight(dtype, layout), layer.bias(dtype)]
    ours, stock = layer.act()
    grad_output = torch.randn(stock(*tensors).shape).contiguous(memory_format=layout)
    assert_as_accurate_as_stock(ours, stock, tensors, grad_output)


@pytest.mark.parametrize("layer", [LAYERS[i] for i in (0, 3, 5, 18)], ids=str)
@each_layout
@each_activation
def test_every_activation(layer: Layer, layout: torch.memory_format, activation: str) -> None:
    tensors = [layer.input(layout=layout), layer.weight(layout=layout), layer.bias()]
    ours, stock = layer.act(activation=activation, negative_slope=0.2)
    assert_as_accurate_as_stock(ours, stock, tensors)
    with torch.no_grad():  # the activation as the kernel has it, whatever its derivative
        exact = stock(*(t.double() for t in tensors))
        assert error(ours(*tensors), exact) <= max(2 * error(stock(*tensors), exact), 5e-7)


@each_dtype
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("K", [1, 3])
def test_images_in_their_range(K: int, activation: str, dtype: torch.dtype) -> None:
    layer = conv_transpose((2, 40, 6, 7), K, 4, 2, 1)
    tensors = [3 * layer.input(dtype), layer.weight(dtype), layer.bias(dtype)]
    assert_as_accurate_as_stock(*layer.act(activation=activation), tensors)


@each_activation
def test_nan_is_not_hidden(activation: str) -> None:
    layer = conv_transpose((1, 3, 5, 5), 9, 3, 2, 1, output_padding=1)
    x, weight = layer.input(), layer.weight()
    x[0, 1, 2, 2] = torch.nan
    y = layer.act(activation=activation)[0](x, weight)
    assert y[:, :, 3:6, 3:6].isnan().all()
    # A kernel may pad its taps with zeros to a multiple of the stride: one pixel more than the tap reaches.
    assert y[:, :, :3].isfinite().all()
    assert y[:, :, :, 7:].isfinite().all()


@pytest.mark.parametrize("seed", range(25))
def test_random_layers(seed: int) -> None:
    pick = random.Random(seed)
    groups = pick.choice([1, 1, 1, 2, 3])
    stride, dilation = (pick.randint(1, 3), pick.randint(1, 3)), (pick.randint(1, 2), pick.randint(1, 2))
    kernel = (pick.randint(1, 5), pick.randint(1, 5))
    layer = conv_transpose(
        (pick.randint(1, 3), groups * pick.randint(1, 22), pick.randint(2, 9), pick.randint(2, 9)),
        groups * pick.randint(1, 22),
        kernel,
        stride,
        tuple(pick.randint(0, d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)),
        output_padding=tuple(pick.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)),
        groups=groups,
        dilation=dilation,
    )
    dtype = pick.choice(DTYPES)
    x, weight = (f(dtype, pick.choice(LAYOUTS)) for f in (layer.input, layer.weight))
    ours, stock = layer.act(activation=pick.choice(ACTIVATIONS))
    assert_as_accurate_as_stock(ours, stock, [x, weight, layer.bias(dtype)])


@each_layout
def test_statistics_of_the_op_are_those_of_its_output(layout: torch.memory_format) -> None:
    for layer in LAYERS:
        for statistics, dims in (("batch", (0, 2, 3)), ("instance", (2, 3))):
            arguments = layer.op_arguments(torch.float32, layout, statistics, scaled=True)
            z, mean, var = torch.ops.artkernels.conv_transpose2d_act(*arguments)
            x, weight, bias, scale = (t.double() for t in arguments[:4])
            exact = reference.conv_transpose2d_act(x, weight, **layer.window)
            exact = exact * scale[:, None, None] + bias[:, None, None]
            assert error(z, exact) < 3e-6
            true_var, true_mean = torch.var_mean(exact, dims, correction=0)
            torch.testing.assert_close(mean.double(), true_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(var.double(), true_var, rtol=1e-5, atol=1e-6)


@each_layout
def test_strides_are_those_that_the_fake_kernel_promises(layout: torch.memory_format) -> None:
    for layer in LAYERS:
        arguments = layer.op_arguments(torch.float32, layout, "batch")
        y, *statistics = torch.ops.artkernels.conv_transpose2d_act(*arguments)
        K, H, W = y.shape[1:]
        contiguous = arguments[0].is_contiguous()
        assert y.stride() == ((K * H * W, H * W, W, 1) if contiguous else (H * W * K, 1, W * K, K))
        assert all(t.stride() == (1,) for t in statistics)


def test_raw_function_matches_the_dispatcher() -> None:
    arguments = LAYERS[0].op_arguments(statistics="batch")
    expected = torch.ops.artkernels.conv_transpose2d_act(*arguments)
    for actual, other in zip(_C.conv_transpose2d_act(*arguments), expected, strict=True):
        assert torch.equal(actual, other)
    x, *rest = arguments
    assert _C.conv_transpose2d_act(x.requires_grad_(), *rest)[0].grad_fn is None


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 3, 3), torch.zeros(4, 6, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[:, :3], WEIGHT), {}, "conv_transpose2d_act: weight has 4 input channels, input has 3"),
        ((X[0], WEIGHT), {}, "input must be [N, C, H, W], got 3 dimensions"),
        ((X[None], WEIGHT), {}, "input must be [N, C, H, W], got 5 dimensions"),
        ((X, WEIGHT[0]), {}, "weight must be [C, K / groups, H, W], got 3 dimensions"),
        ((X.int(), WEIGHT.int()), {}, "input must be float32, float64, float16 or bfloat16"),
        ((X, WEIGHT.bfloat16()), {}, "weight must have the input's dtype Float, got BFloat16"),
        ((X, WEIGHT), {"groups": 3}, "the number of groups must divide the 4 input channels"),
        ((X, WEIGHT), {"groups": 0}, "the number of groups must divide the 4 input channels"),
        ((X, WEIGHT, torch.zeros(4)), {}, "bias must be [6], got [4]"),
        ((X, WEIGHT, torch.zeros(6).int()), {}, "bias must be floating point"),
        ((X, WEIGHT), {"stride": 0}, "stride must be at least 1, got [0, 0]"),
        ((X, WEIGHT), {"stride": (1, 2, 3)}, "stride must be two numbers, got [1, 2, 3]"),
        ((X, WEIGHT), {"padding": -1}, "padding must be at least 0, got [-1, -1]"),
        ((X, WEIGHT), {"dilation": (1, 0)}, "dilation must be at least 1, got [1, 0]"),
        ((X, WEIGHT), {"stride": 2, "output_padding": 2}, "output_padding must be smaller than stride or dilation"),
        ((X, WEIGHT), {"padding": 3}, "input of 3 x 3 pixels is too small for a kernel of 3 x 3 and padding [3, 3]"),
        ((X[:, :, :0], WEIGHT), {}, "only the batch may be empty, got input [2, 4, 0, 3]"),
        (
            (X, WEIGHT),
            {"activation": "swish"},
            "activation must be none, relu, leaky_relu, tanh, sigmoid, silu or gelu",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple, options: dict, message: str) -> None:
    for requires_grad in (False, True):
        if requires_grad and not arguments[0].is_floating_point():
            continue
        x, *rest = arguments
        with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
            F.conv_transpose2d_act(x.clone().requires_grad_(requires_grad), *rest, **options)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda op, scale: op(X, WEIGHT, None, scale, [1, 1], [0, 0], [0, 0], 1, [1, 1], "none", 0.0, "none"),
            "conv_transpose2d_act: has no derivative where scale is given",
        ),
        (
            lambda op, _: op(X, WEIGHT, None, None, [1, 1], [0, 0], [0, 0], 1, [1, 1], "relu", 0.0, "batch"),
            "statistics are gathered before an activation: it must be none, got relu",
        ),
        (
            lambda op, _: op(X, WEIGHT, None, None, [1, 1], [0, 0], [0, 0], 1, [1, 1], "none", 0.0, "group"),
            "statistics must be none, batch or instance, got group",
        ),
    ],
)
def test_bad_arguments_of_the_op_get_one_sentence(call: Callable, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        call(torch.ops.artkernels.conv_transpose2d_act, torch.ones(6, requires_grad=True))
    assert len(str(caught.value).splitlines()) == 1
