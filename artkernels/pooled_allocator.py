"""An allocator for CPU tensors that keeps the memory of large ones, because new memory costs more than most layers."""

import operator
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import _C

__all__ = ["PooledAllocatorStatistics", "pooled_allocator_statistics", "release_pooled_memory", "use_pooled_allocator"]

_DEFAULT_MAX_BYTES = 4 * 2**30


@dataclass(frozen=True)
class PooledAllocatorStatistics:
    """What the pooled allocator of this process holds now, and what it has done since it was first turned on.

    Attributes:
        max_bytes: the most that is kept free, in bytes; 0 when the allocator is off.
        bytes_in_use: of the blocks that tensors hold, each up to an eighth larger than its tensor.
        bytes_kept: of the blocks that are free and wait for the next tensor of their size.
        peak_bytes: the most that ``bytes_in_use`` and ``bytes_kept`` have been together.
        hits: how many tensors were given a block that had been kept.
        misses: how many tensors were given a block that the system had to map.
        released: how many blocks went back to the system.
    """

    max_bytes: int
    bytes_in_use: int
    bytes_kept: int
    peak_bytes: int
    hits: int
    misses: int
    released: int


def use_pooled_allocator(max_bytes: int | None = None) -> None:
    """Keep the memory of large CPU tensors (1 MiB and more) for the next ones, in all of this process.

    Without it the memory of a large result is mapped anew and costs a page fault for each of its pages. All CPU tensors
    profit, whoever makes them, and their values do not change. Tensors that exist already stay where they are. Call it
    at the start: PyTorch does not guard the change of its allocator against threads that are making tensors. Called
    again, it only changes ``max_bytes``. A forked process inherits it with nothing kept, a spawned one is without it.

    Args:
        max_bytes: the most memory to keep while no tensor uses it, in bytes; what tensors use is not limited. Beyond it
            the memory that has been free the longest goes back to the system. By default 4 GiB, or a quarter of the
            memory of the machine or the container where that is less. 0 turns the allocator off: what it kept goes
            back, and PyTorch's own allocator serves what follows.

    Raises:
        RuntimeError: the process has a CPU allocator already that is neither PyTorch's default one nor this.
        ValueError: ``max_bytes`` is negative.
    """
    limit = _default_max_bytes() if max_bytes is None else operator.index(max_bytes)
    if limit < 0:
        raise ValueError(f"use_pooled_allocator: max_bytes must be at least 0, got {limit}")
    _C.use_pooled_allocator(min(limit, sys.maxsize))


def release_pooled_memory() -> int:
    """Give the memory that the pooled allocator keeps free back to the system; returns how many bytes that was."""
    return _C.release_pooled_memory()


def pooled_allocator_statistics() -> PooledAllocatorStatistics:
    """What the pooled allocator holds and has done; all zeros if it was never on."""
    return PooledAllocatorStatistics(**_C.pooled_allocator_statistics())


def _default_max_bytes() -> int:
    """Enough for the feature maps of one training step; not so much that a machine with little memory would miss it."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another version of cgroups, or "max"
            memory = min(memory, int(Path(limit).read_text()))
    return min(_DEFAULT_MAX_BYTES, memory // 4)
