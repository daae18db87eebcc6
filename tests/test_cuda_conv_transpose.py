"""The kernels of the transposed convolution, run by the emulator: every check on, every array exactly bounded."""

import ctypes
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import cuda_launchers as cuda
from cuda_launchers import cudaemu

try:
    cudaemu.build.cuda_home()
except cudaemu.BuildError as error:
    pytest.skip(f"no nvcc: {error}", allow_module_level=True)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # rounding of the result
ROUNDING, TF32_PRODUCT = 2.0**-24, 2.0**-22  # of a float32 sum; of an operand in 3xTF32
# (kernel, stride, padding, output_padding)
WINDOWS = [(4, 2, 1, 0), (3, 2, 1, 1), (2, 2, 0, 0), (3, 2, 0, 0), (5, 2, 2, 1), (6, 2, 2, 0), (3, 1, 1, 0)]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
each_window = pytest.mark.parametrize("window", WINDOWS, ids="k{0[0]}s{0[1]}p{0[2]}o{0[3]}".format)


@pytest.fixture(autouse=True)
def emulator() -> None:
    """These tests open emulator sessions of their own, whatever the build of the extension."""


def pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


class Case:
    """One call on random values, as the dtype rounded them, and in memory; its reference in float64.

    shape is (N, C, H, W, K); window (kernel, stride, padding, output_padding), each a number or one for each axis.
    """

    def __init__(
        self, shape, window, dtype, channels_last, *, dilation=1, scale=False, bias=True, activation="none",
        statistics=None, tf32=False, offset=0, mean=0.0,
    ):  # fmt: skip
        N, C, H, W, K = shape
        self.shape, self.dtype, self.channels_last, self.offset = shape, dtype, channels_last, offset
        self.kernel, self.stride, self.padding, self.output_padding = map(pair, window)
        self.dilation = pair(dilation)
        self.activation, self.slope, self.statistics, self.tf32 = activation, 0.2, statistics, tf32
        self.x = (torch.randn(N, C, H, W) + mean).to(dtype)
        taps = self.kernel[0] * self.kernel[1] / (self.stride[0] * self.stride[1])
        self.weight = (torch.randn(C, K, *self.kernel) * (C * max(taps, 1)) ** -0.5).to(dtype)
        self.scale = torch.randn(K) if scale else None
        self.bias = torch.randn(K) if bias else None

    # ---- reference ----

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        options = dict(output_padding=self.output_padding, dilation=self.dilation)
        return F.conv_transpose2d(x, weight, None, self.stride, self.padding, **options)

    def affine(self, z: Tensor) -> Tensor:
        z = z if self.scale is None else z * self.scale.to(z.dtype)[:, None, None]
        return z if self.bias is None else z + self.bias.to(z.dtype)[:, None, None]

    def activate(self, z: Tensor) -> Tensor:
        if self.activation == "leaky_relu":
            return F.leaky_relu(z, float(torch.tensor(self.slope)))
        return z if self.activation == "none" else getattr(F, self.activation)(z)

    def reference(self) -> tuple[Tensor, Tensor, Tensor]:
        """(output, z, the sum of the absolute values that z is a sum of)"""
        z = self.affine(self.convolve(self.x.double(), self.weight.double()))
        size = self.convolve(self.x.double().abs(), self.weight.double().abs())
        if self.scale is not None:
            size = size * self.scale.double().abs()[:, None, None]
        if self.bias is not None:
            size = size + self.bias.double().abs()[:, None, None]
        return self.activate(z), z, size

    def moments(self, z: Tensor) -> tuple[Tensor, Tensor]:
        dims = (0, 2, 3) if self.statistics == "batch" else (2, 3)
        return z.mean(dims), z.var(dims, unbiased=False)

    # ---- kernels ----

    def place(self, values: Tensor) -> Tensor:
        return cuda.place(values.permute(0, 2, 3, 1) if self.channels_last else values, self.offset)

    def settings(self) -> cuda.ConvTransposeParams:
        N, C, H, W, K = self.shape
        windows = [cuda.Window(*of) for of in zip(self.kernel, self.stride, self.padding, self.dilation, strict=True)]
        OH, OW = self.convolve(self.x[:1, :1].float(), self.weight[:1, :1].float()).shape[2:]
        return cuda.ConvTransposeParams(
            dtype=cuda.DTYPES[self.dtype], N=N, C=C, H=H, W=W, K=K, OH=OH, OW=OW, groups=1, rows=windows[0],
            columns=windows[1], input_channels_last=self.channels_last, output_channels_last=self.channels_last,
            activation=cuda.ACTIVATIONS.index(self.activation), negative_slope=self.slope, allow_tf32=self.tf32,
            statistics=cuda.STATISTICS.index(self.statistics),
        )  # fmt: skip

    def run(self, *, profile="h100", seed=0, arch="compute_80", checks="all"):
        p = self.settings()
        shape = (p.N, p.OH, p.OW, p.K) if self.channels_last else (p.N, p.K, p.OH, p.OW)
        output = cuda.empty(*shape, dtype=self.dtype, offset=self.offset)
        mean, var = (
            None if self.statistics is None else cuda.empty(*((p.N, p.K) if self.statistics == "instance" else (p.K,)))
            for _ in range(2)
        )
        tensors = {
            "input": (self.place(self.x), False), "output": (output, True), "mean": (mean, True), "var": (var, True),
            "weight": (cuda.place(self.weight.permute(0, 2, 3, 1), self.offset), False),
            "scale": (None if self.scale is None else cuda.place(self.scale, self.offset), False),
            "bias": (None if self.bias is None else cuda.place(self.bias, self.offset), False),
        }  # fmt: skip
        launches = cuda.run_conv_transpose(p, tensors, profile, seed, arch, checks)
        output = output.permute(0, 3, 1, 2) if self.channels_last else output
        return {"output": output, "mean": mean, "var": var, "launches": launches}

    # ---- comparison ----

    def check(self, out=None, **options) -> None:
        out = self.run(**options) if out is None else out
        exact, z, size = self.reference()
        size = size + exact.abs() + 1e-30
        stock = self.activate(self.affine(self.convolve(self.x, self.weight)))
        ours, theirs = ((y.double() - exact).abs() / size for y in (out["output"], stock))
        few = 2 * EPS[self.dtype] + (TF32_PRODUCT if self.dtype == torch.float32 else 0)
        assert torch.isfinite(out["output"]).all()
        assert ours.max() <= max(2 * theirs.max(), few), (ours.max() / EPS[self.dtype], theirs.max() / EPS[self.dtype])
        if self.dtype != torch.float32:  # summed in float32, rounded once
            allowed = EPS[self.dtype] * exact.abs() + 16 * ROUNDING * size
            if self.dtype == torch.float16:  # below the normal range a rounding is absolute
                allowed = allowed + 2.0**-25
            assert ((out["output"].double() - exact).abs() <= allowed).all()
        if self.statistics:
            self.check_statistics(out, z, size)

    def check_statistics(self, out, z: Tensor, size: Tensor) -> None:
        stock = self.affine(self.convolve(self.x.float(), self.weight.float()))
        spread, (_, exact_var) = size.abs().max(), self.moments(z)
        units = 1.0, exact_var + spread * exact_var.sqrt() + 1e-30
        few = (4 * ROUNDING * spread, 8 * ROUNDING)
        for name, i in (("mean", 0), ("var", 1)):
            exact, reference = self.moments(z)[i], self.moments(stock)[i]
            ours, theirs = (((m.double() - exact).abs() / units[i]).max() for m in (out[name], reference))
            assert ours <= max(2 * theirs, few[i]), (name, ours, theirs, few[i])


