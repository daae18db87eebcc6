"""Traces a module's forward with torch.fx, and refuses where the graph would not mean the same as the code.

torch.fx runs forward once, on stand-ins for tensors. What forward does besides calling functions of them is done then,
and never again: it would be lost without a word. Such a forward is left as it is.
"""

import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter, signature
from types import MethodType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..nn.conv import _has_hooks
from .assertions import asserted_length, is_asserted

__all__ = [
    "ModuleTracer",
    "UntraceableError",
    "is_leaf",
    "is_tracing",
    "python_function",
    "required_arguments",
    "stock_forward",
]

_turn = threading.RLock()  # torch.fx patches torch.nn.Module while it traces
_thread: int | None = None  # the one that traces


class UntraceableError(Exception):
    """Why a forward must stay as it is: `forward` and a verb."""


def is_tracing() -> bool:
    """Whether this thread is tracing a module."""
    return _thread == threading.get_ident()


def stock_forward(module: nn.Module) -> Callable[..., Any]:
    """The forward that the module's author wrote, whether the module is fused or not."""
    own = module.__dict__.get("forward")
    return own or MethodType(getattr(type(module), "stock_forward", type(module).forward), module)


def is_leaf(module: nn.Module) -> bool:
    """Whether the module is called as it is: those of torch and of artkernels, but for nn.Sequential."""
    if isinstance(module, nn.Sequential):
        return False
    library = stock_forward(module).__module__ or ""
    scripted = isinstance(module, (torch.jit.ScriptModule, fx.GraphModule))
    return scripted or f"{library}.".startswith(("torch.", "artkernels.nn."))


def required_arguments(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Those after self that it has no default for, by name; a graph is of a call with these alone."""
    positional = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
    parameters = list(signature(forward).parameters.values())[1:]
    return tuple(p.name for p in parameters if p.kind in positional and p.default is Parameter.empty)


class ModuleTracer(fx.Tracer):
    """A graph of a module's forward and of those of its submodules that can be traced.

    Attributes:
        inlined: the modules whose forward is part of the graph, the root first.
    """

    traced_func_name = "stock_forward"
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.inlined: list[nn.Module] = []
        self._untraceable: set[nn.Module] = set()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph.

        Raises:
            Exception: of any kind; forward cannot be traced.
        """
        with _alone():
            self._ambience, chance = _ambience(), _state_of_chance()
            self.inlined = [root]
            graph = super().trace(root, concrete_args)
            if _state_of_chance() != chance:
                raise UntraceableError("forward draws random numbers")
        return graph

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        names = required_arguments(root_fn)
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if not is_tracing():  # another thread's call, which must not see the patch
            return forward(*args, **kwargs)
        if is_leaf(m) or m in self._untraceable or _has_hooks(m):
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        nodes, inlined = len(self.graph.nodes), len(self.inlined)
        self.inlined.append(m)
        try:
            return stock_forward(m)(*args, **kwargs)
        except Exception:
            for node in reversed(list(self.graph.nodes)[nodes:]):
                self.graph.erase_node(node)
            del self.inlined[inlined:]
            self._untraceable.add(m)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if not is_tracing():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _ambience() != self._ambience:
            raise UntraceableError("forward switches gradients, autocast or checkpointing")
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not self._is_attribute(a):
            raise UntraceableError("forward makes a tensor that does not come from its input")
        return super().create_arg(a)

    def _is_attribute(self, tensor: Tensor) -> bool:
        if tensor in self.tensor_attrs:
            return True
        return any(tensor is own for own in (*self.root.parameters(), *self.root.buffers()))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)


class _Value(fx.Proxy):
    """A stand-in that does not answer what it is: `isinstance(x, Tensor)` would be False of it, and true of x."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        if f"{asks}.".startswith(("torch.", "artkernels.fusion.", "inspect.")):
            return _Value
        raise UntraceableError("forward asks for the type of a value")

    def __bool__(self) -> bool:
        if not is_asserted(sys._getframe(1)):
            return super().__bool__()
        torch._assert(self, "an assertion of the model's forward")
        return True

    def __len__(self) -> int:
        length = asserted_length(sys._getframe(1))
        if length is None:
            return super().__len__()
        of_value = self.tracer.create_proxy("call_function", len, (self,), {})
        torch._assert(operator.eq(of_value, length), "an assertion of the model's forward")
        return length


def python_function(graph: fx.Graph, name: str) -> Callable[..., Any]:
    """The graph as a function of the module and its inputs, which finds layers and parameters by their names."""
    code = graph.python_code("self")
    exec(compile(code.src, f"<fused {name}>", "exec"), code.globals)
    function: Callable[..., Tensor] = code.globals["forward"]
    return function


@contextmanager
def _alone() -> Iterator[None]:
    global _thread
    with _turn:
        _thread = threading.get_ident()
        try:
            yield
        finally:
            _thread = None


def _ambience() -> tuple[Any, ...]:
    """What a context manager may change around a call, which a graph of calls does not hold."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch._C._autograd._top_saved_tensors_default_hooks(False) is None,
        *((torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in ("cpu", "cuda")),
    )


def _state_of_chance() -> tuple[Any, ...]:
    _, keys, position, *_ = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    return random.getstate(), torch.get_rng_state().numpy().tobytes(), keys.tobytes(), position
