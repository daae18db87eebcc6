"""What the modelled_<op>.py share: a line of counts for the launches of a call.

Nothing is measured: the kernels run on tests/cuda_emulator, which counts what they do. The columns, in MB and
microseconds:

DRAM      32-byte sectors that a launch touches, each once, added over the launches of the call. What one kernel of the
          call writes and the next reads (partial sums) is counted both times, though it stays in L2: "of it L2".
least     what any implementation must move: each operand once.
stock     PyTorch's sequence of kernels, an operand read or written once per kernel.
L2        all sectors requested by the kernels, however often.
banks     shared-memory passes over conflict-free passes.
blocks    of each launch.
bound     the slowest of DRAM, arithmetic, issue and shared memory, assuming perfect overlap, for the kernels of the
          call one after the other, without launch latency; and what bounds the longest of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import cuda_launchers as cuda

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PROFILES = ("h100", "a100", "rtx4090")
HEADER = f"{'DRAM':>7} {'of it L2':>9} {'least':>7} {'stock':>7} {'L2':>7} {'banks':>6}  {'blocks':<14} " + " ".join(
    f"{p:<16}" for p in PROFILES
)


def row(launches, least: int, stock: int) -> str:
    dram = [32 * (run.unique_read_sectors + run.unique_written_sectors) for run in launches]
    l2 = sum(32 * (run.global_load["sectors"] + run.global_store["sectors"]) for run in launches)
    # Written by a kernel of the call for a later one: everything but the last kernel's output.
    passed_on = sum(32 * run.unique_written_sectors for run in launches[:-1])
    shared = [counts for run in launches for counts in (run.shared_load, run.shared_store)]
    ideal = sum(counts["ideal"] for counts in shared)
    banks = sum(counts["wavefronts"] for counts in shared) / ideal if ideal else 1
    bounds = []
    for profile in PROFILES:
        lines = [run.roofline(profile) for run in launches]
        longest = max(lines, key=lambda line: line["bound_s"])
        bounds.append(f"{1e6 * sum(line['bound_s'] for line in lines):7.1f} {longest['limiter']:<8}")
    blocks = "+".join(str(run.grid[0]) for run in launches)
    return (
        f"{sum(dram) / 1e6:7.2f} {2 * passed_on / 1e6:9.2f} {least / 1e6:7.2f} {stock / 1e6:7.2f} {l2 / 1e6:7.2f} "
        f"{banks:6.2f}  {blocks:<14} {' '.join(bounds)}"
    )


def parser(description: str) -> argparse.ArgumentParser:
    """The options that all have."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dtype", nargs="*", choices=DTYPES, default=["float32", "bfloat16"])
    p.add_argument("--profile", default="h100", help="the device whose number of SMs chooses the grid")
    return p


def require_nvcc(script: str) -> None:
    try:
        cuda.cudaemu.build.cuda_home()
    except cuda.cudaemu.BuildError as error:
        sys.exit(f"{script}: {error}")
