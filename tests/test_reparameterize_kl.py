"""Properties of F.reparameterize_kl; run on the CPU kernels and, emulated, on the CUDA kernels."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkernels import _C, reference
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from opcheck import opcheck

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
# [N, ...]: one of everything, around the length of vectors, of the CPU's short samples (64; runs of 2048 elements) and
# pieces (8192), of a warp's tile (1024) and a block's (4096), feature maps.
SHAPES = [
    (1, 1), (5,), (7, 3), (300, 7), (40, 63), (3, 64), (3, 15), (3, 16), (2, 17), (64, 128), (9, 100), (2, 1023),
    (3, 1024), (2, 1025), (2, 4096), (1, 4097), (2, 8200), (3, 20001), (2, 4, 8, 8), (3, 3, 5, 7),
]  # fmt: skip

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]
) -> tuple[Tensor, Tensor, Tensor]:
    """mean, logvar, noise"""
    mean, logvar, noise = (torch.randn(shape).to(dtype).contiguous(memory_format=layout) for _ in range(3))
    return mean, logvar * 2, noise


def stock(mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """As it is written by hand."""
    divergence = 1 + logvar - mean.pow(2) - logvar.exp()
    return mean + noise * torch.exp(0.5 * logvar), -0.5 * divergence.reshape(mean.shape[0], -1).sum(1)


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest error as a fraction of the largest value."""
    return ((actual.double() - exact).abs().max() / exact.abs().max()).item()


