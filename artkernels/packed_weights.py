"""The packed copies of convolution weights that are kept from one inference to the next."""

import operator
import sys
from dataclasses import dataclass

from . import _C

__all__ = ["PackedWeightStatistics", "clear_packed_weights", "limit_packed_weights", "packed_weight_statistics"]


@dataclass(frozen=True)
class PackedWeightStatistics:
    """The packed weights that this process keeps now, and how often they served.

    Attributes:
        max_bytes: the most that is kept, in bytes.
        bytes: of the packed weights kept.
        entries: their number.
        hits: how often a packed weight was used again.
        misses: how often a weight was packed to be kept.
    """

    max_bytes: int
    bytes: int
    entries: int
    hits: int
    misses: int


def clear_packed_weights() -> None:
    """Forget all packed weights.

    While no gradients are recorded, convolutions on the CPU keep their weights in the order in which the kernels read
    them, and notice when a weight changes. One change they can miss: to a small part of a weight of more than 256 KiB,
    made in a way that PyTorch does not count (through ``weight.data``, ``weight.numpy()`` or shared memory). Call this
    after such a change.
    """
    _C.clear_packed_weights()


def limit_packed_weights(max_bytes: int) -> None:
    """Keep at most ``max_bytes`` of packed weights, by default 1 GiB, dropping those unused the longest; 0 keeps none.

    Raises:
        ValueError: ``max_bytes`` is negative.
    """
    limit = operator.index(max_bytes)
    if limit < 0:
        raise ValueError(f"limit_packed_weights: max_bytes must be at least 0, got {limit}")
    _C.limit_packed_weights(min(limit, sys.maxsize))


def packed_weight_statistics() -> PackedWeightStatistics:
    """The packed weights kept, and how often they served."""
    return PackedWeightStatistics(**_C.packed_weight_statistics())