def kernels(out) -> list[str]:
    """The kernels of a call, without their template arguments."""
    return [run.name.split("<")[0].split("::")[-1].removeprefix("conv_transpose_") for run in out["launches"]]


def bytes_moved(out) -> int:
    """Of the sectors that the launches touched."""
    return sum(32 * (run.unique_read_sectors + run.unique_written_sectors) for run in out["launches"])


def tile_of(out) -> str:
    """Rows x columns of the GEMM's tile."""
    name = next(run.name for run in out["launches"] if "conv_transpose_kernel" in run.name)
    rows, columns = name.split("GemmTile<")[1].split(",")[:2]
    return f"{rows.strip()}x{columns.strip()}"


# ---- values ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@each_window
def test_windows(window, channels_last, dtype):
    case = Case((2, 40, 5, 6, 24), window, dtype, channels_last, scale=True, activation="leaky_relu")
    case.check()


# 8 SMs: one image of a few tiles is enough work for large ones.
@each_dtype
@each_layout
@pytest.mark.parametrize(("H", "W", "C", "K"), [(7, 15, 31, 63), (8, 16, 32, 64), (9, 17, 33, 65)])
def test_large_tiles_around_their_edges(H, W, C, K, channels_last, dtype):
    case = Case((2, C, H, W, K), (4, 2, 1, 0), dtype, channels_last, activation="relu")
    out = case.run(profile="orin")
    assert tile_of(out) == "128x64", "the shape no longer takes the large tile"
    case.check(out)