def typical_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the errors as a fraction of that of the values."""
    return ((actual.double() - exact).norm() / exact.norm()).item()


def assert_as_accurate_as_stock(actual: Tensor, stock: Tensor, exact: Tensor) -> None:
    """At most twice stock PyTorch's own error, or two roundings where stock happens to be nearly exact.

    Of the typical error: the largest is one exponential's, off by up to a unit of the last place here and in stock, in
    another element each. That one gets four roundings.
    """
    eps = torch.finfo(actual.dtype).eps
    assert typical_error(actual, exact) <= max(2 * typical_error(stock, exact), eps)
    assert error(actual, exact) <= max(2 * error(stock, exact), 2 * eps)


# ---- values ----------------------------------------------------------------------------------------------------------


@each_shape
@each_dtype
def test_codes_divergence_and_gradients_are_as_accurate_as_stock(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    given = inputs(shape, dtype)
    grad_codes, grad_kl = torch.randn(shape).to(dtype), torch.randn(shape[0])

    def results(function, precision: torch.dtype) -> list[Tensor]:
        tensors = [t.to(precision, copy=True).requires_grad_() for t in given]
        codes, kl = function(*tensors)
        gradients = torch.autograd.grad((codes, kl), tensors, (grad_codes.to(codes.dtype), grad_kl.to(kl.dtype)))
        return [codes.detach(), kl.detach(), *gradients]

    actual = results(F.reparameterize_kl, dtype)
    assert [t.dtype for t in actual] == [dtype, torch.float32, dtype, dtype, dtype]
    assert [t.shape for t in actual] == [torch.Size(shape), torch.Size(shape[:1]), *[torch.Size(shape)] * 3]
    for ours, theirs, exact in zip(actual, results(stock, dtype), results(stock, torch.float64), strict=True):
        assert_as_accurate_as_stock(ours, theirs, exact)


@pytest.mark.parametrize("magnitude", [1e-1, 1e-3, 1e-5, 1e-7])
def test_a_divergence_near_zero_is_not_lost_in_cancellation(magnitude: float) -> None:
    mean, logvar, noise = (magnitude * t for t in inputs((4, 300)))
    kl = F.reparameterize_kl(mean, logvar.requires_grad_(), noise)[1]
    exact_logvar = logvar.detach().double().requires_grad_()
    exact = reference.reparameterize_kl(mean.double(), exact_logvar, noise.double())[1]
    torch.testing.assert_close(kl.double(), exact, rtol=1e-6, atol=0.0)
    (grad,), (exact_grad,) = (torch.autograd.grad(k.sum(), x) for k, x in ((kl, logvar), (exact, exact_logvar)))
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-6, atol=0.0)


def test_every_log_variance_gives_what_float64_gives() -> None:
    logvar = torch.linspace(-170, 88, 4001)
    codes, kl = F.reparameterize_kl(torch.zeros(4001), logvar, torch.ones(4001))
    exact_codes, exact_kl = reference.reparameterize_kl(
        torch.zeros(4001).double(), logvar.double(), torch.ones(4001).double()
    )
    torch.testing.assert_close(codes.double(), exact_codes, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(kl.double(), exact_kl, rtol=1e-6, atol=0.0)


def test_infinities_and_nan_are_not_hidden() -> None:
    inf, nan = torch.inf, torch.nan
    logvar = torch.tensor([-inf, inf, nan, 100.0, 0.0])
    given = torch.zeros(5), logvar, torch.ones(5)
    codes, kl = F.reparameterize_kl(*given)
    for ours, theirs in zip((codes, kl), stock(*given), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert codes[3].isfinite()  # e^50 is a float32, e^100 is not
    assert kl[3] == inf


def test_codes_have_the_mean_and_the_variance_asked_for() -> None:
    torch.manual_seed(3)
    codes, _ = F.reparameterize_kl(torch.full((8, 5000), 2.0), torch.full((8, 5000), -1.0))
    assert codes.mean().item() == pytest.approx(2.0, abs=0.02)
    assert codes.var().log().item() == pytest.approx(-1.0, abs=0.05)


def test_noise_is_that_of_pytorchs_random_state() -> None:
    mean, logvar, _ = inputs((6, 40))
    torch.manual_seed(5)
    codes, kl = F.reparameterize_kl(mean, logvar)
    torch.manual_seed(5)
    noise = torch.randn_like(mean)
    expected_codes, expected_kl = F.reparameterize_kl(mean, logvar, noise)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(kl, expected_kl)


def test_noise_is_used_in_the_dtype_of_the_mean() -> None:
    mean, logvar, _ = inputs((4, 30), torch.bfloat16)
    noise = torch.randn(4, 30)
    assert torch.equal(
        F.reparameterize_kl(mean, logvar, noise)[0], F.reparameterize_kl(mean, logvar, noise.bfloat16())[0]
    )


def test_divergence_agrees_with_torch_distributions() -> None:
    mean, logvar, noise = inputs((5, 33))
    normal, standard = torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    expected = torch.distributions.kl_divergence(normal, standard).sum(1)
    torch.testing.assert_close(F.reparameterize_kl(mean, logvar, noise)[1], expected)


def test_same_bits_every_time() -> None:
    given = [t.requires_grad_() for t in inputs((3, 9001))]
    first = None
    for _ in range(3):
        codes, kl = F.reparameterize_kl(*given)
        now = (codes.detach(), kl.detach(), *torch.autograd.grad(codes.sum() + kl.sum(), given))
        first = first or now
        assert all(map(torch.equal, first, now))


@pytest.mark.cpu_only
def test_number_of_threads_changes_no_bit() -> None:
    given, before, results = inputs((3, 30000)), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(F.reparameterize_kl(*given))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, results[0], result))


# ---- layouts and sizes -----------------------------------------------------------------------------------------------


def non_contiguous(dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape).to(dtype)

    feature_maps = draw(4, 6, 5, 7)
    channels_last = feature_maps.contiguous(memory_format=torch.channels_last)
    return {
        "halves of one layer": (*draw(6, 24).chunk(2, 1), draw(6, 12)),
        "halves of a feature map": (*feature_maps.chunk(2, 1), draw(4, 3, 5, 7)),
        "halves, channels last": (*channels_last.chunk(2, 1), draw(4, 3, 5, 7)),
        "three layouts": (channels_last, draw(4, 6, 5, 7), draw(4, 5, 6, 7).transpose(1, 2)),
        "strided": (draw(9, 40)[::2, ::3], draw(5, 14), draw(14, 5).T),
        "one for all samples": (draw(17).expand(4, 17), draw(4, 1).expand(4, 17), draw(4, 17)),
        "odd pitches": (draw(4, 9)[:, :8], draw(4, 11)[:, 2:10], draw(33)[1:].view(4, 8)),
    }


@pytest.mark.parametrize("name", non_contiguous(torch.float32))
@each_dtype
def test_any_strides(dtype: torch.dtype, name: str) -> None:
    strided = [t.detach().requires_grad_() for t in non_contiguous(dtype)[name]]
    dense = [t.detach().contiguous().requires_grad_() for t in strided]
    results = []
    for tensors in (strided, dense):
        codes, kl = F.reparameterize_kl(*tensors)
        gradients = torch.autograd.grad((codes.square().sum(), kl.sum()), tensors)
        results.append((codes.detach(), kl.detach(), *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@each_layout
@each_dtype
def test_results_have_the_layout_of_the_mean(dtype: torch.dtype, layout: torch.memory_format) -> None:
    tensors = [t.requires_grad_() for t in inputs((2, 6, 5, 4), dtype, layout)]
    codes, kl = F.reparameterize_kl(*tensors)
    assert codes.is_contiguous(memory_format=layout)
    for grad in torch.autograd.grad(codes.sum() + kl.sum(), tensors):
        assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,), (2, 0, 3, 3), (0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_nothing_has_no_codes_and_no_divergence(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensors = [t.requires_grad_() for t in inputs(shape, dtype)]
    codes, kl = F.reparameterize_kl(*tensors)
    assert codes.shape == shape
    assert torch.equal(kl, torch.zeros(shape[0], dtype=kl.dtype))
    gradients = torch.autograd.grad(codes.sum() + kl.sum(), tensors, create_graph=True)
    assert [g.shape for g in gradients] == [torch.Size(shape)] * 3
    assert torch.autograd.grad(sum(g.sum() for g in gradients), tensors[0])[0].shape == shape


@pytest.mark.slow
@pytest.mark.cpu_only
def test_more_than_2_to_the_31_elements() -> None:
    N, D = 65537, 32768
    shared = torch.zeros(D, dtype=torch.bfloat16).expand(N, D)  # what is read takes no memory
    noise = torch.arange(D).remainder(7).bfloat16().expand(N, D)
    codes, kl = _C.reparameterize_kl(shared, shared, noise)
    assert codes.numel() > 2**31
    assert torch.equal(codes[-1], noise[0])
    assert not kl.any()


# ---- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.cpu_only  # float64 runs no kernel
@pytest.mark.parametrize("shape", [(3, 4), (2,), (2, 2, 1, 3)], ids=str)
def test_gradients_and_gradients_of_gradients(shape: tuple[int, ...]) -> None:
    tensors = [t.requires_grad_() for t in inputs(shape, torch.float64)]
    mean, logvar, noise = tensors
    for function, given in [
        (F.reparameterize_kl, tensors),
        (lambda m, x: F.reparameterize_kl(m, x, noise.detach()), [mean, logvar]),
        (lambda m, x: F.reparameterize_kl(m, x, noise)[1], [mean, logvar]),
        (lambda m, x: F.reparameterize_kl(m, x, noise.detach())[0], [mean, logvar]),
        (lambda x: F.reparameterize_kl(mean.detach(), x, noise.detach()), [logvar]),
        (lambda z: F.reparameterize_kl(mean.detach(), logvar.detach(), z)[0], [noise]),
    ]:
        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


@each_dtype
def test_second_derivatives_match_float64(dtype: torch.dtype) -> None:
    given, penalties = inputs((3, 50), dtype), []
    for function, precision in ((F.reparameterize_kl, dtype), (reference.reparameterize_kl, torch.float64)):
        tensors = [t.to(precision).detach().clone().requires_grad_() for t in given]
        codes, kl = function(*tensors)
        gradients = torch.autograd.grad(codes.square().sum() + kl.sum(), tensors, create_graph=True)
        penalties.append(torch.autograd.grad(sum(g.double().square().sum() for g in gradients), tensors))
    for actual, exact in zip(*penalties, strict=True):
        assert error(actual, exact) < 8 * torch.finfo(dtype).eps


@each_dtype
def test_a_result_that_is_not_used_adds_nothing(dtype: torch.dtype) -> None:
    mean, logvar, noise = inputs((4, 40), dtype)
    grad_codes, grad_kl = torch.randn(4, 40).to(dtype), torch.randn(4)
    zeros, all_three = torch.zeros_like(grad_codes), (True, True, True)
    of_codes = _C.reparameterize_kl_backward(grad_codes, None, mean, logvar, noise, all_three)
    assert all(
        map(
            torch.equal,
            of_codes,
            _C.reparameterize_kl_backward(grad_codes, 0 * grad_kl, mean, logvar, noise, all_three),
        )
    )
    of_kl = _C.reparameterize_kl_backward(None, grad_kl, mean, logvar, noise, all_three)
    assert all(map(torch.equal, of_kl, _C.reparameterize_kl_backward(zeros, grad_kl, mean, logvar, noise, all_three)))
    infinite = torch.full_like(logvar, torch.inf)  # which kl alone turns into NaN where it has a gradient of zero
    assert _C.reparameterize_kl_backward(grad_codes, None, mean, -infinite, noise, all_three)[1].isfinite().all()
    assert _C.reparameterize_kl_backward(None, grad_kl, mean, -infinite, noise, all_three)[1].isfinite().all()


def test_only_wanted_gradients_are_computed() -> None:
    mean, logvar, noise = inputs((4, 40))
    grads = torch.randn(4, 40), torch.randn(4)
    everything = _C.reparameterize_kl_backward(*grads, mean, logvar, noise, (True, True, True))
    for wanted in ((True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        some = _C.reparameterize_kl_backward(*grads, mean, logvar, noise, wanted)
        for want, gradient, expected in zip(wanted, some, everything, strict=True):
            assert torch.equal(gradient, expected) if want else gradient.numel() == 0


def test_the_backward_keeps_nothing_but_the_inputs() -> None:
    kept = []
    tensors = [t.requires_grad_() for t in inputs((4, 40))]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        F.reparameterize_kl(*tensors)
    assert sorted(kept) == sorted(t.data_ptr() for t in tensors)


# ---- PyTorch's machinery ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_opcheck(dtype: torch.dtype, layout: torch.memory_format) -> None:
    ops = torch.ops.artkernels
    mean, logvar, noise = inputs((2, 4, 3, 5), dtype, layout)
    grad_codes, grad_kl = torch.randn(2, 4, 3, 5).to(dtype), torch.randn(2, dtype=torch.float64)
    grad_kl = grad_kl.to(torch.promote_types(dtype, torch.float32))
    leaves = mean.requires_grad_(), logvar.requires_grad_(), noise
    for op, args in [
        (ops.reparameterize_kl, leaves),
        (ops.reparameterize_kl_backward, (grad_codes, grad_kl, *leaves, [True, True, True])),
        (ops.reparameterize_kl_backward, (None, grad_kl, *leaves, [True, True, False])),
        (ops.reparameterize_kl_backward, (grad_codes, None, *leaves, [False, True, False])),
    ]:
        opcheck(op.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_makes_one_graph_with_the_same_numbers(dynamic: bool) -> None:
    torch._dynamo.reset()

    def loss(moments: Tensor, noise: Tensor) -> Tensor:
        codes, kl = F.reparameterize_kl(*(moments * 2).chunk(2, 1), noise)
        return codes.square().sum() + kl.mean()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for N in (3, 6):
        moments, noise = torch.randn(N, 20, requires_grad=True), torch.randn(N, 10)
        torch.testing.assert_close(compiled(moments, noise), loss(moments, noise))
        actual, expected = (torch.autograd.grad(f(moments, noise), moments)[0] for f in (compiled, loss))
        torch.testing.assert_close(actual, expected)


@pytest.mark.cpu_only
def test_compile_with_inductor_draws_its_own_noise() -> None:
    torch._dynamo.reset()
    mean, logvar, _ = inputs((4, 30))
    codes, kl = torch.compile(lambda m, x: F.reparameterize_kl(m.sin(), x), fullgraph=True)(mean, logvar)
    torch.testing.assert_close(kl, F.reparameterize_kl(mean.sin(), logvar)[1])
    assert codes.isfinite().all()


@pytest.mark.cpu_only
def test_export() -> None:
    class Bottleneck(torch.nn.Module):
        def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return F.reparameterize_kl(mean, logvar, noise)

    given = inputs((4, 30))
    exported = torch.export.export(Bottleneck(), given).module()
    assert all(map(torch.equal, exported(*given), F.reparameterize_kl(*given)))


def test_autocast_leaves_the_divergence_in_float32() -> None:
    layer = torch.nn.Linear(8, 20)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            mean, logvar = layer(torch.randn(4, 8)).chunk(2, 1)
            codes, kl = F.reparameterize_kl(mean, logvar)
        assert (mean.dtype, codes.dtype, kl.dtype) == (dtype, dtype, torch.float32)
        expected = reference.reparameterize_kl(mean.float(), logvar.float(), codes.float())[1]
        torch.testing.assert_close(kl, expected)
        (grad,) = torch.autograd.grad(kl.mean() + codes.float().square().mean(), layer.weight)
        assert grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
def test_forward_mode_is_refused() -> None:
    mean, logvar, noise = inputs((2, 3))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.jvp(lambda m: F.reparameterize_kl(m, logvar, noise)[0], (mean,), (mean,))


def test_inference_mode() -> None:
    given = inputs((4, 20))
    with torch.inference_mode():
        results = F.reparameterize_kl(*given)
    assert all(map(torch.equal, results, F.reparameterize_kl(*given)))


def test_raw_function_matches_the_dispatcher() -> None:
    given = inputs((4, 20))
    assert all(map(torch.equal, _C.reparameterize_kl(*given), F.reparameterize_kl(*given)))


# ---- bad input -------------------------------------------------------------------------------------------------------

x = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((x.int(), x), "reparameterize_kl: mean must be float32, float64, float16 or bfloat16, got int32"),
        ((x[0, 0], x), "reparameterize_kl: mean must be [N, ...], got 0 dimensions"),
        ((x, x[:, 1:]), "reparameterize_kl: logvar must have the mean's shape [3, 4], got [3, 3]"),
        ((x, x.half()), "reparameterize_kl: logvar must have the mean's dtype Float, got Half"),
        ((x, x, x[:1]), "reparameterize_kl: noise must have the mean's shape [3, 4], got [1, 4]"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        F.reparameterize_kl(*arguments)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bad_gradient_gets_one_sentence() -> None:
    with pytest.raises(RuntimeError, match=re.escape("grad_kl must be [3], got [4]")):
        _C.reparameterize_kl_backward(None, torch.zeros(4), x, x, x, (True, True, True))
