#include "ops/conv_transpose.h"

#include "ops/conv_common.h"

namespace artkernels {

Tensors3 conv_transpose2d_act(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& scale, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef output_padding, int64_t groups, at::IntArrayRef dilation,
                              std::string_view activation, double negative_slope, std::string_view statistics) {
  const ConvCall call = check_conv("conv_transpose2d_act", /*transposed=*/true, input, weight, bias, scale, stride,
                                   padding, output_padding, dilation, groups, activation, negative_slope, statistics);
  return input.numel() == 0 ? empty_batch(call) : run_conv(call);
}

}  // namespace artkernels
