"""One row of the results: candidates that compute the same, timed beside the limits, and their memory."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from artkernels.benchmarks import limits
from artkernels.benchmarks.case import Candidate, Case, Setting
from artkernels.benchmarks.memory import peak
from artkernels.benchmarks.processes import Processes
from artkernels.benchmarks.results import EAGER, OURS, Row
from artkernels.benchmarks.timing import Effort, interleave

__all__ = ["Arena", "Contest"]

_COPY, _WORK = "copy of the least bytes", "the machine's peak"
_OF_MEMORY = (OURS, EAGER)
_MEASURABLE = 4 << 20  # bytes: the process itself grows by some two MiB now and then


@dataclass
class Arena:
    """What the contests of a run share.

    Attributes:
        effort: time for each.
        threads: of the CPU.
        absent: peers that take no part -> why.
        processes: in which memory is measured.
        dropped: who was not timed in a row, and why, for the report.
        works: dtype -> what shows the machine's peak in it.
    """

    effort: Effort
    threads: int
    absent: Mapping[str, str]
    processes: Processes
    dropped: list[str] = field(default_factory=list)
    works: dict[str, limits.Arithmetic] = field(default_factory=dict)

    def work(self, setting: Setting) -> limits.Arithmetic:
        """What shows the machine's peak in the setting's dtype, found at its first use."""
        if setting.dtype not in self.works:
            self.works[setting.dtype] = limits.arithmetic(setting.torch_dtype, setting.device)
        return self.works[setting.dtype]


@dataclass(frozen=True)
class Contest:
    """A case in one setting."""

    case: Case
    setting: Setting

    def __str__(self) -> str:
        setting = self.setting
        return "-".join([self.case.op, self.case.name, setting.kind, setting.layout, setting.dtype])

    def run(self, benchmark: BenchmarkFixture, arena: Arena) -> Row:
        """Time everyone who computes the same.

        Raises:
            AssertionError: ours does not.
        """
        case, setting = self.case, self.setting
        threads = case.threads or arena.threads
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        with ExitStack() as resources:
            candidates = self._candidates(arena, resources)
            nbytes, flops = case.least(setting)
            work = arena.work(setting)
            calls = {name: candidate.call for name, candidate in candidates.items()}
            calls[_COPY] = limits.Copy(nbytes, setting.device)
            if flops:
                calls[_WORK] = work.call
            seconds = interleave(benchmark, calls, arena.effort, setting.device)
        limit = limits.limit(nbytes, flops, seconds.pop(_COPY), seconds.pop(_WORK, []), work)
        peaks = self._peaks(arena, threads, nbytes)
        about = case.op, case.name, case.title, case.shape, setting.layout, setting.dtype, setting.kind
        return Row(*about, setting.device, threads, case.axis, seconds, limit, peaks)

    def _candidates(self, arena: Arena, resources: ExitStack) -> dict[str, Candidate]:
        """Eager PyTorch, and those who agree with it."""
        case, setting = self.case, self.setting
        found = {EAGER: case.candidate(EAGER, setting, resources)}
        expected = found[EAGER].results()
        ours = case.candidate(OURS, setting, resources)
        problem = _difference(ours.results(), expected, case.tolerance(setting.dtype))
        assert not problem, f"{self}: ours is not what eager PyTorch computes: {problem}"
        for name in case.peers(setting):
            if name == EAGER or name in arena.absent:
                continue
            try:
                peer = case.candidate(name, setting, resources)
                problem = _difference(peer.results(), expected, case.tolerance(setting.dtype))
            except Exception as error:  # other people's compilers: whatever they raise, the others can be timed
                problem = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            if problem:
                arena.dropped.append(f"{self}: {name}: {problem}")
            else:
                found[name] = peer
        return {OURS: ours, **found}

    def _peaks(self, arena: Arena, threads: int, nbytes: int) -> dict[str, int]:
        told_by_other_rows = self.setting.kind == "backward" or self.setting.layout == "channels_last" or self.case.axis
        if told_by_other_rows or nbytes < _MEASURABLE:
            return {}
        return {name: peak(self.case, name, self.setting, threads, arena.processes) for name in _OF_MEMORY}


def _difference(
    found: tuple[Sequence[Tensor], Sequence[Tensor]],
    expected: tuple[Sequence[Tensor], Sequence[Tensor]],
    tolerance: tuple[float, float],
) -> str:
    """What is wrong, or nothing."""
    for what, tensors, wanted, most in zip(("values", "gradients"), found, expected, tolerance, strict=True):
        shapes, right_shapes = ([tuple(tensor.shape) for tensor in one] for one in (tensors, wanted))
        if shapes != right_shapes:
            return f"{what} of {shapes} instead of {right_shapes}"
        # A gradient that is zero but for rounding, as of a bias before a normalisation, has no relative error.
        zero = max((torch.finfo(tensor.dtype).eps for tensor in wanted), default=0.0) ** 0.5
        floor = max(1e-3, zero) * max((_rms(tensor) for tensor in wanted), default=0.0)
        for tensor, right in zip(tensors, wanted, strict=True):
            error = _rms(tensor.double() - right.double()) / max(_rms(right), floor, 1e-30)
            if not error <= most:
                return f"{what} of {tuple(right.shape)} differ by {error:.1e} of their size, {most:.0e} is rounding"
    return ""


def _rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())
