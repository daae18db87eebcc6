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

from .chains import Chain
from .model import fuse, fused_modules, state_of

__all__ = ["ChainReport", "Explanation", "explain"]

Kernel = Literal["ours", "stock"]

_SECONDS = 0.2  # for timing one chain
# Of torch's own convolutions, as the profiler calls them.
_STOCK_CONVOLUTIONS = ("aten::convolution", "aten::_convolution", "aten::mkldnn_convolution")


@dataclass(frozen=True)
class ChainReport:
    """One chain, at the sizes of one call.

    Attributes:
        layers: the qualified names of its layers, in order; a function's name where no layer is.
        input_shape, output_shape: of the tensors that go in and come out.
        op: the function of artkernels.functional that computes it.
        kernel: ours; or stock, where that op runs PyTorch's convolution, or the layers run as they were written.
        why: one sentence on that choice.
        ours_ms, stock_ms: median time of a forward, fused and as it was written.
    """

    layers: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    op: str
    kernel: Kernel
    why: str
    ours_ms: float
    stock_ms: float


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
        head = ("layers", "input", "output", "op", "kernel", "ours", "stock", "stock / ours", "why")
        table = [head, *map(_cells, self.rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = (
            ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table] if self.rows else ["nothing is fused"]
        )
        return "\n".join(lines + [f"{name or 'the model'} stays as it is: {why}" for name, why in self.left.items()])


def _cells(row: ChainReport) -> tuple[str, ...]:
    shapes = ("x".join(map(str, shape)) for shape in (row.input_shape, row.output_shape))
    times = f"{row.ours_ms:.3f} ms", f"{row.stock_ms:.3f} ms", f"{row.stock_ms / row.ours_ms:.2f}"
    return _short(row.layers), *shapes, row.op, row.kernel, *times, row.why


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
        key: _Watched(value, prefix, rows) if isinstance(value, Chain) else value
        for key, value in run.__globals__.items()
    }
    graph.run = FunctionType(run.__code__, names)


def _left(modules: dict[str, Any]) -> dict[str, str]:
    graphs = {name: state_of(module).graph(module) for name, module in modules.items()}
    return {name: graph.why_not for name, graph in graphs.items() if graph is not None and graph.why_not}


@dataclass(frozen=True)
class _Watched:
    """A chain that reports its calls."""

    chain: Chain
    prefix: str
    rows: list[ChainReport]

    def __call__(self, input: Tensor, residual: Tensor | None, *modules: nn.Module | None) -> Tensor:
        chain = self.chain
        apart = chain.obstacle(modules) or chain.misfit(input, residual, modules)
        output = chain(input, residual, *modules)
        ours, stock = _interleaved(
            lambda: chain(input, residual, *modules), lambda: chain.stock(input, residual, modules)
        )
        named = zip(chain.links, modules, strict=True)
        layers = tuple(link.name if module is None else self.prefix + link.name for link, module in named)
        shapes = tuple(input.shape), tuple(output.shape)
        choice: tuple[Kernel, str] = ("stock", apart) if apart else _kernel(lambda: chain(input, residual, *modules))
        self.rows.append(ChainReport(layers, *shapes, chain.__name__, *choice, ours, stock))
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
    return "ours", "normalisation and what follows in one kernel"


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
