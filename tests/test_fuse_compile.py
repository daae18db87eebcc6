"""A fused model compiles, exports and is wrapped as stock models are."""

import copy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from artkernels import fuse

sys.path.insert(0, str(Path(__file__).parent))

from fuse_chains import (
    Functional,
    assert_close,
    assert_same_state,
    compiled_ops,
    graph_of,
    images,
    ops,
    painter,
    randomize,
)

f = torch.nn.functional
pytestmark = pytest.mark.cpu_only


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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
