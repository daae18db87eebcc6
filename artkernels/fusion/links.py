"""What a node of a traced graph does, in the terms of the fused operations."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as torch_functional

from ..nn.conv import _has_hooks
from ..ops.norm_act import Activation
from .trace import is_leaf

__all__ = ["Link", "Pad", "Role", "link_of", "mutates"]

Role = Literal["upsample", "pad", "conv", "norm", "activation", "add", "identity"]


class Pad(NamedTuple):
    """What is added at each side, of zeros or of the input mirrored."""

    mode: Literal["zeros", "reflect"]
    left: int
    right: int
    top: int
    bottom: int


@dataclass(frozen=True)
class Link:
    """One layer, or one call of a function, that may be part of a fused operation.

    Attributes:
        role: what it does there.
        name: the layer's qualified name, or the function's.
        forward: of a layer, what its type must have as its forward to be what it seems; None of a function.
        call: of a function, (value, residual) -> value; None of a layer.
        kind: of an activation, its name; of a normalisation, batch, instance or group.
        settings: of a function, what its arguments say: the Pad, or the activation's negative slope.
    """

    role: Role
    name: str
    forward: Callable[..., Any] | None = None
    call: Callable[[Tensor, Tensor | None], Tensor] | None = field(default=None, repr=False)
    kind: str = ""
    settings: Any = None

    def look(self, module: Any) -> tuple[Any, ...] | None:
        """All that a layer's part in a fused operation depends on, but for its parameters; None of a function."""
        if module is None:
            return None
        return "forward" in module.__dict__, _has_hooks(module), _SETTINGS.get(self.kind, _type_of)(module)

    def is_still(self, module: Any) -> bool:
        """Whether the layer at its place does what this link says."""
        if module is None:
            return True
        if type(module).forward is not self.forward or "forward" in module.__dict__:
            return False
        return self.kind != "conv2d" or type(module)._conv_forward is nn.Conv2d._conv_forward

    def apply(self, value: Tensor, residual: Tensor | None, module: nn.Module | None) -> Tensor:
        """What the model's author wrote."""
        result: Tensor = self.call(value, residual) if module is None else module(value)  # type: ignore[misc]
        return result

    def pad(self, module: Any) -> Pad | None:
        """None where it pads neither zeros nor a reflection, of rows and columns."""
        if module is None or self.settings is not None:
            settings: Pad | None = self.settings
            return settings
        return _pad_of(module.padding, "reflect" if self.kind == "reflect" else "constant", getattr(module, "value", 0))

    def activation(self, module: Any) -> tuple[Activation, float] | None:
        """Its name and its negative slope; None where there is no such activation here."""
        slope = self.settings if module is None else getattr(module, "negative_slope", 0.01)
        if getattr(module, "approximate", "none") != "none" or slope < 0:
            return None
        return self.kind, slope  # type: ignore[return-value]

    def doubles(self, module: Any) -> bool:
        """Whether it repeats each pixel of an image, twice in each direction."""
        if module is None:
            return True
        return module.mode == "nearest" and module.size is None and module.scale_factor in (2, (2, 2))


# The forward of a layer's type -> its role and kind.
_LAYERS: dict[Any, tuple[Role, str]] = {
    nn.Upsample.forward: ("upsample", "nearest"),
    nn.ReflectionPad2d.forward: ("pad", "reflect"),
    nn.ZeroPad2d.forward: ("pad", "constant"),
    nn.Conv2d.forward: ("conv", "conv2d"),
    nn.ConvTranspose2d.forward: ("conv", "conv_transpose2d"),
    nn.BatchNorm2d.forward: ("norm", "batch"),
    nn.InstanceNorm2d.forward: ("norm", "instance"),
    nn.GroupNorm.forward: ("norm", "group"),
    nn.ReLU.forward: ("activation", "relu"),
    nn.LeakyReLU.forward: ("activation", "leaky_relu"),
    nn.Tanh.forward: ("activation", "tanh"),
    nn.Sigmoid.forward: ("activation", "sigmoid"),
    nn.SiLU.forward: ("activation", "silu"),
    nn.GELU.forward: ("activation", "gelu"),
    nn.Identity.forward: ("identity", ""),
}

# What the layers of a kind have besides: it may be set at any time, and nothing tells.
_type_of = attrgetter("__class__", "__class__.forward")
_of_convolutions = ("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    kind: attrgetter("__class__", "__class__.forward", *names)
    for kind, names in {
        "nearest": ("size", "scale_factor", "mode"),
        "reflect": ("padding",),
        "constant": ("padding", "value"),
        "conv2d": ("__class__._conv_forward", "in_channels", "out_channels", *_of_convolutions),
        "conv_transpose2d": ("in_channels", "out_channels", *_of_convolutions),
        "batch": ("num_features",),
        "instance": ("num_features",),
        "leaky_relu": ("negative_slope",),
        "gelu": ("approximate",),
    }.items()
}

