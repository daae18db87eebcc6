"""What F.conv2d_act and F.conv_transpose2d_act have in common; test_conv.py and test_conv_transpose.py have the rest.

Run on the CPU kernels and, transposed, on the emulated CUDA kernels: conv2d has no CUDA kernel of its own.
"""

import random
import sys
from pathlib import Path

import pytest
import torch

from artkernels import _C, reference

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import (
    ACTIVATIONS,
    CONV_LAYERS,
    CONV_TRANSPOSE_LAYERS,
    DTYPES,
    LAYOUTS,
    Layer,
    assert_as_accurate_as_stock,
    assert_refused,
    conv,
    conv_transpose,
    each_activation,
    each_dtype,
    each_layout,
    error,
    layers_of,
)

OPS = [pytest.param("conv2d", marks=pytest.mark.cpu_only), "conv_transpose2d"]
each_op = pytest.mark.parametrize("op", OPS)


def each_of(conv_layers: list[Layer], conv_transpose_layers: list[Layer]) -> pytest.MarkDecorator:
    layers = [*(pytest.param(layer, marks=pytest.mark.cpu_only) for layer in conv_layers), *conv_transpose_layers]
    return pytest.mark.parametrize("layer", layers, ids=str)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # stock's
@each_of(CONV_LAYERS, CONV_TRANSPOSE_LAYERS)
@each_layout
@each_dtype
def test_as_accurate_as_stock(layer: Layer, layout: torch.memory_format, dtype: torch.dtype) -> None:
    tensors = [layer.input(dtype, layout), layer.weight(dtype, layout), layer.bias(dtype)]
    ours, stock = layer.act()
    grad_output = torch.randn(stock(*tensors).shape).contiguous(memory_format=layout)
    assert_as_accurate_as_stock(ours, stock, tensors, grad_output)


@each_of([CONV_LAYERS[i] for i in (0, 3, 18)], [CONV_TRANSPOSE_LAYERS[i] for i in (0, 3, 5, 18)])
@each_layout
@each_activation
def test_every_activation(layer: Layer, layout: torch.memory_format, activation: str) -> None:
    tensors = [layer.input(layout=layout), layer.weight(layout=layout), layer.bias()]
    ours, stock = layer.act(activation=activation, negative_slope=0.2)
    assert_as_accurate_as_stock(ours, stock, tensors)
    with torch.no_grad():  # the activation as the kernel has it, whatever its derivative
        exact = stock(*(t.double() for t in tensors))
        assert error(ours(*tensors), exact) <= max(2 * error(stock(*tensors), exact), 5e-7)


def random_conv(pick: random.Random) -> Layer:
    groups, reflect = pick.choice([1, 1, 1, 2, 3]), pick.random() < 0.3
    kernel = (pick.randint(1, 5), pick.randint(1, 5))
    return conv(
        (pick.randint(1, 3), groups * pick.randint(1, 22), pick.randint(9, 12), pick.randint(9, 12)),
        groups * pick.randint(1, 22),
        kernel,
        (pick.randint(1, 3), pick.randint(1, 3)),
        (pick.randint(0, 4), pick.randint(0, 4)),
        groups=groups,
        dilation=(pick.randint(1, 2), pick.randint(1, 2)),
        padding_mode="reflect" if reflect else "zeros",
    )


