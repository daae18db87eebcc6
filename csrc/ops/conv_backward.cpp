// The gradients of a convolution and its activation, together: where this package's kernels compute all of them, the
// activation's derivative is applied as they read the gradient, and the gradient before the activation is never
// written.
#include "ops/conv_backward.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>

#include "include/checks.h"
#include "include/layout.h"
#include "ops/conv_common.h"
#include "ops/conv_cpu.h"
#include "ops/conv_weight_grad.h"

namespace artkernels {
namespace {

using at::Tensor;

constexpr const char* op = "conv_backward";

struct Gradients {
  std::optional<ConvCall> input;  // of the convolution that takes the gradient to the input's: the other one of the two
  std::optional<WeightGradCall> weight;
};

ConvCall check_input_grad(const Tensor& grad, const Tensor& input, const Tensor& weight, at::IntArrayRef stride,
                          at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool transposed) {
  int64_t output_padding[2] = {0, 0};
  for (int d = 0; d < 2 && !transposed; ++d)
    output_padding[d] = input.size(2 + d) - ((grad.size(2 + d) - 1) * stride[d] - 2 * padding[d] +
                                             dilation[d] * (weight.size(2 + d) - 1) + 1);
  return check_conv(op, !transposed, grad, weight, std::nullopt, std::nullopt, stride, padding, output_padding,
                    dilation, groups, "none", 0, "none");
}

Tensor run_input_grad(const ConvCall& call, const Tensor& input) {
  Tensor result = std::get<0>(input.numel() == 0 ? empty_batch(call) : run_conv(call));
  // A transposed convolution whose output_padding is a stride or more has outputs that no input reaches.
  for (int d = 2; d < 4; ++d) result = result.narrow(d, 0, input.size(d));
  return as_map(result, call.channels_last);
}

// Whether this package's kernels compute all that is wanted.
bool run_on_cpu_alone(const Gradients& gradients, bool wants_bias) {
  return (!gradients.input || runs_on_cpu(*gradients.input)) && (!gradients.weight || runs_on_cpu(*gradients.weight)) &&
         (!wants_bias || (gradients.weight && gathers_bias(*gradients.weight)));
}

}  // namespace

Tensors3 conv_backward(const Tensor& grad_output, const OptionalTensor& output, const Tensor& input,
                       const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       int64_t groups, bool transposed, std::string_view activation_name, double negative_slope,
                       std::array<bool, 3> output_mask) {
  const Activation activation = activation_of(op, activation_name);
  TORCH_CHECK(derives_from_output(activation, negative_slope), op, ": the output of ", activation_name,
              " does not tell its derivative");
  TORCH_CHECK(activation == Activation::None || (output && output->sizes() == grad_output.sizes()), op,
              ": output must be ", grad_output.sizes(), ", got ", output ? output->sizes() : at::IntArrayRef());
  check_feature_map(op, grad_output);
  check_feature_map(op, input);
  at::AutoDispatchBelowADInplaceOrView guard;
  const auto [wants_input, wants_weight, wants_bias] = output_mask;
  Tensor grad = dense(grad_output);
  const bool channels_last = is_channels_last(grad);
  auto check = [&, wants_input = wants_input, wants_weight = wants_weight] {
    Gradients result;
    if (wants_input)
      result.input = check_input_grad(grad, input, weight, stride, padding, dilation, groups, transposed);
    if (wants_weight) {
      const Tensor &x = transposed ? grad : input, &g = transposed ? input : grad;
      result.weight = check_weight_grad(op, x, g, weight.sizes().slice(2), stride, padding, dilation, groups);
      result.weight->transposed = transposed;
    }
    return result;
  };
  Gradients gradients = check();
  if (activation != Activation::None && grad.numel() > 0) {
    if (run_on_cpu_alone(gradients, wants_bias)) {
      auto apply = [&](auto& call) {
        if (!call) return;
        call->activated = to_layout(*output, channels_last);
        call->activation = activation;
        call->negative_slope = negative_slope;
      };
      apply(gradients.input);
      apply(gradients.weight);
    } else {
      grad = as_map(activation_backward(grad, *output, activation, negative_slope), channels_last);
      gradients = check();
    }
  }
  const auto options = grad.options().dtype(parameter_dtype(grad));
  Tensor grad_bias;
  const Tensor grad_input = gradients.input ? run_input_grad(*gradients.input, input) : at::empty({0}, options);
  const Tensor grad_weight = gradients.weight ? run_weight_grad(*gradients.weight, wants_bias ? &grad_bias : nullptr)
                                              : at::empty({0}, options);
  if (!grad_bias.defined())
    grad_bias =
        wants_bias ? grad.sum({0, 2, 3}, /*keepdim=*/false, options.dtype().toScalarType()) : at::empty({0}, options);
  return {grad_input, grad_weight, grad_bias};
}

}  // namespace artkernels
