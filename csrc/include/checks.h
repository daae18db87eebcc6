// Checks of arguments, one sentence each: what was given, what is needed.
#pragma once

#include <ATen/core/Tensor.h>

namespace artkernels {

inline void check_floating(const char* op, const at::Tensor& input) {
  const auto dtype = input.scalar_type();
  TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op,
              ": input must be float32, float64, float16 or bfloat16, got ", dtype);
  TORCH_CHECK(input.device().is_cpu() || input.device().is_cuda(), op, ": input must be on cpu or cuda, got ",
              input.device());
}

inline void check_feature_map(const char* op, const at::Tensor& input) {
  TORCH_CHECK(input.dim() == 4, op, ": input must be [N, C, H, W], got ", input.dim(), " dimensions");
  check_floating(op, input);
}

inline void check_same_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), op, ": ", name, " is on ", tensor.device(), ", input is on ",
              input.device());
}

}  // namespace artkernels
