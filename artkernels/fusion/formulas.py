"""Gram matrices and adaptive instance norm as public code writes them, found in a traced graph.

Only what is the same for every input is fused: biased variances, other dimensions, an epsilon outside the root are
other formulas, and stay as they are. So does one of whose steps something else sees a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from .. import functional
from ..ops.gram import Normalize
from . import reading
from .chains import autocasts, is_narrow, unsupported
from .links import mutates
from .trace import python_function

__all__ = ["Formula", "fuse_formulas"]

_VIEWS = ("view", "reshape", "flatten", "transpose", "permute", "t", "mT", "T", "expand", "expand_as")


@dataclass(frozen=True, eq=False)
class Formula:
    """A call that computes a formula of feature maps [N, C, H, W].

    Attributes:
        op: the function in artkernels.functional.
        fused: what computes it.
        stock: the nodes that it takes the place of, as the model's author wrote them.
        names: the functions that those call.
    """

    op: str
    fused: Callable[..., Tensor]
    stock: Callable[..., Tensor] = field(repr=False)
    names: tuple[str, ...]

    @property
    def __name__(self) -> str:
        return self.op

    def __call__(self, *maps: Tensor) -> Tensor:
        return self.stock(*maps) if self.apart(*maps) else self.fused(*maps)

    def layers(self, prefix: str, *maps: Tensor) -> tuple[str, ...]:
        """The functions, which are in no layer, whatever its prefix."""
        return self.names

    def apart(self, *maps: Tensor) -> str | None:
        """Why a call on these runs as it was written; None if it is fused."""
        for x in maps:
            if not isinstance(x, Tensor) or x.dim() != 4 or x.numel() == 0:
                return "the formula is fused for feature maps [N, C, H, W] alone"
            if x.shape[:2] != maps[0].shape[:2] or x.dtype != maps[0].dtype or x.device != maps[0].device:
                return "the feature maps differ in batch, channels, dtype or device"
            if is_narrow(x) or autocasts(x):  # the functions return float32, or add up in it
                return "what torch computes in 16 bits is rounded otherwise"
            why = unsupported(x)
            if why is not None:
                return why
        return None


@dataclass(frozen=True)
class _Found:
    """What computes the formula that a node ends, and of which maps."""

    name: str
    fused: Callable[..., Tensor]
    maps: list[fx.Node]


def fuse_formulas(graph: fx.Graph, root: nn.Module) -> None:
    """Puts one call of a Formula in the place of each that there is in the graph of `root`."""
    for last in reversed(list(graph.nodes)):  # a division before the product that it divides
        if last in graph._find_nodes_lookup_table:
            found = _gram(last) or _adaptive_instance_norm(last)
            nodes = _between(found.maps, last) if found else []
            if found and _is_whole(nodes, last, root):
                _replace(graph, found, nodes, last)


def _between(maps: list[fx.Node], last: fx.Node) -> list[fx.Node]:
    """The nodes that make `last` of the maps, in order."""
    seen, left = set(maps), [last]
    while left:
        node = left.pop()
        if node not in seen:
            seen.add(node)
            left += node.all_input_nodes
    return [node for node in last.graph.nodes if node in seen and node not in maps]


def _is_whole(nodes: list[fx.Node], last: fx.Node, root: nn.Module) -> bool:
    """Whether nothing else sees the tensors in between, and nothing changes what they are made of meanwhile."""
    own, node = set(nodes), nodes[0]
    tensors = [each for each in nodes if each is not last and not reading.is_size(each)]
    if any(user not in own and not reading.is_size(user) for tensor in tensors for user in tensor.users):
        return False
    while node is not last:
        if node not in own and mutates(node, root):
            return False
        node = node.next
    return True


def _replace(graph: fx.Graph, found: _Found, nodes: list[fx.Node], last: fx.Node) -> None:
    names = (reading.name_of(node) for node in nodes if not reading.is_size(node))
    formula = Formula(
        found.name,
        found.fused,
        _function(found, nodes),
        tuple(dict.fromkeys(name for name in names if name not in _VIEWS)),
    )
    with graph.inserting_after(last):
        call = graph.call_function(formula, tuple(found.maps))
    last.replace_all_uses_with(call)
    for node in reversed(nodes):
        if not node.users:
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):  # sizes that were unpacked and never used
        if reading.is_size(node) and not node.users:
            graph.erase_node(node)


def _function(found: _Found, nodes: list[fx.Node]) -> Callable[..., Tensor]:
    """The nodes as a function of the maps."""
    graph = fx.Graph()
    copies = {x: graph.placeholder(f"features{i}") for i, x in enumerate(found.maps)}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[nodes[-1]])
    function = python_function(graph, found.name)

    def as_written(*maps: Tensor) -> Tensor:
        result: Tensor = function(None, *maps)
        return result

    return as_written


# ---- Gram matrices ---------------------------------------------------------------------------------------------------

# The dimensions of [N, C, H, W] whose sizes the product is divided by. A batch folded into the channels is one image.
_DIVISORS: dict[tuple[int, ...], Normalize | None] = {(): None, (1, 2, 3): "chw", (2, 3): "hw", (0, 1, 2, 3): "bchw"}
_DIVISORS_FOLDED: dict[tuple[int, ...], Normalize | None] = {(): None, (2, 3): "hw", (0, 1, 2, 3): "chw"}


def _gram(node: fx.Node) -> _Found | None:
    """X X^T / d of each image (Johnson et al. 2016), or of [N C, H W], as PyTorch's tutorial has it."""
    quotient = reading.arguments(node, "div")
    product, divisor = quotient if len(quotient) == 2 else (node, None)
    left, right = [*reading.arguments(product, "bmm", "mm", "matmul"), None, None][:2]
    found = reading.flat(left)
    if found is None or found != reading.flat_transposed(right):
        return None
    x, folded = found
    divided_by = () if divisor is None else reading.dims(divisor, x)
    divisors = _DIVISORS_FOLDED if folded else _DIVISORS
    if divided_by is None or divided_by not in divisors:
        return None
    normalize = divisors[divided_by]

    def gram(x: Tensor) -> Tensor:
        return functional.gram_matrix(x, normalize=normalize)

    def folded_gram(x: Tensor) -> Tensor:
        return functional.gram_matrix(x.flatten(0, 1).unsqueeze(0), normalize=normalize)[0]

    return _Found("gram_matrix", folded_gram if folded else gram, [x])


