"""The op conv_backward: all gradients of a convolution and its activation at once.

What users call, F.conv2d_act and F.conv_transpose2d_act, is differentiated in test_conv_act.py; here are the op's own
promises, and shapes that take every way through the kernel of the weight's gradient.
"""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from artkernels import _C

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import LAYOUTS, Layer, conv, conv_transpose, each_dtype, each_layout, error
from opcheck import opcheck

ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid"]  # whose derivative the output tells
SLOPE = 0.2
LAYERS = [
    conv((2, 16, 10, 12), 33, 4, 2, 1),  # few pixels: this package's kernels alone
    conv((2, 3, 9, 8), 24, 3, 2, 1),
    conv((1, 20, 9, 10), 3, 9, 1, 4),  # few output channels: channels change places
    conv((2, 48, 4, 4), 1, 4, 1, 0),
    conv((2, 8, 7, 5), 16, (3, 2), (2, 1), (1, 0), dilation=(1, 2)),
    conv((2, 32, 5, 5), 32, 3, 1, 1, groups=2),
    conv_transpose((2, 32, 5, 7), 16, 4, 2, 1),
    conv_transpose((3, 64, 1, 1), 48, 4, 1, 0),
    conv_transpose((2, 17, 4, 4), 3, 4, 2, 1),
    conv_transpose((1, 9, 5, 6), 4, 3, 1, 1, output_padding=2, dilation=3),
]
# Threads with sums of their own; bands of rows; rows of more than a block of pixels; many taps.
LARGE_LAYERS = [
    conv((29, 16, 36, 36), 40, 4, 2, 1),
    conv((1, 40, 33, 300), 17, 3, 1, 1),
    conv((1, 3, 70, 140), 36, 7, 1, 3),
    conv((1, 64, 70, 71), 3, 7, 1, 3),
    conv_transpose((150, 20, 1, 1), 40, 4, 1, 0),
    conv_transpose((1, 64, 40, 41), 32, 3, 2, 1, output_padding=1),
]

