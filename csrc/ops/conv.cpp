#include "ops/conv.h"

#include <ATen/ops/reflection_pad2d.h>

#include "ops/conv_common.h"
#include "ops/conv_cpu.h"
#include "ops/conv_cuda.h"

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

}  // namespace

Tensors3 run_conv(const ConvCall& call) {
  if (const auto result = run_on_cuda(call)) return *result;
  if (runs_on_cpu(call)) return run_on_cpu(call);
  return run_stock(call.reflect ? padded(call) : call);
}

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
  return run_conv(call);
}

}  // namespace artkernels
