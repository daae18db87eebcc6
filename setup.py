"""Builds artkernels._C: C++ kernels once per CPU instruction set and, with nvcc at hand, the CUDA kernels.

Environment: ARTKERNELS_CUDA=auto|0|1 (emulate: CUDA kernels against tests/cuda_emulator), TORCH_CUDA_ARCH_LIST,
CUDA_HOME, MAX_JOBS, ARTKERNELS_DEBUG=1 (-O0 -g), CXX. The kernels include no torch header, so that they compile in
seconds with flags of their own, which torch's BuildExtension does not give: so the compilers are called from here.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    import torch
except ImportError:
    sys.exit("artkernels: no torch in the build environment; install it and run `pip install --no-build-isolation .`")

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
TORCH = Path(torch.__file__).parent
DEFAULT_ARCHITECTURES = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "artkernels/__init__.py").read_text(), re.MULTILINE).group(1)
DEBUG = os.environ.get("ARTKERNELS_DEBUG", "0") == "1"
CXX = os.environ.get("CXX", "g++")
X86 = platform.machine() in ("x86_64", "AMD64")
INSTRUCTION_SETS = {"baseline": []}  # CPU kernels are compiled for each; csrc/cpu/isa.h says how one is chosen
if X86:
    v4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    INSTRUCTION_SETS |= {"avx2": ["-march=x86-64-v3"], "avx512": v4, "avx512bf16": [*v4, "-mavx512bf16"]}
SHARED = ("isa.cpp", "scratch.cpp")  # in csrc/cpu, compiled once
# No -ffast-math: linked by gcc, it turns on flush-to-zero for the whole process.
CXX_FLAGS = ["-std=c++20", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", f"-I{CSRC}", "-ffp-contract=fast"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math", *(["-O0", "-g"] if DEBUG else ["-O3"])]
CXX_FLAGS += ["-DARTKERNELS_X86"] if X86 else []


def say(text):
    print(f"artkernels: {text}", file=sys.stderr, flush=True)


def run(command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit("artkernels: this command failed:\n" + " ".join(map(str, command)) + "\n" + done.stdout + done.stderr)
    print(done.stderr, end="", file=sys.stderr)


def cuda_libraries():
    """Headers and libraries of torch's own pip packages: a toolkit that is only a compiler lacks some of them."""
    return TORCH.parent / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}"


def find_nvcc():
    """nvcc and its toolkit: CUDA_HOME's, the one on PATH (which may be a wrapper script, so it is asked), or pip's."""
    if home := os.environ.get("CUDA_HOME"):
        nvcc = Path(home) / "bin" / "nvcc"
        return (nvcc, Path(home)) if nvcc.exists() else sys.exit(f"artkernels: no bin/nvcc in CUDA_HOME, {home}")
    if nvcc := shutil.which("nvcc"):
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        if top := re.search(r"TOP=(\S+)", plan.stdout + plan.stderr):
            return Path(nvcc), Path(top.group(1)).resolve()
    packaged = cuda_libraries()
    return (packaged / "bin" / "nvcc", packaged) if (packaged / "bin" / "nvcc").exists() else (None, None)


