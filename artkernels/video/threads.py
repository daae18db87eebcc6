"""A thread's work done while another's goes on: what is read ahead, what is written behind."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch

__all__ = ["ahead", "behind"]

T = TypeVar("T")
_END = object()
_COUNT = 3


@contextmanager
def _worker() -> Iterator[ThreadPoolExecutor]:
    """One thread, which runs what it is given in order. PyTorch takes no more threads there: the others are busy."""
    threads = torch.get_num_threads()
    worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield worker
    finally:
        worker.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what was set in the worker is what threads yet to come would begin with


def ahead(items: Iterable[T], count: int = _COUNT) -> Generator[T]:
    """``items``, made in a thread of their own, ``count`` of them before they are asked for."""
    iterator = iter(items)
    with _worker() as thread:
        made = deque(thread.submit(next, iterator, _END) for _ in range(count))
        while (item := made.popleft().result()) is not _END:
            made.append(thread.submit(next, iterator, _END))
            yield item  # type: ignore[misc]


@contextmanager
def behind(count: int = _COUNT) -> Iterator[Callable[[Callable[[], object]], None]]:
    """A function that has others called in a thread of their own, in order; it waits while ``count`` are not done.

    What they raise is raised by a later call, or at the end; those after one that raised are left out.
    """
    waiting: deque[Future[object]] = deque()
    failed = Event()

    def done(work: Callable[[], object]) -> None:
        if failed.is_set():
            return
        try:
            work()
        except BaseException:
            failed.set()
            raise

    def later(work: Callable[[], object]) -> None:
        if len(waiting) == count:
            waiting.popleft().result()
        waiting.append(thread.submit(done, work))

    with _worker() as thread:
        yield later
        while waiting:
            waiting.popleft().result()
