"""fuse and unfuse: a model's modules become instances of a subclass of their class, whose forward runs fused graphs.

Nothing else of a model changes. A module's forward is traced when the model is fused, once for training and once for
evaluation, and again when something that the trace depends on has changed. Each module has graphs of its own, into
which those of its submodules are inlined where they can be: a chain may reach across modules, and a module called by
itself (`model.encoder(x)`) is as fast as within its model.
"""

import copy
import copyreg
import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..nn.conv import _has_hooks
from .rewrite import FusedCall, fuse_graph
from .trace import ModuleTracer, UntraceableError, is_leaf, is_tracing, python_function, required_arguments

__all__ = ["Graph", "State", "fuse", "fused_modules", "state_of", "unfuse"]

Model = TypeVar("Model", bound=nn.Module)

_STATE = "_artkernels_fusion"
_MOST_GRAPHS = 16
# What torch sets, and no forward reads: torch.compile, and torch.nn.DataParallel in its replicas. (Graph has training.)
_MARKS = {"training", "_is_torch_compile", "_is_replica", "_former_parameters", "_parameters", "_buffers", "_modules"}


def fuse(model: Model, *, inplace: bool = False) -> Model:
    """The model, computed by the fused operations of artkernels.functional.

    Found are [nearest upsampling by 2] -> [padding of zeros or a reflection] -> convolution or transposed convolution
    -> [batch or instance norm] -> [residual] -> [activation], and batch, instance or group norm -> [residual] ->
    [activation], in torch.nn.Sequential and in forward methods (by torch.fx); there also Gram matrices and adaptive
    instance norm, as the public style-transfer code writes them. The result is of the model's type, has
    its parameters, buffers and `state_dict`, and may be trained, toggled, moved, copied, pickled, compiled and wrapped
    (DistributedDataParallel) as before. Where something wants a layer called by itself, such as a hook, and for inputs
    that the operations are not made for, its chain runs as it was written.

    A forward that cannot be written as one graph (control flow that depends on the input, random numbers, a context
    manager such as torch.no_grad, an attribute that it sets) stays as it is, and the modules within are fused each by
    itself; `artkernels.explain` says why. What forward reads from attributes of modules may change; what it reads from
    elsewhere (a list in an attribute, a global) must not, or the model be fused again. torch.compile cannot trace while
    it compiles: a model unpickled, or whose attributes changed, is to be called or fused once before.

    Args:
        model: any module. A single layer of torch.nn stays as it is.
        inplace: change the model itself, not a copy.

    Returns:
        The fused model; to float32's rounding, its numbers are the model's.
    """
    model = model if inplace else copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _Fused):
            _change(module)
            state_of(module).graphs.clear()
        elif not is_leaf(module):
            with suppress(TypeError):  # a class that may not be subclassed, or its instances not be given another
                stock_class: Any = type(module)
                module.__class__ = _fused_class(stock_class)
    for module in _outermost(model):
        for training in (True, False):
            _trace_as(module, training)
    return model


def unfuse(model: Model, *, inplace: bool = False) -> Model:
    """The model as it was before `fuse`, with the parameters and buffers that it has now.

    Args:
        model: any module, fused or not.
        inplace: change the model itself, not a copy.
    """
    model = model if inplace else copy.deepcopy(model)
    for module in fused_modules(model).values():
        module.__class__ = type(module).stock_class
        module.__dict__.pop(_STATE, None)
    return model


