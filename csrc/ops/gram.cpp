#include "ops/gram.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tril.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "cpu/gram.h"
#include "include/checks.h"
#include "include/device.h"
#include "include/layout.h"
#if defined(ARTKERNELS_CUDA)
#include "cuda/gram.h"
#endif

namespace artkernels {
namespace {

using at::Tensor;

double scale_of(const char* op, const Tensor& input, Normalize normalize) {
  const double N = input.size(0), C = input.size(1), P = double(input.size(2)) * input.size(3);
  if (!normalize) return 1;
  if (*normalize == "hw") return 1 / P;
  if (*normalize == "chw") return 1 / (C * P);
  if (*normalize == "bchw") return 1 / (N * C * P);
  TORCH_CHECK(false, op, ": normalize must be \"chw\", \"hw\", \"bchw\" or None, got \"", *normalize, "\"");
}

// Square matrices for the Gram matrices of `input`, in the dtype that they are computed in.
Tensor check_matrices(const char* op, const char* name, const Tensor& matrices, const Tensor& input,
                      bool may_broadcast) {
  check_same_device(op, name, matrices, input);
  const int64_t N = input.size(0), C = input.size(1);
  const auto shape = matrices.sizes();
  const bool full = shape == at::IntArrayRef({N, C, C});
  const bool shared = may_broadcast && (shape == at::IntArrayRef({C, C}) || shape == at::IntArrayRef({1, C, C}));
  TORCH_CHECK(full || shared, op, ": ", name, " must be [", N, ", ", C, ", ", C, "]",
              may_broadcast ? " or one [C, C] for all images" : "", ", got ", shape);
  TORCH_CHECK(matrices.is_floating_point(), op, ": ", name, " must be floating point, got ", matrices.scalar_type());
  return matrices.to(input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

// Threads for `flops` of work: one where waking the others would cost more than they bring.
int threads_for(double flops) { return flops < 2e6 || at::in_parallel_region() ? 1 : at::get_num_threads(); }

double flops(const FeatureMap& f) { return double(f.N) * f.C * f.C * f.P; }

#if defined(ARTKERNELS_CUDA)
// What torch.backends.cuda.matmul says of float32 products, by its old setting or its new one.
bool allow_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}
#endif

void run(GramParams params, const Tensor& input, const Tensor& target, const Tensor& gram, const Tensor& residual,
         const Tensor& loss) {
  if (runs_on_cuda(input)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(input);
    params.allow_tf32 = allow_tf32();
    const Tensor workspace = at::empty({cuda::gram_workspace_size(params)}, input.options().dtype(at::kFloat));
    params.input = call.input(input);
    params.target = static_cast<const float*>(call.input(target));
    params.gram = static_cast<float*>(call.output(gram));
    params.residual = static_cast<float*>(call.output(residual));
    params.loss = static_cast<float*>(call.output(loss));
    params.workspace = static_cast<float*>(call.output(workspace));
    cuda::launch_gram(params, call.stream());
#endif
    return;
  }
  params.input = input.const_data_ptr();
  params.target = target.defined() ? target.const_data_ptr<float>() : nullptr;
  params.gram = gram.defined() ? gram.mutable_data_ptr<float>() : nullptr;
  params.residual = residual.defined() && residual.numel() ? residual.mutable_data_ptr<float>() : nullptr;
  params.loss = loss.defined() ? loss.mutable_data_ptr<float>() : nullptr;
  cpu::gram(params, threads_for(flops(params.features)));
}

// factor * scale * (D + D^T) X; factor is a tensor, so that a loss's gradient is never read by the host.
Tensor run_backward(const Tensor& grad_output, const Tensor& factor, const Tensor& input, double scale) {
  Tensor grad_input = at::empty_like(input);
  if (input.numel() == 0) return grad_input;
  GramBackwardParams params{};
  params.features = feature_map(input);
  params.scale = float(scale);
  if (runs_on_cuda(input)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(input);
    params.allow_tf32 = allow_tf32();
    const Tensor workspace = at::empty({cuda::gram_backward_workspace_size(params)}, input.options().dtype(at::kFloat));
    params.input = call.input(input);
    params.grad_output = static_cast<const float*>(call.input(grad_output));
    params.factor = static_cast<const float*>(call.input(factor));
    params.grad_input = call.output(grad_input);
    params.workspace = static_cast<float*>(call.output(workspace));
    cuda::launch_gram_backward(params, call.stream());
#endif
    return grad_input;
  }
  params.input = input.const_data_ptr();
  params.grad_output = grad_output.const_data_ptr<float>();
  params.factor = factor.defined() ? factor.const_data_ptr<float>() : nullptr;
  params.grad_input = grad_input.mutable_data_ptr();
  cpu::gram_backward(params, threads_for(2 * flops(params.features)));
  return grad_input;
}

// ---- float64: the plain formulas, for gradient checks
// ------------------------------------------------------------------

Tensor planes(const Tensor& input) { return input.reshape({input.size(0), input.size(1), -1}); }

Tensor gram_matrix_double(const Tensor& input, double scale) {
  const Tensor x = planes(input), lower = at::bmm(x, x.mT()).mul_(scale);
  return at::tril(lower) + at::tril(lower, -1).mT();
}

Tensor gram_matrix_backward_double(const Tensor& grad_output, const Tensor& input, double scale) {
  Tensor grad_input = at::empty_like(input);
  if (input.numel() == 0) return grad_input;
  return grad_input.copy_(at::bmm(grad_output + grad_output.mT(), planes(input)).mul_(scale).view(input.sizes()));
}

}  // namespace

Tensor gram_matrix(const Tensor& input, Normalize normalize) {
  constexpr const char* op = "gram_matrix";
  check_feature_map(op, input);
  const double scale = scale_of(op, input, normalize);
  const Tensor x = dense(input);
  if (x.scalar_type() == at::kDouble) return gram_matrix_double(x, scale);
  const int64_t N = x.size(0), C = x.size(1);
  const Tensor gram = at::empty({N, C, C}, x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous));
  if (x.numel() == 0) return gram.fill_(normalize ? std::numeric_limits<double>::quiet_NaN() : 0);
  GramParams params{};
  params.features = feature_map(x);
  params.scale = float(scale);
  run(params, x, {}, gram, {}, {});
  return gram;
}

Tensor gram_matrix_backward(const Tensor& grad_output, const Tensor& input, Normalize normalize) {
  constexpr const char* op = "gram_matrix_backward";
  check_feature_map(op, input);
  const double scale = scale_of(op, input, normalize);
  const Tensor x = dense(input), D = check_matrices(op, "grad_output", grad_output, input, false);
  if (x.scalar_type() == at::kDouble) return gram_matrix_backward_double(D, x, scale);
  return run_backward(D, {}, x, scale);
}

std::tuple<Tensor, Tensor> gram_mse_loss(const Tensor& input, const Tensor& target, Normalize normalize,
                                         bool needs_residual) {
  constexpr const char* op = "gram_mse_loss";
  check_feature_map(op, input);
  const double scale = scale_of(op, input, normalize);
  const Tensor x = dense(input), T = check_matrices(op, "target", target, input, true);
  const int64_t N = x.size(0), C = x.size(1);
  if (x.scalar_type() == at::kDouble || x.numel() == 0) {
    const Tensor difference = gram_matrix(x, normalize) - T;
    const Tensor residual = needs_residual ? (difference + difference.mT()) / 2 : at::empty({0}, T.options());
    return {difference.square().mean(), residual};
  }
  const Tensor loss = at::empty({}, T.options());
  const Tensor residual = needs_residual ? at::empty({N, C, C}, T.options()) : at::empty({0}, T.options());
  GramParams params{};
  params.features = feature_map(x);
  params.scale = float(scale);
  params.target_stride = T.numel() == C * C ? 0 : C * C;
  run(params, x, T, {}, residual, loss);
  return {loss, residual};
}

Tensor gram_mse_loss_backward(const Tensor& grad_loss, const Tensor& residual, const Tensor& input,
                              Normalize normalize) {
  constexpr const char* op = "gram_mse_loss_backward";
  check_feature_map(op, input);
  check_same_device(op, "grad_loss", grad_loss, input);
  TORCH_CHECK(grad_loss.numel() == 1, op, ": grad_loss must have one element, got ", grad_loss.sizes());
  // d loss / d G = 2 (G - T) / numel; its symmetric part, doubled by D + D^T, meets X.
  const double scale = scale_of(op, input, normalize) * 2 / residual.numel();
  const Tensor x = dense(input), R = check_matrices(op, "residual", residual, input, false);
  if (x.scalar_type() == at::kDouble) return gram_matrix_backward_double(R, x, scale).mul_(grad_loss);
  return run_backward(R, grad_loss.to(at::kFloat), x, scale);
}

}  // namespace artkernels
