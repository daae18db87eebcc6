"""Fused C++ and CUDA kernels for art-generating networks, as drop-in PyTorch layers.

`artkernels.functional` has the operations, `artkernels.nn` their modules; `artkernels.build_info()` says what was built
and what is running.
"""

from ._version_check import check_torch as _check_torch

__version__ = "0.1.0"

_check_torch()

from . import _C, functional, nn, reference  # noqa: E402, F401
from .checkpoints import load  # noqa: E402
from .doctor import build_info  # noqa: E402
from .export import export_onnx  # noqa: E402
from .fusion import explain, fuse, unfuse  # noqa: E402
from .packed_weights import PackedWeightStatistics, clear_packed_weights, limit_packed_weights, packed_weight_statistics  # noqa: E402
from .pooled_allocator import (  # noqa: E402
    PooledAllocatorStatistics,
    pooled_allocator_statistics,
    release_pooled_memory,
    use_pooled_allocator,
)

__all__ = [
    "PackedWeightStatistics",
    "PooledAllocatorStatistics",
    "build_info",
    "clear_packed_weights",
    "explain",
    "export_onnx",
    "functional",
    "fuse",
    "limit_packed_weights",
    "load",
    "nn",
    "packed_weight_statistics",
    "pooled_allocator_statistics",
    "reference",
    "release_pooled_memory",
    "unfuse",
    "use_pooled_allocator",
]
