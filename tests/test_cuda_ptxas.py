"""What ptxas says of csrc/cuda: no spills, and the registers that the occupancy in the kernels' comments needs."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cuda_launchers import CSRC, cudaemu

SOURCES = sorted((CSRC / "cuda").glob("*.cu"))
ARCHITECTURES = ["sm_80", "sm_90"]
# Most registers of a thread, and bytes of static shared memory, as the comments above the kernels have it.
LIMITS = {
    "gram_kernel": (255, 0),  # two blocks of 128 threads an SM
    "gram_finish_kernel": (64, 8192),
    "gram_symmetrize_kernel": (64, 2048),
    "gram_backward_kernel": (128, 0),  # 16 warps an SM
    "conv_transpose_kernel": (128, 2048),  # 16 warps an SM
    "conv_transpose_finish_kernel": (128, 12 << 10),
    "conv_transpose_merge_kernel": (64, 0),
    "conv_transpose_pack_kernel": (64, 0),
    "conv_transpose_direct_kernel": (168, 32 << 10),  # 12 warps an SM
    "norm_act_finish_kernel": (64, 256),
    "norm_act_planes_kernel": (128, 8192),  # 16 warps an SM
    "norm_act_planes_backward_kernel": (128, 8192),
    "norm_act_rows_kernel": (128, 48 << 10),
    "norm_act_rows_backward_kernel": (128, 48 << 10),
    "reparameterize_kl_kernel": (64, 16),  # 32 warps an SM
    "reparameterize_kl_finish_kernel": (64, 0),
    "reparameterize_kl_backward_kernel": (64, 0),
}


@pytest.fixture(autouse=True)
def emulator() -> None:
    """Nothing runs here."""


def nvcc() -> Path:
    try:
        return cudaemu.build.cuda_home() / "bin" / "nvcc"
    except cudaemu.BuildError as e:
        pytest.skip(f"no nvcc: {e}")


@functools.cache
def report(source: Path, architecture: str) -> dict[str, tuple[int, int, int]]:
    """kernel -> registers, bytes spilled, bytes of static shared memory: the worst of its instantiations."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", f"{folder}/out"]
        done = subprocess.run(
            [nvcc(), *flags, source], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        )
    assert done.returncode == 0, done.stderr
    worst: dict[str, tuple[int, int, int]] = {}
    for entry in done.stderr.split("Compiling entry function '")[1:]:
        mangled = entry.split("'")[0]
        kernel = next((name for name in LIMITS if f"{len(name)}{name}" in mangled), mangled)
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", entry)))
        registers = int(re.search(r"Used (\d+) registers", entry).group(1))
        shared = sum(map(int, re.findall(r"(\d+) bytes smem", entry)))
        worst[kernel] = tuple(map(max, worst.get(kernel, (0, 0, 0)), (registers, spilled, shared)))
    return worst


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_spills_and_registers_as_stated(source, architecture):
    kernels = report(source, architecture)
    assert kernels, "ptxas reported no kernel"
    for kernel, (registers, spilled, shared) in kernels.items():
        assert kernel in LIMITS, f"state what {kernel} may use in LIMITS"
        assert spilled == 0, f"{kernel} spills {spilled} bytes"
        most_registers, most_shared = LIMITS[kernel]
        assert registers <= most_registers, kernel
        assert shared <= most_shared, kernel
