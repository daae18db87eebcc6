"""Reads parts of formulas of feature maps x, [N, C, H, W], from the nodes of a traced graph.

A node is read backwards, down to the maps; each function answers None where the node is anything else. Sizes may come
from `x.size()`, `x.size(1)`, `x.shape` or slices of those, and products of them.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

__all__ = ["arguments", "dims", "either_way", "flat", "flat_transposed", "is_size", "mean", "name_of", "std"]
__all__ += ["unexpanded"]

_SPELLINGS = {"truediv": "div", "true_divide": "div", "divide": "div", "subtract": "sub", "multiply": "mul"}
# What functions with options are called with, in order, after their input.
_ORDER = {"var": ("dim", "unbiased", "keepdim"), "mean": ("dim", "keepdim"), "flatten": ("start_dim", "end_dim")}


# ---- calls -----------------------------------------------------------------------------------------------------------


def name_of(node: Any) -> str:
    """The function of tensors that a node calls, by whatever spelling; empty where it calls none."""
    if not isinstance(node, fx.Node):
        return ""
    if node.op == "call_method":
        return _SPELLINGS.get(str(node.target), str(node.target))
    if node.op != "call_function":
        return ""
    if node.target is getattr:
        return str(node.args[1])
    name = getattr(node.target, "__name__", "")
    known = any(getattr(library, name, None) is node.target for library in (torch, operator))
    return _SPELLINGS.get(name, name) if known else ""


def arguments(node: Any, *names: str) -> tuple[Any, ...]:
    """What one of these functions is called with, in order; empty where the node is no such call."""
    if name_of(node) not in names or (node.kwargs and name_of(node) not in _ORDER):
        return ()
    return tuple(node.args[:1] if node.target is getattr else node.args)


def either_way(node: Any, name: str) -> list[tuple[Any, Any]]:
    """Both orders of what a commutative function of two is called with."""
    operands = arguments(node, name)
    return [(operands[0], operands[1]), (operands[1], operands[0])] if len(operands) == 2 else []


def _options(node: fx.Node) -> dict[str, Any]:
    return dict(zip(_ORDER[name_of(node)], node.args[1:], strict=False)) | node.kwargs


# ---- sizes -----------------------------------------------------------------------------------------------------------


def is_size(node: fx.Node) -> bool:
    """Whether a node is of the sizes of a tensor: numbers."""
    if name_of(node) in ("size", "shape"):
        return True
    return name_of(node) in ("getitem", "mul") and all(map(is_size, node.all_input_nodes))


def dims(node: Any, x: fx.Node) -> tuple[int, ...] | None:
    """The dimensions of x whose sizes a number is the product of, in order."""
    if name_of(node) == "mul":
        factors = [dims(factor, x) for factor in node.args]
        return None if None in factors else tuple(sorted(dim for factor in factors for dim in factor or ()))
    found = _sizes(node, x)
    return (found,) if isinstance(found, int) else None


def _sizes(node: Any, x: fx.Node) -> range | int | None:
    """The dimensions of x that a torch.Size is of, or the one that a number is of."""
    name = name_of(node)
    if name in ("size", "shape"):
        if node.args[0] is not x or node.kwargs:
            return None
        return range(4) if name == "shape" or len(node.args) == 1 else _chosen(range(4), node.args[1])
    found = _sizes(node.args[0], x) if name == "getitem" else None
    return _chosen(found, node.args[1]) if isinstance(found, range) else None


def _chosen(some: range, index: Any) -> range | int | None:
    if isinstance(index, slice):
        bounds = index.start, index.stop, index.step
        return some[index] if all(bound is None or isinstance(bound, int) for bound in bounds) else None
    return some[index] if isinstance(index, int) and -len(some) <= index < len(some) else None


def _view(sizes: Sequence[Any], x: fx.Node) -> list[tuple[int, ...] | int | None]:
    """The arguments of a view: dimensions of x, and numbers."""
    listed = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    return [size if isinstance(size, int) else dims(size, x) for size in listed]


# ---- views -----------------------------------------------------------------------------------------------------------


def flat(node: Any) -> tuple[fx.Node, bool] | None:
    """(x, False) of x as [N, C, H W], (x, True) of x as [N C, H W]."""
    x, *sizes = arguments(node, "view", "reshape", "flatten") or [None]
    if not isinstance(x, fx.Node):
        return None
    if name_of(node) == "flatten":
        options = {"end_dim": -1} | _options(node)
        return (x, False) if options == {"start_dim": 2, "end_dim": -1} else None
    *rows, pixels = _view(sizes, x) or [None]
    if pixels not in (-1, (2, 3)):
        return None
    return (x, len(rows) == 1) if rows in ([(0,), (1,)], [(0, 1)]) else None


def flat_transposed(node: Any) -> tuple[fx.Node, bool] | None:
    """The same, with rows and columns swapped."""
    of, *order = arguments(node, "transpose", "permute", "mT", "t", "T") or [None]
    found = flat(of)
    if found is None:
        return None
    rank = 2 if found[1] else 3
    if len(order) == 1 and isinstance(order[0], (tuple, list)):
        order = [*order[0]]
    axes = [dim % rank for dim in order if isinstance(dim, int)]
    if name_of(node) == "permute":
        swaps = axes == [*range(rank - 2), rank - 1, rank - 2]
    elif name_of(node) == "transpose":
        swaps = sorted(axes) == [rank - 2, rank - 1]
    else:
        swaps = name_of(node) == "mT" or rank == 2
    return found if swaps else None


def unexpanded(node: Any, x: Any) -> Any:
    """What is expanded to the size of x, or the node itself where it is not expanded."""
    expanded = arguments(node, "expand", "expand_as")
    if len(expanded) != 2:
        return node
    to = expanded[1]
    fits = to is x if name_of(node) == "expand_as" else _sizes(to, x) == range(4)
    return expanded[0] if fits else None


# ---- statistics ------------------------------------------------------------------------------------------------------


def mean(node: Any) -> fx.Node | None:
    """x of its means over the pixels, as [N, C, 1, 1]."""
    node, x = _per_channel(node)
    return _over_pixels(node, _options(node), x) if arguments(node, "mean") else None


def std(node: Any) -> tuple[fx.Node, float] | None:
    """(x, eps) of sqrt(x's unbiased variance over the pixels + eps), as [N, C, 1, 1]."""
    node, x = _per_channel(node)
    (total,) = arguments(node, "sqrt") or [None]
    var, eps = [*arguments(total, "add"), None, None][:2]
    if not isinstance(eps, (int, float)) or not arguments(var, "var"):
        return None
    options = _options(var)
    unbiased = options.pop("unbiased", True) is True and options.pop("correction", 1) == 1
    x = _over_pixels(var, options, x) if unbiased else None
    return None if x is None else (x, float(eps))


def _per_channel(node: Any) -> tuple[Any, fx.Node | None]:
    """(y, x) of y.view(N, C, 1, 1), with the sizes of x; (the node, None) where it is no such view."""
    viewed, *sizes = arguments(node, "view", "reshape") or [None]
    for x in _measured(node) if sizes else ():
        if _view(sizes, x) == [(0,), (1,), 1, 1]:
            return viewed, x
    return node, None


def _measured(node: fx.Node) -> list[fx.Node]:
    """The tensors whose sizes a node is given."""
    inputs = [each for each in node.all_input_nodes if is_size(each) or is_size(node)]
    return [x for each in inputs for x in (_measured(each) if is_size(each) else [each])]


def _over_pixels(node: fx.Node, options: dict[str, Any], x: fx.Node | None) -> fx.Node | None:
    """What is reduced over its pixels: x as [N, C, H W], or, kept as [N, C, 1, 1], any."""
    dim, keepdim = options.pop("dim", None), options.pop("keepdim", False)
    reduced = [*dim] if isinstance(dim, (tuple, list)) else [dim]
    if options or not all(isinstance(each, int) for each in reduced):
        return None
    if x is not None:
        return x if flat(node.args[0]) == (x, False) and reduced in ([2], [-1]) else None
    of = node.args[0]
    both = keepdim is True and sorted(each % 4 for each in reduced) == [2, 3]
    return of if both and isinstance(of, fx.Node) else None
