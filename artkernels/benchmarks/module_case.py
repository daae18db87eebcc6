"""Cases that are modules: stock PyTorch's, ours with the same weights, and everyone who computes the stock one."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import artkernels
from artkernels.benchmarks import peers
from artkernels.benchmarks.case import LAYOUTS, Candidate, Setting
from artkernels.benchmarks.results import EAGER, OURS, Pass

__all__ = ["Function", "ModuleCase", "normal", "pictures"]


class Function(nn.Module):
    """A function of tensors as a module without weights."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def normal(shape: tuple[int, ...]) -> list[Tensor]:
    """One input that is differentiated too, as a layer in the middle of a network has it."""
    return [torch.randn(shape, requires_grad=True)]


def pictures(shape: tuple[int, ...]) -> list[Tensor]:
    """A batch of pictures in [0, 1], which nobody differentiates."""
    return [torch.rand(shape)]


@dataclass(frozen=True)
class ModuleCase:
    """See Case; beyond that:

    Attributes:
        stock: makes the stock module.
        fused: makes ours of it, with its weights.
        inputs: makes what both are called with, float32; the first has the case's shape. Those that require gradients
            are differentiated.
        cast: how 16 bits come in: the whole module in them, its inputs alone (normalisation keeps float32 parameters),
            or autocast.
        flops_share: of stock's FLOPs, those that are needed: half of a product that is symmetric.
        engines: whether inference engines compute it too.
        compiled: passes in which torch.compile is a peer: it takes minutes to compile a large model's step.
    """

    op: str
    name: str
    title: str
    shape: tuple[int, ...]
    stock: Callable[[], nn.Module]
    fused: Callable[[nn.Module], nn.Module] = artkernels.fuse
    inputs: Callable[[tuple[int, ...]], list[Tensor]] = normal
    passes: tuple[Pass, ...] = ("inference", "backward", "step")
    cast: Literal["module", "inputs", "autocast"] = "module"
    flops_share: float = 1.0
    engines: bool = False
    compiled: tuple[Pass, ...] = ("inference", "forward", "backward", "step")
    quick: bool = False
    axis: str = ""
    threads: int = 0

    @property
    def layouts(self) -> tuple[str, ...]:
        return tuple(LAYOUTS) if len(self.shape) == 4 and not self.axis else ("contiguous",)

    @property
    def dtypes(self) -> tuple[str, ...]:
        return ("float32",) if self.axis else ("float32", "bfloat16", "float16")

    def tolerance(self, dtype: str) -> tuple[float, float]:
        """512 roundings of float32, 4 of 16 bits.

        Gradients agree no better than this: what lies within rounding of an activation's kink has the other slope. Of
        whole networks under autocast twice as much: eager's own bfloat16 is 4 roundings from its float32 (CycleGAN's
        generator), and its gradients a quarter of their size (TransformerNet's first layers).
        """
        if dtype == "float32":
            return 6e-5, 5e-2
        of_network = 2 if self.cast == "autocast" else 1
        return 4 * of_network * torch.finfo(getattr(torch, dtype)).eps, 0.25 * of_network

    def peers(self, setting: Setting) -> list[str]:
        names = [EAGER] if len(self.layouts) == 1 else [EAGER, peers.CHANNELS_LAST]
        if setting.device != "cpu":
            return [*names, peers.CUDNN_BENCHMARK, peers.COMPILE]
        if setting.dtype != "float32" or setting.layout != "contiguous" or self.axis:
            return names
        names += [peers.COMPILE] if setting.kind in self.compiled else []
        return names + ([peers.FREEZING, *peers.ENGINES] if self.engines and setting.kind == "inference" else [])

    def candidate(self, name: str, setting: Setting, resources: ExitStack) -> Candidate:
        layout = {OURS: setting.layout, peers.CHANNELS_LAST: "channels_last"}.get(name, "contiguous")
        module, inputs = self._module(setting, layout), self._inputs(setting, layout)
        if name in peers.ENGINES:
            engine = peers.ENGINES[name](module, *inputs)
            return Candidate(engine, lambda: ([torch.as_tensor(engine())], []))
        if name == OURS:
            module = self.fused(module)
        function, weights = peers.function(name, module), list(module.parameters())
        if self.cast == "autocast" and setting.dtype != "float32":
            function = torch.autocast(setting.device, setting.torch_dtype)(function)
        make = _differentiated if setting.differentiates else _evaluated
        candidate = make(function, inputs, weights, setting)
        return peers.with_cudnn_benchmark(candidate) if name == peers.CUDNN_BENCHMARK else candidate

    def least(self, setting: Setting) -> tuple[int, int]:
        module = self._module(setting, setting.layout).to("meta")
        inputs = [_on_meta(tensor) for tensor in self._inputs(setting, setting.layout)]
        weights = list(module.parameters())
        with FlopCounterMode(display=False) as counter:
            outputs = tree_leaves(module(*inputs))
            bytes_forward, flops_forward = _bytes(inputs, weights, outputs), counter.get_total_flops()
            if not setting.differentiates:
                return bytes_forward, int(self.flops_share * flops_forward)
            leaves = _leaves(inputs, weights)
            torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
        bytes_backward, flops = bytes_forward + _bytes(leaves), counter.get_total_flops()
        if setting.kind == "backward":
            return bytes_backward, int(self.flops_share * (flops - flops_forward))
        return bytes_forward + bytes_backward, int(self.flops_share * flops)

    def _module(self, setting: Setting, layout: str) -> nn.Module:
        torch.manual_seed(0)
        module = self.stock().train(setting.kind != "inference")
        if self.cast == "module":
            module.to(setting.torch_dtype)
        placed: nn.Module = module.to(setting.device).to(memory_format=LAYOUTS[layout])
        return placed

    def _inputs(self, setting: Setting, layout: str) -> list[Tensor]:
        """Feature maps in the setting's dtype and layout; statistics and targets, of fewer dimensions, as they are."""
        torch.manual_seed(1)
        dtype = torch.float32 if self.cast == "autocast" else setting.torch_dtype
        found = []
        for tensor in self.inputs(self.shape):
            placed = tensor.detach().to(setting.device)
            if tensor.dim() == len(self.shape):
                placed = placed.to(dtype)
            if tensor.dim() == 4:
                placed = placed.contiguous(memory_format=LAYOUTS[layout])
            found.append(placed.requires_grad_(tensor.requires_grad and setting.differentiates))
        return found


