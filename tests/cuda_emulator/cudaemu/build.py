"""Builds the emulator library and compiles .cu files against it."""
from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent
SOURCES = next(p for p in (ROOT / "src", ROOT.parent / "src") if p.is_dir())
CACHE = Path(os.environ.get("CUDAEMU_CACHE") or Path.home() / ".cache" / "cudaemu")
CXX = os.environ.get("CXX", "g++")
# -ffp-contract=off: PTX says where a multiply-add is fused; -frounding-math: directed rounding modes are used.
CXX_FLAGS = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-pthread", "-Wall", "-Wextra",
             "-ffp-contract=off", "-frounding-math", "-fno-math-errno"]


class BuildError(RuntimeError):
    """A compiler failed; the message holds its output."""


@functools.cache
def cuda_home() -> Path:
    """The toolkit: CUDA_HOME; or what the nvcc on PATH (which may be a wrapper script) says it belongs to; or pip's."""
    if home := os.environ.get("CUDA_HOME"):
        return Path(home)
    if nvcc := shutil.which("nvcc"):
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        if top := re.search(r"TOP=(\S+)", plan.stdout + plan.stderr):
            return Path(top.group(1)).resolve()
        raise BuildError(f"{nvcc} --dryrun names no toolkit; set CUDA_HOME")
    packages = importlib.util.find_spec("nvidia")  # the pip packages nvidia-cuda-nvcc and so on, merged in one folder
    for folder in packages.submodule_search_locations or () if packages else ():
        for nvcc in sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True):
            return nvcc.parents[1]
    raise BuildError("no nvcc in CUDA_HOME, on PATH or among the pip packages")


def _run(command: Sequence[object]) -> None:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(" ".join(map(str, command)) + "\n" + done.stdout + done.stderr)


def _digest(*parts: object) -> str:
    h = hashlib.sha256()
    for p in parts:
        h.update(p if isinstance(p, bytes) else str(p).encode())
        h.update(b"\0")
    return h.hexdigest()[:20]


def jobs() -> int:
    """Compilers to run at once: CUDAEMU_JOBS, by default 1."""
    return max(1, int(os.environ.get("CUDAEMU_JOBS", "1")))


def library() -> Path:
    """Path of libcudart_emu.so, built on first use and again when a source changes."""
    headers = b"".join(p.read_bytes() for p in sorted(SOURCES.glob("*.h")))
    machine = next((l for l in Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("flags")), "")
    base = _digest(headers, CXX, CXX_FLAGS, machine)
    units = sorted(SOURCES.glob("*.cpp"))
    objects = [CACHE / "obj" / f"{u.stem}-{_digest(base, u.read_bytes())}.o" for u in units]
    out = CACHE / f"lib-{_digest(*objects, (SOURCES / 'exports.map').read_bytes())}" / "libcudart_emu.so"
    if out.exists():
        return out
    (CACHE / "obj").mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)

    def compile_unit(unit: Path, obj: Path) -> None:
        if not obj.exists():
            partial = obj.with_suffix(f".{os.getpid()}.o")
            _run([CXX, *CXX_FLAGS, "-isystem", cuda_home() / "include", "-c", unit, "-o", partial])
            partial.rename(obj)

    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(compile_unit, units, objects))
    partial = out.with_suffix(f".{os.getpid()}.so")
    _run([CXX, "-shared", "-pthread", "-o", partial, *objects, "-ldl",
          f"-Wl,--version-script={SOURCES / 'exports.map'}", "-Wl,-soname,libcudart_emu.so"])
    partial.rename(out)
    return out


def compile(cu_files: Iterable[os.PathLike | str], arch: str | Sequence[str] = "compute_80", *,
            include_dirs: Iterable[os.PathLike | str] = (), defines: Mapping[str, object] | Sequence[str] = (),
            flags: Sequence[str] = (), lineinfo: bool = True, compress: str | None = None, output: os.PathLike | str | None = None) -> Path:
    """Compiles .cu files with nvcc to a shared library that is linked to the emulator instead of libcudart.

    arch: a virtual architecture ("compute_80", "compute_90a", ...) or several of them; the launch takes the highest
    that the profile can run. compress: a --compress-mode of nvcc for the embedded PTX, by default none. Results are cached by content of the files and of everything in include_dirs.
    """
    files = [Path(f) for f in cu_files]
    arches = [arch] if isinstance(arch, str) else list(arch)
    if isinstance(defines, Mapping):
        defines = [f"{k}={v}" if v is not None else k for k, v in defines.items()]
    nvcc = [cuda_home() / "bin" / "nvcc", "-std=c++17", "-O3", "-cudart", "none", f"--compress-mode={compress}" if compress else "-no-compress",
            "-Xcompiler", "-fPIC", *(["-lineinfo"] if lineinfo else []),
            *(f"-gencode=arch={a},code={a}" for a in arches), *(f"-D{d}" for d in defines),
            *(f"-I{d}" for d in include_dirs), *flags]
    emulator = library()
    included = b"".join(p.read_bytes() for d in include_dirs for p in sorted(Path(d).rglob("*"))
                        if p.suffix in (".h", ".cuh", ".hpp", ".inc", ".cu"))
    key = _digest(*nvcc, included, *(f.resolve() for f in files), *(f.read_bytes() for f in files), emulator)
    out = Path(output) if output else CACHE / "kernels" / key / f"lib{files[0].stem}.so"
    stamp = out.with_suffix(".key")
    if out.exists() and stamp.exists() and stamp.read_text() == key:
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    work = CACHE / "kernels" / key
    work.mkdir(parents=True, exist_ok=True)
    objects = [work / f"{i}-{f.stem}.o" for i, f in enumerate(files)]
    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(lambda fo: _run([*nvcc, "-c", fo[0], "-o", fo[1]]), zip(files, objects)))
    _run([CXX, "-shared", "-o", out, *objects, *link_flags()])
    for o in objects:
        o.unlink()
    stamp.write_text(key)
    return out


def link_flags() -> list[str]:
    """What a linker needs to bind an object to the emulator instead of libcudart."""
    folder = library().parent
    return [f"-L{folder}", "-l:libcudart_emu.so", f"-Wl,-rpath,{folder}", "-Wl,-z,defs", "-lstdc++", "-lm", "-lc", "-lgcc_s"]
