"""Builds artkernels._C: C++ kernels once per CPU instruction set and, with nvcc at hand, the CUDA kernels.

Environment: ARTKERNELS_CUDA=auto|0|1 (emulate: CUDA kernels against tests/cuda_emulator), TORCH_CUDA_ARCH_LIST, CUDA_HOME,
MAX_JOBS, ARTKERNELS_DEBUG=1 (-O0 -g), CXX. The kernels include no torch header, so that they compile in seconds with their
own flags; torch's BuildExtension gives one set of flags to all files, which is why the compilers are called from here.
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
    sys.exit("artkernels: no torch in the build environment: install torch, then run "
             "`pip install --no-build-isolation .`, so that the build sees it")

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
DEFAULT_ARCHITECTURES = "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
DEBUG = os.environ.get("ARTKERNELS_DEBUG", "0") == "1"
CXX = os.environ.get("CXX", "g++")
# No -ffast-math: linked by gcc, it turns on flush-to-zero for the whole process.
CXX_FLAGS = ["-std=c++20", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wall", f"-I{CSRC}",
             *(["-O0", "-g"] if DEBUG else ["-O3"]), "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
X86_INSTRUCTION_SETS = {
    "baseline": ["-march=x86-64"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
}


def say(text):
    print(f"artkernels: {text}", file=sys.stderr, flush=True)


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit("artkernels: this command failed:\n" + " ".join(map(str, command)) + "\n" + done.stdout + done.stderr)
    if done.stderr.strip():
        say(done.stderr.strip())


def cuda_libraries():
    """Headers and libraries of torch's own pip packages: a toolkit that is only a compiler lacks some of them."""
    return Path(torch.__file__).parents[1] / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}"


def find_nvcc():
    """nvcc and its toolkit: CUDA_HOME's, the one on PATH (which may be a wrapper script, so it is asked), or pip's."""
    if home := os.environ.get("CUDA_HOME"):
        return Path(home) / "bin" / "nvcc", Path(home)
    if nvcc := shutil.which("nvcc"):
        plan = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        if top := re.search(r"TOP=(\S+)", plan.stdout + plan.stderr):
            return Path(nvcc), Path(top.group(1)).resolve()
    packaged = cuda_libraries()
    return (packaged / "bin" / "nvcc", packaged) if (packaged / "bin" / "nvcc").exists() else (None, None)


def check_versions(nvcc):
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    toolkit = re.search(r"release (\d+\.\d+)", text).group(1)
    if toolkit.split(".")[0] != torch.version.cuda.split(".")[0]:
        sys.exit(f"artkernels: nvcc is CUDA {toolkit} and torch was built with CUDA {torch.version.cuda}: their major versions "
                 "must agree; install the matching toolkit, or set ARTKERNELS_CUDA=0 to build the CPU kernels alone")
    if toolkit != torch.version.cuda:
        say(f"warning: nvcc is CUDA {toolkit}, torch was built with CUDA {torch.version.cuda}; minor versions may differ")
    return toolkit


def choose_cuda():
    """(mode, nvcc, toolkit folder, toolkit version) with mode None, "native" or "emulate"; says why."""
    wanted = os.environ.get("ARTKERNELS_CUDA", "auto")
    if wanted not in ("auto", "0", "1", "emulate"):
        sys.exit(f"artkernels: ARTKERNELS_CUDA must be auto, 0, 1 or emulate, got {wanted}")
    missing = "ARTKERNELS_CUDA=0" if wanted == "0" else None
    if not missing and torch.version.cuda is None:
        missing = "this torch was built without CUDA"
    nvcc, home = (None, None) if missing else find_nvcc()
    if not missing and nvcc is None:
        missing = "no nvcc in CUDA_HOME, on PATH or among the pip packages"
    if missing:
        if wanted in ("1", "emulate"):
            sys.exit(f"artkernels: ARTKERNELS_CUDA={wanted}, but {missing}")
        say(f"CPU kernels only, because {missing}")
        return None, None, None, None
    version = check_versions(nvcc)
    mode = "emulate" if wanted == "emulate" else "native"
    say(f"CPU and CUDA kernels ({mode}), nvcc {version} of {home}, torch {torch.__version__}")
    return mode, nvcc, home, version