def check_versions(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    toolkit = re.search(r"release (\d+\.\d+)", text).group(1)
    versions = f"nvcc is CUDA {toolkit} and torch was built with CUDA {torch.version.cuda}"
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        sys.exit(f"artkernels: {versions}: the major versions must agree; ARTKERNELS_CUDA=0 builds CPU kernels alone")
    if toolkit != torch.version.cuda:
        say(f"warning: {versions}")
    return toolkit


def choose_cuda():
    """(mode, nvcc, toolkit folder, toolkit version) with mode "host", "native" or "emulate"; says why."""
    wanted, nvcc = os.environ.get("ARTKERNELS_CUDA", "auto"), None
    if wanted not in ("auto", "0", "1", "emulate"):
        sys.exit(f"artkernels: ARTKERNELS_CUDA must be auto, 0, 1 or emulate, got {wanted}")
    if wanted == "0":
        missing = "ARTKERNELS_CUDA=0"
    elif torch.version.cuda is None:
        missing = "this torch was built without CUDA"
    else:
        nvcc, home = find_nvcc()
        missing = "no nvcc in CUDA_HOME, on PATH or among the pip packages"
    if nvcc is None:
        if wanted in ("1", "emulate"):
            sys.exit(f"artkernels: ARTKERNELS_CUDA={wanted}, but {missing}")
        say(f"CPU kernels only, because {missing}")
        return "host", None, None, None
    version, mode = check_versions(nvcc), "emulate" if wanted == "emulate" else "native"
    say(f"CPU and CUDA kernels ({mode}), nvcc {version} of {home}, torch {torch.__version__}")
    return mode, nvcc, home, version


def gencode_flags(architectures):
    flags = []
    for name in re.split(r"[ ;,]+", architectures.strip()):
        if not re.fullmatch(r"\d+\.\d+[af]?(\+PTX)?", name):
            sys.exit(f"artkernels: TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0 or 9.0+PTX, got {name}")
        number = name.removesuffix("+PTX").replace(".", "")
        for code in ("sm", "compute") if name.endswith("+PTX") else ("sm",):
            flags.append(f"-gencode=arch=compute_{number},code={code}_{number}")
    return flags


def host_jobs(mode, home):
    """Files that include torch's headers. A job: source, what tells its object from others of that source, command."""
    includes = [TORCH / "include", TORCH / "include/torch/csrc/api/include", sysconfig.get_paths()["include"]]
    flags = [*CXX_FLAGS, f'-DARTKERNELS_VERSION="{VERSION}"']
    if home:
        includes += [home / "include", cuda_libraries() / "include"]
        flags += ["-DARTKERNELS_CUDA", *(["-DARTKERNELS_CUDA_EMULATED"] if mode == "emulate" else [])]
    sources = [*sorted(CSRC.glob("*.cpp")), *sorted((CSRC / "ops").glob("*.cpp")), *(CSRC / "cpu" / x for x in SHARED)]
    return [(source, "", [CXX, *flags, *(f"-isystem{folder}" for folder in includes)]) for source in sources]


def kernel_jobs():
    sources = sorted(path for path in (CSRC / "cpu").glob("*.cpp") if path.name not in SHARED)
    command = [CXX, *CXX_FLAGS, "-fno-exceptions", "-Wno-psabi"]  # exceptions need a weak symbol; see csrc/cpu/isa.h
    isas = [(f"-{isa}", [*command, f"-DARTKERNELS_ISA={isa}", *x]) for isa, x in INSTRUCTION_SETS.items()]
    return [(x, *isa) for x in sources for isa in isas if isa[0] != "-avx512bf16" or x.name == "conv.cpp"]


def cuda_jobs(nvcc, flags):
    optimise = ["-O0", "-G"] if DEBUG else ["-O3", "-lineinfo"]
    command = [nvcc, "-std=c++17", *optimise, "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC}", *flags]
    return [(source, "", command) for source in sorted((CSRC / "cuda").glob("*.cu"))]


class BuildKernels(build_ext):
    """Compiles what has changed since the last build, MAX_JOBS at a time, and links artkernels._C."""

    def build_extension(self, ext):
        self.mode, nvcc, home, version = choose_cuda()
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        jobs = [*host_jobs(self.mode, home), *kernel_jobs()]
        link = ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
        if self.mode == "native":
            jobs += cuda_jobs(nvcc, gencode_flags(architectures))
            link += ["-lc10_cuda", f"-L{cuda_libraries() / 'lib'}", f"-l:libcudart.so.{version.split('.')[0]}"]
        elif self.mode == "emulate":
            sys.path.insert(0, str(ROOT / "tests" / "cuda_emulator"))
            import cudaemu

            jobs += cuda_jobs(nvcc, ["-cudart=none", "-gencode=arch=compute_80,code=compute_80"])
            link += [*cudaemu.link_flags(), "-Wl,-z,undefs"]
        cuda = f"; CUDA for {architectures}" if self.mode == "native" else ""
        say(f"CPU kernels for {', '.join(INSTRUCTION_SETS)}{cuda}")
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(self.compile, jobs))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        run([CXX, "-shared", "-fopenmp", "-o", output, *objects, f"-L{TORCH / 'lib'}", *link])
        self.build_info = output.with_name("_build_info.py")
        built = {
            "TORCH": torch.__version__,
            "CUDA": version,
            "CUDA_ARCHITECTURES": architectures if self.mode == "native" else "",
        }
        self.build_info.write_text("".join(f"{name} = {value!r}\n" for name, value in built.items()))

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        shutil.copy(self.build_info, ROOT / "artkernels")

    def compile(self, job):
        """The object of one source, named after everything that it depends on: an unchanged one is not made again."""
        source, suffix, command = job
        folders = [CSRC / "include", source.parent, *([CSRC] if source.parent.name not in ("cpu", "cuda") else [])]
        headers = sorted({h for folder in folders for h in folder.rglob("*") if h.suffix in (".h", ".cuh")})
        compiler = subprocess.run([command[0], "--version"], capture_output=True).stdout
        parts = [torch.__version__, compiler, *command, *(path.read_text() for path in [*headers, source])]
        key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
        objects = ROOT / "build" / f"objects-{'cpu' if suffix else self.mode}{'-debug' if DEBUG else ''}"
        target = objects / f"{source.parent.name}-{source.stem}{suffix}-{key}.o"
        if not target.exists():
            objects.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.o")
            run([*command, "-c", source, "-o", partial])
            for stale in objects.glob(f"{source.parent.name}-{source.stem}{suffix}-????????????????.o"):
                stale.unlink()
            partial.rename(target)
        return target


setup(ext_modules=[Extension("artkernels._C", sources=[])], cmdclass={"build_ext": BuildKernels})
