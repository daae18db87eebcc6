"""Interleaved timing: everyone takes a turn in every round, so that a busy machine disturbs them alike."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from artkernels.benchmarks.results import OURS

__all__ = ["Effort", "interleave"]

_TURN = 5e-4  # seconds: below it a call is repeated, for the clock
_LONG_ROUND = 1.5  # seconds


@dataclass(frozen=True)
class Effort:
    """How long one contest may take.

    Attributes:
        seconds: of timing, all candidates together, unless the fewest rounds take longer.
        fewest, most: rounds; where one takes seconds, three must do.
    """

    seconds: float
    fewest: int
    most: int


def interleave(
    benchmark: BenchmarkFixture, calls: Mapping[str, Callable[[], object]], effort: Effort, device: str
) -> dict[str, list[float]]:
    """Seconds of a call of each in every round.

    pytest-benchmark times ours; in the pause before each of its rounds the others take their turns, in an order that
    turns from round to round.
    """
    calls_a_turn, rounds = _plan(calls, effort, device)
    turns = {name: _turn(call, calls_a_turn[name], device) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls if name != OURS}
    names = list(seconds)

    def others() -> None:
        first = len(seconds[names[0]]) % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            turns[name]()
            seconds[name].append((time.perf_counter() - start) / calls_a_turn[name])

    with _no_collection():
        benchmark.pedantic(turns[OURS], setup=others, rounds=rounds)  # type: ignore[no-untyped-call]
    assert benchmark.stats is not None
    return {OURS: [turn / calls_a_turn[OURS] for turn in benchmark.stats.stats.data], **seconds}


def _plan(calls: Mapping[str, Callable[[], object]], effort: Effort, device: str) -> tuple[dict[str, int], int]:
    """Calls a turn and rounds, of what a first call of each took; what is short is warmed up with a second."""
    first = {name: _timed(call, device) for name, call in calls.items()}
    for name, call in calls.items():
        if first[name] < effort.seconds / len(calls):
            first[name] = min(first[name], _timed(call, device))
    calls_a_turn = {name: min(100, math.ceil(_TURN / seconds)) for name, seconds in first.items()}
    round_seconds = sum(calls_a_turn[name] * seconds for name, seconds in first.items())
    fewest = 3 if round_seconds > _LONG_ROUND else effort.fewest
    return calls_a_turn, max(fewest, min(effort.most, int(effort.seconds / round_seconds)))


def _timed(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    _turn(call, 1, device)()
    return time.perf_counter() - start


def _turn(call: Callable[[], object], times: int, device: str) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(times):
            call()
        if device != "cpu":
            torch.cuda.synchronize(device)

    return turn


@contextmanager
def _no_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
