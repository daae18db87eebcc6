"""Properties of F.batch_norm_act, F.instance_norm_act, F.group_norm_act and F.adaptive_instance_norm.

Run on the CPU kernels and, emulated, on the CUDA kernels.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from artkernels import _C, reference
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from opcheck import opcheck

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
ACTIVATIONS = ["none", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"]
KINDS = ["batch", "evaluation", "instance", "group", "adaptive"]
RESIDUALS = [None, False, True]  # residual_after, or no residual
# [N, C, H, W]: small planes, no multiple of anything, one wide row, more channels than pixels, several blocks.
SHAPES = [(2, 4, 1, 2), (3, 6, 5, 7), (2, 34, 9, 11), (1, 2, 1, 129), (2, 130, 2, 3), (5, 16, 4, 4), (1, 6, 50, 61)]

ids = {"ids": str}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, **ids)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
each_kind = pytest.mark.parametrize("kind", KINDS)
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
each_residual = pytest.mark.parametrize("residual_after", RESIDUALS, ids=["alone", "before", "after"])


def features(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]):
    return (torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=layout)


def parameters(kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """weight and bias; adaptive: standard deviation and mean of the style."""
    size = shape[:2] if kind == "adaptive" else shape[1:2]
    return (torch.rand(size) + 0.5).to(dtype), torch.randn(size).to(dtype)


def norm(kind: str, library, x: Tensor, weight: Tensor, bias: Tensor, **options) -> Tensor:
    """One of the functions under test, or its reference."""
    C = x.shape[1]
    if kind == "batch":
        return library.batch_norm_act(x, None, None, weight, bias, True, **options)
    if kind == "evaluation":
        mean, var = torch.linspace(-1, 1, C).to(weight.dtype), torch.linspace(0.5, 2, C).to(weight.dtype)
        return library.batch_norm_act(x, mean, var, weight, bias, False, **options)
    if kind == "instance":
        return library.instance_norm_act(x, weight=weight, bias=bias, **options)
    if kind == "group":
        return library.group_norm_act(x, 2, weight, bias, **options)
    return library.adaptive_instance_norm(x, bias, weight, 0.75, **options)


def value_and_gradients(
    library, kind: str, tensors: list[Tensor | None], grad_output: Tensor, **options
) -> list[Tensor]:
    """The output, then the gradients of x, weight, bias and the residual if there is one."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    x, weight, bias, residual = leaves
    output = norm(kind, library, x, weight, bias, residual=residual, **options)
    return [output.detach(), *torch.autograd.grad(output, [t for t in leaves if t is not None], grad_output)]


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest error as a fraction of the largest value."""
    return ((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)).item()


def assert_as_accurate_as_stock(
    kind: str, tensors: list[Tensor | None], grad_output: Tensor, roundings: float = 4, **options
) -> None:
    """At most twice stock PyTorch's own error, or a few roundings where stock happens to be nearly exact.

    Stock runs on contiguous tensors: in channels_last some of its normalisations are less exact, or wrong.
    """
    ours = value_and_gradients(F, kind, tensors, grad_output, **options)
    contiguous = [None if t is None else t.contiguous() for t in tensors]
    stock = value_and_gradients(reference, kind, contiguous, grad_output.contiguous(), **options)
    double = [None if t is None else t.double() for t in contiguous]
    exact = value_and_gradients(reference, kind, double, grad_output.double(), **options)
    names = ["output", "grad x", "grad weight", "grad bias", "grad residual"]
    for name, mine, other, true in zip(names, ours, stock, exact, strict=False):
        limit = max(2 * error(other, true), roundings * torch.finfo(mine.dtype).eps / 2)
        assert error(mine, true) <= limit, f"{name}: {error(mine, true):.2e}, stock {error(other, true):.2e}"


# ---- values ----------------------------------------------------------------------------------------------------------


@each_shape
@each_layout
@each_dtype
@each_kind
def test_as_accurate_as_stock(
    kind: str, dtype: torch.dtype, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x, g = features(shape, dtype, layout), features(shape, dtype, layout)
    # Two values far apart or near each other: how a variance of two is rounded is magnified.
    few = shape == (2, 4, 1, 2)
    assert_as_accurate_as_stock(kind, [x, *parameters(kind, shape), None], g, 64 if few else 8, activation="tanh")


@each_residual
@each_layout
@each_activation
@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_every_activation_and_residual(
    kind: str, activation: str, layout: torch.memory_format, residual_after: bool | None
) -> None:
    shape = (3, 20, 6, 7)
    x, g, r = (features(shape, layout=layout) for _ in range(3))
    options = {} if residual_after is None else {"residual_after": residual_after}
    tensors = [x, *parameters(kind, shape), None if residual_after is None else r]
    assert_as_accurate_as_stock(kind, tensors, g, 8, activation=activation, negative_slope=0.2, **options)


@each_dtype
@each_activation
def test_activations_over_their_whole_range(activation: str, dtype: torch.dtype) -> None:
    """Without statistics of its own the op is the activation of an affine map; here of the identity."""
    z = torch.cat([torch.linspace(-30, 30, 2001), torch.linspace(-1, 1, 500), torch.tensor([-200.0, 200.0, 0.0])])
    x = z.to(dtype).view(1, 1, -1)
    statistics = torch.zeros(1, 1), torch.ones(1, 1)
    leaf = x.clone().requires_grad_()
    y = F.instance_norm_act(leaf, eps=0.0, activation=activation, negative_slope=0.2, statistics=statistics)
    (grad,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    exact = x.double().requires_grad_()
    true = reference.activate(exact, activation, 0.2)
    (true_grad,) = torch.autograd.grad(true, exact, torch.ones_like(true))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), true, rtol=4 * eps, atol=torch.finfo(torch.float32).eps)
    torch.testing.assert_close(grad.double(), true_grad, rtol=4 * eps, atol=4 * torch.finfo(torch.float32).eps)


@each_activation
def test_nan_is_not_hidden(activation: str) -> None:
    x = features((1, 3, 4, 4))
    x[0, 1, 2, 2] = torch.nan
    y = F.instance_norm_act(x, activation=activation)
    assert y[0, 1].isnan().all()
    assert y[0, [0, 2]].isfinite().all()


@each_layout
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "adaptive"])
def test_large_mean_and_small_variance(kind: str, layout: torch.memory_format) -> None:
    shape = (4, 8, 24, 24)
    x = (1e4 + 1e-3**0.5 * torch.randn(shape)).contiguous(memory_format=layout)
    g = features(shape, layout=layout)
    assert_as_accurate_as_stock(kind, [x, *parameters(kind, shape), None], g, 8, activation="leaky_relu")
    mean, var = F.feature_statistics(x)
    exact_mean, exact_var = reference.feature_statistics(x.double())
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0.0)


@each_layout
@each_dtype
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "adaptive"])
def test_constant_planes_become_the_bias(kind: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = torch.full((2, 6, 9, 10), 3.140625).to(dtype).contiguous(memory_format=layout)
    weight, bias = parameters(kind, x.shape)
    y = norm(kind, F, x, weight, bias)
    expected = bias.double() if kind != "adaptive" else 0.75 * bias.double() + 0.25 * 3.140625
    expected = expected.expand(2, 6)[..., None, None].expand(x.shape)
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_alpha_goes_from_the_content_to_the_style() -> None:
    x, style = features((2, 5, 8, 8)), 3 + 2 * features((2, 5, 6, 9))
    mean, var = F.feature_statistics(style, unbiased=True)
    std = (var + 1e-5).sqrt()
    torch.testing.assert_close(F.adaptive_instance_norm(x, mean, std, 0.0), x)
    stylized = F.adaptive_instance_norm(x, mean, std, 1.0)
    mean_now, var_now = F.feature_statistics(stylized, unbiased=True)
    torch.testing.assert_close(mean_now, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var_now.sqrt(), std, rtol=1e-4, atol=0.0)
    half = F.adaptive_instance_norm(x, mean[:, :, None, None], std[:, :, None, None], 0.5)
    torch.testing.assert_close(half, (x + stylized) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_adaptive_variance_is_unbiased_or_not(unbiased: bool) -> None:
    x, (std, mean) = features((2, 3, 2, 2)), parameters("adaptive", (2, 3))
    exact = reference.adaptive_instance_norm(x.double(), mean.double(), std.double(), unbiased=unbiased)
    torch.testing.assert_close(
        F.adaptive_instance_norm(x, mean, std, unbiased=unbiased).double(), exact, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("style", [(1, 4), (1, 4, 1, 1), (4,)])
def test_one_style_for_all_images(style: tuple[int, ...]) -> None:
    x, mean, std = features((3, 4, 5, 5)), torch.randn(style), torch.rand(style)
    each = [t.reshape(1, 4).expand(3, 4) for t in (mean, std)]
    assert torch.equal(F.adaptive_instance_norm(x, mean, std), F.adaptive_instance_norm(x, *each))


def test_a_style_for_each_image_as_weight_and_bias() -> None:
    x, weight, bias = features((3, 4, 5, 6)), torch.rand(3, 4), torch.randn(3, 4)
    for function in (F.instance_norm_act, partial(F.group_norm_act, num_groups=2)):
        y = function(x, weight=weight, bias=bias, activation="relu")
        each = [function(x[i : i + 1], weight=weight[i], bias=bias[i], activation="relu") for i in range(3)]
        torch.testing.assert_close(y, torch.cat(each))


# ---- statistics ------------------------------------------------------------------------------------------------------


@each_layout
def test_a_picture_can_be_normalised_tile_by_tile(layout: torch.memory_format) -> None:
    x = features((2, 6, 20, 30), layout=layout)
    weight, bias = parameters("instance", x.shape)
    whole = F.instance_norm_act(x, weight=weight, bias=bias, activation="relu")
    statistics = F.feature_statistics(x)
    tiles = [
        F.instance_norm_act(tile, weight=weight, bias=bias, activation="relu", statistics=statistics)
        for tile in x.split(7, dim=2)
    ]
    assert torch.equal(torch.cat(tiles, dim=2), whole)


@each_layout
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "adaptive"])
def test_statistics_of_its_own_given_from_outside_change_nothing(kind: str, layout: torch.memory_format) -> None:
    x, g = features((2, 6, 8, 9), layout=layout), features((2, 6, 8, 9), layout=layout)
    own: dict = {"batch": {"across_batch": True}, "group": {"groups": 2}, "adaptive": {"unbiased": True}}.get(kind, {})
    weight, bias = parameters(kind, x.shape)
    results = []
    for given in (False, True):
        leaf = x.clone().requires_grad_()
        options = {"statistics": F.feature_statistics(leaf, **own)} if given else {}
        y = norm(kind, F, leaf, weight, bias, activation="leaky_relu", **options)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    for fused, composed in zip(*results, strict=True):
        torch.testing.assert_close(composed, fused, rtol=1e-5, atol=1e-5)


@each_layout
def test_running_statistics_move_as_in_torch(layout: torch.memory_format) -> None:
    ours, stock = ([torch.zeros(6), torch.ones(6)] for _ in range(2))
    for momentum in (0.1, 1.0, 0.25):
        x = features((3, 6, 5, 4), layout=layout)
        F.batch_norm_act(x, *ours, training=True, momentum=momentum)
        torch_functional.batch_norm(x, *stock, training=True, momentum=momentum)
        torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6)
        F.instance_norm_act(x, *ours, momentum=momentum)
        torch_functional.instance_norm(x, *stock, momentum=momentum)
        torch.testing.assert_close(ours, stock, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        F.instance_norm_act(x, *ours, use_input_stats=False),
        torch_functional.instance_norm(x, *stock, use_input_stats=False),
    )


# ---- layouts, dtypes and sizes ---------------------------------------------------------------------------------------


def any_dimensions() -> dict[str, Tensor]:
    return {
        "N, C": features((7, 5)),
        "N, C, L": features((3, 4, 13)),
        "N, L, C seen as N, C, L": features((3, 13, 4)).transpose(1, 2),
        "N, C, D, H, W": features((2, 4, 3, 5, 6)),
        "channels_last_3d": features((2, 4, 3, 5, 6)).contiguous(memory_format=torch.channels_last_3d),
        "seven dimensions": features((2, 4, 1, 2, 3, 2, 2)),
    }


@pytest.mark.parametrize("name", any_dimensions())
def test_any_number_of_dimensions(name: str) -> None:
    x = any_dimensions()[name]
    for kind in ["batch"] if x.dim() == 2 else KINDS:
        weight, bias = parameters(kind, x.shape)
        leaf, double = x.detach().requires_grad_(), x.detach().double().contiguous().requires_grad_()
        y = norm(kind, F, leaf, weight, bias, activation="silu")
        exact = norm(kind, reference, double, weight.double(), bias.double(), activation="silu")
        torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
        assert y.stride() == x.stride()
        g = features(x.shape)
        (grad,), (exact_grad,) = torch.autograd.grad(y, leaf, g), torch.autograd.grad(exact, double, g.double())
        torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-4)
        assert grad.stride() == x.stride()


def non_contiguous() -> dict[str, Tensor]:
    x = features((2, 12, 16, 18))
    return {
        "sliced": x[:, 1:-1, 2:, 3:],
        "strided": x[:, ::2, ::3, ::2],
        "transposed": x.transpose(2, 3),
        "channels last, sliced": x.contiguous(memory_format=torch.channels_last)[:, 2:10, 1:],
        "expanded": x[:, :, :1, :].expand(2, 12, 5, 18),
        "unaligned": torch.randn(1 + 2 * 12 * 16)[1:].view(2, 12, 4, 4),
    }


@pytest.mark.parametrize("name", non_contiguous())
@each_kind
def test_any_strides(kind: str, name: str) -> None:
    x = non_contiguous()[name]
    tensors = [x, *parameters(kind, x.shape), non_contiguous()["sliced"].new_ones(()).expand(x.shape)]
    dense = [t.contiguous() for t in tensors]
    g = torch.ones(()).expand(x.shape)  # as sum().backward() sends it
    ours = value_and_gradients(F, kind, tensors, g, activation="tanh")
    for actual, expected in zip(
        ours, value_and_gradients(F, kind, dense, g.contiguous(), activation="tanh"), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_residual_and_gradient_of_another_layout() -> None:
    x, r, g = features((2, 6, 5, 4)), features((2, 6, 5, 4)), features((2, 6, 5, 4))
    weight, bias = parameters("instance", x.shape)
    expected = value_and_gradients(F, "instance", [x, weight, bias, r], g, activation="tanh")
    for layouts in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)):
        a, b, c = (t.contiguous(memory_format=LAYOUTS[i]) for t, i in zip((x, r, g), layouts, strict=True))
        actual = value_and_gradients(F, "instance", [a, weight, bias, b], c, activation="tanh")
        for mine, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@each_dtype
@each_kind
def test_result_has_the_layout_and_the_dtype_of_the_input(kind: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x = features((2, 6, 5, 4), dtype, layout).requires_grad_()
        for parameter_dtype in (torch.float32, dtype):
            weight, bias = (t.requires_grad_() for t in parameters(kind, x.shape, parameter_dtype))
            y = norm(kind, F, x, weight, bias, activation="relu")
            assert (y.dtype, y.stride()) == (x.dtype, x.stride())
            grads = torch.autograd.grad(y.float().sum(), (x, weight, bias))
            assert [g.dtype for g in grads] == [dtype, parameter_dtype, parameter_dtype]
            assert grads[0].stride() == x.stride()


def test_residual_of_another_dtype_promotes_as_in_torch() -> None:
    x, r = features((2, 4, 5, 5)), features((2, 4, 5, 5), torch.bfloat16)
    for a, b in ((x, r), (r, x)):
        y, stock = F.instance_norm_act(a, residual=b), reference.instance_norm_act(a, residual=b)
        assert y.dtype == stock.dtype == torch.float32
        torch.testing.assert_close(y, stock, rtol=1e-2, atol=1e-2)


@each_kind
def test_empty_batch(kind: str) -> None:
    x = torch.zeros((0, 4, 3, 3), requires_grad=True)
    weight, bias = (t.requires_grad_() for t in parameters(kind, x.shape))
    y = norm(kind, F, x, weight, bias, activation="relu")
    assert y.shape == x.shape
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert [g.shape for g in grads] == [x.shape, weight.shape, bias.shape]
    assert all(not g.any() for g in grads)


@pytest.mark.slow
@pytest.mark.cpu_only
def test_more_than_2_to_the_31_elements() -> None:
    size = 32776
    x = torch.zeros((1, 2, size, size), dtype=torch.bfloat16)
    x[0, 1, -1, -1] = 2.0
    mean, var = F.feature_statistics(x)
    torch.testing.assert_close(mean[0, 1].item(), 2.0 / size**2, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(var[0, 1].item(), 4.0 / size**2, rtol=1e-4, atol=0.0)
    y = F.instance_norm_act(x, statistics=(torch.zeros(1, 2), torch.ones(1, 2)), eps=0.0, activation="relu")
    assert y[0, 1, -1, -1] == 2.0
    assert y.count_nonzero() == 1


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize(
    ("kind", "activation", "residual_after", "layout"),
    # 5, 7 and 3 are coprime: each kind, activation and residual meets each of the others here. All three meet only in
    # the tests of accuracy, which compare first derivatives.
    [(KINDS[i % 5], ACTIVATIONS[i % 7], RESIDUALS[i % 3], LAYOUTS[i % 2]) for i in range(35)],
    **ids,
)
def test_gradients_and_gradients_of_gradients(
    kind: str, activation: str, residual_after: bool | None, layout: torch.memory_format
) -> None:
    shape = (2, 4, 1, 3)
    options = {"activation": activation, "negative_slope": 0.3, "residual_after": bool(residual_after)}
    tensors = [torch.randn(shape, dtype=torch.float64), *parameters(kind, shape, torch.float64)]
    if residual_after is not None:
        tensors.append(torch.randn(shape, dtype=torch.float64))

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None) -> Tensor:
        return norm(kind, F, x.contiguous(memory_format=layout), weight, bias, residual=residual, **options)

    inputs = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize("kind", ["batch", "instance", "group", "adaptive"])
def test_given_statistics_have_gradients(kind: str) -> None:
    shape = (2, 4, 2, 3)
    x = torch.randn(shape, dtype=torch.float64).requires_grad_()
    size = {"batch": (4,), "group": (2, 2)}.get(kind, (2, 4))
    mean, var = torch.randn(size, dtype=torch.float64), torch.rand(size, dtype=torch.float64) + 0.5
    weight, bias = parameters(kind, shape, torch.float64)
    inputs = tuple(t.requires_grad_() for t in (x, weight, bias, mean, var))

    def function(x, weight, bias, mean, var):
        return norm(kind, F, x, weight, bias, activation="tanh", statistics=(mean, var))

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("across_batch", [True, False])
def test_statistics_of_the_input_from_outside_differentiate_as_its_own(across_batch: bool) -> None:
    x, residual = features((3, 6, 5, 4)), features((3, 6, 5, 4))
    mean, var = F.feature_statistics(x, across_batch=across_batch)
    affine, results = parameters("batch", x.shape), []
    for given in ((None, None), (mean, var)):
        leaves = [t.clone().requires_grad_() for t in (x, *affine, residual)]
        arguments = (*leaves, *given, 6, across_batch, 1e-5, 1.0, 0.0, "tanh", 0.01, False, given[0] is not None)
        y = torch.ops.artkernels.norm_act(*arguments)[0]
        grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        results.append([y, *grads, *torch.autograd.grad(grads[0].square().sum(), [leaves[0], leaves[3]])])
    for own, composed in zip(*results, strict=True):
        torch.testing.assert_close(composed, own, rtol=1e-5, atol=1e-5)


@each_layout
@each_kind
def test_gradient_penalty_matches_stock(kind: str, layout: torch.memory_format) -> None:
    penalties = []
    x = features((2, 8, 6, 5), layout=layout)
    parameter = parameters(kind, x.shape)
    for library, dtype in [(F, torch.float32), (reference, torch.float64)]:
        leaf = x.to(dtype).contiguous(memory_format=layout if library is F else LAYOUTS[0]).requires_grad_()
        weight, bias = (t.to(dtype).requires_grad_() for t in parameter)
        y = norm(kind, library, leaf, weight, bias, activation="leaky_relu")
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        penalties.append([t.double() for t in torch.autograd.grad((grad.norm() - 1) ** 2, (leaf, weight, bias))])
    for actual, exact in zip(*penalties, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item())


@each_kind
def test_only_the_gradients_that_are_wanted(kind: str) -> None:
    shape = (3, 6, 5, 4)
    x, g, r = features(shape), features(shape), features(shape)
    tensors = [x, *parameters(kind, shape), r]
    everything = value_and_gradients(F, kind, tensors, g, activation="relu")[1:]
    for wanted in range(4):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        y = norm(kind, F, *leaves[:3], residual=leaves[3], activation="relu")
        (grad,) = torch.autograd.grad(y, leaves[wanted], g)
        torch.testing.assert_close(grad, everything[wanted], rtol=1e-5, atol=1e-6)


def test_nothing_is_kept_for_the_backward_but_the_input() -> None:
    kept: list[Tensor] = []
    x, r = (features((2, 6, 20, 20)).requires_grad_() for _ in range(2))
    weight, bias = (t.requires_grad_() for t in parameters("instance", x.shape))
    for activation in ACTIVATIONS:
        for residual, position in ((None, False), (r, True), (r, False)):
            kept.clear()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                F.instance_norm_act(
                    x, weight=weight, bias=bias, activation=activation, residual=residual, residual_after=position
                )
            allowed = [x.data_ptr()]
            if residual is not None and not position and activation != "none":
                allowed.append(r.data_ptr())
            maps = [t for t in kept if t.numel() == x.numel()]
            assert sorted(t.data_ptr() for t in maps) == sorted(allowed), activation
            assert sum(t.numel() for t in kept if t.numel() != x.numel()) <= 2 * 12 + 2 * 6


# ---- PyTorch's machinery ---------------------------------------------------------------------------------------------


def op_arguments(dtype: torch.dtype, layout: torch.memory_format, given: bool, requires_grad: bool = True) -> tuple:
    x, r = (features((2, 4, 3, 5), dtype, layout).requires_grad_(requires_grad) for _ in range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (t.requires_grad_(requires_grad) for t in parameters("instance", x.shape, wide))
    statistics = (torch.randn(2, 4, dtype=wide), torch.rand(2, 4, dtype=wide) + 0.5) if given else (None, None)
    return x, weight, bias, r, *statistics, 4, False, 1e-5, 1.0, 0.0, "tanh", 0.01, False


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], **ids)
def test_opcheck(dtype: torch.dtype, layout: torch.memory_format) -> None:
    ops = torch.ops.artkernels
    for given in (False, True):
        arguments = op_arguments(dtype, layout, given)
        opcheck(ops.norm_act, arguments)
        x, weight, bias, r, mean, var, *options, _ = arguments
        mean, var = (mean, var) if given else F.feature_statistics(x.detach())
        g = features((2, 4, 3, 5), dtype, layout).requires_grad_()
        for mask in ([True, True, True], [False, True, False], [True, False, False]):
            opcheck(ops.norm_act_backward, (g, x, weight, bias, r, mean, var, None, given, *options, mask))


def test_statistics_of_16_bits_compile() -> None:
    torch._dynamo.reset()
    x = features((2, 4, 3, 5)).requires_grad_()
    statistics = torch.zeros(2, 4).bfloat16().requires_grad_(), torch.ones(2, 4).bfloat16().requires_grad_()

    def function(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.instance_norm_act(x, activation="tanh", statistics=(mean, var))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x, *statistics).square().sum(), (x, *statistics)) for f in (compiled, function)]
    torch.testing.assert_close(*grads)


@each_kind
def test_compile_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    x, g = features((2, 6, 5, 7)).requires_grad_(), features((2, 6, 5, 7))
    weight, bias = (t.requires_grad_() for t in parameters(kind, x.shape))

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return norm(kind, F, x * 2, weight, bias, activation="silu", residual=x)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, weight, bias), function(x, weight, bias)
    torch.testing.assert_close(y, expected)
    for actual, eager in zip(
        torch.autograd.grad(y, (x, weight, bias), g), torch.autograd.grad(expected, (x, weight, bias), g), strict=True
    ):
        torch.testing.assert_close(actual, eager)


@pytest.mark.cpu_only
def test_compile_with_inductor_updates_running_statistics() -> None:
    torch._dynamo.reset()
    x = features((4, 6, 5, 7)).requires_grad_()

    def function(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        return F.batch_norm_act(x.relu(), mean, var, training=True, activation="gelu").sin()

    results = []
    for call in (torch.compile(function, fullgraph=True), function):
        mean, var = torch.zeros(6), torch.ones(6)
        y = call(x, mean, var)
        results.append((y.detach(), mean, var, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_export() -> None:
    class Norm(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return F.group_norm_act(x, 2, weight, activation="relu")

    x, weight = features((2, 4, 5, 5)), torch.rand(4)
    exported = torch.export.export(Norm(), (x, weight)).module()
    assert torch.equal(exported(x, weight), F.group_norm_act(x, 2, weight, activation="relu"))


def test_autocast_takes_the_dtype_that_comes() -> None:
    convolution, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.rand(2, 3, 8, 8)
    weight = torch.rand(8, requires_grad=True)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            hidden = convolution(x)
            y = F.batch_norm_act(hidden, None, None, weight, None, True, activation="relu")
            mixed = F.batch_norm_act(hidden, None, None, weight, None, True, residual=torch.rand(2, 8, 8, 8))
        assert (hidden.dtype, y.dtype, mixed.dtype) == (dtype, dtype, torch.float32)
        exact = reference.batch_norm_act(hidden.double(), None, None, weight.double(), None, True, activation="relu")
        torch.testing.assert_close(y.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
        grads = torch.autograd.grad(y.float().square().sum(), (convolution.weight, weight))
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in grads)


def test_inference_mode_and_no_grad() -> None:
    x = features((2, 4, 6, 6))
    expected = F.instance_norm_act(x, activation="relu")
    with torch.inference_mode():
        assert torch.equal(F.instance_norm_act(x, activation="relu"), expected)
    with torch.no_grad():
        assert F.instance_norm_act(x.clone().requires_grad_(), activation="relu").grad_fn is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
def test_forward_mode_is_refused() -> None:
    x = features((1, 4, 3, 3))
    for function in (F.instance_norm_act, lambda x: F.feature_statistics(x)[0]):
        with pytest.raises(RuntimeError, match=r"forward-mode|functorch transform"):
            torch.func.jvp(function, (x,), (x,))


@each_layout
def test_same_bits_every_time(layout: torch.memory_format) -> None:
    shape = (3, 18, 19, 23)
    for kind in KINDS:
        tensors = [features(shape, layout=layout), *parameters(kind, shape), None]
        g = features(shape, layout=layout)
        first = value_and_gradients(F, kind, tensors, g, activation="gelu")
        for _ in range(2):
            again = value_and_gradients(F, kind, tensors, g, activation="gelu")
            assert all(map(torch.equal, first, again))


@pytest.mark.cpu_only
@each_layout
@each_kind
def test_number_of_threads_does_not_matter(kind: str, layout: torch.memory_format) -> None:
    for shape in ((3, 10, 90, 80), (33, 6, 40, 8), (64, 64, 4, 4)):
        tensors = [features(shape, layout=layout), *parameters(kind, shape), None]
        g = torch.randn(shape)
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                results.append(value_and_gradients(F, kind, tensors, g, activation="leaky_relu"))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            for actual, expected in zip(result, results[0], strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_raw_functions_match_the_dispatcher() -> None:
    arguments = op_arguments(torch.float32, LAYOUTS[0], given=False, requires_grad=False)
    output, mean, var = _C.norm_act(*arguments)
    for actual, expected in zip((output, mean, var), torch.ops.artkernels.norm_act(*arguments), strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(_C.feature_statistics(arguments[0], 4, False, 0.0)[0], mean)
    x, weight, bias, r, _, _, *options, _ = arguments
    backward = (torch.ones_like(x), x, weight, bias, r, mean, var, None, False, *options, (True, True, True))
    for actual, expected in zip(
        _C.norm_act_backward(*backward), torch.ops.artkernels.norm_act_backward(*backward), strict=True
    ):
        assert torch.equal(actual, expected)


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: F.batch_norm_act(X[:1, :, :1, :1], None, None, training=True),
            "expected more than 1 value per channel",
        ),
        (lambda: F.instance_norm_act(X[:, :, :1, :1]), "expected more than 1 spatial element when training"),
        (lambda: F.group_norm_act(X[:1, :1, :1, :1], 1), "expected more than 1 value per group when training"),
        (lambda: F.batch_norm_act(X, None, None), "running_mean and running_var are needed when training=False"),
        (lambda: F.instance_norm_act(X, use_input_stats=False), "are needed when use_input_stats=False"),
        (lambda: F.group_norm_act(X, 3), "the number of groups must divide the 4 channels, got 3"),
        (lambda: F.group_norm_act(X, 0), "the number of groups must divide the 4 channels, got 0"),
        (
            lambda: F.instance_norm_act(X, activation="swish"),
            "activation must be none, relu, leaky_relu, tanh, sigmoid, silu or gelu, got swish",
        ),
        (lambda: F.instance_norm_act(X[0, 0, 0]), "input must be [N, C, ...], got 1 dimensions"),
        (lambda: F.instance_norm_act(X.int()), "input must be float32, float64, float16 or bfloat16"),
        (lambda: F.instance_norm_act(X, weight=torch.ones(3)), "weight must be [4] or [2, 4], got [3]"),
        (lambda: F.batch_norm_act(X, None, None, torch.ones(2, 4), training=True), "weight must be [4], got [2, 4]"),
        (lambda: F.instance_norm_act(X, bias=torch.ones(4, dtype=torch.int64)), "bias must be floating point"),
        (lambda: F.instance_norm_act(X, residual=X[:1]), "residual must have the input's shape [2, 4, 3, 3]"),
        (lambda: F.instance_norm_act(X, statistics=(torch.zeros(4), torch.ones(4))), "mean must be [2, 4], got [4]"),
        (
            lambda: F.feature_statistics(X, groups=2, across_batch=True),
            "statistics of the whole batch are one a channel",
        ),
        (
            lambda: F.adaptive_instance_norm(X, torch.zeros(3, 4), torch.ones(2, 4)),
            "style_mean must be [2, 4] or of one image for all, got [3, 4]",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=re.escape(message)) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
