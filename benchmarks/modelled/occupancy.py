"""Occupancy: how many warps of a kernel fit on an SM at once, by the rules of CUDA's occupancy calculator."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REGISTERS = 65536  # of an SM, in four parts: a warp's are all in one of them
PARTS = 4
REGISTER_UNIT = 256  # a warp's registers are allocated in multiples of it
SHARED_UNIT = 128
RESERVED_SHARED = 1024  # of each block, by the driver


@dataclass(frozen=True)
class Multiprocessor:
    """What an SM holds: "Technical Specifications per Compute Capability" of the CUDA programming guide."""

    arch: str
    warps: int
    blocks: int
    shared: int


MULTIPROCESSORS = {
    "h100": Multiprocessor("sm_90", 64, 32, 228 << 10),
    "a100": Multiprocessor("sm_80", 64, 32, 164 << 10),
    "rtx4090": Multiprocessor("sm_89", 48, 24, 100 << 10),
}


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def resident_blocks(device: str, threads: int, registers: int, shared: int) -> int:
    """Blocks on an SM; registers of a thread, static and dynamic shared bytes of a block."""
    sm = MULTIPROCESSORS[device]
    warps = -(-threads // 32)
    by_registers = REGISTERS // PARTS // _round_up(32 * registers, REGISTER_UNIT) * PARTS // warps
    by_shared = sm.shared // _round_up(shared + RESERVED_SHARED, SHARED_UNIT)
    return min(sm.blocks, sm.warps // warps, by_registers, by_shared)


def occupancy(device: str, threads: int, registers: int, shared: int) -> float:
    """Resident warps over the most that an SM can hold."""
    warps = -(-threads // 32)
    return round(resident_blocks(device, threads, registers, shared) * warps / MULTIPROCESSORS[device].warps, 4)


def registers(ptxas: Path, library: Path, device: str, kernels: Iterable[str]) -> dict[str, int]:
    """Mangled kernel -> registers that ptxas gives it on the device, of the PTX in a library of the emulator."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for text in re.findall(rb"\.version [^\0]+", library.read_bytes()):  # nvcc leaves it as it is: -no-compress
            entries = [name for name in kernels if f".entry {name}(".encode() in text]
            if not entries:
                continue
            source = Path(folder, "kernels.ptx")
            source.write_bytes(text)
            arch = MULTIPROCESSORS[device].arch
            command = [ptxas, "-v", f"-arch={arch}", "-o", f"{folder}/cubin", "-e", ",".join(entries), source]
            report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            for entry in report.split("Compiling entry function '")[1:]:
                found[entry.split("'")[0]] = int(re.search(r"Used (\d+) registers", entry).group(1))
    return found
