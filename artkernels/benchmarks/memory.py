"""Peak memory of a call: on the CPU the resident high-water mark of a fresh process, on a GPU the allocator's."""

import ctypes
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch.nn import functional as torch_functional

from artkernels.benchmarks.case import Case, Setting
from artkernels.benchmarks.processes import Address, Processes

__all__ = ["peak", "resident"]


def peak(case: Case, candidate: str, setting: Setting, threads: int, processes: Processes) -> int:
    """Bytes that two calls had at most, beyond the input and the weights."""
    if setting.device != "cpu":
        return _allocated_peak(case, candidate, setting)
    with processes.pool(1) as pool:
        return pool.apply(_resident_peak, (processes.address(case), candidate, setting, threads))


def resident(call: Callable[[], object]) -> tuple[int, int]:
    """Bytes that this process holds before ``call``, and the most that it holds at any time during it."""
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident
    before = _status("VmRSS")
    call()
    return before, _status("VmHWM")


def _resident_peak(address: Address, candidate: str, setting: Setting, threads: int) -> int:
    torch.set_num_threads(threads)
    _warm_up()
    with ExitStack() as resources:
        call = address.case().candidate(candidate, setting, resources).call

        def twice() -> None:
            call()
            call()

        before, peak = resident(twice)
        return max(0, peak - before)


def _warm_up() -> None:
    """Maps the code and the threads that every layer needs, whosever it is."""
    x, weight = torch.randn(2, 8, 16, 16, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)
    y = torch_functional.batch_norm(torch_functional.conv2d(x, weight, padding=1), None, None, training=True)
    torch.autograd.backward((y.relu() @ y.mT).sum())


def _status(field: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _allocated_peak(case: Case, candidate: str, setting: Setting) -> int:
    with ExitStack() as resources:
        call = case.candidate(candidate, setting, resources).call
        torch.cuda.synchronize(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        before = torch.cuda.memory_allocated(setting.device)
        call()
        call()
        torch.cuda.synchronize(setting.device)
        return torch.cuda.max_memory_allocated(setting.device) - before
