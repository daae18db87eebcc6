// Autograd and autocast of the convolutions. In C++ for the reason given in norm_act_autograd.cpp. All gradients of a
// convolution come from the op conv_backward. Where they are differentiated themselves, each is one of the other ops,
// called through the dispatcher: all of them are differentiable, so any order of derivative is right.
//
//   conv2d:            grad_input = conv_transpose2d(grad, weight)   grad_weight = conv2d_weight_grad(input, grad)
//   conv_transpose2d:  grad_input = conv2d(grad, weight)             grad_weight = conv2d_weight_grad(grad, input)
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/reflection_pad2d.h>
#include <ATen/ops/silu.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "include/checks.h"
#include "ops/conv_common.h"
#include "packed_weights.h"

namespace artkernels {
namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// ---- the ops, through the dispatcher --------------------------------------------------------------------------------

Tensors3 call_conv_transpose2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                                   SymIntArrayRef output_padding, SymInt groups, SymIntArrayRef dilation,
                                   std::string_view activation, double negative_slope, std::string_view statistics) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::conv_transpose2d_act", "")
                             .typed<decltype(call_conv_transpose2d_act)>();
  return op.call(input, weight, bias, scale, stride, padding, output_padding, std::move(groups), dilation, activation,
                 negative_slope, statistics);
}

Tensors3 call_conv2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                         const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                         SymIntArrayRef dilation, SymInt groups, bool reflect, std::string_view activation,
                         double negative_slope, std::string_view statistics) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("artkernels::conv2d_act", "").typed<decltype(call_conv2d_act)>();
  return op.call(input, weight, bias, scale, stride, padding, dilation, std::move(groups), reflect, activation,
                 negative_slope, statistics);
}

Tensor call_conv2d_weight_grad(const Tensor& input, const Tensor& grad_output, SymIntArrayRef kernel_size,
                               SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::conv2d_weight_grad", "")
                             .typed<decltype(call_conv2d_weight_grad)>();
  return op.call(input, grad_output, kernel_size, stride, padding, dilation, std::move(groups));
}

Tensors3 call_conv_backward(const Tensor& grad_output, const OptionalTensor& output, const Tensor& input,
                            const Tensor& weight, SymIntArrayRef stride, SymIntArrayRef padding,
                            SymIntArrayRef dilation, SymInt groups, bool transposed, std::string_view activation,
                            double negative_slope, std::array<bool, 3> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("artkernels::conv_backward", "")
                             .typed<decltype(call_conv_backward)>();
  return op.call(grad_output, output, input, weight, stride, padding, dilation, std::move(groups), transposed,
                 activation, negative_slope, output_mask);
}

// ---- what the derivatives share -------------------------------------------------------------------------------

// How a convolution walks over its input; as torch.nn.functional has it.
struct Walk {
  std::vector<SymInt> stride, padding, output_padding, dilation;
  SymInt groups;
};

void save(AutogradContext* ctx, const Walk& w) {
  auto& saved = ctx->saved_data;
  saved["stride"] = SymIntArrayRef(w.stride), saved["padding"] = SymIntArrayRef(w.padding);
  saved["output_padding"] = SymIntArrayRef(w.output_padding), saved["dilation"] = SymIntArrayRef(w.dilation);
  saved["groups"] = w.groups;
}

Walk saved_walk(AutogradContext* ctx) {
  auto& saved = ctx->saved_data;
  return {saved["stride"].toSymIntVector(), saved["padding"].toSymIntVector(), saved["output_padding"].toSymIntVector(),
          saved["dilation"].toSymIntVector(), saved["groups"].toSymInt()};
}

// Whether a derivative of this tensor may be asked for, in either mode; no op here has a forward one, and
// torch::autograd::Function is what says so.
bool is_differentiated(const OptionalTensor& t) {
  return t && t->defined() && ((at::GradMode::is_enabled() && t->requires_grad()) || t->_fw_grad(0).defined());
}

// A weight that is trained is another one at the next step; one that is frozen may be kept packed.
std::optional<PackAfresh> pack_afresh_if(bool trained) {
  return trained ? std::optional<PackAfresh>(std::in_place) : std::nullopt;
}

