"""Inference engines beside PyTorch: a model's function in ONNX Runtime and OpenVINO, where they are installed."""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def onnxruntime(model: nn.Module, x: Tensor) -> Callable[[], object]:
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


def openvino(model: nn.Module, x: Tensor) -> Callable[[], object]:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.compile_model(ov.convert_model(model, example_input=x), "CPU", settings)
    array = x.numpy()
    return lambda: compiled(array)[0]


ENGINES = {"ONNX Runtime": onnxruntime, "OpenVINO": openvino}
_PACKAGES = {"ONNX Runtime": ("onnxruntime", "onnx", "onnxscript"), "OpenVINO": ("openvino",)}


def missing(engine: str) -> list[str]:
    """The packages that it needs and that are not installed."""
    return [package for package in _PACKAGES[engine] if not importlib.util.find_spec(package)]


def missing_note() -> str:
    """For the head of a table: the engines that are not in it, and why."""
    return "".join(
        f"; no {engine}: {', '.join(missing(engine))} not installed" for engine in ENGINES if missing(engine)
    )


def engines(model: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    """What computes `model(x)` of a contiguous float32 `x`, in each engine that is installed."""
    return {engine: make(model, x) for engine, make in ENGINES.items() if not missing(engine)}
