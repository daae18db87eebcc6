"""Fresh processes, forked from one that has imported everything and run nothing, and what a case is called there."""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool

from artkernels.benchmarks.case import Case
from artkernels.benchmarks.cases import Shape, find

__all__ = ["Address", "Processes"]


@dataclass(frozen=True)
class Address:
    """Finds a case in another process: a case itself holds functions, which do not travel."""

    op: str
    name: str
    shape: Shape
    shapes: tuple[Shape, ...]

    def case(self) -> Case:
        """What was addressed."""
        return find(self.op, self.name, self.shape, self.shapes)


class Processes:
    """Makes them.

    Args:
        shapes: those that the run was given, of which another process makes the same cases.
        modules: what they will need beside the cases, so that it is imported once.
    """

    def __init__(self, shapes: tuple[Shape, ...] = (), modules: Sequence[str] = ()) -> None:
        self.shapes = shapes
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([__name__, *modules])

    @contextmanager
    def pool(self, count: int) -> Iterator[Pool]:
        """So many of them, which end when they have nothing left to do."""
        with Pool(count, context=self.context) as pool:
            yield pool
            pool.close()
            pool.join()

    def address(self, case: Case) -> Address:
        """By which they know a case."""
        return Address(case.op, case.name, case.shape, self.shapes)