_ACTIVATIONS: dict[Any, str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    torch_functional.relu: "relu",
    torch_functional.leaky_relu: "leaky_relu",
    torch_functional.leaky_relu_: "leaky_relu",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    torch_functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    torch_functional.sigmoid: "sigmoid",
    torch_functional.silu: "silu",
    torch_functional.gelu: "gelu",
    **{getattr(Tensor, name + end): name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")},
}

_ADDITIONS = (operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_)
_IN_PLACE_OPERATORS = {
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and hasattr(operator, name[1:])
}
# What functional layers with settings are called with, in order, after their input.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    torch_functional.relu: ("inplace",),
    torch_functional.leaky_relu: ("negative_slope", "inplace"),
    torch_functional.leaky_relu_: ("negative_slope",),
    torch_functional.silu: ("inplace",),
    torch_functional.gelu: ("approximate",),
    torch_functional.pad: ("pad", "mode", "value"),
    torch_functional.interpolate: ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"),
}


def link_of(node: fx.Node, root: nn.Module, value: fx.Node | None = None) -> tuple[Link, fx.Node | None] | None:
    """The link that a node is, and the residual if it adds one.

    Args:
        node: of the graph of `root`.
        value: what the chain made so far, which the node must take; None: whatever it takes.
    """
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        found = _LAYERS.get(type(module).forward)
        if found is None or len(node.args) != 1 or node.kwargs:
            return None
        link = Link(found[0], str(node.target), type(module).forward, kind=found[1])
        return (link, None) if link.is_still(module) else None
    function = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
    if node.op not in ("call_function", "call_method") or not node.args:
        return None
    if function in _ADDITIONS:
        return _addition(node, function, value)
    if [*node.all_input_nodes] != [node.args[0]]:
        return None
    link_or_none = _function(node, function)
    return None if link_or_none is None else (link_or_none, None)


def _function(node: fx.Node, function: Any) -> Link | None:
    settings = dict(zip(_ARGUMENTS.get(function, ()), node.args[1:], strict=False)) | node.kwargs
    name = getattr(function, "__name__", "")
    args, kwargs = node.args[1:], dict(node.kwargs)

    def call(value: Tensor, _: Tensor | None) -> Tensor:
        result: Tensor = function(value, *args, **kwargs)
        return result

    if function in _ACTIVATIONS and settings.get("approximate", "none") == "none":
        return Link(
            "activation", name, call=call, kind=_ACTIVATIONS[function], settings=settings.get("negative_slope", 0.01)
        )
    if function is torch_functional.pad:
        pad = _pad_of(settings.get("pad"), settings.get("mode", "constant"), settings.get("value"))
        return None if pad is None else Link("pad", name, call=call, settings=pad)
    if function is torch_functional.interpolate:
        scale = settings.pop("scale_factor", None)
        plain = settings.pop("mode", "nearest") == "nearest" and not any(settings.values())
        doubles = (list(scale) if isinstance(scale, (tuple, list)) else scale) in (2, [2, 2])
        return Link("upsample", name, call=call) if plain and doubles else None
    return None


def _addition(node: fx.Node, function: Any, value: fx.Node | None) -> tuple[Link, fx.Node | None] | None:
    if value is None or len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if not (isinstance(left, fx.Node) and isinstance(right, fx.Node)) or left is right:
        return None
    if left is not value and mutates_first(function):  # it changes the residual
        return None
    of_left = left is value

    def call(value: Tensor, residual: Tensor | None) -> Tensor:
        result: Tensor = function(value, residual) if of_left else function(residual, value)
        return result

    return Link("add", "add", call=call), right if of_left else left


def _pad_of(sides: Any, mode: Any, value: Any) -> Pad | None:
    whole = isinstance(sides, (tuple, list)) and len(sides) == 4 and all(isinstance(side, int) for side in sides)
    if not whole or mode not in ("constant", "reflect") or (mode == "constant" and value not in (None, 0)):
        return None
    return Pad("reflect" if mode == "reflect" else "zeros", *sides)


def mutates_first(function: Any) -> bool:
    """Whether a function changes its first argument, by its name."""
    name = getattr(function, "__name__", "")
    return function in _IN_PLACE_OPERATORS or name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def mutates(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node may change a tensor that other nodes see."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        changes = not is_leaf(module) or _has_hooks(module) or getattr(module, "inplace", False)
    elif node.op in ("call_function", "call_method"):
        function = getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target
        settings = dict(zip(_ARGUMENTS.get(function, ()), node.args[1:], strict=False)) | node.kwargs
        changes = mutates_first(function) or "out" in settings or settings.get("inplace", False) is not False
    else:
        return False
    return bool(changes) and not _is_only_user_of_a_new_tensor(node, root)


def _is_only_user_of_a_new_tensor(node: fx.Node, root: nn.Module) -> bool:
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or len(changed.users) != 1 or len(node.all_input_nodes) != 1:
        return False
    found = link_of(changed, root)
    return found is not None and found[0].role in ("conv", "norm")
