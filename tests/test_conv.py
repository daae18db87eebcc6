"""Properties of F.conv2d_act and of the op conv2d_weight_grad.

Run on the CPU kernels and, emulated, on the CUDA kernels.
"""

import random
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from artkernels import _C, reference
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    Layer,
    assert_as_accurate_as_stock,
    conv,
    each_activation,
    each_dtype,
    each_layout,
    error,
)

LAYERS = [
    # Those of discriminators, residual blocks, style transfer, encoders.
    conv((2, 16, 10, 12), 33, 4, 2, 1),
    conv((1, 48, 4, 4), 1, 4, 1, 0),
    conv((2, 18, 7, 6), 35, 3, 1, 1),
    conv((1, 24, 9, 8), 16, 3, 1, 1, padding_mode="reflect"),
    conv((1, 3, 11, 10), 8, 7, 1, 3, padding_mode="reflect"),
    conv((1, 20, 9, 10), 3, 9, 1, 4, padding_mode="reflect"),
    conv((2, 12, 9, 7), 24, 3, 2, 1),
    conv((2, 70, 5, 5), 16, 1),
    conv((1, 9, 8, 8), 5, 5, 2, 2),
    conv((2, 12, 2, 2), 24, 4, 2, 1),
    conv((2, 5, 34, 2), 3, 3, 2, 1),
    # Planes of one row, one column, one pixel; one channel.
    conv((1, 1, 1, 17), 1, 3, 1, 1),
    conv((2, 3, 17, 1), 5, (3, 1), (2, 1), (1, 0)),
    conv((2, 5, 2, 2), 7, 2),
    conv((1, 2, 1, 1), 3, 3, 1, 1),
    conv((1, 2, 5, 4), 3, 3, 3),
    conv((1, 3, 4, 5), 2, (2, 3), (3, 2), (1, 3)),
    # Other strides, groups, dilations, paddings by name.
    conv((2, 6, 7, 8), 4, 3, 3, 1),
    conv((1, 6, 5, 5), 8, 3, 1, 2, groups=2),
    conv((2, 8, 7, 5), 12, 4, 2, 1, groups=4),
    conv((1, 6, 5, 4), 6, 3, 2, 1, groups=6),
    conv((1, 4, 7, 6), 3, 3, 2, 2, dilation=2),
    conv((1, 5, 9, 8), 3, (1, 3), (2, 1), (0, 2), dilation=(1, 3), padding_mode="reflect"),
    conv((1, 4, 6, 5), 3, 3, 1, "valid"),
    conv((1, 4, 6, 5), 3, (3, 5), 1, "same", dilation=(2, 1)),
    conv((1, 4, 6, 5), 3, (4, 2), 1, "same"),
    conv((1, 4, 6, 5), 3, (2, 3), 1, "same", padding_mode="reflect"),
]
OP_LAYERS = [layer for layer in LAYERS if not isinstance(layer.window["padding"], str)]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # stock's
@each_layer
@each_layout
@each_dtype
def test_as_accurate_as_stock(layer: Layer, layout: torch.memory_format, dtype: torch.dtype) -> None:
    tensors = [layer.input(dtype, layout), layer.weight(dtype, layout), layer.bias(dtype)]
    ours, stock = layer.act()
    grad_output = torch.randn(stock(*tensors).shape).contiguous(memory_format=layout)
    assert_as_accurate_as_stock(ours, stock, tensors, grad_output)


@pytest.mark.parametrize("layer", [LAYERS[i] for i in (0, 3, 18)], ids=str)
@each_layout
@each_activation
def test_every_activation(layer: Layer, layout: torch.memory_format, activation: str) -> None:
    tensors = [layer.input(layout=layout), layer.weight(layout=layout), layer.bias()]
    ours, stock = layer.act(activation=activation, negative_slope=0.2)
    assert_as_accurate_as_stock(ours, stock, tensors)
    with torch.no_grad():  # the activation as the kernel has it, whatever its derivative
        exact = stock(*(t.double() for t in tensors))
        assert error(ours(*tensors), exact) <= max(2 * error(stock(*tensors), exact), 5e-7)


