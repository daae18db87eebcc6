"""A thread's work done while another's goes on: what is read ahead, what is written behind."""

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["ahead", "worker"]

T = TypeVar("T")
_END = object()


def worker() -> ThreadPoolExecutor:
    """One thread, which runs what it is given in order. PyTorch takes no more threads there: the others are busy."""
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))


def ahead(items: Iterable[T], count: int = 3) -> Generator[T]:
    """``items``, made in a thread of their own, ``count`` of them before they are asked for."""
    iterator = iter(items)
    with worker() as thread:
        made = deque(thread.submit(next, iterator, _END) for _ in range(count))
        while (item := made.popleft().result()) is not _END:
            made.append(thread.submit(next, iterator, _END))
            yield item  # type: ignore[misc]
