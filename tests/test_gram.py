"""Properties of F.gram_matrix and F.gram_mse_loss; run on the CPU kernels and, emulated, on the CUDA kernels."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from artkernels import _C, build_info, reference
from artkernels import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from opcheck import opcheck

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
NORMALIZE = ["chw", "hw", "bchw", None]
# [N, C, H, W]: one of everything, the channel tiles' edges, pixels that are no multiple of anything, several images.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 16, 8, 8),
    (2, 31, 9, 11),
    (3, 33, 3, 3),
    (1, 63, 12, 12),
    (2, 64, 16, 16),
    (1, 65, 1, 129),
    (1, 127, 5, 5),
    (1, 129, 7, 19),
    (4, 48, 10, 13),
]

ids = {"ids": str}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, **ids)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=["NCHW", "NHWC"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def features(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: torch.memory_format = LAYOUTS[0]
) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=layout)


def style_target(C: int, N: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Not symmetric, so that both of its halves are seen to count."""
    return torch.randn((C, C) if N is None else (N, C, C), dtype=dtype)


def error(actual: Tensor, exact: Tensor) -> float:
    """Largest error as a fraction of the largest value."""
    return ((actual.double() - exact).abs().max() / exact.abs().max()).item()


# One rounding of a float32 result. The CUDA kernels make a float32 product of three TF32 ones, which keeps 22 bits of
# it: that shows only where a sum has hardly any terms.
EPS = 2**-22 if build_info()["cuda"] == "emulated" else 2**-24


def assert_as_accurate_as_stock(actual: Tensor, stock: Tensor, exact: Tensor, eps: float) -> None:
    """At most twice stock PyTorch's own error, or two roundings where stock happens to be nearly exact."""
    assert error(actual, exact) <= max(2 * error(stock, exact), 2 * eps)


# ---- values ----------------------------------------------------------------------------------------------------------