Tensor transposed_convolution(const Tensor& input, const Tensor& weight, const Walk& w) {
  return std::get<0>(call_conv_transpose2d_act(input, weight, std::nullopt, std::nullopt, w.stride, w.padding,
                                               w.output_padding, w.groups, w.dilation, "none", 0, "none"));
}

// The first `size` pixels, where there are more: see `whole` in conv_weight_grad.cpp.
Tensor convolution(const Tensor& input, const Tensor& weight, const Walk& w, SymIntArrayRef size) {
  Tensor output = std::get<0>(call_conv2d_act(input, weight, std::nullopt, std::nullopt, w.stride, w.padding,
                                              w.dilation, w.groups, false, "none", 0, "none"));
  for (int d = 0; d < 2; ++d)
    if (output.sym_size(2 + d) != size[2 + d]) output = output.narrow_symint(2 + d, 0, size[2 + d]);
  return output;
}

// The output padding with which a transposed convolution of `from` pixels gives `to`.
void set_output_padding(Walk& w, SymIntArrayRef kernel, SymIntArrayRef from, SymIntArrayRef to) {
  for (int d = 0; d < 2; ++d)
    w.output_padding[d] =
        to[2 + d] - ((from[2 + d] - 1) * w.stride[d] - w.padding[d] * 2 + w.dilation[d] * (kernel[d] - 1) + 1);
}

// ---- activations ----------------------------------------------------------------------------------------------------

// Those that derives_from_output() is false of.
Tensor activate(const Tensor& z, Activation activation, double negative_slope) {
  if (activation == Activation::Silu) return at::silu(z);
  return activation == Activation::Gelu ? at::gelu(z) : at::leaky_relu(z, negative_slope);
}

// ---- convolution and transposed convolution -------------------------------------------------------------------------

class Convolution : public torch::autograd::Function<Convolution> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight,
                               const OptionalTensor& bias, bool transposed, const Walk& w, std::string_view activation,
                               double negative_slope, std::string_view statistics) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto training = pack_afresh_if(weight.requires_grad());
    const auto [output, mean, var] =
        transposed ? call_conv_transpose2d_act(input, weight, bias, std::nullopt, w.stride, w.padding, w.output_padding,
                                               w.groups, w.dilation, activation, negative_slope, statistics)
                   : call_conv2d_act(input, weight, bias, std::nullopt, w.stride, w.padding, w.dilation, w.groups,
                                     false, activation, negative_slope, statistics);
    ctx->save_for_backward({input, weight, activation == "none" ? Tensor() : output});
    ctx->mark_non_differentiable({mean, var});
    auto& saved = ctx->saved_data;
    saved["transposed"] = transposed;
    saved["activation"] = std::string(activation), saved["negative_slope"] = negative_slope;
    save(ctx, w);
    if (bias) saved["bias"] = bias->scalar_type();
    return {output, mean, var};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(8);
    if (!grad_outputs[0].defined()) return grads;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);  // the dtypes are the forward's
    const auto tensors = ctx->get_saved_variables();
    const Tensor &input = tensors[0], &weight = tensors[1], &output = tensors[2];
    auto& saved = ctx->saved_data;
    const Walk w = saved_walk(ctx);
    const auto training = pack_afresh_if(ctx->needs_input_grad(1));
    const std::array<bool, 3> wanted = {ctx->needs_input_grad(0), ctx->needs_input_grad(1),
                                        saved.count("bias") && ctx->needs_input_grad(2)};
    const auto [grad_input, grad_weight, grad_bias] =
        call_conv_backward(grad_outputs[0], output.defined() ? OptionalTensor(output) : std::nullopt, input, weight,
                           w.stride, w.padding, w.dilation, w.groups, saved["transposed"].toBool(),
                           saved["activation"].toStringRef(), saved["negative_slope"].toDouble(), wanted);
    if (wanted[0]) grads[0] = grad_input;
    if (wanted[1]) grads[1] = grad_weight;
    if (wanted[2]) grads[2] = grad_bias.to(saved["bias"].toScalarType());
    return grads;
  }
};

Tensors3 differentiable(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                        const OptionalTensor& scale, bool transposed, const Walk& w, std::string_view activation_name,
                        double negative_slope, std::string_view statistics) {
  TORCH_CHECK(!scale, op, ": has no derivative where scale is given: it folds a normalisation of evaluation");
  const Activation activation = activation_of(op, activation_name);
  statistics_of(op, statistics, activation_name);
  const bool at_once = derives_from_output(activation, negative_slope);
  const auto result = Convolution::apply(input, weight, bias, transposed, w, at_once ? activation_name : "none",
                                         negative_slope, statistics);
  return {at_once ? result[0] : activate(result[0], activation, negative_slope), result[1], result[2]};
}

