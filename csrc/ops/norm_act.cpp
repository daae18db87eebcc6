#include "ops/norm_act.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <limits>

#include "cpu/norm_act.h"
#include "include/checks.h"
#include "include/device.h"
#include "include/layout.h"
#include "ops/norm_act_double.h"
#if defined(ARTKERNELS_CUDA)
#include "cuda/norm_act.h"
#endif

namespace artkernels {
namespace {

using at::Tensor;

void check_input(const char* op, const Tensor& input, int64_t groups, bool across_batch) {
  TORCH_CHECK(input.dim() >= 2, op, ": input must be [N, C, ...], got ", input.dim(), " dimensions");
  check_floating(op, input);
  const int64_t C = input.size(1);
  TORCH_CHECK(groups >= 1 && C % groups == 0, op, ": the number of groups must divide the ", C, " channels, got ",
              groups);
  TORCH_CHECK(!across_batch || groups == C, op, ": statistics of the whole batch are one a channel, got ", groups,
              " groups for ", C, " channels");
}

Tensor check_affine(const char* op, const char* name, const OptionalTensor& array, const Tensor& input,
                    bool across_batch) {
  const int64_t N = input.size(0), C = input.size(1);
  if (across_batch) return check_array(op, name, array, input, {C}, {C});
  return check_array(op, name, array, input, {C}, {N, C});
}

std::vector<int64_t> statistics_shape(const Tensor& input, int64_t groups, bool across_batch) {
  if (across_batch) return {groups};
  return {input.size(0), groups};
}

Tensor check_statistics(const char* op, const char* name, const OptionalTensor& array, const Tensor& input,
                        int64_t groups, bool across_batch) {
  const auto shape = statistics_shape(input, groups, across_batch);
  return check_array(op, name, array, input, shape, shape);
}

// A tensor of the input's shape, in its dtype and layout.
Tensor check_like(const char* op, const char* name, const OptionalTensor& tensor, const Tensor& input) {
  if (!tensor) return {};
  check_same_device(op, name, *tensor, input);
  TORCH_CHECK(tensor->sizes() == input.sizes(), op, ": ", name, " must have the input's shape ", input.sizes(),
              ", got ", tensor->sizes());
  TORCH_CHECK(tensor->scalar_type() == input.scalar_type(), op, ": ", name, " must have the input's dtype ",
              input.scalar_type(), ", got ", tensor->scalar_type());
  return to_layout(*tensor, is_channels_last(input));
}

// The affine parameters of a call as [C] or as [N, C], both alike.
void fill_affine(NormAct& p, Tensor& weight, Tensor& bias, const Tensor& input) {
  const int64_t N = input.size(0), C = input.size(1);
  const bool per_image = (weight.defined() && weight.dim() == 2) || (bias.defined() && bias.dim() == 2);
  p.affine_stride = per_image ? C : 0;
  if (!per_image) return;
  if (weight.defined()) weight = weight.expand({N, C}).contiguous();
  if (bias.defined()) bias = bias.expand({N, C}).contiguous();
}

void fill(NormAct& p, const Tensor& input, const NormActOptions& o) {
  p.features = feature_map(input);
  p.groups = o.groups;
  p.across_batch = o.across_batch;
  p.eps = float(o.eps);
  p.alpha = float(o.alpha);
  p.correction = float(o.correction);
  p.activation = o.activation;
  p.negative_slope = float(o.negative_slope);
}

// Threads for so many elements: one where waking the others would cost more than they bring.
int threads_for(int64_t elements) {
  constexpr int64_t grain = 16384;
  if (at::in_parallel_region()) return 1;
  return int(std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), elements / grain)));
}

float* mutable_floats(const Tensor& t) { return t.defined() && t.numel() ? t.mutable_data_ptr<float>() : nullptr; }
void* mutable_data(const Tensor& t) { return t.defined() && t.numel() ? t.mutable_data_ptr() : nullptr; }

