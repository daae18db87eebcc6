"""The random state of every library that a training run may draw from, as tensors and plain values."""

import random
from typing import Any

import numpy as np
import torch

__all__ = ["get_random_state", "seed_everything", "set_random_state"]


def seed_everything(seed: int) -> None:
    """Begin Python's, NumPy's and PyTorch's random numbers, on all devices, at ``seed``."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_random_state() -> dict[str, Any]:
    """Where the random numbers of Python, NumPy and PyTorch stand: what ``torch.load`` reads with weights_only."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue where :func:`get_random_state` was called; GPUs only if there are as many as then."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
