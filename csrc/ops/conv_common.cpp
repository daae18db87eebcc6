#include "ops/conv_common.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "include/checks.h"
#include "include/layout.h"
#include "ops/conv_cpu.h"

namespace artkernels {
namespace {

using at::Tensor;

void check_tensors(const char* op, bool transposed, const Tensor& input, const Tensor& weight, int64_t groups) {
  check_feature_map(op, input);
  TORCH_CHECK(weight.dim() == 4, op, ": weight must be ",
              transposed ? "[C, K / groups, H, W]" : "[K, C / groups, H, W]", ", got ", weight.dim(), " dimensions");
  check_same_device(op, "weight", weight, input);
  TORCH_CHECK(weight.scalar_type() == input.scalar_type(), op, ": weight must have the input's dtype ",
              input.scalar_type(), ", got ", weight.scalar_type());
  TORCH_CHECK(groups >= 1 && weight.size(0) % groups == 0, op, ": the number of groups must divide the ",
              weight.size(0), transposed ? " input" : " output", " channels of the weight, got ", groups);
  const int64_t C = transposed ? weight.size(0) : weight.size(1) * groups;
  TORCH_CHECK(input.size(1) == C, op, ": weight has ", C, " input channels, input has ", input.size(1));
  TORCH_CHECK(weight.numel() > 0 && (input.numel() > 0 || input.size(0) == 0), op,
              ": only the batch may be empty, got input ", input.sizes(), " and weight ", weight.sizes());
}

int64_t transposed_output_size(const Window& w, int64_t size, int64_t output_padding) {
  return (size - 1) * w.stride - 2 * w.padding + w.dilation * (w.kernel - 1) + output_padding + 1;
}

// torch's convolution is a composite of ops of its own, which must record nothing where this op is called directly.
Tensor stock_convolution(const ConvCall& c, const Tensor& bias) {
  at::AutoDispatchBelowADInplaceOrView guard;
  auto convolve = [&](auto cast) {
    return at::convolution(cast(c.input), cast(c.weight), bias.defined() ? OptionalTensor(cast(bias)) : std::nullopt,
                           {c.rows.stride, c.columns.stride}, {c.rows.padding, c.columns.padding},
                           {c.rows.dilation, c.columns.dilation}, c.transposed, c.output_padding, c.groups);
  };
  const auto dtype = c.input.scalar_type();
  if (!c.transposed && stock_is_wrong(c.input, c.columns))
    return convolve([](const Tensor& t) { return t.to(at::kFloat); }).to(dtype);
  return convolve([dtype](const Tensor& t) { return t.to(dtype); });
}

// oneDNN's convolution with bias and activation in its epilogue, the op that torch.compile puts in the place of the
// two; undefined where it does not take the call. With activations alone that are exact in any implementation.
Tensor fused_convolution(const ConvCall& c) {
  static const auto op = c10::Dispatcher::singleton().findSchema({"mkldnn::_convolution_pointwise", ""});
  const auto dtype = c.input.scalar_type();
  const bool exact = c.activation == Activation::Relu || c.activation == Activation::LeakyRelu;
  if (!op || !exact || c.transposed || c.scale.defined() || (c.bias.defined() && !c.bias_fits) || !c.input.is_cpu() ||
      !at::globalContext().userEnabledMkldnn() || stock_is_wrong(c.input, c.columns) ||
      !(dtype == at::kFloat || (dtype == at::kBFloat16 && multiplies_bfloat16())))
    return {};
  using Signature =
      Tensor(const Tensor&, const Tensor&, const OptionalTensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
             int64_t, std::string_view, c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);
  c10::List<std::optional<at::Scalar>> slope;
  if (c.activation == Activation::LeakyRelu) slope.push_back(at::Scalar(c.negative_slope));
  at::AutoDispatchBelowADInplaceOrView guard;
  return op->typed<Signature>().call(
      c.input, c.weight, c.bias.defined() ? OptionalTensor(c.bias.to(dtype)) : std::nullopt,
      {c.rows.padding, c.columns.padding}, {c.rows.stride, c.columns.stride}, {c.rows.dilation, c.columns.dilation},
      c.groups, c.activation == Activation::Relu ? "relu" : "leaky_relu", slope, "");
}

void activate_(Tensor& z, Activation activation, double negative_slope) {
  switch (activation) {
    case Activation::None: return;
    case Activation::Relu: at::relu_(z); return;
    case Activation::LeakyRelu: at::leaky_relu_(z, negative_slope); return;
    case Activation::Tanh: at::tanh_(z); return;
    case Activation::Sigmoid: at::sigmoid_(z); return;
    case Activation::Silu: at::silu_(z); return;
    case Activation::Gelu: at::gelu_(z); return;
  }
}

// activation(scale z + bias) in one pass: what norm_act computes from a mean of 0 and a variance of 1.
Tensor scale_shift_activate(const ConvCall& c, const Tensor& z) {
  auto optional = [](const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; };
  const auto options = z.options().dtype(parameter_dtype(z));
  return std::get<0>(norm_act(z, optional(c.scale), optional(c.bias), std::nullopt, at::zeros({c.K}, options),
                              at::ones({c.K}, options), c.K, /*across_batch=*/true, /*eps=*/0, /*alpha=*/1,
                              /*correction=*/0, c.activation_name, c.negative_slope, /*residual_after=*/false,
                              /*statistics_of_input=*/false));
}

}  // namespace

void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least) {
  TORCH_CHECK(pair.size() == 2, op, ": ", name, " must be two numbers, got ", pair);
  TORCH_CHECK(pair[0] >= least && pair[1] >= least, op, ": ", name, " must be at least ", least, ", got ", pair);
}

