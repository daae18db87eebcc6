"""torch.library.opcheck for tests over many dtypes and layouts."""

from typing import Any

import torch
from torch import Tensor

from artkernels import build_info

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last))


def opcheck(op: Any, arguments: tuple) -> None:
    """All checks of opcheck; traces, which take a second or more each, for two pairs of dtype and layout.

    A trace sees dtypes and strides through the fake kernels alone, and those are checked for every pair. Nor does a
    trace depend on the kernels that run: the emulated ones are not traced again.
    """
    x = next(t for t in arguments if isinstance(t, Tensor) and t.dim() == 4)  # the features, or their gradient
    traced = any(x.dtype == dtype and x.is_contiguous(memory_format=layout) for dtype, layout in TRACED)
    traces = ("test_aot_dispatch_dynamic",) if traced and build_info()["cuda"] != "emulated" else ()
    torch.library.opcheck(op, arguments, test_utils=(*CHECKS, *traces))
