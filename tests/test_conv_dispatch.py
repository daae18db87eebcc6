"""The convolutions in PyTorch's machinery: derivatives, compile, export, autocast, layouts, weights that change."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from conv_layers import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    Function,
    Layer,
    conv,
    conv_transpose,
    each_layout,
    each_norm,
    value_and_gradients,
)

LAYERS = [conv_transpose((2, 24, 5, 7), 16, 4, 2, 1), conv((2, 18, 8, 7), 12, 3, 1, 1, padding_mode="reflect")]
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=["conv_transpose2d", "conv2d"])
# For derivatives in float64 by finite differences: as small as they come.
TINY = [
    conv_transpose((2, 2, 2, 3), 2, 4, 2, 1),
    conv_transpose((1, 2, 3, 2), 2, 3, 2, 1, output_padding=1),
    conv_transpose((1, 4, 2, 2), 2, 3, 3, 1, output_padding=2, groups=2),
    conv_transpose((1, 2, 2, 3), 1, 2, 1, 1, output_padding=2, dilation=3),
    conv_transpose((1, 1, 2, 2), 2, (2, 1), (1, 2), (1, 0), output_padding=(0, 1), dilation=(2, 1)),
    conv((2, 2, 4, 3), 2, 3, 1, 1),
    conv((1, 2, 5, 4), 2, 3, 3, 1),
    conv((1, 2, 3, 4), 2, 3, 2, 2, padding_mode="reflect"),
    conv((1, 4, 3, 3), 2, 2, 1, 0, groups=2, dilation=2),
    conv((1, 1, 3, 4), 2, (2, 3), 1, "same", dilation=(1, 2)),
]


def tensors_of(layer: Layer, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [layer.input(dtype), layer.weight(dtype), layer.bias(dtype)]


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("layer", "activation"),
    [(layer, ACTIVATIONS[i % 7]) for i, layer in enumerate([*TINY, *TINY[5:7]])] + [(TINY[1], "leaky_relu")],
    ids=str,
)
def test_gradients_and_gradients_of_gradients(layer: Layer, activation: str) -> None:
    for layout in LAYOUTS:

        def function(x: Tensor, weight: Tensor, bias: Tensor, layout=layout) -> Tensor:
            x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
            return layer.act(activation=activation, negative_slope=-0.3)[0](x, weight, bias)

        inputs = tuple(t.requires_grad_() for t in tensors_of(layer, torch.float64))
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.cpu_only  # float64 runs no kernel
@each_norm
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", [TINY[1], TINY[7]], ids=str)
def test_gradients_through_the_normalisation(layer: Layer, training: bool, norm: str) -> None:
    state = {name: t.double() for name, t in layer.running().items()}

    def function(*tensors: Tensor) -> Tensor:
        own = {name: t.clone() for name, t in state.items()}
        return layer.norm_act(norm=norm, training=training, activation="tanh", **own)[0](*tensors)

    tensors = [*tensors_of(layer, torch.float64), *layer.affine(torch.float64)]
    inputs = tuple(t.requires_grad_() for t in tensors)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@each_layer
@each_norm
def test_gradient_penalty_matches_stock(layer: Layer, norm: str) -> None:
    tensors, penalties = [layer.input(), layer.weight(), None, *layer.affine()], []
    for i, dtype in enumerate([torch.float32, torch.float64]):
        function = layer.norm_act(norm=norm, training=True, activation="leaky_relu")[i]
        leaves = [None if t is None else t.to(dtype).requires_grad_() for t in tensors]
        (grad,) = torch.autograd.grad(function(*leaves).square().sum(), leaves[0], create_graph=True)
        wanted = [leaves[0], leaves[1], leaves[3]]
        penalties.append([t.double() for t in torch.autograd.grad((grad.norm() - 1) ** 2, wanted)])
    for actual, exact in zip(*penalties, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-3, atol=1e-3 * exact.abs().max().item())


@each_layer
def test_only_the_gradients_that_are_wanted(layer: Layer) -> None:
    tensors, (ours, _) = tensors_of(layer), layer.act(activation="relu")
    everything = value_and_gradients(ours, tensors)[1:]
    for wanted in range(3):
        leaves = [t.clone().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        (grad,) = torch.autograd.grad(ours(*leaves).sum(), leaves[wanted])
        torch.testing.assert_close(grad, everything[wanted])


def test_what_is_kept_for_the_backward() -> None:
    layer = LAYERS[0]
    x, weight, bias = (t.requires_grad_() for t in tensors_of(layer))
    for activation in ("none", "relu", "leaky_relu", "tanh", "sigmoid"):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = layer.act(activation=activation)[0](x, weight, bias)
        allowed = {x.data_ptr(), weight.data_ptr(), *([] if activation == "none" else [y.data_ptr()])}
        assert {t.data_ptr() for t in kept} == allowed, activation


@each_layer
def test_a_bias_of_float32_on_16_bits(layer: Layer) -> None:
    x, weight, bias = layer.input(torch.bfloat16), layer.weight(torch.bfloat16), layer.bias().requires_grad_()
    ours, stock = layer.act(activation="relu")
    y = ours(x, weight, bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), stock(x.double(), weight.double(), bias.double()), rtol=1e-2, atol=1e-2)
    assert torch.autograd.grad(y.sum(), bias)[0].dtype == torch.float32


# ---- layouts ---------------------------------------------------------------------------------------------------------


@each_layer
def test_channels_last_where_the_input_or_the_weight_is(layer: Layer) -> None:
    for x_layout in LAYOUTS:
        for weight_layout in LAYOUTS:
            x, weight = layer.input(layout=x_layout), layer.weight(layout=weight_layout)
            y, stock = (f(x, weight) for f in layer.act())
            last = torch.channels_last in (x_layout, weight_layout)
            assert y.is_contiguous(memory_format=LAYOUTS[last])
            torch.testing.assert_close(y, stock, rtol=1e-4, atol=1e-5)
            assert layer.norm_act(**layer.running())[0](x, weight).stride() == y.stride()


def non_contiguous() -> dict[str, Tensor]:
    x = torch.randn(2, 12, 9, 10)
    return {
        "sliced": x[:, 1:-1, 2:, 3:],
        "strided": x[:, ::2, ::3, ::2],
        "transposed": x.transpose(2, 3),
        "channels last, sliced": x.contiguous(memory_format=torch.channels_last)[:, 2:10, 1:],
        "expanded": x[:, :, :1, :].expand(2, 12, 5, 10),
        "unaligned": torch.randn(1 + 2 * 12 * 16)[1:].view(2, 12, 4, 4),
    }


@pytest.mark.parametrize("name", non_contiguous())
@each_layer
def test_any_strides(layer: Layer, name: str) -> None:
    x = non_contiguous()[name]
    layer = layer._replace(shape=tuple(x.shape))
    weight = layer.weight().transpose(0, 1).contiguous().transpose(0, 1)
    ours, _ = layer.act(activation="relu")
    g = torch.ones(()).expand(ours(x, weight).shape)  # as sum().backward() sends it
    actual = value_and_gradients(ours, [x, weight], g)
    expected = value_and_gradients(ours, [x.contiguous(), weight.contiguous()], g.contiguous())
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


# ---- weights that change ---------------------------------------------------------------------------------------------


def in_place(weight: Tensor) -> None:
    weight.mul_(2)


def through_data(weight: Tensor) -> None:
    weight.data.add_(1)  # which leaves the version counter alone


def new_data(weight: Tensor) -> None:
    weight.data = torch.randn_like(weight)


def through_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[...] *= -1


def optimizer_step(weight: Tensor) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.Adam([weight], lr=0.1).step()


@each_layer
@each_layout
@pytest.mark.parametrize("change", [in_place, through_data, new_data, through_numpy, optimizer_step])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_changed_weight_gives_fresh_results(
    mode: Callable, change: Callable, layout: torch.memory_format, layer: Layer
) -> None:
    x, weight, state = layer.input(layout=layout), torch.nn.Parameter(layer.weight(layout=layout)), layer.running()
    for _ in range(3):
        with mode():
            for ours, stock in (layer.act(activation="relu"), layer.norm_act(**state)):
                for _ in range(2):  # the second time from what the first one may have kept
                    torch.testing.assert_close(ours(x, weight), stock(x, weight), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            change(weight)
            state["running_mean"].add_(1)
            state["running_var"].mul_(2)


@each_layer
def test_the_memory_of_a_weight_that_is_gone_may_hold_another(layer: Layer) -> None:
    x, (ours, stock) = layer.input(), layer.act()
    with torch.no_grad():
        for _ in range(10):  # an allocator hands the same address out again
            weight = layer.weight()
            torch.testing.assert_close(ours(x, weight), stock(x, weight), rtol=1e-4, atol=1e-5)
            del weight


# ---- PyTorch's machinery ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layer
@each_layout
@pytest.mark.parametrize(
    ("dtype", "statistics"),
    [*zip(DTYPES, ["batch", "none", "instance"], strict=True), (torch.float64, "none")],
    ids=str,
)
def test_opcheck(dtype: torch.dtype, statistics: str, layout: torch.memory_format, layer: Layer) -> None:
    op = getattr(torch.ops.artkernels, f"{layer.op}_act")
    if layer.op == "conv2d" and layout == torch.channels_last:
        # Of fewer pixels, training and inference run different kernels, which round differently: the traced op seems
        # to be wrong.
        layer = conv((2, 18, 13, 12), 12, 3, 1, 1, padding_mode="reflect")
    x, weight, bias, *rest = layer.op_arguments(dtype, layout, statistics)
    torch.library.opcheck(op, (*(t.requires_grad_() for t in (x, weight, bias)), *rest))
    scaled = layer.op_arguments(dtype, layout, statistics, scaled=True)
    torch.library.opcheck(op, scaled, test_utils=("test_schema", "test_faketensor"))


@each_layer
def test_opcheck_where_a_size_is_1(layer: Layer) -> None:
    op = getattr(torch.ops.artkernels, f"{layer.op}_act")
    for one in (conv_transpose((2, 4, 3, 5), 1, 4, 2, 1), conv_transpose((2, 1, 1, 1), 3, 1), conv((2, 3, 3, 4), 1, 3)):
        for layout in LAYOUTS if one.op == layer.op else []:
            torch.library.opcheck(op, one.op_arguments(torch.float32, layout), test_utils="test_faketensor")


def assert_compiles(function: Function, tensors: list[Tensor]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    eager = value_and_gradients(function, tensors)
    for actual, expected in zip(value_and_gradients(compiled, tensors), eager, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*tensors), eager[0], rtol=1e-4, atol=1e-4)


@each_layer
@pytest.mark.parametrize("activation", ["tanh", "silu"])
def test_compile_in_one_graph(layer: Layer, activation: str) -> None:
    ours, _ = layer.act(activation=activation)
    assert_compiles(lambda x, weight, bias: ours(x * 2, weight, bias) + 1, tensors_of(layer))


@each_layer
@pytest.mark.parametrize("options", [{}, {"training": True}, {"training": True, "norm": "instance"}], ids=str)
def test_compile_with_a_normalisation_in_one_graph(layer: Layer, options: dict) -> None:
    ours, _ = layer.norm_act(activation="relu", **options, **({} if options else layer.running()))
    assert_compiles(lambda x, weight, bias: ours(x * 2, weight, bias) + 1, tensors_of(layer))


@each_layer
def test_compile_with_sizes_that_vary(layer: Layer) -> None:
    torch._dynamo.reset()
    function = layer.norm_act(activation="relu", training=True)[0]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    for H, W in ((5, 4), (6, 9), (7, 3)):
        tensors = [torch.randn(2, layer.shape[1], H, W), *tensors_of(layer)[1:]]
        for actual, expected in zip(*(value_and_gradients(f, tensors) for f in (compiled, function)), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.cpu_only
@each_layer
def test_compile_with_inductor_updates_running_statistics(layer: Layer) -> None:
    torch._dynamo.reset()

    def function(x: Tensor, weight: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        options = {"running_mean": mean, "running_var": var, "training": True, "activation": "relu"}
        return layer.norm_act(**options)[0](x.relu(), weight).sin()

    tensors, results = tensors_of(layer)[:2], []
    for call in (torch.compile(function, fullgraph=True), function):
        state = [torch.zeros(layer.K), torch.ones(layer.K)]
        results.append([*value_and_gradients(lambda *t, c=call, s=state: c(*t, *s), tensors), *state])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@each_layer
def test_export(layer: Layer) -> None:
    function = layer.norm_act(activation="relu", **layer.running())[0]

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return function(x, weight)

    x, weight = layer.input(), layer.weight()
    exported = torch.export.export(Module(), (x, weight)).module()
    assert torch.equal(exported(x, weight), function(x, weight))


@each_layer
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_autocast_as_torch_s_convolutions(dtype: torch.dtype, layer: Layer) -> None:
    ours, stock = layer.act(activation="relu")
    leaves = [t.requires_grad_() for t in tensors_of(layer)]
    with torch.autocast("cpu", dtype=dtype):
        y, expected = ours(*leaves), stock(*leaves)
        trained = layer.norm_act(training=True)[0](*leaves)
        assert ours(*(t.detach().double() for t in leaves)).dtype == torch.float64
        with torch.no_grad():
            folded = layer.norm_act(**layer.running())[0](*leaves)
        inside = torch.autograd.grad(ours(*leaves).float().square().sum(), leaves)
    assert y.dtype == expected.dtype == trained.dtype == folded.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y, expected, rtol=4 * eps, atol=4 * eps)
    outside = torch.autograd.grad(y.float().square().sum(), leaves)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in outside)
    assert all(map(torch.equal, inside, outside))


@each_layer
def test_a_backward_inside_autocast_keeps_the_dtypes_of_the_forward(layer: Layer) -> None:
    leaves = [t.requires_grad_() for t in tensors_of(layer)]
    y = layer.act()[0](*leaves)
    expected = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, torch.autograd.grad(y.sum(), leaves), expected))


@each_layer
def test_inference_mode_and_no_grad(layer: Layer) -> None:
    (ours, _), x, weight = layer.act(activation="relu"), layer.input(), layer.weight()
    expected = ours(x, weight)
    with torch.inference_mode():
        assert torch.equal(ours(x, weight), expected)
    with torch.no_grad():
        assert ours(x.clone().requires_grad_(), weight).grad_fn is None


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
@each_layer
def test_functorch_s_derivatives_are_refused(layer: Layer) -> None:
    x, weight = layer.input(), layer.weight()
    for function in (layer.act()[0], layer.norm_act(**layer.running())[0]):
        with pytest.raises(RuntimeError, match=r"functorch transform|has no derivative where scale"):
            torch.func.jvp(lambda x, f=function: f(x, weight), (x,), (x,))
        with pytest.raises(RuntimeError, match=r"functorch transform"):
            torch.func.grad(lambda x, f=function: f(x, weight).sum())(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"forward|jvp"):
        layer.act()[0](torch.autograd.forward_ad.make_dual(x, x), weight)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented the batching rule")
@each_layer
def test_vmap_is_right(layer: Layer) -> None:
    x, weight, (ours, _) = torch.randn(3, *layer.shape), layer.weight(), layer.act(activation="relu")
    expected = torch.stack([ours(each, weight) for each in x])
    torch.testing.assert_close(torch.func.vmap(lambda x: ours(x, weight))(x), expected)


@each_layer
@each_layout
def test_same_bits_every_time(layout: torch.memory_format, layer: Layer) -> None:
    tensors = [layer.input(layout=layout), layer.weight(), None, *layer.affine()]
    function = layer.norm_act(training=True, activation="gelu")[0]
    first = value_and_gradients(function, tensors)
    for _ in range(2):
        assert all(map(torch.equal, first, value_and_gradients(function, tensors)))


@pytest.mark.cpu_only
@each_layout
def test_number_of_threads_does_not_matter(layout: torch.memory_format) -> None:
    for layer in (conv_transpose((3, 32, 16, 16), 24, 4, 2, 1), conv((2, 48, 12, 9), 30, 3, 1, 1)):
        tensors = [layer.input(layout=layout), layer.weight(), None, *layer.affine()]
        function = layer.norm_act(training=True, activation="leaky_relu")[0]
        before, results = torch.get_num_threads(), []
        try:
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                results.append(value_and_gradients(function, tensors))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            for actual, expected in zip(result, results[0], strict=True):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)
