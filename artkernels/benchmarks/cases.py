"""All cases by their groups."""

from collections.abc import Callable, Sequence
from typing import cast

from artkernels.benchmarks import (
    bench_conv_transpose,
    bench_gram,
    bench_models,
    bench_norm_act,
    bench_reparameterize_kl,
    bench_training,
    bench_video,
    scaling,
)
from artkernels.benchmarks.case import Case

__all__ = ["OPS", "Shape", "cases_of", "find"]

Shape = tuple[int, ...]

_BY_SHAPE = {
    "norm_act": bench_norm_act,
    "conv_transpose": bench_conv_transpose,
    "gram": bench_gram,
    "reparameterize_kl": bench_reparameterize_kl,
}
_GROUPS: dict[str, Callable[[], Sequence[Case]]] = {
    **{op: module.cases for op, module in _BY_SHAPE.items()},
    "models": bench_models.cases,
    "training": bench_training.cases,
    "video": bench_video.cases,
    "scaling": scaling.cases,
}
OPS = tuple(_GROUPS)


def cases_of(op: str, shapes: Sequence[Shape] = ()) -> list[Case]:
    """Those of a group; where shapes are given, the layers of an op at those, and no models."""
    if not shapes:
        return list(_GROUPS[op]())
    return [cast(Case, case) for shape in shapes if op in _BY_SHAPE for case in _BY_SHAPE[op].at(shape)]


def find(op: str, name: str, shape: Shape, shapes: Sequence[Shape] = ()) -> Case:
    """The case that was called so in another process."""
    return next(case for case in cases_of(op, shapes) if (case.name, case.shape) == (name, shape))
