"""Emulates all cases and rewrites artkernels/benchmarks/modelled.json: make modelled.

Prints a line for each call as it is made, in MB and microseconds: artkernels/benchmarks/modelled.py says what the
columns mean. Nothing is measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from artkernels.benchmarks.modelled import Modelled, Row

from . import conv_transpose, gram, norm_act, reparameterize_kl
from .case import DEVICES, Call, Case, cuda, nvcc_version, row
from .occupancy import registers

OPS = {"gram": gram, "norm_act": norm_act, "conv_transpose": conv_transpose, "reparameterize_kl": reparameterize_kl}


def all_cases() -> list[Case]:
    return [case for op in OPS.values() for case in op.cases()]


def head() -> str:
    figures = f"{'DRAM':>7} {'of it L2':>9} {'least':>7} {'stock':>7} {'L2':>7} {'banks':>6} {'tensor':>6}"
    devices = " ".join(f"{device:<16}" for device in DEVICES)
    return f"{'op':<17} {'case':<38} {'dtype':<8} {'layout':<13} {'pass':<8} {figures}  {'blocks':<14} {devices}"


def line(row: Row) -> str:
    megabytes = (value / 1e6 for value in (row.dram, row.passed_on, row.least, row.stock, row.l2))
    figures = " ".join(f"{value:{width}.2f}" for value, width in zip(megabytes, (7, 9, 7, 7, 7), strict=True))
    of_device = (row.bounds.get(device) for device in DEVICES)
    bounds = " ".join(f"{b.microseconds:7.1f} {b.limiter:<8}" if b else f"{'-':>7} {'':<8}" for b in of_device)
    blocks = "+".join(str(launch.grid[0]) for launch in row.launches)
    return (
        f"{row.op:<17} {row.case:<38} {row.dtype:<8} {row.layout:<13} {row.kind:<8} {figures} {row.banks:6.2f} "
        f"{row.tensor_share:6.0%}  {blocks:<14} {bounds}"
    )


def all_registers(calls: Sequence[tuple[Case, Call]]) -> dict[tuple[str, str], int]:
    """(device, mangled kernel) -> registers, of every kernel that was launched."""
    used: dict[tuple[str, str, str], set[str]] = {}
    for case, call in calls:
        for device in case.devices:
            used.setdefault((case.op, case.arch, device), set()).update(run.kernel for run in call.launches)
    ptxas = cuda.cudaemu.build.cuda_home() / "bin" / "ptxas"
    found = {}
    for (op, arch, device), kernels in used.items():
        library = Path(cuda.launchers(arch, op)._name)
        found |= {(device, kernel): n for kernel, n in registers(ptxas, library, device, kernels).items()}
    return found


def main() -> None:
    argparse.ArgumentParser(
        prog="benchmarks.modelled", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        nvcc = nvcc_version()
    except cuda.cudaemu.BuildError as error:
        sys.exit(f"benchmarks.modelled: {error}")
    start = time.perf_counter()
    calls = []
    print(head())
    for case in all_cases():
        for call in case.calls():
            calls.append((case, call))
            print(line(row(case, call)), flush=True)
    emulated = time.perf_counter()
    found = all_registers(calls)
    Modelled(nvcc, tuple(row(case, call, found) for case, call in calls)).save()
    print(
        f"emulated in {emulated - start:.0f} s, assembled for three devices in {time.perf_counter() - emulated:.0f} s",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
