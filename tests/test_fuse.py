"""A fused model is the stock model: its numbers, gradients, state and type, whatever is done to it."""

import copy
import pickle
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from artkernels import fuse, models, unfuse

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import (
    Functional,
    Residual,
    Sum,
    assert_alike,
    assert_close,
    assert_infers_alike,
    assert_same_state,
    assert_trains_alike,
    graph_of,
    images,
    is_fused,
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


# ---- forwards that are no graph --------------------------------------------------------------------------------------


class Untraced(nn.Module):
    """A chain within a forward that must stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.noise = torch.ones(())


class BranchesOnData(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if x.sum() > 0 else self.block(-x)


class SwitchesGradients(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.block(x)
        return self.block(y)


class DrawsInPython(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if random.random() < 0.5 else self.block(x.flip(3))


class MakesTensors(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x + torch.ones(1))


class SetsAttributes(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.block(x)
        return self.seen


class AsksForTypes(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if isinstance(x, Tensor) else x[0]


class Checkpoints(Untraced):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.block, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (BranchesOnData, "torch.fx cannot trace forward: symbolically traced variables cannot be used as inputs"),
        (SwitchesGradients, "forward switches gradients, autocast or checkpointing"),
        (DrawsInPython, "forward draws random numbers"),
        (MakesTensors, "forward makes a tensor that does not come from its input"),
        (SetsAttributes, "forward sets its attribute seen"),
        (AsksForTypes, "forward asks for the type of a value"),
        (Checkpoints, "forward switches gradients, autocast or checkpointing"),
    ],
)
def test_a_forward_that_is_no_graph_stays_and_what_it_calls_is_fused(make: type[nn.Module], why: str) -> None:
    model = make()
    fused = fuse(model)
    assert (graph_of(fused).why_not or "").startswith(why)
    assert ops(fused.block) == ["conv2d_norm_act"]
    x = images()
    outputs = []
    for each in (model, fused):
        random.seed(0)
        outputs.append(each(x))
    assert_close(*outputs, "output")
    assert outputs[0].requires_grad == outputs[1].requires_grad
    assert_same_state(model, fused)


def test_a_submodule_that_is_no_graph_is_called_from_the_graph_around_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), BranchesOnData(), nn.Conv2d(3, 3, 1), nn.Tanh())
    fused = fuse(model)
    assert ops(fused) == ["conv2d_act", "conv2d_act"]
    assert ops(fused[2].block) == ["conv2d_norm_act"]
    assert_trains_alike(model, fused, [images() for _ in range(2)])


def test_other_calls_than_of_tensors_alone_run_forward_as_it_is() -> None:
    class Options(Untraced):
        def forward(self, x: Tensor, scale: float = 1.0, *, skip: bool = False) -> Tensor:
            return x if skip else self.block(x) * scale

    model = Options().eval()
    fused = fuse(model)
    assert ops(fused)
    x = images()
    for call in (lambda m: m(x), lambda m: m(x=x), lambda m: m(x, 2.0), lambda m: m(x, scale=3.0)):
        assert_close(call(fused), call(model), "output")
    assert fused(x, skip=True) is x


def test_submodules_and_methods_may_be_called_by_themselves() -> None:
    model = models.ConvVAE(16, 4).eval()
    fused = fuse(model)
    x = torch.rand(2, 3, 64, 64)
    assert ops(fused.encoder) == ["conv2d_norm_act"] * 4
    assert_close(fused.encoder(x), model.encoder(x), "output")


# ---- what is done to models ------------------------------------------------------------------------------------------


def test_the_model_itself_is_left_or_changed_as_asked(stock: nn.Module) -> None:
    parameters = list(stock.parameters())
    fused = fuse(stock)
    assert is_fused(fused)
    assert not is_fused(stock)
    assert fuse(stock, inplace=True) is stock
    assert is_fused(stock)
    assert fuse(stock, inplace=True) is stock
    assert all(a is b for a, b in zip(stock.parameters(), parameters, strict=True))


def test_the_type_is_kept_and_unfuse_gives_the_model_back(stock: nn.Module) -> None:
    before, kind, text = dict(vars(stock)), type(stock), repr(stock)
    fused = fuse(stock)
    assert isinstance(fused, kind)
    assert repr(fused) == text
    assert not is_fused(unfuse(fused))
    assert is_fused(fused)
    fuse(stock, inplace=True)(images())
    assert unfuse(stock, inplace=True) is stock
    assert type(stock) is kind
    assert vars(stock) == before
    assert not is_fused(stock)


def test_either_loads_the_state_of_the_other(stock: nn.Module) -> None:
    fused = fuse(stock)
    randomize(fused)
    stock.load_state_dict(fused.state_dict())
    assert_infers_alike(stock.eval(), fused.eval(), images())
    randomize(stock)
    fused.load_state_dict(stock.state_dict())
    assert_infers_alike(stock, fused, images())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_fused_and_stand_alone(stock: nn.Module, twin: Callable[[nn.Module], nn.Module]) -> None:
    fused = fuse(stock).eval()
    x = images()
    expected = fused(x)
    other = twin(fused)
    assert ops(other) == ops(fused)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(fused(x), expected)
    assert not torch.equal(other(x), expected)
    assert type(unfuse(other)) is type(stock)


def test_modes_may_differ_and_change() -> None:
    model = painter()
    fused = fuse(model)
    x = images()
    for change in (
        lambda m: m.eval(),
        lambda m: m.train(),
        lambda m: m[2].eval(),  # a frozen normalisation
        lambda m: m[4].eval(),  # a block of its own mode
        lambda m: m.train(),
    ):
        for each in (model, fused):
            change(each)
        assert_close(fused(x), model(x), "output")
        assert_same_state(fused, model)


def test_a_forward_that_looks_at_its_mode_is_one_graph_a_mode() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x = f.dropout(self.conv(x), 0.5, self.training)
            return torch.relu(self.norm(x)) if self.training else self.norm(x)

    model = Looks()
    fused = fuse(model)
    assert_trains_alike(model, fused, [images() for _ in range(2)])
    for training in (True, False):
        assert ops(fused.train(training)) == ["conv2d_act", "batch_norm_act"]


def test_frozen_layers_stay_frozen(stock: nn.Module) -> None:
    for parameter in list(stock.parameters())[::2]:
        parameter.requires_grad_(False)
    fused = fuse(stock)
    fused(images()).sum().backward()
    assert [p.grad is None for p in fused.parameters()] == [not p.requires_grad for p in stock.parameters()]


def test_shared_layers_are_shared() -> None:
    conv, norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
    model = nn.Sequential(conv, norm, nn.ReLU(), conv, norm, nn.ReLU())
    fused = fuse(model)
    assert fused[0] is fused[3]
    assert ops(fused) == ["conv2d_norm_act"] * 2
    assert_trains_alike(model, fused, [images() for _ in range(2)])
    assert fused[1].num_batches_tracked == 4


def test_an_attribute_that_forward_reads_may_change() -> None:
    class Fades(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.alpha, self.depth = Residual(3), 1.0, 1

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.depth):
                x = self.block(x) * self.alpha
            return x

    model = nn.Sequential(Fades())
    fused = fuse(model)
    x = images()
    for alpha, depth in [(1.0, 1), (0.5, 1), (0.5, 3)]:
        for each in (model, fused):
            each[0].alpha, each[0].depth = alpha, depth
        assert_close(fused(x), model(x), "output")
        assert len(ops(fused)) == 2 * depth
    fused[0].__dict__["depth"] = model[0].depth = 2  # as a list's change is: unseen, until it is fused again
    assert_close(fuse(fused)(x), model(x), "output")
    fused[0].depth = 2
    for step in range(20):  # no graph a step for ever
        model[0].alpha = fused[0].alpha = step / 20
        assert_close(fused(x), model(x), "output")


def test_layers_may_be_replaced_and_hooked() -> None:
    model = painter().eval()
    fused = fuse(model)
    x = images()

    def assert_current() -> None:
        assert_close(fused(x), model(x), "output")

    called = []
    for each in (model, fused):
        each[6] = nn.Upsample(scale_factor=2)
    assert_current()
    for each in (model, fused):
        each[5].after = nn.Tanh()
        each[4].block[3] = nn.ELU()
    assert_current()
    for each in (model, fused):
        each[1].register_forward_hook(lambda *_: called.append("layer"))
        each[4].block.register_forward_pre_hook(lambda *_: called.append("block"))
        each[5].register_forward_hook(lambda *args: args[2] * 2)
    assert_current()
    assert called == ["layer", "block"] * 2


def test_a_list_of_modules_may_change() -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Residual(3), Residual(3)])

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    model = Blocks().eval()
    fused = fuse(model)
    x = images()
    assert len(ops(fused)) == 4
    model.blocks[1] = fused.blocks[1] = nn.Conv2d(3, 3, 3)
    assert_close(fused(x), model(x), "output")


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_parametrized_weights_are_used_and_made_once_a_call(name: str, when: str) -> None:
    def make(fused: bool) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2), nn.Tanh())
        if fused and when == "after":
            fuse(model, inplace=True)
        getattr(torch.nn.utils.parametrizations, name)(model[0])
        return fuse(model, inplace=True) if fused else model

    model, fused = make(fused=False), make(fused=True)
    assert ops(fused) == ["conv2d_norm_act", "conv_transpose2d_act"]
    for _ in range(3):
        x = images()
        assert_close(fused(x), model(x), "output", 1e-3)
    assert_same_state(fused, model, 1e-3)


def test_spectral_norm_by_hook_runs_its_layer() -> None:
    model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.LeakyReLU(0.2))
    fused = fuse(model)
    for _ in range(2):
        x = images()
        assert_close(fused(x), model(x), "output")
    assert_same_state(fused, model)


def test_lazy_layers_learn_their_channels() -> None:
    fused = fuse(nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU()), inplace=True)
    x = images()
    assert fused(x).shape == (2, 4, 6, 6)
    assert fused[0].in_channels == 3
    assert_infers_alike(unfuse(fused).eval(), fused.eval(), x)


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


# ---- compilers and wrappers ------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_ops(model: nn.Module, x: Tensor) -> tuple[Tensor, set[str]]:
    """The output of the model compiled in one graph, and the fused operations in that."""
    found: set[str] = set()

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        found.update(str(n.target).partition(".")[2] for n in graph.graph.nodes if "artkernels" in str(n.target))
        return graph

    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)(x), found


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("twin", [lambda model: model, copy.deepcopy], ids=["itself", "a copy"])
def test_compiles_in_one_graph_of_fused_operations(training: bool, twin: Callable[[nn.Module], nn.Module]) -> None:
    model = painter().train(training)
    fused = twin(fuse(model))
    x = images()
    output, found = compiled_ops(fused, x)
    assert {"conv2d_act", "conv_transpose2d_act", "norm_act"} <= {name.partition(".")[0] for name in found}
    assert_close(output, model(x), "output")
    assert_same_state(fused, model)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_training_is_stock_s() -> None:
    model = randomize(Functional())
    fused = torch.compile(fuse(model), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = images()
        for each in (model, fused):
            each.zero_grad()
            each(x).square().sum().backward()
        for theirs, ours in zip(model.parameters(), fused.parameters(), strict=True):
            assert_close(ours.grad, theirs.grad, "gradient", 1e-3)


def test_replicas_of_data_parallel_leave_the_graphs_as_they_are() -> None:
    fused = fuse(painter())
    graph = graph_of(fused)
    fused._replicate_for_data_parallel()
    assert graph_of(fused) is graph


def test_exports() -> None:
    model = painter().eval()
    x = images()
    program = torch.export.export(fuse(model), (x,))
    assert any("artkernels" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(x), model(x), "output")


def test_distributed_data_parallel_trains_it(tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = painter()
        wrapped = nn.parallel.DistributedDataParallel(fuse(model))
        assert ops(wrapped.module)
        x = images()
        for each in (model, wrapped):
            each(x).square().sum().backward()
        for theirs, ours in zip(model.parameters(), wrapped.parameters(), strict=True):
            if theirs.grad.abs().max() > 1e-3:
                assert_close(ours.grad, theirs.grad, "gradient", 1e-3)
        again = nn.parallel.DistributedDataParallel(model)
        assert_same_state(fuse(again, inplace=True), wrapped)
    finally:
        torch.distributed.destroy_process_group()
