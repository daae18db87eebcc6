#pragma once

#include "ops/norm_act.h"

// Host function of transposed convolution + activation, behind both torch.ops.artkernels and artkernels._C; documented
// in artkernels/ops/conv_transpose.py. What is computed is written down in include/params.h.
namespace artkernels {

// (output, mean, var); the statistics are those of the output, empty where `statistics` is "none".
Tensors3 conv_transpose2d_act(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& scale, at::IntArrayRef stride, at::IntArrayRef padding,
                              at::IntArrayRef output_padding, int64_t groups, at::IntArrayRef dilation,
                              std::string_view activation, double negative_slope, std::string_view statistics);

}  // namespace artkernels