each_layer = pytest.mark.parametrize("layer", LAYERS, ids=str)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def stock_output(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    z = getattr(torch_functional, layer.op)(x, weight, bias, **layer.window)
    if activation == "leaky_relu":
        return torch_functional.leaky_relu(z, SLOPE)
    return z if activation == "none" else getattr(torch, activation)(z)


def gradients(output: Tensor, leaves: list[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, grad_output)


def case(
    layer: Layer, activation: str, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]
) -> tuple[tuple, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The op's arguments without the mask, stock's gradients in float64 and in `dtype`, of the same output.

    Stock runs in the same layout: for some calls it is what runs, and it is not equally exact in both.
    """

    def pair(name: str, default: int) -> list[int]:
        value = layer.window.get(name, default)
        return [value, value] if isinstance(value, int) else list(value)

    x, weight, bias = layer.input(dtype, layout), layer.weight(dtype, layout), layer.bias(dtype)
    leaves = [t.detach().requires_grad_() for t in (x, weight, bias)]
    output = stock_output(layer, *leaves, activation)
    grad_output = torch.randn(output.shape).to(dtype).contiguous(memory_format=layout)
    stock = gradients(output, leaves, grad_output)
    # The derivative at the output that the op is told, which float64 would round to another one.
    dz = grad_output.double()
    y = output.detach().double()
    if activation in ("relu", "leaky_relu"):
        dz = torch.where(y > 0, dz, dz * (0 if activation == "relu" else SLOPE))
    elif activation != "none":
        dz = dz * (1 - y * y if activation == "tanh" else y * (1 - y))
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = gradients(stock_output(layer, *wide, "none"), wide, dz)
    window = (pair("stride", 1), pair("padding", 0), pair("dilation", 1), layer.window.get("groups", 1))
    output = output.detach().contiguous(memory_format=layout)
    arguments = (grad_output, output, x, weight, *window, layer.op == "conv_transpose2d", activation, SLOPE)
    return arguments, exact, stock


def assert_as_accurate(arguments: tuple, exact: tuple[Tensor, ...], stock: tuple[Tensor, ...]) -> None:
    actual = torch.ops.artkernels.conv_backward(*arguments, [True, True, True])
    eps = torch.finfo(arguments[0].dtype).eps
    for name, mine, true, theirs in zip(("input", "weight", "bias"), actual, exact, stock, strict=True):
        limit = max(2 * error(theirs, true), 1e-6, 2 * eps)
        assert error(mine, true) <= limit, f"{name}: {error(mine, true):.1e}, stock {error(theirs, true):.1e}"
        assert mine.dtype == (torch.float32 if name == "bias" else arguments[0].dtype)


@each_layer
@each_activation
@each_layout
@each_dtype
def test_as_accurate_as_stock(layer: Layer, activation: str, layout: torch.memory_format, dtype: torch.dtype) -> None:
    assert_as_accurate(*case(layer, activation, dtype, layout))


@pytest.mark.cpu_only  # CUDA has no kernel of its own for the weight's gradient
@pytest.mark.parametrize("layer", LARGE_LAYERS, ids=str)
@each_layout
def test_many_pixels_are_as_accurate_as_stock(layer: Layer, layout: torch.memory_format) -> None:
    assert_as_accurate(*case(layer, "leaky_relu", layout=layout))


@pytest.mark.cpu_only
@pytest.mark.parametrize("layer", [LAYERS[0], LARGE_LAYERS[0], LAYERS[6]], ids=str)
def test_the_same_on_any_number_of_threads(layer: Layer) -> None:
    arguments, exact, _ = case(layer, "tanh")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            once, again = (torch.ops.artkernels.conv_backward(*arguments, [True, True, True]) for _ in range(2))
            assert all(map(torch.equal, once, again)), "not deterministic"
            assert all(error(mine, true) < 2e-6 for mine, true in zip(once, exact, strict=True))
    finally:
        torch.set_num_threads(threads)


@each_layer
@pytest.mark.parametrize("activation", ["none", "tanh"])
@each_layout
def test_what_is_not_wanted_is_empty_and_changes_nothing(
    layer: Layer, activation: str, layout: torch.memory_format
) -> None:
    arguments, exact, _ = case(layer, activation, layout=layout)
    for wanted in range(8):
        mask = [bool(wanted & bit) for bit in (1, 2, 4)]
        actual = torch.ops.artkernels.conv_backward(*arguments, mask)
        for mine, true, is_wanted in zip(actual, exact, mask, strict=True):
            assert mine.shape == (true.shape if is_wanted else (0,))
            assert not is_wanted or error(mine, true) < 2e-6


def test_a_gradient_in_the_other_layout_than_the_output() -> None:
    arguments, exact, _ = case(LAYERS[0], "leaky_relu")
    other = arguments[0].contiguous(memory_format=torch.channels_last)
    for actual, true in zip(
        torch.ops.artkernels.conv_backward(other, *arguments[1:], [True, True, True]), exact, strict=True
    ):
        assert error(actual, true) < 1e-6


def test_an_expanded_gradient() -> None:
    arguments, _, _ = case(LAYERS[0], "none")
    ones = torch.ones(()).expand(arguments[0].shape)
    expanded, dense = (
        torch.ops.artkernels.conv_backward(g, *arguments[1:], [True, True, True]) for g in (ones, ones.contiguous())
    )
    assert all(map(torch.equal, expanded, dense))


def test_raw_op_matches_the_dispatcher() -> None:
    arguments, _, _ = case(LAYERS[0], "relu")
    mask = [True, True, True]
    both = _C.conv_backward(*arguments, mask), torch.ops.artkernels.conv_backward(*arguments, mask)
    assert all(map(torch.equal, *both))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("mask", [[True, True, True], [False, True, False]], ids=str)
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[6]], ids=str)
@each_layout
def test_opcheck(layer: Layer, layout: torch.memory_format, mask: list[bool]) -> None:
    (grad, output, x, weight, *rest), _, _ = case(layer, "leaky_relu", layout=layout)
    tensors = (grad.requires_grad_(), output, x.requires_grad_(), weight.requires_grad_())
    opcheck(torch.ops.artkernels.conv_backward, (*tensors, *rest, mask))


@each_layer
def test_an_empty_batch_has_a_zero_weight_gradient(layer: Layer) -> None:
    (grad, output, x, weight, *rest), _, _ = case(layer, "relu")
    empty = (grad[:0], output[:0], x[:0], weight, *rest)
    grad_input, grad_weight, grad_bias = torch.ops.artkernels.conv_backward(*empty, [True, True, True])
    assert grad_input.shape == x[:0].shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))
    assert torch.equal(grad_bias, torch.zeros(layer.K))


@pytest.mark.parametrize(
    ("output", "activation", "message"),
    [
        (None, "relu", "conv_backward: output must be [2, 33, 5, 6], got []"),
        (torch.zeros(2, 33, 5, 5), "tanh", "conv_backward: output must be [2, 33, 5, 6], got [2, 33, 5, 5]"),
        (None, "silu", "conv_backward: the output of silu does not tell its derivative"),
    ],
)
def test_bad_input_gets_one_sentence(output: Tensor | None, activation: str, message: str) -> None:
    (grad, _, *rest, _, slope), _, _ = case(LAYERS[0], "none")
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        torch.ops.artkernels.conv_backward(grad, output, *rest, activation, slope, [True, True, True])
    assert len(str(caught.value).splitlines()) == 1