@each_shape
@each_layout
@each_dtype
def test_gram_matrix_is_as_accurate_as_stock(
    dtype: torch.dtype, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    x = features(shape, dtype, layout)
    exact = reference.gram_matrix(x.double())
    assert_as_accurate_as_stock(F.gram_matrix(x), reference.gram_matrix(x), exact, EPS)


@each_shape
@each_layout
@each_dtype
def test_loss_and_gradient_are_as_accurate_as_stock(
    dtype: torch.dtype, layout: torch.memory_format, shape: tuple[int, ...]
) -> None:
    N, C, _, _ = shape
    draws = [(features(shape, dtype, layout), style_target(C, N)) for _ in range(4)]

    def losses_and_gradients(loss_function, precision: torch.dtype | None) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for x, target in draws:
            x = x.clone().to(precision or dtype).requires_grad_()
            loss = loss_function(x, target.to(precision or torch.float32))
            losses.append(loss.detach())
            gradients += torch.autograd.grad(loss * 2.0**10, x)  # a loss scale, for float16
        return torch.stack(losses), torch.stack(gradients)

    losses, gradients = losses_and_gradients(F.gram_mse_loss, None)
    stock_losses, stock_gradients = losses_and_gradients(reference.gram_mse_loss, None)
    exact_losses, exact_gradients = losses_and_gradients(reference.gram_mse_loss, torch.float64)
    # A rounding of G, after the target is subtracted from it.
    gram = max(reference.gram_matrix(x.double()).abs().max().item() for x, _ in draws)
    eps = EPS * (1 + 2 * gram / exact_losses.max().sqrt().item())
    assert_as_accurate_as_stock(losses, stock_losses, exact_losses, eps)
    assert_as_accurate_as_stock(gradients, stock_gradients, exact_gradients, max(eps, torch.finfo(dtype).eps / 2))


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_normalize_divides_as_documented(normalize: str | None) -> None:
    x, target = features((2, 20, 6, 7)), style_target(20)
    exact = reference.gram_matrix(x.double(), normalize=normalize)
    torch.testing.assert_close(
        F.gram_matrix(x, normalize=normalize).double(), exact, rtol=1e-5, atol=1e-6 * exact.max()
    )
    exact_loss = reference.gram_mse_loss(x.double(), target.double(), normalize=normalize)
    torch.testing.assert_close(
        F.gram_mse_loss(x, target, normalize=normalize).double(), exact_loss, rtol=1e-5, atol=0.0
    )


@each_layout
@each_dtype
def test_gram_matrix_is_symmetric_to_the_bit(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for C in (5, 32, 70):
        gram = F.gram_matrix(features((2, C, 13, 11), dtype, layout))
        assert torch.equal(gram, gram.mT)


@each_layout
def test_float16_features_of_1e3_at_512x512_stay_finite(layout: torch.memory_format) -> None:
    x = (1e3 + features((1, 2, 512, 512))).half().contiguous(memory_format=layout).requires_grad_()
    for normalize in ("chw", None):
        exact = reference.gram_matrix(x.detach().double(), normalize=normalize)
        torch.testing.assert_close(F.gram_matrix(x, normalize=normalize).double(), exact, rtol=1e-5, atol=0.0)
    loss = F.gram_mse_loss(x, torch.zeros(2, 2))
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("magnitude", [1e-6, 1e6])
@each_dtype
def test_gradient_is_right_for_gradients_of_any_magnitude(dtype: torch.dtype, magnitude: float) -> None:
    x, grad_output = features((2, 40, 6, 6), dtype), style_target(40, 2) * magnitude
    # A scale that brings the result back to a range that float16 can hold.
    factor = torch.tensor(2.0 ** -round(torch.log2(torch.tensor(magnitude)).item()))
    actual = _C.gram_mse_loss_backward(factor, (grad_output + grad_output.mT) / 2, x, None)
    exact = _C.gram_mse_loss_backward(factor.double(), (grad_output + grad_output.mT).double() / 2, x.double(), None)
    assert error(actual, exact) <= max(torch.finfo(dtype).eps, 1e-6)


@pytest.mark.parametrize("shape", [(20, 20), (1, 20, 20), (3, 20, 20)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], **ids)
def test_target_of_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, target = features((3, 20, 5, 5)), torch.randn(shape).to(dtype)
    exact = reference.gram_mse_loss(x.double(), target.double())
    torch.testing.assert_close(F.gram_mse_loss(x, target).double(), exact, rtol=1e-5, atol=0.0)


def test_loss_alone_and_loss_with_gradient_agree_to_the_bit() -> None:
    x, target = features((2, 45, 9, 9)), style_target(45)
    assert torch.equal(F.gram_mse_loss(x, target), F.gram_mse_loss(x.requires_grad_(), target).detach())


def test_same_bits_every_time() -> None:
    x, target = features((3, 70, 17, 19)).requires_grad_(), style_target(70)
    first = None
    for _ in range(3):
        loss = F.gram_mse_loss(x, target)
        now = (F.gram_matrix(x).detach(), loss.detach(), torch.autograd.grad(loss, x)[0])
        first = first or now
        assert all(map(torch.equal, first, now))


def test_gram_of_an_image_is_the_sum_over_its_tiles() -> None:
    image = features((1, 24, 20, 30))
    total = torch.zeros(1, 24, 24)
    for tile in image.split([7, 13], dim=2):
        for part in tile.split(11, dim=3):
            assert F.gram_matrix(part, normalize=None, out=total, accumulate=True) is total
    torch.testing.assert_close(total / image[0].numel(), F.gram_matrix(image))
    assert torch.equal(total, total.mT)


def test_out_receives_the_result() -> None:
    x, out = features((2, 9, 4, 4)), torch.full((2, 9, 9), torch.nan)
    F.gram_matrix(x, out=out)
    assert torch.equal(out, F.gram_matrix(x))


# ---- layouts and sizes -----------------------------------------------------------------------------------------------


def non_contiguous() -> dict[str, Tensor]:
    x = features((2, 12, 16, 18))
    return {
        "sliced": x[:, 1:-1, 2:, 3:],
        "strided": x[:, ::2, ::3, ::2],
        "transposed": x.transpose(2, 3),
        "channels last, sliced": x.contiguous(memory_format=torch.channels_last)[:, 2:9, 1:],
        "expanded": x[:, :, :1, :1].expand(2, 12, 5, 6),
        "unaligned": torch.randn(1 + 2 * 12 * 16)[1:].view(2, 12, 4, 4),
    }


@pytest.mark.parametrize("name", non_contiguous())
@each_dtype
def test_any_strides(dtype: torch.dtype, name: str) -> None:
    x = non_contiguous()[name].to(dtype) if name == "expanded" else non_contiguous()[name]
    if x.dtype != dtype:  # keeps the strides
        x = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
    target = style_target(x.shape[1])
    x = x.detach().requires_grad_()
    exact = reference.gram_mse_loss(x.detach().double(), target.double())
    loss = F.gram_mse_loss(x, target)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0.0)
    (grad,) = torch.autograd.grad(loss, x)
    (dense_grad,) = torch.autograd.grad(F.gram_mse_loss(y := x.detach().contiguous().requires_grad_(), target), y)
    torch.testing.assert_close(grad, dense_grad)


@each_dtype
def test_gradient_has_the_layout_of_the_input(dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x = features((2, 6, 5, 4), dtype, layout).requires_grad_()
        F.gram_mse_loss(x, style_target(6)).backward()
        assert x.grad is not None
        assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3), (0, 0, 0, 0)], ids=str)
