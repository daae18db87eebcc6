"""Which pictures make up the batch at a position of a training run, and their way from files to batches."""

import bisect
import itertools
import os
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from artkernels.errors import UserError
from artkernels.training.pictures import Draw, Pictures

__all__ = ["Batches", "loader"]

_Order = np.ndarray[Any, np.dtype[np.int64]]


class Batches(Sampler[list[Draw]]):
    """An endless stream of batches, of which each is a function of the seed and its position alone.

    Every bucket of pictures (:attr:`Pictures.buckets <artkernels.training.pictures.Pictures.buckets>`) is a stream of
    its own: all of its pictures in a random order, all of them in another, and so on, each once an epoch. Batches are
    cut out of it one after the other, across the ends of epochs, so that no picture is left out or shown more often.
    With several buckets, the batches that have become full by the end of an epoch take random turns in it; what is
    left of a bucket is carried into the next.

    Args:
        pictures: to be shown.
        batch_size: pictures of a batch, over all processes.
        seed: at least 0.
        position: batches that were seen already; the first here is the one that follows them.
        rank: of this process. It gets its rows of each batch: those of all processes, in their order, are the batch
            that a single process would get.
        world_size: number of processes.

    Raises:
        UserError: ``batch_size`` is not a multiple of ``world_size``.
    """

    def __init__(
        self, pictures: Pictures, batch_size: int, *, seed: int, position: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch must be a multiple of the {world_size} processes, got {batch_size}")
        self.batch_size, self.seed, self.position = batch_size, seed, position
        self._rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._buckets = [np.asarray(bucket, dtype=np.int64) for bucket in pictures.buckets]
        self._orders: dict[int, tuple[int, _Order]] = {}  # by bucket, the epoch asked for last

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.at, itertools.count(self.position))

    def at(self, position: int) -> list[Draw]:
        """This process' rows of the batch at ``position``."""
        bucket, turn = self._turn(position)
        return [self._draw(bucket, turn * self.batch_size + row) for row in self._rows]

    def _draw(self, bucket: int, place: int) -> Draw:
        epoch, offset = divmod(place, len(self._buckets[bucket]))
        return Draw(epoch, int(self._order(bucket, epoch, self._buckets[bucket])[offset]))

    def _turn(self, position: int) -> tuple[int, int]:
        """The bucket of the batch at ``position``, and how many batches of that bucket come before it."""
        buckets = range(len(self._buckets))
        # Full batches come as pictures do but for less than one a bucket, so this epoch is beyond the position's.
        beyond = (position + len(buckets)) * self.batch_size // sum(map(len, self._buckets)) + 2
        epoch = bisect.bisect_right(range(beyond), position, key=lambda epoch: sum(self._full(epoch))) - 1
        before, after = self._full(epoch), self._full(epoch + 1)
        turns = np.repeat(buckets, np.subtract(after, before))
        turns = self._order(len(buckets), epoch, turns)
        offset = position - sum(before)
        bucket = int(turns[offset])
        return bucket, before[bucket] + int(np.count_nonzero(turns[:offset] == bucket))

    def _full(self, epochs: int) -> list[int]:
        """For each bucket, how many batches its pictures fill in so many epochs."""
        return [epochs * len(bucket) // self.batch_size for bucket in self._buckets]

    def _order(self, stream: int, epoch: int, items: _Order) -> _Order:
        """``items`` in the random order of an epoch."""
        if stream not in self._orders or self._orders[stream][0] != epoch:
            generator = np.random.default_rng((self.seed, epoch, stream))
            self._orders[stream] = epoch, generator.permutation(items)
        return self._orders[stream][1]


def loader(
    pictures: Pictures, batches: Batches, workers: int = 0, *, pin_memory: bool = False
) -> Generator[Tensor, None, None]:
    """The pictures of ``batches``, uint8 [N, 3, H, W], without end; closing it ends the workers.

    What it yields does not depend on ``workers``. On a CPU that trains as well, and with pictures that fit in the
    cache, 0 costs the least: from the second epoch on nothing is read, and other processes would only pass batches on.

    Args:
        pictures: those that ``batches`` was made with.
        batches: which to load.
        workers: processes that load ahead; 0 loads in this one, when a batch is asked for.
        pin_memory: of the batches, for copies to a CUDA device.
    """
    loaded: DataLoader[Tensor] = DataLoader(
        pictures,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=pin_memory,
        multiprocessing_context="fork" if workers else None,  # others would not share the pictures' cache
        worker_init_fn=_leave_process_group,
        generator=torch.Generator(),  # it draws a number for its workers: not from those of the training
    )
    for batch in loaded:
        pictures.report_broken()
        yield batch


def _stack(pictures: list[Tensor]) -> Tensor:
    """``torch.stack``, which would gather all of PyTorch's threads for each picture."""
    return torch.from_numpy(np.stack([picture.numpy() for picture in pictures]))


def _leave_process_group(worker: int) -> None:
    """Ctrl-C in a terminal goes to a whole group: the training alone shall decide when its workers end."""
    os.setpgrp()
