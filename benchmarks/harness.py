"""Interleaved timing: the candidates take turns in one process, so that a busy machine disturbs them alike."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import artkernels


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one candidate."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """Time of a peer over ours, round by round: the median and the quartiles."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:5.2f} ({self.low:.2f}-{self.high:.2f})"


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int = 21) -> dict[str, Timing]:
    """Calls every candidate once a round, twice before the first; the order turns from round to round."""
    for call in candidates.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            candidates[name]()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(values) for name, values in seconds.items()}


def ratio(peer: Timing, ours: Timing) -> Ratio:
    """How many times faster `ours` is than `peer`."""
    ratios = [p / o for p, o in zip(peer.seconds, ours.seconds, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    return Ratio(low, median, high)


def machine() -> str:
    """The machine and the versions that a table of figures must name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.machine()
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"


def arguments(description: str, cases: Iterable[str]) -> argparse.ArgumentParser:
    """What every benchmark asks for."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--compile", action="store_true", help="torch.compile as a further peer")
    parser.add_argument("--pooled", action="store_true", help="all under artkernels.use_pooled_allocator()")
    parser.add_argument("--case", nargs="*", choices=[*cases])
    return parser


def begin(args: argparse.Namespace, dtype: str = "float32") -> None:
    """Switches the allocator, and says what the figures are of."""
    if args.pooled:
        artkernels.use_pooled_allocator()
    kernels = artkernels.build_info()["cpu_instruction_set"]
    allocator = "pooled" if args.pooled else "torch's own"
    print(f"{machine()}, kernels for {kernels}, {dtype}, allocator: {allocator}")
