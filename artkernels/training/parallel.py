"""Devices and processes: what several of them must do together."""

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from torch import nn

from artkernels.doctor import build_info
from artkernels.errors import UserError
from artkernels.nn import BatchNormAct2d
from artkernels.training.options import TrainingOptions

__all__ = ["average_gradients", "broadcast_networks", "make_accelerator", "synchronise_batch_norms"]


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """The device, the mixed precision, and the group of processes that torchrun or `accelerate launch` started.

    Raises:
        UserError: what was asked for cannot be had.
    """
    kernels = options.kernels == "stock" or build_info()["cuda"] is not None
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for and PyTorch finds no CUDA GPU: use --device cpu")
    if options.device == "cuda" and not kernels:
        raise UserError("device cuda was asked for and artkernels was built without CUDA: use --device cpu")
    cpu = options.device == "cpu" or not (torch.cuda.is_available() and kernels)
    if cpu and options.amp == "fp16":
        raise UserError("amp fp16 needs a GPU: use --amp bf16, or no")
    try:
        return Accelerator(cpu=cpu, mixed_precision=options.amp)
    except ValueError as error:  # accelerate keeps one state for a process
        raise UserError("another run of this process had another device or --amp: begin a new process") from error


def broadcast_networks(networks: Iterable[nn.Module]) -> None:
    """Give every process the weights and buffers of the first."""
    for network in networks:
        for tensor in network.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def synchronise_batch_norms(networks: Iterable[nn.Module], device: torch.device, kernels: str) -> None:
    """Make the batch of every batch norm that of all processes together, in place.

    Raises:
        UserError: stock PyTorch cannot, on a CPU.
    """
    for network in networks:
        for parent in list(network.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    setattr(parent, name, _synchronised(child, device, kernels))


def _synchronised(layer: nn.BatchNorm2d, device: torch.device, kernels: str) -> nn.Module:
    if kernels == "stock":
        if device.type == "cpu":
            raise UserError("stock PyTorch synchronises batch norms on GPUs only: use --kernels fused or one process")
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
        return converted
    synchronised = BatchNormAct2d(
        layer.num_features, layer.eps, layer.momentum, process_group=torch.distributed.group.WORLD
    )
    # The same tensors: optimizers know them.
    synchronised._parameters, synchronised._buffers = layer._parameters, layer._buffers
    return synchronised


def average_gradients(accelerator: Accelerator, networks: Iterable[nn.Module]) -> None:
    """Replace the gradients of ``networks`` by their mean over all processes: one message for all of them."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for network in networks for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
