#include "ops/reparameterize_kl.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/expm1.h>
#include <ATen/ops/zeros_like.h>

#include "cpu/reparameterize_kl.h"
#include "include/checks.h"
#include "include/device.h"
#include "include/layout.h"
#if defined(ARTKERNELS_CUDA)
#include "cuda/reparameterize_kl.h"
#endif

namespace artkernels {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Whether the kernels can read x: the elements of each sample lie in memory as those of a contiguous or a channels_last
// tensor, and short ones next to each other.
bool has_dense_samples(const Tensor& x, bool channels_last) {
  int64_t expected = 1;
  auto fits = [&](int64_t d) {
    const bool fitting = x.size(d) == 1 || x.stride(d) == expected;
    expected *= x.size(d);
    return fitting;
  };
  if (channels_last && !fits(1)) return false;
  for (int64_t d = x.dim() - 1; d > (channels_last ? 1 : 0); --d)
    if (!fits(d)) return false;
  return expected >= kShortSample || runs_on_cuda(x) || fits(0);
}

// Only what lies otherwise is copied.
Tensor with_dense_samples(const Tensor& x, bool channels_last) {
  return has_dense_samples(x, channels_last) ? x : to_layout(x, channels_last);
}

void check_mean(const char* op, const Tensor& mean) {
  const auto dtype = mean.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op,
              ": mean must be float32, float64, float16 or bfloat16, got ", dtype);
  TORCH_CHECK(mean.dim() >= 1, op, ": mean must be [N, ...], got 0 dimensions");
  TORCH_CHECK(mean.device().is_cpu() || mean.device().is_cuda(), op, ": mean must be on cpu or cuda, got ",
              mean.device());
}

Tensor check_like_mean(const char* op, const char* name, const Tensor& tensor, const Tensor& mean) {
  TORCH_CHECK(tensor.device() == mean.device(), op, ": ", name, " is on ", tensor.device(), ", mean is on ",
              mean.device());
  TORCH_CHECK(tensor.sizes() == mean.sizes(), op, ": ", name, " must have the mean's shape ", mean.sizes(), ", got ",
              tensor.sizes());
  TORCH_CHECK(tensor.scalar_type() == mean.scalar_type(), op, ": ", name, " must have the mean's dtype ",
              mean.scalar_type(), ", got ", tensor.scalar_type());
  return with_dense_samples(tensor, is_channels_last(mean));
}

// The tensors of a call, in the layout of the mean.
struct Inputs {
  Tensor mean, logvar, noise;

  Inputs(const char* op, const Tensor& given_mean, const Tensor& given_logvar, const Tensor& given_noise) {
    check_mean(op, given_mean);
    mean = with_dense_samples(given_mean, is_channels_last(given_mean));
    logvar = check_like_mean(op, "logvar", given_logvar, given_mean);
    noise = check_like_mean(op, "noise", given_noise, given_mean);
  }
};

ScalarType scalar_type(const Tensor& x) {
  if (x.scalar_type() == at::kHalf) return ScalarType::Half;
  return x.scalar_type() == at::kBFloat16 ? ScalarType::BFloat16 : ScalarType::Float;
}

// Threads for so many elements: one where waking the others would cost more than they bring.
int threads_for(int64_t elements) {
  constexpr int64_t grain = 16384;
  if (at::in_parallel_region()) return 1;
  return int(std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), elements / grain)));
}

int64_t pitch_of(const Tensor& x) { return x.size(0) == 1 ? x.numel() : x.stride(0); }

// All that lies between the first element of the first sample and the last of the last one: what kernels may read.
Tensor extent(const Tensor& x) {
  const int64_t N = x.size(0), D = x.numel() / N, pitch = pitch_of(x);
  return pitch == D ? x : x.as_strided({(N - 1) * pitch + D}, {1});
}

// What CudaCall is to the CUDA kernels.
struct CpuCall {
  const void* input(const Tensor& x) const { return data_or_null(x); }
  void* output(const Tensor& x) const { return x.numel() ? x.mutable_data_ptr() : nullptr; }
};

template <typename Call>
Samples samples(Call& call, const Tensor& x) {
  return x.defined() ? Samples{call.input(extent(x)), pitch_of(x)} : Samples{};
}

template <typename Call>
void fill(ReparameterizeKl& p, Call& call, const Inputs& x) {
  p.N = x.mean.size(0);
  p.D = x.mean.numel() / p.N;
  p.dtype = scalar_type(x.mean);
  p.mean = samples(call, x.mean);
  p.logvar = samples(call, x.logvar);
  p.noise = samples(call, x.noise);
}

template <typename Call>
ReparameterizeKlParams params(Call& call, const Inputs& x, const Tensor& codes, const Tensor& kl) {
  ReparameterizeKlParams p{};
  fill(p, call, x);
  p.codes = call.output(codes);
  p.kl = static_cast<float*>(call.output(kl));
  return p;
}