def random_conv_transpose(pick: random.Random) -> Layer:
    groups = pick.choice([1, 1, 1, 2, 3])
    stride, dilation = (pick.randint(1, 3), pick.randint(1, 3)), (pick.randint(1, 2), pick.randint(1, 2))
    kernel = (pick.randint(1, 5), pick.randint(1, 5))
    return conv_transpose(
        (pick.randint(1, 3), groups * pick.randint(1, 22), pick.randint(2, 9), pick.randint(2, 9)),
        groups * pick.randint(1, 22),
        kernel,
        stride,
        tuple(pick.randint(0, d * (k - 1) // 2) for k, d in zip(kernel, dilation, strict=True)),
        output_padding=tuple(pick.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)),
        groups=groups,
        dilation=dilation,
    )


@each_op
@pytest.mark.parametrize("seed", range(25))
def test_random_layers(seed: int, op: str) -> None:
    pick = random.Random(seed)
    layer = random_conv(pick) if op == "conv2d" else random_conv_transpose(pick)
    dtype = pick.choice(DTYPES)
    x, weight = (f(dtype, pick.choice(LAYOUTS)) for f in (layer.input, layer.weight))
    ours, stock = layer.act(activation=pick.choice(ACTIVATIONS))
    assert_as_accurate_as_stock(ours, stock, [x, weight, layer.bias(dtype)])


@each_op
@each_layout
def test_statistics_of_the_op_are_those_of_its_output(layout: torch.memory_format, op: str) -> None:
    for layer in layers_of(op):
        for statistics, dims in (("batch", (0, 2, 3)), ("instance", (2, 3))):
            arguments = layer.op_arguments(torch.float32, layout, statistics, scaled=True)
            z, mean, var = getattr(torch.ops.artkernels, f"{op}_act")(*arguments)
            x, weight, bias, scale = (t.double() for t in arguments[:4])
            exact = getattr(reference, f"{op}_act")(x, weight, **layer.window)
            exact = exact * scale[:, None, None] + bias[:, None, None]
            assert error(z, exact) < 3e-6
            true_var, true_mean = torch.var_mean(exact, dims, correction=0)
            torch.testing.assert_close(mean.double(), true_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(var.double(), true_var, rtol=1e-5, atol=1e-6)


@each_op
@each_layout
def test_strides_are_those_that_the_fake_kernel_promises(layout: torch.memory_format, op: str) -> None:
    for layer in layers_of(op):
        arguments = layer.op_arguments(torch.float32, layout, "batch")
        y, *statistics = getattr(torch.ops.artkernels, f"{op}_act")(*arguments)
        K, H, W = y.shape[1:]
        contiguous = arguments[0].is_contiguous()
        assert y.stride() == ((K * H * W, H * W, W, 1) if contiguous else (H * W * K, 1, W * K, K))
        assert all(t.stride() == (1,) for t in statistics)


@each_op
@pytest.mark.parametrize("statistics", ["batch", "instance"])
def test_raw_function_matches_the_dispatcher(statistics: str, op: str) -> None:
    arguments, raw = layers_of(op)[0].op_arguments(statistics=statistics), getattr(_C, f"{op}_act")
    expected = getattr(torch.ops.artkernels, f"{op}_act")(*arguments)
    for actual, other in zip(raw(*arguments), expected, strict=True):
        assert torch.equal(actual, other)
    x, *rest = arguments
    assert raw(x.requires_grad_(), *rest)[0].grad_fn is None


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(4, 4, 3, 3)


@each_op
@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], WEIGHT), {}, "input must be [N, C, H, W], got 3 dimensions"),
        ((X[None], WEIGHT), {}, "input must be [N, C, H, W], got 5 dimensions"),
        ((X[:, :, :0], WEIGHT), {}, "only the batch may be empty, got input [2, 4, 0, 6]"),
        ((X.int(), WEIGHT.int()), {}, "input must be float32, float64, float16 or bfloat16"),
        ((X.bfloat16(), WEIGHT), {}, "weight must have the input's dtype BFloat16, got Float"),
        ((X, WEIGHT.bfloat16()), {}, "weight must have the input's dtype Float, got BFloat16"),
        ((X, WEIGHT, torch.zeros(4).int()), {}, "bias must be floating point"),
        ((X, WEIGHT), {"stride": 0}, "stride must be at least 1, got [0, 0]"),
        ((X, WEIGHT), {"stride": (1, 2, 3)}, "stride must be two numbers, got [1, 2, 3]"),
        ((X, WEIGHT), {"padding": (1,)}, "padding must be two numbers, got [1]"),
        ((X, WEIGHT), {"padding": -1}, "padding must be at least 0, got [-1, -1]"),
        ((X, WEIGHT), {"dilation": (1, 0)}, "dilation must be at least 1, got [1, 0]"),
        (
            (X, WEIGHT),
            {"activation": "swish"},
            "activation must be none, relu, leaky_relu, tanh, sigmoid, silu or gelu",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple, options: dict, message: str, op: str) -> None:
    assert_refused(f"{op}_act", arguments, options, message)
