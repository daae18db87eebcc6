"""Runs a plan: pass by pass, band by band."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from artkernels import functional as F
from artkernels.ops.norm_act import Statistics
from artkernels.pooled_allocator import release_pooled_memory

from .maps import UNCHANGED, Affine, FeatureMap, Normalisation, inside, picture_of
from .plan import Pass, Plan
from .store import Store, check_disk

__all__ = ["OnProgress", "pixels_of", "progress_of", "run", "statistics"]

Receiver = Callable[[int, Tensor], None]  # is told the first row, and given the rows
OnWork = Callable[[int], None]  # is told, after each band, how much of the plan's work that was
_ROUNDING = 32  # a convolution's, in units of its result's last place

OnProgress: TypeAlias = Callable[[float], object]
"""Is told which part of the work is done: rising, and exactly 1 at the end."""


def run(plan: Plan, receive: Receiver, on_work: OnWork | None = None) -> None:
    """Compute the plan's output and give its rows to ``receive``, in order.

    Raises:
        UserError: there is no room on the disk for what the plan keeps there.
    """
    check_disk(plan.disk)
    stores: dict[FeatureMap, Store] = {}
    try:
        for index, step in enumerate(plan.passes):
            for map in step.writes:
                before = plan.takes_over.get(map)
                stores[map] = (
                    stores[before] if before else Store(map.shape, plan.dtype, plan.resident[map], plan.device)
                )
            if step.goal is plan.output:
                _stream(step, plan, stores, receive, on_work)
            else:
                moments = _Moments()
                _stream(step, plan, stores, moments.add, on_work)
                for user in plan.users[step.goal]:
                    if isinstance(user, Normalisation):
                        user.statistics = _but_for_rounding(moments.result(unbiased=user.unbiased))
            _close_all_but({m for following in plan.passes[index + 1 :] for m in following.reads}, stores)
            release_pooled_memory()  # the bands of the next pass are of other sizes
    finally:
        _close_all_but(set(), stores)


def statistics(plan: Plan, on_work: OnWork | None = None, *, unbiased: bool) -> Statistics:
    """Mean and variance, [1, C] each, of the plan's output."""
    moments = _Moments()
    run(plan, moments.add, on_work)
    return moments.result(unbiased=unbiased)


def progress_of(plans: Sequence[Plan], on_progress: OnProgress | None) -> OnWork | None:
    """What :func:`run` is to tell of its work, so that ``on_progress`` hears which part of all ``plans`` is done."""
    if on_progress is None:
        return None
    total, done = sum(plan.work for plan in plans), 0

    def on_work(work: int) -> None:
        nonlocal done
        done += work
        on_progress(done / total)

    return on_work


def pixels_of(picture: Tensor, range: Affine = UNCHANGED) -> Receiver:
    """A receiver of rows that, but for their range, are pixels of ``picture``, [C, H, W], or beyond its edges."""
    height, width = picture.shape[1:]

    def receive(first: int, rows: Tensor) -> None:
        inside = rows[: max(0, height - first), :width]
        picture[:, first : first + len(inside)] = range(inside.float()).permute(2, 0, 1)

    return receive


def _close_all_but(needed: set[FeatureMap], stores: dict[FeatureMap, Store]) -> None:
    for map in [m for m in stores if m not in needed]:
        store = stores.pop(map)
        if store not in stores.values():  # that of a map which took it over
            store.close()


def _stream(step: Pass, plan: Plan, stores: dict[FeatureMap, Store], receive: Receiver, on_work: OnWork | None) -> None:
    rows: dict[FeatureMap, _Rows] = {m: _Kept(m, plan.rows_of(m), stores[m]) for m in step.reads}
    for map in step.computed:
        rows[map] = _Computed(map, plan.rows_of(map), [rows[input] for input in map.inputs])
        if map in step.writes:
            rows[map].receivers.append(stores[map].write)
    goal = rows[step.goal]
    goal.receivers.append(receive)
    height, band = step.goal.shape.height, plan.rows_of(step.goal)
    for first in range(0, height, band):
        end = min(first + band, height)
        goal.rows(first, end)
        goal.forget(None, end)
        if on_work is not None:
            on_work(step.work * (end - first))
    for map in step.writes:
        rows[map].finish()


