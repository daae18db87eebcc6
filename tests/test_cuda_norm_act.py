"""The kernels of normalisation + activation, run by the emulator: every check on, every array exactly bounded."""

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
EPS = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # rounding of the result
ROUNDING = 2.0**-24
KINDS = ("instance", "batch", "group", "adain")
GRADIENTS = ("grad_input", "grad_residual", "sums")

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
each_layout = pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def emulator() -> None:
    """These tests open emulator sessions of their own, whatever the build of the extension."""


def activate(z: Tensor, activation: str, slope: float) -> Tensor:
    if activation == "leaky_relu":
        return F.leaky_relu(z, slope)
    return z if activation == "none" else getattr(F, activation)(z)


class Case:
    """One op on random features: [N, C, P] as the dtype rounded them, and in memory; its reference in float64."""

    def __init__(
        self, shape, dtype, channels_last, kind="instance", *, groups=None, activation="relu", residual=None,
        affine=True, offset=0, x=None,
    ):  # fmt: skip
        N, C, P = shape
        self.shape, self.dtype, self.channels_last, self.offset = shape, dtype, channels_last, offset
        self.activation, self.residual_mode, self.slope = activation, residual, float(torch.tensor(0.2))
        self.across = kind == "batch"
        self.groups = C if kind != "group" else groups or next(g for g in (4, 3, 2, 1) if C % g == 0)
        self.alpha, self.correction = (float(torch.tensor(0.6)), 1.0) if kind == "adain" else (1.0, 0.0)
        self.eps = float(torch.tensor(1e-5))
        self.x = (1.7 * torch.randn(shape) + 3 * torch.randn(N, C, 1) if x is None else x).to(dtype)
        self.grad = torch.randn(shape).to(dtype)
        self.residual = torch.randn(shape).to(dtype) if residual else None
        of = (N, C) if kind == "adain" else (C,)
        self.weight, self.bias = (torch.randn(of), torch.randn(of)) if affine else (None, None)
        self.elements = P * C // self.groups * (N if self.across else 1)
        if self.activation in (
            "relu",
            "leaky_relu",
        ):  # rounding decides the side of the kink: let no gradient come there
            self.grad[self.forward_reference()[1].abs() < 1e-4] = 0

    # ---- reference ----

    def per_element(self, statistic: Tensor) -> Tensor:
        """[statistics] -> [N or 1, C, 1]"""
        repeated = statistic.view(-1, self.groups).repeat_interleave(self.shape[1] // self.groups, 1)
        return repeated[:, :, None]

    def over_groups(self, values: Tensor) -> Tensor:
        """[N, C, P] -> [statistics, elements]"""
        values = values.transpose(0, 1) if self.across else values
        return values.reshape(-1, self.elements)

    def statistics_reference(self, x: Tensor) -> tuple[Tensor, Tensor]:
        of = self.over_groups(x)
        mean = of.mean(1)
        return mean, (of - mean[:, None]).square().sum(1) / (self.elements - self.correction)

    def affine(self, p: Tensor | None, otherwise: float) -> Tensor:
        return torch.full((1, 1, 1), otherwise).double() if p is None else p.double().view(-1, self.shape[1], 1)

    def forward_reference(self, x=None, residual=None, statistics=None):
        """(output, z with a residual before the activation, xhat)"""
        x = self.x.double() if x is None else x
        residual = self.residual if residual is None else residual
        mean, var = statistics or self.statistics_reference(x)
        xhat = (x - self.per_element(mean.double())) * (self.per_element(var.double()) + self.eps).rsqrt()
        z = self.alpha * (self.affine(self.weight, 1) * xhat + self.affine(self.bias, 0)) + (1 - self.alpha) * x
        if self.residual_mode == "before":
            z = z + residual
        if z.requires_grad:
            z.retain_grad()
        y = activate(z, self.activation, self.slope)
        return (y + residual if self.residual_mode == "after" else y), z, xhat

    def backward_reference(self, statistics=None, averages=None):
        x = self.x.double().requires_grad_()
        y, z, xhat = self.forward_reference(x, None, statistics)
        y.backward(self.grad.double())
        dz, xhat = z.grad, xhat.detach()
        sums = torch.stack([dz.sum(2), (dz * xhat).sum(2)])
        grad_input = x.grad
        if averages is not None:
            a1, a2 = (self.per_element(a.double()) for a in averages)
            rstd = (self.per_element(statistics[1].double()) + self.eps).rsqrt()
            normalised = self.alpha * rstd * (self.affine(self.weight, 1) * dz - a1 - xhat * a2)
            grad_input = (1 - self.alpha) * dz + normalised
        return {"grad_input": grad_input, "grad_residual": dz, "sums": sums.sum(1) if self.across else sums}

    # ---- kernels ----

    def place(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else cuda.place(values.mT if self.channels_last else values, self.offset)

    def like_input(self, wanted=True) -> Tensor | None:
        return self.place(torch.full(self.shape, float("nan"), dtype=self.dtype)) if wanted else None

    def logical(self, values: Tensor | None) -> Tensor | None:
        return values.mT if values is not None and self.channels_last else values

    def settings(self, params):
        N, C, P = self.shape
        return params(
            features=cuda.FeatureMap(N, C, P, cuda.DTYPES[self.dtype], self.channels_last),
            groups=self.groups, across_batch=self.across, eps=self.eps, alpha=self.alpha, correction=self.correction,
            affine_stride=C if self.weight is not None and self.weight.dim() == 2 else 0,
            activation=cuda.ACTIVATIONS.index(self.activation), negative_slope=self.slope,
            residual_mode=cuda.RESIDUALS.index(self.residual_mode),
        )  # fmt: skip

    def run(self, op, p, tensors, profile="h100", seed=0, arch="compute_80", checks="all"):
        weights = {
            name: (None if value is None else cuda.place(value, self.offset), False)
            for name, value in (("weight", self.weight), ("bias", self.bias))
        }
        return cuda.run_norm_act(op, p, {**tensors, **weights}, profile, seed, arch, checks)

    def forward(self, *, statistics=None, output=True, **options):
        p = self.settings(cuda.NormActParams)
        p.statistics_given = statistics is not None
        count = self.shape[1] if self.across else self.shape[0] * self.groups
        mean, var = map(cuda.place, statistics) if statistics else (cuda.empty(count), cuda.empty(count))
        y = self.like_input(output)
        tensors = {
            "input": (self.place(self.x), False), "residual": (self.place(self.residual), False), "output": (y, True),
            "mean": (mean, statistics is None), "var": (var, statistics is None),
        }  # fmt: skip
        launches = self.run("norm_act", p, tensors, **options)
        return {"output": self.logical(y), "mean": mean, "var": var, "launches": launches}

    def backward(self, statistics=None, *, given=False, averages=None, wanted=GRADIENTS, **options):
        p = self.settings(cuda.NormActBackwardParams)
        p.statistics_given = given
        mean, var = (s.float() for s in statistics or self.statistics_reference(self.x.double()))
        N, C, _ = self.shape
        out = {
            "grad_input": self.like_input("grad_input" in wanted),
            "grad_residual": self.like_input("grad_residual" in wanted),
            "sums": cuda.empty(*((2, C) if self.across else (2, N, C))) if "sums" in wanted else None,
        }
        tensors = {
            "grad_output": (self.place(self.grad), False), "input": (self.place(self.x), False),
            "residual": (self.place(self.residual) if self.residual_mode == "before" else None, False),
            "mean": (cuda.place(mean), False), "var": (cuda.place(var), False),
            "averages": (None if averages is None else cuda.place(averages), False),
            **{name: (tensor, True) for name, tensor in out.items()},
        }  # fmt: skip
        out["launches"] = self.run("norm_act_backward", p, tensors, **options)
        return {
            **out,
            "grad_input": self.logical(out["grad_input"]),
            "grad_residual": self.logical(out["grad_residual"]),
        }

    # ---- comparison ----

    def scale(self, var: Tensor) -> Tensor:
        """How much an error of x becomes in z."""
        rstd = (self.per_element(var.double()) + self.eps).rsqrt()
        return self.alpha * self.affine(self.weight, 1).abs() * rstd + 1 - self.alpha

    def check_forward(self, out, statistics=None):
        exact_mean, exact_var = self.statistics_reference(self.x.double())
        if statistics is None:
            spread = self.over_groups(self.x.double()).abs().amax(1)
            assert ((out["mean"] - exact_mean).abs() <= 4 * ROUNDING * spread).all()
            assert ((out["var"] - exact_var).abs() <= 40 * ROUNDING * (exact_var + ROUNDING * spread.square())).all()
        if out["output"] is None:
            return
        exact, z, _ = self.forward_reference(statistics=statistics)
        mean = self.per_element(statistics[0].double() if statistics else exact_mean)
        sensitivity = self.scale(statistics[1] if statistics else exact_var)
        size = 1 + exact.abs() + z.abs() + sensitivity * (self.x.double().abs() + mean.abs())
        error = (out["output"].double() - exact).abs()
        assert (error <= EPS[self.dtype] * exact.abs() + 16 * ROUNDING * size).all(), (error / size).max()

    def check_backward(self, out, **reference):
        exact = self.backward_reference(**reference)
        _, var = reference.get("statistics") or self.statistics_reference(self.x.double())
        sensitivity = self.scale(var)
        magnitude = 1 + (self.x.double().abs() * sensitivity).amax()  # of what is cancelled in z, hence of its error
        for name in GRADIENTS:
            if out[name] is None:
                continue
            error, size = (out[name].double() - exact[name]).abs(), exact[name].abs()
            if name == "sums":
                allowed = (
                    64 * ROUNDING * magnitude * (size + self.shape[2] ** 0.5 * (self.shape[0] if self.across else 1))
                )
            else:
                largest = self.per_element(self.over_groups(exact[name]).abs().amax(1))
                allowed = EPS[self.dtype] * size + 64 * ROUNDING * magnitude * (1 + sensitivity + largest)
            assert (error <= allowed).all(), (name, (error / allowed).max())

    def check(self, wanted=GRADIENTS, **options):
        self.check_forward(self.forward(**options))
        self.check_backward(self.backward(wanted=wanted, **options))


def vectors(dtype: torch.dtype) -> int:
    """Elements of 16 bytes."""
    return 16 // dtype.itemsize


def split_shape(kind: str, channels_last: bool, dtype: torch.dtype = torch.float32) -> tuple[int, int, int]:
    """The least that takes several blocks: 4096 vectors fit in one, or 2048 rows of a vector each. For groups=1."""
    if channels_last:
        return (3, vectors(dtype), 700) if kind == "batch" else (1, vectors(dtype), 2100)
    elements = 4096 * vectors(dtype) + 616
    return {"batch": (4, 1, elements // 4), "group": (1, 2, elements // 2)}.get(kind, (1, 1, elements))


def passes(out) -> list[str]:
    """The kernels of a call, without their template arguments."""
    return [run.name.split("<")[0].split("::")[-1].removeprefix("norm_act_") for run in out["launches"]]


def compulsory(out, *arrays: Tensor | None) -> float:
    """Sectors that the launches touched, over those of the arrays."""
    moved = sum(32 * (run.unique_read_sectors + run.unique_written_sectors) for run in out["launches"])
    return moved / sum(array.numel() * array.element_size() for array in arrays if array is not None)


# ---- values ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@each_kind
@pytest.mark.parametrize(
    "shape", [(1, 1, 2), (2, 12, 64), (3, 8, 3), (2, 6, 49), (1, 24, 300)], ids=lambda s: "x".join(map(str, s))
)
def test_small(shape, kind, channels_last, dtype):
    Case(shape, dtype, channels_last, kind, activation="silu").check()


@each_layout
@each_dtype
@pytest.mark.parametrize("activation", cuda.ACTIVATIONS)
@pytest.mark.parametrize("residual", cuda.RESIDUALS)
def test_activations_and_residuals(residual, activation, dtype, channels_last):
    case = Case((2, 8, 72), dtype, channels_last, "adain", activation=activation, residual=residual)
    case.check()
    given = torch.randn(16), torch.rand(16) + 0.1
    case.check_forward(case.forward(statistics=given), given)
    reference = dict(statistics=given, averages=torch.zeros(2, 16))
    case.check_backward(case.backward(given, given=True), **reference)


@each_dtype
@pytest.mark.parametrize("size", [128, 1024, 4096])  # vectors of a warp, of 256 threads and of 512
@pytest.mark.parametrize("beyond", [-1, 0, 1, 8])
def test_planes_around_what_a_tile_holds(beyond, size, dtype):
    Case((1, 1, size * vectors(dtype) + beyond), dtype, False, activation="tanh").check()


@each_dtype
@pytest.mark.parametrize("N", [15, 16, 17, 127, 128, 129, 255, 256, 257, 511, 512, 513])
def test_batch_norm_of_small_planes_around_what_a_tile_holds(N, dtype):
    Case((N, 3, 16), dtype, False, "batch", activation="leaky_relu").check()


@each_dtype
@pytest.mark.parametrize("D", [7, 8, 9, 63, 64, 65, 255, 256, 257])
def test_group_norm_around_what_a_tile_holds(D, dtype):
    Case((1, 2 * D, 16 * vectors(dtype)), dtype, False, "group", groups=2, activation="gelu").check()


@each_dtype
@pytest.mark.parametrize(("D", "P"), [(4, 4096), (8, 2048), (3, 700), (2, 8192), (2, 8200), (5, 1030)])
def test_group_norm_of_planes_that_take_a_block(D, P, dtype):
    Case((1, D, P * vectors(dtype) // 4), dtype, False, "group", groups=1).check()


@each_dtype
@pytest.mark.parametrize("kind", ["instance", "group", "batch"])
@pytest.mark.parametrize("P", [127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049])
def test_rows_around_what_a_tile_holds(P, kind, dtype):
    """Channels of one to four vectors: 1, 2 and 4 channel lanes."""
    C = vectors(dtype) * (4 if P < 500 else 2 if P < 2000 else 1)
    Case((1, C, P), dtype, True, kind, groups=C // vectors(dtype), activation="tanh").check()


@each_dtype
@pytest.mark.parametrize("C", [31, 32, 33, 96, 127, 128, 129, 256, 260])
def test_channels_around_what_a_tile_holds(C, dtype):
    for kind, groups in (("batch", None), ("group", next(g for g in (5, 4, 3, 2, 1) if C % g == 0))):
        Case((2, C, 12), dtype, True, kind, groups=groups).check()


@each_dtype
@each_layout
@each_kind
def test_split_over_blocks(kind, channels_last, dtype):
    N, C, P = split_shape(kind, channels_last, dtype)
    for shape in ((N, C, P), (N, C + 1, P + 1)):  # vectors, scalars
        case = Case(shape, dtype, channels_last, kind, groups=1, activation="silu", residual="before")
        assert len(case.forward(checks="none")["launches"]) > 1
        case.check()


@each_dtype
@each_layout
def test_group_norm_of_many_small_planes_split_over_blocks(channels_last, dtype):
    case = Case((1, 260, 65 * vectors(dtype)), dtype, channels_last, "group", groups=1)
    assert passes(case.forward(checks="none"))[1] == "finish_kernel"
    case.check()


@pytest.mark.parametrize("kind", ["instance", "batch"])
def test_so_many_tiles_that_a_kernel_of_its_own_merges_them(kind):
    case = Case((1, 1, 65 * 4096), torch.float32, False, kind, activation="none")
    out = case.forward()
    assert passes(out) == ["planes_kernel", "finish_kernel", "planes_kernel"]
    case.check_forward(out)
    case.check_backward(case.backward())


@each_layout
@pytest.mark.parametrize(("profile", "launches"), [("h100", 2), ("orin", 1)])
def test_few_large_groups_are_split_where_that_gives_sms_work(profile, launches, channels_last):
    shape = (40, 16, 1024) if channels_last else (1, 40, 16384)  # 80 and 40 blocks
    case = Case(shape, torch.bfloat16 if channels_last else torch.float32, channels_last)
    case.x, case.grad = case.x[:20], case.grad[:20]
    case.shape = tuple(case.x.shape)
    out, back = (run(profile=profile, checks="none") for run in (case.forward, case.backward))
    case.check_forward(out)
    case.check_backward(back)
    if not channels_last:
        assert len(out["launches"]) == len(back["launches"]) == launches


# ---- what is asked for, what is given --------------------------------------------------------------------------------

each_size = pytest.mark.parametrize("size", ["on chip", "split", "scalars"])


def shape_of(size: str, kind: str, channels_last: bool) -> tuple[int, int, int]:
    return {"on chip": (2, 8, 64), "scalars": (2, 5, 63)}.get(size) or split_shape(kind, channels_last)


@each_layout
@each_kind
@each_size
def test_statistics_alone(size, kind, channels_last):
    case = Case(shape_of(size, kind, channels_last), torch.float32, channels_last, kind, groups=1)
    alone, whole = case.forward(output=False), case.forward()
    case.check_forward(alone)
    assert torch.equal(alone["mean"], whole["mean"])
    assert torch.equal(alone["var"], whole["var"])


@each_layout
@each_kind
@each_size
def test_statistics_given(size, kind, channels_last):
    """One pass, forward and backward, with the sums or without."""
    case = Case(shape_of(size, kind, channels_last), torch.float32, channels_last, kind, groups=1, residual="before")
    count = len(case.forward(output=False, checks="none")["mean"])
    given = torch.randn(count), torch.rand(count) + 0.5
    out = case.forward(statistics=given)
    assert len(out["launches"]) == 1
    case.check_forward(out, given)
    for wanted in (GRADIENTS, ("grad_input",), ("grad_input", "grad_residual")):
        back = case.backward(given, given=True, wanted=wanted)
        assert len([name for name in passes(back) if "finish" not in name]) == 1
        case.check_backward(back, statistics=given, averages=torch.zeros(2, count))


@each_layout
@each_kind
@each_size
def test_averages_given(size, kind, channels_last):
    case = Case(shape_of(size, kind, channels_last), torch.float32, channels_last, kind, groups=1, activation="none")
    statistics = tuple(s.float() for s in case.statistics_reference(case.x.double()))
    averages = torch.randn(2, len(statistics[0]))
    for wanted in (GRADIENTS, ("grad_input",)):
        back = case.backward(averages=averages, wanted=wanted)
        assert len([name for name in passes(back) if "finish" not in name]) == 1
        case.check_backward(back, statistics=statistics, averages=averages)


@each_layout
@each_kind
@each_size
def test_only_the_gradients_that_are_asked_for(size, kind, channels_last):
    case = Case(
        shape_of(size, kind, channels_last),
        torch.float32,
        channels_last,
        kind,
        groups=1,
        residual="before",
        activation="silu",
    )
    everything = case.backward()
    case.check_backward(everything)
    for wanted in ((), *((name,) for name in GRADIENTS), GRADIENTS[:2], GRADIENTS[1:], GRADIENTS[::2]):
        out = case.backward(wanted=wanted)
        case.check_backward(out)
        for name in wanted:
            if name != "sums" or size != "split":  # split, they are added in another order where nothing else is wanted
                assert torch.equal(out[name], everything[name])


# ---- numerics --------------------------------------------------------------------------------------------------------


@each_layout
@each_kind
@pytest.mark.parametrize("P", [64, 1023, 17000])
def test_a_mean_far_above_the_deviation(P, kind, channels_last):
    """1e4 and a variance of 1e-3: 32 units of the last place. The float32 mean is as near as float32 is."""
    x = 1e4 + 1e-3**0.5 * torch.randn(2, 2, P)
    case = Case(x.shape, torch.float32, channels_last, kind, groups=1, activation="none", x=x)
    case.alpha = 1.0
    out = case.forward()
    mean, var = case.statistics_reference(x.double())
    assert ((out["mean"] - mean).abs() <= 0.51 * 2.0**-10).all()
    assert (
        (out["var"] - var).abs() <= 5e-3 * var
    ).all()  # tiles are merged by means that are rounded to 1/32 of the deviation
    exact, _, xhat = case.forward_reference(statistics=(out["mean"], out["var"]))
    assert ((out["output"] - exact).abs() <= 8 * ROUNDING * (1 + case.affine(case.weight, 1).abs() * xhat.abs())).all()
    case.grad = torch.ones_like(x)
    back = case.backward((out["mean"], out["var"]), wanted=("sums",))["sums"][1]
    sums = xhat.sum(2).sum(0) if case.across else xhat.sum(2)
    assert ((back - sums).abs() <= 8 * ROUNDING * xhat.abs().sum((0, 2)).max()).all()


@each_layout
@pytest.mark.parametrize("P", [64, 17000])
@pytest.mark.parametrize("value", [0.0, 0.1, -12345.678])
def test_a_constant_plane(value, P, channels_last):
    case = Case((1, 2, P), torch.float32, channels_last, activation="none", x=torch.full((1, 2, P), value))
    out = case.forward()
    assert torch.equal(out["mean"], torch.full((2,), value))
    assert torch.equal(out["var"], torch.zeros(2))
    assert torch.equal(out["output"], case.bias[None, :, None].expand(1, 2, P))


@each_layout
def test_one_element_without_a_degree_of_freedom_is_nan(channels_last):
    case = Case((2, 3, 1), torch.float32, channels_last, "adain")
    assert case.forward(output=False)["var"].isnan().all()


@each_layout
@each_dtype
def test_nan_stays_in_its_group(dtype, channels_last):
    for P in (64, 40000):
        case = Case((1, 3, P), dtype, channels_last)
        case.x[0, 1, 7] = float("nan")
        out = case.forward(checks="none,bounds")["output"].isnan()
        assert out[0, 1].all()
        assert not out[0, ::2].any()


@each_layout
def test_forward_and_backward_agree_on_the_side_of_the_kink(channels_last):
    """Where the output of relu is zero, so is dz, and nowhere else: z is the same to the bit."""
    for P in (1024, 17000):
        x = torch.randint(-3, 4, (1, 2, P)).float()
        case = Case((1, 2, P), torch.float32, channels_last, activation="relu", residual="before", x=x)
        case.residual.copy_(-case.forward_reference(residual=0)[0])
        case.grad.fill_(1)
        out = case.forward()
        dz = case.backward((out["mean"], out["var"]), wanted=("grad_residual",))["grad_residual"]
        assert torch.equal(dz == 0, out["output"] == 0)


# ---- memory ----------------------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@each_kind
@pytest.mark.parametrize("offset", [1, 4])
def test_arrays_that_start_anywhere(offset, kind, channels_last, dtype):
    for shape in ((2, 8, 64), split_shape(kind, channels_last, dtype)):
        Case(shape, dtype, channels_last, kind, groups=1, offset=offset, activation="none", residual="after").check()


@each_layout
@pytest.mark.parametrize("shape", [(1, 4, 64), (1, 5, 63), (1, 1, 40000)])
def test_the_bounds_are_exact(shape, channels_last):
    """The checks that the other tests rely on do see a single element too many."""
    case = Case(shape, torch.bfloat16, channels_last)
    whole = case.place(case.x).flatten()
    case.place = lambda values: None if values is None else whole[:-1]
    with pytest.raises(cudaemu.EmulationError) as caught:
        case.forward()
    assert caught.value.kind == "out-of-bounds"


def on_chip(kind: str, channels_last: bool) -> tuple:
    if channels_last:
        return {"batch": (8, 64, 64), "group": (2, 64, 512)}.get(kind, (2, 64, 512))
    return {"batch": (64, 16, 64), "group": (2, 64, 256)}.get(kind, (2, 16, 4096))


@each_dtype
@each_layout
@each_kind
@pytest.mark.parametrize("residual", [None, "before"])
def test_on_chip_each_element_is_moved_once(residual, kind, channels_last, dtype):
    case = Case(on_chip(kind, channels_last), dtype, channels_last, kind, groups=8, residual=residual)
    out, back = case.forward(checks="none,traffic"), case.backward(checks="none,traffic", wanted=("grad_input", "sums"))
    assert len(out["launches"]) == len(back["launches"]) == 1
    assert compulsory(out, case.x, case.x, case.residual) <= 1.05
    assert compulsory(back, case.x, case.x, case.x, case.residual) <= 1.05


@each_dtype
@each_layout
@each_kind
def test_split_the_inputs_are_read_once_more(kind, channels_last, dtype):
    shape = {"batch": (64, 16, 1024), "group": (1, 64, 4096)}.get(kind, (1, 16, 65536))
    case = Case(shape, dtype, channels_last, kind, groups=2)
    out, back = case.forward(checks="none,traffic"), case.backward(checks="none,traffic", wanted=("grad_input", "sums"))
    assert len(out["launches"]) in (2, 3)
    assert compulsory(out, *[case.x] * 3) <= 1.05
    assert compulsory(back, *[case.x] * 5) <= 1.05


@each_layout
def test_sectors_are_used_whole(channels_last):
    """What the blocks ask of L2 is what they need, also of planes of 16 elements."""
    case = Case((64, 32, 16), torch.bfloat16, channels_last, "batch")
    for out, arrays in ((case.forward(checks="none,traffic"), 2), (case.backward(checks="none,traffic"), 4)):
        requested = sum(32 * (run.global_load["sectors"] + run.global_store["sectors"]) for run in out["launches"])
        assert requested <= 1.1 * arrays * case.x.numel() * 2


# ---- determinism, launches -------------------------------------------------------------------------------------------


@each_dtype
@each_layout
@each_kind
@pytest.mark.parametrize("size", ["small", "many", "split"])
def test_any_order_of_warps_and_blocks_gives_the_same_bits(size, kind, channels_last, dtype):
    shape = {"small": (2, 8, 64), "many": (130, 2, 33)}.get(size) or split_shape(kind, channels_last, dtype)
    case = Case(shape, dtype, channels_last, kind, groups=1, activation="gelu", residual="before")
    results = [{**case.forward(seed=seed), **case.backward(seed=seed)} for seed in (0, 1, 7)]
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other if name != "launches")


@pytest.mark.slow  # compiles for another architecture
@each_layout
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_turing(dtype, channels_last):
    for kind in KINDS:
        Case((2, 8, 72), dtype, channels_last, kind).check(arch="compute_75", profile="t4")
        Case((1, 3, 20000), dtype, channels_last, kind).check(arch="compute_75", profile="t4")


def test_large_counts_are_in_the_grid_dimension_that_has_room():
    for channels_last in (False, True):
        case = Case((300, 7, 20), torch.float32, channels_last)
        launches = case.forward()["launches"] + case.backward()["launches"]
        assert {tuple(run.grid[1:]) for run in launches} == {(1, 1)}


@pytest.mark.parametrize("params", [cuda.NormActParams, cuda.NormActBackwardParams])
def test_what_cannot_be_indexed_is_refused(params):
    op = "norm_act" if params is cuda.NormActParams else "norm_act_backward"
    lib = cuda.launchers(family="norm_act")
    for channels_last in (False, True):
        for N, C, P in ((2**31, 1, 2), (2**16, 2**16, 4), (2**20, 2**10, 2**30)):
            p = params(features=cuda.FeatureMap(N, C, P, 0, channels_last), groups=C, alpha=1.0)
            with cuda.Emulation(), pytest.raises(cuda.LauncherError, match=f"norm_act: {N} x .* 2\\^31 - 1"):
                cuda.call(lib, op, p)
    p = params(features=cuda.FeatureMap(2, 8, 16, 0, False), groups=4, across_batch=True, alpha=1.0)
    with cuda.Emulation(), pytest.raises(cuda.LauncherError, match="single channels"):
        cuda.call(lib, op, p)


def test_a_workspace_is_small():
    lib = cuda.launchers(family="norm_act")
    for channels_last in (False, True):
        for N, C, P in ((1, 64, 2**31 + 5), (64, 64, 32 * 32), (1, 2**15, 2**16)):
            for op, params in cuda.FAMILIES["norm_act"].items():
                p = params(features=cuda.FeatureMap(N, C, P, 2, channels_last), groups=C, alpha=1.0)
                with cuda.Emulation():
                    assert cuda.workspace_size(lib, op, p) * 4 <= 0.02 * 2 * N * C * P


# ---- sweep -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_cases(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(25):
        dtype, channels_last, kind = rng.choice(DTYPES), rng.random() < 0.5, rng.choice(KINDS)
        C = rng.choice([1, 8, 16, 32, 64, rng.randint(1, 20), rng.randint(1, 300)])
        P = rng.choice(
            [2, 4, 16, 49, 64, 256, 1024, 4096, rng.randint(2, 70), rng.randint(2, 3000), rng.randint(2, 70000)]
        )
        N = rng.choice([1, 1, 2, 3, rng.randint(1, 200)])
        if N * C * P > 400_000:
            continue
        groups = rng.choice([g for g in range(1, C + 1) if C % g == 0])
        case = Case(
            (N, C, P), dtype, channels_last, kind, groups=groups, activation=rng.choice(cuda.ACTIVATIONS),
            residual=rng.choice(cuda.RESIDUALS), affine=rng.random() < 0.8, offset=rng.choice([0, 0, 1, 3, 8]),
        )  # fmt: skip
        profile = rng.choice(["h100", "a100", "rtx4090", "orin"])
        case.check(profile=profile, seed=rng.choice([0, 1, 5, 11]))
        wanted = tuple(name for name in GRADIENTS if rng.random() < 0.6)
        case.check_backward(case.backward(wanted=wanted, profile=profile))
