"""A forward that is no graph stays as it is, and what it calls is fused."""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artkernels import fuse, models

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import assert_close, assert_same_state, assert_trains_alike, graph_of, images, ops

f = torch.nn.functional
pytestmark = pytest.mark.cpu_only


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
