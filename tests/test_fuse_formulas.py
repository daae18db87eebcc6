"""Gram matrices and adaptive instance norm written by hand are found in traced code, and only where they are those."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artkernels import explain, fuse

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import assert_close, compiled_ops, fused_ops, graph_of
from public_formulas import adaptive_instance_normalization, gram_of_pytorch_examples, gram_of_the_tutorial

pytestmark = pytest.mark.cpu_only


class Calls(nn.Module):
    """A function in a forward."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function


class OfOne(Calls):
    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class OfTwo(Calls):
    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.function(content, style)


# ---- the same formulas, otherwise written ----------------------------------------------------------------------------


def gram_by_operators(x: Tensor) -> Tensor:
    features = x.flatten(2)
    return features @ features.mT / (x.shape[-2] * x.shape[-1])


def gram_by_functions(x: Tensor) -> Tensor:
    n, c = x.shape[:2]
    features = x.reshape((n, c, -1))
    return torch.div(torch.matmul(features, torch.permute(features, (0, 2, 1))), x.size(0) * c * x.size(2) * x.size(3))


def gram_undivided(x: Tensor) -> Tensor:
    features = torch.flatten(x, start_dim=2)
    return torch.bmm(features, features.transpose(-1, -2))


def gram_divided_by_pixels_less_one(x: Tensor) -> Tensor:
    features = x.flatten(2)
    return torch.bmm(features, features.mT) / (features.size(2) - 1)


def gram_of_the_batch_undivided(x: Tensor) -> Tensor:
    a, b, c, d = x.shape
    features = x.reshape(a * b, c * d)
    return features @ features.T


def adain_of_kept_dimensions(content: Tensor, style: Tensor) -> Tensor:
    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3), keepdim=True), torch.sqrt(x.var(dim=[2, 3], keepdim=True) + 1e-4)

    mean, std = statistics(content)
    style_mean, style_std = statistics(style)
    return style_mean + style_std * ((content - mean) / std)


GRAMS = [
    gram_of_pytorch_examples,
    gram_of_the_tutorial,
    gram_by_operators,
    gram_by_functions,
    gram_undivided,
    gram_divided_by_pixels_less_one,
    gram_of_the_batch_undivided,
]
ADAINS = [adaptive_instance_normalization, adain_of_kept_dimensions]


def maps(N: int = 2, C: int = 5, H: int = 6, W: int = 7) -> Tensor:
    return torch.randn(N, C, H, W) + 1


def assert_alike(stock: nn.Module, fused: nn.Module, *inputs: Tensor) -> None:
    """Outputs and gradients."""
    outputs, gradients = [], []
    for model in (stock, fused):
        leaves = [x.clone().requires_grad_() for x in inputs]
        outputs.append(model(*leaves))
        (outputs[-1] * torch.arange(outputs[-1].numel()).reshape(outputs[-1].shape).cos()).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    assert_close(outputs[1], outputs[0], "output")
    for theirs, ours in zip(*gradients, strict=True):
        assert_close(ours, theirs, "gradient")


