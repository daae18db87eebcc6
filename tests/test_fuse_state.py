"""A fused model is still that model: its state, type and copies, whatever is done to it."""

import copy
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artkernels import fuse, unfuse

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import (
    Functional,
    Residual,
    assert_close,
    assert_infers_alike,
    assert_same_state,
    assert_trains_alike,
    images,
    is_fused,
    ops,
    painter,
    randomize,
)

f = torch.nn.functional
pytestmark = pytest.mark.cpu_only


@pytest.fixture(params=["painter", "functional"])
def stock(request: pytest.FixtureRequest) -> nn.Module:
    return painter() if request.param == "painter" else randomize(Functional())


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


def test_settings_of_layers_may_change_after_a_call() -> None:
    model = nn.Sequential(
        *(nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LeakyReLU(0.1)),
        *(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1), nn.GELU()),
        *(nn.ConvTranspose2d(4, 3, 3, 2, 1), nn.Tanh()),
    ).eval()
    fused = fuse(model)
    x = images()
    changes = [
        (0, "padding", (2, 2, 2, 2)),
        (1, "stride", (2, 2)),
        (2, "eps", 0.5),
        (3, "negative_slope", 0.7),
        (4, "mode", "bilinear"),
        (5, "padding_mode", "circular"),
        (5, "_reversed_padding_repeated_twice", (1, 1, 1, 1)),
        (6, "approximate", "tanh"),
        (7, "output_padding", (1, 1)),
    ]
    for index, name, value in changes:
        for each in (model, fused):
            setattr(each[index], name, value)
        assert_close(fused(x), model(x), name)


def test_each_class_keeps_the_signature_of_its_own_forward() -> None:
    class OfOne(nn.Module):
        def forward(self, picture: Tensor) -> Tensor:
            return picture

    class OfTwo(nn.Module):
        def forward(self, content: Tensor, style: Tensor) -> Tensor:
            return content + style

    one, two = fuse(OfOne()), fuse(OfTwo())
    assert list(inspect.signature(one.forward).parameters) == ["picture"]
    assert list(inspect.signature(two.forward).parameters) == ["content", "style"]
    assert one.forward.__qualname__.endswith("OfOne.forward")