void run(const Inputs& x, const Tensor& codes, const Tensor& kl) {
  if (runs_on_cuda(x.mean)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(x.mean);
    ReparameterizeKlParams p = params(call, x, codes, kl);
    const Tensor workspace = at::empty({cuda::reparameterize_kl_workspace_size(p)}, kl.options());
    p.workspace = static_cast<float*>(call.output(workspace));
    cuda::launch_reparameterize_kl(p, call.stream());
#endif
    return;
  }
  CpuCall call;
  cpu::reparameterize_kl(params(call, x, codes, kl), threads_for(x.mean.numel()));
}

struct Gradients {
  Tensor codes, kl;  // given; undefined where there is none
  Tensor mean, logvar, noise;
};

template <typename Call>
ReparameterizeKlBackwardParams backward_params(Call& call, const Inputs& x, const Gradients& grad) {
  ReparameterizeKlBackwardParams p{};
  fill(p, call, x);
  p.grad_codes = samples(call, grad.codes);
  p.grad_kl = static_cast<const float*>(call.input(grad.kl));
  p.grad_mean = call.output(grad.mean);
  p.grad_logvar = call.output(grad.logvar);
  p.grad_noise = call.output(grad.noise);
  return p;
}

void run_backward(const Inputs& x, const Gradients& grad) {
  if (runs_on_cuda(x.mean)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(x.mean);
    cuda::launch_reparameterize_kl_backward(backward_params(call, x, grad), call.stream());
#endif
    return;
  }
  CpuCall call;
  cpu::reparameterize_kl_backward(backward_params(call, x, grad), threads_for(x.mean.numel()));
}

// ---- float64: the plain formulas, for gradient checks ---------------------------------------------------------------

Tensor kl_double(const Inputs& x) {
  const Tensor terms = x.mean.square() + at::expm1(x.logvar) - x.logvar;
  return terms.reshape({x.mean.size(0), x.mean.numel() / x.mean.size(0)}).sum(1).mul_(0.5);
}

void gradients_double(const Inputs& x, Gradients& grad) {
  Tensor of_mean = at::zeros_like(x.mean), of_logvar = at::zeros_like(x.mean), of_noise = at::zeros_like(x.mean);
  if (grad.codes.defined()) {
    of_mean += grad.codes;
    of_noise += grad.codes * (x.logvar * 0.5).exp();
    of_logvar += of_noise * x.noise;
  }
  if (grad.kl.defined()) {
    std::vector<int64_t> shape(x.mean.dim(), 1);
    shape[0] = x.mean.size(0);
    const Tensor of_sample = grad.kl.view(shape);
    of_mean += of_sample * x.mean;
    of_logvar += of_sample * at::expm1(x.logvar);
  }
  if (grad.mean.numel()) grad.mean.copy_(of_mean);
  if (grad.logvar.numel()) grad.logvar.copy_(of_logvar.mul_(0.5));
  if (grad.noise.numel()) grad.noise.copy_(of_noise);
}

}  // namespace

std::tuple<Tensor, Tensor> reparameterize_kl(const Tensor& mean, const Tensor& logvar, const Tensor& noise) {
  const Inputs x("reparameterize_kl", mean, logvar, noise);
  const Tensor codes = empty_like_dense(mean);
  const Tensor kl = at::empty({mean.size(0)}, mean.options().dtype(parameter_dtype(mean)));
  if (mean.numel() == 0) {
    kl.zero_();
  } else if (mean.scalar_type() == at::kDouble) {
    codes.copy_(x.mean + x.noise * (x.logvar * 0.5).exp());
    kl.copy_(kl_double(x));
  } else {
    run(x, codes, kl);
  }
  return {codes, kl};
}

std::tuple<Tensor, Tensor, Tensor> reparameterize_kl_backward(const OptionalTensor& grad_codes,
                                                              const OptionalTensor& grad_kl, const Tensor& mean,
                                                              const Tensor& logvar, const Tensor& noise,
                                                              std::array<bool, 3> output_mask) {
  constexpr const char* op = "reparameterize_kl_backward";
  const Inputs x(op, mean, logvar, noise);
  auto result = [&](bool wanted) { return wanted ? empty_like_dense(mean) : at::empty({0}, mean.options()); };
  const auto [of_mean, of_logvar, of_noise] = output_mask;
  Gradients grad{grad_codes ? check_like_mean(op, "grad_codes", *grad_codes, mean) : Tensor(),
                 check_array(op, "grad_kl", grad_kl, mean, {mean.size(0)}, {mean.size(0)}), result(of_mean),
                 result(of_logvar), result(of_noise)};
  if (mean.numel() == 0 || !(of_mean || of_logvar || of_noise)) return {grad.mean, grad.logvar, grad.noise};
  if (mean.scalar_type() == at::kDouble) gradients_double(x, grad);
  else run_backward(x, grad);
  return {grad.mean, grad.logvar, grad.noise};
}

}  // namespace artkernels