@each_dtype
@each_layout
@pytest.mark.parametrize(
    ("N", "H", "W", "C", "K"),
    [(1, 7, 7, 31, 31), (1, 8, 8, 32, 32), (1, 9, 8, 33, 33), (3, 4, 4, 15, 8), (4, 4, 4, 16, 40), (5, 4, 4, 17, 16),
     (63, 1, 1, 8, 8), (1, 1, 70, 8, 8), (1, 70, 1, 8, 8), (2, 3, 40, 8, 9)],
)  # fmt: skip
def test_small_tiles_around_their_edges(N, H, W, C, K, channels_last, dtype):
    Case((N, C, H, W, K), (4, 2, 1, 0), dtype, channels_last, activation="relu").check()


@each_dtype
@each_layout
@pytest.mark.parametrize("N", [1, 65])
def test_the_first_layer_of_a_generator(N, channels_last, dtype):
    """1 x 1 inputs: each output pixel is a phase with one tap, and nothing but the padding of tiles is wasted."""
    case = Case((N, 100, 1, 1, 40), (4, 1, 0, 0), dtype, channels_last, statistics="batch")
    out = case.run()
    case.check(out)
    depth = 128 if dtype != torch.float32 else 3 * 112  # of whole stages; 3xTF32
    products = 16 * 2 * 64 * 64 * depth * -(-N // 64)
    assert sum(out["launches"][0].flops.get(kind, 0) for kind in ("tensor16", "tensor_tf32")) == products
    Case((N, 20, 1, 1, 40), (4, 2, 1, 0), dtype, channels_last).check()


@each_dtype
@each_layout
@pytest.mark.parametrize(
    ("window", "dilation"),
    [
        (((3, 5), (1, 2), (0, 3), (0, 1)), 1),
        (((4, 1), (3, 1), 2, (1, 0)), 1),
        (((4, 3), (4, 3), 0, (3, 2)), 1),
        ((5, 4, 1, 0), 1),
        ((2, 4, 0, 3), 1),  # pixels that no tap reaches
        ((3, 1, 2, 0), 2),
        ((3, 2, 1, 1), (2, 3)),
        ((4, 2, 4, 0), (3, 1)),
        ((7, 1, 3, 0), 1),
    ],
)
def test_rectangles_strides_and_dilations(window, dilation, channels_last, dtype):
    case = Case((2, 24, 6, 5, 20), window, dtype, channels_last, dilation=dilation, statistics="batch")
    case.check()
    image = Case((2, 24, 6, 5, 3), window, dtype, channels_last, dilation=dilation, activation="tanh")
    image.check()


@each_dtype
@pytest.mark.parametrize("activation", cuda.ACTIVATIONS)
def test_activations(activation, dtype):
    for K, channels_last in ((24, True), (3, False)):
        Case((1, 24, 6, 6, K), (4, 2, 1, 0), dtype, channels_last, scale=True, activation=activation).check()


@each_layout
@pytest.mark.parametrize(("scale", "bias"), [(False, False), (False, True), (True, False), (True, True)])
def test_scale_and_bias_are_optional(scale, bias, channels_last):
    for K in (24, 3):
        Case((2, 16, 5, 5, K), (3, 2, 1, 1), torch.bfloat16, channels_last, scale=scale, bias=bias).check()


# ---- the image layer -------------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_image_layers(K, channels_last, dtype):
    for (N, C, H, W), activation in (((2, 40, 16, 16), "tanh"), ((1, 31, 17, 15), "sigmoid"), ((3, 33, 5, 33), "tanh")):
        case = Case((N, C, H, W, K), (4, 2, 1, 0), dtype, channels_last, activation=activation)
        out = case.run()
        assert tile_of(out) == "256x16"
        case.check(out)


@each_dtype
@each_layout
@each_window
def test_image_layers_of_other_windows(window, channels_last, dtype):
    Case((2, 20, 6, 7, 3), window, dtype, channels_last, scale=True, activation="sigmoid").check()


@each_layout
@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_image_layers_without_tensor_cores(K, channels_last):
    """float32 on a device whose tensor cores have no use for it: plain FMA."""
    for N, C, H, W in ((2, 9, 16, 32), (1, 8, 17, 33), (2, 7, 15, 5)):
        case = Case(
            (N, C, H, W, K), (4, 2, 1, 0), torch.float32, channels_last, scale=True, activation="tanh", offset=W % 2
        )
        out = case.run(profile="rtx4090")
        assert kernels(out) == ["direct_kernel"]
        case.check(out)


@each_layout
def test_few_channels_with_statistics(channels_last):
    for statistics in ("batch", "instance"):
        Case((2, 20, 6, 7, 3), (4, 2, 1, 0), torch.bfloat16, channels_last, statistics=statistics).check()


# ---- statistics and split channels -----------------------------------------------------------------------------------


@each_dtype
@each_layout
@pytest.mark.parametrize("statistics", ["batch", "instance"])
@pytest.mark.parametrize(
    ("shape", "window"),
    [((3, 24, 5, 5, 40), (4, 2, 1, 0)), ((2, 16, 9, 20, 24), (3, 2, 1, 1)), ((4, 32, 1, 1, 16), (4, 1, 0, 0))],
)
def test_statistics(shape, window, statistics, channels_last, dtype):
    Case(shape, window, dtype, channels_last, scale=True, statistics=statistics).check()


@each_layout
@pytest.mark.parametrize("statistics", ["batch", "instance"])
def test_statistics_of_large_tiles(statistics, channels_last):
    case = Case((3, 16, 12, 20, 72), (3, 2, 1, 1), torch.bfloat16, channels_last, statistics=statistics)
    out = case.run(profile="orin")
    assert tile_of(out) == "128x64"
    case.check(out)


@each_dtype
def test_variances_far_from_zero_do_not_cancel(dtype):
    case = Case((2, 16, 8, 8, 24), (4, 2, 1, 0), dtype, True, statistics="batch")
    case.bias = case.bias + 1000
    case.check()


@each_dtype
@each_layout
@pytest.mark.parametrize("statistics", [None, "batch", "instance"])
def test_split_channels(statistics, channels_last, dtype):
    """Few pixels: blocks share the input channels, and their sums are added in order."""
    case = Case((2, 160, 4, 4, 24), (4, 2, 1, 0), dtype, channels_last, scale=True, statistics=statistics)
    out = case.run()
    assert kernels(out) == ["kernel", "finish_kernel"] + (["merge_kernel"] if statistics else [])
    case.check(out)


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [24, 3])
def test_tf32_is_taken_only_when_allowed(K):
    case = Case((2, 40, 6, 6, K), (4, 2, 1, 0), torch.float32, True)
    exact, _, size = case.reference()
    errors = {}
    for tf32 in (False, True):
        case.tf32 = tf32
        errors[tf32] = ((case.run()["output"].double() - exact).abs() / size).max()
    # A tf32 product of two operands rounded to 11 bits is off by at most 2 * 2^-11; 3xTF32 by 3 * 2^-22.
    assert errors[False] < 2.0**-20 < 2.0**-16 < errors[True] < 2.0**-10