@each_dtype
def test_empty_input_gives_what_stock_gives(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, target = features(shape, dtype).requires_grad_(), style_target(shape[1], shape[0]).requires_grad_()
    torch.testing.assert_close(F.gram_matrix(x, normalize=None), reference.gram_matrix(x, normalize=None))
    loss, stock_loss = (f(x, target, normalize=None) for f in (F.gram_mse_loss, reference.gram_mse_loss))
    torch.testing.assert_close(loss, stock_loss, equal_nan=True)
    gradients = torch.autograd.grad(loss, (x, target), create_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(stock_loss, (x, target)))
    (again,) = torch.autograd.grad(gradients[0].sum(), x)
    assert again.shape == x.shape


def test_images_without_pixels_divide_zero_by_zero() -> None:
    assert F.gram_matrix(features((2, 4, 0, 3)), normalize="chw").isnan().all()


@pytest.mark.slow
@pytest.mark.cpu_only
def test_more_than_2_to_the_31_elements() -> None:
    size = 32776
    x = torch.zeros((1, 2, size, size), dtype=torch.bfloat16)
    assert x.numel() > 2**31
    x[0, 0, -1, -3:] = 2.0
    x[0, 1, -1, -1] = 3.0
    torch.testing.assert_close(F.gram_matrix(x, normalize=None), torch.tensor([[[12.0, 6.0], [6.0, 9.0]]]))
    grad = _C.gram_matrix_backward(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), x, None)
    assert torch.equal(grad[0, :, -1, -3:], 2 * x[0, :, -1, -3:])
    assert grad.count_nonzero() == 4


# ---- derivatives, float64 --------------------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_gradients_and_gradients_of_gradients(normalize: str | None, layout: torch.memory_format) -> None:
    x = features((2, 3, 2, 2), torch.float64, layout).requires_grad_()
    target = style_target(3, 2, torch.float64).requires_grad_()
    shared = style_target(3, None, torch.float64).requires_grad_()
    for function, inputs in [
        (lambda x: F.gram_matrix(x, normalize=normalize), (x,)),
        (lambda x, t: F.gram_mse_loss(x, t, normalize=normalize), (x, target)),
        (lambda x, t: F.gram_mse_loss(x, t, normalize=normalize), (x, shared)),
        (lambda t: F.gram_mse_loss(x.detach(), t, normalize=normalize), (target,)),
    ]:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@each_layout
