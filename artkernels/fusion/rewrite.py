"""Finds the chains in a traced graph, and makes each one call."""

from dataclasses import dataclass

from torch import fx, nn

from .chains import Chain
from .formulas import Formula, fuse_formulas
from .links import Link, Role, link_of, mutates

__all__ = ["FusedCall", "fuse_graph"]

FusedCall = Chain | Formula

_BEGINNINGS = ("upsample", "pad", "conv", "norm")
# What may come next in a fused operation. A normalisation is needed for a residual, and each comes once.
_NEXT: dict[Role, tuple[Role, ...]] = {
    "upsample": ("pad", "conv"),
    "pad": ("conv",),
    "conv": ("norm", "activation"),
    "norm": ("activation", "add"),
    "activation": ("add",),
    "add": ("activation",),
}


@dataclass
class _Match:
    """Nodes, in order, that a chain computes."""

    nodes: list[fx.Node]
    links: list[Link]
    residual: fx.Node | None = None

    def takes(self, role: Role) -> bool:
        if role == "identity":
            return True
        roles = [link.role for link in self.links if link.role != "identity"]
        return role in _NEXT[roles[-1]] and role not in roles and (role != "add" or "norm" in roles)

    def followed_by(self, node: fx.Node, link: Link, residual: fx.Node | None) -> "_Match":
        return _Match([*self.nodes, node], [*self.links, link], residual or self.residual)

    def layers(self, root: nn.Module) -> list[nn.Module | None]:
        return [root.get_submodule(str(n.target)) if n.op == "call_module" else None for n in self.nodes]

    def is_whole(self, root: nn.Module) -> bool:
        if not any(link.role in ("conv", "norm") for link in self.links):
            return False
        return Chain(tuple(self.links)).obstacle(self.layers(root)) is None


def fuse_graph(graph: fx.Graph, root: nn.Module) -> list[FusedCall]:
    """Puts one call in the place of each chain and each formula that there is in the graph of `root`; those calls."""
    fuse_formulas(graph, root)  # first: their sums are not residuals of chains
    for node in list(graph.nodes):
        if node.graph is graph and node in graph._find_nodes_lookup_table:
            match = _longest(node, graph, root)
            if match is not None:
                _replace(match, graph)
    return [node.target for node in graph.nodes if isinstance(node.target, FusedCall)]


def _longest(node: fx.Node, graph: fx.Graph, root: nn.Module) -> _Match | None:
    first = link_of(node, root)
    if first is None or first[0].role not in _BEGINNINGS:
        return None
    match, best = _Match([node], [first[0]]), None
    while True:
        best = match if match.is_whole(root) else best
        longer = _longer(match, graph, root)
        if longer is None:
            return best
        match = longer


def _longer(match: _Match, graph: fx.Graph, root: nn.Module) -> _Match | None:
    last = match.nodes[-1]
    if len(last.users) != 1:
        return None
    node = next(iter(last.users))
    found = link_of(node, root, last)
    if found is None or not match.takes(found[0].role):
        return None
    longer = match.followed_by(node, *found)
    return longer if _may_move(longer, root) and _keeps_no_less(longer, root) else None


def _may_move(match: _Match, root: nn.Module) -> bool:
    """Whether all may be computed where the last node is: nothing in between changes what it is computed from."""
    node, own = match.nodes[0], set(match.nodes)
    while node is not match.nodes[-1]:
        if node not in own and mutates(node, root):
            return False
        node = node.next
    return True


def _keeps_no_less(match: _Match, root: nn.Module) -> bool:
    """Whether later changes in place are still of tensors that the backward does not need.

    For it the fused operations keep the residual that goes through an activation, and convolutions with an activation
    their output; stock keeps the residual never, and what it keeps of these activations is their input.
    """
    roles = [link.role for link in match.links]
    if "norm" not in roles and match.links[-1].kind in ("leaky_relu", "silu", "gelu"):
        return not any(mutates(user, root) for user in match.nodes[-1].users)
    if match.residual is None or roles[-1] != "activation":
        return True
    return not any(mutates(user, root) for user in match.residual.users if user not in match.nodes)


def _replace(match: _Match, graph: fx.Graph) -> None:
    chain, last = Chain(tuple(match.links)), match.nodes[-1]
    with graph.inserting_after(last):
        call = graph.call_function(chain)
    with graph.inserting_before(call):
        layers = [graph.get_attr(str(n.target)) if n.op == "call_module" else None for n in match.nodes]
    last.replace_all_uses_with(call)
    call.args = (match.nodes[0].args[0], match.residual, *layers)
    for node in reversed(match.nodes):
        graph.erase_node(node)