int64_t output_size(const Window& w, int64_t size) {
  const int64_t room = size + 2 * w.padding - w.dilation * (w.kernel - 1) - 1;
  return room < 0 ? 0 : room / w.stride + 1;
}

Statistics statistics_of(const char* op, std::string_view name, std::string_view activation) {
  TORCH_CHECK(name == "none" || name == "batch" || name == "instance", op,
              ": statistics must be none, batch or instance, got ", name);
  TORCH_CHECK(name == "none" || activation == "none", op,
              ": statistics are gathered before an activation: it must be none, got ", activation);
  return name == "none" ? Statistics::None : name == "batch" ? Statistics::Batch : Statistics::Instance;
}

ConvCall check_conv(const char* op, bool transposed, const Tensor& input, const Tensor& weight,
                    const OptionalTensor& bias, const OptionalTensor& scale, at::IntArrayRef stride,
                    at::IntArrayRef padding, at::IntArrayRef output_padding, at::IntArrayRef dilation, int64_t groups,
                    std::string_view activation, double negative_slope, std::string_view statistics) {
  check_tensors(op, transposed, input, weight, groups);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "output_padding", output_padding, 0);
  check_pair(op, "dilation", dilation, 1);
  for (int d = 0; d < 2; ++d)
    TORCH_CHECK(output_padding[d] == 0 || output_padding[d] < std::max(stride[d], dilation[d]), op,
                ": output_padding must be smaller than stride or dilation, got ", output_padding);
  ConvCall call{};
  call.transposed = transposed;
  call.groups = groups;
  call.rows = {weight.size(2), stride[0], padding[0], dilation[0]};
  call.columns = {weight.size(3), stride[1], padding[1], dilation[1]};
  call.output_padding = {output_padding[0], output_padding[1]};
  call.K = transposed ? weight.size(1) * groups : weight.size(0);
  auto size = [&](const Window& w, int d) {
    return transposed ? transposed_output_size(w, input.size(2 + d), output_padding[d])
                      : output_size(w, input.size(2 + d));
  };
  call.OH = size(call.rows, 0), call.OW = size(call.columns, 1);
  TORCH_CHECK(call.OH > 0 && call.OW > 0, op, ": input of ", input.size(2), " x ", input.size(3),
              " pixels is too small for a kernel of ", weight.size(2), " x ", weight.size(3), " and padding ", padding);
  call.scale = check_array(op, "scale", scale, input, {call.K}, {call.K});
  call.bias = check_array(op, "bias", bias, input, {call.K}, {call.K});
  call.bias_fits = bias && bias->scalar_type() == input.scalar_type();
  call.activation = activation_of(op, activation);
  call.negative_slope = negative_slope;
  call.activation_name = activation;
  call.statistics = statistics_of(op, statistics, activation);
  call.channels_last = is_channels_last(input) || is_channels_last(weight);
  call.input = dense(input);
  call.weight = dense(weight);
  return call;
}

