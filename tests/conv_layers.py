"""What the tests of conv2d and of conv_transpose2d share: a layer with its reference, and how exact is exact enough."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from artkernels import functional, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"]
NORMS = ["batch", "instance"]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_norm = pytest.mark.parametrize("norm", NORMS)

Function = Callable[..., Tensor]
Size = int | tuple[int, int]


class Layer(NamedTuple):
    """Its operation, its input [N, C, H, W], its channels out, its kernel, and how that walks."""

    op: str
    shape: tuple[int, ...]
    K: int
    kernel: tuple[int, int]
    window: dict[str, Any]

    def __str__(self) -> str:
        words = [f"{name[0]}{value}" for name, value in self.window.items()]
        return "-".join([self.op, "x".join(map(str, self.shape)), str(self.K), "k{}x{}".format(*self.kernel), *words])

    def input(self, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
        return torch.randn(self.shape).to(dtype).contiguous(memory_format=layout)

    def weight(self, dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
        C, groups = self.shape[1], self.window.get("groups", 1)
        outer, inner = (C, self.K) if self.op == "conv_transpose2d" else (self.K, C)
        weight = torch.randn(outer, inner // groups, *self.kernel) / C**0.5
        return weight.to(dtype).contiguous(memory_format=layout)

    def bias(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.K).to(dtype)

    def affine(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [(torch.rand(self.K) + 0.5).to(dtype), torch.randn(self.K).to(dtype)]

    def running(self) -> dict[str, Tensor]:
        return {"running_mean": torch.randn(self.K), "running_var": torch.rand(self.K) + 0.5}

    def act(self, **options: Any) -> tuple[Function, Function]:
        """The function under test and its reference, of (input, weight, bias)."""

        def call(library: Any) -> Function:
            function = getattr(library, f"{self.op}_act")
            return lambda x, weight, bias=None: function(x, weight, bias, **self.window, **options)

        return call(functional), call(reference)

    def norm_act(self, **options: Any) -> tuple[Function, Function]:
        """The same, of (input, weight, bias, norm_weight, norm_bias, residual)."""

        def call(library: Any) -> Function:
            def function(x, weight, bias=None, norm_weight=None, norm_bias=None, residual=None) -> Tensor:
                own = dict(options)
                if x.dtype == torch.float64:  # with which torch's batch norm takes no statistics of float32
                    own |= {name: t.double() for name, t in options.items() if isinstance(t, Tensor)}
                more = {"norm_weight": norm_weight, "norm_bias": norm_bias, "residual": residual}
                return getattr(library, f"{self.op}_norm_act")(x, weight, bias, **self.window, **more, **own)

            return function

        return call(functional), call(reference)

    def op_arguments(
        self,
        dtype: torch.dtype = torch.float32,
        layout: torch.memory_format = LAYOUTS[0],
        statistics: str = "none",
        *,
        scaled: bool = False,
    ) -> tuple[Any, ...]:
        """Of torch.ops.artkernels' op."""

        def pair(name: str, default: int) -> list[int]:
            value = self.window.get(name, default)
            return [value, value] if isinstance(value, int) else list(value)

        wide = torch.promote_types(dtype, torch.float32)
        scale = torch.rand(self.K, dtype=wide) if scaled else None
        tensors = self.input(dtype, layout), self.weight(dtype), self.bias(wide), scale
        stride, padding, dilation = pair("stride", 1), pair("padding", 0), pair("dilation", 1)
        groups, activation = self.window.get("groups", 1), "relu" if statistics == "none" else "none"
        end = (activation, 0.01, statistics)
        if self.op == "conv_transpose2d":
            return *tensors, stride, padding, pair("output_padding", 0), groups, dilation, *end
        return *tensors, stride, padding, dilation, groups, self.window.get("padding_mode") == "reflect", *end


def _layer(op: str, shape: tuple[int, ...], K: int, kernel: Size, window: dict[str, Any]) -> Layer:
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    return Layer(op, shape, K, kernel, {name: value for name, value in window.items() if value is not None})


def conv_transpose(shape: tuple[int, ...], K: int, kernel: Size, stride: Size = 1, padding: Size = 0, **more) -> Layer:
    return _layer("conv_transpose2d", shape, K, kernel, {"stride": stride, "padding": padding, **more})


def conv(shape: tuple[int, ...], K: int, kernel: Size, stride: Size = 1, padding: Size | str = 0, **more) -> Layer:
    return _layer("conv2d", shape, K, kernel, {"stride": stride, "padding": padding, **more})


CONV_LAYERS = [
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

CONV_TRANSPOSE_LAYERS = [
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


def layers_of(op: str) -> list[Layer]:
    """Those that the op itself takes: paddings by name are resolved before it."""
    layers = CONV_LAYERS if op == "conv2d" else CONV_TRANSPOSE_LAYERS
    return [layer for layer in layers if not isinstance(layer.window["padding"], str)]


def value_and_gradients(
    function: Function, tensors: list[Tensor | None], grad_output: Tensor | None = None
) -> list[Tensor]:
    """The output, then the gradients of the tensors that are there, for grad_output or for ones."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
    output = function(*leaves)
    g = torch.ones_like(output) if grad_output is None else grad_output.to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [t for t in leaves if t is not None], g)]


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest error as a fraction of the largest value."""
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


def assert_as_accurate_as_stock(
    ours: Function,
    stock: Function,
    tensors: list[Tensor | None],
    grad_output: Tensor | None = None,
    roundings: float = 4,
) -> None:
    """At most twice stock PyTorch's own error, or a few roundings (1e-6: those of a sum) where stock is nearly exact.

    Stock runs on contiguous tensors: in channels_last some of its normalisations are less exact, or wrong.
    """
    contiguous = [None if t is None else t.contiguous() for t in tensors]
    g = None if grad_output is None else grad_output.contiguous()
    exact = value_and_gradients(stock, [None if t is None else t.double() for t in contiguous], g)
    actual, other = value_and_gradients(ours, tensors, grad_output), value_and_gradients(stock, contiguous, g)
    for i, (mine, theirs, true) in enumerate(zip(actual, other, exact, strict=True)):
        limit = max(1e-6, roundings * torch.finfo(tensors[0].dtype).eps / 2, 2 * error(theirs, true))
        assert error(mine, true) <= limit, f"{i}: {error(mine, true):.2e}, stock {error(theirs, true):.2e}"
        assert mine.dtype == theirs.dtype


def assert_refused(function: str, arguments: tuple, options: dict[str, Any], message: str) -> None:
    """With one sentence that begins with the function's name, with autograd and without."""
    x, *rest = arguments
    for requires_grad in (False, True) if x.is_floating_point() else (False,):
        with pytest.raises((RuntimeError, ValueError), match=re.escape(f"{function}: {message}")) as caught:
            getattr(functional, function)(x.clone().requires_grad_(requires_grad), *rest, **options)
        assert len(str(caught.value).splitlines()) == 1
