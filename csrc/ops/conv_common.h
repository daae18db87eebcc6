// What the host functions of conv2d and of conv_transpose2d share: the checked arguments of a call, and torch's own
// convolution with what comes after it.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <string_view>

#include "include/params.h"
#include "ops/norm_act.h"

namespace artkernels {

// The arguments of one call, once they are known to fit.
struct ConvCall {
  bool transposed;
  at::Tensor input, weight;  // contiguous or channels_last, each as it came
  at::Tensor scale, bias;    // [K] in the dtype of parameters, undefined where there is none
  bool bias_fits;            // torch's convolution takes the bias: it came in the input's dtype
  int64_t groups;
  Window rows, columns;
  bool reflect;  // the padding is the input reflected; not transposed
  std::array<int64_t, 2> output_padding;
  int64_t K, OH, OW;
  bool channels_last;  // the output's layout
  Activation activation;
  double negative_slope;
  std::string_view activation_name;
  Statistics statistics;
  // Of conv_backward, on the CPU: see ConvParams. The activation is then the one whose derivative is applied.
  at::Tensor activated;
};

// A transposed call has a weight [C, K / groups, ...] and an output_padding, another one [K, C / groups, ...] and none.
ConvCall check_conv(const char* op, bool transposed, const at::Tensor& input, const at::Tensor& weight,
                    const OptionalTensor& bias, const OptionalTensor& scale, at::IntArrayRef stride,
                    at::IntArrayRef padding, at::IntArrayRef output_padding, at::IntArrayRef dilation, int64_t groups,
                    std::string_view activation, double negative_slope, std::string_view statistics);

Statistics statistics_of(const char* op, std::string_view name, std::string_view activation);
void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least);

// Of a convolution that is not transposed; 0 where the window does not fit in.
int64_t output_size(const Window& window, int64_t size);

// Of exactly these strides, which the fake kernels in artkernels/ops/_conv.py promise.
at::Tensor empty_map(at::IntArrayRef sizes, bool channels_last, const at::TensorOptions& options);

// x with the strides of empty_map: a copy only where its layout is the other one.
at::Tensor as_map(const at::Tensor& x, bool channels_last);

// (output, mean, var) for a kernel to fill; the statistics are empty where none are gathered.
Tensors3 empty_result(const ConvCall& call);

// The result where there is no image.
Tensors3 empty_batch(const ConvCall& call);

// oneDNN's bfloat16 convolutions, and their weight's gradients, read past the end of rows that are narrower than the
// kernel when the stride is not 1 (torch 2.14, CPUs with AMX): what they return is wrong, and differs from call to
// call.
bool stock_is_wrong(const at::Tensor& input, const Window& columns);

// What kernels are told of a call, all but the pointers.
Conv conv_params(const ConvCall& call);

// (output, mean, var), by whatever is fastest.
Tensors3 run_conv(const ConvCall& call);

// The same by torch's convolution and the kernels of norm_act.
Tensors3 run_stock(const ConvCall& call);

// Whether the output tells all that the activation's derivative needs: then its input is not kept.
bool derives_from_output(Activation activation, double negative_slope);

// The gradient before an activation that this is true of. Differentiable.
at::Tensor activation_backward(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                               double negative_slope);

}  // namespace artkernels