// Fills mean and var unless they are given, and output unless it is undefined.
void run(NormActParams p, const Tensor& input, Tensor weight, Tensor bias, const Tensor& residual, const Tensor& output,
         const Tensor& mean, const Tensor& var) {
  fill_affine(p, weight, bias, input);
  if (runs_on_cuda(input)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(input);
    const Tensor workspace = at::empty({cuda::norm_act_workspace_size(p)}, input.options().dtype(at::kFloat));
    p.input = call.input(input);
    p.weight = static_cast<const float*>(call.input(weight));
    p.bias = static_cast<const float*>(call.input(bias));
    p.residual = call.input(residual);
    p.output = call.output(output);
    p.mean = static_cast<float*>(call.output(mean));
    p.var = static_cast<float*>(call.output(var));
    p.workspace = static_cast<float*>(call.output(workspace));
    cuda::launch_norm_act(p, call.stream());
#endif
    return;
  }
  p.input = data_or_null(input);
  p.weight = floats(weight);
  p.bias = floats(bias);
  p.residual = data_or_null(residual);
  p.output = mutable_data(output);
  p.mean = mean.mutable_data_ptr<float>();
  p.var = var.mutable_data_ptr<float>();
  cpu::norm_act(p, threads_for(input.numel()));
}

void run_backward(NormActBackwardParams p, const Tensor& grad_output, const Tensor& input, Tensor weight, Tensor bias,
                  const Tensor& residual, const Tensor& mean, const Tensor& var, const Tensor& averages,
                  const Tensor& grad_input, const Tensor& sums, const Tensor& grad_residual) {
  fill_affine(p, weight, bias, input);
  if (runs_on_cuda(input)) {
#if defined(ARTKERNELS_CUDA)
    CudaCall call(input);
    const Tensor workspace = at::empty({cuda::norm_act_backward_workspace_size(p)}, input.options().dtype(at::kFloat));
    p.grad_output = call.input(grad_output);
    p.input = call.input(input);
    p.weight = static_cast<const float*>(call.input(weight));
    p.bias = static_cast<const float*>(call.input(bias));
    p.residual = call.input(residual);
    p.mean = static_cast<const float*>(call.input(mean));
    p.var = static_cast<const float*>(call.input(var));
    p.averages = static_cast<const float*>(call.input(averages));
    p.grad_input = call.output(grad_input);
    p.sums = static_cast<float*>(call.output(sums));
    p.grad_residual = call.output(grad_residual);
    p.workspace = static_cast<float*>(call.output(workspace));
    cuda::launch_norm_act_backward(p, call.stream());
#endif
    return;
  }
  p.grad_output = data_or_null(grad_output);
  p.input = data_or_null(input);
  p.weight = floats(weight);
  p.bias = floats(bias);
  p.residual = data_or_null(residual);
  p.mean = floats(mean);
  p.var = floats(var);
  p.averages = floats(averages);
  p.grad_input = mutable_data(grad_input);
  p.sums = mutable_floats(sums);
  p.grad_residual = mutable_data(grad_residual);
  cpu::norm_act_backward(p, threads_for(input.numel()));
}

}  // namespace

std::tuple<Tensor, Tensor> feature_statistics(const Tensor& input, int64_t groups, bool across_batch,
                                              double correction) {
  constexpr const char* op = "feature_statistics";
  check_input(op, input, groups, across_batch);
  const NormActOptions options{groups, across_batch, 0, 1, correction, Activation::None, 0, false};
  const Tensor x = dense(input);
  if (x.scalar_type() == at::kDouble) return feature_statistics_double(x, options);
  const auto shape = statistics_shape(x, groups, across_batch);
  const Tensor mean = at::empty(shape, x.options().dtype(at::kFloat)), var = at::empty_like(mean);
  if (x.numel() == 0) {
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    return {mean.fill_(nan), var.fill_(nan)};
  }
  NormActParams p{};
  fill(p, x, options);
  run(p, x, {}, {}, {}, {}, mean, var);
  return {mean, var};
}