class _Rows:
    """The rows of a map in one pass: made once, in order, and forgotten when all their readers are done with them.

    Args:
        map: whose rows they are.
        most: rows to make at once.

    Attributes:
        receivers: are given the rows as they are made.
    """

    def __init__(self, map: FeatureMap, most: int) -> None:
        self.map, self._most = map, most
        self.receivers: list[Receiver] = []
        self._band: Tensor | None = None  # rows self._first to self._end
        self._first = self._end = 0
        self._wanted: dict[_Rows | None, int] = {}  # the first row that a reader may still ask for

    def rows(self, first: int, end: int) -> Tensor:
        """Rows ``first`` to ``end``."""
        while self._end < end:  # to begin with, the layers before deep ones are asked for more than a band
            stop = min(end, self._end + self._most)
            made = self._make(self._end, stop)
            for receive in self.receivers:
                receive(self._end, made)
            self._band = made if self._band is None else torch.cat([self._band, made])
            self._end = stop
        assert self._band is not None
        assert first >= self._first
        return self._band[first - self._first : end - self._first]

    def finish(self) -> None:
        """Make the rows that no reader in this pass has any use for."""
        if self._end < self.map.shape.height:
            self.rows(self._end, self.map.shape.height)

    def forget(self, reader: "_Rows | None", row: int) -> None:
        """The ``reader`` asks for none before ``row`` again."""
        self._wanted[reader] = row
        row = min(*self._wanted.values(), self._end)
        if row > self._first:
            assert self._band is not None
            # A copy: the few that are left must not keep the memory of all, nor be what a map is written over.
            self._band = self._band[row - self._first :].clone() if row < self._end else None
            self._first = row

    def _make(self, first: int, end: int) -> Tensor:
        raise NotImplementedError


class _Kept(_Rows):
    """Rows that an earlier pass has kept."""

    def __init__(self, map: FeatureMap, most: int, store: Store) -> None:
        super().__init__(map, most)
        self._store = store

    def _make(self, first: int, end: int) -> Tensor:
        return self._store.read(first, end)


class _Computed(_Rows):
    """Rows that are computed from those of other maps."""

    def __init__(self, map: FeatureMap, most: int, inputs: list[_Rows]) -> None:
        super().__init__(map, most)
        self._inputs = inputs
        for input in inputs:
            input.forget(self, 0)

    def _make(self, first: int, end: int) -> Tensor:
        window = self.map.window(first, end)
        made = self.map.compute([self._windowed(input, *window) for input in self._inputs], first, end)
        for input in self._inputs:
            input.forget(self, self._first_wanted(end, input.map.shape.height))
        return made

    def _windowed(self, input: _Rows, first: int, end: int) -> Tensor:
        """Rows of an input, and what stands for those beyond its edges."""
        height = input.map.shape.height
        if first >= 0 and end <= height:
            return input.rows(first, end)
        wanted = torch.arange(first, end)
        there = inside(wanted, height, self.map.edge)
        begin = int(there.min())
        rows = input.rows(begin, int(there.max()) + 1)
        rows = rows.index_select(0, (there - begin).to(rows.device))
        if self.map.edge == "zeros":
            rows[((wanted < 0) | (wanted >= height)).to(rows.device)] = 0
        return rows

    def _first_wanted(self, row: int, height: int) -> int:
        """The first row of the inputs, ``height`` rows high, that ``row`` or those after it are made of."""
        if row >= self.map.shape.height:
            return height
        first = max(0, self.map.window(row, row + 1)[0])
        if self.map.edge != "reflect":
            return min(first, height - 1)
        beyond = self.map.window(row, self.map.shape.height)[1] - height
        return min(first, height - 1 - max(0, beyond))


class _Moments:
    """Mean and variance of each channel, from bands: Chan, Golub and LeVeque 1979."""

    def __init__(self) -> None:
        self._pixels = 0
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)  # squares: of the distances from the mean

    def add(self, first: int, rows: Tensor) -> None:
        """Those of some rows, [n, W, C]."""
        mean, var = (of_rows.double().cpu() for of_rows in F.feature_statistics(picture_of(rows)))
        pixels = rows.shape[0] * rows.shape[1]
        total = self._pixels + pixels
        distance = mean - self._mean
        self._squares = self._squares + var * pixels + distance.square() * (self._pixels * pixels / total)
        self._mean = self._mean + distance * (pixels / total)
        self._pixels = total
        self._device, self._dtype = rows.device, torch.promote_types(rows.dtype, torch.float32)

    def result(self, *, unbiased: bool) -> Statistics:
        """(mean, variance), [1, C] each."""
        var = self._squares / (self._pixels - unbiased)
        return self._mean.to(self._device, self._dtype), var.to(self._device, self._dtype)


def _but_for_rounding(statistics: Statistics) -> Statistics:
    """An infinite variance where nothing varies but by rounding, so that what is divided by its root is constant, too.

    Bands of other heights round differently. Of a map that is constant, as of a blank picture, the variance is then not
    quite 0, and fifteen normalisations one after the other make stripes of that.
    """
    mean, var = statistics
    rounding = _ROUNDING * torch.finfo(mean.dtype).eps * mean
    return mean, torch.where(var < rounding.square(), torch.inf, var)
