"""The launchers of csrc/cuda, compiled for the emulator and called through ctypes, on tensors with exact bounds."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parent
CSRC = TESTS.parent / "csrc"
sys.path.insert(0, str(TESTS / "cuda_emulator"))

import cudaemu  # noqa: E402

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # enum class ScalarType


class FeatureMap(ctypes.Structure):
    _fields_ = [
        ("N", ctypes.c_int64),
        ("C", ctypes.c_int64),
        ("P", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("channels_last", ctypes.c_bool),
    ]


class GramParams(ctypes.Structure):
    _fields_ = [
        ("features", FeatureMap),
        ("input", ctypes.c_void_p),
        ("target", ctypes.c_void_p),
        ("target_stride", ctypes.c_int64),
        ("gram", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("loss", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("allow_tf32", ctypes.c_bool),
    ]


class GramBackwardParams(ctypes.Structure):
    _fields_ = [
        ("features", FeatureMap),
        ("input", ctypes.c_void_p),
        ("grad_output", ctypes.c_void_p),
        ("factor", ctypes.c_void_p),
        ("grad_input", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("scale", ctypes.c_float),
        ("allow_tf32", ctypes.c_bool),
    ]


ACTIVATIONS = ("none", "relu", "leaky_relu", "tanh", "sigmoid", "silu", "gelu")  # enum class Activation
RESIDUALS = (None, "before", "after")  # enum class Residual


class NormAct(ctypes.Structure):
    _fields_ = [
        ("features", FeatureMap),
        ("groups", ctypes.c_int64),
        ("across_batch", ctypes.c_bool),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("affine_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("alpha", ctypes.c_float),
        ("correction", ctypes.c_float),
        ("activation", ctypes.c_int),
        ("negative_slope", ctypes.c_float),
        ("residual_mode", ctypes.c_int),
    ]


class NormActParams(NormAct):
    _fields_ = [
        ("input", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("var", ctypes.c_void_p),
        ("statistics_given", ctypes.c_bool),
        ("workspace", ctypes.c_void_p),
    ]


class NormActBackwardParams(NormAct):
    _fields_ = [
        ("grad_output", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("var", ctypes.c_void_p),
        ("statistics_given", ctypes.c_bool),
        ("averages", ctypes.c_void_p),
        ("grad_input", ctypes.c_void_p),
        ("grad_residual", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
    ]


class Window(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("kernel", "stride", "padding", "dilation")]


STATISTICS = (None, "batch", "instance")  # enum class Statistics


class Conv(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int),
        *((name, ctypes.c_int64) for name in ("N", "C", "H", "W", "K", "OH", "OW")),
        ("input_channels_last", ctypes.c_bool),
        ("output_channels_last", ctypes.c_bool),
        ("groups", ctypes.c_int64),
        ("rows", Window),
        ("columns", Window),
        ("reflect", ctypes.c_bool),
        ("input", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("activation", ctypes.c_int),
        ("negative_slope", ctypes.c_float),
        ("output", ctypes.c_void_p),
        ("statistics", ctypes.c_int),
        ("mean", ctypes.c_void_p),
        ("var", ctypes.c_void_p),
    ]


class ConvTransposeParams(Conv):
    _fields_ = [("weight", ctypes.c_void_p), ("allow_tf32", ctypes.c_bool), ("workspace", ctypes.c_void_p)]


class Samples(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("pitch", ctypes.c_int64)]


class ReparameterizeKl(ctypes.Structure):
    _fields_ = [
        ("N", ctypes.c_int64),
        ("D", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("mean", Samples),
        ("logvar", Samples),
        ("noise", Samples),
    ]


class ReparameterizeKlParams(ReparameterizeKl):
    _fields_ = [("codes", ctypes.c_void_p), ("kl", ctypes.c_void_p), ("workspace", ctypes.c_void_p)]


class ReparameterizeKlBackwardParams(ReparameterizeKl):
    _fields_ = [
        ("grad_codes", Samples),
        ("grad_kl", ctypes.c_void_p),
        ("grad_mean", ctypes.c_void_p),
        ("grad_logvar", ctypes.c_void_p),
        ("grad_noise", ctypes.c_void_p),
    ]


FAMILIES = {
    "gram": {"gram": GramParams, "gram_backward": GramBackwardParams},
    "norm_act": {"norm_act": NormActParams, "norm_act_backward": NormActBackwardParams},
    "conv_transpose": {"conv_transpose": ConvTransposeParams},
    "reparameterize_kl": {
        "reparameterize_kl": ReparameterizeKlParams,
        "reparameterize_kl_backward": ReparameterizeKlBackwardParams,
    },
}


@functools.cache
def launchers(arch: str = "compute_80", family: str = "gram") -> ctypes.CDLL:
    """The .cu files of a family of ops and the C entry points of cuda_launchers.cu, as one library."""
    sources = [*sorted((CSRC / "cuda").glob(f"{family}*.cu")), TESTS / "cuda_launchers.cu"]
    include, defines = [CSRC / "cuda", CSRC / "include"], [f"FAMILY_{family}"]
    lib = cudaemu.load(cudaemu.compile(sources, arch, include_dirs=include, defines=defines))
    for op, params in FAMILIES[family].items():
        launch, bytes_of = (getattr(lib, f"test_{name}") for name in (f"launch_{op}", f"sizeof_{op}_params"))
        launch.restype, launch.argtypes = ctypes.c_char_p, [ctypes.POINTER(params), ctypes.c_void_p]
        if size := getattr(lib, f"test_{op}_workspace_size", None):  # not every op has a workspace
            size.restype, size.argtypes = ctypes.c_char_p, [ctypes.POINTER(params), ctypes.POINTER(ctypes.c_int64)]
        bytes_of.restype = ctypes.c_int64
        assert bytes_of() == ctypes.sizeof(params), f"{op}: the ctypes mirror of csrc/include/params.h is out of date"
    return lib


def place(tensor: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """A dense copy that starts `offset` elements after a 512-byte boundary, as cudaMalloc gives it, amid NaN."""
    guard = 512 // tensor.element_size()
    raw = torch.full((tensor.numel() + offset + 3 * guard,), float("nan"), dtype=tensor.dtype)
    start = -raw.data_ptr() % 512 // tensor.element_size() + guard + offset
    out = raw[start : start + tensor.numel()].view(tensor.shape)
    out.copy_(tensor)
    return out


def empty(*shape: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> torch.Tensor:
    return place(torch.full(shape, float("nan"), dtype=dtype), offset)


class LauncherError(RuntimeError):
    """What the launcher threw."""


def call(lib: ctypes.CDLL, op: str, params: ctypes.Structure) -> None:
    message = getattr(lib, f"test_launch_{op}")(ctypes.byref(params), None)
    if message:
        raise LauncherError(message.decode())


def workspace_size(lib: ctypes.CDLL, op: str, params: ctypes.Structure) -> int:
    size = ctypes.c_int64()
    message = getattr(lib, f"test_{op}_workspace_size")(ctypes.byref(params), ctypes.byref(size))
    if message:
        raise LauncherError(message.decode())
    return size.value


class Emulation:
    """A cudaemu session whose kernels may touch exactly the tensors handed to read() and write()."""

    def __init__(self, profile: str = "h100", seed: int = 0, checks: str = "all"):
        self.session = cudaemu.session(profile=profile, seed=seed, checks=checks)

    def __enter__(self) -> Emulation:
        self.session.__enter__()
        self._keep: list[torch.Tensor] = []
        return self

    def __exit__(self, *error: object) -> None:
        self.session.__exit__(*error)

    def read(self, tensor: torch.Tensor | None, name: str) -> int | None:
        return self._register(tensor, name, read_only=True)

    def write(self, tensor: torch.Tensor | None, name: str) -> int | None:
        return self._register(tensor, name, read_only=False)

    def _register(self, tensor: torch.Tensor | None, name: str, read_only: bool) -> int | None:
        if tensor is None:
            return None
        self._keep.append(tensor)
        size = tensor.numel() * tensor.element_size()
        cudaemu.control().cudaemu_register_region(tensor.data_ptr(), size, int(read_only), name.encode())
        return tensor.data_ptr()


def features_of(x: torch.Tensor, channels_last: bool) -> FeatureMap:
    n, a, b = x.shape
    return FeatureMap(n, b if channels_last else a, a if channels_last else b, DTYPES[x.dtype], channels_last)


def gram(
    x,
    *,
    channels_last=False,
    target=None,
    scale=1.0,
    outputs=("gram", "residual", "loss"),
    tf32=False,
    profile="h100",
    seed=0,
    arch="compute_80",
    checks="all",
    target_offset=0,
):
    """Runs launch_gram on x, [N, C, P] or [N, P, C], as placed; returns the outputs asked for and the launches."""
    lib = launchers(arch)
    features = features_of(x, channels_last)
    n, c = features.N, features.C
    out = {
        "gram": empty(n, c, c) if "gram" in outputs else None,
        "residual": empty(n, c, c) if "residual" in outputs and target is not None else None,
        "loss": empty(1) if "loss" in outputs and target is not None else None,
    }
    t = place(target.float(), target_offset) if target is not None else None
    with Emulation(profile, seed, checks) as e:
        p = GramParams(
            features=features,
            scale=scale,
            allow_tf32=tf32,
            target_stride=0 if target is None or target.dim() == 2 else c * c,
        )
        workspace = empty(workspace_size(lib, "gram", p))
        p.input, p.target, p.workspace = e.read(x, "input"), e.read(t, "target"), e.write(workspace, "workspace")
        p.gram, p.residual, p.loss = (e.write(out[name], name) for name in ("gram", "residual", "loss"))
        try:
            call(lib, "gram", p)
        finally:
            e.session.check()
        out["launches"] = e.session.launches
    return out


def gram_backward(
    x,
    d,
    *,
    channels_last=False,
    factor=None,
    scale=1.0,
    tf32=False,
    profile="h100",
    seed=0,
    arch="compute_80",
    checks="all",
    out_offset=0,
):
    """Runs launch_gram_backward on x and the gradient d, [N, C, C]; returns the gradient of x and the launches."""
    lib = launchers(arch)
    features = features_of(x, channels_last)
    grad = empty(*x.shape, dtype=x.dtype, offset=out_offset)
    d, f = place(d.float()), None if factor is None else place(torch.tensor([factor]))
    with Emulation(profile, seed, checks) as e:
        p = GramBackwardParams(features=features, scale=scale, allow_tf32=tf32)
        workspace = empty(workspace_size(lib, "gram_backward", p))
        p.input, p.grad_output, p.factor = e.read(x, "input"), e.read(d, "grad_output"), e.read(f, "factor")
        p.grad_input, p.workspace = e.write(grad, "grad_input"), e.write(workspace, "workspace")
        try:
            call(lib, "gram_backward", p)
        finally:
            e.session.check()
        launches = e.session.launches
    return {"grad": grad, "launches": launches}


def run_norm_act(op, p, tensors, profile, seed, arch, checks):
    """Launches `op` with the settings of p; tensors: field -> (tensor, whether it is written). Returns the launches."""
    lib = launchers(arch, "norm_act")
    with Emulation(profile, seed, checks) as e:
        workspace = empty(workspace_size(lib, op, p))
        for name, (tensor, written) in {**tensors, "workspace": (workspace, True)}.items():
            setattr(p, name, (e.write if written else e.read)(tensor, name))
        try:
            call(lib, op, p)
        finally:
            e.session.check()
        return e.session.launches


def run_conv_transpose(p, tensors, profile, seed, arch, checks):
    """Launches conv_transpose with the settings of p; the rest as in run_norm_act."""
    lib = launchers(arch, "conv_transpose")
    with Emulation(profile, seed, checks) as e:
        workspace = empty(-(-workspace_size(lib, "conv_transpose", p) // 4))
        for name, (tensor, written) in {**tensors, "workspace": (workspace, True)}.items():
            setattr(p, name, (e.write if written else e.read)(tensor, name))
        try:
            call(lib, "conv_transpose", p)
        finally:
            e.session.check()
        return e.session.launches


def reparameterize_kl(mean, logvar, noise, *, codes_offset=0, profile="h100", seed=0, arch="compute_80", checks="all"):
    """Runs launch_reparameterize_kl on [N, D] tensors as placed; returns codes, kl and the launches."""
    lib = launchers(arch, "reparameterize_kl")
    N, D = mean.shape
    codes, kl = empty(N, D, dtype=mean.dtype, offset=codes_offset), empty(N)
    with Emulation(profile, seed, checks) as e:
        p = ReparameterizeKlParams(N=N, D=D, dtype=DTYPES[mean.dtype])
        for name, tensor in (("mean", mean), ("logvar", logvar), ("noise", noise)):
            setattr(p, name, Samples(e.read(tensor, name), D))
        workspace = empty(workspace_size(lib, "reparameterize_kl", p))
        p.codes, p.kl, p.workspace = e.write(codes, "codes"), e.write(kl, "kl"), e.write(workspace, "workspace")
        try:
            call(lib, "reparameterize_kl", p)
        finally:
            e.session.check()
        return codes, kl, e.session.launches


def reparameterize_kl_backward(
    grad_codes,
    grad_kl,
    mean,
    logvar,
    noise,
    *,
    wanted=(True, True, True),
    offset=0,
    profile="h100",
    seed=0,
    arch="compute_80",
    checks="all",
):
    """Runs launch_reparameterize_kl_backward; returns the gradients of mean, logvar and noise and the launches."""
    lib = launchers(arch, "reparameterize_kl")
    N, D = mean.shape
    grads = [empty(N, D, dtype=mean.dtype, offset=offset) if want else None for want in wanted]
    with Emulation(profile, seed, checks) as e:
        p = ReparameterizeKlBackwardParams(N=N, D=D, dtype=DTYPES[mean.dtype], grad_kl=e.read(grad_kl, "grad_kl"))
        for name, tensor in (("mean", mean), ("logvar", logvar), ("noise", noise), ("grad_codes", grad_codes)):
            setattr(p, name, Samples(e.read(tensor, name), D))
        p.grad_mean, p.grad_logvar, p.grad_noise = (e.write(g, "gradient") for g in grads)
        try:
            call(lib, "reparameterize_kl_backward", p)
        finally:
            e.session.check()
        return *grads, e.session.launches
