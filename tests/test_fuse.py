"""A fused model is the stock model: what is fused, and its numbers and gradients."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from artkernels import fuse, models

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import (
    Functional,
    Residual,
    Sum,
    assert_alike,
    assert_close,
    assert_infers_alike,
    assert_trains_alike,
    images,
    links,
    ops,
    painter,
    random_models,
    randomize,
)

f = torch.nn.functional
pytestmark = pytest.mark.cpu_only

ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "AdaINDecoder": (models.AdaINDecoder, (1, 512, 2, 2)),
    "AdaINEncoder": (models.AdaINEncoder, (1, 3, 16, 16)),
    "ConvVAE": (lambda: models.ConvVAE(16, 4), (4, 3, 64, 64)),
    "DCGANDiscriminator": (lambda: models.DCGANDiscriminator(8), (4, 3, 64, 64)),
    "DCGANGenerator": (lambda: models.DCGANGenerator(16, 8), (4, 16, 1, 1)),
    "KerasDCGANGenerator": (lambda: models.KerasDCGANGenerator(16), (4, 16)),
    "NLayerDiscriminator": (lambda: models.NLayerDiscriminator(3, 8), (1, 3, 48, 48)),
    "ResnetGenerator": (lambda: models.ResnetGenerator(3, 3, 4, n_blocks=6), (1, 3, 16, 16)),
    "TransformerNet": (models.TransformerNet, (1, 3, 16, 16)),
    "TransformerNet, transposed": (lambda: models.TransformerNet(transposed=True), (1, 3, 16, 16)),
    "VGG19": (models.VGG19, (1, 3, 16, 16)),
}


@pytest.fixture(params=["painter", "functional"])
def stock(request: pytest.FixtureRequest) -> nn.Module:
    return painter() if request.param == "painter" else randomize(Functional())


# ---- the same numbers ------------------------------------------------------------------------------------------------


def test_every_architecture_is_in_this_file() -> None:
    assert {name.partition(",")[0] for name in ARCHITECTURES} == set(models.__all__)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_trains_and_infers_as_stock(name: str) -> None:
    make, shape = ARCHITECTURES[name]
    model = make()
    fused = fuse(model)
    assert ops(fused)
    assert_alike(model, fused, [torch.rand(shape) for _ in range(3)])


def test_small_models_train_and_infer_as_stock(stock: nn.Module) -> None:
    assert_trains_alike(stock, fuse(stock), [images() for _ in range(3)])


@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(random_models())
def test_random_chains_train_and_infer_as_stock(model: nn.Module) -> None:
    torch.manual_seed(0)
    assert_alike(model, fuse(model), [images(4, 6) for _ in range(3)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_after_to_another_dtype_and_layout(stock: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> None:
    fused = fuse(stock).to(dtype=dtype, memory_format=layout).eval()
    stock.to(dtype=dtype, memory_format=layout).eval()
    x = images().to(dtype=dtype, memory_format=layout)
    assert_close(fused(x), stock(x), "output", 1e-10 if dtype == torch.float64 else 0.1)
    assert fused(x).stride() == stock(x).stride()


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast(stock: nn.Module, training: bool) -> None:
    fused = fuse(stock).train(training)
    stock.train(training)
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(fused(x), stock(x), "output", 0.1)


def test_running_statistics_follow_momentum_and_its_absence() -> None:
    for momentum in (0.3, None):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU())
        assert_trains_alike(model, fuse(model), [images() for _ in range(3)])
        assert model[1].num_batches_tracked == 3


# ---- what is fused ---------------------------------------------------------------------------------------------------


def test_chains_reach_across_modules_and_functions() -> None:
    assert ops(fuse(painter())) == [
        "conv2d_norm_act",
        *["conv2d_norm_act"] * 4,
        "conv_transpose2d_norm_act",
        "conv_transpose2d_act",
        "group_norm_act",
        "conv2d_act",
    ]
    assert ops(fuse(Functional())) == [
        "conv2d_norm_act",
        "conv2d_norm_act",
        "conv_transpose2d_act",
        "conv_transpose2d_act",
    ]


SPELLINGS: list[Callable[[Tensor], Tensor]] = [
    torch.relu,
    f.relu,
    lambda x: f.relu(x, inplace=True),
    lambda x: x.relu_(),
    lambda x: f.leaky_relu(x, 0.2),
    lambda x: f.leaky_relu(x, negative_slope=0.3),
    torch.tanh,
    lambda x: x.tanh(),
    f.sigmoid,
    f.silu,
    f.gelu,
    lambda x: f.gelu(x, approximate="none"),
]


class Calls(nn.Module):
    """A convolution and a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.function = nn.Conv2d(3, 4, 3), norm or nn.Identity(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


@pytest.mark.parametrize("function", SPELLINGS)
def test_activations_are_known_by_all_their_spellings(function: Callable[[Tensor], Tensor]) -> None:
    model = Calls(function)
    fused = fuse(model)
    assert links(fused) == 3
    x = images()
    assert_close(fused(x), model(x), "output")


@pytest.mark.parametrize(
    "function", [lambda x: f.gelu(x, approximate="tanh"), f.softplus, f.relu6, lambda x: f.leaky_relu(x, -0.1)]
)
def test_other_functions_stay_outside(function: Callable[[Tensor], Tensor]) -> None:
    model = Calls(function)
    fused = fuse(model)
    x = images()
    assert_close(fused(x), model(x), "output")
    assert links(fused) == 2


def test_dropout_and_a_second_user_break_a_chain() -> None:
    assert ops(fuse(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU()))) == [
        "conv2d_act",
        "batch_norm_act",
    ]
    model = Calls(lambda x: torch.cat([x, x.relu()], 1), nn.BatchNorm2d(4))
    assert links(fuse(model)) == 2
    assert_trains_alike(model, fuse(model), [images()])


