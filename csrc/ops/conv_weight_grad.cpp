#include "ops/conv_weight_grad.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "cpu/conv_weight_grad.h"
#include "include/checks.h"
#include "include/device.h"
#include "include/layout.h"
#include "ops/conv_cpu.h"

namespace artkernels {
namespace {

using at::Tensor;

// grad_output as large as the convolution's whole output: the input of a conv_transpose2d whose output_padding is a
// stride or more (a dilation allows that) is smaller, and nothing comes from the rest.
Tensor whole(const char* op, const Tensor& grad_output, int64_t OH, int64_t OW) {
  const int64_t H = grad_output.size(2), W = grad_output.size(3);
  TORCH_CHECK(H <= OH && W <= OW, op, ": grad_output must be at most ", OH, " x ", OW, " pixels, got ", H, " x ", W);
  return H == OH && W == OW ? grad_output : at::constant_pad_nd(grad_output, {0, OW - W, 0, OH - H});
}

Tensor empty_weight(const WeightGradCall& c) {
  const int64_t K = c.grad_output.size(1), C = c.input.size(1) / c.groups;
  return empty_map({K, C, c.rows.kernel, c.columns.kernel}, c.channels_last, c.input.options());
}

Tensor run_stock(const WeightGradCall& call) {
  if (stock_is_wrong(call.input, call.columns)) {
    WeightGradCall wide = call;
    wide.input = call.input.to(at::kFloat);
    wide.grad_output = call.grad_output.to(at::kFloat);
    return run_stock(wide).to(call.input.scalar_type());
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  const Window &r = call.rows, &c = call.columns;
  return as_map(
      std::get<1>(at::convolution_backward(call.grad_output, call.input, empty_weight(call), std::nullopt,
                                           {r.stride, c.stride}, {r.padding, c.padding}, {r.dilation, c.dilation},
                                           /*transposed=*/false, {0, 0}, call.groups, {false, true, false})),
      call.channels_last);
}

// All but the weight's pointer. Strides are those of conv2d's weight.
ConvWeightGradParams params_of(const WeightGradCall& call, at::IntArrayRef strides) {
  ConvWeightGradParams p{};
  p.dtype = feature_map(call.input).dtype;
  p.N = call.input.size(0), p.C = call.input.size(1), p.H = call.input.size(2), p.W = call.input.size(3);
  p.K = call.grad_output.size(1), p.OH = call.grad_output.size(2), p.OW = call.grad_output.size(3);
  p.input_channels_last = is_channels_last(call.input);
  p.output_channels_last = is_channels_last(call.grad_output);
  p.groups = call.groups;
  p.rows = call.rows, p.columns = call.columns;
  p.input = call.input.const_data_ptr();
  p.grad_output = call.grad_output.const_data_ptr();
  std::copy_n(std::initializer_list<int64_t>{strides[1], strides[0], strides[2], strides[3]}.begin(), 4,
              p.weight_strides);
  p.activated = data_or_null(call.activated);
  p.transposed = call.transposed;
  p.activation = call.activation;
  p.negative_slope = float(call.negative_slope);
  return p;
}

// The lanes of a vector are output channels: where those are few and the input's many, the two change places. With a
// stride of 1 the sum over outputs is one over inputs, with the kernel turned around.
bool is_turned(const ConvWeightGradParams& p) {
  auto turns = [](const Window& w) { return w.stride == 1 && w.dilation * (w.kernel - 1) >= w.padding; };
  return p.K < 8 && p.C > p.K && p.groups == 1 && turns(p.rows) && turns(p.columns);
}

ConvWeightGradParams turned(const ConvWeightGradParams& p, int64_t element_size) {
  ConvWeightGradParams t = p;
  std::swap(t.C, t.K);
  std::swap(t.H, t.OH);
  std::swap(t.W, t.OW);
  std::swap(t.input, t.grad_output);
  std::swap(t.input_channels_last, t.output_channels_last);
  std::swap(t.weight_strides[0], t.weight_strides[1]);
  t.transposed = !p.transposed;
  int64_t last = 0;
  auto turn = [&](Window& w, int64_t& stride) {
    w.padding = w.dilation * (w.kernel - 1) - w.padding;
    last += (w.kernel - 1) * stride;
    stride = -stride;
  };
  turn(t.rows, t.weight_strides[2]);
  turn(t.columns, t.weight_strides[3]);
  t.grad_weight = static_cast<char*>(p.grad_weight) + last * element_size;
  return t;
}

double multiplications(const ConvWeightGradParams& p) {
  return double(p.N) * p.OH * p.OW * p.K * (p.C / p.groups) * p.rows.kernel * p.columns.kernel;
}

// What was measured (benchmarks/bench_conv_transpose.py), against oneDNN.
bool is_faster(const ConvWeightGradParams& p) {
  static const bool stock_is_wide = multiplies_bfloat16();
  const int64_t pixels = p.OH * p.OW;
  if (p.dtype == ScalarType::BFloat16 && stock_is_wide && pixels >= 128 && p.N * pixels > 256 && p.C / p.groups > 8)
    return false;
  if (p.rows.kernel * p.columns.kernel == 1) return false;  // a matrix product
  if (p.groups > 1 && (p.C / p.groups < 16 || p.N == 1 || p.output_channels_last)) return false;
  return p.K / p.groups >= 8 || is_turned(p);
}

}  // namespace

WeightGradCall check_weight_grad(const char* op, const Tensor& input, const Tensor& grad_output,
                                 at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups) {
  check_feature_map(op, input);
  check_feature_map(op, grad_output);
  check_same_device(op, "grad_output", grad_output, input);
  TORCH_CHECK(grad_output.scalar_type() == input.scalar_type(), op, ": grad_output must have the input's dtype ",
              input.scalar_type(), ", got ", grad_output.scalar_type());
  TORCH_CHECK(grad_output.size(0) == input.size(0), op, ": grad_output has ", grad_output.size(0),
              " images, input has ", input.size(0));
  check_pair(op, "kernel_size", kernel_size, 1);
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  const int64_t C = input.size(1), K = grad_output.size(1);
  TORCH_CHECK(groups >= 1 && C % groups == 0 && K % groups == 0, op, ": the number of groups must divide the ", C,
              " input and ", K, " output channels, got ", groups);
  WeightGradCall call{};
  call.rows = {kernel_size[0], stride[0], padding[0], dilation[0]};
  call.columns = {kernel_size[1], stride[1], padding[1], dilation[1]};
  call.groups = groups;
  call.channels_last = is_channels_last(input) || is_channels_last(grad_output);
  call.input = dense(input);
  call.grad_output =
      whole(op, dense(grad_output), output_size(call.rows, input.size(2)), output_size(call.columns, input.size(3)));
  return call;
}

bool runs_on_cpu(const WeightGradCall& call) {
  if (runs_on_cuda(call.input) || call.input.scalar_type() == at::kDouble) return false;
  return is_faster(params_of(call, {0, 0, 0, 0}));
}

bool gathers_bias(const WeightGradCall& call) {
  return runs_on_cpu(call) && !call.transposed && !is_turned(params_of(call, {0, 0, 0, 0}));
}

Tensor run_weight_grad(const WeightGradCall& call, Tensor* grad_bias) {
  if (call.input.numel() == 0) return empty_weight(call).zero_();
  if (!runs_on_cpu(call)) return run_stock(call);
  const Tensor result = empty_weight(call);
  ConvWeightGradParams p = params_of(call, result.strides());
  p.grad_weight = result.mutable_data_ptr();
  if (grad_bias && gathers_bias(call)) {
    *grad_bias = at::empty({p.K}, at::kFloat);
    p.grad_bias = grad_bias->mutable_data_ptr<float>();
  }
  if (is_turned(p)) p = turned(p, result.element_size());
  cpu::conv_weight_grad(p, multiplications(p) < 1e6 || at::in_parallel_region() ? 1 : at::get_num_threads());
  return result;
}

Tensor conv2d_weight_grad(const Tensor& input, const Tensor& grad_output, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  const WeightGradCall call =
      check_weight_grad("conv2d_weight_grad", input, grad_output, kernel_size, stride, padding, dilation, groups);
  return run_weight_grad(call, nullptr);
}

}  // namespace artkernels
