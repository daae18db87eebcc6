#include "ops/conv.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/reflection_pad2d.h>

#include "include/checks.h"
#include "include/layout.h"
#include "ops/conv_common.h"
#include "ops/conv_cpu.h"

namespace artkernels {
namespace {

using at::Tensor;

// The call on an input that is already padded.
ConvCall padded(const ConvCall& call) {
  ConvCall result = call;
  const int64_t rows = call.rows.padding, columns = call.columns.padding;
  result.input = at::reflection_pad2d(call.input, {columns, columns, rows, rows});
  result.rows.padding = result.columns.padding = 0;
  result.reflect = false;
  return result;
}

Tensors3 run(const ConvCall& call) {
  if (const auto result = run_on_cpu(call)) return *result;
  return run_stock(call.reflect ? padded(call) : call);
}

// Where they take over the gradient of the weight; `weight_like` has its shape and layout, and nothing in it.
Tensor run_weight_grad(const Tensor& input, const Tensor& grad_output, const Tensor& weight_like, const Window& rows,
                       const Window& columns, int64_t groups) {
  if (stock_is_wrong(input, columns)) {
    auto wide = [](const Tensor& t) { return t.to(at::kFloat); };
    return run_weight_grad(wide(input), wide(grad_output), wide(weight_like), rows, columns, groups)
        .to(input.scalar_type());
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return std::get<1>(at::convolution_backward(
      grad_output, input, weight_like, std::nullopt, {rows.stride, columns.stride}, {rows.padding, columns.padding},
      {rows.dilation, columns.dilation}, /*transposed=*/false, {0, 0}, groups, {false, true, false}));
}

// grad_output as large as the convolution's whole output: the input of a conv_transpose2d whose output_padding is a
// stride or more (a dilation allows that) is smaller, and nothing comes from the rest.
Tensor whole(const char* op, const Tensor& grad_output, int64_t OH, int64_t OW) {
  const int64_t H = grad_output.size(2), W = grad_output.size(3);
  TORCH_CHECK(H <= OH && W <= OW, op, ": grad_output must be at most ", OH, " x ", OW, " pixels, got ", H, " x ", W);
  return H == OH && W == OW ? grad_output : at::constant_pad_nd(grad_output, {0, OW - W, 0, OH - H});
}

}  // namespace

Tensors3 conv2d_act(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                    bool reflect, std::string_view activation, double negative_slope, std::string_view statistics) {
  constexpr const char* op = "conv2d_act";
  ConvCall call = check_conv(op, /*transposed=*/false, input, weight, bias, scale, stride, padding, {0, 0}, dilation,
                             groups, activation, negative_slope, statistics);
  if (input.numel() == 0) return empty_batch(call);
  if (reflect) {
    TORCH_CHECK(padding[0] < input.size(2) && padding[1] < input.size(3), op, ": an input of ", input.size(2), " x ",
                input.size(3), " pixels can be reflected by less than its size, got padding ", padding);
    call.reflect = true;
  }
  return run(call);
}

Tensor conv2d_weight_grad(const Tensor& input, const Tensor& grad_output, at::IntArrayRef kernel_size,
                          at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups) {
  constexpr const char* op = "conv2d_weight_grad";
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
  const Window rows = {kernel_size[0], stride[0], padding[0], dilation[0]};
  const Window columns = {kernel_size[1], stride[1], padding[1], dilation[1]};
  const Tensor g = whole(op, dense(grad_output), output_size(rows, input.size(2)), output_size(columns, input.size(3)));
  const bool channels_last = is_channels_last(input) || is_channels_last(grad_output);
  const Tensor weight_like = empty_map({K, C / groups, kernel_size[0], kernel_size[1]}, channels_last, input.options());
  if (input.numel() == 0) return weight_like.zero_();
  return as_map(run_weight_grad(dense(input), g, weight_like, rows, columns, groups), channels_last);
}

}  // namespace artkernels
