"""What F.conv_transpose2d_act has of its own (see test_conv_act.py). Run on the CPU and the emulated CUDA kernels."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import assert_as_accurate_as_stock, assert_refused, conv_transpose, each_activation, each_dtype


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


# ---- bad input -------------------------------------------------------------------------------------------------------

X, WEIGHT = torch.zeros(2, 4, 3, 3), torch.zeros(4, 6, 3, 3)


@pytest.mark.parametrize(
    ("weight", "options", "message"),
    [
        (WEIGHT[0], {}, "weight must be [C, K / groups, H, W], got 3 dimensions"),
        (WEIGHT, {"bias": torch.zeros(4)}, "bias must be [6], got [4]"),
        (WEIGHT[:3], {}, "weight has 3 input channels, input has 4"),
        (WEIGHT, {"groups": 3}, "the number of groups must divide the 4 input channels"),
        (WEIGHT, {"groups": 0}, "the number of groups must divide the 4 input channels"),
        (WEIGHT, {"stride": 2, "output_padding": 2}, "output_padding must be smaller than stride or dilation"),
        (WEIGHT, {"padding": 3}, "input of 3 x 3 pixels is too small for a kernel of 3 x 3 and padding [3, 3]"),
    ],
)
def test_bad_input_gets_one_sentence(weight: torch.Tensor, options: dict, message: str) -> None:
    assert_refused("conv_transpose2d_act", (X, weight), options, message)


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
