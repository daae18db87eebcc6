"""A network's forward as maps that are computed band by band."""

from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from artkernels import functional as F
from artkernels.errors import UserError
from artkernels.fusion.chains import Chain
from artkernels.fusion.links import Role
from artkernels.fusion.model import fuse, fused_modules
from artkernels.fusion.rewrite import fuse_graph
from artkernels.fusion.trace import ModuleTracer
from artkernels.fusion.upsample import doubled_weight
from artkernels.ops._conv import pair
from artkernels.ops.norm_act import Statistics

from .maps import Convolution, FeatureMap, MaxPool, Normalisation, Pointwise, TransposedConvolution, Window

__all__ = ["feature_map"]


def feature_map(network: nn.Module, input: FeatureMap) -> FeatureMap:
    """What ``network``, fused or not, in evaluation mode, makes of ``input``.

    Raises:
        UserError: it holds something that is not computed by rows.
    """
    network = network if "" in fused_modules(network) else fuse(network)
    try:
        graph = ModuleTracer().trace(network)
        fuse_graph(graph, network)
    except Exception as error:  # of any kind: it is the author's code that runs, on stand-ins
        raise UserError(f"{type(network).__name__} cannot be tiled: it is not one graph of layers") from error
    maps: dict[fx.Node, FeatureMap] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            maps[node] = input
        elif node.op == "output":
            result: FeatureMap = maps[node.args[0]]
            return result
        elif node.op != "get_attr":
            maps[node] = _map(node, network, maps)
    raise AssertionError("a graph ends with its output")


def _map(node: fx.Node, network: nn.Module, maps: dict[fx.Node, FeatureMap]) -> FeatureMap:
    made = None
    inputs = [maps[arg] for arg in node.args if isinstance(arg, fx.Node) and arg in maps]
    if isinstance(node.target, Chain):
        layers = [arg and attrgetter(str(arg.target))(network) for arg in node.args[2:]]  # type: ignore[union-attr]
        made = _of_chain(node.target, layers, inputs)
    elif node.op == "call_module":
        made = _of_layer(network.get_submodule(str(node.target)), inputs[0])
    if made is None:
        name = type(network.get_submodule(str(node.target))).__name__ if node.op == "call_module" else node.name
        raise UserError(f"{type(network).__name__} cannot be tiled: {name} is not computed by rows")
    return made


def _of_layer(layer: nn.Module, input: FeatureMap) -> FeatureMap | None:
    if isinstance(layer, nn.Identity) or (isinstance(layer, nn.Dropout) and not layer.training):
        return input
    if isinstance(layer, nn.MaxPool2d):
        window = pair(layer.kernel_size), pair(layer.stride)
        apart = window == ((layer.kernel_size,) * 2,) * 2 and pair(layer.padding) == (0, 0)
        if apart and pair(layer.dilation) == (1, 1) and not layer.return_indices:
            return MaxPool(input, pair(layer.kernel_size)[0], ceil_mode=layer.ceil_mode)
    return None


def _of_chain(chain: Chain, layers: list[Any], inputs: list[FeatureMap]) -> FeatureMap | None:
    by_role: dict[Role, tuple[Any, Any]] = {
        link.role: (link, layer) for link, layer in zip(chain.links, layers, strict=True)
    }
    roles = [link.role for link in chain.links]
    follow: dict[str, Any] = {}
    if "activation" in by_role:
        link, layer = by_role["activation"]
        follow = dict(zip(("activation", "negative_slope"), link.activation(layer), strict=True))
    value = inputs[0]
    if "conv" in by_role:
        found = _convolution(by_role, value, {} if "norm" in by_role else follow)
        if found is None:
            return None
        value = found
    if "norm" not in by_role:
        return value
    if "add" in roles and "activation" in roles:
        follow["residual_after"] = roles.index("add") > roles.index("activation")
    return _normalisation(by_role["norm"][1], [value, *inputs[1:]], follow)


def _convolution(by_role: dict[Role, Any], input: FeatureMap, follow: dict[str, Any]) -> FeatureMap | None:
    conv = by_role["conv"][1]
    found = _padding(by_role, conv)
    if found is None:
        return None
    padding, edge = found
    if "upsample" in by_role:
        # The same picture, as in artkernels.fusion.upsample: reflected by one pixel, it is one of repeated edges.
        replicated = int(edge == "reflect")
        window = Window((4, 4), (2, 2), (1 + 2 * replicated,) * 2, (1, 1))
        return TransposedConvolution(input, doubled_weight(conv.weight), conv.bias, window, 1, replicated, follow)
    if isinstance(conv, nn.ConvTranspose2d):
        window = Window(conv.kernel_size, conv.stride, padding, conv.dilation, pair(conv.output_padding))  # type: ignore[arg-type]
        return TransposedConvolution(input, conv.weight, conv.bias, window, conv.groups, 0, follow)
    window = Window(conv.kernel_size, conv.stride, padding, conv.dilation)
    return Convolution(input, conv.weight, conv.bias, window, conv.groups, edge, follow)


def _padding(by_role: dict[Role, Any], conv: Any) -> tuple[tuple[int, int], Any] | None:
    """Rows and columns that are added at each side, and of what; None where the two sides are not alike."""
    own = conv.padding
    if own == "valid":
        own = (0, 0)
    elif own == "same":
        reach = [dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(taps % 2 for taps in reach):
            return None
        own = reach[0] // 2, reach[1] // 2
    if "pad" not in by_role:
        return own, conv.padding_mode
    link, layer = by_role["pad"]
    pad = link.pad(layer)  # alike at both sides, and of the convolution's mode, or there were no chain
    return (pad.top + own[0], pad.left + own[1]), pad.mode


def _normalisation(norm: Any, inputs: list[FeatureMap], follow: dict[str, Any]) -> FeatureMap | None:
    def function(statistics: Statistics, input: Tensor, residual: Tensor | None = None) -> Tensor:
        affine = {"weight": norm.weight, "bias": norm.bias, "eps": norm.eps}
        return F.instance_norm_act(input, **affine, residual=residual, statistics=statistics, **follow)

    if norm.running_mean is not None and not norm.training:
        known = norm.running_mean.unsqueeze(0), norm.running_var.unsqueeze(0)
        return Pointwise(inputs, partial(function, known))
    if isinstance(norm, nn.InstanceNorm2d):
        return Normalisation(inputs, function, unbiased=False)
    return None