Tensor empty_map(at::IntArrayRef s, bool channels_last, const at::TensorOptions& options) {
  if (!channels_last) return at::empty(s, options);
  return at::empty_strided(s, {s[1] * s[2] * s[3], 1, s[1] * s[3], s[1]}, options);
}

Tensor as_map(const Tensor& x, bool channels_last) {
  const Tensor dense = to_layout(x, channels_last);
  const int64_t C = x.size(1), H = x.size(2), W = x.size(3);
  // Where a size is 1 its stride may be anything in a tensor that is dense all the same.
  if (channels_last) return dense.as_strided(dense.sizes(), {H * W * C, 1, W * C, C});
  return dense.as_strided(dense.sizes(), {C * H * W, H * W, W, 1});
}

Tensors3 empty_result(const ConvCall& c) {
  const int64_t N = c.input.size(0);
  const auto options = c.input.options().dtype(parameter_dtype(c.input));
  std::vector<int64_t> shape = {0};
  if (c.statistics == Statistics::Batch) shape = {c.K};
  if (c.statistics == Statistics::Instance) shape = {N, c.K};
  return {empty_map({N, c.K, c.OH, c.OW}, c.channels_last, c.input.options()), at::empty(shape, options),
          at::empty(shape, options)};
}

Tensors3 empty_batch(const ConvCall& c) {
  const auto [output, mean, var] = empty_result(c);
  return {output, mean.zero_(), var.zero_()};
}

Conv conv_params(const ConvCall& c) {
  Conv p{};
  p.dtype = feature_map(c.input).dtype;
  p.N = c.input.size(0), p.C = c.input.size(1), p.H = c.input.size(2), p.W = c.input.size(3);
  p.K = c.K, p.OH = c.OH, p.OW = c.OW;
  p.input_channels_last = is_channels_last(c.input), p.output_channels_last = c.channels_last;
  p.groups = c.groups;
  p.rows = c.rows, p.columns = c.columns;
  p.reflect = c.reflect;
  p.activation = c.activation;
  p.negative_slope = float(c.negative_slope);
  p.statistics = c.statistics;
  return p;
}

bool stock_is_wrong(const Tensor& input, const Window& w) {
  return input.is_cpu() && input.scalar_type() == at::kBFloat16 && w.stride > 1 &&
         input.size(3) <= w.dilation * (w.kernel - 1);
}

bool derives_from_output(Activation activation, double negative_slope) {
  if (activation == Activation::LeakyRelu) return negative_slope >= 0;
  return activation != Activation::Silu && activation != Activation::Gelu;
}

Tensor activation_backward(const Tensor& grad, const Tensor& output, Activation activation, double negative_slope) {
  switch (activation) {
    case Activation::Relu: return at::threshold_backward(grad, output, 0);
    case Activation::LeakyRelu: return at::leaky_relu_backward(grad, output, negative_slope, true);
    case Activation::Tanh: return at::tanh_backward(grad, output);
    case Activation::Sigmoid: return at::sigmoid_backward(grad, output);
    default: return grad;
  }
}

Tensors3 run_stock(const ConvCall& c) {
  if (const Tensor output = fused_convolution(c); output.defined()) {
    const auto [_, mean, var] = empty_result(c);
    return {as_map(output, c.channels_last), mean, var};
  }
  const bool adds_bias_itself = c.bias_fits && !c.scale.defined();
  Tensor z = stock_convolution(c, adds_bias_itself ? c.bias : Tensor());
  if (c.scale.defined() || (c.bias.defined() && !adds_bias_itself)) {
    z = scale_shift_activate(c, z);
  } else {
    activate_(z, c.activation, c.negative_slope);
  }
  const Tensor output = as_map(z, c.channels_last);
  if (c.statistics == Statistics::None) {
    const auto [_, mean, var] = empty_result(c);
    return {output, mean, var};
  }
  const auto [mean, var] = feature_statistics(output, c.K, c.statistics == Statistics::Batch, /*correction=*/0);
  return {output, mean, var};
}

}  // namespace artkernels