@pytest.mark.parametrize("function", GRAMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_gram_matrix_is_one_operation_with_the_same_numbers(function: Callable[[Tensor], Tensor], batch: int) -> None:
    model = OfOne(function)
    fused = fuse(model)
    assert fused_ops(fused, maps(batch)) == ["gram_matrix"]
    for dtype in (torch.float32, torch.float64):
        assert_alike(model, fused, maps(batch).to(dtype))


@pytest.mark.parametrize("function", ADAINS)
def test_adaptive_instance_norm_is_one_operation_with_the_same_numbers(function: Callable[..., Tensor]) -> None:
    model = OfTwo(function)
    fused = fuse(model)
    content, style = maps(), maps(2, 5, 3, 4) * 2 + 1
    assert fused_ops(fused, content, style) == ["feature_statistics", "norm_act"]
    for dtype in (torch.float32, torch.float64):
        assert_alike(model, fused, content.to(dtype), style.to(dtype))


def test_a_formula_between_layers_leaves_their_chains() -> None:
    class Stylizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            self.decoder = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(4, 3, 3), nn.Tanh())

        def forward(self, content: Tensor, style: Tensor) -> Tensor:
            styled = adaptive_instance_normalization(self.encoder(content), self.encoder(style))
            return gram_of_pytorch_examples(self.decoder(styled))

    model = Stylizes()
    fused = fuse(model)
    names = [call.__name__ for call in graph_of(fused).chains]
    assert names == ["conv2d_act", "conv2d_act", "adaptive_instance_norm", "conv2d_act", "gram_matrix"]
    assert_alike(model, fused, maps(2, 3, 8, 8), maps(2, 3, 9, 7))
    rows = {row.op: row for row in explain(fused.eval(), maps(2, 3, 8, 8), maps(2, 3, 9, 7)).rows}
    assert rows["gram_matrix"].layers == ("bmm", "div")
    assert rows["gram_matrix"].why == "half of a symmetric product, scaled as it is written"
    assert rows["adaptive_instance_norm"].layers == ("var", "add", "sqrt", "mean", "sub", "div", "mul")
    assert all(row.kernel == "ours" for op, row in rows.items() if op in ("gram_matrix", "adaptive_instance_norm"))


# ---- what is not those formulas --------------------------------------------------------------------------------------


