#pragma once

#include "ops/norm_act.h"

namespace artkernels {

// Host function of the op conv_backward, behind both torch.ops.artkernels and artkernels._C.
//
// (grad_input, grad_weight, grad_bias) of activation(conv2d(input, weight) + bias) or, transposed, of conv_transpose2d:
// those that output_mask wants; the others are empty. `output` is what came out of the activation, and is not needed
// without one; grad_bias is in the dtype of parameters.
Tensors3 conv_backward(const at::Tensor& grad_output, const OptionalTensor& output, const at::Tensor& input,
                       const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
                       at::IntArrayRef dilation, int64_t groups, bool transposed, std::string_view activation,
                       double negative_slope, std::array<bool, 3> output_mask);

}  // namespace artkernels
