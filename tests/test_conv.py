"""What F.conv2d_act has of its own (see test_conv_act.py), and the op conv2d_weight_grad."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from artkernels import _C
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import CONV_LAYERS, LAYOUTS, Layer, assert_refused, conv, each_dtype, each_layout, error, layers_of
from opcheck import opcheck

# ---- the gradient of the weight --------------------------------------------------------------------------------------


def weight_grad_arguments(layer: Layer, dtype: torch.dtype, layout: torch.memory_format) -> tuple:
    x, weight, *_, stride, padding, dilation, groups, _, _, _, _ = layer.op_arguments(dtype, layout)
    z = torch_functional.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
    grad_output = torch.randn(z.shape).to(dtype).contiguous(memory_format=layout)
    return x, grad_output, list(weight.shape[2:]), stride, padding, dilation, groups


@each_layout
@each_dtype
def test_weight_grad_is_as_accurate_as_stock(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for layer in layers_of("conv2d"):
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


def test_raw_weight_grad_matches_the_dispatcher() -> None:
    arguments = weight_grad_arguments(CONV_LAYERS[0], torch.float32, LAYOUTS[0])
    assert torch.equal(_C.conv2d_weight_grad(*arguments), torch.ops.artkernels.conv2d_weight_grad(*arguments))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck_of_weight_grad(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x, g, *rest = weight_grad_arguments(conv((2, 4, 5, 5), 6, 3, 2, 1, groups=2), dtype, layout)
    opcheck(torch.ops.artkernels.conv2d_weight_grad, (x.requires_grad_(), g.requires_grad_(), *rest))


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize("layer", [CONV_LAYERS[i] for i in (15, 16)], ids=str)
def test_weight_grad_has_derivatives(layer: Layer) -> None:
    x, g, *rest = weight_grad_arguments(layer, torch.float64, LAYOUTS[0])

    def function(x: Tensor, g: Tensor) -> Tensor:
        return torch.ops.artkernels.conv2d_weight_grad(x, g, *rest)

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), g.requires_grad_()))
    assert torch.autograd.gradgradcheck(function, (x, g))


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(6, 4, 3, 3)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (WEIGHT[0], {}, "weight must be [K, C / groups, H, W], got 3 dimensions"),
        (WEIGHT, {"bias": torch.zeros(4)}, "bias must be [6], got [4]"),
        (WEIGHT[:, :3], {}, "weight has 3 input channels, input has 4"),
        (WEIGHT, {"groups": 2}, "weight has 8 input channels, input has 4"),
        (WEIGHT[:, :1], {"groups": 4}, "the number of groups must divide the 6 output channels"),
        (torch.zeros(6, 4, 6, 3), {}, "input of 5 x 6 pixels is too small for a kernel of 6 x 3 and padding [0, 0]"),
        (WEIGHT, {"padding": "full"}, "padding must be numbers, same or valid, got full"),
        (WEIGHT, {"padding": "same", "stride": 2}, "padding='same' needs a stride of 1, got 2"),
        (WEIGHT, {"padding_mode": "circular"}, "padding_mode must be zeros or reflect, got circular"),
    ],
)
def test_bad_input_gets_one_sentence(weight: Tensor, options: dict, message: str) -> None:
    assert_refused("conv2d_act", (X, weight), options, message)


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