def _adain(std: Callable[[Tensor], Tensor], mean: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda content, style: (content - mean(content)) / std(content) * std(style) + mean(style)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _std(x: Tensor) -> Tensor:
    return (x.var((2, 3), keepdim=True) + 1e-5).sqrt()


NOT_ADAIN: dict[str, Callable[..., Tensor]] = {
    "biased variance": _adain(lambda x: (x.var((2, 3), False, True) + 1e-5).sqrt(), _mean),
    "biased variance, as a correction": _adain(
        lambda x: (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt(), _mean
    ),
    "eps outside the root": _adain(lambda x: x.var((2, 3), keepdim=True).sqrt() + 1e-5, _mean),
    "no eps": _adain(lambda x: x.var((2, 3), keepdim=True).sqrt(), _mean),
    "statistics over channels": _adain(_std, lambda x: x.mean((1, 3), keepdim=True)[:, :1, :1]),
    "statistics of the batch": _adain(lambda x: (x.var((0, 2, 3), keepdim=True) + 1e-5).sqrt(), _mean),
    "mean of the style in the difference": lambda a, b: (a - _mean(b)) / _std(a) * _std(b) + _mean(b),
    "deviation of the content alone": lambda a, b: (a - _mean(a)) / _std(a) * _std(a) + _mean(b),
    "difference to the style": lambda a, b: (a - _mean(a)) / _std(a) * _std(b) - _mean(b),
    "multiplied by the deviation": lambda a, b: (a - _mean(a)) * _std(a) * _std(b) + _mean(b),
}


@pytest.mark.parametrize("name", NOT_ADAIN)
def test_another_formula_than_adaptive_instance_norm_stays_as_it_is(name: str) -> None:
    model = OfTwo(NOT_ADAIN[name])
    fused = fuse(model)
    assert not graph_of(fused).chains
    assert_alike(model, fused, maps(3, 5, 6, 6), maps(3, 5, 6, 6))


NOT_GRAM: dict[str, Callable[[Tensor], Tensor]] = {
    "of pixels": lambda x: torch.bmm(x.flatten(2).mT, x.flatten(2)),
    "of two maps": lambda x: torch.bmm(x.flatten(2), (x * 2).flatten(2).mT),
    "of rows": lambda x: torch.matmul(x, x.mT),
    "not transposed": lambda x: torch.bmm(x.flatten(2), x.flatten(2)),
    "flattened from another dimension": lambda x: torch.mm(x.flatten(1), x.flatten(1).t()),
    "viewed by the wrong sizes": lambda x: torch.bmm(
        x.reshape(x.size(0), x.size(2), -1), x.reshape(x.size(0), x.size(2), -1).mT
    ),
}


@pytest.mark.parametrize("name", NOT_GRAM)
def test_another_product_than_a_gram_matrix_stays_as_it_is(name: str) -> None:
    model = OfOne(NOT_GRAM[name])
    fused = fuse(model)
    assert not graph_of(fused).chains
    x = maps(2, 36, 6, 6)
    assert_alike(model, fused, x)


def test_a_tensor_in_between_that_is_used_elsewhere_keeps_its_formula() -> None:
    def centred(content: Tensor, style: Tensor) -> Tensor:
        mean = _mean(style)
        return (content - _mean(content)) / _std(content) * _std(style) + mean - mean

    def both(x: Tensor) -> Tensor:
        features = x.flatten(2)
        gram = features.bmm(features.mT)
        return torch.cat([gram, gram / (x.size(2) * x.size(3)), features], 2)

    for model, inputs in ((OfTwo(centred), (maps(), maps())), (OfOne(both), (maps(),))):
        fused = fuse(model)
        assert not graph_of(fused).chains
        assert_alike(model, fused, *inputs)


def test_a_change_in_place_between_the_steps_is_seen_in_its_order() -> None:
    def changes(x: Tensor) -> Tensor:
        x = x * 1
        features = x.flatten(2)
        x.add_(1)
        return features.bmm(features.mT)

    model = OfOne(changes)
    x = maps()
    assert_close(fuse(model)(x), model(x), "output")


# ---- what is not for the operations ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_maps_are_computed_as_written(dtype: torch.dtype) -> None:
    x = maps().to(dtype)
    for model, inputs in ((OfOne(gram_of_pytorch_examples), (x,)), (OfTwo(ADAINS[0]), (x, x * 2))):
        assert torch.equal(fuse(model)(*inputs), model(*inputs))


def test_under_autocast_they_are_computed_as_written() -> None:
    model = OfOne(gram_of_pytorch_examples)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fuse(model)(maps()[:1] * 0 + 2), model(maps()[:1] * 0 + 2))


def test_maps_of_other_dimensions_are_computed_as_written() -> None:
    model = OfOne(gram_undivided)
    x = torch.randn(2, 3, 4)
    assert torch.equal(fuse(model)(x), model(x))
    x = torch.randn(2, 3, 0, 4)
    assert torch.equal(fuse(model)(x), model(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_both_layouts_have_the_same_gram_matrix(layout: torch.memory_format) -> None:
    model = OfOne(gram_by_operators)
    assert_alike(model, fuse(model), maps().contiguous(memory_format=layout))


def test_a_style_of_one_image_for_a_batch_is_computed_as_written() -> None:
    model = OfTwo(adain_of_kept_dimensions)
    assert_alike(model, fuse(model), maps(3), maps(1))


def test_an_assertion_of_the_code_holds_in_the_graph() -> None:
    fused = fuse(OfTwo(adaptive_instance_normalization))
    assert graph_of(fused).chains
    with pytest.raises(AssertionError):
        fused(maps(2, 5), maps(2, 4))
    with pytest.raises(AssertionError):
        fused(maps()[0], maps()[0])


def test_a_length_that_is_not_asserted_leaves_the_code_as_it_is() -> None:
    model = OfOne(lambda x: gram_undivided(x) if len(x.size()) == 4 else x)
    fused = fuse(model)
    assert graph_of(fused).why_not is not None
    assert_alike(model, fused, maps())
    assert fused(maps()[0]).shape == (5, 6, 7)


def test_compiles_in_one_graph() -> None:
    for model, inputs, op in (
        (OfOne(gram_of_pytorch_examples), (maps(),), "gram_matrix"),
        (OfTwo(adaptive_instance_normalization), (maps(), maps()), "norm_act"),
    ):
        output, found = compiled_ops(fuse(model), *inputs)
        assert op in {name.partition(".")[0] for name in found}
        assert_close(output, model(*inputs), "output")