Tensors3 conv_transpose2d_act_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                       const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                                       SymIntArrayRef output_padding, SymInt groups, SymIntArrayRef dilation,
                                       std::string_view activation, double negative_slope,
                                       std::string_view statistics) {
  if (!is_differentiated(input) && !is_differentiated(weight) && !is_differentiated(bias) &&
      !is_differentiated(scale)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_conv_transpose2d_act(input, weight, bias, scale, stride, padding, output_padding, groups, dilation,
                                     activation, negative_slope, statistics);
  }
  const Walk walk = {stride.vec(), padding.vec(), output_padding.vec(), dilation.vec(), groups};
  return differentiable("conv_transpose2d_act", input, weight, bias, scale, /*transposed=*/true, walk, activation,
                        negative_slope, statistics);
}

Tensors3 conv2d_act_autograd(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                             SymIntArrayRef dilation, SymInt groups, bool reflect, std::string_view activation,
                             double negative_slope, std::string_view statistics) {
  if (!is_differentiated(input) && !is_differentiated(weight) && !is_differentiated(bias) &&
      !is_differentiated(scale)) {
    at::AutoDispatchBelowADInplaceOrView guard;
    return call_conv2d_act(input, weight, bias, scale, stride, padding, dilation, groups, reflect, activation,
                           negative_slope, statistics);
  }
  Walk walk = {stride.vec(), padding.vec(), {0, 0}, dilation.vec(), groups};
  Tensor padded = input;
  if (reflect && padding.size() == 2) {
    padded = at::reflection_pad2d_symint(input, {padding[1], padding[1], padding[0], padding[0]});
    walk.padding = {0, 0};
  }
  return differentiable("conv2d_act", padded, weight, bias, scale, /*transposed=*/false, walk, activation,
                        negative_slope, statistics);
}

// ---- all gradients at once ------------------------------------------------------------------------------------------

// Of ops that have derivatives. Their own gradients come from here again.
Tensors3 differentiable_backward(const Tensor& grad_output, const OptionalTensor& output, const Tensor& input,
                                 const Tensor& weight, Walk w, bool transposed, std::string_view activation,
                                 double negative_slope, std::array<bool, 3> output_mask) {
  const Activation a = activation_of("conv_backward", activation);
  const Tensor grad =
      a == Activation::None ? grad_output : activation_backward(grad_output, *output, a, negative_slope);
  const auto dtype = grad.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const Tensor nothing = at::empty({0}, grad.options().dtype(dtype));
  Tensors3 result = {nothing, nothing, nothing};
  auto& [grad_input, grad_weight, grad_bias] = result;
  const auto kernel = weight.sym_sizes().slice(2);
  if (output_mask[1]) {
    const auto& [x, g] = transposed ? std::tie(grad, input) : std::tie(input, grad);
    grad_weight = call_conv2d_weight_grad(x, g, kernel, w.stride, w.padding, w.dilation, w.groups);
  }
  if (output_mask[0]) {
    if (!transposed) set_output_padding(w, kernel, grad.sym_sizes(), input.sym_sizes());
    grad_input = transposed ? convolution(grad, weight, w, input.sym_sizes()) : transposed_convolution(grad, weight, w);
  }
  if (output_mask[2]) grad_bias = grad.sum({0, 2, 3}, /*keepdim=*/false, dtype);
  return result;
}

Tensors3 conv_backward_autograd(const Tensor& grad_output, const OptionalTensor& output, const Tensor& input,
                                const Tensor& weight, SymIntArrayRef stride, SymIntArrayRef padding,
                                SymIntArrayRef dilation, SymInt groups, bool transposed, std::string_view activation,
                                double negative_slope, std::array<bool, 3> output_mask) {
  if (is_differentiated(grad_output) || is_differentiated(output) || is_differentiated(input) ||
      is_differentiated(weight))
    return differentiable_backward(grad_output, output, input, weight,
                                   {stride.vec(), padding.vec(), {0, 0}, dilation.vec(), groups}, transposed,
                                   activation, negative_slope, output_mask);
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv_backward(grad_output, output, input, weight, stride, padding, dilation, groups, transposed,
                            activation, negative_slope, output_mask);
}

