#pragma once

#include "ops/conv_common.h"

namespace artkernels {

// Host function of the op conv2d_weight_grad, behind both torch.ops.artkernels and artkernels._C.
//
// [K, C / groups, kernel_h, kernel_w], of conv2d with this grad_output [N, K, OH, OW]. That of conv_transpose2d is the
// same sum with the roles swapped: its grad_output as the input, its input as the grad_output.
at::Tensor conv2d_weight_grad(const at::Tensor& input, const at::Tensor& grad_output, at::IntArrayRef kernel_size,
                              at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                              int64_t groups);

// The arguments of one call, once they are known to fit.
struct WeightGradCall {
  at::Tensor input, grad_output;  // dense, grad_output as large as the convolution's output
  Window rows, columns;
  int64_t groups;
  bool channels_last;  // the layout of the result
  // Of conv_backward: see ConvWeightGradParams. For this package's kernel alone.
  at::Tensor activated;
  bool transposed;
  Activation activation;
  double negative_slope;
};

WeightGradCall check_weight_grad(const char* op, const at::Tensor& input, const at::Tensor& grad_output,
                                 at::IntArrayRef kernel_size, at::IntArrayRef stride, at::IntArrayRef padding,
                                 at::IntArrayRef dilation, int64_t groups);

// Whether this package's kernel runs, and not torch's.
bool runs_on_cpu(const WeightGradCall& call);

// Whether that kernel sums grad_output over images and pixels, too.
bool gathers_bias(const WeightGradCall& call);

// `grad_bias`, which may be null, becomes that sum, in the dtype of parameters, or is left as it is.
at::Tensor run_weight_grad(const WeightGradCall& call, at::Tensor* grad_bias);

}  // namespace artkernels