def fused_modules(model: nn.Module) -> dict[str, Any]:
    """The modules that run fused graphs where they can, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Fused)}


# ---- graphs, and whether they still hold -----------------------------------------------------------------------------


class _Inlined(NamedTuple):
    """A module whose forward is part of a graph, and what that depends on."""

    siblings: dict[str, Any]  # the modules of its parent, it among them
    name: str
    module: Any
    training: bool
    changes: int

    def holds(self) -> bool:
        module: nn.Module = self.module
        same = self.siblings.get(self.name) is module and not _has_hooks(module)
        return same and module.training == self.training and state_of(module).changes == self.changes


@dataclass
class Graph:
    """A forward, traced and rewritten.

    Attributes:
        run: (module, *tensors) -> what forward returns; None where it could not be traced.
        why_not: the reason then.
        chains: the chains, and formulas, that it calls.
    """

    run: Callable[..., Any] | None
    training: bool
    changes: int
    inlined: tuple[_Inlined, ...] = ()
    why_not: str | None = None
    chains: tuple[FusedCall, ...] = ()

    def holds(self, module: nn.Module, state: "State") -> bool:
        same = module.training == self.training and state.changes == self.changes
        return same and all(inlined.holds() for inlined in self.inlined)


@dataclass
class State:
    """What a fused module remembers. A pickle of it is empty: graphs are traced again."""

    changes: int = 0  # of the module's attributes
    graphs: list[Graph] = field(default_factory=list)

    def graph(self, module: nn.Module) -> Graph | None:
        """That of the module as it is now; None where there is none and none can be made now."""
        for graph in self.graphs:
            if graph.holds(module, self):
                return graph
        if torch.compiler.is_compiling() or is_tracing() or len(self.graphs) >= _MOST_GRAPHS:
            return None
        self.graphs.insert(0, _trace(module, self))
        return self.graphs[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> "State":
        return State(self.changes, copy.deepcopy(self.graphs, memo))

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return State, ()


def state_of(module: nn.Module) -> State:
    """Of a fused module."""
    state = module.__dict__.get(_STATE)
    if state is None:
        state = module.__dict__[_STATE] = State()
    return state


def _trace(module: nn.Module, state: State) -> Graph:
    tracer = ModuleTracer()
    try:
        graph = tracer.trace(module)
        inlined = tuple(_inlined(module, inner) for inner in tracer.inlined[1:])
        chains = fuse_graph(graph, module)
        run = python_function(graph, type(module).__name__)
    except Exception as error:  # of any kind: it is the author's code that runs, on stand-ins
        why = str(error).partition("\n")[0]
        reason = why if isinstance(error, UntraceableError) else f"torch.fx cannot trace forward: {why}"
        return Graph(None, module.training, state.changes, why_not=reason)
    return Graph(run, module.training, state.changes, inlined, chains=tuple(chains))


def _inlined(root: nn.Module, module: nn.Module) -> _Inlined:
    path = next(name for name, inner in root.named_modules() if inner is module)
    parent, _, name = path.rpartition(".")
    changes = state_of(module).changes
    return _Inlined(root.get_submodule(parent)._modules, name, module, module.training, changes)


def _outermost(model: nn.Module) -> list[nn.Module]:
    """The fused modules that are part of no other's graph: those that will be called."""
    if isinstance(model, _Fused):
        return [model]
    return [inner for child in model.children() for inner in _outermost(child)]


def _trace_as(module: nn.Module, training: bool) -> None:
    flags = {inner: inner.training for inner in module.modules()}
    try:
        for inner in flags:
            inner.training = training
        state_of(module).graph(module)
    finally:
        for inner, flag in flags.items():
            inner.training = flag


# ---- the class of a fused module -------------------------------------------------------------------------------------


class _Fused:
    """What a fused module's class has beside those of the model's author; put before them."""

    stock_class: type[nn.Module]
    stock_forward: Callable[..., Any]
    arguments: tuple[str, ...]  # that stock_forward needs

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _MARKS:
            _set(self, name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        _set(self, name)
        super().__delattr__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return reduced  # the author's own way
        _, (_, *args), *rest = reduced
        return (_new, (self.stock_class, *args), *rest)


def _set(module: Any, name: str) -> None:
    if is_tracing():
        raise UntraceableError(f"forward sets its attribute {name}")
    _change(module)


def _change(module: Any) -> None:
    """Makes all graphs that the module is part of hold no more."""
    state_of(module).changes += 1


@functools.cache
def _fused_class(stock_class: Any) -> Any:
    @functools.wraps(stock_class.forward)  # a function of this class alone: what wraps leaves on it is the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        names = self.arguments
        if kwargs and len(args) + len(kwargs) == len(names) and all(name in kwargs for name in names[len(args) :]):
            args, kwargs = (*args, *(kwargs[name] for name in names[len(args) :])), {}
        if not kwargs and len(args) == len(names) and all(isinstance(arg, Tensor) for arg in args):
            graph = state_of(self).graph(self)
            if graph is not None and graph.run is not None:
                return graph.run(self, *args)
        return stock_class.forward(self, *args, **kwargs)

    own = {"stock_class": stock_class, "stock_forward": stock_class.forward, "forward": forward}
    own["arguments"] = required_arguments(stock_class.forward)
    named = {name: getattr(stock_class, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(stock_class.__name__, (_Fused, stock_class), own | named)


def _new(stock_class: Any, *args: Any) -> Any:
    made = _fused_class(stock_class)
    return made.__new__(made, *args)
