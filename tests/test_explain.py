"""explain names every chain, the kernel that it takes and why; and what is left as it is."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from artkernels import explain, fuse
from artkernels.fusion import Explanation

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import assert_same_state, images, painter

pytestmark = pytest.mark.cpu_only


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    return explain(painter().eval(), images())


def test_a_row_is_a_chain_with_its_layers_shapes_and_operation(explanation: Explanation) -> None:
    first, second, third, *_ = explanation.rows
    assert first.layers == ("0", "1", "2", "3")
    assert (first.input_shape, first.output_shape) == ((2, 3, 8, 8), (2, 6, 8, 8))
    assert first.op == "conv2d_norm_act"
    assert second.layers == ("4.block.0", "4.block.1", "4.block.2", "4.block.3")
    assert third.layers == ("4.block.4", "4.block.5", "4.block.6", "add", "4.after")
    assert len(explanation.rows) == 9
    assert not explanation.left


def test_its_table_has_a_line_a_chain_and_one_of_titles(explanation: Explanation) -> None:
    titles, *lines = str(explanation).splitlines()
    assert titles.split()[:5] == ["layers", "input", "output", "op", "kernel"]
    assert len(lines) == len(explanation.rows)
    assert lines[0].startswith("0 1 2 3 ")
    assert lines[1].startswith("4.block.0 .1 .2 .3 ")
    for line, row in zip(lines, explanation.rows, strict=True):
        assert row.op in line
        assert line.endswith(row.why)


def test_both_forms_are_timed(explanation: Explanation) -> None:
    assert all(row.ours_ms > 0 and row.stock_ms > 0 for row in explanation.rows)


def test_the_kernel_is_the_one_that_the_operation_takes() -> None:
    def kernel(layer: nn.Module, x: Tensor) -> str:
        (row,) = explain(nn.Sequential(layer, nn.Tanh()).eval(), x).rows
        return row.kernel

    transposed = nn.ConvTranspose2d(3, 16, 4, 2, 1)
    assert kernel(transposed, images()) == "ours"
    assert kernel(transposed.double(), images().double()) == "stock"  # float64 has no kernel of ours
    assert kernel(nn.BatchNorm2d(3), images()) == "ours"


def test_in_training_it_says_whose_kernels_compute_the_gradients() -> None:
    def backward(layer: nn.Module, x: Tensor) -> str:
        explanation = explain(nn.Sequential(layer, nn.Tanh()).train(), x)
        (row,) = explanation.rows
        assert row.backward in str(explanation)
        return row.backward

    transposed = nn.ConvTranspose2d(3, 16, 4, 2, 1)
    assert backward(nn.Conv2d(3, 16, 4, 2, 1), images()) == "ours"
    assert backward(transposed.double(), images().double()) == "stock"  # float64 has no kernel of ours
    assert backward(nn.Conv2d(16, 16, 1), torch.randn(2, 16, 8, 8)) == "input ours, weight stock"  # a matrix product
    assert backward(nn.BatchNorm2d(3), images()) == "ours"


def test_in_evaluation_there_is_no_backward(explanation: Explanation) -> None:
    assert not any(row.backward for row in explanation.rows)
    assert "backward" not in str(explanation)


def test_a_chain_that_runs_apart_says_what_wants_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    fused = fuse(model)
    fused[1].register_forward_hook(lambda *_: None)
    (row,) = explain(fused, images()).rows
    assert (row.kernel, row.why) == ("stock", "1 has hooks")


def test_what_is_left_has_its_reason() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x) if x.mean() > 0 else self.block(-x)

    explanation = explain(nn.Sequential(Branches()), images())
    assert [row.layers for row in explanation.rows] == [("0.block.0", "0.block.1")]
    assert list(explanation.left) == ["0"]
    assert explanation.left["0"].startswith("torch.fx cannot trace forward: ")
    assert str(explanation).splitlines()[-1].startswith("0 stays as it is: torch.fx cannot trace forward: ")
    assert str(explain(nn.Sequential(nn.Flatten()), images())) == "nothing is fused"


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_is(training: bool) -> None:
    model = painter().train(training)
    fused = fuse(model)
    x = images()
    torch.manual_seed(0)
    for each in (model, fused):
        explain(each, x)
    assert_same_state(model, fused, 0)
    assert model.training == fused.training == training
    assert all(parameter.grad is None for parameter in fused.parameters())
    (graph,) = [graph for graph in fused.__dict__["_artkernels_fusion"].graphs if graph.training == training]
    assert "_Watched" not in repr(graph.run.__globals__.values())
