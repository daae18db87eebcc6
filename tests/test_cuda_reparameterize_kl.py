"""The kernels of csrc/cuda/reparameterize_kl.cu, run by the emulator: every check on, every array exactly bounded."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import cuda_launchers as cuda
from cuda_launchers import cudaemu

from artkernels import reference

try:
    cudaemu.build.cuda_home()
except cudaemu.BuildError as error:
    pytest.skip(f"no nvcc: {error}", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (N, D): around a vector, a warp's vectors, its tile (1024) and a block's (4096); rows that are aligned and not; a
# block of four warps that is not full; several tiles.
SHAPES = [
    (1, 1), (3, 4), (4, 7), (5, 8), (2, 127), (6, 128), (1, 129), (9, 256), (2, 1023), (5, 1024), (2, 1025), (1, 1032),
    (2, 4095), (1, 4096), (2, 4097), (2, 4104), (1, 12296),
]  # fmt: skip

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@pytest.fixture(autouse=True)
def emulator() -> None:
    """These tests open emulator sessions of their own, whatever the build of the extension."""


def samples(shape: tuple[int, int], dtype: torch.dtype, offset: int = 0) -> list[Tensor]:
    """mean, logvar, noise, grad_codes"""
    return [cuda.place(torch.randn(shape).to(dtype), offset) for _ in range(4)]


def check(actual: Tensor, exact: Tensor) -> None:
    """To two roundings of its dtype, of the largest value."""
    assert torch.isfinite(actual).all()
    assert (actual.double() - exact).abs().max() <= 2 * torch.finfo(actual.dtype).eps * exact.abs().max()


def check_both_ways(shape: tuple[int, int], dtype: torch.dtype, at_inputs: int = 0, at_outputs: int = 0, **options):
    *given, grad_codes = samples(shape, dtype, at_inputs)
    grad_kl = cuda.place(torch.randn(shape[0]))
    codes, kl, _ = cuda.reparameterize_kl(*given, codes_offset=at_outputs, **options)
    exact = [t.double() for t in given]
    for actual, expected in zip((codes, kl), reference.reparameterize_kl(*exact), strict=True):
        check(actual, expected)
    *gradients, _ = cuda.reparameterize_kl_backward(grad_codes, grad_kl, *given, offset=at_outputs, **options)
    expected_gradients = reference.reparameterize_kl_backward(grad_codes.double(), grad_kl.double(), *exact)
    for actual, expected in zip(gradients, expected_gradients, strict=True):
        check(actual, expected)


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_forward_and_backward_give_what_float64_gives(shape, dtype):
    check_both_ways(shape, dtype)


@each_dtype
@pytest.mark.parametrize(("at_inputs", "at_outputs"), [(1, 0), (0, 1), (3, 2), (4, 4)])
def test_arrays_that_start_anywhere(at_inputs, at_outputs, dtype):
    check_both_ways((3, 136), dtype, at_inputs, at_outputs)
    check_both_ways((1, 4104), dtype, at_inputs, at_outputs)


@each_dtype
def test_turing(dtype):
    check_both_ways((3, 130), dtype, arch="compute_75", profile="t4")


@each_dtype
def test_any_order_of_warps_and_blocks_gives_the_same_bits(dtype):
    for shape in ((6, 200), (2, 9000)):
        *given, grad_codes = samples(shape, dtype)
        grad_kl = cuda.place(torch.randn(shape[0]))
        results = [
            (
                *cuda.reparameterize_kl(*given, seed=seed)[:2],
                *cuda.reparameterize_kl_backward(grad_codes, grad_kl, *given, seed=seed)[:3],
            )
            for seed in (0, 1, 99)
        ]
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


@each_dtype
def test_the_bounds_are_exact(dtype):
    """The checks that the other tests rely on do see a single element too many."""
    for shape in ((2, 64), (2, 63)):  # vectors and scalars
        mean, logvar, noise, _ = samples(shape, dtype)
        lib = cuda.launchers(family="reparameterize_kl")
        with cuda.Emulation() as e:
            p = cuda.ReparameterizeKlParams(N=shape[0], D=shape[1], dtype=cuda.DTYPES[dtype])
            short = cuda.place(noise.flatten()[:-1])
            for name, tensor in (("mean", mean), ("logvar", logvar), ("noise", short)):
                setattr(p, name, cuda.Samples(e.read(tensor, name), shape[1]))
            codes, kl = cuda.empty(*shape, dtype=dtype), cuda.empty(shape[0])
            p.codes, p.kl = e.write(codes, "codes"), e.write(kl, "kl")
            with pytest.raises(cuda.LauncherError, match="reparameterize_kl_kernel"):
                cuda.call(lib, "reparameterize_kl", p)
            with pytest.raises(cudaemu.EmulationError) as caught:
                e.session.check()
            assert caught.value.kind == "out-of-bounds"


@pytest.mark.parametrize(
    ("op", "params"),
    [
        ("reparameterize_kl", cuda.ReparameterizeKlParams),
        ("reparameterize_kl_backward", cuda.ReparameterizeKlBackwardParams),
    ],
)
def test_more_samples_than_a_grid_has_blocks_for_are_refused(op, params):
    p = params(N=2**33 + 1, D=1, dtype=0)
    with cuda.Emulation(), pytest.raises(cuda.LauncherError, match="blocks exceed a grid's"):
        cuda.call(cuda.launchers(family="reparameterize_kl"), op, p)


def test_short_samples_take_one_launch_and_the_least_traffic():
    *given, grad_codes = samples((8, 1024), torch.float32)
    grad_kl = cuda.place(torch.randn(8))
    array = given[0].nbytes
    (forward,) = cuda.reparameterize_kl(*given, checks="none,traffic")[2]
    (backward,) = cuda.reparameterize_kl_backward(grad_codes, grad_kl, *given, checks="none,traffic")[3]
    for run, read, written in ((forward, 3, 1), (backward, 4, 3)):
        assert 0 <= 32 * run.unique_read_sectors - read * array <= 32
        assert 0 <= 32 * run.unique_written_sectors - written * array <= 32
        assert run.global_load["sectors"] <= 1.04 * run.unique_read_sectors  # nothing twice but grad_kl
