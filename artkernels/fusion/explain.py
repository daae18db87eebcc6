"""What becomes of each layer of a model: fused or not, by which kernel, why, and what it gains."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import profiler_legacy  # the later one writes to stderr at each start

from .model import fuse, fused_modules, state_of
from .rewrite import FusedCall

__all__ = ["ChainReport", "Explanation", "explain"]

Kernel = Literal["ours", "stock"]

_SECONDS = 0.2  # for timing one chain
# Of torch's own convolutions, as the profiler calls them.
_STOCK_CONVOLUTIONS = (
    "aten::convolution",
    "aten::_convolution",
    "aten::mkldnn_convolution",
    "mkldnn::_convolution_pointwise",
)


@dataclass(frozen=True)
class ChainReport:
    """One chain or formula (a Gram matrix, an adaptive instance norm), at the sizes of one call.

    Attributes:
        layers: the qualified names of its layers, in order; a function's name where no layer is.
        input_shape, output_shape: of the tensors that go in and come out.
        op: the function of artkernels.functional that computes it.
        kernel: ours; or stock, where that op runs PyTorch's convolution, or the layers run as they were written.
        why: one sentence on that choice.
        ours_ms, stock_ms: median time of a forward, fused and as it was written.
        backward: in training, whose kernels compute the gradients, "ours", "stock" or, where a convolution's gradients
            differ, "input ours, weight stock" or the reverse; empty in evaluation.
    """

    layers: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    op: str
    kernel: Kernel
    why: str
    ours_ms: float
    stock_ms: float
    backward: str


@dataclass(frozen=True)
class Explanation:
    """What `explain` found; its str is a table.

    Attributes:
        rows: a report of each fused chain, in the order of the calls.
        left: names of modules whose forward stays as it is -> why; "" is the model itself.
    """

    rows: tuple[ChainReport, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        head = ("layers", "input", "output", "op", "kernel", "backward", "ours", "stock", "stock / ours", "why")
        table = [head, *map(_cells, self.rows)]
        if not any(row.backward for row in self.rows):
            table = [(*row[:5], *row[6:]) for row in table]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = (
            ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table] if self.rows else ["nothing is fused"]
        )
        return "\n".join(lines + [f"{name or 'the model'} stays as it is: {why}" for name, why in self.left.items()])


def _cells(row: ChainReport) -> tuple[str, ...]:
    shapes = ("x".join(map(str, shape)) for shape in (row.input_shape, row.output_shape))
    times = f"{row.ours_ms:.3f} ms", f"{row.stock_ms:.3f} ms", f"{row.stock_ms / row.ours_ms:.2f}"
    return _short(row.layers), *shapes, row.op, row.kernel, row.backward, *times, row.why


def _short(layers: tuple[str, ...]) -> str:
    """main.0, main.1, relu -> main.0 .1 relu: a parent that is the one before's is left out."""
    words, before = [], ""
    for layer in layers:
        parent, dot, name = layer.rpartition(".")
        words.append(f"{dot}{name}" if parent and parent == before else layer)
        before = parent
    return " ".join(words)


def explain(model: nn.Module, *inputs: Any) -> Explanation:
    """Runs the model on an example, and says what its fused form does with each layer.

    The model is fused, on a copy, if it is not yet. Each chain runs some times for its timing: in evaluation without
    gradients, in training with them, as the model is.

    Args:
        model: any module, fused or not; it is left as it is.
        inputs: what to call it with.
    """
    model = copy.deepcopy(model) if fused_modules(model) else fuse(model)
    rows: list[ChainReport] = []
    modules = fused_modules(model)
    with torch.set_grad_enabled(model.training):
        for name, module in modules.items():
            _watch(name, module, rows)
        model(*inputs)
    return Explanation(tuple(rows), _left(modules))


def _watch(name: str, module: nn.Module, rows: list[ChainReport]) -> None:
    """Lets the module's graph run with each chain watched."""
    graph = state_of(module).graph(module)
    if graph is None or graph.run is None:
        return
    run = graph.run
    assert isinstance(run, FunctionType)
    prefix = f"{name}." if name else ""
    names = {
        key: _Watched(value, prefix, rows) if isinstance(value, FusedCall) else value
        for key, value in run.__globals__.items()
    }
    graph.run = FunctionType(run.__code__, names)


def _left(modules: dict[str, Any]) -> dict[str, str]:
    graphs = {name: state_of(module).graph(module) for name, module in modules.items()}
    return {name: graph.why_not for name, graph in graphs.items() if graph is not None and graph.why_not}


@dataclass(frozen=True)
class _Watched:
    """A chain or a formula that reports its calls."""

    call: FusedCall
    prefix: str
    rows: list[ChainReport]

    def __call__(self, *args: Any) -> Tensor:
        call = self.call
        apart = call.apart(*args)
        output = call(*args)
        ours, stock = _interleaved(lambda: call(*args), lambda: call.stock(*args))
        shapes = tuple(args[0].shape), tuple(output.shape)
        choice: tuple[Kernel, str] = ("stock", apart) if apart else _kernel(lambda: call(*args))
        backward = "" if not torch.is_grad_enabled() else "stock" if apart else _backward(call, args)
        layers = call.layers(self.prefix, *args)
        self.rows.append(ChainReport(layers, *shapes, call.__name__, *choice, ours, stock, backward))
        return output


def _kernel(call: Callable[[], Tensor]) -> tuple[Kernel, str]:
    """What a fused call runs: which convolution, its op decides."""
    with profiler_legacy.profile() as profile:  # type: ignore[no-untyped-call]
        call()
    names = [event.name for event in profile.function_events]
    if any(name in _STOCK_CONVOLUTIONS for name in names):
        return "stock", "its op takes PyTorch's convolution for this size, dtype and layout, and fuses what follows"
    if any(name.startswith("artkernels::conv") for name in names):
        return "ours", "convolution and what follows in one kernel"
    if "artkernels::gram_matrix" in names:
        return "ours", "half of a symmetric product, scaled as it is written"
    return "ours", "normalisation and what follows in one kernel"


def _backward(call: FusedCall, args: tuple[Any, ...]) -> str:
    """Whose kernels compute the gradients of a fused call."""
    leaves: list[Any] = [arg.detach().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
    output = call(*leaves)
    with profiler_legacy.profile() as profile:  # type: ignore[no-untyped-call]
        torch.autograd.backward(output, torch.ones_like(output))
    names = {event.name for event in profile.function_events}
    of_input = "stock" if names & {*_STOCK_CONVOLUTIONS} else "ours"
    of_weight = "stock" if "aten::convolution_backward" in names else "ours"
    return of_input if of_input == of_weight else f"input {of_input}, weight {of_weight}"


def _interleaved(*calls: Callable[[], Tensor]) -> list[float]:
    """Median milliseconds of each, measured in turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + _SECONDS
    for call in calls:
        call()
    while not seconds[0] or (time.perf_counter() < end and len(seconds[0]) < 100):
        for call, measured in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            output = call()
            if output.is_cuda:
                torch.cuda.synchronize(output.device)
            measured.append(time.perf_counter() - start)
    return [1e3 * statistics.median(measured) for measured in seconds]