// ---- the gradient of the weight, and its own ------------------------------------------------------------------------

class WeightGrad : public torch::autograd::Function<WeightGrad> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& grad_output,
                        SymIntArrayRef kernel_size, const Walk& w) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->save_for_backward({input, grad_output});
    save(ctx, w);
    return call_conv2d_weight_grad(input, grad_output, kernel_size, w.stride, w.padding, w.dilation, w.groups);
  }

  // Linear in the input and in grad_output: with the weight's place taken by what comes in for it, each is a
  // convolution.
  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    variable_list grads(4);
    const Tensor& grad = grad_outputs[0];
    if (!grad.defined()) return grads;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const PackAfresh gradients_are_not_weights;
    const auto tensors = ctx->get_saved_variables();
    const Tensor &input = tensors[0], &grad_output = tensors[1];
    Walk w = saved_walk(ctx);
    set_output_padding(w, grad.sym_sizes().slice(2), grad_output.sym_sizes(), input.sym_sizes());
    if (ctx->needs_input_grad(0)) grads[0] = transposed_convolution(grad_output, grad, w);
    if (ctx->needs_input_grad(1)) grads[1] = convolution(input, grad, w, grad_output.sym_sizes());
    return grads;
  }
};

Tensor conv2d_weight_grad_autograd(const Tensor& input, const Tensor& grad_output, SymIntArrayRef kernel_size,
                                   SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation,
                                   SymInt groups) {
  if (is_differentiated(input) || is_differentiated(grad_output)) {
    const Walk walk = {stride.vec(), padding.vec(), {0, 0}, dilation.vec(), groups};
    return WeightGrad::apply(input, grad_output, kernel_size, walk);
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call_conv2d_weight_grad(input, grad_output, kernel_size, stride, padding, dilation, groups);
}

// ---- autocast: as torch's convolutions, but for bias and scale, which are used in float32 in any case ---------------

template <at::DeviceType device>
Tensors3 conv_transpose2d_act_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                                       const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                                       SymIntArrayRef output_padding, SymInt groups, SymIntArrayRef dilation,
                                       std::string_view activation, double negative_slope,
                                       std::string_view statistics) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  return call_conv_transpose2d_act(at::autocast::cached_cast(dtype, input, device),
                                   at::autocast::cached_cast(dtype, weight, device), bias, scale, stride, padding,
                                   output_padding, groups, dilation, activation, negative_slope, statistics);
}

template <at::DeviceType device>
Tensors3 conv2d_act_autocast(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                             const OptionalTensor& scale, SymIntArrayRef stride, SymIntArrayRef padding,
                             SymIntArrayRef dilation, SymInt groups, bool reflect, std::string_view activation,
                             double negative_slope, std::string_view statistics) {
  c10::impl::ExcludeDispatchKeyGuard guard(c10::autocast_dispatch_keyset);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  return call_conv2d_act(at::autocast::cached_cast(dtype, input, device),
                         at::autocast::cached_cast(dtype, weight, device), bias, scale, stride, padding, dilation,
                         groups, reflect, activation, negative_slope, statistics);
}

}  // namespace

TORCH_LIBRARY_IMPL(artkernels, Autograd, m) {
  m.impl("conv_transpose2d_act", &conv_transpose2d_act_autograd);
  m.impl("conv2d_act", &conv2d_act_autograd);
  m.impl("conv2d_weight_grad", &conv2d_weight_grad_autograd);
  m.impl("conv_backward", &conv_backward_autograd);
}

TORCH_LIBRARY_IMPL(artkernels, AutocastCPU, m) {
  m.impl("conv_transpose2d_act", &conv_transpose2d_act_autocast<at::kCPU>);
  m.impl("conv2d_act", &conv2d_act_autocast<at::kCPU>);
}

TORCH_LIBRARY_IMPL(artkernels, AutocastCUDA, m) {
  m.impl("conv_transpose2d_act", &conv_transpose2d_act_autocast<at::kCUDA>);
  m.impl("conv2d_act", &conv2d_act_autocast<at::kCUDA>);
}

}  // namespace artkernels
