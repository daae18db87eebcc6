"""What is decided before a tiled run: how high the bands are, which maps are kept between passes, and where."""

from dataclasses import dataclass, field
from math import ceil, prod
from typing import NamedTuple

import torch

from artkernels.errors import UserError

from .maps import FeatureMap, Normalisation, Pointwise

__all__ = ["Pass", "Plan", "Tiling"]

_HIGHEST_BAND = 128  # rows of the picture; more are not faster
_LOWEST_BAND = 8
_SHARE_OF_BANDS = 0.25  # of the memory; what they leave is for maps
# What the disk moves in the time of so many operations: a map of fewer a byte is computed again and not written.
_FLOPS_PER_BYTE_ON_DISK = 400
_USED_OF_BLOCKS = 8 / 9  # the pooled allocator's, which may be an eighth larger than what is asked for
_FLOPS_PER_VALUE = 100  # to read and write it in memory takes about as long as so many
_WORKSPACE = 2  # bytes that a layer takes, for one of its input: the input, and the copy that a kernel may make


class Tiling(NamedTuple):
    """How a picture is computed in bands.

    Attributes:
        rows: of the picture that are a band; 0: as many as the memory allows, and no more than are of use.
        memory: bytes for bands and maps together; None: as many as it takes.
    """

    rows: int = 0
    memory: int | None = None


@dataclass
class Pass:
    """All rows of a map, computed band by band from those that are kept.

    Attributes:
        goal: what a normalisation needs the statistics of, or the output.
        computed: the maps that are computed on the way, in order, the goal last.
        reads: the maps that are read.
        writes: those of the computed ones that are kept.
    """

    goal: FeatureMap
    computed: list[FeatureMap]
    reads: list[FeatureMap]
    writes: list[FeatureMap]

    @property
    def work(self) -> int:
        """Time that a row of the goal takes, in whole units that are alike in all plans."""
        return round(sum(m.flops + _FLOPS_PER_VALUE * prod(m.shape) for m in self.computed) / self.goal.shape.height)


