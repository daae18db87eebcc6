"""Who else computes a model: stock PyTorch in its several ways, ONNX Runtime and OpenVINO where they are installed."""

import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn

from artkernels.benchmarks.case import Candidate
from artkernels.benchmarks.results import EAGER

__all__ = [
    "CHANNELS_LAST",
    "COMPILE",
    "CUDNN_BENCHMARK",
    "ENGINES",
    "FREEZING",
    "function",
    "missing",
    "with_cudnn_benchmark",
]

CHANNELS_LAST = f"{EAGER} channels_last"
CUDNN_BENCHMARK = f"{EAGER}, cudnn.benchmark"
COMPILE = "torch.compile"
FREEZING = "torch.compile, freezing"


def function(name: str, module: nn.Module) -> Callable[..., Any]:
    """The module as stock PyTorch runs it under one of the names above."""
    if name not in (COMPILE, FREEZING):
        return module
    torch._functorch.config.donated_buffer = False  # else a graph cannot be kept for a second backward
    options: dict[str, Any] = {"fallback_random": True}  # eager's random numbers, so that results can be compared
    return torch.compile(module, options=options | ({"freezing": True} if name == FREEZING else {}))


def with_cudnn_benchmark(candidate: Candidate) -> Candidate:
    """The candidate with cuDNN timing its algorithms, and nothing else changed."""

    def within(call: Callable[[], Any]) -> Callable[[], Any]:
        def wrapped() -> Any:
            with torch.backends.cudnn.flags(enabled=True, benchmark=True):
                return call()

        return wrapped

    return replace(candidate, call=within(candidate.call), results=within(candidate.results))


def _onnxruntime(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (x,), path, verbose=False)
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # its turn is one of several
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])  # weights are beside it
    name, array = session.get_inputs()[0].name, x.numpy()
    return lambda: session.run(None, {name: array})[0]


def _openvino(model: nn.Module, x: Tensor) -> Callable[[], Any]:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(ov.convert_model(model, example_input=x), "CPU", settings)
    array = x.numpy()
    return lambda: compiled(array)[0]


# Of an evaluated model and a contiguous float32 input on the CPU: a call that returns its output as an array.
ENGINES: dict[str, Callable[[nn.Module, Tensor], Callable[[], Any]]] = {
    "ONNX Runtime": _onnxruntime,
    "OpenVINO": _openvino,
}
_PACKAGES = {"ONNX Runtime": ("onnxruntime", "onnx", "onnxscript"), "OpenVINO": ("openvino",)}


def missing() -> dict[str, str]:
    """Engines that cannot run here -> why."""
    absent = {
        engine: [package for package in packages if not importlib.util.find_spec(package)]
        for engine, packages in _PACKAGES.items()
    }
    return {engine: f"{', '.join(packages)} not installed" for engine, packages in absent.items() if packages}