def _on_meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)


def _bytes(*groups: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for group in groups for tensor in group)


def _leaves(inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor in (*inputs, *weights) if tensor.requires_grad]


def _evaluated(
    function: Callable[..., Any], inputs: Sequence[Tensor], weights: Sequence[Tensor], setting: Setting
) -> Candidate:
    @torch.no_grad()
    def call() -> Any:
        return function(*inputs)

    def results() -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(2)
        return tree_leaves(call()), []

    return Candidate(call, results)


def _differentiated(
    function: Callable[..., Any], inputs: Sequence[Tensor], weights: Sequence[Tensor], setting: Setting
) -> Candidate:
    leaves = _leaves(inputs, weights)

    def forward() -> list[Tensor]:
        outputs: list[Tensor] = tree_leaves(function(*inputs))
        return outputs

    torch.manual_seed(2)
    kept = forward()
    gradients = [torch.empty_like(output).copy_(torch.randn(output.shape)) for output in kept]

    def step() -> Sequence[Tensor]:
        return torch.autograd.grad(forward(), leaves, gradients)

    def backward() -> Sequence[Tensor]:
        return torch.autograd.grad(kept, leaves, gradients, retain_graph=True)

    def results() -> tuple[list[Tensor], list[Tensor]]:
        torch.manual_seed(2)
        outputs = forward()
        return [output.detach() for output in outputs], list(torch.autograd.grad(outputs, leaves, gradients))

    if setting.kind == "backward":
        return Candidate(backward, results)
    kept = []  # the step makes its own
    return Candidate(step, results)