@each_dtype
def test_nan_and_infinity_are_not_hidden(dtype):
    for bad in (float("nan"), float("inf")):
        for K in (24, 3):
            case = Case((2, 20, 5, 5, K), (4, 2, 1, 0), dtype, True)
            case.x[1, 7, 2, 2] = bad
            y = case.run()["output"]
            assert not torch.isfinite(y[1, :, 3:7, 3:7]).any()
            assert torch.isfinite(y[0]).all()


# ---- memory ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@pytest.mark.parametrize("offset", [1, 4])
def test_arrays_that_start_anywhere(offset, channels_last, dtype):
    for K in (24, 3):
        case = Case((2, 32, 5, 5, K), (4, 2, 1, 0), dtype, channels_last, scale=True, offset=offset)
        case.check()


@each_dtype
@each_layout
def test_the_bounds_are_exact(channels_last, dtype):
    """The checks that the other tests rely on do see a single element too many."""
    case = Case((1, 32, 5, 5, 24), (4, 2, 1, 0), dtype, channels_last)
    place = case.place
    case.place = lambda values: place(values).flatten()[:-1]
    with pytest.raises((cuda.LauncherError, cudaemu.EmulationError), match=r"out-of-bounds|conv_transpose_kernel"):
        case.run()


@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_any_order_of_warps_and_blocks_gives_the_same_bits(channels_last, dtype):
    for shape, statistics in (((2, 160, 4, 4, 24), "batch"), ((2, 24, 9, 9, 40), "instance"), ((2, 24, 9, 9, 3), None)):
        case = Case(shape, (4, 2, 1, 0), dtype, channels_last, statistics=statistics)
        results = [case.run(seed=seed) for seed in (0, 1, 7)]
        for other in results[1:]:
            for name in ("output", "mean", "var") if statistics else ("output",):
                assert torch.equal(results[0][name], other[name])


