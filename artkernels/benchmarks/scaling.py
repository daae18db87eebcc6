"""Series: the same thing at growing batches, resolutions and numbers of threads."""

import dataclasses
import functools
import os

from artkernels.benchmarks import bench_conv_transpose, bench_models, bench_norm_act
from artkernels.benchmarks.module_case import ModuleCase

__all__ = ["cases"]


def _series(axis: str, case: ModuleCase, shapes: list[tuple[int, ...]]) -> list[ModuleCase]:
    make = functools.partial(dataclasses.replace, case, op="scaling", axis=axis, quick=False)
    value = {"batch": 0, "resolution": -1}[axis]
    return [
        make(name=f"{case.op}-{case.name}-{axis}-{shape[value]}", shape=shape, passes=case.passes[:1])
        for shape in shapes
    ]


def _over_threads(case: ModuleCase) -> list[ModuleCase]:
    cores = len(os.sched_getaffinity(0))
    counts = sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores})
    make = functools.partial(dataclasses.replace, case, op="scaling", axis="threads", quick=False)
    return [make(name=f"{case.op}-{case.name}-threads-{n}", threads=n, passes=case.passes[:1]) for n in counts]


def cases() -> list[ModuleCase]:
    """One layer of each kind and two models."""
    norm = next(case for case in bench_norm_act.cases() if case.name == "fast-style-256")
    layer = next(case for case in bench_conv_transpose.cases() if case.name == "dcgan-16")
    generator = next(case for case in bench_models.cases() if case.name == "dcgan-64")
    style = next(case for case in bench_models.cases() if case.name == "fast-style-256")
    return [
        *_series("batch", layer, [(N, 128, 16, 16) for N in (1, 4, 16, 64)]),
        *_series("batch", generator, [(N, 100, 1, 1) for N in (1, 4, 16, 64)]),
        *_series("resolution", norm, [(1, 128, side, side) for side in (32, 64, 128, 256)]),
        *_series("resolution", style, [(1, 3, side, side) for side in (128, 256, 384, 512)]),
        *_over_threads(norm),
        *_over_threads(layer),
        *_over_threads(generator),
    ]