@pytest.mark.parametrize("order", ["left", "right", "in place"])
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU])
def test_residuals_are_part_of_a_chain(order: str, activation: Callable[[], nn.Module]) -> None:
    branch = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    model = Sum(branch, order, activation())
    fused = fuse(model)
    assert ops(fused) == ["conv2d_norm_act"]
    assert links(fused) == 4
    assert_trains_alike(model, fused, [images() for _ in range(2)])


def test_a_residual_of_another_shape_is_broadcast() -> None:
    class Broadcast(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) + x.mean((2, 3), keepdim=True)

    model = Broadcast(3)
    assert_trains_alike(model, fuse(model), [images()])


def test_upsampling_by_other_factors_stays() -> None:
    for up in (nn.Upsample(scale_factor=3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Upsample(size=(16, 16))):
        model = nn.Sequential(up, nn.Conv2d(3, 4, 3, padding=1))
        assert ops(fuse(model)) == ["conv2d_act"]
        assert_infers_alike(model, fuse(model), images())


# ---- changes in place ------------------------------------------------------------------------------------------------


class Mutates(nn.Module):
    """Changes the input between a chain's first layer and its last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        y = self.conv(x)
        x.add_(1)
        return self.norm(y) + x


def test_a_change_in_place_is_seen_in_its_order() -> None:
    model = Mutates()
    assert_infers_alike(model, fuse(model), images())


def test_a_skip_that_an_activation_changes_in_place_keeps_what_it_is_in_stock() -> None:
    """As in pix2pix's U-Net: torch.cat([x, down(x)]), where down begins with LeakyReLU(inplace=True)."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.down = nn.Sequential(nn.LeakyReLU(0.2, True), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return torch.cat([x, self.down(x)], 1)

    model = Skip()
    assert_trains_alike(model, fuse(model), [images() for _ in range(2)])


def test_what_may_be_changed_in_place_in_stock_may_be_in_fused() -> None:
    class Grows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = f.leaky_relu(self.conv(x), 0.2)
            y += x
            return y

    model = Grows()
    assert_trains_alike(model, fuse(model), [images()])


# ---- inputs that are not for the operations --------------------------------------------------------------------------


def test_unbatched_complex_and_empty_inputs_do_what_stock_does() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU())
    fused = fuse(model)
    x = images()
    assert_close(fused(x[0]), model(x[0]), "output")
    linear = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=torch.complex64), nn.Tanh())
    z = x.to(torch.complex64)
    assert torch.equal(fuse(linear)(z), linear(z))
    assert fused(x[:0]).shape == (0, 4, 6, 6)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.Conv2d(3, 4, 3), nn.ReLU()], (2, 5, 8, 8)),
        ([nn.BatchNorm2d(3), nn.ReLU()], (2, 5, 8, 8)),
        ([nn.BatchNorm2d(3), nn.ReLU()], (2, 3, 8)),
        ([nn.BatchNorm1d(3), nn.ReLU()], (1, 3)),
        ([nn.GroupNorm(1, 3), nn.ReLU()], (2, 4, 8, 8)),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5)], (2, 3, 8, 8)),
        ([nn.ReflectionPad2d(9), nn.Conv2d(3, 4, 3)], (2, 3, 8, 8)),
    ],
)
def test_errors_are_of_the_kind_that_stock_raises(layers: list[nn.Module], shape: tuple[int, ...]) -> None:
    model = nn.Sequential(*layers)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        model(torch.randn(shape))
    with pytest.raises(expected.type):
        fuse(model)(torch.randn(shape))


def test_torch_func_and_forward_mode_run_the_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Tanh()).eval()
    fused = fuse(model)
    x, tangent = images(), images()
    (y, dy), (expected, d_expected) = (torch.func.jvp(m, (x,), (tangent,)) for m in (fused, model))
    assert_close(y, expected, "output")
    assert_close(dy, d_expected, "tangent")
    many = torch.stack([x, tangent])
    assert_close(torch.func.vmap(fused)(many), torch.func.vmap(model)(many), "output")


def test_other_threads_may_call_models_while_one_is_traced() -> None:
    model = painter().eval()
    x, stop, errors = images(), threading.Event(), []
    expected = model(x)

    def call() -> None:
        while not stop.is_set():
            if not torch.equal(model(x), expected):
                errors.append("another output")

    thread = threading.Thread(target=call)
    thread.start()
    for _ in range(10):
        fuse(model)
    stop.set()
    thread.join()
    assert not errors