# ---- adaptive instance norm ------------------------------------------------------------------------------------------


def _adaptive_instance_norm(node: fx.Node) -> _Found | None:
    """(x - mean(x)) / std(x) * std(style) + mean(style), as naoto0804/pytorch-AdaIN has Huang and Belongie 2017."""
    for scaled, style_mean in reading.either_way(node, "add"):
        for normalized, style_std in reading.either_way(scaled, "mul"):
            centred, content_std = reading.arguments(normalized, "div") or (None, None)
            content, content_mean = reading.arguments(centred, "sub") or (None, None)
            of_content = reading.std(reading.unexpanded(content_std, content))
            of_style = reading.std(reading.unexpanded(style_std, content))
            if of_content is None or of_style is None:
                continue
            means = (reading.mean(reading.unexpanded(each, content)) for each in (content_mean, style_mean))
            if of_content[0] is content and tuple(means) == (content, of_style[0]):
                return _styled(content, of_style[0], of_content[1], of_style[1])
    return None


def _styled(content: Any, style: fx.Node, eps: float, style_eps: float) -> _Found:
    def adain(content: Tensor, style: Tensor) -> Tensor:
        mean, var = functional.feature_statistics(style, unbiased=True)
        return functional.adaptive_instance_norm(content, mean, (var + style_eps).sqrt(), eps=eps)

    return _Found("adaptive_instance_norm", adain, [content, style])
