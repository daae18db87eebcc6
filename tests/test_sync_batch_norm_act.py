"""F.batch_norm_act(process_group=...): two processes, each with a part of the batch, are as one with all of it.

Run as a script, this file is one of the two processes; it leaves what it found in a file for the tests.
"""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from artkernels import functional as F
from artkernels import nn, reference

pytestmark = pytest.mark.cpu_only

PROCESSES = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch, dealt to the processes, and the arguments of the call."""

    images: tuple[int, int]
    dtype: torch.dtype = torch.float32
    activation: str = "none"
    residual: torch.dtype | None = None
    residual_after: bool = False
    affine: bool = True
    channels_last: bool = False
    shape: tuple[int, ...] = (5, 6, 7)
    offset: float = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """The whole batch's; alike in every process."""
        torch.manual_seed(0)
        shape = (sum(self.images), *self.shape)
        tensors = {
            "input": torch.randn(shape) * 2 + self.offset,
            "grad_output": torch.randn(shape),
            "running_mean": torch.randn(shape[1]),
            "running_var": torch.rand(shape[1]) + 0.5,
        }
        # The parts differ, in size and in what they hold.
        tensors["input"][: self.images[0]] += 1.5
        tensors["input"] = tensors["input"].to(self.dtype)
        if self.affine:
            tensors |= {"weight": torch.randn(shape[1]), "bias": torch.randn(shape[1])}
        if self.residual:
            tensors["residual"] = torch.randn(shape).to(self.residual)
        return tensors

    def options(self) -> dict[str, Any]:
        return {"training": True, "momentum": 0.3, "activation": self.activation, "residual_after": self.residual_after}

    def run(self, rank: int) -> dict[str, Tensor]:
        """What process `rank` gets for its part."""
        images = slice(0, self.images[0]) if rank == 0 else slice(self.images[0], None)
        t = self.tensors()
        for name in t.keys() & {"input", "grad_output", "residual"}:
            t[name] = t[name][images]
            if self.channels_last:
                t[name] = t[name].contiguous(memory_format=torch.channels_last)
        return step(F.batch_norm_act, t, self.options() | {"process_group": distributed.group.WORLD})

    def expected(self) -> dict[str, Tensor]:
        """In one process, in float64."""
        return step(reference.batch_norm_act, {name: t.double() for name, t in self.tensors().items()}, self.options())


def step(function: Any, tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
    t = dict(tensors)
    grad_output = t.pop("grad_output")
    leaves = {name: t[name].requires_grad_() for name in t if not name.startswith("running")}
    output = function(**t, **options)
    grads = torch.autograd.grad((output * grad_output.to(output.dtype)).sum(), list(leaves.values()))
    gradients = {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"output": output.detach(), "running_mean": t["running_mean"], "running_var": t["running_var"], **gradients}


CASES = {
    "float32": Case((3, 1)),
    "float64": Case((3, 1), torch.float64, "gelu", residual=torch.float64),
    "float16": Case((3, 1), torch.float16, "silu", residual=torch.float16),
    "bfloat16": Case((3, 1), torch.bfloat16, "relu"),
    "one process without images": Case((2, 0), activation="leaky_relu", residual=torch.float32),
    "the other without images": Case((0, 2), activation="tanh"),
    "one value in each process": Case((1, 1), activation="sigmoid", shape=(5,)),
    "channels_last": Case((3, 1), activation="tanh", residual=torch.float32, channels_last=True, shape=(8, 6, 7)),
    "residual after": Case((3, 1), activation="relu", residual=torch.float32, residual_after=True),
    "residual without activation": Case((3, 1), residual=torch.float32),
    "residual of a wider dtype": Case((3, 1), torch.bfloat16, "silu", residual=torch.float32),
    "residual of a narrower dtype": Case((3, 1), activation="silu", residual=torch.float16),
    "no parameters": Case((3, 1), affine=False, activation="relu"),
    "large mean": Case((3, 1), offset=1000.0),
    "5-D": Case((3, 1), activation="relu", shape=(3, 2, 3, 4)),
}
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


# ---- in each of the two processes ------------------------------------------------------------------------------------


def process(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{directory}/init", rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {name: case.run(rank) for name, case in CASES.items()}
    for examine in (frozen_input, double_backward, one_value_in_all, module, alone):
        found[examine.__name__] = examine(rank)
    torch.save(found, directory / f"{rank}.pt")
    distributed.destroy_process_group()


def message_of(function: Any) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def frozen_input(rank: int) -> Tensor:
    weight = torch.ones(3, requires_grad=True)
    x = torch.randn(rank + 1, 3, 4, 4)
    F.batch_norm_act(x, None, None, weight, training=True, process_group=distributed.group.WORLD).sum().backward()
    assert weight.grad is not None
    return weight.grad


def double_backward(rank: int) -> str:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = F.batch_norm_act(x, None, None, training=True, activation="tanh", process_group=distributed.group.WORLD)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    return message_of(grad.square().sum().backward)


def one_value_in_all(rank: int) -> str:
    x = torch.randn(1 - rank, 3)
    return message_of(lambda: F.batch_norm_act(x, None, None, training=True, process_group=distributed.group.WORLD))


def module(rank: int) -> dict[str, Tensor]:
    """A copy of a module trains for two steps; then one process alone evaluates, which must not wait for the other."""
    model = copy.deepcopy(nn.BatchNormAct2d(3, momentum=None, process_group=distributed.group.WORLD))
    for batch in module_batches():
        model(batch[:1] if rank == 0 else batch[1:])
    if rank == 0:
        model.eval()(batch)
        nn.BatchNormAct2d(3, track_running_stats=False, process_group=distributed.group.WORLD).eval()(batch)
    return model.state_dict()


def module_batches() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(3, 3, 4, 5) * scale + scale for scale in (1, 3)]


def alone(rank: int) -> bool:
    """Whether a group of one process makes no difference, down to a second derivative."""
    groups = [distributed.new_group([member]) for member in range(PROCESSES)]
    results = []
    for group in (None, groups[rank]):
        x = module_batches()[0].requires_grad_()
        y = F.batch_norm_act(x, None, None, training=True, activation="tanh", process_group=group)
        (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), x)[0])
    return torch.equal(*results)


