// The derivative of norm_act. In C++, because it is taken once a layer: what Python would spend on a call of it is more
// than the kernels need for a small feature map. The derivative of the derivative is in artkernels/ops/norm_act.py.
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/norm_act.h"

namespace artkernels {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensors3 call_norm_act(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& residual, const OptionalTensor& mean, const OptionalTensor& var,
                       int64_t groups, bool across_batch, double eps, double alpha, double correction,
                       std::string_view activation, double negative_slope, bool residual_after,
                       bool statistics_of_input) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("artkernels::norm_act", "").typed<decltype(norm_act)>();
  return op.call(input, weight, bias, residual, mean, var, groups, across_batch, eps, alpha, correction, activation,
                 negative_slope, residual_after, statistics_of_input);
}

Tensors3 call_norm_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& residual, const Tensor& mean,
                                const Tensor& var, bool statistics_given, int64_t groups, bool across_batch, double eps,
                                double alpha, double correction, std::string_view activation, double negative_slope,
                                std::array<bool, 3> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::norm_act_backward", "")
                             .typed<decltype(norm_act_backward)>();
  // Without create_graph nothing is recorded: past the derivative of the backward, which is in Python.
  std::optional<at::AutoDispatchBelowADInplaceOrView> guard;
  if (!at::GradMode::is_enabled()) guard.emplace();
  return op.call(grad_output, input, weight, bias, residual, mean, var, std::nullopt, statistics_given, groups,
                 across_batch, eps, alpha, correction, activation, negative_slope, output_mask);
}

Tensor tensor(const OptionalTensor& t) { return t.value_or(Tensor()); }
OptionalTensor optional(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Of a weight or a bias, from the sums over pixels of each image, or of the whole batch.
Tensor affine_gradient(const Tensor& sums, const Tensor& parameter, double alpha) {
  Tensor grad = sums.dim() > parameter.dim() ? sums.sum(0) : sums.expand(parameter.sizes());
  if (alpha != 1) grad = grad * alpha;
  return grad.to(parameter.scalar_type());
}

// Of given statistics, from the sums of dz and dz xhat: xhat = (x - mean) / sqrt(var + eps).
std::pair<Tensor, Tensor> statistics_gradient(const Tensor& sums, const Tensor& weight, const Tensor& mean,
                                              const Tensor& var, int64_t groups, double eps, double alpha) {
  const Tensor rstd = (var.to(sums.scalar_type()) + eps).rsqrt();
  const Tensor weighted = weight.defined() ? sums * weight.to(sums.scalar_type()) : sums;
  const Tensor of_groups = weighted.unflatten(-1, {groups, -1}).sum(-1) * alpha;
  return {(of_groups[0] * -rstd).to(mean.scalar_type()), (of_groups[1] * rstd * rstd * -0.5).to(var.scalar_type())};
}

class NormAct : public torch::autograd::Function<NormAct> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const OptionalTensor& weight,
                               const OptionalTensor& bias, const OptionalTensor& residual, const OptionalTensor& mean,
                               const OptionalTensor& var, int64_t groups, bool across_batch, double eps, double alpha,
                               double correction, std::string activation, double negative_slope, bool residual_after,
                               bool statistics_of_input) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, own_mean, own_var] =
        call_norm_act(input, weight, bias, residual, mean, var, groups, across_batch, eps, alpha, correction,
                      activation, negative_slope, residual_after, statistics_of_input);
    // z is computed again from the input, and needs the residual where that was added before an activation.
    const bool through_activation = residual && !residual_after && activation != "none";
    ctx->save_for_backward({input, tensor(weight), tensor(bias), through_activation ? *residual : Tensor(),
                            mean.value_or(own_mean), var.value_or(own_var)});
    ctx->mark_non_differentiable({own_mean, own_var});
    auto& saved = ctx->saved_data;
    saved["given"] = mean.has_value() && !statistics_of_input, saved["residual"] = residual.has_value(),
    saved["groups"] = groups, saved["across_batch"] = across_batch;
    saved["eps"] = eps, saved["alpha"] = alpha, saved["correction"] = correction;
    saved["activation"] = activation, saved["negative_slope"] = negative_slope;
    saved["through_activation"] = through_activation;
    return {output, own_mean, own_var};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    const auto tensors = ctx->get_saved_variables();
    const Tensor &input = tensors[0], &weight = tensors[1], &bias = tensors[2], &residual = tensors[3],
                 &mean = tensors[4], &var = tensors[5], &grad_output = grad_outputs[0];
    auto& saved = ctx->saved_data;
    const int64_t groups = saved["groups"].toInt();
    const double eps = saved["eps"].toDouble(), alpha = saved["alpha"].toDouble();
    const bool through_activation = saved["through_activation"].toBool();
    const bool given = saved["given"].toBool();
    size_t edge = 0;  // only tensors that were there have one
    auto needed = [&](bool present) { return present && ctx->needs_input_grad(edge++); };
    const bool of_input = needed(true), of_weight = needed(weight.defined()), of_bias = needed(bias.defined()),
               of_residual = needed(saved["residual"].toBool()), of_mean = needed(given), of_var = needed(given);
    const std::array<bool, 3> mask = {of_input, of_weight || of_bias || of_mean || of_var,
                                      of_residual && through_activation};
    variable_list grads(15);
    if (!grad_output.defined()) return grads;
    if (of_residual && !through_activation) grads[3] = grad_output;
    if (!mask[0] && !mask[1] && !mask[2]) return grads;
    const auto [grad_input, sums, grad_residual] = call_norm_act_backward(
        grad_output, input, optional(weight), optional(bias), optional(residual), mean, var, given, groups,
        saved["across_batch"].toBool(), eps, alpha, saved["correction"].toDouble(), saved["activation"].toStringRef(),
        saved["negative_slope"].toDouble(), mask);
    if (of_input) grads[0] = grad_input;
    if (of_weight) grads[1] = affine_gradient(sums[1], weight, alpha);
    if (of_bias) grads[2] = affine_gradient(sums[0], bias, alpha);
    if (mask[2]) grads[3] = grad_residual;
    if (of_mean || of_var) {
      const auto [grad_mean, grad_var] = statistics_gradient(sums, weight, mean, var, groups, eps, alpha);
      if (of_mean) grads[4] = grad_mean;
      if (of_var) grads[5] = grad_var;
    }
    return grads;
  }
};

Tensors3 norm_act_autograd(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& residual, const OptionalTensor& mean, const OptionalTensor& var,
                           int64_t groups, bool across_batch, double eps, double alpha, double correction,
                           std::string_view activation, double negative_slope, bool residual_after,
                           bool statistics_of_input) {
  auto result = NormAct::apply(input, weight, bias, residual, mean, var, groups, across_batch, eps, alpha, correction,
                               std::string(activation), negative_slope, residual_after, statistics_of_input);
  return {result[0], result[1], result[2]};
}

}  // namespace

TORCH_LIBRARY_IMPL(artkernels, Autograd, m) { m.impl("norm_act", &norm_act_autograd); }

}  // namespace artkernels