@dataclass
class Plan:
    """How ``output`` is computed.

    Args:
        output: the last of the maps.
        tiling: the bands asked for.
        device: that the work is done on.
        dtype: of the maps.

    Attributes:
        passes: in order; the last one is of the output.
        picture: the highest of the maps, whose rows bands are counted in.
        rows: of a band.
        users: of each map, those that it is an input of.
        resident: of each map that is kept, the rows in memory; the others are on disk.
        takes_over: of a map, the one that it is written over, row by row, while that is read for the last time.
        disk: bytes on disk at one time, the most there will be.

    Raises:
        UserError: the memory is not enough for the lowest bands, or for those asked for.
    """

    output: FeatureMap
    tiling: Tiling
    device: torch.device
    dtype: torch.dtype
    passes: list[Pass] = field(init=False)
    users: dict[FeatureMap, list[FeatureMap]] = field(init=False)
    picture: FeatureMap = field(init=False)
    rows: int = field(init=False)
    resident: dict[FeatureMap, int] = field(init=False, default_factory=dict)
    takes_over: dict[FeatureMap, FeatureMap] = field(init=False, default_factory=dict)
    disk: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        order = _in_order(self.output)
        self.users = _users(order)
        self.picture = max(order, key=lambda map: map.shape.height)
        of_normalisations = dict.fromkeys(m.inputs[0] for m in order if isinstance(m, Normalisation))
        goals = [*of_normalisations, self.output]
        memory = self.tiling.memory
        self.passes = self._decide_what_is_kept(goals, None if memory is None else (1 - _SHARE_OF_BANDS) * memory)
        self.rows = self.tiling.rows or self._highest_band()
        bands = self._bytes_of_bands(self.rows)
        if memory is not None and bands > memory:
            raise UserError(
                f"bands of {self.rows} x {self.picture.shape.width} pixels need about {bands / 2**20:.0f} MiB of "
                f"memory beside the pictures and {max(0, memory) / 2**20:.0f} MiB are left: "
                "allow more, or choose lower bands or a smaller size"
            )
        self._decide_where(None if memory is None else int((memory - bands) * _USED_OF_BLOCKS))

    @property
    def work(self) -> int:
        """Time that all of it takes, in the units of :attr:`Pass.work`."""
        return sum(step.work * step.goal.shape.height for step in self.passes)

    def rows_of(self, map: FeatureMap) -> int:
        """Of a band of ``map``, which may be smaller than the picture."""
        return _scaled(self.rows, map, self.picture)

    def _bytes(self, map: FeatureMap, rows: int) -> int:
        return rows * map.shape.width * map.shape.channels * self.dtype.itemsize

    def _highest_band(self) -> int:
        memory, rows = self.tiling.memory, _HIGHEST_BAND
        while memory is not None and rows > _LOWEST_BAND and self._bytes_of_bands(rows) > _SHARE_OF_BANDS * memory:
            rows //= 2
        return rows

    def _bytes_of_bands(self, rows: int) -> int:
        return max(self._band_bytes(step, rows) for step in self.passes)

    def _band_bytes(self, step: Pass, rows: int) -> int:
        """An estimate of what the bands of a pass take: each layer's input and output, and what waits for the next.

        They are not there all at once, but the pooled allocator keeps a layer's memory for that layer's next band.
        """
        layers = waiting = 0
        for map in step.computed:
            first = min(map.shape.height // 2, map.shape.height - 1)
            own = min(_scaled(rows, map, self.picture), map.shape.height)
            window, next_window = map.window(first, first + own), map.window(first + own, first + own + 1)
            taken = sum(self._bytes(input, window[1] - window[0]) for input in map.inputs)
            layers += _WORKSPACE * taken + 2 * self._bytes(map, own)
            waiting += sum(self._bytes(input, max(0, window[1] - next_window[0])) for input in map.inputs)
            if len(map.inputs) > 1:  # one of them waits for the other
                waiting += self._bytes(map, own)
        return layers + waiting

    def _decide_what_is_kept(self, goals: list[FeatureMap], for_maps: float | None) -> list[Pass]:
        passes: list[Pass] = []
        kept: set[FeatureMap] = set()
        for goal in goals:
            step = _pass(goal, kept)
            # A sum that a later pass needs, too, would be computed anew from all that it is a sum of.
            sums = [m for m in step.computed[:-1] if len(m.inputs) > 1]
            step.writes = [m for m in sums if any(user not in step.computed for user in self.users[m])]
            if goal is not self.output and self._is_worth_keeping(step, for_maps):
                step.writes.append(goal)
            kept.update(step.writes)
            passes.append(step)
        return passes

    def _is_worth_keeping(self, step: Pass, for_maps: float | None) -> bool:
        """Whether it fits in memory with another of its size, or else is too much work to do again."""
        size = self._bytes(step.goal, step.goal.shape.height)
        flops = sum(m.flops for m in step.computed)
        return for_maps is None or size <= for_maps / 2 or flops >= _FLOPS_PER_BYTE_ON_DISK * size

    def _is_read_ahead(self, map: FeatureMap, step: Pass) -> bool:
        """Whether a pass has used all rows of a map up to the one that it writes."""
        readers = [m for m in step.computed if map in m.inputs]
        return len(readers) == 1 and isinstance(readers[0], Pointwise)

    def _decide_where(self, for_maps: int | None) -> None:
        last_read = {m: index for index, step in enumerate(self.passes) for m in step.reads}
        on_disk = 0
        for index, step in enumerate(self.passes):
            ending = [m for m in step.reads if last_read[m] == index]
            for map in step.writes:
                before = next((m for m in ending if m.shape == map.shape and self._is_read_ahead(m, step)), None)
                if before is not None:
                    ending.remove(before)
                    self.takes_over[map], self.resident[map] = before, self.resident[before]
                    continue
                row, height = self._bytes(map, 1), map.shape.height
                self.resident[map] = rows = height if for_maps is None else min(height, for_maps // row)
                on_disk += (height - rows) * row
                for_maps = None if for_maps is None else for_maps - rows * row
            self.disk = max(self.disk, on_disk)
            for map in ending:
                on_disk -= self._bytes(map, map.shape.height - self.resident[map])
                for_maps = None if for_maps is None else for_maps + self._bytes(map, self.resident[map])


def _scaled(rows: int, map: FeatureMap, picture: FeatureMap) -> int:
    return max(1, ceil(rows * map.shape.height / picture.shape.height))


def _in_order(output: FeatureMap) -> list[FeatureMap]:
    """All maps that it is made of, each after its inputs."""
    return _pass(output, ()).computed


def _pass(goal: FeatureMap, kept: "set[FeatureMap] | tuple[()]") -> Pass:
    computed: dict[FeatureMap, None] = {}
    reads: dict[FeatureMap, None] = {}

    def visit(map: FeatureMap) -> None:
        if map in kept:
            reads[map] = None
        elif map not in computed:
            for input in map.inputs:
                visit(input)
            computed[map] = None

    visit(goal)
    return Pass(goal, list(computed), list(reads), [])


def _users(order: list[FeatureMap]) -> dict[FeatureMap, list[FeatureMap]]:
    users: dict[FeatureMap, list[FeatureMap]] = {m: [] for m in order}
    for map in order:
        for input in map.inputs:
            users[input].append(map)
    return users
