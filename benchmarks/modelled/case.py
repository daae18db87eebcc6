"""A case, what its launches do on the emulator, and the row that is made of it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from artkernels.benchmarks.modelled import Bound, Launch, Row

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import cuda_launchers as cuda

from .occupancy import occupancy

DEVICES = ("h100", "a100", "rtx4090")
# sm_89 multiplies float32 without tensor cores (csrc/cuda/mma.cuh): what is emulated for the other two is not its code.
WITH_FLOAT_TENSOR_CORES, WITHOUT = ("h100", "a100"), ("rtx4090",)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": False, "channels_last": True}


@dataclass(frozen=True)
class Call:
    """An emulated forward or backward: the emulator's launches, the bytes of its operands and of the stock kernels."""

    kind: str
    launches: Sequence[cuda.cudaemu.Launch]
    read: int
    written: int
    stock: int


@dataclass(frozen=True)
class Case:
    """What is emulated, and for which devices: the first plans the launches, and all of them run the same code.

    emulate takes the options `profile`, `arch` and `checks` of cuda_launchers.
    """

    op: str
    name: str
    dtype: str
    layout: str
    shape: tuple[int, ...]
    emulated: tuple[int, ...]
    emulate: Callable[..., list[Call]]
    devices: tuple[str, ...] = DEVICES

    @property
    def arch(self) -> str:
        return "compute_89" if self.devices == WITHOUT else "compute_80"

    def calls(self) -> list[Call]:
        torch.manual_seed(0)
        return self.emulate(profile=self.devices[0], arch=self.arch, checks="none,traffic")


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def row(case: Case, call: Call, registers: Mapping[tuple[str, str], int] | None = None) -> Row:
    """registers: (device, mangled kernel) -> registers a thread; without them a launch has no occupancy."""
    launches = tuple(_launch(run, case.devices, registers) for run in call.launches)
    flops = {peak: sum(run.flops[peak] for run in call.launches) for peak in call.launches[0].flops}
    written = sum(32 * run.unique_written_sectors for run in call.launches)
    free = sum(launch.conflict_free_passes for launch in launches)
    return Row(
        op=case.op,
        case=case.name,
        dtype=case.dtype,
        layout=case.layout,
        kind=call.kind,
        shape=case.shape,
        emulated=case.emulated,
        grid=case.devices[0],
        dram=sum(32 * launch.sectors for launch in launches),
        passed_on=2 * max(0, written - call.written),
        least=call.read + call.written,
        stock=call.stock,
        l2=sum(32 * launch.requested for launch in launches),
        banks=round(sum(launch.passes for launch in launches) / free, 4) if free else 1.0,
        instructions=sum(launch.instructions for launch in launches),
        tensor_share=round(sum(n for peak, n in flops.items() if "tensor" in peak) / max(1, sum(flops.values())), 4),
        bounds={device: _bound(call.launches, device) for device in case.devices},
        launches=launches,
    )


def _launch(
    run: cuda.cudaemu.Launch, devices: Sequence[str], registers: Mapping[tuple[str, str], int] | None
) -> Launch:
    shared = run.shared_load, run.shared_store
    threads = run.block[0] * run.block[1] * run.block[2]
    of_device = {device: registers[device, run.kernel] for device in devices} if registers else {}
    return Launch(
        kernel=run.name.replace("artkernels::cuda::", ""),
        grid=tuple(run.grid),
        block=tuple(run.block),
        instructions=run.total_warp_instructions,
        sectors=run.unique_read_sectors + run.unique_written_sectors,
        requested=run.global_load["sectors"] + run.global_store["sectors"],
        passes=sum(counts["wavefronts"] for counts in shared),
        conflict_free_passes=sum(counts["ideal"] for counts in shared),
        shared=run.shared_bytes,
        registers=of_device,
        occupancy={device: occupancy(device, threads, n, run.shared_bytes) for device, n in of_device.items()},
    )


def _bound(launches: Sequence[cuda.cudaemu.Launch], device: str) -> Bound:
    lines = [run.roofline(device) for run in launches]
    longest = max(lines, key=lambda line: line["bound_s"])
    return Bound(round(1e6 * sum(line["bound_s"] for line in lines), 3), longest["limiter"])


@functools.cache
def nvcc_version() -> str:
    nvcc = cuda.cudaemu.build.cuda_home() / "bin" / "nvcc"
    report = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", report).group(1)