@each_dtype
@each_layout
@pytest.mark.parametrize("K", [64, 32, 3])
def test_each_operand_is_moved_once(K, channels_last, dtype):
    """And without bank conflicts: each of the three tiles has swizzles of its own."""
    case = Case((2, 64, 16, 16, K), (4, 2, 1, 0), dtype, channels_last, tf32=True)
    out = case.run(profile="orin", checks="none,traffic")
    assert tile_of(out) == {64: "128x64", 32: "64x32", 3: "256x16"}[K]
    compulsory = (case.x.numel() + case.weight.numel() + out["output"].numel()) * dtype.itemsize
    packed = 2 * 9 * 64 * 16 * dtype.itemsize if K == 3 else 0
    assert bytes_moved(out) <= 1.03 * compulsory + packed
    gemm = out["launches"][-1]
    assert gemm.bank_conflict_factor <= 1.12


def test_large_counts_are_in_the_grid_dimension_that_has_room():
    case = Case((2, 160, 4, 4, 24), (4, 2, 1, 0), torch.float32, True, statistics="batch")
    image = Case((2, 16, 4, 4, 3), (4, 2, 1, 0), torch.float32, True)
    launches = case.run()["launches"] + image.run()["launches"]
    assert len(launches) == 5
    assert {tuple(run.grid[1:]) for run in launches} == {(1, 1)}


