// float64: the plain formulas of include/params.h in ATen, for gradient checks. Arguments are checked, tensors are
// float64 and undefined where there is none.
#pragma once

#include "ops/norm_act.h"

namespace artkernels {

struct NormActOptions {
  int64_t groups;
  bool across_batch;
  double eps, alpha, correction;
  Activation activation;
  double negative_slope;
  bool residual_after;
};

std::tuple<at::Tensor, at::Tensor> feature_statistics_double(const at::Tensor& input, const NormActOptions& options);
at::Tensor norm_act_double(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& bias,
                           const at::Tensor& residual, const at::Tensor& mean, const at::Tensor& var,
                           const NormActOptions& options);
Tensors3 norm_act_backward_double(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                                  const at::Tensor& bias, const at::Tensor& residual, const at::Tensor& mean,
                                  const at::Tensor& var, const at::Tensor& averages, bool statistics_given,
                                  const NormActOptions& options);

}  // namespace artkernels
