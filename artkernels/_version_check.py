"""What must hold before artkernels._C is loaded: a mismatch would be a crash or a missing symbol, not a sentence."""

import torch


def check_torch() -> None:
    """Raises ImportError when the extension is missing or was built against another torch than the one running."""
    try:
        from . import _build_info
    except ImportError:
        raise ImportError(
            "artkernels has no compiled kernels here: build them with `pip install --no-build-isolation .` "
            "in its source folder"
        ) from None
    built, running = _build_info.TORCH, torch.__version__
    lost_cuda = _build_info.CUDA is not None and torch.version.cuda is None
    if built.split(".")[:2] != running.split(".")[:2] or lost_cuda:
        raise ImportError(
            f"artkernels was built against torch {built}, but torch {running} is running: install that torch, or build "
            "artkernels again with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        )
