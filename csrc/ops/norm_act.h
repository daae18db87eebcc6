#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "include/activation.h"

// Host functions of normalisation + activation, behind both torch.ops.artkernels and artkernels._C; documented in
// artkernels/ops/norm_act.py. What is computed is written down in include/params.h.
namespace artkernels {

using OptionalTensor = std::optional<at::Tensor>;
using Tensors3 = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// (output, mean, var); the statistics are empty when they were given. statistics_of_input: those given were computed
// from the input by whoever made it; the derivative, which is all that this changes, treats them as norm_act's own.
Tensors3 norm_act(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                  const OptionalTensor& residual, const OptionalTensor& mean, const OptionalTensor& var, int64_t groups,
                  bool across_batch, double eps, double alpha, double correction, std::string_view activation,
                  double negative_slope, bool residual_after, bool statistics_of_input);

// (grad_input, sums, grad_residual), those that output_mask wants; the others are empty.
Tensors3 norm_act_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& weight,
                           const OptionalTensor& bias, const OptionalTensor& residual, const at::Tensor& mean,
                           const at::Tensor& var, const OptionalTensor& averages, bool statistics_given, int64_t groups,
                           bool across_batch, double eps, double alpha, double correction, std::string_view activation,
                           double negative_slope, std::array<bool, 3> output_mask);

// (mean, var): [N, groups], or [groups] when across_batch.
std::tuple<at::Tensor, at::Tensor> feature_statistics(const at::Tensor& input, int64_t groups, bool across_batch,
                                                      double correction);

}  // namespace artkernels
