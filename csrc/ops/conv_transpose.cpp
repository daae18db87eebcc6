#include "ops/conv_transpose.h"

#include "ops/conv_common.h"
#include "ops/conv_cpu.h"
#include "ops/conv_cuda.h"

namespace artkernels {
namespace {

Tensors3 run(const ConvCall& call) {
  if (const auto result = run_on_cuda(call)) return *result;
  if (const auto result = run_on_cpu(call)) return *result;
  return run_stock(call);
}

}  // namespace

Tensors3 conv_transpose2d_act(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& scale, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef output_padding, int64_t groups, at::IntArrayRef dilation,
                              std::string_view activation, double negative_slope, std::string_view statistics) {
  const ConvCall call = check_conv("conv_transpose2d_act", /*transposed=*/true, input, weight, bias, scale, stride,
                                   padding, output_padding, dilation, groups, activation, negative_slope, statistics);
  return input.numel() == 0 ? empty_batch(call) : run(call);
}

}  // namespace artkernels