def gencode_flags(architectures):
    flags = []
    for name in re.split(r"[ ;,]+", architectures.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if not match:
            sys.exit(f"artkernels: TORCH_CUDA_ARCH_LIST must hold numbers such as 8.0 or 9.0+PTX, got {name}")
        number = match.group(1) + match.group(2)
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if match.group(3):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class BuildKernels(build_ext):
    """Compiles what has changed since the last build, MAX_JOBS at a time, and links artkernels._C."""

    def build_extension(self, ext):
        self.objects = ROOT / "build" / f"objects-{os.environ.get('ARTKERNELS_CUDA', 'auto')}{'-debug' if DEBUG else ''}"
        mode, nvcc, home, version = choose_cuda()
        architectures = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        commands = [*self.host_commands(mode, home), *self.kernel_commands()]
        link = ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
        if mode == "native":
            commands += self.cuda_commands(nvcc, ["-lineinfo", *gencode_flags(architectures)])
            link += ["-lc10_cuda", f"-L{home / 'lib64'}", f"-L{cuda_libraries() / 'lib'}", f"-l:libcudart.so.{version.split('.')[0]}"]
        elif mode == "emulate":
            sys.path.insert(0, str(ROOT / "tests" / "cuda_emulator"))
            import cudaemu
            commands += self.cuda_commands(nvcc, ["-cudart=none", "-lineinfo", "-gencode=arch=compute_80,code=compute_80"])
            link += cudaemu.link_flags() + ["-Wl,-z,undefs"]
        say(f"instruction sets: {', '.join(self.instruction_sets())}" +
            (f"; CUDA architectures: {architectures if mode == 'native' else 'compute_80'}" if mode else ""))
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
            objects = list(pool.map(self.compile, commands))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        run([CXX, "-shared", "-fopenmp", "-o", output, *objects, f"-L{Path(torch.__file__).parent / 'lib'}", *link])
        self.build_info = output.with_name("_build_info.py")
        self.build_info.write_text(
            f'"""Written by setup.py."""\n\nTORCH = "{torch.__version__}"\nCUDA = {version!r}\n'
            f"CUDA_ARCHITECTURES = {architectures.split() if mode == 'native' else []!r}\n")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        shutil.copy(self.build_info, ROOT / "artkernels")

    @staticmethod
    def instruction_sets():
        return X86_INSTRUCTION_SETS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}

    def host_commands(self, mode, home):
        """The files that include torch's headers, and the choice of the instruction set."""
        include = Path(torch.__file__).parent / "include"
        flags = [*CXX_FLAGS, "-DTORCH_EXTENSION_NAME=_C", "-isystem", include, "-isystem", include / "torch/csrc/api/include",
                 "-isystem", sysconfig.get_paths()["include"]]
        if mode:
            flags += ["-DARTKERNELS_CUDA", *(["-DARTKERNELS_CUDA_EMULATED"] if mode == "emulate" else []),
                      "-isystem", home / "include", "-isystem", cuda_libraries() / "include"]
        if len(self.instruction_sets()) > 1:
            flags.append("-DARTKERNELS_X86")
        sources = [CSRC / "bindings.cpp", *sorted((CSRC / "ops").glob("*.cpp")), CSRC / "cpu/isa.cpp", CSRC / "cpu/scratch.cpp"]
        return [(source, "", [CXX, *flags]) for source in sources]

    def kernel_commands(self):
        sources = sorted(p for p in (CSRC / "cpu").glob("*.cpp") if p.stem not in ("isa", "scratch"))
        x86 = ["-DARTKERNELS_X86"] if len(self.instruction_sets()) > 1 else []
        return [(source, f"-{isa}", [CXX, *CXX_FLAGS, *x86, f"-DARTKERNELS_ISA={isa}", *flags])
                for source in sources for isa, flags in self.instruction_sets().items()]

    def cuda_commands(self, nvcc, flags):
        common = [nvcc, "-std=c++17", *(["-O0", "-G"] if DEBUG else ["-O3"]), "-Xcompiler", "-fPIC,-fvisibility=hidden",
                  f"-I{CSRC}", *flags]
        return [(source, "", common) for source in sorted((CSRC / "cuda").glob("*.cu"))]

    def compile(self, job):
        """The object of one source, named after everything that it depends on: an unchanged one is not made again."""
        source, suffix, command = job
        folders = [CSRC / "include", source.parent, *([CSRC] if source.parent.name not in ("cpu", "cuda") else [])]
        headers = sorted({h for folder in folders for h in folder.rglob("*") if h.suffix in (".h", ".cuh")})
        parts = [torch.__version__, *command, *(path.read_text() for path in [*headers, source])]
        key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
        target = self.objects / f"{source.parent.name}-{source.stem}{suffix}-{key}.o"
        if not target.exists():
            self.objects.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}.o")
            run([*command, "-c", source, "-o", partial])
            for stale in self.objects.glob(f"{source.parent.name}-{source.stem}{suffix}-????????????????.o"):
                stale.unlink()
            partial.rename(target)
        return target


setup(ext_modules=[Extension("artkernels._C", sources=[])], cmdclass={"build_ext": BuildKernels})