def test_gradient_penalty_matches_stock(layout: torch.memory_format) -> None:
    target = style_target(24)
    penalties = []
    for loss_function, dtype in [(F.gram_mse_loss, torch.float32), (reference.gram_mse_loss, torch.float64)]:
        torch.manual_seed(1)
        x = features((2, 24, 6, 6), torch.float32, layout).to(dtype).requires_grad_()
        (grad,) = torch.autograd.grad(loss_function(x, target.to(dtype)), x, create_graph=True)
        penalties.append(torch.autograd.grad(grad.square().sum() * 1e3, x)[0].double())
    torch.testing.assert_close(penalties[0], penalties[1], rtol=1e-4, atol=1e-5 * penalties[1].abs().max().item())


# ---- PyTorch's machinery ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@each_layout
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], **ids)
def test_opcheck(dtype: torch.dtype, layout: torch.memory_format) -> None:
    ops = torch.ops.artkernels
    x, target = features((2, 6, 4, 5), dtype, layout).requires_grad_(), style_target(6, 2)
    matrix = torch.float64 if dtype == torch.float64 else torch.float32
    for op, args in [
        (ops.gram_matrix, (x, "chw")),
        (ops.gram_matrix_backward, (target.to(matrix), x, None)),
        (ops.gram_mse_loss, (x, target, "bchw", True)),
        (ops.gram_mse_loss, (x.detach(), target, "hw", False)),
        (ops.gram_mse_loss_backward, (torch.tensor(2.0, dtype=matrix), target.to(matrix), x, "chw")),
    ]:
        opcheck(op.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
@each_layout
def test_compile_makes_one_graph_with_the_same_numbers(layout: torch.memory_format, dynamic: bool) -> None:
    torch._dynamo.reset()
    target = style_target(18)

    def loss_function(x: Tensor) -> Tensor:
        return F.gram_mse_loss(x * 2, target) + F.gram_matrix(x).square().mean()

    compiled = torch.compile(loss_function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (6, 9):
        x = features((2, 18, size, 7), layout=layout).requires_grad_()
        loss, expected = compiled(x), loss_function(x)
        torch.testing.assert_close(loss, expected)
        (grad,), (expected_grad,) = torch.autograd.grad(loss, x), torch.autograd.grad(expected, x)
        torch.testing.assert_close(grad, expected_grad)
        assert grad.stride() == expected_grad.stride()


@pytest.mark.cpu_only
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    x, target = features((1, 18, 6, 7)).requires_grad_(), style_target(18)
    compiled = torch.compile(lambda x: F.gram_mse_loss(x.relu(), target), fullgraph=True)
    loss, expected = compiled(x), F.gram_mse_loss(x.relu(), target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


def test_export() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return F.gram_mse_loss(x, target)

    x, target = features((1, 8, 5, 5)), style_target(8)
    exported = torch.export.export(Loss(), (x, target)).module()
    assert torch.equal(exported(x, target), F.gram_mse_loss(x, target))


def test_autocast_leaves_the_gram_in_float32() -> None:
    convolution = torch.nn.Conv2d(3, 8, 3)
    x, target = torch.rand(1, 3, 12, 12), style_target(8)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            hidden = convolution(x)
            assert hidden.dtype == dtype
            assert F.gram_matrix(hidden).dtype == torch.float32
            torch.testing.assert_close(F.gram_matrix(hidden), F.gram_matrix(hidden.float()))
            loss = F.gram_mse_loss(hidden, target.to(dtype))
        assert loss.dtype == torch.float32
        (grad,) = torch.autograd.grad(loss, convolution.weight)
        assert grad.isfinite().all()


def test_a_graph_traced_without_gradients_can_be_trained() -> None:
    class Loss(torch.nn.Module):
        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return F.gram_mse_loss(x, target)

    x, target = features((1, 8, 5, 5)), style_target(8)
    exported = torch.export.export(Loss(), (x, target)).module()
    (grad,) = torch.autograd.grad(exported(x.requires_grad_(), target), x)
    assert torch.equal(grad, *torch.autograd.grad(F.gram_mse_loss(x, target), x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
def test_forward_mode_is_refused() -> None:
    x, target = features((1, 4, 3, 3)), style_target(4)
    for function in (F.gram_matrix, lambda x: F.gram_mse_loss(x, target)):
        with pytest.raises(RuntimeError, match="has no forward-mode derivative"):
            torch.func.jvp(function, (x,), (x,))


def test_gradient_of_a_float16_target_does_not_overflow() -> None:
    target = torch.tensor([[4e4, 4e4], [-4e4, 4e4]], dtype=torch.float16, requires_grad=True)
    (grad,) = torch.autograd.grad(F.gram_mse_loss(torch.zeros(1, 2, 3, 3), target), target)
    torch.testing.assert_close(grad.float(), torch.tensor([[2e4, 2e4], [-2e4, 2e4]]), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_of_float32_products_follows_torch(precision: str) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    x = features((1, 20, 16, 16))
    try:
        torch.backends.cuda.matmul.fp32_precision = precision
        gram = F.gram_matrix(x)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    relative = error(gram, reference.gram_matrix(x.double()))
    rounded_to_tf32 = precision == "tf32" and build_info()["cuda"] == "emulated"
    assert (1e-5 < relative < 1e-3) if rounded_to_tf32 else relative < 1e-6


def test_inference_mode() -> None:
    x, target = features((1, 10, 6, 6)), style_target(10)
    with torch.inference_mode():
        loss = F.gram_mse_loss(x, target)
    assert torch.equal(loss, F.gram_mse_loss(x, target))


def test_raw_functions_match_the_dispatcher() -> None:
    x, target = features((2, 7, 5, 5)), style_target(7, 2)
    assert torch.equal(_C.gram_matrix(x, "chw"), F.gram_matrix(x))
    loss, residual = _C.gram_mse_loss(x, target, "chw", True)
    assert torch.equal(loss, F.gram_mse_loss(x, target))
    difference = F.gram_matrix(x) - target
    torch.testing.assert_close(residual, (difference + difference.mT) / 2)
    assert _C.gram_mse_loss(x, target, "chw", False)[1].numel() == 0


@pytest.mark.cpu_only
def test_number_of_threads_does_not_matter() -> None:
    x, target = features((3, 64, 40, 40)).requires_grad_(), style_target(64)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            loss = F.gram_mse_loss(x, target)
            results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-8)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.gram_matrix(torch.randn(3, 4, 4)), "gram_matrix: input must be [N, C, H, W], got 3 dimensions"),
        (
            lambda: F.gram_matrix(torch.randn(1, 2, 3, 4, 5)),
            "gram_matrix: input must be [N, C, H, W], got 5 dimensions",
        ),
        (
            lambda: F.gram_matrix(torch.ones(1, 2, 3, 4, dtype=torch.int32)),
            "gram_matrix: input must be float32, float64",
        ),
        (
            lambda: F.gram_matrix(torch.randn(1, 2, 3, 4), normalize="cwh"),
            'normalize must be "chw", "hw", "bchw" or None',
        ),
        (
            lambda: F.gram_mse_loss(torch.randn(2, 3, 4, 4), torch.randn(3, 4)),
            "gram_mse_loss: target must be [2, 3, 3] or one [C, C] for all images, got [3, 4]",
        ),
        (
            lambda: F.gram_mse_loss(torch.randn(1, 3, 4, 4), torch.ones(3, 3, dtype=torch.int64)),
            "target must be floating",
        ),
        (
            lambda: F.gram_matrix(torch.randn(1, 3, 4, 4), out=torch.zeros(3, 3)),
            "gram_matrix: out must be [1, 3, 3] of torch.float32, got [3, 3] of torch.float32",
        ),
        (
            lambda: F.gram_matrix(torch.randn(1, 3, 4, 4), accumulate=True),
            "accumulate=True needs `out` and normalize=None",
        ),
    ],
)
def test_bad_input_gets_one_sentence(call, message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=re.escape(message)) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
