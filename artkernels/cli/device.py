"""The device that a command runs on."""

import torch

import artkernels
from artkernels.errors import UserError

__all__ = ["torch_device"]


def torch_device(name: str | None) -> torch.device:
    """The device called ``name``; None is a CUDA GPU if there is one that this build can use, else the CPU.

    Raises:
        UserError: there is no such device, or it cannot be used.
    """
    usable = torch.cuda.is_available() and artkernels.build_info()["cuda"] is not None
    if name is None:
        return torch.device("cuda" if usable else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {name!r}: it must be cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name} was asked for and PyTorch finds no CUDA GPU: use --device cpu")
    if device.type == "cuda" and not usable:
        raise UserError(f"device {name} was asked for and artkernels was built without CUDA: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name} was asked for and there are only {torch.cuda.device_count()} CUDA GPUs")
    return device