Tensors3 norm_act(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, const OptionalTensor& mean, const OptionalTensor& var, int64_t groups,
                  bool across_batch, double eps, double alpha, double correction, std::string_view activation,
                  double negative_slope, bool residual_after, bool /*statistics_of_input*/) {
  constexpr const char* op = "norm_act";
  check_input(op, input, groups, across_batch);
  TORCH_CHECK(mean.has_value() == var.has_value(), op, ": mean and var go together, got ",
              mean ? "mean alone" : "var alone");
  const Tensor x = dense(input), r = check_like(op, "residual", residual, x);
  const Tensor w = check_affine(op, "weight", weight, x, across_batch),
               b = check_affine(op, "bias", bias, x, across_batch);
  Tensor m = check_statistics(op, "mean", mean, x, groups, across_batch),
         v = check_statistics(op, "var", var, x, groups, across_batch);
  const NormActOptions options{groups,         across_batch,  eps, alpha, correction, activation_of(op, activation),
                               negative_slope, residual_after};
  auto none = [&] { return at::empty({0}, x.options().dtype(parameter_dtype(x))); };
  const bool given = mean.has_value();
  if (x.scalar_type() == at::kDouble) {
    if (!given) std::tie(m, v) = feature_statistics_double(x, options);
    const Tensor output = to_layout(norm_act_double(x, w, b, r, m, v, options), is_channels_last(x));
    return given ? Tensors3{output, none(), none()} : Tensors3{output, m, v};
  }
  if (!given) {
    m = at::empty(statistics_shape(x, groups, across_batch), x.options().dtype(at::kFloat));
    v = at::empty_like(m);
  }
  const Tensor output = empty_like_dense(x);
  if (x.numel() == 0) {
    if (!given) m.zero_(), v.zero_();
  } else {
    NormActParams p{};
    fill(p, x, options);
    p.residual_mode = !r.defined()     ? Residual::None
                      : residual_after ? Residual::AfterActivation
                                       : Residual::BeforeActivation;
    p.statistics_given = given;
    run(p, x, w, b, r, output, m, v);
  }
  return given ? Tensors3{output, none(), none()} : Tensors3{output, m, v};
}

Tensors3 norm_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& residual, const Tensor& mean,
                           const Tensor& var, const OptionalTensor& averages, bool statistics_given, int64_t groups,
                           bool across_batch, double eps, double alpha, double correction, std::string_view activation,
                           double negative_slope, std::array<bool, 3> output_mask) {
  constexpr const char* op = "norm_act_backward";
  check_input(op, input, groups, across_batch);
  const Tensor x = dense(input), dy = check_like(op, "grad_output", grad_output, x),
               r = check_like(op, "residual", residual, x);
  const Tensor w = check_affine(op, "weight", weight, x, across_batch),
               b = check_affine(op, "bias", bias, x, across_batch);
  const Tensor m = check_statistics(op, "mean", mean, x, groups, across_batch),
               v = check_statistics(op, "var", var, x, groups, across_batch);
  auto shape = statistics_shape(x, groups, across_batch);
  shape.insert(shape.begin(), 2);
  const Tensor a = check_array(op, "averages", averages, x, shape, shape);
  const NormActOptions options{groups,         across_batch, eps, alpha, correction, activation_of(op, activation),
                               negative_slope, false};
  const auto sums_options = x.options().dtype(parameter_dtype(x));
  auto no_map = [&] { return at::empty({0}, x.options()); };
  const auto [wants_input, wants_sums, wants_residual] = output_mask;
  if (x.scalar_type() == at::kDouble) {
    const auto [grad_input, sums, grad_residual] =
        norm_act_backward_double(dy, x, w, b, r, m, v, a, statistics_given, options);
    auto in_layout = [&](const Tensor& t) { return to_layout(t, is_channels_last(x)); };
    return {wants_input ? in_layout(grad_input) : no_map(), wants_sums ? sums : at::empty({0}, sums_options),
            wants_residual ? in_layout(grad_residual).clone() : no_map()};
  }
  const Tensor grad_input = wants_input ? empty_like_dense(x) : no_map(),
               grad_residual = wants_residual ? empty_like_dense(x) : no_map();
  std::vector<int64_t> sums_shape = {2, x.size(0), x.size(1)};
  if (across_batch) sums_shape.erase(sums_shape.begin() + 1);
  const Tensor sums = at::empty(wants_sums ? at::IntArrayRef(sums_shape) : at::IntArrayRef({0}), sums_options);
  if (x.numel() == 0) {
    sums.zero_();
  } else if (wants_input || wants_sums || wants_residual) {
    NormActBackwardParams p{};
    fill(p, x, options);
    p.residual_mode = r.defined() ? Residual::BeforeActivation : Residual::None;
    p.statistics_given = statistics_given;
    run_backward(p, dy, x, w, b, r, m, v, a, grad_input, sums, grad_residual);
  }
  return {grad_input, sums, grad_residual};
}

}  // namespace artkernels