# ---- the tests -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    directory = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), directory], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(PROCESSES)
    ]
    try:
        for running in processes:
            _, errors = running.communicate(timeout=120)
            assert running.returncode == 0, errors
    finally:
        for running in processes:
            running.kill()
    return [torch.load(directory / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_as_one_with_the_whole_batch(found: list[dict[str, Any]], name: str) -> None:
    case, expected = CASES[name], CASES[name].expected()
    parts = [of_process[name] for of_process in found]
    assert parts[0].keys() == expected.keys()
    for key, wanted in expected.items():
        tensors = [part[key] for part in parts]
        if key.startswith("running"):
            assert torch.equal(*tensors), f"{key} differs between the processes"
            actual = tensors[0]
        elif key in ("grad_weight", "grad_bias"):
            actual = tensors[0] + tensors[1]
        else:
            actual = torch.cat(tensors)
        # In float32 a large mean leaves the input fewer digits after the point, in either way of computing.
        tolerance = max(TOLERANCES[case.dtype], TOLERANCES[actual.dtype]) * (10 if case.offset else 1)
        scale = max(1.0, wanted.abs().max().item())
        torch.testing.assert_close(
            actual.double(), wanted, rtol=0, atol=tolerance * scale, msg=lambda message, key=key: f"{key}: {message}"
        )


@pytest.mark.parametrize("name", CASES)
def test_dtypes_and_layouts_are_those_of_one_process(found: list[dict[str, Any]], name: str) -> None:
    case = CASES[name]
    for part in (of_process[name] for of_process in found):
        wide = case.dtype if case.residual is None else torch.promote_types(case.dtype, case.residual)
        assert part["output"].dtype == wide
        assert part["grad_input"].dtype == case.dtype
        if case.channels_last:
            for key in ("output", "grad_input", "grad_residual"):
                assert part[key].is_contiguous(memory_format=torch.channels_last)


def test_the_running_variance_is_unbiased_by_the_total_count(found: list[dict[str, Any]]) -> None:
    case = CASES["one value in each process"]
    t = case.tensors()
    expected = torch.lerp(t["running_var"], t["input"].var(0), 0.3)
    torch.testing.assert_close(found[0]["one value in each process"]["running_var"], expected)


def test_parameters_get_their_gradients_when_the_input_needs_none(found: list[dict[str, Any]]) -> None:
    gradients = [of_process["frozen_input"] for of_process in found]
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)
    torch.testing.assert_close(sum(gradients), torch.zeros(3), rtol=0, atol=1e-4)  # the sum of xhat


def test_double_backward_is_refused(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert "once_differentiable" in of_process["double_backward"]


def test_one_value_in_all_processes_together_is_refused_by_each(found: list[dict[str, Any]]) -> None:
    for of_process in found:
        assert of_process["one_value_in_all"].startswith(
            "ValueError: batch_norm_act: expected more than 1 value per channel in all processes together"
        )


def test_module_keeps_the_statistics_of_all_processes(found: list[dict[str, Any]]) -> None:
    expected = torch.nn.BatchNorm2d(3, momentum=None)
    for batch in module_batches():
        expected(batch)
    for name, wanted in expected.state_dict().items():
        for of_process in found:
            torch.testing.assert_close(of_process["module"][name], wanted)


def test_a_group_of_one_process_makes_no_difference(found: list[dict[str, Any]]) -> None:
    assert all(of_process["alone"] for of_process in found)


if __name__ == "__main__":
    process(int(sys.argv[1]), Path(sys.argv[2]))
