"""Properties of F.feature_statistics; run on the CPU kernels and, emulated, on the CUDA kernels."""

import re
import sys
from pathlib import Path

import pytest
import torch

from artkernels import functional as F
from artkernels import reference

sys.path.insert(0, str(Path(__file__).parent))

from opcheck import opcheck

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])


def features(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]):
    return (torch.randn(shape) + 0.5).to(dtype).contiguous(memory_format=layout)


@each_layout
@each_dtype
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"groups": 1}, {"across_batch": True}], ids=str)
def test_mean_and_variance_of_every_grouping(
    options: dict, unbiased: bool, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = features((3, 12, 9, 5), dtype, layout)
    for actual, exact in zip(
        F.feature_statistics(x, unbiased=unbiased, **options),
        reference.feature_statistics(x.double(), unbiased=unbiased, **options),
        strict=True,
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), exact, rtol=1e-6, atol=1e-6)


def test_statistics_of_one_pixel() -> None:
    x = features((2, 3, 1, 1))
    mean, var = F.feature_statistics(x)
    assert torch.equal(mean, x[:, :, 0, 0])
    assert torch.equal(var, torch.zeros(2, 3))
    assert F.feature_statistics(x, unbiased=True)[1].isnan().all()  # 0 / 0, as torch.var


@each_layout
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_a_large_mean_cancels_nothing(offset: float, layout: torch.memory_format) -> None:
    x = (offset + 1e-3**0.5 * torch.randn(3, 5, 70, 60)).contiguous(memory_format=layout)
    for options in ({}, {"groups": 1}, {"across_batch": True}):
        mean, var = F.feature_statistics(x, **options)
        exact_mean, exact_var = reference.feature_statistics(x.double(), **options)
        torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(var.double(), exact_var, rtol=5e-3, atol=0.0)


def test_nothing_to_average_gives_nan() -> None:
    for shape in ((2, 3, 0, 4), (0, 3, 2, 2)):
        mean, var = F.feature_statistics(torch.zeros(shape))
        assert mean.shape == var.shape == shape[:2]
        assert mean.isnan().all()
        assert var.isnan().all()


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"across_batch": True}, {"unbiased": True}], ids=str)
def test_gradients_of_the_statistics(options: dict) -> None:
    x = torch.randn((2, 4, 3, 2), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.feature_statistics(x, **options), x)
    assert torch.autograd.gradgradcheck(lambda x: F.feature_statistics(x, **options), x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = features((2, 4, 3, 5), dtype, layout).requires_grad_()
    for options in ((4, False), (2, False), (4, True)):
        opcheck(torch.ops.artkernels.feature_statistics, (x, *options, 0.0))


def test_bad_input_gets_one_sentence() -> None:
    x = torch.zeros(2, 4, 3, 3)
    for call, message in [
        (lambda: F.feature_statistics(x, groups=3), "the number of groups must divide the 4 channels, got 3"),
        (
            lambda: F.feature_statistics(x, groups=2, across_batch=True),
            "statistics of the whole batch are one a channel",
        ),
        (lambda: F.feature_statistics(x.int()), "input must be float32, float64, float16 or bfloat16"),
        (lambda: F.feature_statistics(x[0, 0, 0]), "input must be [N, C, ...], got 1 dimensions"),
    ]:
        with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
            call()
        assert len(str(caught.value).splitlines()) == 1