def test_what_is_not_supported_is_refused():
    lib = cuda.launchers(family="conv_transpose")
    lib.test_conv_transpose_supported.restype = ctypes.c_bool
    good = Case((2, 16, 8, 8, 24), (4, 2, 1, 0), torch.bfloat16, True).settings
    changes = [
        {"groups": 2}, {"output_channels_last": False}, {"N": 2**31}, {"C": 2**31}, {"H": 2**20, "W": 2**20},
        {"rows": cuda.Window(4, 20, 1, 1), "OH": 142}, {"rows": cuda.Window(80, 1, 0, 20), "OH": 1588},
    ]  # fmt: skip
    with cuda.Emulation():
        assert lib.test_conv_transpose_supported(ctypes.byref(good()))
        for change in changes:
            p = good()
            for name, value in change.items():
                setattr(p, name, value)
            assert not lib.test_conv_transpose_supported(ctypes.byref(p)), change
            assert cuda.workspace_size(lib, "conv_transpose", p) == 0
            with pytest.raises(cuda.LauncherError, match="conv_transpose_supported"):
                cuda.call(lib, "conv_transpose", p)


# ---- other devices ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # compiles for other architectures
@each_dtype
@each_layout
@pytest.mark.parametrize(("arch", "profile"), [("compute_75", "t4"), ("compute_86", "rtx4090"), ("compute_90", "h100")])
def test_other_architectures(arch, profile, channels_last, dtype):
    """sm_75: no cp.async, tensor cores for float16 only; sm_86: plain FMA for float."""
    for shape, window in (
        ((2, 40, 5, 6, 24), (4, 2, 1, 0)),
        ((1, 160, 4, 4, 33), (3, 2, 1, 1)),
        ((2, 33, 17, 16, 3), (4, 2, 1, 0)),
        ((2, 33, 9, 8, 3), (3, 2, 1, 1)),
        ((3, 20, 1, 1, 40), (4, 1, 0, 0)),
    ):
        statistics = "batch" if shape[-1] > 4 else None
        Case(shape, window, dtype, channels_last, statistics=statistics).check(arch=arch, profile=profile)
    Case((8, 24, 16, 16, 72), (4, 2, 1, 0), dtype, channels_last).check(arch=arch, profile=profile)


# ---- sweep -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_cases(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(15):
        windows = [
            rng.choice([*WINDOWS, (4, 1, 0, 0), (6, 3, 1, 1), (8, 4, 2, 0), (1, 1, 0, 0), (4, 2, 1, 1), (3, 4, 1, 3)])
            for _ in range(2)
        ]
        if rng.random() < 0.7:
            windows[1] = windows[0]
        K = rng.choice([rng.randint(1, 4), rng.randint(1, 80), 8 * rng.randint(1, 10), 64])
        C = rng.choice([rng.randint(1, 80), 8 * rng.randint(1, 20), 16, 64])
        H, W = rng.choice([(1, 1), (rng.randint(1, 9), rng.randint(1, 9)), (rng.randint(1, 20), rng.randint(1, 20))])
        N = rng.choice([1, 1, 2, 5, rng.randint(1, 70)])
        window = tuple(zip(*windows, strict=True))
        (kh, kw), (sh, sw), (ph, pw), (oh, ow) = window
        OH, OW = (H - 1) * sh - 2 * ph + kh + oh, (W - 1) * sw - 2 * pw + kw + ow
        if OH < 1 or OW < 1 or N * C * K * H * W * kh * kw > 5e7:
            continue
        statistics = rng.choice([None, None, "batch", "instance"])
        case = Case(
            (N, C, H, W, K), window, rng.choice(DTYPES), rng.random() < 0.5, scale=rng.random() < 0.5,
            bias=rng.random() < 0.7, statistics=statistics, offset=rng.choice([0, 0, 1, 8]),
            activation="none" if statistics else rng.choice(cuda.ACTIVATIONS),
        )  # fmt: skip
        case.check(profile=rng.choice(["h100", "a100", "rtx4090", "orin"]), seed=rng.choice([0, 1, 5, 11]))