@pytest.mark.parametrize("seed", range(25))
def test_random_layers(seed: int) -> None:
    pick = random.Random(seed)
    groups, reflect = pick.choice([1, 1, 1, 2, 3]), pick.random() < 0.3
    kernel = (pick.randint(1, 5), pick.randint(1, 5))
    layer = conv(
        (pick.randint(1, 3), groups * pick.randint(1, 22), pick.randint(9, 12), pick.randint(9, 12)),
        groups * pick.randint(1, 22),
        kernel,
        (pick.randint(1, 3), pick.randint(1, 3)),
        (pick.randint(0, 4), pick.randint(0, 4)),
        groups=groups,
        dilation=(pick.randint(1, 2), pick.randint(1, 2)),
        padding_mode="reflect" if reflect else "zeros",
    )
    dtype = pick.choice(DTYPES)
    x, weight = (f(dtype, pick.choice(LAYOUTS)) for f in (layer.input, layer.weight))
    ours, stock = layer.act(activation=pick.choice(ACTIVATIONS))
    assert_as_accurate_as_stock(ours, stock, [x, weight, layer.bias(dtype)])


@each_layout
def test_statistics_of_the_op_are_those_of_its_output(layout: torch.memory_format) -> None:
    for layer in OP_LAYERS:
        for statistics, dims in (("batch", (0, 2, 3)), ("instance", (2, 3))):
            arguments = layer.op_arguments(torch.float32, layout, statistics, scaled=True)
            z, mean, var = torch.ops.artkernels.conv2d_act(*arguments)
            x, weight, bias, scale = (t.double() for t in arguments[:4])
            exact = reference.conv2d_act(x, weight, **layer.window)
            exact = exact * scale[:, None, None] + bias[:, None, None]
            assert error(z, exact) < 3e-6
            true_var, true_mean = torch.var_mean(exact, dims, correction=0)
            torch.testing.assert_close(mean.double(), true_mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(var.double(), true_var, rtol=1e-5, atol=1e-6)


@each_layout
def test_strides_are_those_that_the_fake_kernel_promises(layout: torch.memory_format) -> None:
    for layer in OP_LAYERS:
        arguments = layer.op_arguments(torch.float32, layout, "batch")
        y, *statistics = torch.ops.artkernels.conv2d_act(*arguments)
        K, H, W = y.shape[1:]
        contiguous = arguments[0].is_contiguous()
        assert y.stride() == ((K * H * W, H * W, W, 1) if contiguous else (H * W * K, 1, W * K, K))
        assert all(t.stride() == (1,) for t in statistics)


def test_raw_functions_match_the_dispatcher() -> None:
    ops, arguments = torch.ops.artkernels, LAYERS[0].op_arguments(statistics="instance")
    for actual, other in zip(_C.conv2d_act(*arguments), ops.conv2d_act(*arguments), strict=True):
        assert torch.equal(actual, other)
    x, *rest = arguments
    output = _C.conv2d_act(x.requires_grad_(), *rest)[0]
    assert output.grad_fn is None
    window = (x.detach(), output, (4, 4), (2, 2), (1, 1), (1, 1), 1)
    assert torch.equal(_C.conv2d_weight_grad(*window), ops.conv2d_weight_grad(*window))


# ---- the gradient of the weight --------------------------------------------------------------------------------------


def weight_grad_arguments(layer: Layer, dtype: torch.dtype, layout: torch.memory_format) -> tuple:
    x, weight, *_, stride, padding, dilation, groups, _, _, _, _ = layer.op_arguments(dtype, layout)
    z = torch_functional.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
    grad_output = torch.randn(z.shape).to(dtype).contiguous(memory_format=layout)
    return x, grad_output, list(weight.shape[2:]), stride, padding, dilation, groups


@each_layout
@each_dtype
def test_weight_grad_is_as_accurate_as_stock(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for layer in OP_LAYERS:
        x, g, kernel, *window = arguments = weight_grad_arguments(layer, dtype, layout)
        shape = layer.weight().shape

        def stock(x: Tensor, g: Tensor, shape=shape, window=window) -> Tensor:
            return torch.nn.grad.conv2d_weight(x, shape, g, *window)

        exact = stock(x.double(), g.double())
        actual = torch.ops.artkernels.conv2d_weight_grad(*arguments)
        assert actual.dtype == dtype
        assert error(actual, exact) <= max(2 * error(stock(x, g), exact), 4 * torch.finfo(dtype).eps)
        K, C, H, W = actual.shape
        contiguous = x.is_contiguous() and g.is_contiguous()
        assert actual.stride() == ((C * H * W, H * W, W, 1) if contiguous else (H * W * C, 1, W * C, C))
        assert kernel == [H, W]
        assert K == layer.K


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_of_weight_grad(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x, g, *rest = weight_grad_arguments(conv((2, 4, 5, 5), 6, 3, 2, 1, groups=2), dtype, layout)
    torch.library.opcheck(torch.ops.artkernels.conv2d_weight_grad, (x.requires_grad_(), g.requires_grad_(), *rest))


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize("layer", [LAYERS[i] for i in (15, 16)], ids=str)
def test_weight_grad_has_derivatives(layer: Layer) -> None:
    x, g, *rest = weight_grad_arguments(layer, torch.float64, LAYOUTS[0])

    def function(x: Tensor, g: Tensor) -> Tensor:
        return torch.ops.artkernels.conv2d_weight_grad(x, g, *rest)

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), g.requires_grad_()))
    assert torch.autograd.gradgradcheck(function, (x, g))


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[:, :3], WEIGHT), {}, "conv2d_act: weight has 4 input channels, input has 3"),
        ((X, WEIGHT), {"groups": 2}, "conv2d_act: weight has 8 input channels, input has 4"),
        ((X[0], WEIGHT), {}, "input must be [N, C, H, W], got 3 dimensions"),
        ((X[None], WEIGHT), {}, "input must be [N, C, H, W], got 5 dimensions"),
        ((X, WEIGHT[0]), {}, "weight must be [K, C / groups, H, W], got 3 dimensions"),
        ((X.int(), WEIGHT.int()), {}, "input must be float32, float64, float16 or bfloat16"),
        ((X.bfloat16(), WEIGHT), {}, "weight must have the input's dtype BFloat16, got Float"),
        ((X, WEIGHT[:, :1]), {"groups": 4}, "the number of groups must divide the 6 output channels"),
        ((X, WEIGHT, torch.zeros(4)), {}, "bias must be [6], got [4]"),
        ((X, WEIGHT), {"stride": 0}, "stride must be at least 1, got [0, 0]"),
        ((X, WEIGHT), {"padding": (1,)}, "padding must be two numbers, got [1]"),
        ((X[..., :2, :], WEIGHT), {}, "input of 2 x 6 pixels is too small for a kernel of 3 x 3 and padding [0, 0]"),
        ((X, WEIGHT), {"padding": "full"}, "padding must be numbers, same or valid, got full"),
        ((X, WEIGHT), {"padding": "same", "stride": 2}, "padding='same' needs a stride of 1, got 2"),
        ((X, WEIGHT), {"padding_mode": "circular"}, "padding_mode must be zeros or reflect, got circular"),
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
        with pytest.raises((RuntimeError, ValueError), match=re.escape(message)) as caught:
            F.conv2d_act(x.clone().requires_grad_(requires_grad), *rest, **options)
        assert len(str(caught.value).splitlines()) == 1


def test_more_reflection_than_there_are_pixels_is_refused() -> None:
    with pytest.raises(RuntimeError, match="can be reflected by less than its size, got padding"):
        F.conv2d_act(X, WEIGHT, padding=5, padding_mode="reflect")
    with pytest.raises(RuntimeError, match=r"[Pp]adding size should be less than the corresponding input dimension"):
        F.conv2d_act(X.clone().requires_grad_(), WEIGHT, padding=5, padding_mode="reflect")


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (torch.zeros(2, 6, 4, 4), "conv2d_weight_grad: grad_output must be at most 3 x 4 pixels, got 4 x 4"),
        (torch.zeros(1, 6, 3, 4), "grad_output has 1 images, input has 2"),
        (torch.zeros(2, 6, 3), "input must be [N, C, H, W], got 3 dimensions"),
        (torch.zeros(2, 6, 3, 4).half(), "grad_output must have the input's dtype Float, got Half"),
    ],
)
def test_bad_input_of_weight_grad_gets_one_sentence(g: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        torch.ops.artkernels.conv2d_weight_grad(X, g, [3, 3], [1, 1], [0, 0], [1, 1], 1)
    assert len(str(caught.value).splitlines()) == 1
