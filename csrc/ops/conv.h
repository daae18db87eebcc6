#pragma once

#include "ops/norm_act.h"

// Host functions of convolution + activation, behind both torch.ops.artkernels and artkernels._C; documented in
// artkernels/ops/conv.py. What is computed is written down in include/params.h.
namespace artkernels {

// (output, mean, var); the statistics are those of the output, empty where `statistics` is "none".
Tensors3 conv2d_act(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                    const OptionalTensor& scale, at::IntArrayRef stride, at::IntArrayRef padding,
                    at::IntArrayRef dilation, int64_t groups, bool reflect, std::string_view activation,
                    double negative_slope, std::string_view statistics);

}  // namespace artkernels
